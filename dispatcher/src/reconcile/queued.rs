//! Queued tasks that have no record: what a loss of the stream would take without a trace. Remembered by every
//! dispatcher, as far as the scan for deadlines sees them, and looked for once a loss was noticed: whoever asks for the
//! id of one that is gone is told so by a record `lost`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use jetstream::StoredMessage;
use schemas::record::TASK_KEPT_BYTES;
use schemas::{Code, Order, State, TaskError, TaskKey, TaskRecord, Timestamp, header};

use super::Watch;
use crate::client::ClientError;
use crate::client::record::{self, Written};

/// Tasks remembered; what comes beyond is not.
const REMEMBERED: usize = 100_000;
/// Bytes of tasks remembered; beyond that a task is remembered without its body.
const BODIES: usize = 32 << 20;
/// Remembered tasks looked after in one turn: those whose message is gone are forgotten.
const AT_ONCE: usize = 500;
/// No more than about so many bytes are read for it, for a look at a message reads all of it.
const BYTES_AT_ONCE: usize = 4 << 20;

/// One queued task.
#[derive(Clone, Debug)]
struct Waiting {
    key: TaskKey,
    submission: Option<String>,
    task: Option<Bytes>,
}

/// A run: its message's sequence and when that was stored, for a stream that went back gives a number twice.
type Run = (u64, Timestamp);

#[derive(Debug, Default)]
struct Memory {
    tasks: BTreeMap<Run, Waiting>,
    bodies: usize,
    /// Looked after up to here.
    looked: Option<Run>,
}

impl Memory {
    fn forget(&mut self, run: Run) {
        if let Some(gone) = self.tasks.remove(&run) {
            self.bodies -= gone.task.map_or(0, |task| task.len());
        }
    }

    /// Forgets what a queue's consumer has behind itself and settled. `floors`: by queue.
    fn settled(&mut self, floors: &BTreeMap<String, u64>) {
        let behind = |(run, waiting): &(&Run, &Waiting)| {
            floors.get(waiting.key.queue.as_str()).is_some_and(|floor| run.0 <= *floor)
        };
        let gone: Vec<Run> = self.tasks.iter().filter(behind).map(|(run, _)| *run).collect();
        gone.into_iter().for_each(|run| self.forget(run));
    }
}

/// The memory of one dispatcher, shared by the duty that fills it and the one that needs it.
#[derive(Clone, Debug, Default)]
pub struct Queued(Arc<Mutex<Memory>>);

impl Queued {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes in one message that waits.
    pub fn remember(&self, key: TaskKey, message: &StoredMessage) {
        let mut memory = self.memory();
        let run = (message.sequence, message.stored_at);
        memory.forget(run);
        if memory.tasks.len() >= REMEMBERED {
            return;
        }
        let fits = message.payload.len() <= TASK_KEPT_BYTES && memory.bodies + message.payload.len() <= BODIES;
        let waiting = Waiting {
            key,
            submission: message.header(header::SUBMISSION).map(str::to_owned),
            task: fits.then(|| message.payload.clone()),
        };
        memory.bodies += waiting.task.as_ref().map_or(0, Bytes::len);
        memory.tasks.insert(run, waiting);
    }

    fn some(&self, from: Bound<Run>, most: usize) -> Vec<(Run, Waiting)> {
        let memory = self.memory();
        let range = memory.tasks.range((from, Bound::Unbounded));
        range.take(most).map(|(run, waiting)| (*run, waiting.clone())).collect()
    }

    /// Forgets those that are settled, and some of those whose message is gone otherwise; nothing if the link is not in
    /// `epoch` any more, for then they may have gone with the store.
    pub async fn tidy(&self, watch: &Watch, epoch: u64) -> Result<(), ClientError> {
        if self.memory().tasks.is_empty() {
            return Ok(());
        }
        let consumers = watch.js.consumers(&watch.names.tasks_stream()).await?;
        let floors = consumers.into_iter().map(|consumer| (consumer.name, consumer.ack_floor.stream_seq)).collect();
        if watch.connection.link.borrow().epoch != epoch {
            return Ok(());
        }
        self.memory().settled(&floors);
        let from = self.memory().looked.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.some(from, AT_ONCE);
        let (mut gone, mut bytes, mut looked) = (Vec::new(), 0, 0);
        for (run, waiting) in &some {
            match message(watch, *run, waiting).await? {
                Some(message) => bytes += message.payload.len(),
                None => gone.push(*run),
            }
            looked += 1;
            if bytes >= BYTES_AT_ONCE {
                break;
            }
        }
        if watch.connection.link.borrow().epoch != epoch {
            return Ok(());
        }
        let mut memory = self.memory();
        gone.into_iter().for_each(|run| memory.forget(run));
        let to_the_end = looked == some.len() && looked < AT_ONCE;
        memory.looked = some.get(..looked).and_then(<[_]>::last).filter(|_| !to_the_end).map(|(run, _)| *run);
        Ok(())
    }

    /// After a loss: ends those that are neither in the stream nor recorded. Returns how many.
    pub async fn end_lost(&self, watch: &Watch) -> Result<usize, ClientError> {
        let mut missing = Vec::new();
        for (run, waiting) in self.some(Bound::Unbounded, REMEMBERED) {
            if is_there(watch, run, &waiting).await? {
                continue;
            }
            if unrecorded(watch, run, &waiting).await?.is_some() {
                missing.push((run, waiting));
            } else {
                self.memory().forget(run);
            }
        }
        if missing.is_empty() {
            return Ok(0);
        }
        super::settled(watch).await?;
        let mut lost = 0;
        for (run, waiting) in missing {
            if !is_there(watch, run, &waiting).await?
                && let Some(revision) = unrecorded(watch, run, &waiting).await?
            {
                lost += usize::from(end(watch, run, &waiting, revision).await?);
            }
            self.memory().forget(run);
        }
        Ok(lost)
    }
}

/// Whether the message of this very run is in the stream, as its leader says.
async fn is_there(watch: &Watch, run: Run, waiting: &Waiting) -> Result<bool, ClientError> {
    Ok(message(watch, run, waiting).await?.is_some())
}

/// The message of this very run, as the stream's leader has it.
async fn message(
    watch: &Watch,
    (sequence, stored_at): Run,
    waiting: &Waiting,
) -> Result<Option<StoredMessage>, ClientError> {
    let message = watch.js.at(&watch.names.tasks_stream(), sequence).await?;
    let subject = watch.names.task_subject(&waiting.key);
    Ok(message.filter(|message| message.stored_at == stored_at && message.subject == subject))
}

/// The revision to write over, if neither a record nor a message tells of this run or of a later one.
async fn unrecorded(watch: &Watch, (sequence, stored_at): Run, waiting: &Waiting) -> Result<Option<u64>, ClientError> {
    let (js, names, key) = (&watch.js, &watch.names, &waiting.key);
    if js.last(&names.tasks_stream(), &names.task_subject(key)).await?.is_some() {
        // Submitted again meanwhile: that run has the id and its record.
        return Ok(None);
    }
    let slot = match record::read(js, names, key).await {
        Ok(slot) => slot,
        Err(ClientError::Unreadable { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let earlier = slot.recorded.as_ref().is_none_or(|recorded| {
        // Submitted before it, whatever number it names: the numbers went back.
        recorded.record.order_to(sequence, stored_at) == Order::Earlier
    });
    Ok(earlier.then_some(slot.revision))
}

/// Writes the end of a task that was never started, as far as anybody knows.
async fn end(watch: &Watch, (sequence, stored_at): Run, waiting: &Waiting, revision: u64) -> Result<bool, ClientError> {
    let mut record = TaskRecord::new(&waiting.key, sequence, State::Lost, stored_at);
    record.submission.clone_from(&waiting.submission);
    if let Some(task) = &waiting.task {
        record.keep_task(task);
    }
    record.ended_at = Some(Timestamp::now());
    let why = "the server's store was set back and its message with it; no start of it is known";
    record.error = Some(TaskError::new(Code::MessageLost, why));
    let Written::Stored(revision) = record::write(&watch.js, &watch.names, &record, revision).await? else {
        return Ok(false);
    };
    tracing::error!(task = %waiting.key, sequence, "lost: {why}");
    record::tell(&watch.js, &watch.names, &record, revision).await;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence: u64, bytes: usize) -> StoredMessage {
        StoredMessage {
            subject: "shoal.tasks.q.a".into(),
            sequence,
            stored_at: Timestamp::from_millis(0),
            headers: async_nats::HeaderMap::new(),
            payload: vec![b'x'; bytes].into(),
        }
    }

    #[test]
    fn what_a_consumer_has_settled_is_forgotten_and_no_other_queue_of_it() {
        let queued = Queued::default();
        for (n, key) in [(1, "q.a"), (2, "q.b"), (3, "q.c"), (1, "other.a")] {
            let stored_at = Timestamp::from_millis(if key == "other.a" { 1 } else { 0 });
            queued.remember(key.parse().unwrap(), &StoredMessage { stored_at, ..message(n, 10) });
        }
        queued.memory().settled(&[("q".to_owned(), 2), ("third".to_owned(), 9)].into());
        let left: Vec<String> = queued.memory().tasks.values().map(|waiting| waiting.key.to_string()).collect();
        assert_eq!((left, queued.memory().bodies), (vec!["other.a".to_owned(), "q.c".to_owned()], 20));
    }

    #[test]
    fn the_memory_is_bounded_in_tasks_and_bytes() {
        let queued = Queued::default();
        let run = |n: u64| (n, Timestamp::from_millis(0));
        let key = |n: u64| format!("q.t{n}").parse::<TaskKey>().unwrap();
        queued.remember(key(1), &message(1, TASK_KEPT_BYTES + 1));
        assert!(queued.memory().tasks[&run(1)].task.is_none());
        let many = (BODIES / TASK_KEPT_BYTES) as u64;
        for n in 2..many + 10 {
            queued.remember(key(n), &message(n, TASK_KEPT_BYTES));
        }
        assert_eq!(queued.memory().bodies, BODIES);
        assert!(queued.memory().tasks[&run(many + 9)].task.is_none(), "remembered all the same");
        // Seen twice, counted once.
        queued.remember(key(2), &message(2, TASK_KEPT_BYTES));
        assert_eq!(queued.memory().bodies, BODIES);
        for n in 0..REMEMBERED as u64 + 10 {
            queued.remember(key(n), &message(n, 0));
        }
        assert_eq!(queued.memory().tasks.len(), REMEMBERED);
    }
}
