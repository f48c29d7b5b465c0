//! The engine without Shoal: a raw async-nats program that does Shoal's writes and nothing else, in stores of its own that
//! are set up like Shoal's. What no program on this engine can beat by much.
//!
//! A job: the task is published to a subject of its own, pulled, its record is created against expected sequence 0, the
//! record goes out once more as a core event, and the task is acked with a confirmed ack. As with Shoal, the worker is a
//! process of its own, and this program submits and sees the ends on two connections.

mod submitter;
mod worker;

use std::time::Duration;

use async_nats::jetstream;
use dispatcher::client::Client;
use schemas::stores::StoreSettings;
use schemas::{Names, QueueName};
use tokio::process::Child;

use super::BenchError;
use super::part;

pub use worker::{Spec, run as work};

/// The first token of everything of the engine's.
const PREFIX: &str = "bench_engine";
/// Its one queue.
const QUEUE: &str = "default";
/// Room in a task's payload for what its worker is told.
const HEAD: usize = 16;

/// What is written for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// The least that keeps Shoal's guarantees: no header but the expected sequence, a record half as large again as the
    /// task.
    Least,
    /// Byte for byte as much as Shoal: the submission's headers, the record's size and time to live, the event's revision.
    Same {
        /// Size of a record of Shoal's for such a task.
        record_bytes: usize,
    },
}

impl Writes {
    /// How a report calls it.
    pub fn what(self) -> &'static str {
        match self {
            Self::Least => "engine, least writes",
            Self::Same { .. } => "engine, the same writes",
        }
    }

    /// What a worker is told of job `at`, in front of a task of `bytes`.
    fn payload(self, at: usize, bytes: usize) -> bytes::Bytes {
        let (same, record) = match self {
            Self::Least => (0, bytes * 3 / 2),
            Self::Same { record_bytes } => (1, record_bytes),
        };
        let mut payload = Vec::with_capacity(bytes.max(HEAD));
        payload.extend((at as u64).to_be_bytes());
        payload.extend((record as u32).to_be_bytes());
        payload.extend([same, 0, 0, 0]);
        payload.resize(bytes.max(HEAD), b'p');
        payload.into()
    }
}

/// A running engine: its stores, its worker, and our two connections.
pub struct Engine {
    names: Names,
    queue: QueueName,
    submitter: jetstream::Context,
    watcher: async_nats::Client,
    worker: Child,
}

impl Engine {
    /// Makes the stores on the server at `url`, like Shoal's but for their names, and starts the worker.
    pub async fn start(url: &str, stores: &StoreSettings) -> Result<Self, BenchError> {
        let names = Names::new(PREFIX.parse().expect("a literal of allowed characters"));
        let queue: QueueName = QUEUE.parse().expect("a literal of allowed characters");
        let client: Client = super::fleet::connect(url, names.clone()).await?;
        // It writes no logs, and the server sets aside what a stream may come to hold.
        let stores = StoreSettings { logs_bytes: schemas::Bytes::mebi(1), ..stores.clone() };
        super::fleet::ensure(&client, &stores).await?;
        let consumer = names.queue_consumer(&queue, Duration::from_secs(60), None);
        let made = client.js.ensure_consumer(&names.tasks_stream(), &consumer).await;
        made.map_err(|error| BenchError::fleet("could not make the engine's consumer", error))?;
        let watcher = super::fleet::connect(url, names.clone()).await?.js.client().clone();
        let worker = part::start(&part::Part::Engine(Spec { url: url.to_owned(), prefix: PREFIX.into() })).await?;
        Ok(Self { names, queue, submitter: jetstream::new(client.js.client().clone()), watcher, worker })
    }

    /// Its worker's process.
    pub fn pid(&self) -> Option<u32> {
        self.worker.id()
    }

    /// Ends it; the stores go with their server.
    pub async fn end(self) {
        part::end(self.worker).await;
    }

    fn task_subject(&self, id: &str) -> String {
        format!("{}{id}", self.names.queue_subjects(&self.queue).trim_end_matches(['*', '>']))
    }

    /// Waits until every ack has reached the stream, and sees that each of so many jobs left its record.
    async fn check(&self, records: u64) -> Result<(), BenchError> {
        let failed = |error: BoxError| BenchError::fleet("could not look at the engine's stores", error);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let tasks = self.submitter.get_stream(self.names.tasks_stream()).await.map_err(|e| failed(e.into()))?;
            match tasks.cached_info().state.messages {
                0 => break,
                left if tokio::time::Instant::now() > deadline => {
                    return Err(BenchError::broken(format!("the engine left {left} tasks without an ack")));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        let found = self.records().await?;
        if found == records {
            return Ok(());
        }
        Err(BenchError::broken(format!("the engine left {found} records where {records} were to be")))
    }

    async fn records(&self) -> Result<u64, BenchError> {
        let records = self.submitter.get_stream(self.names.records_stream()).await;
        let records = records.map_err(|error| BenchError::fleet("could not look at the engine's stores", error))?;
        Ok(records.cached_info().state.messages)
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
