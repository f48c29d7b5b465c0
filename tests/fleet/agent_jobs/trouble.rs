//! What goes wrong outside: a remote that moves or refuses, a model that fails, a budget that is used up.

use schemas::transcript::{Event, JobPhase};
use schemas::{Code, State};
use serde_json::{Value, json};

use super::{World, mends, phases, report, succeeded, until};
use crate::support::repo::RIGHT;

const BRANCH: &str = "feature/task-t-add-do-not-subtract";

/// Runs a job that fails, and gives its code and message.
async fn fails(world: &World, more: Value) -> (Code, String) {
    let record = world.run("default.t", more).await;
    assert_eq!(record.state, State::Failed, "{record:#?}");
    let error = record.error.expect("an error");
    (error.code, error.message)
}

#[tokio::test]
async fn a_base_that_moved_meanwhile_is_rebased_onto_and_tested_again() {
    let world = World::of(json!([
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"delay_ms": 700, "say": "Done."},
    ]))
    .await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    until("the model works", async || world.model.requests().len() == 2).await;
    let moved = world.repo.commit("main", &[("other.txt", "by somebody\n")]);
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    let report = report(&record);
    let expected = [
        JobPhase::Slot,
        JobPhase::Fetch,
        JobPhase::Rebase,
        JobPhase::Branch,
        JobPhase::Implement,
        JobPhase::Test,
        JobPhase::Commit,
        JobPhase::Push,
        JobPhase::Rebase,
        JobPhase::Test,
        JobPhase::Commit,
        JobPhase::Push,
        JobPhase::Report,
    ];
    assert_eq!(phases(&report), expected);
    assert_eq!(report.base_commit.as_ref(), Some(&moved));
    assert_eq!(world.repo.git(&["rev-parse", &format!("{BRANCH}^")]).trim(), moved);
    assert_eq!(report.turns, 2, "no turn was paid again");
}

#[tokio::test]
async fn a_conflict_with_the_moved_base_is_told_and_nothing_is_pushed() {
    let world = World::of(json!([
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"delay_ms": 700, "say": "Done."},
    ]))
    .await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    until("the model works", async || world.model.requests().len() == 2).await;
    world.repo.commit("main", &[("add.sh", "echo $(expr $1 - $2)\n")]);
    let record = world.fleet.ended("default.t").await;
    let error = record.error.expect("an error");
    assert_eq!(error.code, Code::RebaseConflict, "{error:?}");
    assert!(error.message.contains("add.sh"), "{error:?}");
    assert_eq!(world.repo.branches(), Vec::<String>::new());
}

#[tokio::test]
async fn a_remote_that_refuses_the_branch_is_quoted() {
    let world = World::of(mends()).await;
    world.repo.hook("pre-receive", "echo 'this branch is protected' >&2; exit 1");
    let _worker = world.worker("w").await;
    let (code, message) = fails(&world, json!({})).await;
    assert_eq!(code, Code::PushRefused);
    assert!(message.contains("pre-receive hook declined"), "{message}");
    assert_eq!(world.repo.branches(), Vec::<String>::new());
    let patch = world.artifact("t", "changes.patch").await;
    assert!(patch.contains("+echo $(($1 + $2))"), "the work is kept: {patch}");
}

#[tokio::test]
async fn a_branch_of_somebody_else_is_left_alone() {
    let world = World::of(json!([{"delay_ms": 700, "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]}, {"say": "Done."}])).await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    until("the model works", async || !world.model.requests().is_empty()).await;
    let theirs = world.repo.commit(BRANCH, &[("theirs.txt", "theirs\n")]);
    let record = world.fleet.ended("default.t").await;
    assert_eq!(record.error.map(|error| error.code), Some(Code::PushRefused));
    assert_eq!(world.repo.tip(BRANCH), Some(theirs));
}

#[tokio::test]
async fn a_branch_that_is_there_before_the_job_is_gone_on_from_only_if_it_is_its_own_or_named() {
    let add = |name: &str| json!({"calls": [{"name": "write_file", "arguments": {"path": name, "content": RIGHT}}]});
    let done = json!({"say": "Done."});
    let turns = json!([add("add.sh"), done, add("more.txt"), done, add("add.sh"), done]);
    let world = World::of(turns).await;
    let _worker = world.builder("w").queues("default,other").start().await;
    world.repo.git(&["branch", BRANCH, "main"]);
    let theirs = world.repo.commit(BRANCH, &[("theirs.txt", "theirs\n")]);
    let record = world.run("default.t", json!({})).await;
    let error = record.error.as_ref().expect("an error");
    assert_eq!((error.code, error.message.contains(BRANCH)), (Code::PushRefused, true), "{error:?}");
    assert_eq!((world.repo.tip(BRANCH), world.model.requests().len()), (Some(theirs), 0), "nothing was paid for it");
    // Named, it is wanted.
    succeeded(&world.run("default.t", json!({"branch": BRANCH})).await);
    assert_eq!(world.repo.file(BRANCH, "theirs.txt").as_deref(), Some("theirs\n"));
    // Once more, its own commit is there.
    succeeded(&world.run("default.t", json!({})).await);
    // The same id in another queue is another job.
    let tip = world.repo.tip(BRANCH);
    let record = world.run("other.t", json!({})).await;
    assert_eq!(record.error.map(|error| error.code), Some(Code::PushRefused));
    assert_eq!(world.repo.tip(BRANCH), tip);
    succeeded(&world.run("other.t", json!({"branch": "feature/other"})).await);
}

#[tokio::test]
async fn what_cannot_be_reached_or_is_not_there_says_so() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    let gone = format!("{}/gone.git", world.fleet.folder().display());
    for (more, code) in [
        (json!({"repository": gone}), Code::RepositoryNotFound),
        (json!({"base": "nowhere"}), Code::BaseNotFound),
        (json!({"repository": "/etc"}), Code::PolicyForbidden),
        (json!({"branch": "main"}), Code::PolicyForbidden),
        (json!({"playbook": {"kind": "file", "path": "ci/none.yaml"}}), Code::ContextInvalid),
        (json!({"playbook": {"kind": "named", "name": "none"}}), Code::ContextInvalid),
        (json!({"implementer": {"kind": "model", "model": "another"}}), Code::ModelRejected),
        (json!({"budget": {"cost": "1.00"}}), Code::ContextInvalid),
    ] {
        let record = world.run("default.t", more.clone()).await;
        assert_eq!(record.error.as_ref().map(|error| error.code), Some(code), "{more}: {record:#?}");
    }
    assert_eq!(world.repo.branches(), Vec::<String>::new());
}

#[tokio::test]
async fn a_model_that_is_overloaded_for_a_moment_is_asked_again() {
    let world = World::of(json!([
        {"status": 429, "headers": {"Retry-After": "0"}, "body": {"error": {"message": "slow down"}}},
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"status": 500},
        {"say": "Done."},
    ]))
    .await;
    let _worker = world.worker("w").await;
    let record = world.run("default.t", json!({})).await;
    succeeded(&record);
    let phases = report(&record).phases;
    let implement = phases.iter().find(|it| it.phase == JobPhase::Implement).expect("it implemented");
    assert_eq!(implement.retries, 2, "told in the record");
    let retries = world.told("t").await.into_iter().filter(|entry| matches!(entry.event, Event::Retry { .. })).count();
    assert_eq!(retries, 2, "and as it happened");
}

#[tokio::test]
async fn each_way_of_a_model_to_fail_has_its_own_code() {
    for (turn, code) in [
        (json!({"status": 500}), Code::ModelUnavailable),
        (json!({"refusal": "I would rather not."}), Code::ModelRefused),
        (json!({"empty": true}), Code::ModelMalformed),
        (json!({"status": 401}), Code::ModelRejected),
        (json!({"calls": [{"name": "read_file", "arguments": {"path": "add.sh"}}]}), Code::ImplementerStuck),
    ] {
        let world = World::of(json!([{ "repeat": turn }])).await;
        let _worker = world.worker("w").await;
        let (found, message) = fails(&world, json!({})).await;
        assert_eq!(found, code, "{turn}: {message}");
    }
}

#[tokio::test]
async fn a_budget_of_each_kind_ends_the_job_and_keeps_its_work() {
    for (budget, word) in [
        (json!({"turns": 2}), "turns"),
        (json!({"tokens": 2500}), "tokens"),
        (json!({"cost": "0.0025"}), "money"),
        (json!({"time": "1s"}), "time"),
    ] {
        let world = World::of(json!([
            {"calls": [{"name": "write_file", "arguments": {"path": "notes.txt", "content": "begun\n"}}],
             "usage": {"prompt_tokens": 1000, "completion_tokens": 100}},
            {"repeat": {"calls": [{"name": "run_command", "arguments": {"command": "sleep 0.3; date +%N"}}],
             "usage": {"prompt_tokens": 1500, "completion_tokens": 100}}},
        ]))
        .await;
        let prices = json!({super::scripted::MODEL: {"input": "1", "output": "1"}}).to_string();
        let _worker = world.builder("w").env("SHOAL_MODEL_PRICES", &prices).start().await;
        let (code, message) = fails(&world, json!({ "budget": budget })).await;
        assert_eq!(code, Code::BudgetExceeded, "{word}: {message}");
        assert!(message.contains(word), "{word}: {message}");
        let patch = world.artifact("t", "changes.patch").await;
        assert!(patch.contains("+begun"), "{word}: {patch}");
    }
}

#[tokio::test]
async fn a_deadline_ends_the_whole_process_tree_and_keeps_the_transcript() {
    let world = World::of(json!([
        {"calls": [{"name": "run_command", "arguments": {"command": "(sleep 45678 &) ; sleep 45678"}}]},
        {"repeat": {"say": "Done."}},
    ]))
    .await;
    let _worker = world.worker("w").await;
    let mut job = world.job(json!({}));
    job["timeout"] = json!("2s");
    let record = world.fleet.run("default.t", &job).await;
    assert_eq!(record.error.map(|error| error.code), Some(Code::TimedOut));
    let left = async || {
        let all = std::process::Command::new("ps").args(["-eo", "args"]).output().expect("ps runs");
        !String::from_utf8_lossy(&all.stdout).contains("sleep 45678")
    };
    until("no process is left", left).await;
    let transcript = world.artifact("t", "transcript.jsonl").await;
    assert!(transcript.contains("sleep 45678"), "{transcript}");
}
