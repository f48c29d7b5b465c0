//! The other holder of a run that was handed to us: whether it still holds it.
//!
//! A delivery to us while the record says that it runs elsewhere mostly means that the lease there is over. Not always: a
//! server forgets what it handed out in the moments before it is killed, and a leader that takes over in a cluster does not
//! know of renewals. The other is asked then. If it holds the run, by its own clock of the lease, our delivery is left
//! alone: acks, renewals and naks are matched by the sequence, so it stays the other's, whose next renewal prolongs it.
//!
//! Where nobody is there to be asked, it may only be on its way to another server. The registry tells when it was last heard of: what
//! comes to us sooner after that than any lease could be over is left alone, too, and comes again if nobody renews it.

use std::time::Duration;

use bytes::Bytes;
use jetstream::ApiError;
use schemas::cancel::{HoldsReply, HoldsRequest};
use schemas::record::{Attempt, TaskRecord};
use schemas::{AgentRecord, AgentStatus, Outcome, QueueName, State, TaskKey, Timestamp};

use crate::worker::Worker;

/// A worker that lives answers in a millisecond; one that does not is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is later by less is now: our idea of the server's clock is not exact.
const CLOCKS_DIFFER: Duration = Duration::from_secs(2);

/// The attempt that another boot of a worker runs by this record. Pure.
fn elsewhere<'r>(record: &'r TaskRecord, own_instance: &str) -> Option<&'r Attempt> {
    let last = record.attempts.last()?;
    let runs = record.state == State::Running && last.outcome == Outcome::Running;
    (runs && last.instance.as_deref().is_some_and(|instance| instance != own_instance)).then_some(last)
}

/// Whether the worker that runs this by its record says that it does.
pub(super) async fn still_holds(worker: &Worker, record: &TaskRecord) -> bool {
    let Some(attempt) = elsewhere(record, &worker.instance) else { return false };
    let (Some(holder), Some(instance)) = (&attempt.worker, &attempt.instance) else { return false };
    let (queue, id) = (record.queue.clone(), record.id.clone());
    let asked = HoldsRequest { queue, id, sequence: record.sequence, instance: instance.clone() };
    let body: Bytes = serde_json::to_vec(&asked).expect("our own types are JSON").into();
    let subject = worker.config.names.holds_subject(holder);
    match worker.js.request_within(&subject, body, PATIENCE).await {
        // What is no yes is a no.
        Ok(reply) => serde_json::from_slice::<HoldsReply>(&reply.payload).is_ok_and(|reply| reply.holds),
        // Its place is empty, for good or for a moment.
        Err(ApiError::NoResponders { .. }) => was_heard_of(worker, attempt, &record.queue).await,
        // Frozen, or we may not ask: to wait for what is never said would be to wait for ever.
        Err(_) => false,
    }
}

/// Whether this boot is in the registry, and was heard of so lately, by a beat or by its claim of this very attempt, that no
/// lease of it can be over: what is renewed at a third of the ack wait was renewed then at most a third before. Half of
/// the ack wait leaves room for renewals that come late.
async fn was_heard_of(worker: &Worker, attempt: &Attempt, queue: &QueueName) -> bool {
    let (Some(holder), Some(instance)) = (&attempt.worker, &attempt.instance) else { return false };
    let Some(queue) = worker.queues.iter().find(|known| known.name == *queue) else { return false };
    let names = &worker.config.names;
    let entry = worker.js.last(&format!("KV_{}", names.agents_bucket()), &names.agent_subject(holder)).await;
    let Some(entry) = entry.ok().flatten().filter(|entry| !entry.is_marker()) else { return false };
    let is_there = serde_json::from_slice::<AgentRecord>(&entry.payload)
        .is_ok_and(|record| record.instance == *instance && record.status != AgentStatus::Offline);
    let heard = [Some(entry.stored_at), attempt.phases.started];
    is_there && is_recent(worker.js.now(), heard, queue.ack_wait() / 2)
}

/// Whether one of these moments is at most so long ago, and none is to come: a clock that was set back tells nothing. Pure.
fn is_recent(now: Timestamp, heard: [Option<Timestamp>; 2], within: Duration) -> bool {
    let latest = heard.into_iter().flatten().max();
    latest.is_some_and(|latest| now.since(latest) < within && latest <= now.plus(CLOCKS_DIFFER))
}

/// The answer to another's question.
pub fn holds(worker: &Worker, asked: &HoldsRequest) -> HoldsReply {
    let task = TaskKey::new(asked.queue.clone(), asked.id.clone());
    let lease = worker.running.lease(&task, asked.sequence);
    let holds = asked.instance == worker.instance && lease.is_some_and(|lease| worker.leases.is_held(lease));
    HoldsReply { holds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_of_lately_is_no_longer_ago_than_told_and_not_to_come() {
        let at = |seconds: i64| Timestamp::from_millis(1_000 * (1_000 + seconds));
        let is_recent = |heard: [Option<i64>; 2]| is_recent(at(0), heard.map(|it| it.map(at)), Duration::from_secs(7));
        assert!(is_recent([Some(-6), None]) && is_recent([Some(-60), Some(-3)]) && is_recent([Some(1), Some(-60)]));
        assert!(!is_recent([Some(-7), None]) && !is_recent([None, None]) && !is_recent([Some(-60), Some(-9)]));
        assert!(!is_recent([Some(60), Some(-3)]), "the clock was set back");
    }

    #[test]
    fn only_what_runs_on_another_boot_is_asked_about() {
        let key = "q.a".parse().unwrap();
        let mut record = TaskRecord::new(&key, 1, State::Running, Timestamp::from_millis(0));
        assert!(elsewhere(&record, "us").is_none(), "nobody has it");
        record.attempts.push(Attempt { instance: Some("them".into()), ..Attempt::new(Outcome::Running) });
        assert!(elsewhere(&record, "us").is_some());
        assert!(elsewhere(&record, "them").is_none(), "it is ours");
        record.state = State::Retrying;
        assert!(elsewhere(&record, "us").is_none(), "it waits");
        record.state = State::Running;
        record.attempts[0].outcome = Outcome::Lost;
        assert!(elsewhere(&record, "us").is_none(), "it is over");
    }
}
