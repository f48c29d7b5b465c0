//! The poison guard: a task that loses worker after worker may be what kills them.

use std::time::Duration;

use schemas::record::Attempt;
use schemas::{AgentId, AgentRecord, AgentStatus, Code, Outcome};

use crate::worker::Worker;

/// Whether too many workers are gone that were lost with this task. A loss counts only if the holder's instance is gone:
/// one that was merely cut off comes back, and rolling restarts condemn nobody.
pub async fn lost_too_often(worker: &Worker, attempts: &[Attempt]) -> bool {
    let limit = worker.config.lost_limit as usize;
    if limit == 0 || lost(attempts).count() < limit {
        return false;
    }
    let mut gone = Vec::new();
    for (id, instance) in lost(attempts).filter_map(holder) {
        if is_gone(worker, id, instance).await {
            gone.push((id, instance));
        }
    }
    condemned(limit, attempts, |holder| gone.contains(&holder))
}

fn lost(attempts: &[Attempt]) -> impl Iterator<Item = &Attempt> {
    attempts.iter().filter(|attempt| attempt.outcome == Outcome::Lost)
}

/// Whose attempt it was: worker and boot.
fn holder(attempt: &Attempt) -> Option<(&AgentId, &str)> {
    attempt.worker.as_ref().zip(attempt.instance.as_deref())
}

/// Weighs the losses. Pure: who is gone is told.
pub fn condemned(limit: usize, attempts: &[Attempt], is_gone: impl Fn((&AgentId, &str)) -> bool) -> bool {
    let (mut gone, mut traceless) = (0, 0);
    for attempt in lost(attempts) {
        // Lost with its engine, while the worker lived on: the container may be what kills the engine.
        if attempt.error.as_ref().is_some_and(|error| error.code == Code::EngineLost) {
            gone += 1;
            continue;
        }
        match holder(attempt) {
            Some(holder) => gone += usize::from(is_gone(holder)),
            None => traceless += 1,
        }
    }
    // A loss without a trace may have been a task given back unstarted: it counts beside others, never alone.
    limit > 0 && gone > 0 && gone + traceless >= limit
}

/// Whether this boot of that worker is over, by the registry.
async fn is_gone(worker: &Worker, id: &AgentId, instance: &str) -> bool {
    let names = &worker.config.names;
    let stream = format!("KV_{}", names.agents_bucket());
    let entry = match worker.js.last(&stream, &names.agent_subject(id)).await {
        Ok(Some(entry)) => entry,
        Ok(None) => return true,
        // In doubt for the task.
        Err(_) => return false,
    };
    if entry.is_marker() {
        return true;
    }
    // One that a newer version wrote in a way that is not ours lives as long as it beats.
    if let Ok(record) = serde_json::from_slice::<AgentRecord>(&entry.payload)
        && (record.instance != instance || record.status == AgentStatus::Offline)
    {
        return true;
    }
    // A lost lease means a whole ack wait of silence; one missed beat on top of it is enough here.
    let silence = worker.js.now().since(entry.stored_at);
    silence > worker.config.heartbeat.mul_f64(1.5).max(Duration::from_millis(100))
}
