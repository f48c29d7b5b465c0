//! The run itself: slot, fetch, rebase, branch, implement, test, commit, push, report.

use schemas::transcript::JobPhase;
use schemas::{Code, State};
use serde_json::json;

use super::{World, mends, phases, report, succeeded};
use crate::support::repo::{RIGHT, TEST, WRONG};

#[tokio::test]
async fn a_task_becomes_a_tested_branch() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    let record = world.run("default.t1", json!({"description": "add.sh subtracts."})).await;
    succeeded(&record);
    let branch = "feature/task-t1-add-do-not-subtract";
    assert_eq!(world.repo.branches(), [branch]);
    assert_eq!(world.repo.file(branch, "add.sh").as_deref(), Some(RIGHT));
    assert_eq!(world.repo.file("main", "add.sh").as_deref(), Some(WRONG), "the base is left alone");
    let message = world.repo.git(&["log", "-1", "--format=%s", branch]);
    assert_eq!(message.trim(), "feat(task-t1): Add, do not subtract");

    let report = report(&record);
    assert_eq!(phases(&report), JobPhase::ALL.to_vec());
    assert!(report.phases.iter().all(|phase| phase.ended.is_some_and(|ended| ended >= phase.began)), "{report:#?}");
    assert_eq!(report.commit, world.repo.tip(branch));
    assert_eq!(report.base_commit, world.repo.tip("main"));
    assert!(report.pushed);
    let tests = report.tests.as_ref().expect("tests ran");
    assert_eq!((tests.command.as_str(), tests.source.as_str(), tests.exit_code), (TEST, "AGENTS.md", Some(0)));
    let counts = tests.counts.expect("TAP is known");
    assert_eq!((counts.passed, counts.failed, counts.skipped), (1, 0, 0));
    assert_eq!(report.change.map(|change| (change.files, change.insertions, change.deletions)), Some((1, 1, 1)));
    assert_eq!((report.turns, report.model.as_deref()), (2, Some(super::scripted::MODEL)));
    assert!(report.input_tokens > 0 && report.output_tokens > 0);
    let usage = record.attempts[0].usage.as_ref().expect("usage");
    assert!(usage.wall_ms > 0, "{usage:?}");
    world.model_is_content();

    let patch = world.artifact("t1", "changes.patch").await;
    assert!(patch.contains("+echo $(($1 + $2))"), "{patch}");
    let transcript = world.artifact("t1", "transcript.jsonl").await;
    assert!(transcript.lines().count() > 10 && transcript.contains("It adds now."), "{transcript}");
    let kept: Vec<(&str, Option<&str>)> =
        record.artifacts.iter().map(|it| (it.path.as_str(), it.bucket.as_deref())).collect();
    let (month, fortnight) = (Some("shoal_artifacts_30d"), Some("shoal_artifacts_14d"));
    assert_eq!(
        kept,
        [("tests.json", fortnight), ("changes.patch", month), ("job.log", None), ("transcript.jsonl", month)]
    );
}

#[tokio::test]
async fn failing_tests_are_shown_to_the_model_which_mends_them() {
    let turns = json!([
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": "echo 6\n"}}]},
        {"say": "Done."},
        {"expect": "not ok 1 - adds", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "Now it does."},
    ]);
    let world = World::of(turns).await;
    let _worker = world.worker("w").await;
    let record = world.run("default.t2", json!({})).await;
    succeeded(&record);
    assert_eq!(world.repo.file("feature/task-t2-add-do-not-subtract", "add.sh").as_deref(), Some(RIGHT));
    assert_eq!(report(&record).turns, 4);
    world.model_is_content();
}

#[tokio::test]
async fn tests_that_go_on_failing_keep_the_branch_away() {
    let turns = json!([{"repeat": {"say": "Nothing is wrong."}}]);
    let world = World::of(turns).await;
    let _worker = world.worker("w").await;
    let record = world.run("default.t3", json!({})).await;
    assert_eq!(record.state, State::Failed, "{record:#?}");
    let error = record.error.as_ref().expect("an error");
    assert_eq!(error.code, Code::TestsFailed);
    assert!(error.message.contains("not ok 1 - adds"), "{error:?}");
    assert_eq!(world.repo.branches(), Vec::<String>::new());
    let tests = report(&record).tests.expect("a result");
    assert_eq!((tests.exit_code, tests.counts.map(|counts| counts.failed)), (Some(1), Some(1)));
    assert_eq!(tests.failed, ["adds"]);
}
