//! The server: its version, JetStream, sizes, room, and its clock against ours.

use std::time::Duration;

use jetstream::{Account, ApiError};
use schemas::Timestamp;
use schemas::doctor::{Finding, FindingCode, Severity};
use tokio::time::Instant;

use super::{Doctor, Notes, count, failed, millis, monitor, time, told};
use crate::client::ClientError;

/// JetStream is off: for the server, for the account.
const NO_JETSTREAM: [u32; 2] = [10076, 10039];
/// A record with a large inline result, a kept task, names of artifacts and many attempts; also a chunk of an object.
const LARGEST_RECORD: usize = 256 << 10;
/// Schedules by cron.
const CRON: (u64, u64) = (2, 14);

pub(super) async fn check(on: &Doctor<'_>) -> Result<Notes, ClientError> {
    let mut notes = Notes::default();
    let client = on.client;
    let info = client.js.client().server_info();
    notes.findings.extend(judge_version(&info.version));
    notes.findings.extend(judge_payload(info.max_payload));
    notes.looked(format!("nats-server {}, max_payload {}", info.version, info.max_payload));
    match client.js.account().await {
        Ok(account) => {
            let (findings, looked) = judge_room(&account);
            notes.findings.extend(findings);
            notes.looked(looked);
        }
        Err(error) if is_off(&error) => notes.find(
            Finding::new(Severity::Error, FindingCode::JetstreamUnavailable, "the server")
                .says("it has no JetStream for this account")
                .next("start it with JetStream (nats-server -js), or give this account JetStream"),
        ),
        Err(error) => notes.find(failed("room for JetStream", told(&error))),
    }
    match clock(on).await {
        Ok(Some(seen)) => {
            notes.looked(format!("our clock, within {} of the server's", time(seen.off + seen.doubt)));
            notes.findings.extend(judge_clock(seen));
        }
        // No store yet; that is told by others.
        Ok(None) => {}
        Err(error) => notes.find(failed("the clocks", told(&error))),
    }
    match &on.examination.monitor {
        Some(url) => notes.add(monitor::check(url).await),
        None => notes.not_seen.push(
            "how often the server syncs to disk, its own health and the disk's limit: no client can see them; \
             shoal doctor --monitor http://HOST:8222, or sync_interval in the server's configuration"
                .into(),
        ),
    }
    Ok(notes)
}

fn is_off(error: &ApiError) -> bool {
    matches!(error, ApiError::NoResponders { .. }) || error.err_code().is_some_and(|code| NO_JETSTREAM.contains(&code))
}

fn judge_version(version: &str) -> Option<Finding> {
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u64>().ok());
    let found = (numbers.next()?, numbers.next()?);
    (found < CRON).then(|| {
        Finding::new(Severity::Info, FindingCode::ServerWithoutCron, "the server")
            .says(format!("nats-server {version} has no schedules by cron; all else works"))
            .seen("version", version)
            .next("install nats-server 2.14 or newer if you want them: https://github.com/nats-io/nats-server")
    })
}

/// The finding for a server that we do not even talk to.
pub fn too_old(found: &str, needed: &str) -> Finding {
    Finding::new(Severity::Error, FindingCode::ServerTooOld, "the server")
        .says(format!("nats-server {found} is too old: Shoal needs {needed} or newer"))
        .seen("version", found)
        .seen("needed", needed)
        .next("install a newer nats-server: https://github.com/nats-io/nats-server")
}

fn judge_payload(max_payload: usize) -> Option<Finding> {
    (max_payload < LARGEST_RECORD).then(|| {
        Finding::new(Severity::Warning, FindingCode::MaxPayloadSmall, "the server")
            .says(format!(
                "max_payload is {max_payload} bytes: records with large results, and artifacts, are cut or refused"
            ))
            .seen("max_payload", max_payload)
            .seen("wanted", LARGEST_RECORD)
            .next("set max_payload: 1MB in the server's configuration, then: shoal admin apply")
    })
}

/// What is used of a bound, in percent; `None` without one.
pub(super) fn used(bytes: u64, bound: i64) -> Option<u64> {
    let bound = u64::try_from(bound).ok().filter(|bound| *bound > 0)?;
    Some(bytes.saturating_mul(100) / bound)
}

/// Whether so much is too much.
pub(super) fn judge_use(about: &str, kind: &str, bytes: u64, bound: i64) -> Option<Finding> {
    let percent = used(bytes, bound)?;
    let severity = match percent {
        0..80 => return None,
        80..95 => Severity::Warning,
        _ => Severity::Error,
    };
    let finding = Finding::new(severity, FindingCode::StorageLow, about)
        .says(format!("{percent} % of its {kind} for JetStream is used: {bytes} of {bound} bytes"))
        .seen("used_bytes", bytes)
        .seen("limit_bytes", bound)
        .next("see what is large: nats stream report; give it more, or lower --logs-bytes and --artifacts-kept");
    Some(finding)
}

fn judge_room(account: &Account) -> (Vec<Finding>, String) {
    let mut uses = vec![("the account".to_owned(), account.storage, account.memory, &account.limits)];
    for (name, tier) in &account.tiers {
        uses.push((format!("the account's tier {name}"), tier.storage, tier.memory, &tier.limits));
    }
    let mut findings = Vec::new();
    for (about, storage, memory, limits) in &uses {
        findings.extend(judge_use(about, "disk", *storage, limits.max_storage));
        findings.extend(judge_use(about, "memory", *memory, limits.max_memory));
    }
    let bounded = uses.iter().any(|(_, _, _, limits)| limits.max_storage > 0);
    let bound = if bounded { "bounded" } else { "no bound of its own" };
    (findings, format!("room of the account: {} on disk, {bound}", count(account.storage, "byte")))
}

/// Our clock against the server's.
#[derive(Clone, Copy, Debug)]
struct Clock {
    off: Duration,
    ahead: bool,
    /// Half of what the question took.
    doubt: Duration,
}

/// The best of three questions.
async fn clock(on: &Doctor<'_>) -> Result<Option<Clock>, ClientError> {
    let stream = on.client.names.tasks_stream();
    let mut best: Option<Clock> = None;
    for _ in 0..3 {
        let (before, asked) = (Timestamp::now(), Instant::now());
        let Some(server) = on.client.js.stream_info(&stream).await?.and_then(|info| info.ts) else { return Ok(None) };
        let doubt = asked.elapsed() / 2;
        let ours = before.plus(doubt);
        let clock = Clock { off: ours.since(server).max(server.since(ours)), ahead: ours > server, doubt };
        if best.is_none_or(|best| clock.doubt < best.doubt) {
            best = Some(clock);
        }
    }
    Ok(best)
}

fn judge_clock(clock: Clock) -> Option<Finding> {
    let Clock { off, ahead, doubt } = clock;
    let severity = match off.saturating_sub(doubt).as_millis() {
        0..2_000 => return None,
        2_000..10_000 => Severity::Warning,
        _ => Severity::Error,
    };
    let side = if ahead { "ahead of" } else { "behind" };
    let finding = Finding::new(severity, FindingCode::ClockOff, "this machine")
        .says(format!("its clock is {} {side} the server's", time(off)))
        .seen("off_ms", millis(off))
        .seen("doubt_ms", millis(doubt))
        .next("set the clock here or at the server by NTP: timedatectl status; chronyc tracking");
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_judged_by_what_is_beyond_doubt() {
        let of = |off, doubt| {
            let clock = Clock { off: Duration::from_millis(off), ahead: true, doubt: Duration::from_millis(doubt) };
            judge_clock(clock).map(|finding| finding.severity)
        };
        assert_eq!(of(1_999, 0), None);
        assert_eq!(of(2_500, 1_000), None);
        assert_eq!(of(2_500, 10), Some(Severity::Warning));
        assert_eq!(of(3_600_000, 10), Some(Severity::Error));
    }

    #[test]
    fn a_server_without_cron_is_told_and_a_newer_is_not() {
        assert_eq!(judge_version("2.12.1").map(|finding| finding.code), Some(FindingCode::ServerWithoutCron));
        assert!(judge_version("2.14.0").is_none() && judge_version("2.15.1-dev").is_none());
        assert!(judge_version("3.0.0").is_none());
    }

    #[test]
    fn room_without_a_bound_is_enough() {
        assert_eq!(judge_use("a", "disk", 1 << 40, -1), None);
        assert_eq!(judge_use("a", "disk", 1 << 40, 0), None);
        let severity = |bytes| judge_use("a", "disk", bytes, 100).map(|finding| finding.severity);
        assert_eq!((severity(79), severity(80)), (None, Some(Severity::Warning)));
        assert_eq!(severity(95), Some(Severity::Error));
    }

    #[test]
    fn a_usual_max_payload_is_enough() {
        assert!(judge_payload(1 << 20).is_none());
        assert_eq!(judge_payload(128 << 10).map(|finding| finding.code), Some(FindingCode::MaxPayloadSmall));
    }
}
