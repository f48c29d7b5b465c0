//! The engine's submitter: publishes tasks, sees the records as events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use bytes::Buf;
use futures_util::StreamExt;
use schemas::{Timestamp, header};
use tokio::sync::{Semaphore, mpsc};

use super::{BoxError, Engine, HEAD, Writes};
use crate::bench::BenchError;
use crate::bench::report::Round;
use crate::bench::watch::PATIENCE;

/// A queue that was filled while nothing was handed out.
#[derive(Debug)]
pub struct Filled {
    jobs: usize,
    name: String,
    records: u64,
}

fn failed(error: impl Into<BoxError>) -> BenchError {
    BenchError::fleet("the engine did not take a task", error)
}

impl Engine {
    /// A round of whole cycles.
    pub async fn cycle(
        &self,
        (jobs, bytes): (usize, usize),
        in_flight: usize,
        writes: Writes,
        name: &str,
    ) -> Result<Round, BenchError> {
        let before = self.records().await?;
        let events = self.events(name).await?;
        let sent: Arc<Vec<AtomicU64>> = Arc::new((0..jobs).map(|_| AtomicU64::new(0)).collect());
        let room = Arc::new(Semaphore::new(in_flight));
        let began = Instant::now();
        let mut watching = tokio::spawn({
            let (sent, room) = (sent.clone(), room.clone());
            async move {
                let mut latencies = Vec::with_capacity(jobs);
                let ended = |job: usize| {
                    let at = Duration::from_nanos(sent[job].load(Ordering::Relaxed));
                    latencies.push(began.elapsed().saturating_sub(at));
                    room.add_permits(1);
                };
                ends(events, jobs, ended).await?;
                Ok(Round::timed(began.elapsed(), latencies))
            }
        });
        let over = |over: Result<_, _>| over.unwrap_or_else(|error| Err(failed(error)));
        let (acks, settled) = settle_acks(None);
        for (at, sent) in sent.iter().enumerate() {
            tokio::select! {
                biased;
                permit = room.acquire() => permit.expect("never closed").forget(),
                // Before the last job is published it can only have failed.
                early = &mut watching => return over(early),
            }
            sent.store(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
            self.send(name, at, writes, bytes, &acks, None).await?;
        }
        drop(acks);
        settled.await.map_err(failed)??;
        let round = over(watching.await)?;
        self.check(before + jobs as u64).await?;
        Ok(round)
    }

    /// Publishes tasks that nobody takes, and times until each is stored.
    pub async fn publish(
        &self,
        (jobs, bytes): (usize, usize),
        in_flight: usize,
        writes: Writes,
        name: &str,
    ) -> Result<Round, BenchError> {
        self.halt(true).await?;
        let room = Arc::new(Semaphore::new(in_flight));
        let began = Instant::now();
        let (acks, settled) = settle_acks(Some(room.clone()));
        for at in 0..jobs {
            room.acquire().await.expect("never closed").forget();
            self.send(name, at, writes, bytes, &acks, Some(Instant::now())).await?;
        }
        drop(acks);
        let latencies = settled.await.map_err(failed)??;
        let round = Round::timed(began.elapsed(), latencies);
        self.empty(jobs as u64).await?;
        Ok(round)
    }

    /// The same in bursts of so many, each published and then awaited as a whole; times the bursts.
    pub async fn bursts(
        &self,
        (jobs, bytes): (usize, usize),
        burst: usize,
        writes: Writes,
        name: &str,
    ) -> Result<Round, BenchError> {
        self.halt(true).await?;
        let began = Instant::now();
        let mut latencies = Vec::new();
        let numbers: Vec<usize> = (0..jobs).collect();
        for burst in numbers.chunks(burst) {
            let began = Instant::now();
            let (acks, settled) = settle_acks(None);
            for at in burst {
                self.send(name, *at, writes, bytes, &acks, None).await?;
            }
            drop(acks);
            settled.await.map_err(failed)??;
            latencies.push(began.elapsed());
        }
        let round = Round { jobs, ..Round::timed(began.elapsed(), latencies) };
        self.empty(jobs as u64).await?;
        Ok(round)
    }

    /// Fills the queue while nothing is handed out.
    pub async fn fill(&self, (jobs, bytes): (usize, usize), writes: Writes, name: &str) -> Result<Filled, BenchError> {
        self.halt(true).await?;
        let records = self.records().await?;
        let room = Arc::new(Semaphore::new(1_000));
        let (acks, settled) = settle_acks(Some(room.clone()));
        for at in 0..jobs {
            room.acquire().await.expect("never closed").forget();
            self.send(name, at, writes, bytes, &acks, Some(Instant::now())).await?;
        }
        drop(acks);
        settled.await.map_err(failed)??;
        Ok(Filled { jobs, name: name.to_owned(), records })
    }

    /// Lets it drain; the time runs from the first end on.
    pub async fn drain(&self, filled: Filled) -> Result<Round, BenchError> {
        let events = self.events(&filled.name).await?;
        self.halt(false).await?;
        let mut first = None;
        ends(events, filled.jobs, |_| {
            first.get_or_insert_with(Instant::now);
        })
        .await?;
        let took = first.map_or(Duration::ZERO, |first| first.elapsed());
        self.check(filled.records + filled.jobs as u64).await?;
        Ok(Round { jobs: filled.jobs, took, latencies: Vec::new() })
    }

    async fn send(
        &self,
        name: &str,
        at: usize,
        writes: Writes,
        bytes: usize,
        acks: &mpsc::UnboundedSender<(PublishAckFuture, Option<Instant>)>,
        timed: Option<Instant>,
    ) -> Result<(), BenchError> {
        let id = crate::bench::watch::id(name, at);
        let mut message = PublishMessage::build().payload(writes.payload(at, bytes));
        if writes != Writes::Least {
            // As long as a UUID, which is what Shoal's submissions have.
            let submission = format!("{name:0>18}{at:018}");
            let mut headers = HeaderMap::new();
            headers.insert(header::NATS_MSG_ID, submission.as_str());
            headers.insert(header::SUBMISSION, submission.as_str());
            message = message.headers(headers);
        }
        let published = self.submitter.send_publish(self.task_subject(&id), message).await.map_err(failed)?;
        acks.send((published, timed)).map_err(|_| BenchError::broken("the engine refused a task".into()))
    }

    /// Events of one round.
    async fn events(&self, name: &str) -> Result<async_nats::Subscriber, BenchError> {
        let any: schemas::TaskKey = format!("{}.x", self.queue).parse().expect("a queue's name and a letter");
        let subject = self.names.event_subject(&any);
        let subject = format!("{}*", subject.strip_suffix('x').expect("it ends with the id"));
        let events = self.watcher.subscribe(subject).await.map_err(failed)?;
        self.watcher.flush().await.map_err(failed)?;
        tracing::debug!(name, "the engine's round begins");
        Ok(events)
    }

    /// Halts the handing-out, or begins it again.
    async fn halt(&self, halted: bool) -> Result<(), BenchError> {
        let js = jetstream::JetStream::new(self.watcher.clone());
        // A moment just ahead is what wakes the pulls that wait.
        let ahead = if halted { Duration::from_secs(86_400) } else { Duration::from_millis(100) };
        let paused =
            js.pause_consumer(&self.names.tasks_stream(), self.queue.as_str(), Timestamp::now().plus(ahead)).await;
        paused.map_err(|error| BenchError::fleet("could not halt the engine", error))
    }

    /// Throws away what was only published, of which there must be so much.
    async fn empty(&self, jobs: u64) -> Result<(), BenchError> {
        let tasks = self.submitter.get_stream(self.names.tasks_stream()).await.map_err(failed)?;
        let purged = tasks.purge().await.map_err(failed)?.purged;
        self.halt(false).await?;
        if purged == jobs {
            return Ok(());
        }
        Err(BenchError::broken(format!("the engine stored {purged} of {jobs} tasks")))
    }
}

type Acks = mpsc::UnboundedSender<(PublishAckFuture, Option<Instant>)>;

/// Awaits the acks in order, on a task of its own; frees `room`, and times those that came with a moment.
fn settle_acks(room: Option<Arc<Semaphore>>) -> (Acks, tokio::task::JoinHandle<Result<Vec<Duration>, BenchError>>) {
    let (acks, mut arriving) = mpsc::unbounded_channel::<(PublishAckFuture, Option<Instant>)>();
    let settled = tokio::spawn(async move {
        let mut latencies = Vec::new();
        while let Some((ack, timed)) = arriving.recv().await {
            let ack = ack.await.map_err(failed)?;
            if ack.duplicate {
                return Err(BenchError::broken("the engine knew a task already".into()));
            }
            latencies.extend(timed.map(|began| began.elapsed()));
            room.iter().for_each(|room| room.add_permits(1));
        }
        Ok(latencies)
    });
    (acks, settled)
}

/// Sees every job's record once, of the right size, and tells of each.
async fn ends(mut events: async_nats::Subscriber, jobs: usize, mut ended: impl FnMut(usize)) -> Result<(), BenchError> {
    let mut seen = vec![false; jobs];
    for count in 0..jobs {
        let stalled = BenchError::Stalled { missing: jobs - count, tasks: jobs, after: PATIENCE };
        let Ok(Some(event)) = tokio::time::timeout(PATIENCE, events.next()).await else { return Err(stalled) };
        let mut head = event.payload.as_ref();
        let wrong = |why: &str| BenchError::WrongEnd { key: event.subject.to_string(), why: why.to_owned() };
        if head.len() < HEAD {
            return Err(wrong("its record is too short"));
        }
        let (job, bytes) = (head.get_u64() as usize, head.get_u32() as usize);
        if event.payload.len() != bytes {
            return Err(wrong("its record has a wrong size"));
        }
        match seen.get_mut(job) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(wrong("it ended twice, or is none of this round")),
        }
        ended(job);
    }
    Ok(())
}
