//! A worker that dies with an agent job: the next one goes on from what was kept, and nothing is applied twice.

use schemas::transcript::{Event, JobPhase};
use schemas::{Outcome, State};
use serde_json::json;

use super::scripted::Scripted;
use super::{World, mends, phases, report, succeeded, until};
use crate::support::With;
use crate::support::repo::RIGHT;

const BRANCH: &str = "feature/task-t-add-do-not-subtract";

/// The first attempt writes a note and then hangs; the second, which is told of the first, mends the fault.
fn in_two_attempts() -> Scripted {
    Scripted::conversations(json!([
        {"match": "earlier attempt", "turns": [
            {"seen": "write_file|notes.txt", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
            {"say": "It adds now."},
        ]},
        {"match": "", "turns": [
            {"calls": [{"name": "write_file", "arguments": {"path": "notes.txt", "content": "subtracts\n"}}]},
            {"hang": true},
        ]},
    ]))
}

#[tokio::test]
async fn a_killed_workers_job_goes_on_elsewhere_without_paying_finished_turns_again() {
    let world = World::with(in_two_attempts()).await;
    let mut first = world.worker("first").await;
    world.fleet.publish("default.t", &world.job(json!({"keep": {"every_turns": 1}}))).await;
    let asked_twice = async || world.model.requests().len() == 2;
    until("the second turn has begun", asked_twice).await;
    first.kill().await;
    let _second = world.worker("second").await;
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(record.attempts.iter().map(|it| it.outcome).collect::<Vec<_>>(), [Outcome::Lost, Outcome::Exited]);
    let report = report(&record);
    assert_eq!(report.resumed_from, record.attempts[0].start);
    assert_eq!(report.turns, 2, "only its own turns");
    assert_eq!(world.repo.file(BRANCH, "notes.txt").as_deref(), Some("subtracts\n"), "what the first wrote is there");
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    let turns: Vec<u32> = world
        .told("t")
        .await
        .into_iter()
        .filter_map(|entry| match entry.event {
            Event::Turn { number, .. } => Some(number),
            _ => None,
        })
        .collect();
    assert_eq!(turns, [1, 2, 2, 3], "the turn that was cut off is the only one that comes again");
    world.model_is_content();
}

#[tokio::test]
async fn turns_count_over_all_attempts() {
    let world = World::with(in_two_attempts()).await;
    let mut first = world.worker("first").await;
    let job = world.job(json!({"keep": {"every_turns": 1}, "budget": {"turns": 2}}));
    world.fleet.publish("default.t", &job).await;
    until("the second turn has begun", async || world.model.requests().len() == 2).await;
    first.kill().await;
    let _second = world.worker("second").await;
    let record = world.fleet.ended("default.t").await;
    assert_eq!(record.state, State::Failed, "{record:#?}");
    assert_eq!(record.error.map(|error| error.code), Some(schemas::Code::BudgetExceeded));
    assert_eq!(world.model.requests().len(), 3, "one turn was left");
}

/// Killed at each point around the push: the branch is there once, with one commit, and the task has one end.
#[tokio::test]
async fn a_death_around_the_push_pushes_once() {
    for point in [
        "agent_fetched",
        "agent_ready",
        "agent_before_push",
        "agent_after_push",
        "before_end_record",
        "after_end_record",
    ] {
        let world = World::with(Scripted::conversations(json!([
            {"match": "earlier attempt", "turns": [{"repeat": {"say": "It is done already."}}]},
            {"match": "", "turns": mends()},
        ])))
        .await;
        let mut first = world.builder("first").fails_at(point).spawn();
        world.fleet.publish("default.t", &world.job(json!({}))).await;
        let death = first.wait().await;
        assert_eq!(death.code, 128 + libc::SIGKILL, "{point} was not reached: {death:?}");
        let _second = world.worker("second").await;
        let record = world.fleet.ended("default.t").await;
        assert_eq!(record.state, State::Succeeded, "{point}: {record:#?}");
        assert_eq!(world.repo.branches(), [BRANCH], "{point}");
        assert_eq!(world.repo.git(&["rev-list", "--count", &format!("main..{BRANCH}")]).trim(), "1", "{point}");
        assert_eq!(report(&record).commit, world.repo.tip(BRANCH), "{point}");
        // What was done and tested is not worked on again; what was pushed is not even tested.
        if ["agent_before_push", "agent_after_push"].contains(&point) {
            let phases = phases(&report(&record));
            assert!(!phases.contains(&JobPhase::Implement), "{point}: {phases:?}");
        }
    }
}

#[tokio::test]
async fn work_that_failed_its_tests_is_gone_on_from_by_the_next_attempt() {
    let world = World::with(Scripted::conversations(json!([
        {"match": "earlier attempt", "turns": [
            {"seen": "not ok 1 - adds", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
            {"say": "Now it does."},
        ]},
        {"match": "", "turns": [
            {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": "echo 6\n"}}]},
            {"repeat": {"say": "Nothing is wrong."}},
        ]},
    ])))
    .await;
    let _worker = world.worker("w").await;
    let record = world.fleet.run("default.t", &world.job(json!({})).retried(2, "10ms")).await;
    succeeded(&record);
    assert_eq!(record.attempts.len(), 2);
    assert_eq!(record.attempts[0].error.as_ref().map(|error| error.code), Some(schemas::Code::TestsFailed));
    assert_eq!(report(&record).resumed_from, record.attempts[0].start);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    let patches = record.artifacts.iter().filter(|artifact| artifact.path == "changes.patch").count();
    assert_eq!(patches, 2, "each attempt's change can be looked at");
}

#[tokio::test]
async fn a_job_that_is_run_once_more_goes_on_from_the_run_before_with_a_whole_budget() {
    for again in [&["retry", "t"][..], &["dead", "replay", "default.t"]] {
        let note = |n| json!({"calls": [{"name": "write_file", "arguments": {"path": "notes.txt", "content": format!("{n}\n")}}]});
        let world = World::with(Scripted::conversations(json!([
            {"match": "earlier attempt", "turns": [
                {"seen": "write_file|notes.txt", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
                {"say": "It adds now."},
            ]},
            {"match": "", "turns": [note(1), note(2)]},
        ])))
        .await;
        let _worker = world.worker("w").await;
        let first = world.run("default.t", json!({"budget": {"turns": 2}})).await;
        assert_eq!(first.error.as_ref().map(|error| error.code), Some(schemas::Code::BudgetExceeded), "{first:#?}");
        world.fleet.shoal(again).await.ok();
        let record = world.fleet.run_ended("default.t", first.sequence + 1).await;
        succeeded(&record);
        assert_eq!(record.attempts.len(), 1, "{record:#?}");
        assert_eq!(report(&record).resumed_from, first.attempts[0].start);
        assert_eq!(world.repo.file(BRANCH, "notes.txt").as_deref(), Some("2\n"), "what the first run wrote is there");
        assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
        world.model_is_content();
    }
}

#[tokio::test]
async fn a_drained_worker_hands_a_job_on_with_its_work() {
    let world = World::with(in_two_attempts()).await;
    let mut first = world.builder("first").drain_grace("1s").start().await;
    world.fleet.publish("default.t", &world.job(json!({"keep": {"every_turns": 100}}))).await;
    until("the second turn has begun", async || world.model.requests().len() == 2).await;
    first.terminate();
    first.wait().await.ok();
    let _second = world.worker("second").await;
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(world.repo.file(BRANCH, "notes.txt").as_deref(), Some("subtracts\n"));
}

#[tokio::test]
async fn a_frozen_worker_that_thaws_pushes_nothing_late() {
    let world = World::with(Scripted::conversations(json!([
        {"match": "earlier attempt", "turns": mends()},
        {"match": "", "turns": [
            {"calls": [{"name": "write_file", "arguments": {"path": "late.txt", "content": "late\n"}}]},
            {"delay_ms": 500, "say": "Done."},
            {"repeat": {"say": "Done."}},
        ]},
    ])))
    .await;
    let first = world.worker("first").await;
    let job = world.job(
        json!({"keep": {"every_turns": 1}, "playbook": {"kind": "inline", "playbook": {"name": "none", "steps": [
            {"name": "look", "command": "true"}
        ]}}}),
    );
    world.fleet.publish("default.t", &job).await;
    until("it works", async || world.model.requests().len() >= 2).await;
    first.freeze();
    let _second = world.worker("second").await;
    let record = world.fleet.ended("default.t").await;
    first.thaw();
    succeeded(&record);
    let commit = world.repo.tip(BRANCH);
    world.fleet.agent_where("first", "the thawed worker has nothing left", |agent| agent.running_count == 0).await;
    assert_eq!(world.repo.tip(BRANCH), commit, "the late one pushed nothing");
    assert_eq!(report(&record).commit, commit);
}
