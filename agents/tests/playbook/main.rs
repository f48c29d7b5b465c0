//! Playbooks run with real processes around an author that changes real files.

#[path = "../support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemas::condition::Facts;
use schemas::transcript::{ChangeReport, Event, StepOutcome, TestCounts};
use schemas::{Code, Playbook, TaskError};
use serde_json::{Value, json};
use shoal_agents::ImplementError;
use shoal_agents::playbook::{Author, Ended, Run};
use shoal_agents::secret::{Mask, Secret};
use support::people::People;
use support::shell::LocalShell;
use tokio::time::Instant;

/// Does in each round what it was given: writes `round` into the file `state`, or fails, or hangs.
struct Writer {
    state: std::path::PathBuf,
    told: Vec<Option<String>>,
    does: VecDeque<Does>,
}

enum Does {
    Write(&'static str),
    Fail,
    Hang,
}

impl Author for Writer {
    fn work<'a>(&'a mut self, failed: Option<&'a str>) -> BoxFuture<'a, Result<(), ImplementError>> {
        self.told.push(failed.map(str::to_owned));
        let does = self.does.pop_front().expect("no round was left");
        Box::pin(async move {
            match does {
                Does::Write(text) => std::fs::write(&self.state, text).unwrap(),
                Does::Fail => return Err(ImplementError::Refused("no".into())),
                Does::Hang => std::future::pending().await,
            }
            Ok(())
        })
    }

    fn change(&mut self) -> BoxFuture<'_, Result<ChangeReport, TaskError>> {
        let files = u32::from(self.state.exists());
        Box::pin(std::future::ready(Ok(ChangeReport { files, insertions: 1, deletions: 0 })))
    }
}

struct Case {
    tree: tempfile::TempDir,
    people: People,
    author: Writer,
    deadline: Duration,
}

impl Case {
    fn new(does: impl IntoIterator<Item = Does>) -> Self {
        let tree = tempfile::tempdir().unwrap();
        let author = Writer { state: tree.path().join("state"), told: Vec::new(), does: does.into_iter().collect() };
        Self { tree, people: People::default(), author, deadline: Duration::from_secs(60) }
    }

    async fn run(&mut self, steps: Value) -> Ended {
        let playbook: Playbook = serde_json::from_value(json!({"name": "p", "steps": steps})).unwrap();
        let secret = Secret::new("hunter2-hunter2".into());
        let run = Run {
            playbook: &playbook,
            source: "playbook",
            shell: &LocalShell::new(self.tree.path()),
            tree: self.tree.path(),
            line: &self.people,
            mask: &Mask::new([("PASSWORD", &secret)]).unwrap(),
            author: &mut self.author,
            deadline: Instant::now() + self.deadline,
            facts: Facts { attempt: 1, ..Facts::default() },
        };
        run.run().await
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.tree.path().join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn outcomes(ended: &Ended) -> Vec<(&str, StepOutcome, u32)> {
    ended.steps.iter().map(|step| (step.name.as_str(), step.outcome, step.tries)).collect()
}

use StepOutcome::{Failed, Passed, Skipped};

#[tokio::test]
async fn steps_run_in_order_each_under_its_condition() {
    let mut case = Case::new([Does::Write("done")]);
    let ended = case
        .run(json!([
            {"name": "before", "command": "test ! -e state; echo before >> log"},
            {"name": "work", "kind": "implement"},
            {"name": "fails", "command": "echo fails >> log; exit 3", "fail_fast": false},
            {"name": "seen", "command": "echo seen >> log", "condition": "steps.fails.exit_code == 3 and change.files > 0"},
            {"name": "unseen", "command": "echo unseen >> log", "condition": "steps.fails.outcome == 'passed'"},
            {"name": "after", "command": "echo after >> log", "condition": "steps.unseen.outcome == 'skipped' and round == 1"},
        ]))
        .await;
    assert_eq!(case.lines("log"), ["before", "fails", "seen", "after"]);
    let expected = [
        ("before", Passed, 1),
        ("work", Passed, 1),
        ("fails", Failed, 1),
        ("seen", Passed, 1),
        ("unseen", Skipped, 0),
        ("after", Passed, 1),
    ];
    assert_eq!(outcomes(&ended), expected);
    assert_eq!((ended.error, ended.tests, ended.rounds), (None, None, 1));
    assert_eq!(ended.steps[2].exit_code, Some(3));
    let told = case.people.told();
    assert!(
        matches!(&told[4], Event::Step { name, outcome: Skipped, detail } if name == "unseen" && detail.contains("does not hold"))
    );
}

#[tokio::test]
async fn a_failed_step_is_tried_again_and_ends_the_job_if_it_fails_fast() {
    let mut case = Case::new([Does::Write("done")]);
    let flaky = "echo try >> log; test $(wc -l < log) -ge 3";
    let broken = "echo the key is hunter2-hunter2; exit 9";
    let ended = case
        .run(json!([
            {"name": "flaky", "command": flaky, "retry_count": 5},
            {"name": "broken", "command": broken},
            {"name": "never", "command": "echo never >> log"},
        ]))
        .await;
    assert_eq!(outcomes(&ended), [("implement", Passed, 1), ("flaky", Passed, 3), ("broken", Failed, 1)]);
    let error = ended.error.unwrap();
    assert_eq!(error.code, Code::StepFailed);
    assert_eq!(error.message, "step `broken`: exit code 9\nthe key is ***");
    assert!(!case.lines("log").contains(&"never".to_owned()));
    let retries = case.people.told().into_iter().filter(|event| matches!(event, Event::Retry { .. }));
    assert_eq!(retries.count(), 2);
}

#[tokio::test]
async fn failed_tests_are_shown_to_the_author_and_everything_after_it_runs_again() {
    let mut case = Case::new([Does::Write("bad"), Does::Write("good")]);
    let test = "echo test $(cat built) >> log; if grep -q good built; then echo 'test result: ok. 2 passed; 0 failed; 0 ignored;'; \
                else echo 'test a::b ... FAILED'; echo 'hunter2-hunter2' >&2; \
                echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored;'; exit 101; fi";
    let ended = case
        .run(json!([
            {"name": "build", "command": "cp state built; echo build >> log"},
            {"name": "unit", "kind": "test", "command": test},
        ]))
        .await;
    assert_eq!(case.lines("log"), ["build", "test bad", "build", "test good"]);
    assert_eq!(outcomes(&ended), [("implement", Passed, 2), ("build", Passed, 2), ("unit", Passed, 2)]);
    let tests = ended.tests.unwrap();
    assert_eq!((tests.counts, tests.exit_code), (Some(TestCounts { passed: 2, failed: 0, skipped: 0 }), Some(0)));
    assert_eq!(tests.command, test.replace("hunter2-hunter2", "***"));
    assert_eq!((tests.source.as_str(), ended.rounds), ("playbook", 2));
    assert_eq!(ended.error, None);
    let told = case.author.told[1].clone().unwrap();
    for words in ["step `unit`", "exit code 101; 1 passed, 1 failed, 0 skipped", "- a::b", "test result: FAILED", "***"]
    {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(case.author.told[0].is_none() && !told.contains("hunter2"));
}

#[tokio::test]
async fn tests_that_go_on_failing_end_the_job_after_their_rounds() {
    for (rounds, worked) in [(json!(null), 3), (json!(0), 1), (json!(1), 2)] {
        let mut case = Case::new([Does::Write("a"), Does::Write("b"), Does::Write("c")]);
        let mut step = json!({"name": "unit", "kind": "test", "command": "echo 'not ok 1 - x'; echo 1..1; exit 1"});
        if !rounds.is_null() {
            step["rounds"] = rounds;
        }
        let ended = case.run(json!([step])).await;
        assert_eq!(case.author.told.len(), worked);
        let error = ended.error.unwrap();
        assert_eq!(error.code, Code::TestsFailed);
        assert!(
            error.message.starts_with("step `unit`: exit code 1; 0 passed, 1 failed, 0 skipped; failed: x\n"),
            "{}",
            error.message
        );
        assert_eq!(ended.tests.unwrap().failed, ["x"]);
    }
}

#[tokio::test]
async fn a_test_that_says_it_failed_has_failed_whatever_its_exit_code_says_and_the_other_way() {
    for (command, passes) in [
        ("echo '1 failed, 3 passed in 0.1s'", false),
        ("echo '3 passed in 0.1s'; exit 1", false),
        ("echo '3 passed in 0.1s'", true),
        ("true", true),
    ] {
        let mut case = Case::new([Does::Write("a")]);
        let ended = case.run(json!([{"name": "t", "kind": "test", "command": command, "rounds": 0}])).await;
        assert_eq!(ended.error.is_none(), passes, "{command}");
    }
}

#[tokio::test]
async fn a_test_gates_the_push_even_where_it_does_not_fail_fast_and_one_before_the_author_does_not() {
    let mut case = Case::new([Does::Write("a")]);
    let ended = case
        .run(json!([
            {"name": "baseline", "kind": "test", "command": "exit 1"},
            {"name": "work", "kind": "implement"},
            {"name": "unit", "kind": "test", "command": "true"},
        ]))
        .await;
    assert_eq!((ended.error, ended.tested), (None, true));
    assert_eq!(ended.tests.unwrap().exit_code, Some(0));

    for steps in [
        json!([{"name": "t", "kind": "test", "command": "true"}, {"name": "work", "kind": "implement"}]),
        json!([{"name": "work", "kind": "implement"}, {"name": "t", "command": "true"}]),
        json!([{"name": "t", "kind": "test", "command": "true", "condition": "attempt > 9"}]),
    ] {
        let mut case = Case::new([Does::Write("a")]);
        let ended = case.run(steps.clone()).await;
        assert_eq!((ended.error, ended.tested), (None, false), "nothing judged the change: {steps}");
    }

    let mut case = Case::new([Does::Write("a")]);
    let ended = case
        .run(json!([
            {"name": "unit", "kind": "test", "command": "exit 4", "fail_fast": false, "rounds": 0},
            {"name": "more", "kind": "test", "command": "echo more >> log"},
        ]))
        .await;
    assert_eq!(case.lines("log"), ["more"]);
    assert_eq!(ended.error.unwrap().code, Code::TestsFailed);
    assert_eq!(ended.tests.unwrap().exit_code, Some(4), "the failed one is told");
}

#[tokio::test]
async fn reports_that_a_test_writes_are_read() {
    let mut case = Case::new([Does::Write("a")]);
    let xml = r#"<testsuite><testcase name="a"/><testcase name="b"><failure/></testcase></testsuite>"#;
    let command = format!("mkdir -p out/x; echo '{xml}' > out/x/r.xml");
    let step = json!({"name": "t", "kind": "test", "command": command, "rounds": 0, "reports": ["out/**/*.xml"]});
    let ended = case.run(json!([step])).await;
    assert_eq!(ended.error.unwrap().code, Code::TestsFailed);
    let tests = ended.tests.unwrap();
    assert_eq!(
        (tests.counts, tests.failed),
        (Some(TestCounts { passed: 1, failed: 1, skipped: 0 }), vec!["b".to_owned()])
    );
}

#[tokio::test]
async fn a_step_ends_with_its_timeout_and_no_step_begins_after_the_deadline() {
    let mut case = Case::new([Does::Write("a")]);
    let ended = case.run(json!([{"name": "slow", "command": "sleep 600", "timeout": "200ms"}])).await;
    let error = ended.error.unwrap();
    assert_eq!(error.code, Code::StepFailed);
    assert!(error.message.contains("timed out"), "{}", error.message);

    let mut case = Case::new([Does::Write("a")]);
    case.deadline = Duration::from_millis(500);
    let step = json!({"name": "slow", "command": "echo slow >> log; sleep 600", "fail_fast": false});
    let ended = case.run(json!([step, {"name": "late", "command": "echo late >> log"}])).await;
    assert_eq!(outcomes(&ended), [("implement", Passed, 1), ("slow", Failed, 1)]);
    assert_eq!(ended.error.unwrap().code, Code::TimedOut);
    assert_eq!(case.lines("log"), ["slow"]);
}

#[tokio::test]
async fn an_author_that_fails_or_hangs_ends_the_job() {
    let step = json!([{"name": "never", "command": "echo never >> log"}]);
    let mut case = Case::new([Does::Fail]);
    let ended = case.run(step.clone()).await;
    assert_eq!(ended.error.unwrap().code, Code::ModelRefused);
    assert_eq!(case.lines("log"), Vec::<String>::new());

    let mut case = Case::new([Does::Hang]);
    let ended = case.run(json!([{"name": "work", "kind": "implement", "timeout": "100ms"}])).await;
    let error = ended.error.unwrap();
    assert_eq!((error.code, error.message.contains("100ms")), (Code::ImplementationFailed, true));

    let mut case = Case::new([Does::Hang]);
    case.deadline = Duration::from_millis(100);
    assert_eq!(case.run(step).await.error.unwrap().code, Code::TimedOut);
}

#[tokio::test]
async fn a_playbook_with_a_condition_that_cannot_be_read_runs_nothing() {
    let mut case = Case::new([]);
    let ended = case
        .run(json!([{"name": "a", "command": "echo a >> log"}, {"name": "b", "command": "true", "condition": "attempt = 1"}]))
        .await;
    let error = ended.error.unwrap();
    assert_eq!(error.code, Code::ContextInvalid);
    assert!(
        error.message.contains("steps[1].condition") && error.message.contains("expected `==`"),
        "{}",
        error.message
    );
    assert!(ended.steps.is_empty() && case.author.told.is_empty() && case.lines("log").is_empty());
}
