//! A worker whose clock is an hour off: nothing expires by it, nothing is late by it, nobody is judged by it.

use std::time::Duration;

use schemas::{AgentStatus, Code, State, Timestamp};

use crate::support::{FalseClock, Fleet, Program, With, noop, shell};

/// A fleet with a dispatcher and one worker that believes in another time.
async fn fleet(clock: &FalseClock, offset: &str) -> (Fleet, Program, Program) {
    let fleet = Fleet::start().await;
    let (dispatcher, _) = fleet.dispatcher(&[]).await;
    let mut worker = clock.lie(fleet.worker("wrong"), offset).spawn();
    worker.ready().await;
    (fleet, dispatcher, worker)
}

/// Whether a moment is near the present of this machine, which is the server's.
fn is_now(at: Timestamp) -> bool {
    let now = Timestamp::now();
    now.since(at).max(at.since(now)) < Duration::from_secs(60)
}

async fn nothing_is_judged_by_it(offset: &str) {
    let Some(clock) = FalseClock::find() else { return };
    let (fleet, _dispatcher, _worker) = fleet(&clock, offset).await;

    // It beats and is told to live, by its time stamp and by the server's.
    let agent = fleet.agent_is("wrong", AgentStatus::Ready).await;
    assert!(is_now(agent.last_heartbeat) && is_now(agent.registered_at), "{agent:?}");
    let listed = fleet.shoal(&["agents", "list", "-o", "json"]).await.ok().json();
    assert_eq!(listed[0]["status"], "ready", "{listed}");

    // What may still start in half an hour has not expired.
    let later = Timestamp::now().plus(Duration::from_secs(1_800));
    let record = fleet.run("default.in-time", &noop().with("expires_at", later.to_string())).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    // And what may not start any more has.
    let past = Timestamp::from_millis(Timestamp::now().as_millis() - 1_800_000);
    let record = fleet.run("default.too-late", &noop().with("expires_at", past.to_string())).await;
    assert_eq!(record.state, State::Expired, "{record:?}");

    // The record tells the time that everybody else has.
    let record = fleet.run("default.times", &shell("true")).await;
    let phases = &record.attempts[0].phases;
    assert!(
        [phases.pulled, phases.started, phases.ended, record.ended_at].into_iter().flatten().all(is_now),
        "{record:?}"
    );
}

#[tokio::test]
async fn a_worker_an_hour_ahead_expires_nothing() {
    nothing_is_judged_by_it("+1h").await;
}

#[tokio::test]
async fn a_worker_an_hour_behind_expires_nothing() {
    nothing_is_judged_by_it("-1h").await;
}

#[tokio::test]
async fn a_retry_of_a_wrong_clock_comes_in_time_on_a_right_one() {
    let Some(clock) = FalseClock::find() else { return };
    let (fleet, _dispatcher, mut wrong) = fleet(&clock, "+1h").await;
    let task = shell("[ $SHOAL_TASK_ATTEMPT = 2 ]").retried(2, "2s");
    let sequence = fleet.publish("default.a", &task).await;
    let record = fleet.in_state("default.a", State::Retrying).await;
    assert!(is_now(record.retry_at.expect("it waits")), "{record:?}");
    wrong.kill().await;
    let _right = fleet.worker("right").start().await;
    assert_eq!(fleet.run_ended("default.a", sequence).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_wrong_clock_takes_no_other_worker_for_dead() {
    let Some(clock) = FalseClock::find() else { return };
    let (fleet, _dispatcher, _wrong) = fleet(&clock, "+1h").await;
    let right = fleet.worker("right").runtimes("process").queues("mixed").start().await;
    let job = fleet.job();
    fleet.publish("mixed.first", &job.gated("")).await;
    job.started(1).await;
    // The one that could run the second is busy, not gone: nobody may read `no_worker`.
    let mut calls = clock.lie(fleet.worker("calls"), "+1h").runtimes("call").queues("mixed").spawn();
    calls.ready().await;
    let sequence = fleet.publish("mixed.second", &shell("true")).await;
    let record = fleet.record_where("mixed.second", "it waits", |record| record.waiting.is_some()).await;
    assert_eq!(record.waiting.expect("it waits").code, Code::RuntimeNotAllowed);
    job.open();
    assert_eq!(fleet.run_ended("mixed.second", sequence).await.state, State::Succeeded);
    assert_eq!(fleet.agent_is("right", AgentStatus::Ready).await.status, AgentStatus::Ready);
    drop(right);
}
