//! Tasks, records and attempts that lack each other.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt;
use schemas::State;
use serde_json::{Value, json};

use super::{codes, examine, find, found, message};
use crate::support::{Fleet, With, eventually, noop, shell};

/// Deletes the message of a task.
async fn delete_message(fleet: &Fleet, key: &str) {
    let sequence = fleet.message(key).await.expect("its message").sequence;
    fleet.stream("SHOAL_TASKS").await.delete_message(sequence).await.expect("deleted");
}

async fn with_severity(fleet: &Fleet, code: &str, severity: &str) -> Value {
    eventually(format!("{code} as {severity}"), async || {
        let report = examine(fleet, &[]).await;
        match find(&report, code) {
            Some(finding) if finding["severity"] == severity => Ok(finding.clone()),
            _ => Err(report.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn a_record_whose_worker_died_is_an_info_while_its_lease_runs_and_then_a_warning() {
    let fleet = Fleet::builder().ack_wait("30s").start().await;
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    fleet.in_state("default.a", State::Running).await;
    worker.kill().await;
    // On another disk, so that it does not know what its dead boot held.
    let elsewhere = fleet.folder().join("elsewhere").display().to_string();
    let again = fleet.worker("w").env("SHOAL_STATE_DIR", &elsewhere).start().await;
    let finding = with_severity(&fleet, "task_without_attempt", "info").await;
    assert_eq!(finding["about"], "task default.a");
    assert!(
        message(&finding).contains("w has begun anew since; it is handed out again once its lease of 30s"),
        "{finding}"
    );
    // Nobody is there when the lease is over.
    drop(again);
    let finding = with_severity(&fleet, "task_without_attempt", "warning").await;
    assert!(finding["next"].as_str().expect("text").contains("shoal explain default.a"), "{finding}");
}

#[tokio::test]
async fn a_record_that_names_a_worker_that_does_not_run_it_is_told() {
    let fleet = Fleet::builder().ack_wait("10m").start().await;
    let _worker = fleet.worker("w").start().await;
    // The worker is full, so that the task is for whoever pulls.
    let job = fleet.job();
    fleet.publish("default.full", &job.gated("")).await;
    fleet.in_state("default.full", State::Running).await;
    let sequence = fleet.publish("default.a", &noop()).await;
    let consumer = fleet.stream("SHOAL_TASKS").await.get_consumer::<pull::Config>("default").await.expect("there");
    let mut taken = consumer.fetch().max_messages(1).expires(Duration::from_secs(10)).messages().await.expect("a pull");
    taken.next().await.expect("one").expect("a message");
    let agent = fleet.agent("w").await.expect("readable").expect("registered");
    let record = json!({
        "id": "a", "queue": "default", "sequence": sequence, "state": "running", "submitted_at": agent.registered_at,
        "attempts": [{"number": 1, "start": "abc", "worker": "w", "instance": agent.instance, "outcome": "running"}],
    });
    let store = fleet.js.get_key_value("shoal_tasks").await.expect("the records");
    store.put("default.a", record.to_string().into()).await.expect("stored");
    let finding = found(&fleet, "task_without_attempt", "task default.a", &[]).await;
    assert!(message(&finding).contains("w lives and does not run it"), "{finding}");
    assert_eq!(finding["evidence"]["start"], "abc");
    let report = examine(&fleet, &[]).await;
    assert!(!codes(&report).contains(&("task_without_attempt", "task default.full")), "{report}");
    job.open();
}

#[tokio::test]
async fn a_task_that_its_consumer_has_given_up_is_undeliverable() {
    let fleet = Fleet::start().await;
    let config = pull::Config {
        durable_name: Some("once".into()),
        filter_subject: "shoal.tasks.once.*".into(),
        max_deliver: 1,
        ack_wait: Duration::from_secs(1),
        max_ack_pending: 100_000,
        max_waiting: 16_384,
        ..Default::default()
    };
    let consumer = fleet.stream("SHOAL_TASKS").await.create_consumer(config).await.expect("a consumer");
    fleet.publish("once.a", &noop()).await;
    let mut taken = consumer.fetch().max_messages(1).expires(Duration::from_secs(10)).messages().await.expect("a pull");
    taken.next().await.expect("one").expect("a message");
    // Nobody answers for it; and a pull wakes the consumer to give it up.
    let finding = eventually("it is given up", async || {
        let _ = consumer.fetch().max_messages(1).expires(Duration::from_millis(300)).messages().await;
        let report = examine(&fleet, &[]).await;
        find(&report, "task_undeliverable").cloned().ok_or_else(|| report.to_string())
    })
    .await;
    assert_eq!((&finding["severity"], &finding["about"]), (&json!("error"), &json!("queue once")));
    assert_eq!(finding["evidence"]["tasks"], json!(["once.a"]));
    let drifted = examine(&fleet, &[]).await;
    assert!(find(&drifted, "queue_drifted").expect("it")["evidence"].get("max_deliver").is_some(), "{drifted}");
}

#[tokio::test]
async fn an_unfinished_record_whose_message_is_gone_is_told() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.publish("default.a", &shell("exit 3").retried(4, "10m")).await;
    fleet.in_state("default.a", State::Retrying).await;
    assert!(find(&examine(&fleet, &[]).await, "task_without_message").is_none());
    delete_message(&fleet, "default.a").await;
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "task_without_message").expect("it");
    assert_eq!((&finding["about"], &finding["evidence"]["state"]), (&json!("task default.a"), &json!("retrying")));

    // A dispatcher settles it.
    let _dispatcher = fleet.dispatcher(&[]).await;
    fleet.in_state("default.a", State::Lost).await;
    assert_eq!(codes(&examine(&fleet, &[]).await), []);
}

#[tokio::test]
async fn an_attempt_whose_message_or_record_is_gone_is_told() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(3).start().await;
    let (one, two, three) = (fleet.job(), fleet.job(), fleet.job());
    for (key, job) in [("default.m", &one), ("default.r", &two), ("default.fine", &three)] {
        fleet.publish(key, &job.gated("")).await;
        fleet.in_state(key, State::Running).await;
    }
    delete_message(&fleet, "default.m").await;
    let store = fleet.js.get_key_value("shoal_tasks").await.expect("the records");
    store.purge("default.r").await.expect("purged");
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "attempt_without_message").unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&finding["about"], &finding["evidence"]["worker"]), (&json!("task default.m"), &json!("w")));
    let finding = find(&report, "attempt_without_record").unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&finding["about"], &finding["severity"]), (&json!("task default.r"), &json!("error")));
    assert!(!report["findings"].to_string().contains("default.fine"), "{report}");
    for job in [one, two, three] {
        job.open();
    }
}
