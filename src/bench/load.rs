//! A crowd of equal jobs: so many submitted, so many of them under way at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dispatcher::client::{Client, Submission, SubmitOptions, Submitted};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use schemas::{QueueName, TaskId};
use tokio::sync::Semaphore;

use super::BenchError;
use super::report::Round;
use super::watch::{Watch, id};

/// What is submitted.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub queue: QueueName,
    /// The task's JSON.
    pub body: Bytes,
    /// How many.
    pub tasks: usize,
    /// How many at once.
    pub in_flight: usize,
}

impl Load {
    fn submission(&self, name: &str, at: usize) -> Submission {
        let id = TaskId::new(id(name, at)).expect("letters, digits and dashes");
        Submission::new(self.queue.clone(), Some(id), self.body.clone())
    }
}

/// Submits it through `client` and sees the ends through `watcher`, another connection. `name` makes the ids unique.
pub async fn round(client: &Client, watcher: &Client, load: &Load, name: &str) -> Result<Round, BenchError> {
    let watch = Watch::open(watcher, &load.queue, name).await?;
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..load.tasks).map(|_| AtomicU64::new(0)).collect());
    let room = Arc::new(Semaphore::new(load.in_flight));
    let began = Instant::now();
    let mut watching = tokio::spawn({
        let (sent, room, tasks) = (sent.clone(), room.clone(), load.tasks);
        async move {
            let mut latencies = Vec::with_capacity(tasks);
            let ended = |job: usize| {
                let at = Duration::from_nanos(sent[job].load(Ordering::Relaxed));
                latencies.push(began.elapsed().saturating_sub(at));
                room.add_permits(1);
            };
            watch.ends(tasks, ended).await?;
            Ok(Round::timed(began.elapsed(), latencies))
        }
    });
    let mut submits = FuturesUnordered::new();
    for (at, sent) in sent.iter().enumerate() {
        loop {
            tokio::select! {
                biased;
                permit = room.acquire() => {
                    permit.expect("never closed").forget();
                    break;
                }
                // Before the last job is submitted it can only have failed.
                over = &mut watching => return ended(over),
                Some(submitted) = submits.next(), if !submits.is_empty() => accepted(submitted)?,
            }
        }
        sent.store(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        submits.push(client.submit(load.submission(name, at)));
    }
    while let Some(submitted) = submits.next().await {
        accepted(submitted)?;
    }
    ended(watching.await)
}

/// Submits it, and times until each is accepted; nobody need run it.
pub async fn submit(client: &Client, load: &Load, name: &str) -> Result<Round, BenchError> {
    let began = Instant::now();
    let mut latencies = Vec::with_capacity(load.tasks);
    let mut submits = FuturesUnordered::new();
    let mut accept = |(submitted, took): (Submitting, Duration)| accepted(submitted).map(|()| latencies.push(took));
    for at in 0..load.tasks {
        if submits.len() == load.in_flight
            && let Some(submitted) = submits.next().await
        {
            accept(submitted)?;
        }
        let (began, submit) = (Instant::now(), client.submit(load.submission(name, at)));
        submits.push(async move { (submit.await, began.elapsed()) });
    }
    while let Some(submitted) = submits.next().await {
        accept(submitted)?;
    }
    Ok(Round::timed(began.elapsed(), latencies))
}

/// Submits it in calls of `in_flight` tasks each, and times the calls.
pub async fn submit_many(client: &Client, load: &Load, name: &str) -> Result<Round, BenchError> {
    let began = Instant::now();
    let mut latencies = Vec::new();
    let numbers: Vec<usize> = (0..load.tasks).collect();
    for call in numbers.chunks(load.in_flight) {
        let tasks = call.iter().map(|at| load.submission(name, *at)).collect();
        let began = Instant::now();
        for submitted in client.submit_many(tasks, &SubmitOptions::default()).await {
            accepted(submitted)?;
        }
        latencies.push(began.elapsed());
    }
    Ok(Round { jobs: load.tasks, ..Round::timed(began.elapsed(), latencies) })
}

type Submitting = Result<Submitted, dispatcher::client::SubmitError>;

fn accepted(submitted: Submitting) -> Result<(), BenchError> {
    submitted.map(drop).map_err(BenchError::from)
}

fn ended(over: Result<Result<Round, BenchError>, tokio::task::JoinError>) -> Result<Round, BenchError> {
    over.unwrap_or_else(|error| Err(BenchError::fleet("the watch over the jobs broke", error)))
}

/// Submits it while the queue is paused, then resumes it and sees the ends; the time runs from the first end on.
pub async fn drain(client: &Client, watcher: &Client, load: &Load, name: &str) -> Result<Round, BenchError> {
    let failed = |error| BenchError::fleet("could not pause or resume the queue", error);
    client.pause_queue(&load.queue, None).await.map_err(|error| failed(Box::new(error)))?;
    submit(client, load, name).await?;
    let watch = Watch::open(watcher, &load.queue, name).await?;
    client.resume_queue(&load.queue).await.map_err(|error| failed(Box::new(error)))?;
    let mut first = None;
    watch
        .ends(load.tasks, |_| {
            first.get_or_insert_with(Instant::now);
        })
        .await?;
    let took = first.map_or(Duration::ZERO, |first| first.elapsed());
    Ok(Round { jobs: load.tasks, took, latencies: Vec::new() })
}
