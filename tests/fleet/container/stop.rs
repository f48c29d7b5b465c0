//! Containers told to end: by time limits, cancels and workers that leave.

use std::time::{Duration, Instant};

use schemas::{Outcome, State};

use super::nothing_left;
use crate::support::{Fault, Fleet, IMAGE, Ledger, Registry, With, container, engine, eventually, shell_in};

#[tokio::test]
async fn a_time_limit_kills_the_whole_container() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(2).start().await;
    let fields = ["timeout", "idle_timeout"];
    let jobs = fields.map(|field| (field, fleet.job()));
    for (field, job) in &jobs {
        let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; (sleep 600 &); sleep 600' & \
                      while :; do sleep 1; done";
        let task = job.contained(script).with(field, "2s").with("stop_grace", "500ms");
        fleet.publish(&format!("default.{field}"), &task).await;
    }
    for (field, job) in &jobs {
        let record = fleet.ended(&format!("default.{field}")).await;
        assert_eq!(record.attempts[0].outcome, Outcome::TimedOut, "{record:?}");
        // When the end is told, everything is gone.
        assert_eq!(job.processes(), [0; 0], "{field}");
    }
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn what_is_stopped_in_the_middle_of_its_start_is_gone_when_its_end_is_told() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let jobs: Vec<_> = (1..=16).map(|n| (n, fleet.job())).collect();
    for (n, job) in &jobs {
        // Ever later, so that some end in each part of a start.
        let task = job.contained("sleep 600").with("timeout", format!("{}ms", n * 50)).with("stop_grace", "0s");
        fleet.publish(&format!("default.t-{n}"), &task).await;
    }
    let ended = jobs.iter().map(async |(n, job)| {
        let record = fleet.ended(&format!("default.t-{n}")).await;
        assert_eq!(record.attempts[0].outcome, Outcome::TimedOut, "{record:?}");
        assert_eq!(job.processes(), [0; 0], "{record:?}");
        job.starts()
    });
    let starts = futures_util::future::join_all(ended).await;
    nothing_left(&engine, &fleet, "w").await;
    // And none starts after it.
    let now: Vec<_> = jobs.iter().map(|(_, job)| job.starts()).collect();
    assert_eq!(now, starts);
}

#[tokio::test]
async fn what_talks_is_not_idle() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let script = "for i in 1 2 3 4 5; do sleep 0.5; echo $i; sleep 0.5; echo $i >&2; done";
    let record = fleet.run("default.a", &shell_in(script).with("idle_timeout", "3s")).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
}

#[tokio::test]
async fn cancelling_a_running_container_kills_even_children_that_ignore_the_signal() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let job = fleet.job();
    let script = "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM INT HUP; while :; do sleep 1; done' & \
                  while :; do sleep 1; done";
    let sequence = fleet.publish("default.a", &job.contained(script).with("stop_grace", "1s")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    let asked = Instant::now();
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    let record = fleet.record("default.a").await.expect("there");
    assert_eq!(record.state, State::Cancelled, "{record:?}");
    assert_eq!(record.attempts.last().expect("an attempt").outcome, Outcome::Cancelled);
    assert!(asked.elapsed() < Duration::from_secs(12), "{:?}", asked.elapsed());
    job.gone().await;
    fleet.message_gone("default.a").await;
    nothing_left(&engine, &fleet, "w").await;
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Cancelled);
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_cancelled_container_gets_the_signal_first_and_its_grace() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let job = fleet.job();
    let script = "trap 'echo asked > $D/asked; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    fleet.publish("default.a", &job.contained(script)).await;
    // What is cancelled while the engine still starts it has no grace; its output is read once that is over.
    eventually("the trap is set", async || match fleet.messages("SHOAL_LOGS", "shoal.logs.default.a.*.stdout").await {
        said if said.is_empty() => Err("it says nothing".to_owned()),
        _ => Ok(()),
    })
    .await;
    fleet.in_state("default.a", State::Running).await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    assert_eq!(fleet.ended("default.a").await.state, State::Cancelled);
    assert_eq!(job.lines("asked"), ["asked"]);
}

#[tokio::test]
async fn cancelling_while_the_image_is_pulled_ends_the_pull() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let image = registry.push(&engine, "slow", 40 << 20);
    registry.fails(&registry.layer("slow"), Fault::Slow(200_000), 100);
    let sequence = fleet.publish("default.a", &container(&image, &["true"])).await;
    eventually("the layer is asked for", async || match registry.asked(&registry.layer("slow")) {
        0 => Err("no".into()),
        _ => Ok(()),
    })
    .await;
    let asked = Instant::now();
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Cancelled, "{record:?}");
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    // The slot is free.
    assert_eq!(fleet.run("default.next", &shell_in("true")).await.state, State::Succeeded);
    nothing_left(&engine, &fleet, "w").await;
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.a", sequence);
}

#[tokio::test]
async fn cancelling_at_any_moment_of_a_start_leaves_one_end_and_no_container() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = engine.worker(&fleet, "w").slots(8).start().await;
    let mut runs = Vec::new();
    for n in 0..8 {
        let (key, job) = (format!("default.c-{n}"), fleet.job());
        let sequence = fleet.publish(&key, &job.contained("sleep 600").with("stop_grace", "0s")).await;
        // Each a little later than the one before: before, into and after the start.
        tokio::time::sleep(Duration::from_millis(60 * n)).await;
        let cancel = fleet.spawn(&["cancel", &key], "");
        runs.push((key, sequence, job, cancel));
    }
    for (key, sequence, job, cancel) in &mut runs {
        assert_eq!(cancel.wait().await.code, 0);
        assert_eq!(fleet.run_ended(key, *sequence).await.state, State::Cancelled);
        fleet.message_gone(key).await;
        job.gone().await;
    }
    nothing_left(&engine, &fleet, "w").await;
    ledger.caught_up(&fleet).await;
    for (key, sequence, ..) in &runs {
        ledger.one_end(key, *sequence);
    }
}

#[tokio::test]
async fn cancelling_between_two_attempts_starts_no_further_container() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.contained("exit 1").retried(3, "10m")).await;
    fleet.in_state("default.a", State::Retrying).await;
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    assert_eq!(fleet.record("default.a").await.expect("there").state, State::Cancelled);
    fleet.message_gone("default.a").await;
    assert_eq!(job.starts(), 1);
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn a_worker_told_to_stop_finishes_its_container_and_leaves_nothing() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let mut worker = engine.worker(&fleet, "w").drain_grace("50s").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated_contained("printf done > $SHOAL_RESULT_FILE")).await;
    job.started(1).await;
    worker.terminate();
    fleet.agent_is(&engine.id("w"), schemas::AgentStatus::Draining).await;
    job.open();
    assert_eq!(worker.wait().await.code, 0);
    let record = fleet.ended("default.a").await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    assert_eq!(super::result(&record), "done");
    assert!(engine.containers().await.is_empty(), "neither a task's nor its own");
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_is_handed_back_and_its_container_is_gone() {
    let engine = engine!();
    // A lease so long that only a hand-back can be quick.
    let fleet = Fleet::builder().ack_wait("45s").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = engine.worker(&fleet, "first").drain_grace("500ms").start().await;
    let job = fleet.job();
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then trap '' TERM; while :; do sleep 1; done; fi";
    let sequence = fleet.publish("default.a", &job.contained(script).with("stop_grace", "500ms")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    first.terminate();
    assert_eq!(first.wait().await.code, 0);
    assert_eq!(job.processes(), [0; 0]);
    assert!(engine.containers().await.is_empty());
    let _second = engine.worker(&fleet, "second").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let [back, run] = &record.attempts[..] else { panic!("one handed back, one run: {record:?}") };
    assert_eq!((back.outcome, back.number), (Outcome::HandedBack, None));
    assert_eq!(run.number.map(u32::from), Some(1));
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.a", sequence);
    nothing_left(&engine, &fleet, "second").await;
}

#[tokio::test]
async fn an_init_passes_the_signal_on_to_a_program_that_would_not_see_it() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(2).start().await;
    // As the first process of its container `sleep` would ignore the signal and be killed after the grace.
    let task = container(IMAGE, &["sleep", "600"]).workload("init", true).with("stop_grace", "50s");
    fleet.publish("default.a", &task).await;
    engine.running("a").await;
    fleet.in_state("default.a", State::Running).await;
    let asked = Instant::now();
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    assert_eq!(fleet.ended("default.a").await.state, State::Cancelled);
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
}
