//! A task waits for a worker that can run it; who cannot does not hold it, and says why it waits.

use schemas::record::Waiting;
use schemas::{Code, Outcome, State};
use serde_json::json;

use crate::support::{Client, Fleet, With, noop, shell};

/// Why it waits, once the record says so.
async fn waiting(fleet: &Client, key: &str) -> Waiting {
    let record = fleet.record_where(key, "waits for a worker", |record| record.waiting.is_some()).await;
    assert_eq!(record.state, State::Retrying);
    record.waiting.expect("just looked at")
}

#[tokio::test]
async fn a_task_waits_for_a_worker_that_runs_its_kind() {
    let fleet = Fleet::start().await;
    let _calls = fleet.worker("calls").runtimes("call").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.script("")).await;
    let waiting = waiting(&fleet, "default.a").await;
    assert_eq!(waiting.code, Code::NoWorker);
    assert!(waiting.message.contains("no worker of the queue `default` runs `process`"), "{waiting:?}");
    // What it can run passes by.
    assert_eq!(fleet.run("default.b", &noop()).await.state, State::Succeeded);

    let _processes = fleet.worker("processes").start().await;
    let record = fleet.ended("default.a").await;
    assert_eq!(record.state, State::Succeeded);
    assert!(record.waiting.is_none(), "{record:?}");
    let attempts: Vec<_> = record.attempts.iter().map(|a| (a.number.map(|n| n.get()), a.outcome)).collect();
    assert_eq!(attempts, [(Some(1), Outcome::Exited)], "waiting spends nothing");
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_task_that_may_start_once_waits_without_being_lost() {
    let fleet = Fleet::start().await;
    let _calls = fleet.worker("calls").runtimes("call").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.script("").with("on_lost", "fail")).await;
    waiting(&fleet, "default.a").await;
    let _processes = fleet.worker("processes").start().await;
    assert_eq!(fleet.ended("default.a").await.state, State::Succeeded);
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_worker_that_cannot_leaves_the_task_to_one_that_can() {
    let fleet = Fleet::start().await;
    let _processes = fleet.worker("processes").slots(4).start().await;
    let _calls = fleet.worker("calls").runtimes("call").slots(64).start().await;
    for task in 0..20 {
        fleet.publish(&format!("default.t{task}"), &shell("true")).await;
    }
    for task in 0..20 {
        let record = fleet.ended(&format!("default.t{task}")).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
        assert_eq!(record.attempts[0].worker.as_ref().map(|id| id.as_str()), Some("processes"));
    }
}

#[tokio::test]
async fn a_waiting_task_is_cancelled_at_once() {
    let fleet = Fleet::start().await;
    let _calls = fleet.worker("calls").runtimes("call").start().await;
    let container = json!({"workload": {"kind": "container", "image": "alpine:3"}});
    fleet.publish("default.a", &container).await;
    waiting(&fleet, "default.a").await;
    assert_eq!(fleet.shoal(&["cancel", "default.a"]).await.code, 0);
    assert_eq!(fleet.ended("default.a").await.state, State::Cancelled);
    fleet.message_gone("default.a").await;
}

#[tokio::test]
async fn without_a_word_a_worker_runs_no_processes() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").without("SHOAL_RUNTIMES").start().await;
    fleet.publish("default.a", &shell("true")).await;
    assert_eq!(waiting(&fleet, "default.a").await.code, Code::NoWorker);
}
