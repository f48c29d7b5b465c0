//! Whether this worker can run a task at all, and what becomes of one that it cannot: it waits, put off for longer and
//! longer, for a worker that can.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemas::agent::CONTAINER_RUNTIMES;
use schemas::{AgentRecord, AgentStatus, Code, QueueName, TaskError, Timestamp, Workload};

use crate::runtime::Runtime;
use crate::worker::Worker;

/// How long what the registry said is taken for true: a crowd of such tasks costs one look.
const LOOK_KEPT: Duration = Duration::from_secs(2);
/// Shortest and longest pause where another worker could run it: it may be busy.
const SOMEBODY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The same where none could; the longest is also how late a new worker may find the task.
const NOBODY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Most agents looked at in one page.
const PAGE: usize = 500;

/// The runtime for a workload of this kind, if this worker runs it now.
pub fn runtime<'a>(worker: &'a Worker, workload: &Workload) -> Result<&'a Arc<dyn Runtime>, TaskError> {
    let names: &[&str] = match workload {
        Workload::Call(_) => &["call"],
        Workload::Process(_) => &["process"],
        Workload::Container(_) => &CONTAINER_RUNTIMES,
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
            let allowed = allowed.join(", ");
            let message = format!("the worker {} does not run `{kind}` workloads; it allows {allowed}", worker.id);
            TaskError::new(Code::RuntimeNotAllowed, message)
        }
    })
}

/// Why this worker cannot run it now, if so.
pub fn hindrance(worker: &Worker, workload: &Workload) -> Option<TaskError> {
    match workload {
        Workload::Call(_) if worker.calls => None,
        workload => runtime(worker, workload).err(),
    }
}

/// How long a task is put off that has waited for so long: at first not at all where another worker may take it, then for
/// as long again.
pub fn pause(waited: Duration, somebody_can: bool) -> Duration {
    match (waited.is_zero(), somebody_can) {
        (true, true) => Duration::ZERO,
        (false, true) => waited.clamp(SOMEBODY.0, SOMEBODY.1),
        (_, false) => waited.clamp(NOBODY.0, NOBODY.1),
    }
}

/// What the registry lately said of who runs what.
#[derive(Debug, Default)]
pub struct Looks {
    /// By queue and kind: when it was asked, and whether another worker can.
    kept: Mutex<HashMap<Question, (Instant, bool)>>,
}

/// A queue and a kind of workload.
type Question = (QueueName, &'static str);

/// Whether another worker of this queue runs such workloads. What cannot be read counts as yes: nothing wrong is said.
pub async fn somebody_can(worker: &Worker, queue: &QueueName, kind: &'static str) -> bool {
    let kept = |looks: &Looks| {
        let looks = looks.kept.lock().unwrap_or_else(PoisonError::into_inner);
        looks.get(&(queue.clone(), kind)).filter(|(at, _)| at.elapsed() < LOOK_KEPT).map(|(_, can)| *can)
    };
    if let Some(can) = kept(&worker.looks) {
        return can;
    }
    let can = match look(worker, queue, kind).await {
        Ok(can) => can,
        Err(error) => {
            tracing::debug!(%error, "registry not readable");
            true
        }
    };
    let mut looks = worker.looks.kept.lock().unwrap_or_else(PoisonError::into_inner);
    looks.insert((queue.clone(), kind), (Instant::now(), can));
    can
}

async fn look(worker: &Worker, queue: &QueueName, kind: &str) -> Result<bool, jetstream::ApiError> {
    let names = &worker.config.names;
    let (stream, subjects) = (format!("KV_{}", names.agents_bucket()), names.agents_subjects());
    let offline = worker.config.heartbeat * 3;
    let mut from = 1;
    loop {
        let page = worker.js.page(&stream, &subjects, from, PAGE).await?;
        for message in page.messages {
            from = message.sequence + 1;
            let Ok(agent) = serde_json::from_slice::<AgentRecord>(&message.payload) else { continue };
            let lives = match agent.status {
                AgentStatus::Starting | AgentStatus::Ready => Timestamp::now().since(message.stored_at) < offline,
                AgentStatus::Draining | AgentStatus::Offline => false,
            };
            if lives && agent.id != worker.id && agent.queues.contains(queue) && agent.runs(kind) {
                return Ok(true);
            }
        }
        if !page.more {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(somebody_can: bool) -> [u128; 5] {
        [0, 1, 1_000, 7_000, 86_400_000].map(|ms| pause(Duration::from_millis(ms), somebody_can).as_millis())
    }

    #[test]
    fn a_task_is_first_offered_to_the_others_at_once_and_then_more_and_more_rarely() {
        assert_eq!(pauses(true), [0, 250, 1_000, 5_000, 5_000]);
    }

    #[test]
    fn where_nobody_can_it_is_not_asked_for_all_the_time() {
        assert_eq!(pauses(false), [500, 500, 1_000, 7_000, 10_000]);
    }
}
