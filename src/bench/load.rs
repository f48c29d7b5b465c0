//! A crowd of equal jobs: so many submitted, so many of them under way at once, each end seen by its event and judged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dispatcher::client::{Client, Submission};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use schemas::{QueueName, State, TaskId};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::BenchError;
use super::report::Round;

/// So long without any end, and nothing more is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// What an end is judged by; the rest of the record is not read.
#[derive(Deserialize)]
struct Seen {
    state: State,
    #[serde(default)]
    attempts: Vec<SeenAttempt>,
}

#[derive(Deserialize)]
struct SeenAttempt {
    #[serde(default)]
    exit_code: Option<i32>,
}

impl Seen {
    /// Whether it ended as it must: well, at the first try, and with exit code 0 where it has one.
    fn judge(&self) -> bool {
        let one = self.attempts.len() == 1;
        self.state == State::Succeeded && one && self.attempts.iter().all(|a| a.exit_code.is_none_or(|code| code == 0))
    }
}

/// Submits it through `client` and sees the ends through `watcher`, another connection. `name` makes the ids unique.
pub async fn round(client: &Client, watcher: &Client, load: &Load, name: &str) -> Result<Round, BenchError> {
    let prefix = format!("bench-{name}-");
    let mut events = {
        let any: schemas::TaskKey = format!("{}.x", load.queue).parse().expect("a queue's name and a letter");
        let subject = watcher.names.event_subject(&any);
        let subject = format!("{}*", subject.strip_suffix('x').expect("it ends with the id"));
        let events = watcher.js.client().subscribe(subject).await;
        events.map_err(|error| BenchError::fleet("could not watch the jobs' events", error))?
    };
    let flushed = watcher.js.client().flush().await;
    flushed.map_err(|error| BenchError::fleet("could not watch the jobs' events", error))?;

    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..load.tasks).map(|_| AtomicU64::new(0)).collect());
    let room = Arc::new(Semaphore::new(load.in_flight));
    let began = Instant::now();
    let mut watching = tokio::spawn({
        let (sent, room, prefix, tasks) = (sent.clone(), room.clone(), prefix.clone(), load.tasks);
        async move {
            let (mut latencies, mut ended) = (Vec::with_capacity(tasks), vec![false; tasks]);
            while latencies.len() < tasks {
                let missing = tasks - latencies.len();
                let stalled = BenchError::Stalled { missing, tasks, after: PATIENCE };
                let Ok(Some(event)) = tokio::time::timeout(PATIENCE, events.next()).await else {
                    return Err(stalled);
                };
                let id = event.subject.rsplit('.').next().and_then(|id| id.strip_prefix(&prefix));
                // Somebody else's.
                let Some(id) = id.and_then(|id| id.parse::<usize>().ok()).filter(|id| *id < tasks) else { continue };
                let wrong = |why: String| BenchError::WrongEnd { key: format!("{prefix}{id}"), why };
                let seen: Seen = serde_json::from_slice(&event.payload).map_err(|error| wrong(error.to_string()))?;
                if !seen.state.is_terminal() {
                    continue;
                }
                if !seen.judge() || std::mem::replace(&mut ended[id], true) {
                    return Err(wrong(String::from_utf8_lossy(&event.payload).into_owned()));
                }
                let at = Duration::from_nanos(sent[id].load(Ordering::Relaxed));
                latencies.push(began.elapsed().saturating_sub(at));
                room.add_permits(1);
            }
            latencies.sort();
            Ok(Round { took: began.elapsed(), latencies })
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
        let id = TaskId::new(format!("{prefix}{at}")).expect("letters, digits and dashes");
        submits.push(client.submit(Submission::new(load.queue.clone(), Some(id), load.body.clone())));
    }
    while let Some(submitted) = submits.next().await {
        accepted(submitted)?;
    }
    ended(watching.await)
}

type Submitting = Result<dispatcher::client::Submitted, dispatcher::client::SubmitError>;

fn accepted(submitted: Submitting) -> Result<(), BenchError> {
    submitted.map(drop).map_err(BenchError::from)
}

fn ended(over: Result<Result<Round, BenchError>, tokio::task::JoinError>) -> Result<Round, BenchError> {
    over.unwrap_or_else(|error| Err(BenchError::fleet("the watch over the jobs broke", error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_good_end_at_the_first_try_counts() {
        let judged = |record: &str| serde_json::from_str::<Seen>(record).unwrap().judge();
        assert!(judged(r#"{"state":"succeeded","attempts":[{"outcome":"exited","exit_code":0}]}"#));
        assert!(judged(r#"{"state":"succeeded","attempts":[{"outcome":"exited"}]}"#));
        assert!(!judged(r#"{"state":"failed","attempts":[{"exit_code":1}]}"#));
        assert!(!judged(r#"{"state":"succeeded","attempts":[{},{"exit_code":0}]}"#));
        assert!(!judged(r#"{"state":"succeeded"}"#));
    }
}
