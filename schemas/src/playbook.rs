//! A playbook: what is run around the implementer, in order, each step under its condition.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::strict::InvalidTask;
use crate::time::HumanDuration;

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
    /// Unique in its playbook: letters, digits, `_`; conditions name it.
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
    /// Further tries after a failure; default none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_count: u32,
    /// Runs only where this holds; default always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Its failure ends the job; else it is noted and the next step runs. Default true.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub fail_fast: bool,
    /// How often the implementer is shown what failed here and may mend it, before this step counts as failed; default,
    /// for `test` steps, twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<NonZeroU32>,
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

impl Playbook {
    /// The rules that types do not hold. `at`: the path of this playbook in what was submitted.
    pub fn check(&self, at: &str) -> Result<(), InvalidTask> {
        if self.steps.is_empty() {
            return Err(InvalidTask::value(&format!("{at}.steps"), "[]", "one step or more"));
        }
        Ok(())
    }
}
