//! Tasks, records and attempts against each other: each must have the other two.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::{AgentId, AgentStatus, Outcome, QueueName, StartId, State, TaskKey};

use super::agents::Seen;
use super::queues;
use super::{count, millis, time};
use crate::client::{Client, ClientError, Recorded};

/// Queues whose oldest tasks are looked at, and how many of each.
const QUEUES: usize = 50;
const OF_A_QUEUE: usize = 100;
/// Records at either end of the bucket.
const OLDEST: usize = 200;
const NEWEST: u64 = 1_000;
/// Running tasks that workers name.
const NAMED: usize = 1_000;
/// Subjects asked for at once.
const CHUNK: usize = 500;
/// Suspects that are read again from the leader, one by one.
const SUSPECTS: usize = 50;
/// What a redelivery may be late.
const LATE: Duration = Duration::from_secs(5);

/// A task that was handed out and is still there.
#[derive(Clone, Debug)]
pub(super) struct Handed {
    pub(super) key: TaskKey,
    sequence: u64,
    record: Option<Recorded>,
}

impl Handed {
    /// The worker of its running attempt.
    pub(super) fn holder(&self) -> Option<(&AgentId, &str, Option<&StartId>)> {
        let record = &self.record.as_ref()?.record;
        let runs = record.state == State::Running && record.sequence == self.sequence;
        let last = record.attempts.last().filter(|last| runs && last.outcome == Outcome::Running)?;
        Some((last.worker.as_ref()?, last.instance.as_deref().unwrap_or_default(), last.start.as_ref()))
    }
}

/// The oldest tasks of each queue that were handed out.
pub(super) async fn handed(client: &Client, look: &queues::Look) -> Result<Vec<Handed>, ClientError> {
    let stream = client.names.tasks_stream();
    let mut found = Vec::new();
    for (queue, consumer) in look.consumers.iter().take(QUEUES) {
        let page = client.js.page(&stream, &client.names.queue_subjects(queue), 1, OF_A_QUEUE).await?;
        let out = page.messages.into_iter().filter(|message| message.sequence <= consumer.delivered.stream_seq);
        found.extend(out.filter_map(|message| {
            let key = client.task_key(&message.subject)?;
            Some(Handed { key, sequence: message.sequence, record: None })
        }));
    }
    let mut records = records(client, found.iter().map(|handed| &handed.key)).await?;
    for handed in &mut found {
        handed.record = records.remove(&handed.key);
    }
    Ok(found)
}

/// Of these, those that are still there, with their records as they are now.
pub(super) async fn still(client: &Client, before: &[Handed]) -> Result<Vec<Handed>, ClientError> {
    let messages = messages(client, before.iter().map(|handed| &handed.key)).await?;
    let there = before.iter().filter(|handed| messages.get(&handed.key) == Some(&handed.sequence));
    let mut there: Vec<Handed> = there.cloned().collect();
    let mut records = records(client, there.iter().map(|handed| &handed.key)).await?;
    for handed in &mut there {
        handed.record = records.remove(&handed.key);
    }
    Ok(there)
}

/// Of these, those that the leader has.
pub(super) async fn surely(client: &Client, there: &[Handed]) -> Result<Vec<Handed>, ClientError> {
    let mut sure = Vec::new();
    for handed in there {
        let message = client.js.last(&client.names.tasks_stream(), &client.names.task_subject(&handed.key)).await?;
        if message.is_some_and(|message| message.sequence == handed.sequence) {
            sure.push(handed.clone());
        }
    }
    Ok(sure)
}

/// The sequences of the messages of these tasks, by direct reads.
async fn messages<'a>(
    client: &Client,
    keys: impl Iterator<Item = &'a TaskKey>,
) -> Result<BTreeMap<TaskKey, u64>, ClientError> {
    let subjects: Vec<String> = keys.map(|key| client.names.task_subject(key)).collect();
    let mut found = BTreeMap::new();
    for some in subjects.chunks(CHUNK) {
        for message in client.js.newest(&client.names.tasks_stream(), some).await? {
            found.extend(client.task_key(&message.subject).map(|key| (key, message.sequence)));
        }
    }
    Ok(found)
}

/// The records of these tasks, by direct reads.
async fn records<'a>(
    client: &Client,
    keys: impl Iterator<Item = &'a TaskKey>,
) -> Result<BTreeMap<TaskKey, Recorded>, ClientError> {
    let subjects: Vec<String> = keys.map(|key| client.names.record_subject(key)).collect();
    let mut found = BTreeMap::new();
    for some in subjects.chunks(CHUNK) {
        for message in client.js.newest(&client.names.records_stream(), some).await? {
            if let Ok(Some(recorded)) = Recorded::read(&message) {
                found.insert(recorded.record.key(), recorded);
            }
        }
    }
    Ok(found)
}

/// Handed-out tasks of which the consumer knows nothing any more: there in both looks, which enclose `between`.
pub(super) fn undeliverable(there: &[Handed], between: &queues::Look) -> Vec<Finding> {
    let mut of: BTreeMap<&QueueName, Vec<&Handed>> = BTreeMap::new();
    for handed in there {
        of.entry(&handed.key.queue).or_default().push(handed);
    }
    let mut findings = Vec::new();
    for (queue, handed) in of {
        let Some(consumer) = between.consumers.get(queue) else { continue };
        // Made anew meanwhile, it will hand them out again.
        let known = handed.iter().filter(|it| it.sequence <= consumer.delivered.stream_seq).count() as u64;
        let out = consumer.num_ack_pending;
        if known > out {
            let first = &handed[0].key;
            findings.push(
                Finding::new(Severity::Error, FindingCode::TaskUndeliverable, format!("queue {queue}"))
                    .says(format!(
                        "{} handed out, {out} awaited: the rest, such as {first}, will never be handed out again",
                        count(known, "task")
                    ))
                    .seen("handed_out", known)
                    .seen("awaited", out)
                    .seen("tasks", handed.iter().take(10).map(|it| it.key.to_string()).collect::<Vec<_>>())
                    .next(format!("see max_deliver: nats consumer info; cancel and retry it: shoal cancel {first}, shoal retry {first}")),
            );
        }
    }
    findings
}

/// Records that say `running`, unchanged in both looks, whose worker is gone or does not name them.
pub(super) fn without_attempt(before: &[Handed], there: &[Handed], agents: &Seen, look: &queues::Look) -> Vec<Finding> {
    let mut findings = Vec::new();
    for now in there {
        let revision = |handed: &Handed| handed.record.as_ref().map(|recorded| recorded.revision);
        let unchanged = before.iter().any(|it| it.key == now.key && revision(it) == revision(now));
        let Some((worker, instance, start)) = now.holder().filter(|_| unchanged) else { continue };
        let Some((why, gone_for)) = abandoned(&now.key, worker, instance, agents) else { continue };
        let consumer = look.consumers.get(&now.key.queue);
        let lease = consumer.map_or(Duration::from_secs(15), jetstream::ConsumerState::ack_wait);
        let heals = gone_for.is_some_and(|gone_for| gone_for < lease + LATE);
        let key = &now.key;
        let (severity, then) = match heals {
            true => (Severity::Info, format!("it is handed out again once its lease of {} is over", time(lease))),
            false => (Severity::Warning, "its lease should be over; it waits for a worker to take it".into()),
        };
        let mut finding = Finding::new(severity, FindingCode::TaskWithoutAttempt, format!("task {key}"))
            .says(format!("its record says `running`, but {why}; {then}"))
            .seen("worker", worker.as_str())
            .seen("instance", instance)
            .seen("sequence", now.sequence)
            .seen("lease_ms", millis(lease))
            .next(format!("shoal explain {key}"));
        if let Some(start) = start {
            finding = finding.seen("start", start.as_str());
        }
        findings.push(finding);
    }
    findings
}

/// Why nobody runs it, if so, and for how long at least, if that is known.
fn abandoned(key: &TaskKey, worker: &AgentId, instance: &str, agents: &Seen) -> Option<(String, Option<Duration>)> {
    if let Some((before, now)) = agents.answered_twice(worker) {
        if now.instance != instance {
            return Some((format!("{worker} has begun anew since"), Some(agents.now.since(now.registered_at))));
        }
        let name = key.to_string();
        let whole = |said: &schemas::AgentRecord| said.running.len() == said.running_count as usize;
        let named = before.running.contains(&name) || now.running.contains(&name);
        return (!named && whole(before) && whole(now)).then(|| (format!("{worker} lives and does not run it"), None));
    }
    let entry = agents.second.registry.get(worker);
    let gone_for = entry.map(|entry| agents.now.since(entry.stored_at));
    match agents.status(worker) {
        None => Some((format!("{worker} is not in the registry"), None)),
        Some(AgentStatus::Offline) => Some((format!("{worker} is offline"), gone_for)),
        Some(AgentStatus::Starting | AgentStatus::Ready | AgentStatus::Draining | AgentStatus::Newer(_)) => {
            // Killed and started again before anybody noticed.
            let other = entry.filter(|entry| entry.record.instance != instance)?;
            Some((format!("{worker} has begun anew since"), Some(agents.now.since(other.record.registered_at))))
        }
    }
}

/// What workers say that they run, against messages and records.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// Which tasks, of which worker.
    pub(super) tasks: BTreeMap<TaskKey, AgentId>,
    messages: BTreeMap<TaskKey, u64>,
    records: BTreeMap<TaskKey, Recorded>,
}

/// Reads what belongs to the tasks that workers named.
pub(super) async fn named(client: &Client, look: &super::agents::Look) -> Result<Named, ClientError> {
    let mut tasks = BTreeMap::new();
    for worker in look.answers.keys() {
        let running = look.told(worker).map(|record| record.running.iter()).into_iter().flatten();
        tasks.extend(running.filter_map(|name| Some((name.parse().ok()?, worker.clone()))));
    }
    let tasks: BTreeMap<TaskKey, AgentId> = tasks.into_iter().take(NAMED).collect();
    let (messages, records) = (messages(client, tasks.keys()).await?, records(client, tasks.keys()).await?);
    Ok(Named { tasks, messages, records })
}

impl Named {
    /// The starts of each worker that named all it runs, and of which every task has a record.
    pub(super) fn starts(&self, agents: &Seen) -> BTreeMap<AgentId, Vec<StartId>> {
        let mut starts = BTreeMap::new();
        for worker in agents.second.answers.keys() {
            let Some((before, now)) = agents.answered_twice(worker) else { continue };
            if now.running.len() != now.running_count as usize || before.running.len() != before.running_count as usize
            {
                continue;
            }
            let both = now.running.iter().filter(|name| before.running.contains(name));
            let of = both.map(|name| {
                let recorded = self.records.get(&name.parse::<TaskKey>().ok()?)?;
                recorded.record.attempts.last().and_then(|last| last.start.clone())
            });
            if let Some(all) = of.collect::<Option<Vec<StartId>>>() {
                starts.insert(worker.clone(), all);
            }
        }
        starts
    }

    fn lacks_message(&self, key: &TaskKey) -> bool {
        !self.messages.contains_key(key)
    }

    fn revision(&self, key: &TaskKey) -> Option<u64> {
        self.records.get(key).map(|recorded| recorded.revision)
    }

    /// No record of the run that its message is.
    fn lacks_record(&self, key: &TaskKey) -> Option<u64> {
        let sequence = *self.messages.get(key)?;
        let older = self.records.get(key).is_none_or(|recorded| recorded.record.sequence < sequence);
        older.then_some(sequence)
    }
}

/// Attempts, named in both looks, that lack their message or their record in both. The second is read from the leaders.
pub(super) async fn without_task(client: &Client, first: &Named, second: &Named) -> Result<Vec<Finding>, ClientError> {
    let both = first.tasks.iter().filter(|(key, worker)| second.tasks.get(*key) == Some(*worker));
    let suspect = |key: &TaskKey| {
        // A record that is written meanwhile is of a task that goes on, or has just ended; its id may be in use again.
        let stands_still = first.revision(key) == second.revision(key);
        (first.lacks_message(key) && second.lacks_message(key) && stands_still)
            || (first.lacks_record(key).is_some() && first.lacks_record(key) == second.lacks_record(key))
    };
    let suspects = both.filter(|(key, _)| suspect(key)).take(SUSPECTS);
    let mut findings = Vec::new();
    for (key, worker) in suspects {
        let message = client.js.last(&client.names.tasks_stream(), &client.names.task_subject(key)).await?;
        let recorded = crate::client::record::read(&client.js, &client.names, key).await?.recorded;
        let state = recorded.as_ref().map(|recorded| recorded.record.state);
        match (message, state) {
            (None, state) if recorded.as_ref().map(|now| now.revision) == second.revision(key) => findings.push(
                Finding::new(Severity::Error, FindingCode::AttemptWithoutMessage, format!("task {key}"))
                    .says(format!(
                        "{worker} says that it runs it, but its message is gone from the stream; its record is {}",
                        state.map_or("missing".into(), |state| format!("`{state}`"))
                    ))
                    .seen("worker", worker.as_str())
                    .seen("state", state.map(State::as_str).unwrap_or("none"))
                    .next(format!("was it deleted by hand? shoal explain {key}; shoal retry {key}")),
            ),
            (Some(message), _) if recorded.is_none_or(|recorded| recorded.record.sequence < message.sequence) => {
                findings.push(
                    Finding::new(Severity::Error, FindingCode::AttemptWithoutRecord, format!("task {key}"))
                        .says(format!("{worker} says that it runs it, but there is no record of this run"))
                        .seen("worker", worker.as_str())
                        .seen("sequence", message.sequence)
                        .next(format!(
                            "may it write $KV.{}.>? its log: shoal agents show {worker}",
                            client.names.records_bucket()
                        )),
                );
            }
            (None | Some(_), _) => {}
        }
    }
    Ok(findings)
}

/// A part of all records.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// How many were read.
    pub(super) read: usize,
    /// Of how many.
    pub(super) total: u64,
    /// The record that names the highest sequence.
    highest: Option<(TaskKey, u64)>,
    /// Unfinished and without their message, with their revision.
    suspects: Vec<(TaskKey, u64)>,
}

/// Reads the oldest and the newest records, and looks for the messages of the unfinished.
pub(super) async fn sample(client: &Client) -> Result<Sample, ClientError> {
    let stream = client.names.records_stream();
    let Some(state) = client.js.stream_state(&stream).await? else { return Ok(Sample::default()) };
    let subjects = client.record_subjects();
    let mut sample = Sample { total: state.messages, ..Sample::default() };
    if state.messages == 0 {
        return Ok(sample);
    }
    let mut unfinished = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (from, most) in [(1, OLDEST), (state.last_seq.saturating_sub(NEWEST), NEWEST as usize)] {
        for message in client.js.page(&stream, &subjects, from, most).await?.messages {
            let Ok(Some(recorded)) = Recorded::read(&message) else { continue };
            let record = &recorded.record;
            if !seen.insert(record.key()) {
                continue;
            }
            if sample.highest.as_ref().is_none_or(|(_, sequence)| *sequence < record.sequence) {
                sample.highest = Some((record.key(), record.sequence));
            }
            if !record.state.is_terminal() {
                unfinished.insert(record.key(), (record.sequence, recorded.revision));
            }
        }
    }
    sample.read = seen.len();
    let messages = messages(client, unfinished.keys()).await?;
    let missing = unfinished.into_iter().filter(|(key, (sequence, _))| messages.get(key) != Some(sequence));
    sample.suspects = missing.map(|(key, (_, revision))| (key, revision)).take(SUSPECTS).collect();
    Ok(sample)
}

/// Suspects of the first look that are as they were, read from the leaders.
pub(super) async fn without_message(client: &Client, first: &Sample) -> Result<Vec<Finding>, ClientError> {
    let mut findings = Vec::new();
    for (key, revision) in &first.suspects {
        // The message first: a run that ends in between is seen as finished.
        let message = client.js.last(&client.names.tasks_stream(), &client.names.task_subject(key)).await?;
        let recorded = crate::client::record::read(&client.js, &client.names, key).await?.recorded;
        let Some(recorded) = recorded.filter(|recorded| recorded.revision == *revision) else { continue };
        if message.is_some_and(|message| message.sequence == recorded.record.sequence) {
            continue;
        }
        findings.push(
            Finding::new(Severity::Error, FindingCode::TaskWithoutMessage, format!("task {key}"))
                .says(format!("its record says `{}`, but its message is gone from the stream", recorded.record.state))
                .seen("sequence", recorded.record.sequence)
                .seen("state", recorded.record.state.as_str())
                .seen("revision", recorded.revision)
                .next(format!("a dispatcher ends it as `lost`: shoal dispatcher; then: shoal retry {key}")),
        );
    }
    Ok(findings)
}

/// Whether the stream of tasks is behind its records or its consumers. `after`: read after the records.
pub(super) fn set_back(sample: &Sample, after: &queues::Look, stream: &str) -> Option<Finding> {
    let (key, highest) = sample.highest.as_ref().filter(|(_, sequence)| *sequence > after.last)?;
    let finding = Finding::new(Severity::Error, FindingCode::StoreSetBack, format!("stream {stream}"))
        .says(format!(
            "the record of {key} is of sequence {highest}, but the stream has only come to {}: it was set back or made anew",
            after.last
        ))
        .seen("last_sequence", after.last)
        .seen("named_sequence", *highest)
        .seen("task", key.to_string())
        .next("tasks accepted since its last copy are gone: compare with your submitters (docs/guarantees.md)");
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::super::agents::tests::seen;
    use super::super::agents::{Answer, Look};
    use super::*;
    use serde_json::json;

    fn handed(revision: u64, instance: &str) -> Handed {
        let record = serde_json::from_value(json!({
            "id": "a", "queue": "q", "sequence": 7, "state": "running", "submitted_at": "2026-11-20T09:00:00Z",
            "attempts": [{"outcome": "running", "worker": "w", "instance": instance, "start": "s1"}],
        }))
        .unwrap();
        let written_at = schemas::Timestamp::from_millis(0);
        Handed { key: "q.a".parse().unwrap(), sequence: 7, record: Some(Recorded { record, revision, written_at }) }
    }

    fn look(out: u64) -> queues::Look {
        let consumer = json!({
            "name": "q", "config": {"ack_wait": 15_000_000_000_u64}, "num_ack_pending": out,
            "delivered": {"consumer_seq": 9, "stream_seq": 9},
        });
        queues::Look::of(serde_json::from_value(consumer).unwrap())
    }

    fn found(before: Handed, now: Handed, agents: &Seen) -> Option<(Severity, String)> {
        let mut findings = without_attempt(&[before], &[now], agents, &look(1));
        findings.pop().map(|finding| (finding.severity, finding.message))
    }

    #[test]
    fn a_record_whose_worker_runs_it_is_no_finding() {
        assert_eq!(found(handed(1, "i"), handed(1, "i"), &seen("w", "i", &["q.a"])), None);
        // It moved between the looks.
        assert_eq!(found(handed(1, "i"), handed(2, "i"), &seen("w", "i", &[])), None);
    }

    #[test]
    fn a_record_whose_worker_is_gone_is_told_gently_while_its_lease_may_run() {
        let (severity, message) = found(handed(1, "i"), handed(1, "i"), &seen("w", "i", &[])).unwrap();
        assert!(severity == Severity::Warning && message.contains("lives and does not run it"), "{message}");
        let (severity, message) = found(handed(1, "i0"), handed(1, "i0"), &seen("w", "i", &["q.a"])).unwrap();
        assert!(severity == Severity::Warning && message.contains("begun anew"), "{message}");
        let mut gone = seen("w", "i", &[]);
        for look in [&mut gone.first, &mut gone.second] {
            look.answers.values_mut().for_each(|answer| *answer = Answer::Silent);
            look.registry.values_mut().for_each(|entry| entry.record.status = AgentStatus::Offline);
        }
        assert_eq!(found(handed(1, "i"), handed(1, "i"), &gone).unwrap().0, Severity::Info, "5 s ago");
        gone.now = gone.now.plus(Duration::from_secs(60));
        assert_eq!(found(handed(1, "i"), handed(1, "i"), &gone).unwrap().0, Severity::Warning);
    }

    #[test]
    fn of_a_worker_that_did_not_answer_but_beats_nothing_is_said() {
        let mut busy = seen("w", "i", &[]);
        busy.first.answers.values_mut().for_each(|answer| *answer = Answer::Silent);
        assert_eq!(found(handed(1, "i"), handed(1, "i"), &busy), None);
        // Of all that it runs it named only some.
        let mut many = seen("w", "i", &[]);
        let more = |look: &mut Look| match look.answers.values_mut().next().unwrap() {
            Answer::Told(record) => record.running_count = 65,
            other => panic!("{other:?}"),
        };
        more(&mut many.first);
        assert_eq!(found(handed(1, "i"), handed(1, "i"), &many), None);
    }

    #[test]
    fn what_is_out_and_awaited_by_nobody_is_undeliverable() {
        assert_eq!(undeliverable(&[handed(1, "i")], &look(1)), []);
        let findings = undeliverable(&[handed(1, "i")], &look(0));
        assert_eq!(findings[0].code, FindingCode::TaskUndeliverable);
    }
}
