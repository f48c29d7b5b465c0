//! `shoal explain`, from outside: why a task waits, or what it does, and what to try (T25).

use std::time::Duration;

use schemas::{AgentStatus, State};
use serde_json::{Value, json};

use crate::support::{Fleet, With, eventually, noop, shell};

/// What is said of a task.
async fn explain(fleet: &Fleet, key: &str) -> Value {
    let explained = fleet.shoal(&["explain", key, "-o", "json"]).await.json();
    for reason in explained["reasons"].as_array().expect("reasons") {
        assert!(reason["next"].as_str().is_some_and(|next| !next.is_empty()), "{explained}");
    }
    explained
}

/// Codes of the reasons, the weightiest first.
fn codes(explained: &Value) -> Vec<&str> {
    let reasons = explained["reasons"].as_array().expect("reasons").iter();
    reasons.map(|reason| reason["code"].as_str().expect("a code")).collect()
}

/// The same once the first is `code`.
async fn explained_by(fleet: &Fleet, key: &str, code: &str) -> Value {
    eventually(format!("{key} is explained by {code}"), async || {
        let explained = explain(fleet, key).await;
        if codes(&explained).first() == Some(&code) { Ok(explained) } else { Err(explained.to_string()) }
    })
    .await
}

fn answer(explained: &Value) -> &str {
    explained["reasons"][0]["message"].as_str().expect("a message")
}

#[tokio::test]
async fn that_nobody_can_run_it_is_said_at_once_and_without_a_dispatcher() {
    let fleet = Fleet::start().await;
    fleet.publish("default.a", &shell("true")).await;
    let output = fleet.shoal(&["explain", "a"]).await.ok();
    let first = output.stdout.lines().next().expect("an answer");
    assert!(first.starts_with("default.a is queued: no worker pulls from the queue `default`"), "{first}");
    assert!(output.stdout.contains("  try: start one: shoal worker --queues default --runtimes process"), "{output:?}");

    let calls = fleet.worker("calls").runtimes("call").start().await;
    let explained = explained_by(&fleet, "default.a", "no_capable_worker").await;
    assert!(answer(&explained).contains("runs `process` workloads: calls runs call"), "{explained}");
    // The worker has put it off by now, or will: its words come behind.
    let put_off = eventually("the worker's own words", async || {
        let explained = explain(&fleet, "default.a").await;
        if codes(&explained).contains(&"put_off") { Ok(explained) } else { Err(explained.to_string()) }
    })
    .await;
    assert_eq!(codes(&put_off)[0], "no_capable_worker");
    assert_eq!((put_off["status"].as_str(), put_off["worker"].as_str()), (Some("retrying"), Some("calls")));

    calls.terminate();
    fleet.agent_is("calls", AgentStatus::Offline).await;
    let explained = explained_by(&fleet, "default.a", "no_live_worker").await;
    assert!(answer(&explained).contains("calls is offline since"), "{explained}");
    let _worker = fleet.worker("w").start().await;
    fleet.ended("default.a").await;
    assert_eq!(codes(&explain(&fleet, "default.a").await), ["finished"]);
}

#[tokio::test]
async fn a_task_behind_busy_slots_knows_its_place() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").env("SHOAL_HEARTBEAT", "500ms").start().await;
    let job = fleet.job();
    fleet.publish("default.first", &job.gated("")).await;
    fleet.in_state("default.first", State::Running).await;
    for n in 0..20 {
        fleet.publish(&format!("default.t{n}"), &noop()).await;
    }
    let explained = explained_by(&fleet, "default.t19", "slots_busy").await;
    assert_eq!(codes(&explained), ["slots_busy", "position"]);
    assert_eq!(explained["position"], 19);
    assert!(explained["reasons"][1]["message"].as_str().expect("text").contains("about 19 tasks"), "{explained}");
    let explained = eventually("the slot in the registry", async || {
        let explained = explain(&fleet, "default.t0").await;
        if explained["workers"]["running"] == 1 { Ok(explained) } else { Err(explained.to_string()) }
    })
    .await;
    assert_eq!((codes(&explained), &explained["position"]), (vec!["slots_busy"], &json!(0)));
    assert!(answer(&explained).contains("1 of 1 on the 1 worker"), "{explained}");

    let explained = explain(&fleet, "default.first").await;
    assert_eq!((codes(&explained), explained["worker"].as_str()), (vec!["running"], Some("w")));
    assert!(answer(&explained).starts_with("attempt 1 of 1 runs on w for"), "{explained}");
    job.open();
    fleet.ended("default.t19").await;
}

#[tokio::test]
async fn a_paused_and_a_capped_queue_say_so() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    let job = fleet.job();
    fleet.shoal(&["queues", "set", "default", "--cap", "1"]).await.ok();
    fleet.publish("default.first", &job.gated("")).await;
    fleet.in_state("default.first", State::Running).await;
    fleet.publish("default.a", &noop()).await;
    let explained = explained_by(&fleet, "default.a", "capped").await;
    assert_eq!(codes(&explained), ["capped"]);
    assert!(answer(&explained).contains("1 of 1 tasks are out"), "{explained}");
    assert_eq!(explained["waits_in"]["cap"], 1);

    fleet.shoal(&["queues", "pause", "default", "--for", "1h"]).await.ok();
    let explained = explain(&fleet, "default.a").await;
    assert_eq!(codes(&explained), ["paused", "capped"]);
    assert!(explained["reasons"][0]["next"].as_str().expect("text").contains("shoal queues resume default"));
    fleet.shoal(&["queues", "resume", "default"]).await.ok();
    job.open();
    fleet.ended("default.a").await;
}

#[tokio::test]
async fn a_retry_says_when_and_why() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.publish("default.a", &shell("exit 3").retried(4, "10m")).await;
    fleet.in_state("default.a", State::Retrying).await;
    let explained = explain(&fleet, "default.a").await;
    assert_eq!(codes(&explained), ["retry_at"]);
    assert!(answer(&explained).starts_with("attempt 2 of 4 is due at "), "{explained}");
    assert!(answer(&explained).contains("failed on w with `exited_non_zero`"), "{explained}");
    let record = fleet.record("default.a").await.expect("there");
    assert_eq!(explained["retry_at"], json!(record.retry_at));
}

#[tokio::test]
async fn a_worker_that_died_and_came_back_is_found_out() {
    let fleet = Fleet::builder().ack_wait("30s").start().await;
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    fleet.in_state("default.a", State::Running).await;
    worker.kill().await;
    // On another disk, so that it does not know what its dead boot held.
    let elsewhere = fleet.folder().join("elsewhere").display().to_string();
    let _again = fleet.worker("w").env("SHOAL_STATE_DIR", &elsewhere).start().await;
    let explained = explained_by(&fleet, "default.a", "worker_silent").await;
    assert!(answer(&explained).contains("started anew"), "{explained}");
    assert!(answer(&explained).contains("lease of 30s"), "{explained}");
}

#[tokio::test]
async fn what_is_over_and_what_never_was_are_told_apart() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.run("default.good", &noop()).await;
    fleet.run("default.bad", &shell("exit 7")).await;
    let output = fleet.shoal(&["explain", "default.good"]).await.ok();
    assert!(output.stdout.starts_with("default.good is succeeded: it ended as `succeeded`"), "{output:?}");
    let explained = explain(&fleet, "bad").await;
    assert_eq!((codes(&explained), explained["status"].as_str()), (vec!["finished"], Some("failed")));
    assert!(explained["reasons"][0]["next"].as_str().expect("text").contains("shoal logs default.bad"), "{explained}");
    for name in ["nobody", "default.nobody"] {
        let output = fleet.shoal(&["explain", name]).await.exit(1);
        assert!(output.stdout.contains(&format!("nothing is known of `{name}`")), "{output:?}");
        assert!(output.stdout.contains("  try: "), "{output:?}");
    }
    assert_eq!(fleet.shoal(&["explain", "no id"]).await.code, 2);
}

#[tokio::test]
async fn a_task_that_will_expire_says_when() {
    let fleet = Fleet::start().await;
    let at = schemas::Timestamp::now().plus(Duration::from_secs(600));
    fleet.publish("default.a", &noop().with("expires_at", at.to_string())).await;
    let explained = explain(&fleet, "default.a").await;
    assert_eq!(codes(&explained), ["no_worker", "expires"]);
    assert_eq!(explained["expires_at"], at.to_string());
}

#[tokio::test]
async fn a_call_of_a_function_that_is_not_defined_or_cannot_be_had_is_explained() {
    let fleet = Fleet::start().await;
    let call = json!({"workload": {"kind": "invoke", "function": "f"}});
    fleet.publish("default.a", &call).await;
    let explained = explained_by(&fleet, "default.a", "no_function").await;
    assert!(answer(&explained).contains("`f`, which is not defined"), "{explained}");
    assert!(codes(&explained).contains(&"no_worker"), "{explained}");

    fleet.shoal(&["function", "apply", "f", "--image", "a:1", "--pool", "gpu"]).await.ok();
    let explained = explain(&fleet, "default.a").await;
    assert_eq!(codes(&explained)[0], "no_worker");
    let reasons = explained["reasons"].as_array().expect("reasons");
    let cold = reasons.iter().find(|reason| reason["code"] == "no_instance").expect("a reason");
    assert!(cold["message"].as_str().expect("text").contains("pool `gpu` runs containers"), "{cold}");
}
