//! Retries: attempts, backoff, codes that end at once, and a server that restarts in between (T11, item 14).

use std::time::Duration;

use schemas::{Code, State};
use serde_json::json;

use crate::support::{Fleet, Ledger, With, noop, shell};

#[tokio::test]
async fn a_failing_task_is_tried_again_and_knows_its_attempt() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let task = job.script("[ $SHOAL_TASK_ATTEMPT = 3 ]").retried(5, "200ms");
    let record = fleet.run("default.a", &task).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(job.attempts(), [1, 2, 3]);
    let numbers: Vec<_> = record.attempts.iter().map(|attempt| attempt.number.map(u32::from)).collect();
    assert_eq!(numbers, [Some(1), Some(2), Some(3)]);
    assert_eq!(record.attempts[0].error.as_ref().expect("why").code, Code::ExitedNonZero);
    assert!(record.error.is_none(), "a success has no error: {record:?}");
    for pair in record.attempts.windows(2) {
        let pause = pair[1].phases.started.expect("started").since(pair[0].phases.ended.expect("ended"));
        assert!(pause >= Duration::from_millis(190), "a retry after {pause:?} of 200 ms");
    }
    assert!(fleet.dead("default.a").await.is_empty());
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", record.sequence), State::Succeeded);
}

#[tokio::test]
async fn the_last_failure_is_a_dead_letter() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let task = job.script("exit 4").retried(3, "100ms");
    let record = fleet.run("default.a", &task).await;
    assert_eq!((record.state, record.spent(), job.starts()), (State::Failed, 3, 3), "{record:?}");
    fleet.message_gone("default.a").await;
    let letters = fleet.dead("default.a").await;
    assert_eq!(letters.len(), 1);
    let header = |name| letters[0].headers.get(name).expect("the header is there").as_str().to_owned();
    assert_eq!(header("Shoal-Reason"), "exited_non_zero");
    assert_eq!(header("Shoal-Attempts"), "3");
    assert_eq!(header("Shoal-Sequence"), record.sequence.to_string());
    fleet.message_gone("default.a").await;
}

#[tokio::test]
async fn what_a_policy_excludes_is_not_tried_again() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    let policy = json!({
        "max_attempts": 5, "backoff": {"initial": "50ms"},
        "never_on_codes": ["timed_out"], "never_on_exit_codes": [2]
    });
    for (key, task, attempts) in [
        ("default.exit-2", shell("exit 2"), 1),
        ("default.slow", shell("sleep 600").with("timeout", "500ms"), 1),
        // Never retryable, whatever the policy.
        ("default.missing", crate::support::process(&["/no/such/program"]), 1),
        ("default.exit-1", shell("exit 1"), 5),
    ] {
        let record = fleet.run(key, &task.with("retry", policy.clone())).await;
        assert_eq!((record.state, record.spent()), (State::Failed, attempts), "{key}: {record:?}");
    }
}

#[tokio::test]
async fn a_waiting_retry_keeps_its_id_locked_and_its_slot_free() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.publish("default.a", &shell("exit 1").retried(2, "10m")).await;
    let record = fleet.in_state("default.a", State::Retrying).await;
    let due = record.retry_at.expect("when it is due").since(record.attempts[0].phases.ended.expect("ended"));
    assert!((595..605).contains(&due.as_secs()), "{due:?}");
    assert_eq!(fleet.try_publish("default.a", &noop()).await, Err(10077));
    assert_eq!(fleet.run("default.b", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn retries_over_a_server_restart_come_neither_early_nor_twice() {
    let mut fleet = Fleet::start().await;
    let _one = fleet.worker("one").slots(4).start().await;
    let _two = fleet.worker("two").slots(4).start().await;
    let jobs: Vec<_> = (0..6).map(|_| fleet.job()).collect();
    for (n, job) in jobs.iter().enumerate() {
        let task = job.script("[ $SHOAL_TASK_ATTEMPT = 2 ]").retried(3, "8s");
        fleet.publish(&format!("default.t-{n}"), &task).await;
    }
    let mut due = Vec::new();
    for n in 0..jobs.len() {
        let record = fleet.in_state(&format!("default.t-{n}"), State::Retrying).await;
        due.push(record.retry_at.expect("when it is due"));
    }
    fleet.nats().kill();
    fleet.nats().restart().await;
    for (n, (job, due)) in jobs.iter().zip(due).enumerate() {
        let record = fleet.ended(&format!("default.t-{n}")).await;
        assert_eq!((record.state, record.spent()), (State::Succeeded, 2), "{record:?}");
        let started = record.attempts.last().expect("an attempt").phases.started.expect("started");
        assert!(started >= due, "due {due}, started {started}: {record:?}");
        assert_eq!(job.attempts(), [1, 2]);
    }
}

#[tokio::test]
async fn the_queues_defaults_hold_where_a_task_says_nothing() {
    let fleet = Fleet::start().await;
    let store = fleet.js.get_key_value("shoal_queues").await.expect("the bucket of queues");
    let settings = json!({"defaults": {"timeout": "500ms", "retry": {"max_attempts": 2, "backoff":
        {"initial": "50ms", "factor": 1.0, "max": "50ms", "jitter": "none"}}}});
    store.put("strict", settings.to_string().into()).await.expect("stored");
    let _worker = fleet.worker("w").queues("strict").start().await;
    let record = fleet.run("strict.a", &shell("sleep 600").with("stop_grace", "1s")).await;
    assert_eq!(record.spent(), 2, "{record:?}");
    assert_eq!(record.error.expect("an error").code, Code::TimedOut);
    let record = fleet.run("strict.b", &shell("sleep 1").with("timeout", "30s")).await;
    assert_eq!(record.state, State::Succeeded, "the task's own word wins: {record:?}");
}
