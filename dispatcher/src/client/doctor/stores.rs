//! Streams and buckets: what `shoal admin apply` would change, where the copies are, what the server lost.

use std::collections::BTreeMap;

use jetstream::{Copy, Difference, JetStream, Plan, StreamInfo};
use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::loss::{LOSS, Loss};
use schemas::stores::StreamSpec;
use serde_json::Value;

use super::{Doctor, Notes, count, failed, told};
use crate::client::ClientError;

/// What an operator chooses; all else is Shoal's.
const CHOSEN: [&str; 4] = ["num_replicas", "max_age", "max_bytes", "storage"];
/// Copies that survive the loss of a server.
const SAFE: u64 = 3;

pub(super) async fn check(on: &Doctor<'_>) -> Result<Notes, ClientError> {
    let mut notes = Notes::default();
    let client = on.client;
    let server = client.js.client().server_info();
    let specs = client.names.streams(&client.stores, server.max_payload);
    let infos = specs.iter().map(|spec| client.js.stream_info(&spec.name));
    let infos = futures_util::future::join_all(infos).await;
    let (mut missing, mut single, mut doubtful) = (Vec::new(), Vec::new(), Vec::new());
    let mut looked = 0_u64;
    for (spec, info) in specs.iter().zip(infos) {
        match info {
            Ok(info) => {
                looked += 1;
                match &info {
                    None => missing.push(spec.name.clone()),
                    Some(info) => {
                        notes.findings.extend(judge(spec, info));
                        if lacking(info).next().is_some() {
                            doubtful.push((spec.name.clone(), info.clone()));
                        }
                        if copies(info) < SAFE {
                            single.push(spec.name.clone());
                        }
                    }
                }
            }
            Err(error) => notes.find(failed(&format!("stream {}", spec.name), told(&error))),
        }
    }
    if !doubtful.is_empty() {
        tokio::time::sleep(on.examination.wait).await;
    }
    let mut looks = Vec::new();
    for (stream, before) in doubtful {
        match client.js.stream_info(&stream).await {
            Ok(now) => looks.extend(now.map(|now| (stream, before, now))),
            Err(error) => notes.find(failed(&format!("stream {stream}"), told(&error))),
        }
    }
    notes.findings.extend(behind(&looks));
    notes.findings.extend(judge_missing(&client.names.prefix().to_string(), missing));
    let servers = if server.cluster.is_some() { server.connect_urls.len() as u64 } else { 1 };
    notes.findings.extend(judge_copies(servers, single));
    notes.looked(format!("{looked} of {} streams and buckets", specs.len()));
    Ok(notes)
}

fn copies(info: &StreamInfo) -> u64 {
    info.config.get("num_replicas").and_then(Value::as_u64).unwrap_or(1)
}

fn judge_missing(fleet: &str, missing: Vec<String>) -> Option<Finding> {
    (!missing.is_empty()).then(|| {
        Finding::new(Severity::Error, FindingCode::StoreMissing, format!("fleet {fleet}"))
            .says(format!("these do not exist: {}", missing.join(", ")))
            .seen("missing", missing)
            .next("make them: shoal admin apply")
    })
}

/// `servers`: how many of the cluster take clients.
fn judge_copies(servers: u64, single: Vec<String>) -> Option<Finding> {
    (servers >= SAFE && !single.is_empty()).then(|| {
        Finding::new(Severity::Warning, FindingCode::ReplicasLow, "streams and buckets")
            .says(format!(
                "the cluster has {servers} servers, but these have fewer than 3 copies: {}",
                single.join(", ")
            ))
            .seen("servers", servers)
            .seen("stores", single)
            .next("shoal admin apply --replicas 3, and SHOAL_REPLICAS=3 for every role")
    })
}

fn judge(spec: &StreamSpec, info: &StreamInfo) -> Vec<Finding> {
    let about = format!("stream {}", spec.name);
    let mut findings = Vec::new();
    let noted = info.config.get("metadata").and_then(|metadata| metadata.get(LOSS)).and_then(Value::as_str);
    for Loss { noticed, stream, from, to, what } in schemas::loss::read(noted.map(str::to_owned).as_ref()) {
        findings.push(
            Finding::new(Severity::Error, FindingCode::StoreLossReported, format!("stream {stream}"))
                .says(format!("a dispatcher saw that the server lost messages: {what}"))
                .seen("noticed", noticed.to_string())
                .seen("from", from)
                .seen("to", to)
                .next("shoal list --state lost; submit again what is missing, then: shoal admin clear-loss"),
        );
    }
    if let Plan::Change(changed, left) = JetStream::plan(spec, Some(info)) {
        let (chosen, fixed): (Vec<_>, Vec<_>) =
            changed.iter().chain(&left).partition(|difference| CHOSEN.contains(&difference.setting.as_str()));
        if !fixed.is_empty() {
            findings.push(
                told_of(&fixed, Finding::new(Severity::Warning, FindingCode::StoreDrifted, &about))
                    .says(format!("it is not as Shoal needs it: {}", words(&fixed)))
                    .next(match fixed.iter().all(|difference| left.contains(difference)) {
                        false => "bring it back: shoal admin apply",
                        true => "it cannot be changed in place: drain, back it up (nats stream backup), remove it, shoal admin apply",
                    }),
            );
        }
        // An operator's own bounds may well be above or below what doctor was not told.
        if !chosen.is_empty() {
            findings.push(
                told_of(&chosen, Finding::new(Severity::Info, FindingCode::StoreSettingsDiffer, &about))
                    .says(format!("it is set otherwise than doctor was told: {}", words(&chosen)))
                    .next(
                        "give doctor the flags or variables that `shoal admin apply` had; nothing is wrong by itself",
                    ),
            );
        }
    }
    findings
}

fn lacking(info: &StreamInfo) -> impl Iterator<Item = &Copy> {
    info.cluster.replicas.iter().filter(|copy| copy.offline || !copy.current)
}

/// The servers whose copies are away or lack something, with what each look at a stream saw: one that is down is one fault,
/// however many streams there are. Under load a copy may be a moment behind, so both looks must say it.
fn behind(looks: &[(String, StreamInfo, StreamInfo)]) -> Vec<Finding> {
    let mut servers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (stream, before, now) in looks {
        for copy in lacking(now).filter(|copy| lacking(before).any(|it| it.name == copy.name)) {
            servers.entry(&copy.name).or_default().push(match copy.offline {
                true => format!("{stream} is offline"),
                false => format!("{stream} lacks {}", count(copy.lag, "write")),
            });
        }
    }
    let told = |(server, copies): (&str, Vec<String>)| {
        Finding::new(Severity::Warning, FindingCode::ReplicaBehind, format!("the server {server}"))
            .says(format!("its copies are not whole: {}", copies.join(", ")))
            .seen("copies", copies)
            .next("nats server report jetstream")
    };
    servers.into_iter().map(told).collect()
}

fn words(differences: &[&Difference]) -> String {
    let one = |it: &&Difference| format!("{} is {}, wanted {}", it.setting, it.is, it.wanted);
    differences.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn told_of(differences: &[&Difference], mut finding: Finding) -> Finding {
    for it in differences {
        finding = finding.seen(&it.setting, serde_json::json!({"is": it.is, "wanted": it.wanted}));
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Names;
    use schemas::stores::StoreSettings;
    use serde_json::json;

    fn codes(change: Value) -> Vec<FindingCode> {
        let spec = Names::default().streams(&StoreSettings::default(), 1 << 20).remove(0);
        let mut config = serde_json::to_value(&spec).unwrap();
        config.as_object_mut().unwrap().extend(change["config"].as_object().cloned().unwrap_or_default());
        let info = json!({"config": config, "created": "2026-11-20T10:00:00Z", "cluster": change["cluster"]
            .as_object().cloned().unwrap_or_default()});
        let info: StreamInfo = serde_json::from_value(info).unwrap();
        judge(&spec, &info).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_store_as_it_should_be_is_no_finding() {
        assert_eq!(codes(json!({})), []);
        assert_eq!(codes(json!({"cluster": {"name": "c", "replicas": [{"name": "b", "current": true}]}})), []);
    }

    #[test]
    fn what_shoal_decides_is_drift_and_what_an_operator_chooses_is_not() {
        assert_eq!(codes(json!({"config": {"discard_new_per_subject": false}})), [FindingCode::StoreDrifted]);
        assert_eq!(codes(json!({"config": {"retention": "limits"}})), [FindingCode::StoreDrifted]);
        assert_eq!(codes(json!({"config": {"num_replicas": 3}})), [FindingCode::StoreSettingsDiffer]);
    }

    #[test]
    fn a_loss_that_was_seen_is_told() {
        let loss = Loss {
            noticed: "2026-11-21T10:00:00Z".parse().unwrap(),
            stream: "SHOAL_TASKS".into(),
            from: 9,
            to: 4,
            what: "went back".into(),
        };
        let note = schemas::loss::write(&[loss]);
        assert_eq!(codes(json!({"config": {"metadata": {LOSS: note}}})), [FindingCode::StoreLossReported]);
    }

    #[test]
    fn a_copy_is_behind_only_if_two_looks_say_so() {
        let info = |current: bool| -> StreamInfo {
            let copies = json!({"name": "c", "replicas": [{"name": "b", "current": current, "lag": 3}]});
            serde_json::from_value(json!({"config": {}, "created": "2026-11-20T10:00:00Z", "cluster": copies})).unwrap()
        };
        let look = |name: &str, first, second| (name.to_owned(), info(first), info(second));
        assert_eq!(behind(&[look("S", true, false), look("T", false, true)]), []);
        let [ref finding] = behind(&[look("S", false, false), look("T", false, false)])[..] else { panic!("one") };
        assert_eq!(finding.about, "the server b");
        assert_eq!(finding.message, "its copies are not whole: S lacks 3 writes, T lacks 3 writes");
    }

    #[test]
    fn few_copies_matter_only_where_there_is_room_for_more() {
        assert!(judge_copies(1, vec!["S".into()]).is_none() && judge_copies(3, vec![]).is_none());
        assert_eq!(judge_copies(3, vec!["S".into()]).unwrap().code, FindingCode::ReplicasLow);
    }
}
