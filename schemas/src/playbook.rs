//! A playbook: what is run around the implementer, in order, each step under its condition.
//!
//! One step may be of the kind `implement`. Where none is, the implementer works before the first step, as a step called
//! `implement`: a playbook then says what comes after the change, which is what most of them are about. `test` steps after
//! the implementer gate the push, whatever their `fail_fast` says; those before it show how things were.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent_job::TITLE_BYTES;
use crate::condition::Condition;
use crate::strict::InvalidTask;
use crate::time::HumanDuration;

/// Most steps of one playbook.
pub const STEPS: usize = 100;
/// Most further tries of a step, and most rounds.
pub const TRIES: u32 = 10;
/// Rounds of a `test` step that says nothing.
pub const DEFAULT_ROUNDS: u32 = 2;
/// Most globs of reports of one step.
const REPORTS: usize = 10;
/// Longest name of a step.
const NAME_BYTES: usize = 64;
/// The step that is thought first where none is written.
const IMPLEMENT: &str = "implement";

/// Steps in order. YAML or JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Playbook {
    /// For people.
    pub name: String,
    /// In order.
    pub steps: Vec<Step>,
}

/// One step: a command, or the implementer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Unique in its playbook: a letter, then letters, digits, `_` and `-`; conditions name it.
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "StepKind::is_command")]
    pub kind: StepKind,
    /// A line for `sh -c`, in the workspace. Not for the implementer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// For one try; default the job's deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure, at most 10; default none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_count: u32,
    /// Runs only where this holds; default always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Its failure ends the job; else it is noted and the next step runs. Default true.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub fail_fast: bool,
    /// How often the implementer is shown what failed here and may mend it, before this step counts as failed; default
    /// twice for `test` steps, else never. Of no use before the implementer has worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
    /// JUnit XML files that a `test` step writes, as globs below the workspace's root; at most 10. Output of known formats
    /// is read without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<String>,
}

/// What a step does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Runs its command.
    #[default]
    Command,
    /// Runs its command, whose exit and output are the tests' result: it gates the push.
    Test,
    /// Lets the implementer work.
    Implement,
}

impl StepKind {
    fn is_command(&self) -> bool {
        *self == Self::Command
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

impl Step {
    fn new(name: &str, kind: StepKind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            command: None,
            timeout: None,
            retry_count: 0,
            condition: None,
            fail_fast: true,
            rounds: None,
            reports: Vec::new(),
        }
    }

    /// A step that lets the implementer work.
    pub fn implement() -> Self {
        Self::new(IMPLEMENT, StepKind::Implement)
    }

    /// A step `test` that runs this line.
    pub fn test(command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..Self::new("test", StepKind::Test) }
    }

    /// How often the implementer may mend what failed here.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(match self.kind {
            StepKind::Test => DEFAULT_ROUNDS,
            StepKind::Command | StepKind::Implement => 0,
        })
    }
}

impl Playbook {
    /// Every step that is run, in order, with the one that is thought first where none is written.
    pub fn all_steps(&self) -> impl Iterator<Item = Cow<'_, Step>> {
        let thought = (!self.implements()).then(|| Cow::Owned(Step::implement()));
        thought.into_iter().chain(self.steps.iter().map(Cow::Borrowed))
    }

    /// Names of the steps in which the implementer works.
    pub fn authors(&self) -> Vec<String> {
        self.all_steps().filter(|step| step.kind == StepKind::Implement).map(|step| step.name.clone()).collect()
    }

    fn implements(&self) -> bool {
        self.steps.iter().any(|step| step.kind == StepKind::Implement)
    }

    /// The rules that types do not hold. `at`: the path of this playbook in what was submitted.
    pub fn check(&self, at: &str) -> Result<(), InvalidTask> {
        if self.name.trim().is_empty() || self.name.len() > TITLE_BYTES || self.name.chars().any(char::is_control) {
            return Err(InvalidTask::value(&join(at, "name"), &self.name, "one line of at most 200 bytes"));
        }
        if self.steps.is_empty() || self.steps.len() > STEPS {
            let steps = format!("{} steps", self.steps.len());
            return Err(InvalidTask::value(&join(at, "steps"), &steps, "1 to 100 steps"));
        }
        let mut earlier: Vec<&str> = Vec::new();
        if !self.implements() {
            earlier.push(IMPLEMENT);
        }
        let mut implements = false;
        for (i, step) in self.steps.iter().enumerate() {
            let at = join(at, &format!("steps[{i}]"));
            if !is_step_name(&step.name) {
                let allowed = "a letter, then letters, digits, _ and -, at most 64 of them";
                return Err(InvalidTask::value(&join(&at, "name"), &step.name, allowed));
            }
            if earlier.contains(&step.name.as_str()) {
                let allowed = match (self.implements(), step.name.as_str()) {
                    (false, IMPLEMENT) => {
                        "another name: without a step of the kind `implement` there is one of this name first"
                    }
                    _ => "a name that no earlier step has",
                };
                return Err(InvalidTask::value(&join(&at, "name"), &step.name, allowed));
            }
            if step.kind == StepKind::Implement && std::mem::replace(&mut implements, true) {
                return Err(InvalidTask::value(&join(&at, "kind"), IMPLEMENT, "one step of this kind"));
            }
            step.check(&at, &earlier)?;
            earlier.push(&step.name);
        }
        Ok(())
    }
}

impl Step {
    fn check(&self, at: &str, earlier: &[&str]) -> Result<(), InvalidTask> {
        let wrong = |field: &str, value: &str, allowed: &str| Err(InvalidTask::value(&join(at, field), value, allowed));
        match (self.kind, &self.command) {
            (StepKind::Command | StepKind::Test, None) => {
                return Err(InvalidTask { field: join(at, "command"), problem: "is required and missing".into() });
            }
            (StepKind::Command | StepKind::Test, Some(line)) if line.trim().is_empty() || line.contains('\0') => {
                return wrong("command", line, "a line for `sh -c`");
            }
            (StepKind::Implement, Some(line)) => {
                return wrong("command", line, "none: the implementer works in this step");
            }
            (StepKind::Implement, None) => {
                let none = "none: the implementer has its own tries";
                if self.retry_count > 0 {
                    return wrong("retry_count", &self.retry_count.to_string(), none);
                }
                if let Some(rounds) = self.rounds {
                    return wrong("rounds", &rounds.to_string(), none);
                }
                if !self.fail_fast {
                    return wrong("fail_fast", "false", "true: without a change nothing is left to do");
                }
            }
            (StepKind::Command | StepKind::Test, Some(_)) => {}
        }
        if self.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
            return wrong("timeout", "0s", "more than zero");
        }
        if self.retry_count > TRIES {
            return wrong("retry_count", &self.retry_count.to_string(), "0 to 10");
        }
        if let Some(glob) = self.reports.first().filter(|_| self.kind != StepKind::Test) {
            return wrong("reports", glob, "none: they belong to steps of the kind `test`");
        }
        if self.reports.len() > REPORTS {
            return wrong("reports", &format!("{} globs", self.reports.len()), "at most 10");
        }
        let leads_out =
            |glob: &String| glob.is_empty() || glob.starts_with('/') || glob.split('/').any(|part| part == "..");
        if let Some(glob) = self.reports.iter().find(|glob| leads_out(glob) || glob.len() > TITLE_BYTES) {
            return wrong("reports", glob, "globs of at most 200 bytes below the workspace's root");
        }
        if let Some(rounds) = self.rounds.filter(|rounds| *rounds > TRIES) {
            return wrong("rounds", &rounds.to_string(), "0 to 10");
        }
        if let Some(text) = &self.condition {
            Condition::parse(text, earlier)
                .map_err(|error| InvalidTask { field: join(at, "condition"), problem: error.to_string() })?;
        }
        Ok(())
    }
}

fn join(at: &str, field: &str) -> String {
    if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") }
}

fn is_step_name(name: &str) -> bool {
    name.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && name.len() <= NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::strict;

    fn refused(steps: Value) -> String {
        let playbook = json!({"name": "p", "steps": steps});
        strict::playbook(&playbook, "workload.playbook.playbook").expect_err(&playbook.to_string()).to_string()
    }

    #[test]
    fn a_mistake_is_told_with_the_path_of_its_field() {
        let many: Vec<Value> = (0..=STEPS).map(|i| json!({"name": format!("s{i}"), "command": "true"})).collect();
        for (steps, field, words) in [
            (json!([]), "steps", "1 to 100"),
            (Value::Array(many), "steps", "101 steps"),
            (json!([{"command": "true"}]), "steps[0].name", "required"),
            (json!([{"name": "a b", "command": "true"}]), "steps[0].name", "a letter"),
            (
                json!([{"name": "a", "command": "true"}, {"name": "a", "command": "true"}]),
                "steps[1].name",
                "no earlier",
            ),
            (json!([{"name": "implement", "command": "true"}]), "steps[0].name", "of the kind `implement`"),
            (json!([{"name": "a"}]), "steps[0].command", "required"),
            (json!([{"name": "a", "command": " "}]), "steps[0].command", "sh -c"),
            (json!([{"name": "a", "kind": "implement", "command": "x"}]), "steps[0].command", "none"),
            (json!([{"name": "a", "kind": "implement", "retry_count": 1}]), "steps[0].retry_count", "none"),
            (json!([{"name": "a", "kind": "implement", "rounds": 1}]), "steps[0].rounds", "none"),
            (json!([{"name": "a", "kind": "implement", "fail_fast": false}]), "steps[0].fail_fast", "true"),
            (
                json!([{"name": "a", "kind": "implement"}, {"name": "b", "kind": "implement"}]),
                "steps[1].kind",
                "one step",
            ),
            (json!([{"name": "a", "kind": "tset", "command": "x"}]), "steps[0].kind", "test"),
            (json!([{"name": "a", "command": "x", "timeout": "0s"}]), "steps[0].timeout", "more than zero"),
            (json!([{"name": "a", "command": "x", "retry_count": 11}]), "steps[0].retry_count", "0 to 10"),
            (json!([{"name": "a", "command": "x", "rounds": 11}]), "steps[0].rounds", "0 to 10"),
            (json!([{"name": "a", "command": "x", "reports": ["a.xml"]}]), "steps[0].reports", "kind `test`"),
            (
                json!([{"name": "a", "kind": "test", "command": "x", "reports": ["../a.xml"]}]),
                "steps[0].reports",
                "below",
            ),
            (json!([{"name": "a", "command": "x", "retries": 1}]), "steps[0].retries", "unknown field"),
            (json!([{"name": "a", "command": "x", "fail_fats": true}]), "steps[0].fail_fats", "`fail_fast`"),
            (
                json!([{"name": "a", "command": "x"}, {"name": "b", "command": "x"},
                       {"name": "c", "command": "x", "condition": "attempt = 1"}]),
                "steps[2].condition",
                "at character 9: found `=`, expected `==`",
            ),
            (
                json!([{"name": "a", "command": "x", "condition": "steps.b.outcome == 'passed'"}, {"name": "b", "command": "x"}]),
                "steps[0].condition",
                "no earlier step is called `b`",
            ),
        ] {
            let error = refused(steps);
            let place = format!("field `workload.playbook.playbook.{field}`: ");
            assert!(error.starts_with(&place), "{error} at {field}");
            assert!(error.contains(words), "{error} without {words}");
        }
    }

    #[test]
    fn a_task_with_a_bad_playbook_is_refused_at_the_door() {
        let task = |step: Value| {
            let playbook = json!({"kind": "inline", "playbook": {"name": "p", "steps": [step]}});
            let workload = json!({"kind": "agent", "repository": "/r", "title": "t", "playbook": playbook});
            strict::task(&json!({"workload": workload}))
        };
        task(json!({"name": "a", "command": "true", "condition": "attempt == 1"})).unwrap();
        for (step, field) in [
            (json!({"name": "a", "command": "true", "condition": "attempt == one"}), "condition"),
            (json!({"name": "a", "comand": "true"}), "comand"),
        ] {
            assert_eq!(task(step).unwrap_err().field, format!("workload.playbook.playbook.steps[0].{field}"));
        }
    }

    #[test]
    fn a_playbook_without_an_implement_step_begins_with_one() {
        let names = |steps: Value| {
            let playbook = strict::playbook(&json!({"name": "p", "steps": steps}), "").unwrap();
            playbook.all_steps().map(|step| step.name.clone()).collect::<Vec<_>>()
        };
        let condition = "steps.implement.outcome == 'passed'";
        assert_eq!(names(json!([{"name": "a", "command": "x", "condition": condition}])), ["implement", "a"]);
        let written = json!([{"name": "before", "command": "x"}, {"name": "work", "kind": "implement"}]);
        assert_eq!(names(written), ["before", "work"]);
    }
}
