//! Cancelling: queued, running, retrying, just finishing; confirmed by one terminal record, nothing left.

use std::time::{Duration, Instant};

use schemas::{Code, Outcome, State};
use serde_json::{Value, json};

use crate::support::{Fleet, Ledger, With, noop, shell};

#[tokio::test]
async fn a_cancelled_task_that_no_worker_has_seen_never_starts() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("")).await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    let record = fleet.record("default.a").await.expect("cancel exits when it is confirmed");
    assert_eq!((record.state, record.sequence), (State::Cancelled, sequence));
    assert_eq!(record.error.as_ref().map(|e| e.code), Some(Code::Cancelled), "{record:?}");
    fleet.message_gone("default.a").await;

    let _worker = fleet.worker("w").start().await;
    assert_eq!(fleet.run("default.later", &noop()).await.state, State::Succeeded);
    assert_eq!(job.starts(), 0);
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Cancelled);
    assert!(fleet.dead("default.a").await.is_empty());
    // The id is free again.
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_cancelled_task_behind_a_busy_worker_never_starts() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let (busy, job) = (fleet.job(), fleet.job());
    fleet.publish("default.busy", &busy.gated("")).await;
    busy.started(1).await;
    let sequence = fleet.publish("default.a", &job.script("")).await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Cancelled);
    busy.open();
    fleet.run("default.later", &noop()).await;
    assert_eq!(job.starts(), 0);
    fleet.message_gone("default.a").await;
    assert_eq!(fleet.ended("default.busy").await.state, State::Succeeded);
}

#[tokio::test]
async fn cancelling_a_running_task_kills_even_children_that_ignore_the_signal() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let script = "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM INT HUP; while :; do sleep 1; done' & \
                  touch $D/ready; while :; do sleep 1; done";
    let sequence = fleet.publish("default.a", &job.script(script).with("stop_grace", "1s")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    let asked = Instant::now();
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    let record = fleet.record("default.a").await.expect("there");
    assert_eq!(record.state, State::Cancelled, "{record:?}");
    assert_eq!(record.attempts.last().expect("an attempt").outcome, Outcome::Cancelled);
    assert!(record.cancel.is_some(), "the wish is in the record: {record:?}");
    // Grace and five seconds, and some for a busy machine.
    assert!(asked.elapsed() < Duration::from_secs(12), "{:?}", asked.elapsed());
    job.gone().await;
    fleet.message_gone("default.a").await;
    assert_eq!(fleet.run("default.b", &noop()).await.state, State::Succeeded);
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Cancelled);
    assert!(fleet.dead("default.a").await.is_empty());
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_cancelled_task_gets_the_signal_first_and_its_grace() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let script = "trap 'echo asked > $D/asked; exit 0' TERM; touch $D/ready; while :; do sleep 0.1; done";
    fleet.publish("default.a", &job.script(script)).await;
    fleet.in_state("default.a", State::Running).await;
    crate::support::eventually("the trap is set", async || {
        if job.folder().join("ready").exists() { Ok(()) } else { Err("no".into()) }
    })
    .await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    assert_eq!(fleet.ended("default.a").await.state, State::Cancelled);
    assert_eq!(job.lines("asked"), ["asked"]);
}

#[tokio::test]
async fn cancelling_between_two_attempts_ends_the_task_and_frees_its_id() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("exit 1").retried(3, "10m")).await;
    fleet.in_state("default.a", State::Retrying).await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    assert_eq!(fleet.record("default.a").await.expect("there").state, State::Cancelled);
    fleet.message_gone("default.a").await;
    assert_eq!(job.starts(), 1);
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Cancelled);
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
    let consumer = fleet.consumer("default").await;
    assert_eq!(consumer.num_ack_pending, 0, "nothing is left waiting");
}

#[tokio::test]
async fn cancelling_a_task_that_just_ends_leaves_one_end() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = fleet.worker("w").slots(12).start().await;
    let mut runs = Vec::new();
    for n in 0..12 {
        let (key, job) = (format!("default.c-{n}"), fleet.job());
        // Each ends a little later than the one before, so that the cancels fall before, into and after the ends.
        let task = job.script(&format!("sleep 0.{n:02}")).with("stop_grace", "1s");
        let sequence = fleet.publish(&key, &task).await;
        runs.push((key, sequence, job));
    }
    let mut cancels: Vec<_> = runs.iter().map(|(key, ..)| fleet.spawn(&["cancel", key], "")).collect();
    for ((key, sequence, job), cancel) in runs.iter().zip(&mut cancels) {
        let output = cancel.wait().await;
        let record = fleet.run_ended(key, *sequence).await;
        assert!(matches!(record.state, State::Cancelled | State::Succeeded), "{record:?}");
        if record.state == State::Cancelled {
            assert_eq!(output.code, 0, "{output:?}");
        }
        fleet.message_gone(key).await;
        job.gone().await;
        assert!(job.starts() <= 1);
        assert!(fleet.dead(key).await.is_empty());
    }
    ledger.caught_up(&fleet).await;
    for (key, sequence, _) in &runs {
        ledger.one_end(key, *sequence);
    }
}

#[tokio::test]
async fn a_cancel_by_hand_is_a_flag_in_the_record_and_a_request() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("sleep 600")).await;
    let request = async |sequence: u64| {
        let body = json!({"sequence": sequence}).to_string();
        let answer = fleet.nats.request("shoal.cancel.default.a", body.into()).await.expect("the holder answers");
        serde_json::from_slice::<Value>(&answer.payload).expect("JSON")
    };
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    // Another run's number hits nothing.
    assert_eq!(request(sequence + 1).await["stopping"], false);

    let store = fleet.js.get_key_value("shoal_tasks").await.expect("the bucket");
    let entry = store.entry("default.a").await.expect("readable").expect("there");
    let mut record: Value = serde_json::from_slice(&entry.value).expect("JSON");
    assert_eq!(record["state"], "running");
    record["cancel"] = json!({"at": "2026-11-20T10:00:00.000Z", "reason": "by hand"});
    store.update("default.a", record.to_string().into(), entry.revision).await.expect("nobody else wrote");
    assert_eq!(request(sequence).await["stopping"], true);
    let record = fleet.ended("default.a").await;
    assert_eq!(record.state, State::Cancelled);
    assert_eq!(record.cancel.expect("kept").reason.as_deref(), Some("by hand"));
    job.gone().await;
    fleet.message_gone("default.a").await;
}

#[tokio::test]
async fn cancelling_a_task_whose_worker_died_is_confirmed_all_the_same() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("sleep 600").with("stop_grace", "1s")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    worker.kill().await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    assert_eq!(fleet.record("default.a").await.expect("there").state, State::Cancelled);
    let _second = fleet.worker("second").start().await;
    fleet.message_gone("default.a").await;
    assert_eq!(job.starts(), 1);
    job.gone().await;
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Cancelled);
}

#[tokio::test]
async fn cancelling_what_has_ended_or_never_was_changes_nothing() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.run("default.a", &shell("exit 0")).await;
    let (revision, _) = fleet.try_record("default.a").await.expect("readable").expect("there");
    let _ = fleet.shoal(&["cancel", "default.a"]).await;
    assert_eq!(fleet.try_record("default.a").await.expect("readable").expect("there").0, revision);
    assert_ne!(fleet.shoal(&["cancel", "default.nobody"]).await.code, 0);
    assert!(fleet.record("default.nobody").await.is_none());
}
