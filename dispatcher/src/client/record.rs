//! A task's record, read from the leader and written by compare-and-set. Everything but a worker writes through here.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use jetstream::{JetStream, PublishError, StoredMessage};
use schemas::stores::RECORDS_KEPT;
use schemas::{Names, TaskKey, TaskRecord, Timestamp, header};
use tokio::time::Instant;

use super::ClientError;

/// A record and its place.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The record.
    pub record: TaskRecord,
    /// Its revision: stream sequence in the bucket.
    pub revision: u64,
    /// When this revision was written.
    pub written_at: Timestamp,
}

/// What is under a task's key.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The revision to expect when writing over it: 0 for nothing, a marker's own for a marker.
    pub revision: u64,
    /// The record, if it is one.
    pub recorded: Option<Recorded>,
}

/// What became of a compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Ours is stored under this revision.
    Stored(u64),
    /// Something else came first: read again, decide again.
    Refused,
}

impl Recorded {
    /// Reads one entry of the bucket; a marker is no record.
    pub fn read(message: &StoredMessage) -> Result<Option<Self>, ClientError> {
        if message.is_marker() || message.payload.is_empty() {
            return Ok(None);
        }
        match serde_json::from_slice(&message.payload) {
            Ok(record) => Ok(Some(Self { record, revision: message.sequence, written_at: message.stored_at })),
            Err(source) => Err(ClientError::Unreadable { what: format!("record `{}`", message.subject), source }),
        }
    }
}

/// Reads what is under `key`, from the leader.
pub async fn read(js: &JetStream, names: &Names, key: &TaskKey) -> Result<Slot, ClientError> {
    match js.last(&names.records_stream(), &names.record_subject(key)).await? {
        Some(message) => Ok(Slot { revision: message.sequence, recorded: Recorded::read(&message)? }),
        None => Ok(Slot { revision: 0, recorded: None }),
    }
}

/// How long a write is tried before its failure is an error.
const WRITE_FOR: Duration = Duration::from_secs(30);

/// Writes `record` over revision `expected` (0: nothing there). An answer that stays out is cleared up by reading back,
/// so that the outcome is always known. Terminal records get their time to live, others the header with their state.
pub async fn write(js: &JetStream, names: &Names, record: &TaskRecord, expected: u64) -> Result<Written, ClientError> {
    let mut headers = HeaderMap::new();
    if record.state.is_terminal() {
        headers.insert(header::NATS_TTL, RECORDS_KEPT.0.as_secs().to_string());
    } else {
        headers.insert(header::STATE, record.state.as_str());
    }
    let key = record.key();
    let payload = serde_json::to_vec(record).expect("our own types always serialize");
    let what = format!("record of {key}");
    set(js, &names.records_stream(), &names.record_subject(&key), expected, headers, payload.into(), what).await
}

/// Compare-and-set of one subject of a bucket, with the outcome cleared up.
pub(crate) async fn set(
    js: &JetStream,
    stream: &str,
    subject: &str,
    expected: u64,
    headers: HeaderMap,
    payload: Bytes,
    what: String,
) -> Result<Written, ClientError> {
    let give_up = Instant::now() + WRITE_FOR;
    let mut pauses = Pauses::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        let verdict = match js.compare_and_set(subject.to_owned(), expected, headers.clone(), payload.clone()).await {
            Ok(revision) => return Ok(Written::Stored(revision)),
            Err(
                verdict @ (PublishError::Conflict { .. }
                | PublishError::NotStored { .. }
                | PublishError::Unknown { .. }),
            ) => verdict,
            Err(source) => return Err(ClientError::Write { what, source }),
        };
        match js.last(stream, subject).await {
            Ok(found) => {
                let revision = found.as_ref().map_or(0, |found| found.sequence);
                // Every record bears times and is written by one program: equal bytes are ours, stored by a try whose
                // answer was lost.
                if let Some(found) = found.filter(|found| found.sequence > expected && found.payload == payload) {
                    return Ok(Written::Stored(found.sequence));
                }
                if revision != expected {
                    return Ok(Written::Refused);
                }
                // Nothing came first: not stored, or a race that is not decided yet (10164).
            }
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= give_up {
            return Err(ClientError::Write { what, source: verdict });
        }
        pauses.sleep().await;
    }
}

/// Tells a record to whoever waits. Only after the write of this revision was confirmed. Failing to tell is no error:
/// waiters read again by themselves.
pub async fn tell(js: &JetStream, names: &Names, record: &TaskRecord, revision: u64) {
    let mut headers = HeaderMap::new();
    headers.insert(header::REVISION, revision.to_string());
    let payload = serde_json::to_vec(record).expect("our own types always serialize");
    let subject = names.event_subject(&record.key());
    let told = js.client().publish_with_headers(subject, headers, payload.into()).await;
    // A program that ends right after this must not take the event with it.
    let sent = js.client().flush().await;
    if told.is_err() || sent.is_err() {
        tracing::debug!(task = %record.key(), revision, "could not tell a record; waiters will read it");
    }
}

/// Growing pauses with jitter, so that many who were refused together do not come back together.
pub(crate) struct Pauses {
    bound: Duration,
    most: Duration,
}

impl Pauses {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { bound: first, most }
    }

    /// The next pause: between half its bound and the bound, which doubles.
    pub(crate) fn next(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = (bound * 2).min(self.most);
        bound.mul_f64(rand::random_range(0.5..=1.0))
    }

    pub(crate) async fn sleep(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}
