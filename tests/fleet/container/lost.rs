//! Workers killed and frozen while their containers run.

use futures_util::StreamExt;
use schemas::{AgentStatus, Code, Outcome, State};

use super::nothing_left;
use crate::support::{Fleet, Ledger, With, engine, eventually, in_time, noop, shell_in};

#[tokio::test]
async fn a_killed_worker_gives_its_container_task_to_another_and_its_container_dies_with_it() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = engine.worker(&fleet, "first").start().await;
    let job = fleet.job();
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then setsid sh -c 'trap \"\" TERM HUP; sleep 600' & sleep 600; fi";
    let sequence = fleet.publish("default.a", &job.contained(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    assert!(!job.processes().is_empty());

    first.kill().await;
    // Before any other worker is there to clean up.
    job.gone().await;
    engine.is_clean().await;
    let _second = engine.worker(&fleet, "second").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let [lost, run] = &record.attempts[..] else { panic!("one lost, one run: {record:?}") };
    assert_eq!((lost.outcome, lost.number), (Outcome::Lost, None));
    assert_eq!(lost.worker.as_ref().expect("known").as_str(), engine.id("first"));
    assert_eq!((run.outcome, run.number.map(u32::from)), (Outcome::Exited, Some(1)));
    assert_eq!(run.worker.as_ref().expect("known").as_str(), engine.id("second"));
    assert_eq!(job.attempts(), [1, 1], "a loss spends no attempt");
    fleet.message_gone("default.a").await;
    let _first = engine.worker(&fleet, "first").start().await;
    nothing_left(&engine, &fleet, "first").await;
    nothing_left(&engine, &fleet, "second").await;
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Succeeded);
}

#[tokio::test]
async fn a_frozen_worker_is_superseded_and_removes_its_container() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut superseded = fleet.nats.subscribe("shoal.events.superseded.default.a").await.expect("subscribed");
    fleet.nats.flush().await.expect("the server has the subscription");
    let frozen = engine.worker(&fleet, "frozen").start().await;
    let job = fleet.job();
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then sleep 600; fi; printf second > $SHOAL_RESULT_FILE";
    let sequence = fleet.publish("default.a", &job.contained(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;

    frozen.freeze();
    let mut other = engine.worker(&fleet, "other").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(super::result(&record), "second");
    // The first was killed with its lease, although its worker could do nothing.
    job.gone().await;
    let (revision, _) = fleet.try_record("default.a").await.expect("readable").expect("there");

    frozen.thaw();
    in_time("the superseded start is told", superseded.next()).await.expect("the subscription lives");
    job.gone().await;
    nothing_left(&engine, &fleet, "frozen").await;
    other.terminate();
    assert_eq!(other.wait().await.code, 0);
    let next = fleet.run("default.b", &shell_in("true")).await;
    assert_eq!((next.state, next.attempts.len()), (State::Succeeded, 1), "{next:?}");
    let (now, record) = fleet.try_record("default.a").await.expect("readable").expect("there");
    assert_eq!(now, revision, "nothing was written after the end: {record:?}");
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Succeeded);
    assert_eq!(job.starts(), 2);
}

#[tokio::test]
async fn on_lost_fail_starts_one_container_when_its_worker_is_killed() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = engine.worker(&fleet, "first").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.contained("sleep 600").with("on_lost", "fail")).await;
    job.started(1).await;
    first.kill().await;
    let _second = engine.worker(&fleet, "second").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Lost);
    assert_eq!(record.error.as_ref().expect("an error").code, Code::WorkerLost);
    fleet.message_gone("default.a").await;
    assert_eq!(fleet.run("default.next", &noop()).await.state, State::Succeeded);
    assert_eq!(job.starts(), 1);
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.a", sequence);
}

#[tokio::test]
async fn on_lost_fail_starts_one_container_when_its_worker_is_frozen() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let frozen = engine.worker(&fleet, "frozen").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.contained("sleep 600").with("on_lost", "fail")).await;
    job.started(1).await;
    frozen.freeze();
    let _other = engine.worker(&fleet, "other").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Lost, "{record:?}");
    frozen.thaw();
    let works = |agent: &schemas::AgentRecord| agent.status == AgentStatus::Ready && agent.running_count == 0;
    fleet.agent_where(&engine.id("frozen"), "works again", works).await;
    job.gone().await;
    nothing_left(&engine, &fleet, "frozen").await;
    assert_eq!(job.starts(), 1);
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Lost);
}

#[tokio::test]
async fn a_container_five_times_longer_than_the_ack_wait_runs_once() {
    let engine = engine!();
    let fleet = Fleet::builder().ack_wait("3s").start().await;
    let _one = engine.worker(&fleet, "one").start().await;
    let _two = engine.worker(&fleet, "two").start().await;
    let job = fleet.job();
    let record = fleet.run("default.a", &job.contained("sleep 15")).await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    assert_eq!(job.starts(), 1);
    assert_eq!(fleet.consumer("default").await.num_redelivered, 0);
}

#[tokio::test]
async fn a_container_removed_behind_our_back_is_told_and_the_worker_works_on() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let job = fleet.job();
    let script = "[ $(wc -l < $D/starts) != 1 ] || sleep 600";
    let sequence = fleet.publish("default.a", &job.contained(script)).await;
    let id = engine.running("a").await["Id"].as_str().expect("an id").to_owned();
    job.started(1).await;
    engine.remove(&format!("containers/{id}")).await;
    let record = fleet.run_ended("default.a", sequence).await;
    // How it would have ended nobody knows: either it runs again, or its kill is its end.
    let ended = record.attempts.iter().map(|attempt| attempt.outcome).collect::<Vec<_>>();
    assert!(!ended.contains(&Outcome::Running), "{record:?}");
    eventually("a slot is free", async || {
        let agent = fleet.agent(&engine.id("w")).await?.ok_or("no agent")?;
        if agent.running_count == 0 { Ok(()) } else { Err(format!("{:?}", agent.running)) }
    })
    .await;
    assert_eq!(fleet.run("default.b", &shell_in("true")).await.state, State::Succeeded);
    nothing_left(&engine, &fleet, "w").await;
}
