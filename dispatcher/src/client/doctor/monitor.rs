//! What only the server's HTTP monitoring tells: its own health, how often it syncs, how much disk it may use.

use std::time::Duration;

use schemas::doctor::{Finding, FindingCode, Severity};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server::judge_use;
use super::{Notes, time};

/// How long one page may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest page that is read.
const LONGEST: u64 = 8 << 20;

pub(super) async fn check(url: &str) -> Notes {
    let mut notes = Notes::default();
    let pages = tokio::join!(get(url, "/healthz"), get(url, "/varz"), get(url, "/jsz"));
    let unreachable = |why: String| {
        Finding::new(Severity::Warning, FindingCode::MonitorUnreachable, url)
            .says(format!("the server's monitoring does not answer: {why}"))
            .next("name the server's `http` address, as --monitor http://127.0.0.1:8222")
    };
    match pages {
        (Ok((status, health)), Ok((200, varz)), Ok((_, jsz))) => {
            notes.findings.extend(judge(status, &health, &varz, &jsz));
            notes.looked(format!("monitoring at {url}: {}", syncs(&varz)));
        }
        (Err(why), _, _) | (_, Err(why), _) | (_, _, Err(why)) => notes.find(unreachable(why)),
        (_, Ok((status, _)), _) => notes.find(unreachable(format!("/varz answers {status}"))),
    }
    notes
}

/// One page. Plain HTTP only, which is what monitoring mostly is.
async fn get(url: &str, path: &str) -> Result<(u16, Value), String> {
    let address = url.strip_prefix("http://").ok_or("only http:// is spoken here")?;
    let address = address.split('/').next().unwrap_or_default();
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        // 1.0, so that the body comes in one piece.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await;
    let answer = answer.map_err(|_| format!("no answer within {}", time(PATIENCE)))?;
    let answer = answer.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer);
    let no_http = || "it speaks no HTTP".to_owned();
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(no_http)?;
    Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

fn sync_interval(varz: &Value) -> Option<Duration> {
    varz.pointer("/jetstream/config/sync_interval")?.as_u64().map(Duration::from_nanos)
}

fn syncs_always(varz: &Value) -> bool {
    varz.pointer("/jetstream/config/sync_always").and_then(Value::as_bool) == Some(true)
}

fn syncs(varz: &Value) -> String {
    match sync_interval(varz) {
        _ if syncs_always(varz) => "sync_interval always".into(),
        Some(every) => format!("sync_interval {}", time(every)),
        None => "sync_interval not told".into(),
    }
}

fn judge(status: u16, health: &Value, varz: &Value, jsz: &Value) -> Vec<Finding> {
    let name = varz["server_name"].as_str().unwrap_or_default();
    let about = format!("the server {name}");
    let mut findings = Vec::new();
    if status != 200 {
        let says = health["error"].as_str().or(health["status"].as_str()).unwrap_or("nothing");
        findings.push(
            Finding::new(Severity::Error, FindingCode::ServerUnhealthy, &about)
                .says(format!("/healthz answers {status}: {says}"))
                .seen("status", status)
                .next("look into the server's log; nats server report jetstream"),
        );
    }
    let alone = varz.pointer("/cluster/name").is_none();
    if alone
        && !syncs_always(varz)
        && let Some(every) = sync_interval(varz)
    {
        findings.push(
            Finding::new(Severity::Info, FindingCode::SyncIntervalLong, &about)
                .says(format!("a power loss takes up to the last {} of what it acknowledged", time(every)))
                .seen("sync_interval_ms", super::millis(every))
                .next(
                    "if that is too much: sync_interval: always, or a cluster with --replicas 3 (docs/guarantees.md)",
                ),
        );
    }
    let bound = |path: &str| jsz.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let used = |path: &str| jsz.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    findings.extend(judge_use(&about, "disk", used("/storage"), bound("/config/max_storage")));
    findings.extend(judge_use(&about, "memory", used("/memory"), bound("/config/max_memory")));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn codes(status: u16, varz: Value, jsz: Value) -> Vec<FindingCode> {
        judge(status, &json!({}), &varz, &jsz).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_server_alone_that_syncs_each_write_is_fine() {
        let varz =
            |always: bool| json!({"jetstream": {"config": {"sync_interval": 120e9 as u64, "sync_always": always}}});
        assert_eq!(codes(200, varz(true), json!({})), []);
        assert_eq!(codes(200, varz(false), json!({})), [FindingCode::SyncIntervalLong]);
        let mut cluster = varz(false);
        cluster["cluster"] = json!({"name": "c"});
        assert_eq!(codes(200, cluster, json!({})), []);
    }

    #[test]
    fn ill_health_and_a_full_disk_are_told() {
        let full = json!({"storage": 99, "config": {"max_storage": 100}});
        assert_eq!(codes(503, json!({}), full), [FindingCode::ServerUnhealthy, FindingCode::StorageLow]);
    }
}
