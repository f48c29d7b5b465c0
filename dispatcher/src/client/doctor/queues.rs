//! Queues at work: consumers that hand out nothing, tasks that nobody serves, consumers that are not as they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jetstream::ConsumerState;
use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::stores::MAX_ACK_PENDING;
use schemas::{Names, QueueName, QueueSettings};
use serde_json::Value;

use super::{Doctor, count, time};
use crate::client::{Client, ClientError};

/// Messages at either end of the stream whose subjects are looked at.
const EDGE: usize = 200;
/// Smallest bound on open pulls that is no trouble: the server's default stops the 513th worker.
const PULLS: u64 = 1_024;

/// Consumers and what is in the stream beside them, at one moment.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) consumers: BTreeMap<QueueName, ConsumerState>,
    /// Tasks in the stream.
    pub(super) messages: u64,
    /// Highest sequence that the stream ever gave.
    pub(super) last: u64,
    /// Subjects at either end of the stream.
    edges: BTreeSet<String>,
}

#[cfg(test)]
impl Look {
    /// Only this consumer.
    pub(super) fn of(consumer: ConsumerState) -> Self {
        let consumers = [(consumer.name.parse().expect("a queue"), consumer)].into();
        Self { consumers, messages: 1, last: 9, edges: BTreeSet::new() }
    }
}

/// Reads it. `None` without the stream, which is told elsewhere.
pub(super) async fn look(client: &Client) -> Result<Option<Look>, ClientError> {
    let stream = client.names.tasks_stream();
    let Some(state) = client.js.stream_state(&stream).await? else { return Ok(None) };
    let mut consumers = BTreeMap::new();
    for consumer in client.js.consumers(&stream).await? {
        // Consumers of other names are none of ours.
        if let Ok(name) = consumer.name.parse::<QueueName>() {
            consumers.insert(name, consumer);
        }
    }
    let mut edges = BTreeSet::new();
    if state.messages > 0 {
        let newest = (state.last_seq + 1).saturating_sub(EDGE as u64);
        for from in [1, newest] {
            let page = client.js.page(&stream, &client.names.tasks_subjects(), from, EDGE).await?;
            edges.extend(page.messages.into_iter().map(|message| message.subject));
        }
    }
    Ok(Some(Look { consumers, messages: state.messages, last: state.last_seq, edges }))
}

/// What is set for each queue that has a consumer.
pub(super) async fn settings(client: &Client, look: &Look) -> Result<BTreeMap<QueueName, QueueSettings>, ClientError> {
    let mut set = BTreeMap::new();
    let stream = format!("KV_{}", client.names.queues_bucket());
    let subjects: Vec<String> = look.consumers.keys().map(|queue| client.names.queue_subject(queue)).collect();
    for some in subjects.chunks(500) {
        for message in client.js.newest(&stream, some).await?.into_iter().filter(|message| !message.is_marker()) {
            let queue = message.subject.rsplit('.').next().and_then(|token| token.parse::<QueueName>().ok());
            if let (Some(queue), Ok(settings)) = (queue, serde_json::from_slice(&message.payload)) {
                set.insert(queue, settings);
            }
        }
    }
    Ok(set)
}

/// Who serves which queue, as far as was seen.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub(super) queues: BTreeSet<QueueName>,
    /// Whether every agent was seen.
    pub(super) whole: bool,
}

/// Judges two looks, `apart` from each other.
pub(super) fn judge(
    on: &Doctor<'_>,
    (first, second): (&Look, &Look),
    apart: Duration,
    settings: &BTreeMap<QueueName, QueueSettings>,
    served: &Served,
) -> Vec<Finding> {
    let names = &on.client.names;
    let mut findings = Vec::new();
    for (queue, now) in &second.consumers {
        findings.extend(first.consumers.get(queue).and_then(|before| stuck(names, before, now, apart)));
        // Of a fleet that is too large to be read whole, those who hold tasks are served by somebody.
        let waits = |look: &ConsumerState| {
            look.num_pending > 0 && look.num_waiting == 0 && (served.whole || look.num_ack_pending == 0)
        };
        if waits(now) && first.consumers.get(queue).is_some_and(waits) && !served.queues.contains(queue) {
            findings.push(unserved(queue, now.num_pending));
        }
        findings.extend(drifted(names, queue, now, settings.get(queue)));
    }
    findings.extend(beside(names, first, second, served));
    findings
}

/// Waiting tasks, open pulls, room under the cap, no pause, and not one handed out in between.
fn stuck(names: &Names, before: &ConsumerState, now: &ConsumerState, apart: Duration) -> Option<Finding> {
    let could = |look: &ConsumerState| {
        look.num_pending > 0 && look.num_waiting > 0 && !look.paused && look.num_ack_pending < look.max_ack_pending()
    };
    if !could(before) || !could(now) || before.delivered.consumer_seq != now.delivered.consumer_seq {
        return None;
    }
    let (waiting, pulls) = (count(now.num_pending, "task"), count(now.num_waiting, "pull"));
    let finding = Finding::new(Severity::Error, FindingCode::QueueStuck, format!("queue {}", now.name))
        .says(format!("{waiting} wait and {pulls} are open, but nothing was handed out for {}", time(apart)))
        .seen("waiting", now.num_pending)
        .seen("pulls", now.num_waiting)
        .seen("in_flight", now.num_ack_pending)
        .seen("delivered", now.delivered.consumer_seq)
        .next(format!(
            "nats consumer info {} {}: filter, priority groups, leader; then: nats consumer cluster step-down",
            names.tasks_stream(),
            now.name
        ));
    Some(finding)
}

fn unserved(queue: &QueueName, waiting: u64) -> Finding {
    let wait = if waiting == 1 { "waits" } else { "wait" };
    Finding::new(Severity::Warning, FindingCode::QueueWithoutWorker, format!("queue {queue}"))
        .says(format!("{} {wait} and no living worker serves it", count(waiting, "task")))
        .seen("waiting", waiting)
        .next(format!("start one: shoal worker --queues {queue}"))
}

/// Settings of the consumer that are not as they should be.
fn drifted(names: &Names, queue: &QueueName, now: &ConsumerState, set: Option<&QueueSettings>) -> Option<Finding> {
    let mut wrong = BTreeMap::new();
    let mut want = |setting: &str, wanted: Value, fits: &dyn Fn(&Value) -> bool| {
        let is = now.config.get(setting).cloned().unwrap_or(Value::Null);
        if !fits(&is) {
            wrong.insert(setting.to_owned(), serde_json::json!({"is": is, "wanted": wanted}));
        }
    };
    let filter = names.queue_subjects(queue);
    want("filter_subject", filter.clone().into(), &|is| is.as_str() == Some(&filter));
    want("ack_policy", "explicit".into(), &|is| is.as_str() == Some("explicit"));
    want("max_deliver", (-1).into(), &|is| is.as_i64().is_none_or(|most| most <= 0));
    want("max_waiting", PULLS.into(), &|is| is.as_u64().is_none_or(|most| most >= PULLS));
    let cap = set.and_then(|set| set.cap).unwrap_or(MAX_ACK_PENDING);
    want("max_ack_pending", cap.into(), &|is| is.as_u64() == Some(cap.into()));
    want("priority_groups", Value::Null, &|is| is.as_array().is_none_or(Vec::is_empty));
    if wrong.is_empty() {
        return None;
    }
    let words: Vec<String> =
        wrong.iter().map(|(name, it)| format!("{name} is {}, wanted {}", it["is"], it["wanted"])).collect();
    let only_cap = wrong.len() == 1 && wrong.contains_key("max_ack_pending");
    let mut finding = Finding::new(Severity::Warning, FindingCode::QueueDrifted, format!("queue {queue}"))
        .says(format!("its consumer is not as it should be: {}", words.join("; ")))
        .next(match only_cap {
            true => format!(
                "apply what is set: shoal queues set {queue} --cap {}",
                set.and_then(|set| set.cap).map_or("unlimited".into(), |cap| cap.to_string())
            ),
            false => format!(
                "once nothing of the queue runs: nats consumer rm {} {queue}; workers make it anew",
                names.tasks_stream()
            ),
        });
    finding.evidence = wrong;
    Some(finding)
}

/// What lies in the stream beside every consumer.
fn beside(names: &Names, first: &Look, second: &Look, served: &Served) -> Vec<Finding> {
    let mut orphans: BTreeMap<QueueName, u64> = BTreeMap::new();
    let mut strange = Vec::new();
    for subject in first.edges.intersection(&second.edges) {
        let Some((queue, _)) = names.task_tokens(subject) else { continue };
        match queue.parse::<QueueName>() {
            Ok(queue) => {
                if !first.consumers.contains_key(&queue) && !second.consumers.contains_key(&queue) {
                    *orphans.entry(queue).or_default() += 1;
                }
            }
            Err(_) => strange.push(subject.clone()),
        }
    }
    let mut findings: Vec<Finding> = orphans
        .into_iter()
        .filter(|(queue, _)| !served.queues.contains(queue))
        .map(|(queue, waiting)| unserved(&queue, waiting))
        .collect();
    if !strange.is_empty() {
        let some = strange.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let number = strange.len() as u64;
        findings.push(
            Finding::new(
                Severity::Warning,
                FindingCode::UnroutableMessages,
                format!("stream {}", names.tasks_stream()),
            )
            .says(format!("{} on subjects that no queue can have: {some}", count(number, "message")))
            .seen("messages", number)
            .seen("subjects", strange.into_iter().take(10).collect::<Vec<_>>())
            .next("a dispatcher makes dead letters of them: shoal dispatcher; then correct the submitter"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn consumer(change: Value) -> ConsumerState {
        let mut value = json!({
            "name": "q", "config": {"max_ack_pending": 10}, "delivered": {"consumer_seq": 5, "stream_seq": 5},
            "num_pending": 3, "num_waiting": 2, "num_ack_pending": 1,
        });
        value.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn is_stuck(before: Value, now: Value) -> bool {
        stuck(&Names::default(), &consumer(before), &consumer(now), Duration::from_secs(3)).is_some()
    }

    #[test]
    fn only_a_queue_that_could_hand_out_and_does_not_is_stuck() {
        assert!(is_stuck(json!({}), json!({})));
        for hindered in [
            json!({"num_pending": 0}),
            json!({"num_waiting": 0}),
            json!({"paused": true}),
            json!({"num_ack_pending": 10}),
            json!({"delivered": {"consumer_seq": 6, "stream_seq": 6}}),
        ] {
            assert!(!is_stuck(json!({}), hindered.clone()), "{hindered}");
            assert!(!is_stuck(hindered.clone(), json!({})), "{hindered}");
        }
    }

    #[test]
    fn a_consumer_as_workers_make_it_is_no_finding() {
        let (names, queue) = (Names::default(), "q".parse::<QueueName>().unwrap());
        let spec = names.queue_consumer(&queue, Duration::from_secs(15), None);
        let state = |config: Value| consumer(json!({"config": config}));
        let config = serde_json::to_value(&spec).unwrap();
        assert_eq!(drifted(&names, &queue, &state(config.clone()), None), None);
        for (setting, value) in [
            ("max_deliver", json!(5)),
            ("max_waiting", json!(512)),
            ("filter_subject", json!("shoal.tasks.q.a")),
            ("max_ack_pending", json!(7)),
            ("priority_groups", json!(["a"])),
        ] {
            let mut config = config.clone();
            config[setting] = value;
            let finding = drifted(&names, &queue, &state(config), None).expect(setting);
            assert!(finding.evidence.contains_key(setting), "{finding:?}");
        }
    }
}
