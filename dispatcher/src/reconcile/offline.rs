//! Silent agents: who missed three beats is marked `offline`, once, and comes back by its own next beat.
//!
//! By paged reads from a watermark on, each beat, instead of a watch: an agent's beat replaces its whole entry, so a look
//! reads exactly those that beat since the last one, which is what a watch would be sent too. But there is no consumer
//! whose loss would go unseen, and a failed read is known at once, which the guard below needs.
//!
//! The age of an entry is the server's time of storing it against the server's present: no agent's clock counts.
//!
//! **Blind observers judge nobody.** Someone who was cut off saw no beats and must not call that silence. A verdict wants
//! an unbroken window of three beats in which this dispatcher was connected by the same link, read successfully at each
//! look, and was itself not frozen. Whatever breaks the window starts it anew.

use std::collections::HashMap;
use std::time::Duration;

use jetstream::{Link, StoredMessage};
use schemas::{AgentId, AgentRecord, AgentStatus, HumanDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Rhythm, Watch, clock};
use crate::client::ClientError;
use crate::client::record::{self, Written};

/// Missed beats that make an agent offline.
pub(crate) const MISSED: u32 = 3;
/// Entries in one read.
const PAGE: usize = 1_000;

/// An agent's entry, as far as judging goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    revision: u64,
    stored_at: Timestamp,
    offline: bool,
}

impl Seen {
    /// `None` for what is deregistered, or not ours to judge.
    fn of(message: &StoredMessage) -> Option<Self> {
        let record: AgentRecord = serde_json::from_slice(&message.payload).ok().filter(|_| !message.is_marker())?;
        let offline = record.status == AgentStatus::Offline;
        Some(Self { revision: message.sequence, stored_at: message.stored_at, offline })
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
    /// Everything up to here was read.
    read: u64,
    agents: HashMap<AgentId, Seen>,
    window: Option<Window>,
}

impl Memory {
    /// Those to be marked at the server's `now`.
    fn silent(&self, now: Timestamp, after: Duration) -> Vec<AgentId> {
        let silent = self.agents.iter().filter(|(_, seen)| !seen.offline && now.since(seen.stored_at) > after);
        silent.map(|(id, _)| id.clone()).collect()
    }

    /// How long until the next agent can be silent for too long, if none beats.
    fn until_next(&self, now: Timestamp, after: Duration) -> Option<Duration> {
        let live = self.agents.values().filter(|seen| !seen.offline);
        live.map(|seen| after.saturating_sub(now.since(seen.stored_at))).min()
    }
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
    let (js, names, beat) = (&watch.js, &watch.names, watch.heartbeat);
    let stream = format!("KV_{}", names.agents_bucket());
    let look = clock::look(js, &stream).await?;
    if look.last < memory.read {
        // The bucket was made anew.
        *memory = Memory::default();
    }
    let filter = format!("$KV.{}.*", names.agents_bucket());
    while memory.read < look.last {
        let page = js.page(&stream, &filter, memory.read + 1, PAGE).await?;
        for message in &page.messages {
            memory.read = message.sequence;
            let id = message.subject.rsplit('.').next().and_then(|id| id.parse::<AgentId>().ok());
            let Some(id) = id else { continue };
            match Seen::of(message) {
                Some(seen) => memory.agents.insert(id, seen),
                None => memory.agents.remove(&id),
            };
        }
        if !page.more {
            memory.read = memory.read.max(look.last);
        }
    }
    let now = Instant::now();
    memory.window = continued(memory.window, *watch.connection.link.borrow(), now, look.now, beat);
    // The bucket forgets the gone after a day, without a word.
    memory.agents.retain(|_, seen| !seen.offline || look.now.since(seen.stored_at) < Duration::from_secs(86_400));
    let after = beat * MISSED;
    let watched = memory.window.map_or(Duration::ZERO, |window| now - window.since);
    if watched < after {
        // The first verdict comes when the window is full, not a look later.
        let rest = after - watched;
        return Ok((!memory.agents.is_empty() && rest < beat).then_some(rest));
    }
    for id in memory.silent(look.now, after) {
        if let Some(seen) = memory.agents.get_mut(&id) {
            mark(watch, &id, seen, look.now).await?;
        }
    }
    Ok(memory.until_next(look.now, after).filter(|until| *until < beat))
}

/// Marks one agent, unless it beat meanwhile.
async fn mark(watch: &Watch, id: &AgentId, seen: &mut Seen, now: Timestamp) -> Result<(), ClientError> {
    let (js, names) = (&watch.js, &watch.names);
    let (stream, subject) = (format!("KV_{}", names.agents_bucket()), names.agent_subject(id));
    let newest = js.last(&stream, &subject).await?;
    let Some(newest) = newest else {
        seen.offline = true;
        return Ok(());
    };
    if newest.sequence != seen.revision {
        // It beat, or was marked by another dispatcher; a page from a replica may have missed that.
        *seen = Seen::of(&newest).unwrap_or(Seen { offline: true, ..*seen });
        return Ok(());
    }
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
    let written = record::set(js, &stream, &subject, newest.sequence, headers, payload.into(), what).await?;
    if let Written::Stored(_) = written {
        tracing::warn!(agent = %id, %silence, "offline: no heartbeat");
    }
    // What is stored now, ours or theirs, is read by the next look.
    seen.offline = true;
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
        let mut memory = Memory::default();
        let mut add = |id: &str, stored_at, offline| {
            memory.agents.insert(id.parse().unwrap(), Seen { revision: 1, stored_at, offline });
        };
        add("fresh", at(95), false);
        add("silent", at(69), false);
        add("gone", at(0), true);
        assert_eq!(memory.silent(at(100), BEAT * MISSED), ["silent".parse().unwrap()]);
        assert_eq!(memory.until_next(at(100), BEAT * MISSED), Some(Duration::ZERO));
        assert!(memory.silent(at(99), BEAT * MISSED).is_empty());
    }
}
