//! A store of the server that lost something: an older copy put back, a damaged file, a stream made anew. The engine says
//! nothing of it (2.15 counts on from where what it can read ends), so a dispatcher compares: a stream whose last
//! sequence is lower than it was, or that was made at another time, or records that name a sequence which the stream of
//! tasks never gave. It is logged as an error and noted on the stream of tasks ([`schemas::loss`]), where everybody can
//! read it until somebody says that it was read.
//!
//! Noticed twice, a second apart (in a cluster twelve), over one connection: a leader that has just changed may trail for
//! a moment.

use std::time::Duration;

use jetstream::{STREAM_NOT_FOUND, StreamLook};
use schemas::{Timestamp, loss};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Queued, Rhythm, Watch};
use crate::client::ClientError;

/// At least so often: what is stored after a look and gone before the next one is not missed by anybody.
const OFTEN: Duration = Duration::from_secs(1);
/// The newest records whose sequences are compared.
const NEWEST: u64 = 256;

/// A stream as it was seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    created: Timestamp,
    last: u64,
}

impl Seen {
    fn of(look: &StreamLook) -> Self {
        Self { created: look.created, last: look.state.last_seq }
    }

    /// How it went back from here, if it did.
    fn went_back(&self, now: Seen) -> Option<&'static str> {
        if now.created != self.created && self.last > 0 {
            return Some("the stream was made anew");
        }
        (now.last < self.last).then_some("the stream went back")
    }
}

#[derive(Debug, Default)]
struct Memory {
    tasks: Option<Seen>,
    records: Option<Seen>,
    /// The highest sequence that one of the newest records names.
    named: u64,
    /// The server whose records were read for it.
    server: String,
    /// A loss was noticed, and the tasks that it took were not looked for yet.
    unsearched: bool,
    /// When what is remembered of queued tasks was last tidied.
    tidied: Option<Instant>,
}

/// The one field of a record that matters here.
#[derive(Deserialize)]
struct Run {
    sequence: u64,
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Suspicion {
    stream: String,
    from: u64,
    to: u64,
    what: &'static str,
}

/// Looks every second or more often, and as soon as the server is there again.
pub async fn run(watch: Watch, queued: Queued, stop: CancellationToken) {
    let mut rhythm = Rhythm::new(watch.every.min(OFTEN));
    let mut memory = Memory::default();
    let mut link = watch.connection.link.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rhythm.ticks.tick() => {}
            changed = link.changed() => match changed {
                Ok(()) if link.borrow_and_update().connected => {}
                Ok(()) => continue,
                // The client is gone, and with it whoever would look.
                Err(_) => return,
            }
        }
        let now = *link.borrow();
        let mut cut = link.clone();
        tokio::select! {
            () = stop.cancelled() => return,
            looked = turn(&watch, &queued, &mut memory) => rhythm.report("set-back", looked),
            // What was asked over a connection that is gone is answered by nobody; to wait for it would be to miss what
            // happens meanwhile. What was seen before still counts.
            Ok(_) = cut.wait_for(|link| !link.connected || link.epoch != now.epoch), if now.connected => {}
        }
    }
}

async fn turn(watch: &Watch, queued: &Queued, memory: &mut Memory) -> Result<(), ClientError> {
    let epoch = watch.connection.link.borrow().epoch;
    let (suspicions, seen) = look(watch, memory).await?;
    if suspicions.is_empty() {
        (memory.tasks, memory.records) = seen;
        if memory.unsearched {
            return search(watch, queued, memory).await;
        }
        if memory.tidied.is_none_or(|at| at.elapsed() >= watch.every) {
            queued.tidy(watch, epoch).await?;
            memory.tidied = Some(Instant::now());
        }
        return Ok(());
    }
    super::settled(watch).await?;
    let (again, seen) = look(watch, memory).await?;
    if watch.connection.link.borrow().epoch != epoch {
        // Cut off in between: nothing was learned, and what was seen before still counts.
        return Ok(());
    }
    let sure: Vec<Suspicion> =
        again.into_iter().filter(|now| suspicions.iter().any(|then| then.stream == now.stream)).collect();
    for Suspicion { stream, from, to, what } in &sure {
        tracing::error!(
            stream,
            from,
            to,
            "{what}: the server's store has lost something; see `nats stream info {}`",
            watch.names.tasks_stream()
        );
        note(watch, stream, *from, *to, what).await?;
    }
    (memory.tasks, memory.records) = seen;
    memory.unsearched |= !sure.is_empty();
    if memory.unsearched { search(watch, queued, memory).await } else { Ok(()) }
}

/// Looks for the queued tasks that a loss took.
async fn search(watch: &Watch, queued: &Queued, memory: &mut Memory) -> Result<(), ClientError> {
    let lost = queued.end_lost(watch).await?;
    memory.unsearched = false;
    if lost > 0 {
        tracing::error!(lost, "queued tasks that were neither in the stream nor recorded ended as `lost`");
    }
    Ok(())
}

type Both = (Option<Seen>, Option<Seen>);

/// Compares the two streams with what they were, and each with the other.
async fn look(watch: &Watch, memory: &mut Memory) -> Result<(Vec<Suspicion>, Both), ClientError> {
    let (js, names) = (&watch.js, &watch.names);
    let (tasks_stream, records_stream) = (names.tasks_stream(), names.records_stream());
    let missing = |stream: &str| jetstream::ApiError::Refused {
        err_code: STREAM_NOT_FOUND,
        description: format!("stream {stream} not found"),
    };
    // The records first: whatever sequence one names was given before.
    let records = js.stream_look(&records_stream).await?.ok_or_else(|| missing(&records_stream))?;
    let server = js.client().server_info().server_id;
    if memory.server != server {
        // Once for each server: what goes back later is seen by the streams' own numbers.
        let from = records.state.last_seq.saturating_sub(NEWEST - 1);
        let filter = format!("$KV.{}.>", names.records_bucket());
        let page = js.page(&records_stream, &filter, from, NEWEST as usize).await?;
        let runs = page.messages.iter().filter_map(|message| serde_json::from_slice::<Run>(&message.payload).ok());
        memory.named = runs.map(|run| run.sequence).fold(memory.named, u64::max);
        memory.server = server;
    }
    let tasks = js.stream_look(&tasks_stream).await?.ok_or_else(|| missing(&tasks_stream))?;
    let mut suspicions = Vec::new();
    let mut suspect = |stream: &str, before: Option<Seen>, now: Seen| {
        let before = before.filter(|before| before.went_back(now).is_some());
        if let Some((before, what)) = before.and_then(|before| Some((before, before.went_back(now)?))) {
            suspicions.push(Suspicion { stream: stream.to_owned(), from: before.last, to: now.last, what });
        }
        suspicions.len()
    };
    let now = (Seen::of(&tasks), Seen::of(&records));
    let went_back = suspect(&tasks_stream, memory.tasks, now.0) > 0;
    suspect(&records_stream, memory.records, now.1);
    if !went_back && memory.named > now.0.last && memory.named > told(&tasks, &tasks_stream) {
        let what = "records name sequences that the stream of tasks never gave: it went back";
        suspicions.push(Suspicion { stream: tasks_stream, from: memory.named, to: now.0.last, what });
    }
    Ok((suspicions, (Some(now.0), Some(now.1))))
}

/// The highest sequence of a stream that a note tells of, read or not.
fn told(tasks: &StreamLook, stream: &str) -> u64 {
    let notes = [loss::LOSS, loss::LOSS_READ].map(|name| loss::read(tasks.metadata.get(name)));
    notes.into_iter().flatten().filter(|loss| loss.stream == stream).map(|loss| loss.from).max().unwrap_or(0)
}

/// Notes a loss on the stream of tasks.
async fn note(watch: &Watch, stream: &str, from: u64, to: u64, what: &str) -> Result<(), ClientError> {
    let new = loss::Loss { noticed: Timestamp::now(), stream: stream.to_owned(), from, to, what: what.to_owned() };
    let change = |notes: &mut std::collections::BTreeMap<String, String>| {
        let mut losses = loss::read(notes.get(loss::LOSS));
        loss::add(&mut losses, new);
        notes.insert(loss::LOSS.into(), loss::write(&losses));
    };
    Ok(watch.js.change_metadata(&watch.names.tasks_stream(), change).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_forward_or_it_lost_something() {
        let seen = |created, last| Seen { created: Timestamp::from_millis(created), last };
        assert_eq!(seen(0, 5).went_back(seen(0, 5)), None);
        assert_eq!(seen(0, 5).went_back(seen(0, 9)), None);
        assert_eq!(seen(0, 5).went_back(seen(0, 4)), Some("the stream went back"));
        assert_eq!(seen(0, 5).went_back(seen(1, 9)), Some("the stream was made anew"));
        // An empty one has nothing to lose.
        assert_eq!(seen(0, 0).went_back(seen(1, 9)), None);
    }
}
