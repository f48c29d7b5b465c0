//! The engine stopped, frozen, killed and restarted in mid-load: the worker says so, stops fetching, and comes back.

use std::time::Duration;

use schemas::{AgentRecord, AgentStatus, State};

use crate::support::{Fleet, Job, Ledger, OwnEngine, With, engine, noop, shell_in};

/// Publishes jobs that each take a moment.
async fn load(fleet: &Fleet, count: usize) -> Vec<(String, u64, Job)> {
    let mut runs = Vec::new();
    for n in 0..count {
        let (key, job) = (format!("default.t-{n}"), fleet.job());
        let task = job.contained("sleep 0.5").with("stop_grace", "1s").retried(5, "200ms");
        let sequence = fleet.publish(&key, &task).await;
        runs.push((key, sequence, job));
    }
    runs
}

/// Every task has one end, and that is a good one.
async fn all_end_once(fleet: &Fleet, ledger: &Ledger, runs: &[(String, u64, Job)]) {
    for (key, sequence, job) in runs {
        let record = fleet.run_ended(key, *sequence).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
        assert!(record.waiting.is_none(), "{record:?}");
        assert!(job.starts() >= 1);
        fleet.message_gone(key).await;
        job.gone().await;
    }
    ledger.caught_up(fleet).await;
    for (key, sequence, _) in runs {
        ledger.one_end(key, *sequence);
    }
}

fn troubled(agent: &AgentRecord) -> bool {
    agent.runtimes.get("docker").is_some_and(|docker| docker.reason.as_ref().is_some_and(|reason| !reason.is_empty()))
}

fn fine(agent: &AgentRecord) -> bool {
    agent.status == AgentStatus::Ready && agent.runtimes.get("docker").is_some_and(|docker| docker.reason.is_none())
}

#[tokio::test]
async fn an_engine_frozen_in_mid_load_is_told_and_nothing_is_lost() {
    let Some(engine) = OwnEngine::start().await else { return };
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    // A container that runs on keeps its slot; one more than there are leaves room for the call.
    let worker = engine.worker(&fleet, "w").slots(7).env("SHOAL_SWEEP_EVERY", "2s").start().await;
    let id = engine.id("w");
    let runs = load(&fleet, 6).await;
    runs[3].2.started(1).await;
    engine.freeze();
    fleet.agent_where(&id, "says that its engine is in trouble", troubled).await;
    // What needs no engine is run all the same.
    assert_eq!(fleet.run("default.call", &noop()).await.state, State::Succeeded);
    engine.thaw();
    fleet.agent_where(&id, "is fine again", fine).await;
    all_end_once(&fleet, &ledger, &runs).await;
    engine.is_clean().await;
    assert!(crate::support::process_runs(worker.pid()));
}

#[tokio::test]
async fn an_engine_killed_and_restarted_in_mid_load_loses_no_task() {
    let Some(mut engine) = OwnEngine::start().await else { return };
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let worker = engine.worker(&fleet, "w").slots(3).env("SHOAL_SWEEP_EVERY", "2s").start().await;
    let runs = load(&fleet, 9).await;
    runs[3].2.started(1).await;
    engine.kill().await;
    fleet.agent_where(&engine.id("w"), "says that its engine is gone", troubled).await;
    engine.restart().await;
    fleet.agent_where(&engine.id("w"), "is fine again", fine).await;
    all_end_once(&fleet, &ledger, &runs).await;
    engine.is_clean().await;
    assert!(crate::support::process_runs(worker.pid()));
}

#[tokio::test]
async fn an_engine_stopped_and_restarted_in_mid_load_loses_no_task() {
    let Some(mut engine) = OwnEngine::start().await else { return };
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    // It runs nothing but containers: without its engine it can do nothing, and says so.
    let _worker = engine.worker(&fleet, "w").runtimes("docker").slots(3).env("SHOAL_SWEEP_EVERY", "2s").start().await;
    let runs = load(&fleet, 9).await;
    runs[3].2.started(1).await;
    engine.stop().await;
    let agent = fleet.agent_where(&engine.id("w"), "says that its engine is gone", troubled).await;
    let agent = match agent.status {
        AgentStatus::Ready => {
            fleet.agent_where(&engine.id("w"), "not ready", |agent| agent.status != AgentStatus::Ready).await
        }
        _ => agent,
    };
    assert!(agent.reason.is_some_and(|reason| !reason.is_empty()));
    engine.restart().await;
    fleet.agent_where(&engine.id("w"), "is fine again", fine).await;
    all_end_once(&fleet, &ledger, &runs).await;
    engine.is_clean().await;
}

#[tokio::test]
async fn a_worker_does_not_start_without_the_engine_that_it_is_told_to_use_and_says_why() {
    let fleet = Fleet::start().await;
    let nowhere = format!("unix://{}/nowhere.sock", fleet.folder().display());
    let worker = || fleet.worker("w").env("SHOAL_DOCKER_HOST", &nowhere);
    for worker in [worker().runtimes("call,docker"), worker().without("SHOAL_RUNTIMES")] {
        let output = worker.spawn().wait().await;
        assert_ne!(output.code, 0, "{output:?}");
        assert!(output.stderr.contains("nowhere.sock") && output.stderr.contains("--docker-host"), "{output:?}");
    }
}

#[tokio::test]
async fn a_task_goes_to_the_worker_whose_engine_works() {
    let Some(mut broken) = OwnEngine::start().await else { return };
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _broken = broken.worker(&fleet, "broken").slots(8).start().await;
    broken.stop().await;
    fleet.agent_where(&broken.id("broken"), "says that its engine is gone", troubled).await;
    let _works = engine.worker(&fleet, "works").slots(2).start().await;
    for n in 0..6 {
        fleet.publish(&format!("default.t-{n}"), &shell_in("true")).await;
    }
    for n in 0..6 {
        let record = fleet.ended(&format!("default.t-{n}")).await;
        assert_eq!((record.state, record.spent()), (State::Succeeded, 1), "{record:?}");
        assert_eq!(
            record.attempts.last().and_then(|a| a.worker.as_ref()).map(|w| w.as_str()),
            Some(&*engine.id("works"))
        );
    }
}

#[tokio::test]
async fn a_worker_ends_although_its_engine_is_frozen() {
    let Some(engine) = OwnEngine::start().await else { return };
    let fleet = Fleet::start().await;
    let mut worker = engine.worker(&fleet, "w").drain_grace("1s").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.contained("sleep 600").with("stop_grace", "1s")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    engine.freeze();
    worker.terminate();
    // How it ends is its own affair, but not that it does. Each request that the engine leaves unanswered takes a while.
    let ends = async {
        while worker.try_wait().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(100), ends).await.expect("the worker ends");
    engine.thaw();
    let _again = engine.worker(&fleet, "w").env("SHOAL_SWEEP_EVERY", "2s").start().await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    engine.is_clean().await;
    job.gone().await;
}
