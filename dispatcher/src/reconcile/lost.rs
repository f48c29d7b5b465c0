//! Unfinished records without a message: deleted by hand, or lost by the server. Nobody will ever deliver them again, so
//! they end as `lost`.
//!
//! Unfinished records bear the header `Shoal-State`; a scan of the records' headers, from the last seen revision on and
//! so many a turn, keeps a list of them. Each is looked at soon after it appears and then ever less often, for most end by themselves.
//! One whose message is missing is read again, a second later, record and message, from the leaders, and only then ended,
//! by compare-and-set at the revision that was read: a worker that writes its end meanwhile wins.

use std::collections::HashMap;

use jetstream::JetStream;
use schemas::{Code, Names, Outcome, State, TaskError, TaskKey, Timestamp, header};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Rhythm, Watch, clock, scan};
use crate::client::ClientError;
use crate::client::record::{self, Recorded, Written};

/// Unfinished records remembered; beyond that the scan starts over once there is room.
const REMEMBERED: usize = 200_000;
/// Records whose headers are read in a second of a turn. All that a busy fleet finishes would cost its server a fifth more
/// for each task; a lost message is rare, and can wait until there is less to do.
const PER_SECOND: f64 = 2_000.0;
/// Unfinished records looked at in one turn, so that a fleet with many long tasks is not read all at once.
const AT_ONCE: usize = 1_000;
/// The pause between two looks at a task that runs well grows up to so many turns.
const SELDOM: u32 = 6;

/// An unfinished record.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    revision: u64,
    /// Which run it is of, once it was read.
    sequence: Option<u64>,
    look_at: Instant,
    /// Turns until the next look.
    pause: u32,
}

#[derive(Debug, Default)]
struct Memory {
    /// Everything up to here was seen.
    seen: u64,
    unfinished: HashMap<TaskKey, Candidate>,
    /// Some were not remembered.
    overflowed: bool,
    /// The server that this was read from; started anew, it may have an older store.
    server: String,
}

impl Memory {
    /// Takes in one entry of the records' bucket.
    fn see(&mut self, key: Option<TaskKey>, revision: u64, unfinished: bool, look_at: Instant) {
        self.seen = revision;
        let Some(key) = key else { return };
        if !unfinished {
            self.unfinished.remove(&key);
        } else if self.unfinished.len() < REMEMBERED || self.unfinished.contains_key(&key) {
            self.unfinished.insert(key, Candidate { revision, sequence: None, look_at, pause: 1 });
        } else {
            self.overflowed = true;
        }
    }

    /// Those whose time has come, longest overdue first.
    fn due(&self, now: Instant) -> Vec<TaskKey> {
        let mut due: Vec<_> = self.unfinished.iter().filter(|(_, candidate)| candidate.look_at <= now).collect();
        due.sort_by_key(|(_, candidate)| candidate.look_at);
        due.into_iter().take(AT_ONCE).map(|(key, _)| key.clone()).collect()
    }
}

/// Looks every `every`.
pub async fn run(watch: Watch, stop: CancellationToken) {
    let mut rhythm = Rhythm::new(watch.every);
    let mut memory = Memory::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rhythm.ticks.tick() => {}
        }
        // Writes are single messages: ending between two of them leaves nothing half done.
        tokio::select! {
            () = stop.cancelled() => return,
            looked = turn(&watch, &mut memory) => rhythm.report("lost", looked),
        }
    }
}

async fn turn(watch: &Watch, memory: &mut Memory) -> Result<(), ClientError> {
    let epoch = watch.connection.link.borrow().epoch;
    refresh(watch, memory).await?;
    let mut suspects = Vec::new();
    for key in memory.due(Instant::now()) {
        let Some(candidate) = memory.unfinished.get_mut(&key) else { continue };
        match look(&watch.js, &watch.names, &key, candidate).await? {
            Found::Waiting => {
                candidate.look_at = Instant::now() + watch.every * candidate.pause;
                candidate.pause = (candidate.pause * 2).min(SELDOM);
            }
            Found::Finished => {
                memory.unfinished.remove(&key);
            }
            Found::Missing(recorded) => suspects.push((key, recorded.revision)),
        }
    }
    if suspects.is_empty() {
        return Ok(());
    }
    super::settled(watch).await?;
    for (key, revision) in suspects {
        let Some(candidate) = memory.unfinished.get_mut(&key) else { continue };
        if watch.connection.link.borrow().epoch != epoch {
            // Cut off in between: the two looks may have been at two states of the server. It stays due.
            return Ok(());
        }
        match look(&watch.js, &watch.names, &key, candidate).await? {
            Found::Missing(recorded) if recorded.revision == revision => {
                end(&watch.js, &watch.names, recorded).await?;
                memory.unfinished.remove(&key);
            }
            // It moved: it is looked at anew in the next turn.
            Found::Missing(_) | Found::Waiting => candidate.look_at = Instant::now(),
            Found::Finished => {
                memory.unfinished.remove(&key);
            }
        }
    }
    Ok(())
}

/// Takes in what was written since the last turn.
async fn refresh(watch: &Watch, memory: &mut Memory) -> Result<(), ClientError> {
    let (js, names) = (&watch.js, &watch.names);
    let stream = names.records_stream();
    let last = clock::look(js, &stream).await?.last;
    let server = js.client().server_info().server_id;
    // The bucket was made anew or set back, or may have been and have come further since.
    let made_anew = last < memory.seen || server != memory.server;
    if made_anew || (memory.overflowed && memory.unfinished.len() < REMEMBERED / 2) {
        *memory = Memory { server, ..Memory::default() };
    }
    if last <= memory.seen {
        return Ok(());
    }
    // What was written a moment ago is in a worker's hands.
    let look_at = Instant::now() + watch.every.mul_f64(0.9);
    let filter = format!("$KV.{}.>", names.records_bucket());
    let from = memory.seen + 1;
    let most = (PER_SECOND * watch.every.as_secs_f64()).ceil() as u64;
    let all = scan::headers(js, &stream, &filter, from, most, |head| {
        let key = names.record_key(head.subject).and_then(|key| key.parse().ok());
        let unfinished = head.headers.is_some_and(|headers| headers.get(header::STATE).is_some());
        memory.see(key, head.sequence, unfinished, look_at);
    })
    .await?;
    if all {
        // Revisions that were replaced meanwhile are not seen; what replaced them is.
        memory.seen = memory.seen.max(last);
    }
    Ok(())
}

/// What a look at one candidate found.
enum Found {
    /// Its message is there: it waits for its retry, or runs.
    Waiting,
    /// It is over, or gone.
    Finished,
    /// Unfinished, and its message is not there.
    Missing(Box<Recorded>),
}

/// Reads message and record from the leaders, the message first: a run that ends in between is seen as finished.
async fn look(js: &JetStream, names: &Names, key: &TaskKey, candidate: &mut Candidate) -> Result<Found, ClientError> {
    let message = js.last(&names.tasks_stream(), &names.task_subject(key)).await?;
    let message = message.map(|message| message.sequence);
    if message.is_some() && message == candidate.sequence {
        return Ok(Found::Waiting);
    }
    let recorded = match record::read(js, names, key).await {
        Ok(slot) => slot.recorded,
        // Not ours to mend.
        Err(ClientError::Unreadable { .. }) => return Ok(Found::Finished),
        Err(error) => return Err(error),
    };
    let Some(recorded) = recorded.filter(|recorded| !recorded.record.state.is_terminal()) else {
        return Ok(Found::Finished);
    };
    candidate.revision = recorded.revision;
    candidate.sequence = Some(recorded.record.sequence);
    if message == candidate.sequence {
        return Ok(Found::Waiting);
    }
    Ok(Found::Missing(Box::new(recorded)))
}

/// Writes the end.
async fn end(js: &JetStream, names: &Names, recorded: Box<Recorded>) -> Result<(), ClientError> {
    let Recorded { mut record, revision, .. } = *recorded;
    let now = Timestamp::now();
    for attempt in &mut record.attempts {
        if attempt.outcome == Outcome::Running {
            attempt.outcome = Outcome::Lost;
            attempt.number = None;
            attempt.phases.ended = Some(now);
        }
    }
    record.state = State::Lost;
    record.retry_at = None;
    record.ended_at = Some(now);
    let why = "its message is gone from the stream: deleted by hand, or lost by the server";
    record.error = Some(TaskError::new(Code::MessageLost, why));
    if let Written::Stored(revision) = record::write(js, names, &record, revision).await? {
        tracing::warn!(task = %record.key(), sequence = record.sequence, "lost: {why}");
        record::tell(js, names, &record, revision).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(n: u32) -> TaskKey {
        format!("q.t{n}").parse().unwrap()
    }

    #[test]
    fn a_record_is_a_candidate_from_unfinished_to_finished() {
        let now = Instant::now();
        let mut memory = Memory::default();
        memory.see(Some(key(1)), 5, true, now);
        memory.see(Some(key(2)), 6, true, now + Duration::from_secs(1));
        memory.see(None, 7, true, now);
        assert_eq!(memory.due(now), [key(1)]);
        memory.see(Some(key(1)), 8, false, now);
        assert!(memory.due(now).is_empty());
        assert_eq!(memory.seen, 8);
    }

    #[test]
    fn the_longest_overdue_come_first() {
        let now = Instant::now();
        let mut memory = Memory::default();
        for n in 0..AT_ONCE as u32 + 5 {
            memory.see(Some(key(n)), u64::from(n), true, now + Duration::from_millis(10_000 - u64::from(n)));
        }
        let due = memory.due(now + Duration::from_secs(60));
        assert_eq!(due.len(), AT_ONCE);
        assert_eq!(due[0], key(AT_ONCE as u32 + 4));
    }
}
