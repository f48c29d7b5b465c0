//! Whether this worker can run a task at all, and what becomes of one that it cannot: it waits, put off for longer and
//! longer, for a worker that can.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemas::agent::CONTAINER_RUNTIMES;
use schemas::need::Need;
use schemas::{AgentRecord, AgentStatus, Code, QueueName, TaskError, Workload};

use crate::runtime::Runtime;
use crate::worker::Worker;

/// How long what the registry said is taken for true: a crowd of such tasks costs one look.
const LOOK_KEPT: Duration = Duration::from_secs(2);
/// Shortest and longest pause where another worker could run it and has room.
const FREE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The same where those who could are busy.
const BUSY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The same where none could; the longest is also how late a new worker may find the task.
const NOBODY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Most agents looked at in one page.
const PAGE: usize = 500;

/// The runtime for a workload of this kind, if this worker runs it now.
pub fn runtime<'a>(worker: &'a Worker, workload: &Workload) -> Result<&'a Arc<dyn Runtime>, TaskError> {
    let names: &[&str] = match workload {
        Workload::Call(_) | Workload::Invoke(_) => &["call"],
        Workload::Process(_) => &["process"],
        Workload::Container(_) => &CONTAINER_RUNTIMES,
        Workload::Agent(job) => &[job.runtime.name()],
    };
    let mut down = None;
    for runtime in names.iter().filter_map(|name| worker.runtimes.get(name)) {
        match runtime.trouble().and_then(|trouble| trouble.borrow().clone()) {
            None => return Ok(runtime),
            Some(why) => down = Some(format!("its runtime `{}` is down: {why}", runtime.name())),
        }
    }
    let kind = workload.kind();
    Err(match down {
        Some(why) => {
            let message = format!("the worker {} cannot run `{kind}` workloads now: {why}", worker.id);
            TaskError::new(Code::EngineUnavailable, message)
        }
        None => {
            let mut allowed: Vec<&str> = worker.runtimes.keys().copied().collect();
            if worker.calls {
                allowed.insert(0, "call");
            }
            allowed.extend(worker.agents.as_ref().map(|_| "agent"));
            let allowed = allowed.join(", ");
            let message = format!("the worker {} does not run `{kind}` workloads; it allows {allowed}", worker.id);
            TaskError::new(Code::RuntimeNotAllowed, message)
        }
    })
}

/// Why this worker cannot run it now, if so.
pub fn hindrance(worker: &Worker, workload: &Workload) -> Option<TaskError> {
    match workload {
        Workload::Call(_) | Workload::Invoke(_) if worker.calls => None,
        Workload::Agent(job) => match &worker.agents {
            Some(agents) => agents.hindrance(worker, job).or_else(|| runtime(worker, workload).err()),
            None => {
                let message = format!("the worker {} runs no agent jobs: `agent` is not among its runtimes", worker.id);
                Some(TaskError::new(Code::RuntimeNotAllowed, message))
            }
        },
        workload => runtime(worker, workload).err(),
    }
}

/// Who else could run a workload, the best case counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Others {
    /// No worker of the queue.
    Nobody,
    /// Workers whose slots were all taken at their last beat.
    Busy,
    /// A worker with a free slot.
    Free,
}

/// How long a task is put off that has waited for so long: at first not at all where another worker may take it, then for
/// as long again.
pub fn pause(waited: Duration, others: Others) -> Duration {
    let (least, most) = match others {
        Others::Free | Others::Busy if waited.is_zero() => return Duration::ZERO,
        Others::Free => FREE,
        Others::Busy => BUSY,
        Others::Nobody => NOBODY,
    };
    waited.clamp(least, most)
}

/// What the registry lately said of who runs what.
#[derive(Debug, Default)]
pub struct Looks {
    /// By queue and need: when it was asked, and the answer.
    kept: Mutex<HashMap<Question, (Instant, Others)>>,
}

/// A queue, and what is needed.
type Question = (QueueName, Need);

/// Who else of this queue runs such workloads. What cannot be read counts as busy: nothing wrong is said.
pub async fn others(worker: &Worker, queue: &QueueName, need: &Need) -> Others {
    let kept = |looks: &Looks| {
        let looks = looks.kept.lock().unwrap_or_else(PoisonError::into_inner);
        looks.get(&(queue.clone(), need.clone())).filter(|(at, _)| at.elapsed() < LOOK_KEPT).map(|(_, others)| *others)
    };
    if let Some(others) = kept(&worker.looks) {
        return others;
    }
    let others = match look(worker, queue, need).await {
        Ok(others) => others,
        Err(error) => {
            tracing::debug!(%error, "registry not readable");
            Others::Busy
        }
    };
    let mut looks = worker.looks.kept.lock().unwrap_or_else(PoisonError::into_inner);
    looks.insert((queue.clone(), need.clone()), (Instant::now(), others));
    others
}

async fn look(worker: &Worker, queue: &QueueName, need: &Need) -> Result<Others, jetstream::ApiError> {
    let names = &worker.config.names;
    let (stream, subjects) = (format!("KV_{}", names.agents_bucket()), names.agents_subjects());
    let offline = worker.config.heartbeat * 3;
    let (mut from, mut best) = (1, Others::Nobody);
    loop {
        let page = worker.js.page(&stream, &subjects, from, PAGE).await?;
        for message in page.messages {
            from = message.sequence + 1;
            let Ok(agent) = serde_json::from_slice::<AgentRecord>(&message.payload) else { continue };
            let lives = match agent.status {
                AgentStatus::Starting | AgentStatus::Ready => worker.js.now().since(message.stored_at) < offline,
                // What a newer version means by its word is not known; others that are sure take the task.
                AgentStatus::Draining | AgentStatus::Offline | AgentStatus::Newer(_) => false,
            };
            if lives && agent.id != worker.id && agent.queues.contains(queue) && need.is_met(&agent) {
                let takes = agent.status == AgentStatus::Ready && agent.running_count < agent.slots;
                best = best.max(if takes { Others::Free } else { Others::Busy });
            }
        }
        if !page.more || best == Others::Free {
            return Ok(best);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(others: Others) -> [u128; 5] {
        [0, 1, 900, 7_000, 86_400_000].map(|ms| pause(Duration::from_millis(ms), others).as_millis())
    }

    #[test]
    fn a_task_is_first_offered_to_the_others_at_once_and_then_more_and_more_rarely() {
        assert_eq!(pauses(Others::Free), [0, 100, 900, 1_000, 1_000]);
        assert_eq!(pauses(Others::Busy), [0, 250, 900, 5_000, 5_000]);
    }

    #[test]
    fn where_nobody_can_it_is_not_asked_for_all_the_time() {
        assert_eq!(pauses(Others::Nobody), [500, 500, 900, 7_000, 10_000]);
    }
}
