//! Workers told to stop: finish or hand back, in time, and say so.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use schemas::{AgentRecord, AgentStatus, Outcome, State};

use crate::support::{Fleet, Ledger, With, eventually, noop};

#[tokio::test]
async fn a_worker_told_to_stop_finishes_what_runs_and_takes_nothing_new() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").slots(2).drain_grace("50s").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("printf done > $SHOAL_RESULT_FILE")).await;
    job.started(1).await;
    worker.terminate();
    fleet.agent_is("w", AgentStatus::Draining).await;
    // A slot is free, but the worker is leaving.
    let waiting = fleet.job();
    fleet.publish("default.b", &waiting.script("")).await;
    job.open();
    let output = worker.wait().await;
    assert_eq!(output.code, 0, "{output:?}");
    let record = fleet.ended("default.a").await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    fleet.message_gone("default.a").await;
    assert_eq!(waiting.starts(), 0);
    assert!(fleet.message("default.b").await.is_some());
    assert_eq!(fleet.agent("w").await.expect("readable").expect("there").status, AgentStatus::Offline);
    let _next = fleet.worker("next").start().await;
    assert_eq!(fleet.ended("default.b").await.state, State::Succeeded);
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_is_handed_back_at_once() {
    // A lease so long that only a hand-back can be quick.
    let fleet = Fleet::builder().ack_wait("45s").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = fleet.worker("first").drain_grace("500ms").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("").with("stop_grace", "1s")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    let _second = fleet.worker("second").start().await;
    let asked = Instant::now();
    first.terminate();
    let output = first.wait().await;
    assert_eq!(output.code, 0, "{output:?}");
    job.started(2).await;
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded);
    let [back, run] = &record.attempts[..] else { panic!("one handed back, one run: {record:?}") };
    assert_eq!((back.outcome, back.number), (Outcome::HandedBack, None));
    assert_eq!(run.number.map(u32::from), Some(1));
    assert_eq!(job.attempts(), [1, 1]);
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Succeeded);
    job.gone().await;
}

#[tokio::test]
async fn a_task_that_ignores_the_signal_is_killed_and_handed_back() {
    let fleet = Fleet::builder().ack_wait("45s").start().await;
    let mut first = fleet.worker("first").drain_grace("300ms").start().await;
    let job = fleet.job();
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then trap '' TERM; \
                  setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & while :; do sleep 1; done; fi";
    fleet.publish("default.a", &job.script(script).with("stop_grace", "500ms")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    first.terminate();
    assert_eq!(first.wait().await.code, 0);
    job.gone().await;
    let _second = fleet.worker("second").start().await;
    assert_eq!(fleet.ended("default.a").await.state, State::Succeeded);
}

#[tokio::test]
async fn the_registry_tells_ready_draining_offline_in_that_order() {
    let fleet = Fleet::start().await;
    let store = fleet.js.get_key_value("shoal_agents").await.expect("the registry");
    let mut watch = store.watch("w").await.expect("watched");
    let mut worker = fleet.worker("w").drain_grace("50s").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    job.started(1).await;
    worker.terminate();
    fleet.agent_is("w", AgentStatus::Draining).await;
    job.open();
    assert_eq!(worker.wait().await.code, 0);
    let mut told = Vec::new();
    while told.last() != Some(&AgentStatus::Offline) {
        let entry = crate::support::in_time("a beat", watch.next()).await.expect("the watch lives").expect("an entry");
        let agent: AgentRecord = serde_json::from_slice(&entry.value).expect("an agent");
        told.push(agent.status);
        told.dedup();
    }
    // `starting` may be too short to be told.
    let told: Vec<_> = told.into_iter().filter(|status| *status != AgentStatus::Starting).collect();
    assert_eq!(told, [AgentStatus::Ready, AgentStatus::Draining, AgentStatus::Offline]);
}

#[tokio::test]
async fn a_second_signal_stops_now() {
    let fleet = Fleet::builder().ack_wait("45s").start().await;
    let mut first = fleet.worker("first").drain_grace("10m").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("").with("stop_grace", "10m")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    first.terminate();
    fleet.agent_is("first", AgentStatus::Draining).await;
    first.terminate();
    // Within the deadline of `wait`, far below the grace.
    first.wait().await;
    job.gone().await;
    let _second = fleet.worker("second").start().await;
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!((record.state, record.spent()), (State::Succeeded, 1), "{record:?}");
}

#[tokio::test]
async fn an_idle_worker_leaves_at_once() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").drain_grace("10m").start().await;
    fleet.run("default.a", &noop()).await;
    let asked = Instant::now();
    worker.terminate();
    assert_eq!(worker.wait().await.code, 0);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(fleet.agent("w").await.expect("readable").expect("there").status, AgentStatus::Offline);
}

#[tokio::test]
async fn a_drain_from_anywhere_empties_a_worker() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").drain_grace("50s").start().await;
    let _other = fleet.worker("other").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    let runs_on = fleet.in_state("default.a", State::Running).await.attempts[0].worker.clone().expect("known");
    let drained = runs_on.as_str().to_owned();
    fleet.shoal(&["agents", "drain", &drained]).await.ok();
    let agent = fleet.agent_where(&drained, "leaving", |agent| agent.status != AgentStatus::Ready).await;
    assert!(matches!(agent.status, AgentStatus::Draining | AgentStatus::Offline), "{agent:?}");
    // New work goes to the one that stays.
    let next = fleet.run("default.b", &noop()).await;
    assert_ne!(next.attempts[0].worker.as_ref().expect("known").as_str(), drained);
    job.open();
    assert_eq!(fleet.ended("default.a").await.state, State::Succeeded);
    fleet.agent_where(&drained, "empty", |agent| agent.running_count == 0 && agent.status != AgentStatus::Ready).await;
    if drained == "w" {
        eventually("it leaves by itself", async || match worker.try_wait() {
            Some(status) if status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}
