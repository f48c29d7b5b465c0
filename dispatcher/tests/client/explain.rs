//! Each reason, read from real stores; workers are entries of the registry written by hand.

use std::time::Duration;

use async_nats::HeaderMap;
use schemas::explain::{Explanation, ReasonCode, Standing};
use schemas::record::{Cancel, Waiting};
use schemas::transcript::JobPhase;
use schemas::{AgentId, AgentStatus, Code, State, TaskError, Timestamp};
use serde_json::{Value, json};
use shoal_dispatcher::client::{Client, Submission};

use crate::support::{Hand, fleet, key, queue, task};

/// Writes a worker of the queue `default` into the registry.
async fn worker(client: &Client, id: &str, status: AgentStatus, rest: Value) {
    let now = Timestamp::now();
    let mut record = json!({
        "id": id, "instance": "b1", "kind": "worker", "hostname": "h", "version": "0", "status": status,
        "queues": ["default"], "runtimes": {"call": {}}, "slots": 2, "running_count": 0,
        "registered_at": now, "last_heartbeat": now,
    });
    record.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    let subject = client.names.agent_subject(&AgentId::new(id).unwrap());
    client.js.publish(subject, HeaderMap::new(), record.to_string().into()).await.unwrap();
}

async fn explain(client: &Client, text: &str) -> Explanation {
    let explained = client.explain_any(text).await.unwrap();
    assert!(explained.reasons.iter().all(|reason| !reason.next.is_empty()), "{explained:?}");
    explained
}

fn codes(explained: &Explanation) -> Vec<ReasonCode> {
    explained.reasons.iter().map(|reason| reason.code).collect()
}

/// The words of the weightiest reason.
fn answer(explained: &Explanation) -> &str {
    &explained.reasons[0].message
}

#[tokio::test]
async fn nobody_to_run_it_is_said_by_what_is_missing() {
    let (_server, client) = fleet().await;
    client.submit(task("default.a")).await.unwrap();
    let explained = explain(&client, "a").await;
    assert_eq!((explained.status, codes(&explained)), (Standing::Queued, vec![ReasonCode::NoWorker]));
    assert!(answer(&explained).contains("no worker of the fleet is alive"), "{explained:?}");
    assert!(explained.reasons[0].next.contains("shoal worker --queues default --runtimes call"), "{explained:?}");

    worker(&client, "elsewhere", AgentStatus::Ready, json!({"queues": ["reports"]})).await;
    assert!(answer(&explain(&client, "a").await).contains("pull from `reports`"));

    let past = Timestamp::from_millis(Timestamp::now().as_millis() - 90_000);
    worker(&client, "w-1", AgentStatus::Ready, json!({"last_heartbeat": past})).await;
    let explained = explain(&client, "a").await;
    assert_eq!(codes(&explained), [ReasonCode::NoLiveWorker]);
    assert!(answer(&explained).contains("w-1 has been silent for 1m3"), "{explained:?}");

    worker(&client, "w-2", AgentStatus::Ready, json!({"runtimes": {"process": {}}})).await;
    let explained = explain(&client, "a").await;
    assert_eq!(codes(&explained), [ReasonCode::NoCapableWorker]);
    assert!(answer(&explained).contains("runs `call` workloads: w-2 runs process"), "{explained:?}");

    worker(&client, "w-3", AgentStatus::Starting, json!({"reason": "the disk is full"})).await;
    worker(&client, "w-4", AgentStatus::Draining, json!({})).await;
    let explained = explain(&client, "a").await;
    assert_eq!(codes(&explained), [ReasonCode::NoReadyWorker]);
    assert!(answer(&explained).contains("w-3 is starting (the disk is full), w-4 is draining"), "{explained:?}");
    let workers = explained.workers.unwrap();
    assert_eq!((workers.of_queue, workers.alive, workers.able, workers.hindered.len()), (4, 3, 0, 4));

    worker(&client, "w-4", AgentStatus::Ready, json!({})).await;
    assert_eq!(codes(&explain(&client, "a").await), [ReasonCode::Soon]);
}

#[tokio::test]
async fn an_engine_that_is_down_is_named() {
    let (_server, client) = fleet().await;
    let container = r#"{"workload":{"kind":"container","image":"alpine:3"}}"#;
    client.submit(Submission::new(queue("default"), Some("a".parse().unwrap()), container)).await.unwrap();
    let down = json!({"runtimes": {"call": {}, "docker": {"reason": "it does not answer"}}});
    worker(&client, "w-1", AgentStatus::Ready, down).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!(codes(&explained), [ReasonCode::RuntimeDown]);
    assert!(answer(&explained).contains("w-1 `docker` is down: it does not answer"), "{explained:?}");
    worker(&client, "w-1", AgentStatus::Ready, json!({"runtimes": {"docker": {}}})).await;
    assert_eq!(codes(&explain(&client, "default.a").await), [ReasonCode::Soon]);
}

#[tokio::test]
async fn its_place_is_counted_among_those_that_were_never_handed_out() {
    let (_server, client) = fleet().await;
    for i in 0..30 {
        client.submit(task(&format!("default.t{i}"))).await.unwrap();
        client.submit(task(&format!("other.t{i}"))).await.unwrap();
    }
    // Before anybody pulled, and so without a consumer.
    assert_eq!(explain(&client, "default.t0").await.position, Some(0));
    assert_eq!(explain(&client, "default.t29").await.position, Some(29));
    let hand = Hand(&client);
    hand.bind("default").await;
    worker(&client, "w-1", AgentStatus::Ready, json!({"running_count": 2})).await;
    let first = hand.pull("default").await;
    let second = hand.pull("default").await;
    hand.settle(&first, "").await;
    let explained = explain(&client, "default.t2").await;
    assert_eq!((explained.position, codes(&explained)), (Some(0), vec![ReasonCode::SlotsBusy]));
    assert!(answer(&explained).contains("2 of 2 on the 1 worker"), "{explained:?}");
    let explained = explain(&client, "default.t29").await;
    assert_eq!((explained.position, codes(&explained)), (Some(27), vec![ReasonCode::SlotsBusy, ReasonCode::Position]));
    assert!(explained.reasons[1].message.contains("about 27 tasks"), "{explained:?}");
    // Handed out, and nobody has written anything.
    let explained = explain(&client, "default.t1").await;
    assert_eq!((explained.position, codes(&explained)[0]), (None, ReasonCode::HandedOut));
    hand.settle(&second, "-NAK").await;
    assert_eq!(codes(&explain(&client, "default.t1").await)[0], ReasonCode::HandedOut);
}

#[tokio::test]
async fn a_pause_and_a_cap_are_named_with_their_numbers() {
    let (_server, client) = fleet().await;
    worker(&client, "w-1", AgentStatus::Ready, json!({})).await;
    let hand = Hand(&client);
    hand.bind("default").await;
    for i in 0..3 {
        client.submit(task(&format!("default.t{i}"))).await.unwrap();
    }
    client.set_queue(&queue("default"), |settings| settings.cap = Some(1)).await.unwrap();
    let _first = hand.pull("default").await;
    let explained = explain(&client, "default.t2").await;
    assert_eq!(codes(&explained), [ReasonCode::Capped, ReasonCode::Position]);
    assert!(answer(&explained).contains("1 of 1 tasks are out"), "{explained:?}");
    assert!(answer(&explained).contains("keeps its place"), "{explained:?}");
    let until = Timestamp::now().plus(Duration::from_secs(3_600));
    client.pause_queue(&queue("default"), Some(until)).await.unwrap();
    let explained = explain(&client, "default.t1").await;
    assert_eq!(codes(&explained), [ReasonCode::Paused, ReasonCode::Capped]);
    assert!(answer(&explained).contains(&until.to_string()), "{explained:?}");
    // What was handed out has its place.
    assert!(!codes(&explain(&client, "default.t0").await).contains(&ReasonCode::Capped));
}

#[tokio::test]
async fn a_running_task_names_its_worker_and_a_silent_one_is_found_out() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("default").await;
    let sequence = client.submit(task("default.a")).await.unwrap().sequence;
    let _delivery = hand.pull("default").await;
    let mut record = hand.record(&key("default.a"), sequence, State::Running);
    let written = hand.write(&record, 0).await;
    worker(&client, "w-1", AgentStatus::Ready, json!({})).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!((explained.status, codes(&explained)), (Standing::Running, vec![ReasonCode::Running]));
    assert!(answer(&explained).starts_with("attempt 1 of 1 runs on w-1 for"), "{explained:?}");
    assert_eq!(explained.worker, Some(AgentId::new("w-1").unwrap()));

    record.cancel = Some(Cancel::new(Timestamp::now(), Some("enough".into())));
    hand.write(&record, written.revision).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!(codes(&explained), [ReasonCode::Cancelling]);
    assert!(answer(&explained).contains("(enough)"), "{explained:?}");

    worker(&client, "w-1", AgentStatus::Ready, json!({"instance": "b2", "running_count": 2})).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!(codes(&explained)[..2], [ReasonCode::WorkerSilent, ReasonCode::SlotsBusy]);
    assert!(answer(&explained).contains("started anew"), "{explained:?}");
    worker(&client, "w-1", AgentStatus::Offline, json!({})).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!(codes(&explained), [ReasonCode::WorkerSilent, ReasonCode::NoLiveWorker]);

    client.js.delete(&client.names.tasks_stream(), sequence).await.unwrap();
    assert_eq!(codes(&explain(&client, "default.a").await), [ReasonCode::MessageLost]);
}

#[tokio::test]
async fn a_retry_tells_when_and_what_the_last_failure_was() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("default").await;
    worker(&client, "w-1", AgentStatus::Ready, json!({})).await;
    let retried = r#"{"workload":{"kind":"call","handler":"noop"},"retry":{"max_attempts":5}}"#;
    let retried = Submission::checked(queue("default"), Some("a".parse().unwrap()), retried).unwrap();
    let sequence = client.submit(retried.clone()).await.unwrap().sequence;
    let _delivery = hand.pull("default").await;
    let mut record = hand.record(&key("default.a"), sequence, State::Retrying);
    record.keep_task(&retried.payload);
    record.attempts[0].error = Some(TaskError::new(Code::HandlerFailed, "no such order"));
    let written = hand.write(&record, 0).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!((explained.status, codes(&explained)), (Standing::Retrying, vec![ReasonCode::RetryAt]));
    assert!(answer(&explained).starts_with("attempt 2 of 5 is due at "), "{explained:?}");
    assert!(answer(&explained).contains("on w-1 with `handler_failed`: no such order"), "{explained:?}");

    record.retry_at = Some(Timestamp::from_millis(Timestamp::now().as_millis() - 5_000));
    let written = hand.write(&record, written.revision).await;
    worker(&client, "w-1", AgentStatus::Ready, json!({"running_count": 2})).await;
    assert_eq!(codes(&explain(&client, "default.a").await), [ReasonCode::SlotsBusy, ReasonCode::Due]);

    // Put off by one that cannot run it.
    record.waiting = Some(Waiting {
        code: Code::NoWorker,
        message: "no worker of the queue `default` runs `call` workloads now".into(),
        worker: AgentId::new("w-1").unwrap(),
        since: Timestamp::now(),
        more: Default::default(),
    });
    hand.write(&record, written.revision).await;
    worker(&client, "w-1", AgentStatus::Ready, json!({"runtimes": {"process": {}}})).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!(codes(&explained), [ReasonCode::NoCapableWorker, ReasonCode::PutOff]);
}

#[tokio::test]
async fn what_is_over_tells_its_end_and_what_to_do() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.run("default.good", State::Succeeded).await;
    let explained = explain(&client, "good").await;
    assert_eq!((explained.status, codes(&explained)), (Standing::Succeeded, vec![ReasonCode::Finished]));
    assert!(answer(&explained).starts_with("it ended as `succeeded` 0s ago after 1 attempt on w-1"), "{explained:?}");

    let bad = hand.run("default.bad", State::Failed).await;
    let mut record = bad.record.clone();
    record.error = Some(TaskError::new(Code::OutOfMemory, "used more than 256Mi"));
    hand.write(&record, bad.revision).await;
    let explained = explain(&client, "bad").await;
    assert!(answer(&explained).contains("with `out_of_memory`: used more than 256Mi"), "{explained:?}");
    assert!(explained.reasons[0].next.contains("limits.memory"), "{explained:?}");
    assert!(explained.reasons[0].next.contains("shoal retry default.bad"), "{explained:?}");
}

#[tokio::test]
async fn what_is_not_known_is_explained_too() {
    let (_server, client) = fleet().await;
    for text in ["nobody", "default.nobody"] {
        let explained = explain(&client, text).await;
        assert_eq!((explained.status, codes(&explained)), (Standing::Unknown, vec![ReasonCode::Unknown]));
        assert!(answer(&explained).contains("never accepted"), "{explained:?}");
    }
    Hand(&client).bury(client.names.dead_subject(&key("default.gone")), "timed_out", 7).await;
    for text in ["gone", "default.gone"] {
        let explained = explain(&client, text).await;
        assert!(answer(&explained).contains("`timed_out`"), "{explained:?}");
        assert!(explained.reasons[0].next.contains("shoal dead replay 1"), "{explained:?}");
    }
    assert!(client.explain_any("not an id").await.is_err());
}

#[tokio::test]
async fn a_deadline_and_a_message_that_is_no_task_are_named_before_they_end_it() {
    let (_server, client) = fleet().await;
    worker(&client, "w-1", AgentStatus::Ready, json!({})).await;
    let submit = async |id: &str, body: String| {
        client.submit(Submission::new(queue("default"), Some(id.parse().unwrap()), body)).await.unwrap();
    };
    let expiring = |at: i64| {
        let at = Timestamp::from_millis(Timestamp::now().as_millis() + at);
        json!({"workload": {"kind": "call", "handler": "noop"}, "expires_at": at}).to_string()
    };
    submit("a", expiring(600_000)).await;
    assert_eq!(codes(&explain(&client, "default.a").await), [ReasonCode::Soon, ReasonCode::Expires]);
    submit("b", expiring(-1_000)).await;
    assert_eq!(codes(&explain(&client, "default.b").await)[0], ReasonCode::Expired);
    submit("c", "{".into()).await;
    assert_eq!(codes(&explain(&client, "default.c").await)[0], ReasonCode::InvalidTask);
}

#[tokio::test]
async fn of_a_long_transcript_the_beginning_and_the_end_are_read_and_they_say_how_far_the_job_is() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("default").await;
    let job = json!({"workload": {"kind": "agent", "repository": "/r", "title": "a"}}).to_string();
    let submission = Submission::checked(queue("default"), Some("a".parse().unwrap()), job.clone()).unwrap();
    let sequence = client.submit(submission).await.unwrap().sequence;
    let _delivery = hand.pull("default").await;
    let mut record = hand.record(&key("default.a"), sequence, State::Running);
    record.keep_task(job.as_bytes());
    hand.write(&record, 0).await;
    worker(&client, "w-1", AgentStatus::Ready, json!({"runtimes": {"agent": {}, "process": {}}})).await;
    let (subject, start) = (client.names.talk_out_subject("a"), record.attempts[0].start.clone().unwrap());
    let mut number = 0;
    let mut tell = async |start: &str, event: Value| {
        number += 1;
        let (at, queue) = (Timestamp::now(), "default");
        let entry = json!({"number": number, "at": at, "queue": queue, "start": start, "event": event});
        client.js.publish(subject.clone(), HeaderMap::new(), entry.to_string().into()).await.unwrap();
        at
    };
    // An earlier start's are another's.
    tell("m4w8y1bcdefg", json!({"kind": "question", "id": "q0", "text": "An old one?"})).await;
    assert_eq!(explain(&client, "default.a").await.agent, None);
    let began = tell(start.as_str(), json!({"kind": "phase_began", "phase": "implement"})).await;
    tell(start.as_str(), json!({"kind": "turn", "number": 1, "model": "m"})).await;
    let facts = explain(&client, "default.a").await.agent.unwrap();
    assert_eq!((facts.phase, facts.since, facts.turns), (Some(JobPhase::Implement), Some(began), 1));

    for turn in 2..=500 {
        tell(start.as_str(), json!({"kind": "turn", "number": turn, "model": "m"})).await;
        tell(start.as_str(), json!({"kind": "text", "text": "on and on"})).await;
    }
    tell(start.as_str(), json!({"kind": "question", "id": "q1", "text": "Which?"})).await;
    let explained = explain(&client, "default.a").await;
    assert_eq!(codes(&explained), [ReasonCode::Asking, ReasonCode::Running]);
    let facts = explained.agent.unwrap();
    assert_eq!((facts.phase, facts.turns), (Some(JobPhase::Implement), 500));
    assert_eq!(facts.since, None, "what was left out may have begun it anew");
    assert_eq!(facts.questions.iter().map(|question| question.id.as_str()).collect::<Vec<_>>(), ["q1"]);

    let began = tell(start.as_str(), json!({"kind": "phase_began", "phase": "test"})).await;
    let facts = explain(&client, "default.a").await.agent.unwrap();
    assert_eq!((facts.phase, facts.since, facts.questions), (Some(JobPhase::Test), Some(began), vec![]));
}
