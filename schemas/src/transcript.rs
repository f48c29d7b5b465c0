//! What a running agent job tells, as it happens, and what it is told. On `shoal.agents.<id>.out` and `.in`, and as lines
//! of the artifact `transcript.jsonl`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::{QueueName, StartId};
use crate::newer::{More, Word};
use crate::record::TaskError;
use crate::time::Timestamp;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// Counted from 1 within one start.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// Whose queue: an id is unique within one only.
    pub queue: QueueName,
    /// Which start.
    pub start: StartId,
    /// What.
    pub event: Event,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// What happened. Secrets are masked in every text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A phase of the run began.
    PhaseBegan {
        /// Which.
        phase: JobPhase,
    },
    /// A phase ended.
    PhaseEnded {
        /// Which.
        phase: JobPhase,
        /// Why it failed, if so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<TaskError>,
    },
    /// Something failed that may pass, and is tried again.
    Retry {
        /// What.
        what: String,
        /// Why it failed.
        why: String,
        /// Pause before the next try.
        after_ms: u64,
    },
    /// What the implementer is told to do.
    Prompt {
        /// The text.
        text: String,
    },
    /// A model began to answer.
    Turn {
        /// Counted over all attempts, from 1.
        number: u32,
        /// Its name.
        model: String,
    },
    /// The implementer said something.
    Text {
        /// The text.
        text: String,
    },
    /// The implementer uses a tool.
    ToolCall {
        /// Its own id.
        id: String,
        /// The tool.
        name: String,
        /// As it gave them.
        arguments: String,
    },
    /// What the tool answered.
    ToolResult {
        /// The call's id.
        id: String,
        /// The answer, as the implementer sees it.
        text: String,
        /// It failed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        failed: bool,
    },
    /// What one answer used.
    Used {
        /// Tokens read.
        input_tokens: u64,
        /// Tokens written.
        output_tokens: u64,
        /// Their price in millionths, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cost_micros: Option<u64>,
    },
    /// A step of the playbook ended.
    Step {
        /// Its name.
        name: String,
        /// How.
        outcome: StepOutcome,
        /// In a few words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// The job asks people something, and waits.
    Question {
        /// What an answer names.
        id: String,
        /// The text.
        text: String,
    },
    /// Somebody answered.
    Answer {
        /// The question's id.
        id: String,
        /// The text.
        text: String,
    },
    /// Somebody said something.
    Said {
        /// The text.
        text: String,
    },
    /// Work in progress was kept.
    Kept {
        /// Of how many turns.
        turns: u32,
    },
    /// Anything else worth knowing.
    Note {
        /// The text.
        text: String,
    },
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum StepOutcome {
    /// Exit code 0.
    Passed,
    /// Anything else.
    Failed,
    /// Its condition did not hold.
    Skipped,
    /// A word of a newer version.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(Word),
}

/// A phase of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum JobPhase {
    /// A clean workspace is taken.
    Slot,
    /// The mirror is brought up to date.
    Fetch,
    /// Kept work is brought onto the base.
    Rebase,
    /// The workspace stands at the branch's beginning.
    Branch,
    /// The implementer works.
    Implement,
    /// The tests run.
    Test,
    /// The change becomes a commit.
    Commit,
    /// The commit becomes the remote's branch.
    Push,
    /// Artifacts and result are put away.
    Report,
    /// A word of a newer version.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(Word),
}

impl JobPhase {
    /// In their order.
    pub const ALL: [Self; 9] = [
        Self::Slot,
        Self::Fetch,
        Self::Rebase,
        Self::Branch,
        Self::Implement,
        Self::Test,
        Self::Commit,
        Self::Push,
        Self::Report,
    ];
}

impl std::fmt::Display for JobPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Slot => "slot",
            Self::Fetch => "fetch",
            Self::Rebase => "rebase",
            Self::Branch => "branch",
            Self::Implement => "implement",
            Self::Test => "test",
            Self::Commit => "commit",
            Self::Push => "push",
            Self::Report => "report",
            Self::Newer(word) => word.as_str(),
        })
    }
}

/// What a running job is told, on `shoal.agents.<id>.in`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// The text.
    pub text: String,
    /// The question that it answers; without one it is a word in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
    /// Whose queue, where an id is in several; default any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// What an agent job did, in its attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AgentReport {
    /// Each phase that began, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseReport>,
    /// Commit of the base that it worked on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_commit: Option<String>,
    /// Its branch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Its commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The remote's branch is at that commit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pushed: bool,
    /// What the change touches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<ChangeReport>,
    /// The tests' result; absent where none were run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tests: Option<TestReport>,
    /// Each step of the playbook.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepReport>,
    /// The model, where one worked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Turns of this attempt.
    #[serde(skip_serializing_if = "is_none_used")]
    pub turns: u32,
    /// Tokens read in this attempt.
    #[serde(skip_serializing_if = "is_no_tokens")]
    pub input_tokens: u64,
    /// Tokens written in this attempt.
    #[serde(skip_serializing_if = "is_no_tokens")]
    pub output_tokens: u64,
    /// Their price in millionths, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_micros: Option<u64>,
    /// The start whose kept work it went on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<StartId>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// A report as it was written: it is passed on with every field that a newer version put there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WrittenReport(Box<RawValue>);

impl WrittenReport {
    /// Of this report.
    pub fn new(report: &AgentReport) -> Self {
        Self(serde_json::value::to_raw_value(report).expect("our own types are JSON"))
    }

    /// What it says, as far as this version knows; nothing if it cannot be read.
    pub fn read(&self) -> Option<AgentReport> {
        serde_json::from_str(self.0.get()).ok()
    }
}

impl PartialEq for WrittenReport {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl JsonSchema for WrittenReport {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        AgentReport::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        AgentReport::json_schema(generator)
    }
}

fn is_none_used(number: &u32) -> bool {
    *number == 0
}

fn is_no_tokens(number: &u64) -> bool {
    *number == 0
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseReport {
    /// Which.
    pub phase: JobPhase,
    /// When it began.
    pub began: Timestamp,
    /// When it ended, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Tries beyond the first.
    #[serde(default, skip_serializing_if = "is_none_used")]
    pub retries: u32,
    /// Why it failed, from the table of codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<crate::code::Code>,
}

/// What a change touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeReport {
    /// Files.
    pub files: u32,
    /// Lines added.
    pub insertions: u64,
    /// Lines removed.
    pub deletions: u64,
}

/// The tests' result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TestReport {
    /// What was run.
    pub command: String,
    /// Where that came from: `playbook`, or the name of a file of the repository.
    pub source: String,
    /// Its exit code, unless a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Counts, where its output is of a known format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<TestCounts>,
    /// Names of the first failed ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TestCounts {
    /// Well.
    pub passed: u64,
    /// Not well.
    pub failed: u64,
    /// Not run.
    pub skipped: u64,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepReport {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: StepOutcome,
    /// Exit code of its last try, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Tries, skipped ones have none.
    #[serde(default, skip_serializing_if = "is_none_used")]
    pub tries: u32,
    /// All its tries.
    pub wall_ms: u64,
}
