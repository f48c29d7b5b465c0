//! Playbooks: where they come from, what each field does, and what is refused (A7); tests that gate the push (A8); skills.

use schemas::transcript::{StepOutcome, TestReport};
use schemas::{Code, State, TaskRecord};
use serde_json::{Value, json};

use super::{World, mends, report, succeeded};
use crate::support::repo::{RIGHT, TEST};

const BRANCH: &str = "feature/task-t-add-do-not-subtract";
/// A playbook that nobody can read: its only condition is none.
const WRONG: &str =
    "name: wrong\nsteps:\n  - name: test\n    kind: test\n    command: sh test.sh\n    condition: change.files = 1\n";

/// Its steps: name, outcome, exit code, tries.
fn steps(record: &TaskRecord) -> Vec<(String, StepOutcome, Option<i32>, u32)> {
    report(record).steps.into_iter().map(|step| (step.name, step.outcome, step.exit_code, step.tries)).collect()
}

/// One of them.
fn step(
    name: &str,
    outcome: StepOutcome,
    exit_code: Option<i32>,
    tries: u32,
) -> (String, StepOutcome, Option<i32>, u32) {
    (name.to_owned(), outcome, exit_code, tries)
}

/// The tests' result.
#[track_caller]
fn tests(record: &TaskRecord) -> TestReport {
    report(record).tests.expect("tests ran")
}

/// Fails unless the task failed with this code; its message.
#[track_caller]
fn failed(record: &TaskRecord, code: Code) -> String {
    assert_eq!(
        (record.state, record.error.as_ref().map(|error| error.code)),
        (State::Failed, Some(code)),
        "{record:#?}"
    );
    record.error.as_ref().expect("just seen").message.clone()
}

#[tokio::test]
async fn conditions_fail_fast_and_retries_are_seen_in_the_steps() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    let once = world.fleet.folder().join("once");
    let here = format!(
        "task.repository == \"{}\" and task.branch == '{BRANCH}' and task.id == \"t\" and attempt == 1 and round == 1",
        world.repo.url()
    );
    let playbook = json!({"name": "all of it", "steps": [
        {"name": "prepare", "command": format!("[ -e {0} ] || {{ touch {0}; exit 4; }}", once.display()), "retry_count": 2},
        {"name": "before", "kind": "test", "command": TEST, "fail_fast": false},
        {"name": "write", "kind": "implement"},
        {"name": "lint", "command": "exit 3", "fail_fast": false},
        {"name": "if-it-failed", "command": "true", "condition": "steps.lint.outcome == 'failed' and steps.lint.exit_code == 3"},
        {"name": "if-large", "command": "exit 1", "condition": "change.files > 1 or change.insertions >= 100"},
        {"name": "if-here", "command": "true", "condition": here},
        {"name": "test", "kind": "test", "command": TEST, "condition": "not (tests.failed == 0) and change.files == 1"},
    ]});
    let record = world.run("default.t", json!({"playbook": {"kind": "inline", "playbook": playbook}})).await;
    succeeded(&record);
    use StepOutcome::{Failed, Passed, Skipped};
    let expected = [
        step("prepare", Passed, Some(0), 2),
        step("before", Failed, Some(1), 1),
        step("write", Passed, None, 1),
        step("lint", Failed, Some(3), 1),
        step("if-it-failed", Passed, Some(0), 1),
        step("if-large", Skipped, None, 0),
        step("if-here", Passed, Some(0), 1),
        step("test", Passed, Some(0), 1),
    ];
    assert_eq!(steps(&record), expected);
    let tests = tests(&record);
    assert_eq!((tests.command.as_str(), tests.source.as_str()), (TEST, "playbook"));
    assert_eq!(world.repo.branches(), [BRANCH]);
}

#[tokio::test]
async fn a_step_that_fails_ends_the_job_before_the_next() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    let playbook = json!({"name": "strict", "steps": [
        {"name": "lint", "command": "echo 'line too long'; exit 3"},
        {"name": "test", "kind": "test", "command": TEST},
    ]});
    let record = world.run("default.t", json!({"playbook": {"kind": "inline", "playbook": playbook}})).await;
    let message = failed(&record, Code::StepFailed);
    assert!(message.contains("step `lint`: exit code 3") && message.contains("line too long"), "{message}");
    assert_eq!(
        steps(&record),
        [step("implement", StepOutcome::Passed, None, 1), step("lint", StepOutcome::Failed, Some(3), 1)]
    );
    assert_eq!(world.repo.branches(), Vec::<String>::new());
}

#[tokio::test]
async fn a_playbook_of_the_repository_is_read_as_it_is_at_the_base() {
    // The model lowers the gate in place of mending the fault.
    let soft = "name: soft\nsteps:\n  - {name: test, kind: test, command: 'true'}\n";
    let world = World::of(json!([
        {"calls": [{"name": "write_file", "arguments": {"path": "ci/play.yaml", "content": soft}},
                   {"name": "write_file", "arguments": {"path": "AGENTS.md", "content": "## Tests\n\n```sh\ntrue\n```\n"}}]},
        {"repeat": {"say": "Done."}},
    ]))
    .await;
    let hard = format!("name: hard\nsteps:\n  - name: test\n    kind: test\n    command: {TEST}\n    rounds: 0\n");
    world.repo.commit("main", &[("ci/play.yaml", &hard)]);
    let _worker = world.worker("w").await;
    let record = world.run("default.t", json!({"playbook": {"kind": "file", "path": "ci/play.yaml"}})).await;
    failed(&record, Code::TestsFailed);
    let found = tests(&record);
    assert_eq!((found.command.as_str(), found.source.as_str(), found.exit_code), (TEST, "ci/play.yaml", Some(1)));
    // The repository's instructions are no easier to change.
    let record = world.run("default.u", json!({})).await;
    failed(&record, Code::TestsFailed);
    assert_eq!(tests(&record).command, TEST);
    assert_eq!(world.repo.branches(), Vec::<String>::new());
}

#[tokio::test]
async fn a_branch_of_an_earlier_run_does_not_lower_the_gate() {
    let world = World::of(mends()).await;
    let soft = "## Tests\n\n```sh\ntrue\n```\n";
    world.repo.git(&["branch", BRANCH, "main"]);
    world.repo.commit(BRANCH, &[("AGENTS.md", soft)]);
    let record = {
        let _worker = world.worker("w").await;
        world.run("default.t", json!({"branch": BRANCH})).await
    };
    succeeded(&record);
    assert_eq!(tests(&record).command, TEST);
}

#[tokio::test]
async fn what_no_step_has_tested_is_pushed_with_a_warning() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    let steps = json!([
        {"name": "before", "kind": "test", "command": TEST},
        {"name": "implement", "kind": "implement"},
        {"name": "after", "kind": "test", "command": TEST, "condition": "attempt > 1"},
    ]);
    let playbook = json!({"kind": "inline", "playbook": {"name": "lax", "steps": steps}});
    let record = world.run("default.t", json!({"playbook": playbook})).await;
    succeeded(&record);
    let outcomes: Vec<_> = report(&record).steps.iter().map(|step| step.outcome).collect();
    assert_eq!(outcomes, [StepOutcome::Failed, StepOutcome::Passed, StepOutcome::Skipped], "{record:#?}");
    assert!(record.warnings.iter().any(|warning| warning.contains("not tested")), "{:?}", record.warnings);
}

#[tokio::test]
async fn a_playbook_has_a_name_in_the_fleet() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    let text = format!("name: strict\nsteps:\n  - name: check\n    kind: test\n    command: {TEST}\n");
    let applied = world.fleet.shoal_with_input(&["agent", "playbook", "apply", "strict", "-"], &text).await.ok();
    assert!(applied.stderr.contains("`strict`"), "{applied:?}");
    assert_eq!(world.fleet.shoal(&["agent", "playbook", "show", "strict"]).await.ok().stdout, text);
    let record = world.run("default.t", json!({"playbook": {"kind": "named", "name": "strict"}})).await;
    succeeded(&record);
    assert_eq!(
        steps(&record),
        [step("implement", StepOutcome::Passed, None, 1), step("check", StepOutcome::Passed, Some(0), 1)]
    );

    let refused = world.fleet.shoal_with_input(&["agent", "playbook", "apply", "strict", "-"], WRONG).await.exit(2);
    assert!(refused.stderr.contains("steps[0].condition"), "{refused:?}");
    assert_eq!(
        world.fleet.shoal(&["agent", "playbook", "show", "strict"]).await.ok().stdout,
        text,
        "it is what it was"
    );
    let refused = world.fleet.shoal_with_input(&["agent", "playbook", "apply", "a.b", "-"], &text).await.exit(2);
    assert!(refused.stderr.contains("name"), "{refused:?}");
    let refused = world.fleet.shoal(&["agent", "playbook", "show", "none"]).await.exit(1);
    assert!(refused.stderr.contains("none"), "{refused:?}");
}

#[tokio::test]
async fn a_bad_playbook_is_refused_at_the_door() {
    let world = World::of(mends()).await;
    let wrong = |step: Value| {
        let mut base = json!({"name": "a", "command": "true"});
        super::merge(&mut base, step);
        world.job(json!({"playbook": {"kind": "inline", "playbook": {"name": "p", "steps": [base]}}}))
    };
    let at = "workload.playbook.playbook.steps[0]";
    for (step, words) in [
        (json!({"comand": "true"}), format!("{at}.comand`: unknown field; did you mean `command`?")),
        (json!({"condition": "change.files = 1"}), format!("{at}.condition")),
        (json!({"condition": "task.titel == 'a'"}), "task.title".to_owned()),
        (json!({"condition": "attempt == 'a'"}), format!("{at}.condition")),
        (json!({"condition": "steps.later.outcome == 'passed'"}), format!("{at}.condition")),
        (json!({"retry_count": 11}), format!("{at}.retry_count")),
        (json!({"rounds": 11}), format!("{at}.rounds")),
        (json!({"kind": "implement"}), format!("{at}.command")),
    ] {
        let task = wrong(step.clone());
        let refused = world.fleet.shoal_with_input(&["submit", "-"], &task.to_string()).await.exit(2);
        assert!(refused.stderr.contains(&words), "{step}: no `{words}` in {refused:?}");
    }

    // Whoever publishes by hand is not asked by anybody; the worker refuses it.
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &wrong(json!({"condition": "change.files = 1"}))).await;
    let dead = world.fleet.dead_letter("default.t").await;
    assert_eq!(dead.headers.get("Shoal-Reason").map(|reason| reason.as_str()), Some("invalid_task"));
    let message = failed(&world.fleet.ended("default.t").await, Code::InvalidTask);
    assert!(message.contains(&format!("{at}.condition")), "{message}");

    // One of the repository is nobody's before it is read.
    world.repo.commit("main", &[("ci/play.yaml", WRONG)]);
    let record = world.run("default.u", json!({"playbook": {"kind": "file", "path": "ci/play.yaml"}})).await;
    let message = failed(&record, Code::ContextInvalid);
    assert!(message.contains("ci/play.yaml") && message.contains("steps[0].condition"), "{message}");
    assert!(world.model.requests().is_empty(), "nothing was implemented");
}

#[tokio::test]
async fn where_nobody_names_tests_the_change_is_pushed_and_the_record_says_so() {
    let world = World::of(mends()).await;
    world.repo.change("main", &[("AGENTS.md", None)], "no instructions");
    let _worker = world.worker("w").await;
    let record = world.run("default.t", json!({})).await;
    succeeded(&record);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    assert_eq!(report(&record).tests, None);
    let warnings = format!("{:?}", record.warnings);
    assert!(warnings.contains("no tests are run"), "{record:#?}");
    let shown = world.fleet.shoal(&["get", "t"]).await.ok().stdout;
    assert!(shown.contains("no tests are run"), "{shown}");
}

/// Waits until the record says that nobody can run it.
async fn waits(world: &World, key: &str) {
    world.fleet.publish(key, &world.job(json!({"skill": "rust"}))).await;
    let record = world.fleet.record_where(key, "waits for a worker", |record| record.waiting.is_some()).await;
    let waiting = record.waiting.expect("just looked at");
    assert_eq!(waiting.code, Code::NoWorker, "{waiting:?}");
    assert!(waiting.message.contains("the skill `rust`"), "{waiting:?}");
}

#[tokio::test]
async fn a_job_that_needs_a_skill_waits_for_a_worker_that_has_it() {
    let world = World::of(mends()).await;
    let _unskilled = world.builder("a").env("SHOAL_LABEL", "skills=go").start().await;
    waits(&world, "default.t").await;
    let _skilled = world.builder("b").env("SHOAL_LABEL", "skills=python rust").start().await;
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(
        record.attempts.last().map(|attempt| attempt.worker.as_ref().map(schemas::AgentId::as_str)),
        Some(Some("b"))
    );
}

#[tokio::test]
async fn a_worker_of_a_queue_has_the_skill_of_that_name() {
    let world = World::of(mends()).await;
    let _unskilled = world.worker("a").await;
    waits(&world, "default.t").await;
    let _skilled = world.builder("b").queues("default,rust").start().await;
    succeeded(&world.fleet.ended("default.t").await);
}
