//! Many tasks, several workers: each ends once.

use std::collections::BTreeMap;

use schemas::{Code, Outcome, State};
use serde_json::{Value, json};

use crate::support::{Fleet, Ledger, With, echo, noop};

#[tokio::test]
async fn two_thousand_mixed_tasks_over_four_workers_end_once_and_run_once() {
    let fleet = Fleet::builder().ack_wait("15s").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut workers = Vec::new();
    for n in 0..4 {
        workers.push(fleet.worker(&format!("w-{n}")).slots(8).start().await);
    }

    // One file a kind; each start appends its own line in one write.
    let folder = fleet.folder().to_owned();
    let script = |n: usize, then: &str| {
        let starts = folder.join("starts");
        let script = format!("echo {n} >> {}; {then}", starts.display());
        json!({"workload": {"kind": "process", "command": ["sh", "-c", script]}})
    };
    let tasks: Vec<(String, Value)> = (0..2_000)
        .map(|n| {
            let task = match n % 20 {
                0 => script(n, &format!("printf {n} > $SHOAL_RESULT_FILE")),
                1 => script(n, "exit 3"),
                2 => script(n, "[ $SHOAL_TASK_ATTEMPT = 2 ]").retried(2, "200ms"),
                3..=9 => echo(n),
                _ => noop(),
            };
            (format!("default.t-{n}"), task)
        })
        .collect();
    let sequences = fleet.publish_all(&tasks).await;

    let mut started: BTreeMap<usize, usize> = BTreeMap::new();
    for (n, ((key, _), sequence)) in tasks.iter().zip(&sequences).enumerate() {
        let record = fleet.run_ended(key, *sequence).await;
        let (state, attempts, result) = match n % 20 {
            0 => (State::Succeeded, 1, Some(n.to_string())),
            1 => (State::Failed, 1, None),
            2 => (State::Succeeded, 2, None),
            3..=9 => (State::Succeeded, 1, Some(n.to_string())),
            _ => (State::Succeeded, 1, None),
        };
        assert_eq!(record.state, state, "{record:?}");
        assert_eq!(record.attempts.len(), attempts, "{record:?}");
        assert!(record.attempts.iter().all(|attempt| attempt.outcome == Outcome::Exited), "{record:?}");
        if let Some(result) = result {
            let bytes = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
            assert_eq!(bytes, result.as_bytes());
        }
        if n % 20 <= 2 {
            started.insert(n, attempts);
        }
    }
    fleet.drained().await;
    ledger.caught_up(&fleet).await;
    for ((key, _), sequence) in tasks.iter().zip(&sequences) {
        let failed = ledger.one_end(key, *sequence) == State::Failed;
        assert_eq!(fleet.dead(key).await.len(), usize::from(failed), "dead letters of {key}");
    }
    let text = std::fs::read_to_string(folder.join("starts")).expect("starts were written");
    let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
    for line in text.lines() {
        *seen.entry(line.parse().expect("a number")).or_default() += 1;
    }
    assert_eq!(seen, started, "starts of each process task");
}

#[tokio::test]
async fn every_worker_gets_its_share() {
    let fleet = Fleet::start().await;
    let job = fleet.job();
    for n in 0..8 {
        fleet.publish(&format!("default.t-{n}"), &job.gated("")).await;
    }
    let mut workers = Vec::new();
    for n in 0..4 {
        workers.push(fleet.worker(&format!("w-{n}")).slots(2).start().await);
    }
    // Eight slots in the fleet, eight tasks that wait for each other: all run at once, or none ends.
    job.started(8).await;
    job.open();
    let mut of_worker: BTreeMap<String, usize> = BTreeMap::new();
    for n in 0..8 {
        let record = fleet.ended(&format!("default.t-{n}")).await;
        assert_eq!(record.state, State::Succeeded);
        let run = record.attempts.last().expect("an attempt");
        *of_worker.entry(run.worker.as_ref().expect("a worker").to_string()).or_default() += 1;
    }
    assert_eq!(of_worker.values().copied().collect::<Vec<_>>(), [2, 2, 2, 2], "{of_worker:?}");
    assert!(fleet.record("default.t-0").await.expect("there").error.is_none());
    let failed = fleet.run("default.bad", &crate::support::shell("exit 1")).await;
    assert_eq!(failed.error.expect("an error").code, Code::ExitedNonZero);
}
