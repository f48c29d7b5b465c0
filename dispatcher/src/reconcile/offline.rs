//! Silent agents: who missed three beats is marked `offline`, once, and comes back by its own next beat.
//!
//! An agent's beat replaces its whole entry, which then stands last in the bucket: the silent are in front, in the order in
//! which they fell silent. So a look reads from the front up to the first that lives, which is one entry while all beat,
//! however many they are. Those that are offline already are passed once and not read again. No watch: there is no
//! consumer whose loss would go unseen, and a failed read is known at once, which the guard below needs.
//!
//! The age of an entry is the server's time of storing it against the server's present: no agent's clock counts.
//!
//! **Blind observers judge nobody.** Someone who was cut off saw no beats and must not call that silence. A verdict wants
//! an unbroken window of three beats in which this dispatcher was connected by the same link, read successfully at each
//! look, and was itself not frozen. Whatever breaks the window starts it anew.

use std::time::Duration;

use jetstream::{Link, StoredMessage};
use schemas::{AgentId, AgentStatus, HumanDuration, Timestamp};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::{self, Look};
use super::{Rhythm, Watch};
use crate::client::ClientError;
use crate::client::record::{self, Written};

/// Missed beats that make an agent offline.
pub(crate) const MISSED: u32 = 3;
/// Entries in the first read of a look, and in the next ones.
const PAGES: [usize; 2] = [4, 1_000];

/// What the first entries of the bucket say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody, or offline already: no more to be done until it is written again.
    Settled,
    /// It fell silent.
    Silent,
    /// It beat lately, and so did all behind it. It can be silent after this time.
    Lives(Duration),
    /// Stored in what the server calls the future: its clock was set back, and those behind it may be older.
    Ahead,
}

/// Judges one entry at the server's `now`. Pure.
fn judge(message: &StoredMessage, now: Timestamp, after: Duration) -> Verdict {
    #[derive(Deserialize)]
    struct Says {
        status: AgentStatus,
    }
    let says = Some(message).filter(|message| !message.is_marker());
    let Some(says) = says.and_then(|message| serde_json::from_slice::<Says>(&message.payload).ok()) else {
        // Deregistered, or not ours to judge.
        return Verdict::Settled;
    };
    let silence = now.since(message.stored_at);
    match says.status {
        AgentStatus::Offline => Verdict::Settled,
        _ if message.stored_at > now => Verdict::Ahead,
        _ if silence > after => Verdict::Silent,
        _ => Verdict::Lives(after - silence),
    }
}

/// Since when this observer sees without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    since: Instant,
    epoch: u64,
    last_look: Instant,
    last_server: Timestamp,
}

/// Decides whether a look continues the window. Pure: clock and link are given.
fn continued(window: Option<Window>, link: Link, now: Instant, server: Timestamp, beat: Duration) -> Option<Window> {
    if !link.connected {
        return None;
    }
    let fresh = Window { since: now, epoch: link.epoch, last_look: now, last_server: server };
    let Some(window) = window else { return Some(fresh) };
    // A program that was stopped, or a machine that slept, missed looks: the second is not in our own clock.
    let gap = (now - window.last_look).max(server.since(window.last_server));
    if window.epoch != link.epoch || gap > beat * 2 {
        return Some(fresh);
    }
    Some(Window { last_look: now, last_server: server, ..window })
}

#[derive(Debug, Default)]
struct Memory {
    /// Everything up to here is settled.
    settled: u64,
    window: Option<Window>,
}

/// Looks every beat, and at the moment when somebody would become silent.
pub async fn run(watch: Watch, stop: CancellationToken) {
    let mut rhythm = Rhythm::new(watch.heartbeat);
    let mut memory = Memory::default();
    let mut link = watch.connection.link.clone();
    let mut next: Option<Duration> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rhythm.ticks.tick() => {}
            // A moment later than the verdict is due, so that it needs no third look.
            () = tokio::time::sleep(next.unwrap_or_default() + Duration::from_millis(20)), if next.is_some() => {}
            changed = link.changed() => {
                memory.window = None;
                if changed.is_err() {
                    // The client is gone, and with it whoever would judge.
                    return;
                }
                continue;
            }
        }
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = turn(&watch, &mut memory) => looked,
        };
        next = match &looked {
            Ok(until_next) => *until_next,
            Err(_) => {
                memory.window = None;
                None
            }
        };
        rhythm.report("offline", looked.map(|_| ()));
    }
}

/// One look. Returns when the next verdict could be due, if that is before the next beat.
async fn turn(watch: &Watch, memory: &mut Memory) -> Result<Option<Duration>, ClientError> {
    let beat = watch.heartbeat;
    let look = clock::look(&watch.js, &format!("KV_{}", watch.names.agents_bucket())).await?;
    if look.last < memory.settled {
        // The bucket was made anew.
        *memory = Memory::default();
    }
    let now = Instant::now();
    memory.window = continued(memory.window, *watch.connection.link.borrow(), now, look.now, beat);
    let after = beat * MISSED;
    let watched = memory.window.map_or(Duration::ZERO, |window| now - window.since);
    if watched < after {
        // The first verdict comes when the window is full, not a look later.
        let rest = after - watched;
        return Ok((look.last > memory.settled && rest < beat).then_some(rest));
    }
    let until_next = from_the_front(watch, &mut memory.settled, look, after).await?;
    Ok(until_next.filter(|until| *until < beat))
}

/// Marks the silent, from the front on. Returns how long until the next agent can be silent for too long, if none beats.
async fn from_the_front(
    watch: &Watch,
    settled: &mut u64,
    look: Look,
    after: Duration,
) -> Result<Option<Duration>, ClientError> {
    let bucket = watch.names.agents_bucket();
    let (stream, filter) = (format!("KV_{bucket}"), format!("$KV.{bucket}.*"));
    let (mut from, mut most) = (*settled + 1, PAGES[0]);
    // Whether everything up to here is settled.
    let mut whole = true;
    // What came since belongs to the next look.
    while from <= look.last {
        let page = watch.js.page(&stream, &filter, from, most).await?;
        for message in &page.messages {
            from = message.sequence + 1;
            match judge(message, look.now, after) {
                Verdict::Settled => {}
                Verdict::Silent => mark(watch, &filter, message, look.now).await?,
                Verdict::Lives(rest) => return Ok(Some(rest)),
                Verdict::Ahead => whole = false,
            }
            if whole {
                *settled = message.sequence;
            }
        }
        if !page.more {
            break;
        }
        most = PAGES[1];
    }
    Ok(None)
}

/// Marks one agent, unless it beat meanwhile. Whatever is stored instead of this entry, ours or theirs, stands behind it
/// and is met there.
async fn mark(watch: &Watch, filter: &str, silent: &StoredMessage, now: Timestamp) -> Result<(), ClientError> {
    let (js, names) = (&watch.js, &watch.names);
    let (stream, subject) = (format!("KV_{}", names.agents_bucket()), silent.subject.as_str());
    let id = subject.strip_prefix(filter.trim_end_matches('*')).unwrap_or(subject);
    if id.parse::<AgentId>().is_err() {
        return Ok(());
    }
    // From the leader: a page from a replica may have missed a beat.
    let newest = js.last(&stream, subject).await?;
    let Some(newest) = newest.filter(|newest| newest.sequence == silent.sequence) else { return Ok(()) };
    let unreadable = |source| ClientError::Unreadable { what: format!("agent {id}"), source };
    // Fields of a newer agent survive: only the two that are ours are changed.
    let mut entry: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&newest.payload).map_err(unreadable)?;
    let silence = HumanDuration(Duration::from_secs(now.since(newest.stored_at).as_secs()));
    entry.insert("status".into(), serde_json::to_value(AgentStatus::Offline).map_err(unreadable)?);
    entry.insert("reason".into(), format!("no heartbeat for {silence}").into());
    let payload = serde_json::to_vec(&entry).map_err(unreadable)?;
    let what = format!("offline mark of {id}");
    let headers = async_nats::HeaderMap::new();
    let written = record::set(js, &stream, subject, newest.sequence, headers, payload.into(), what).await?;
    if let Written::Stored(_) = written {
        tracing::warn!(agent = id, %silence, "offline: no heartbeat");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(10);

    fn link(epoch: u64) -> Link {
        Link { connected: true, epoch }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000_000 + seconds * 1_000)
    }

    #[test]
    fn only_unbroken_sight_makes_a_window() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let first = continued(None, link(1), start, at(0), BEAT).unwrap();
        let second = continued(Some(first), link(1), later(10), at(10), BEAT).unwrap();
        assert_eq!(second.since, start);
        // Connected anew, though it stands again at each look.
        assert_eq!(continued(Some(second), link(2), later(20), at(20), BEAT).unwrap().since, later(20));
        // Frozen, by our own clock or by the server's.
        assert_eq!(continued(Some(second), link(1), later(40), at(20), BEAT).unwrap().since, later(40));
        assert_eq!(continued(Some(second), link(1), later(20), at(4_000), BEAT).unwrap().since, later(20));
        // Cut off.
        assert!(continued(Some(second), Link { connected: false, epoch: 1 }, later(20), at(20), BEAT).is_none());
    }

    #[test]
    fn silence_is_counted_from_the_servers_time() {
        let entry = |stored_at, body: &str| StoredMessage {
            subject: "$KV.shoal_agents.a".into(),
            sequence: 1,
            stored_at,
            headers: Default::default(),
            payload: body.to_owned().into(),
        };
        let ready = r#"{"status":"ready","last_heartbeat":"2001-01-01T00:00:00Z"}"#;
        let judged = |stored_at, body| judge(&entry(stored_at, body), at(100), BEAT * MISSED);
        assert_eq!(judged(at(95), ready), Verdict::Lives(Duration::from_secs(25)));
        assert_eq!(judged(at(70), ready), Verdict::Lives(Duration::ZERO));
        assert_eq!(judged(at(69), ready), Verdict::Silent);
        assert_eq!(judged(at(69), r#"{"status":"from_tomorrow"}"#), Verdict::Silent);
        assert_eq!(judged(at(101), ready), Verdict::Ahead);
        for settled in [r#"{"status":"offline"}"#, "{}", ""] {
            assert_eq!(judged(at(0), settled), Verdict::Settled, "{settled}");
        }
    }
}
