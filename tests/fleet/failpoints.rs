//! Every step of "The life of an attempt" killed once between any two of its writes: it ends right all the same.
//!
//! The first worker aborts at one point; a second finishes. Whatever the point, there is one terminal record, the right
//! dead letters, no message left, and the id is free. The rows of one kind run at once, each in a queue of its own.

use std::time::Duration;

use schemas::{Outcome, State};

use crate::support::{Fleet, Job, Ledger, Program, With, eventually, noop};

/// What becomes of the task when nothing fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Success,
    Failure,
    Retry,
    HandBack,
}

/// One point on the way to one kind of end.
struct Row {
    point: &'static str,
    /// Most starts that the task may see.
    starts: usize,
}

const fn row(point: &'static str, starts: usize) -> Row {
    Row { point, starts }
}

/// The task of a row; its second and later starts go on where the first may have died.
fn task(kind: Kind, job: &Job) -> serde_json::Value {
    match kind {
        Kind::Success => job.script("sleep 0.3; printf done > $SHOAL_RESULT_FILE"),
        Kind::Failure => job.script("sleep 0.3; exit 3"),
        Kind::Retry => job.script("sleep 0.3; [ $SHOAL_TASK_ATTEMPT = 2 ]").retried(2, "300ms"),
        Kind::HandBack => job.gated("").with("stop_grace", "1s"),
    }
}

/// Waits until a program has died at its point, by its own hand.
async fn died(what: &str, program: &mut Program) {
    let output = program.wait().await;
    let deaths = [128 + libc::SIGKILL, 128 + libc::SIGABRT];
    assert!(deaths.contains(&output.code), "{what} was not reached: {output:?}");
}

async fn check(fleet: &Fleet, ledger: &Ledger, kind: Kind, row: &Row) {
    let point = row.point;
    let queue = point.replace(['_', ':'], "-");
    let key = format!("{queue}.a");
    let job = fleet.job();
    // A fail point is killed even before `ready` where it is on the way there, so this does not wait for it.
    let mut first = fleet.worker(&format!("{queue}-1")).queues(&queue).drain_grace("200ms").fails_at(point).spawn();
    let sequence = fleet.publish(&key, &task(kind, &job)).await;
    if kind == Kind::HandBack {
        fleet.in_state(&key, State::Running).await;
        job.started(1).await;
        first.terminate();
    }
    died(&format!("{kind:?} at {point}"), &mut first).await;

    let _second = fleet.worker(&format!("{queue}-2")).queues(&queue).start().await;
    job.open();
    let record = fleet.run_ended(&key, sequence).await;
    fleet.message_gone(&key).await;
    let (state, letters) = match kind {
        Kind::Success | Kind::Retry | Kind::HandBack => (State::Succeeded, 0),
        Kind::Failure => (State::Failed, 1),
    };
    assert_eq!(record.state, state, "{kind:?} at {point}: {record:?}");
    assert_eq!(fleet.dead(&key).await.len(), letters, "{kind:?} at {point}: dead letters");
    let starts = job.starts();
    assert!((1..=row.starts).contains(&starts), "{kind:?} at {point}: {starts} starts: {record:?}");
    let spent = if kind == Kind::Retry { 2 } else { 1 };
    assert_eq!(record.spent(), spent, "{kind:?} at {point}: {record:?}");
    let unfinished = record.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Running).count();
    assert_eq!(unfinished, 0, "{kind:?} at {point}: {record:?}");
    ledger.caught_up(fleet).await;
    assert_eq!(ledger.one_end(&key, sequence), state, "{kind:?} at {point}");
    job.gone().await;
    // The id is free again, and runs.
    assert_eq!(fleet.run(&key, &noop()).await.state, State::Succeeded, "{kind:?} at {point}: the id once more");
}

async fn check_all(kind: Kind, rows: &[Row]) {
    let fleet = Fleet::builder().ack_wait("3s").start().await;
    let ledger = Ledger::watch(&fleet).await;
    futures_util::future::join_all(rows.iter().map(|row| check(&fleet, &ledger, kind, row))).await;
}

#[tokio::test]
async fn a_success_survives_a_kill_between_any_two_writes() {
    let rows = [
        row("after_pull", 1),
        row("before_claim", 1),
        row("after_claim", 1),
        row("after_start", 2),
        row("before_end_record", 2),
        row("after_end_record", 1),
        row("after_event", 1),
        row("after_settle", 1),
    ];
    check_all(Kind::Success, &rows).await;
}

#[tokio::test]
async fn a_final_failure_survives_a_kill_between_any_two_writes() {
    let rows = [
        row("after_pull", 1),
        row("after_claim", 1),
        row("after_start", 2),
        row("before_end_record", 2),
        row("after_end_record", 1),
        row("after_dead_letter", 1),
        row("after_event", 1),
        row("after_settle", 1),
    ];
    check_all(Kind::Failure, &rows).await;
}

#[tokio::test]
async fn a_retry_survives_a_kill_between_any_two_writes() {
    let rows = [
        row("after_claim", 2),
        row("after_start", 3),
        row("after_retry_record", 2),
        row("after_event", 2),
        row("after_settle", 2),
        // On the way to the second attempt's end.
        row("after_start:2", 3),
        row("after_end_record", 2),
        row("after_settle:2", 2),
    ];
    check_all(Kind::Retry, &rows).await;
}

#[tokio::test]
async fn a_hand_back_survives_a_kill_between_any_two_writes() {
    let rows = [row("after_handback_record", 2), row("after_settle", 2)];
    check_all(Kind::HandBack, &rows).await;
}

#[tokio::test]
async fn once_starts_at_most_once_at_every_point() {
    let fleet = Fleet::builder().ack_wait("3s").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let points = ["after_pull", "before_claim", "after_claim", "after_start", "before_end_record", "after_end_record"];
    let checks = points.map(async |point| {
        let queue = point.replace(['_', ':'], "-");
        let key = format!("{queue}.a");
        let job = fleet.job();
        let mut first = fleet.worker(&format!("{queue}-1")).queues(&queue).fails_at(point).spawn();
        let task = job.script("sleep 0.3").with("on_lost", "fail");
        let sequence = fleet.publish(&key, &task).await;
        died(point, &mut first).await;
        let _second = fleet.worker(&format!("{queue}-2")).queues(&queue).start().await;
        let record = fleet.run_ended(&key, sequence).await;
        assert!(matches!(record.state, State::Succeeded | State::Lost), "{point}: {record:?}");
        assert!(job.starts() <= 1, "{point}: {record:?}");
        fleet.message_gone(&key).await;
        ledger.caught_up(&fleet).await;
        ledger.one_end(&key, sequence);
        job.gone().await;
    });
    futures_util::future::join_all(checks).await;
}

/// Runs `shoal cancel`, which dies at `point`.
async fn dying_cancel(fleet: &Fleet, key: &str, point: &str) {
    died(point, &mut fleet.spawn_with(&["cancel", key], "", &[("SHOAL_FAIL_POINT", point)])).await;
}

#[tokio::test]
async fn a_canceller_that_dies_after_the_record_leaves_a_cancelled_task() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut runs = Vec::new();
    for point in ["cancel_after_record", "cancel_after_delete"] {
        let (key, job) = (format!("default.{point}"), fleet.job());
        let sequence = fleet.publish(&key, &job.script("")).await;
        dying_cancel(&fleet, &key, point).await;
        assert_eq!(fleet.record(&key).await.expect("written first").state, State::Cancelled);
        runs.push((key, sequence, job));
    }
    // The next delivery finds the record.
    let _worker = fleet.worker("w").start().await;
    for (key, sequence, job) in runs {
        fleet.message_gone(&key).await;
        ledger.caught_up(&fleet).await;
        assert_eq!(ledger.one_end(&key, sequence), State::Cancelled);
        assert_eq!(job.starts(), 0);
        assert_eq!(fleet.run(&key, &noop()).await.state, State::Succeeded);
    }
}

#[tokio::test]
async fn a_canceller_that_dies_after_the_record_of_a_retry_leaves_a_cancelled_task() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("exit 1").retried(3, "3s")).await;
    fleet.in_state("default.a", State::Retrying).await;
    dying_cancel(&fleet, "default.a", "cancel_after_record").await;
    assert_eq!(fleet.record("default.a").await.expect("written first").state, State::Cancelled);
    fleet.message_gone("default.a").await;
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Cancelled);
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_canceller_that_dies_after_the_flag_leaves_one_end() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = fleet.worker("w").slots(2).start().await;
    // One that ends by itself after the flag, one that a second canceller sees to.
    let (ends, stays) = (fleet.job(), fleet.job());
    let first = fleet.publish("default.ends", &ends.gated("")).await;
    let second = fleet.publish("default.stays", &stays.gated("").with("stop_grace", "1s")).await;
    for key in ["default.ends", "default.stays"] {
        fleet.in_state(key, State::Running).await;
        dying_cancel(&fleet, key, "cancel_after_flag").await;
        assert!(fleet.record(key).await.expect("there").cancel.is_some());
    }
    ends.open();
    let record = fleet.run_ended("default.ends", first).await;
    assert!(matches!(record.state, State::Succeeded | State::Cancelled), "{record:?}");
    fleet.shoal(&["cancel", "default.stays"]).await.ok();
    assert_eq!(fleet.run_ended("default.stays", second).await.state, State::Cancelled);
    stays.gone().await;
    for (key, sequence) in [("default.ends", first), ("default.stays", second)] {
        fleet.message_gone(key).await;
        ledger.caught_up(&fleet).await;
        ledger.one_end(key, sequence);
    }
}

#[tokio::test]
async fn a_flag_of_a_dead_canceller_stops_the_next_delivery_of_a_lost_task() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = fleet.worker("first").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("sleep 600")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    dying_cancel(&fleet, "default.a", "cancel_after_flag").await;
    first.kill().await;
    let _second = fleet.worker("second").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Cancelled, "{record:?}");
    assert_eq!(job.starts(), 1);
    fleet.message_gone("default.a").await;
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.a", sequence);
}

#[tokio::test]
async fn a_point_of_another_name_kills_nobody() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").fails_at("no_such_point").start().await;
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
    eventually("it beats on", async || {
        let agent = fleet.agent("w").await?.ok_or("none")?;
        if agent.last_heartbeat.since(agent.registered_at) > Duration::from_millis(600) {
            Ok(())
        } else {
            Err("no".into())
        }
    })
    .await;
    assert!(worker.try_wait().is_none());
}

/// Found by the model (`worker/src/attempt/model`): an end that is found by the way is not a reason to ack alone.
#[tokio::test]
async fn a_holder_that_lost_its_lease_writes_the_dead_letter_that_whoever_ended_it_owes() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let job = fleet.job();
    let frozen = fleet.worker("frozen").start().await;
    let script = "[ $(wc -l < $D/starts) -gt 1 ] && exit 3; sleep 120";
    let sequence = fleet.publish("default.a", &job.script(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    frozen.freeze();
    // The next holder records `failed` and dies before the letter.
    let mut dies = fleet.worker("dies").fails_at("after_end_record").spawn();
    died("after_end_record", &mut dies).await;
    assert_eq!(fleet.ended("default.a").await.state, State::Failed);
    assert!(fleet.dead("default.a").await.is_empty(), "not written yet");
    frozen.thaw();
    fleet.message_gone("default.a").await;
    assert_eq!(fleet.dead("default.a").await.len(), 1, "written before the ack");
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Failed);
}
