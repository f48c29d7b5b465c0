//! The ends of a crowd of jobs, each seen by its event, judged, and counted once.

use std::time::Duration;

use dispatcher::client::Client;
use futures_util::StreamExt;
use schemas::{QueueName, State};
use serde::Deserialize;

use super::BenchError;

/// So long without any end, and nothing more is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

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

/// A connection that hears of every end in a queue.
pub struct Watch {
    events: async_nats::Subscriber,
    prefix: String,
}

/// The id of job `at` of the round `name`.
pub fn id(name: &str, at: usize) -> String {
    format!("bench-{name}-{at}")
}

impl Watch {
    /// Hears once this returns.
    pub async fn open(watcher: &Client, queue: &QueueName, name: &str) -> Result<Self, BenchError> {
        let failed = |error| BenchError::fleet("could not watch the jobs' events", error);
        let any: schemas::TaskKey = format!("{queue}.x").parse().expect("a queue's name and a letter");
        let subject = watcher.names.event_subject(&any);
        let subject = format!("{}*", subject.strip_suffix('x').expect("it ends with the id"));
        let events = watcher.js.client().subscribe(subject).await.map_err(|error| failed(Box::new(error)))?;
        let flushed = watcher.js.client().flush().await;
        flushed.map_err(|error| BenchError::fleet("could not watch the jobs' events", error))?;
        Ok(Self { events, prefix: format!("bench-{name}-") })
    }

    /// Sees `tasks` of them end, and tells of each.
    pub async fn ends(mut self, tasks: usize, mut ended: impl FnMut(usize)) -> Result<(), BenchError> {
        let (mut seen, mut count) = (vec![false; tasks], 0);
        while count < tasks {
            let stalled = BenchError::Stalled { missing: tasks - count, tasks, after: PATIENCE };
            let Ok(Some(event)) = tokio::time::timeout(PATIENCE, self.events.next()).await else {
                return Err(stalled);
            };
            let id = event.subject.rsplit('.').next().and_then(|id| id.strip_prefix(&self.prefix));
            // Somebody else's.
            let Some(id) = id.and_then(|id| id.parse::<usize>().ok()).filter(|id| *id < tasks) else { continue };
            let wrong = |why: String| BenchError::WrongEnd { key: format!("{}{id}", self.prefix), why };
            let end: Seen = serde_json::from_slice(&event.payload).map_err(|error| wrong(error.to_string()))?;
            if !end.state.is_terminal() {
                continue;
            }
            if !end.judge() || std::mem::replace(&mut seen[id], true) {
                return Err(wrong(String::from_utf8_lossy(&event.payload).into_owned()));
            }
            count += 1;
            ended(id);
        }
        Ok(())
    }
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
