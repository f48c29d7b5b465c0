//! A task's record: `shoal_tasks/<queue>.<id>`, one key, overwritten by compare-and-set. It is the fence.

use std::num::NonZeroU32;

use base64::Engine;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::code::Code;
use crate::ids::{AgentId, QueueName, StartId, TaskId, TaskKey};
use crate::newer::{More, Word};
use crate::task::Task;
use crate::time::Timestamp;
use crate::transcript::WrittenReport;

/// Largest task kept inside its record.
pub const TASK_KEPT_BYTES: usize = 16 << 10;
/// Longest message of an error; what is longer is cut, and the cut is told.
pub const MESSAGE_BYTES: usize = 2 << 10;
/// Largest result kept inside its record; a larger one goes to the object store.
pub const INLINE_RESULT_BYTES: usize = 64 << 10;

/// What became of a task so far. Whatever is empty or default is left out.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskRecord {
    /// The id.
    pub id: TaskId,
    /// The queue.
    pub queue: QueueName,
    /// Stream sequence of the task's message: which run of the id this is.
    pub sequence: u64,
    /// The submitter's own id of this submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
    /// Where it stands.
    pub state: State,
    /// The task as it came, if it is JSON of at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Task>")]
    pub task: Option<Box<RawValue>>,
    /// Every start, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// When the next attempt is due, while `retrying`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    /// Why it could not start yet, while `retrying` for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Somebody wants it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<Cancel>,
    /// What a successful run answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
    /// Files gathered at the ends of attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// What went wrong without failing the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// When the server stored the task.
    pub submitted_at: Timestamp,
    /// When this record became terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

impl TaskRecord {
    /// A record without attempts.
    pub fn new(key: &TaskKey, sequence: u64, state: State, submitted_at: Timestamp) -> Self {
        Self {
            id: key.id.clone(),
            queue: key.queue.clone(),
            sequence,
            submission: None,
            state,
            task: None,
            attempts: Vec::new(),
            retry_at: None,
            waiting: None,
            cancel: None,
            result: None,
            artifacts: Vec::new(),
            error: None,
            warnings: Vec::new(),
            submitted_at,
            ended_at: None,
            more: More::default(),
        }
    }

    /// `<queue>.<id>`.
    pub fn key(&self) -> TaskKey {
        TaskKey::new(self.queue.clone(), self.id.clone())
    }

    /// Keeps the task's bytes if they are JSON and small enough.
    pub fn keep_task(&mut self, payload: &[u8]) {
        if payload.len() <= TASK_KEPT_BYTES {
            self.task = serde_json::from_slice(payload).ok();
        }
    }

    /// Attempts that count: lost and handed-back ones do not.
    pub fn spent(&self) -> u32 {
        self.attempts.iter().filter(|a| a.number.is_some()).count() as u32
    }
}

/// Where a task stands. `queued` is not written: the message in the stream is the queued state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// An attempt runs.
    Running,
    /// Between two attempts.
    Retrying,
    /// Ended well.
    Succeeded,
    /// Given up; there is a dead letter.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// A worker was lost with it and it asked not to run again, or its message is gone.
    Lost,
    /// Not started in time.
    Expired,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [State; 7] =
        [Self::Running, Self::Retrying, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Lost, Self::Expired];

    /// Whether nothing more can come.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Running | Self::Retrying => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Lost | Self::Expired => true,
        }
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
            Self::Expired => "expired",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One start on one worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    /// Counted from 1; absent for lost and handed-back ones, which spend nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<NonZeroU32>,
    /// The fence. Absent where a delivery was lost without a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartId>,
    /// Which worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<AgentId>,
    /// Which boot of that worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// The workload's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Killed by the kernel for its memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// When it reached which point.
    #[serde(default)]
    pub phases: Phases,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What an agent job did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<WrittenReport>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

impl Attempt {
    /// An attempt of which nothing is known but how it stands.
    pub fn new(outcome: Outcome) -> Self {
        Self {
            number: None,
            start: None,
            worker: None,
            instance: None,
            outcome,
            exit_code: None,
            signal: None,
            oom: false,
            error: None,
            phases: Phases::default(),
            usage: None,
            agent: None,
            more: More::default(),
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum Outcome {
    /// It has not.
    Running,
    /// By itself, well or not: see exit code and error.
    Exited,
    /// It never ran.
    FailedToStart,
    /// Stopped for its run or silence limit.
    TimedOut,
    /// Stopped on request.
    Cancelled,
    /// Given back by a worker that was told to stop.
    HandedBack,
    /// Its worker was lost.
    Lost,
    /// A word of a newer version.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(Word),
}

/// When an attempt reached which point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Phases {
    /// The worker got it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulled: Option<Timestamp>,
    /// The workload ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// The workload was gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// What an attempt used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// Start to end.
    pub wall_ms: u64,
    /// CPU time, user and system, of everything it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Largest memory at one moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// Why a task or an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskError {
    /// From the table of codes.
    pub code: Code,
    /// For people.
    pub message: String,
    /// Whether another attempt may help.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retryable: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

impl TaskError {
    /// An error of `code`, retryable as the table says.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retryable: code.retryable(), more: More::default() }.bounded()
    }

    /// The same with a message of at most [`MESSAGE_BYTES`]: it stands in a record, perhaps once an attempt.
    pub fn bounded(mut self) -> Self {
        if self.message.len() > MESSAGE_BYTES {
            let cut = (0..=MESSAGE_BYTES).rev().find(|at| self.message.is_char_boundary(*at)).unwrap_or(0);
            let whole = self.message.len();
            self.message.truncate(cut);
            self.message.push_str(&format!("… ({whole} bytes)"));
        }
        self
    }
}

/// Why a task that was handed out could not start. It spends no attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// From the table of codes: what hinders it.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The worker that last had it in hand.
    pub worker: AgentId,
    /// When it was first put off for want of a worker.
    pub since: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// A wish to stop a running task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancel {
    /// When it was asked for.
    pub at: Timestamp,
    /// By whom or why, in the canceller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

impl Cancel {
    /// A wish of now.
    pub fn new(at: Timestamp, reason: Option<String>) -> Self {
        Self { at, reason, more: More::default() }
    }
}

/// A result: its bytes, or where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum TaskResult {
    /// Base64 of at most 64 KiB.
    Inline(String),
    /// Larger: an object in the artifacts' store.
    Object(ObjectRef),
    /// Of a newer version.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(More),
}

impl TaskResult {
    /// A result small enough to travel inside the record.
    pub fn inline(bytes: &[u8]) -> Self {
        Self::Inline(base64::engine::general_purpose::STANDARD.encode(bytes))
    }

    /// The bytes of an inline result; `None` for an object, an error for wrong base64.
    pub fn inline_bytes(&self) -> Option<Result<Vec<u8>, base64::DecodeError>> {
        match self {
            Self::Inline(text) => Some(base64::engine::general_purpose::STANDARD.decode(text)),
            Self::Object(_) | Self::Newer(_) => None,
        }
    }
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectRef {
    /// Name in the artifacts' store.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// `SHA-256=<base64url>`, as the object store keeps it.
    pub digest: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// One gathered file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Artifact {
    /// Path below the work folder.
    pub path: String,
    /// Which start wrote it; the object's name is `<queue>/<id>/<start>/<path>`.
    pub start: StartId,
    /// Its size.
    pub bytes: u64,
    /// `SHA-256=<base64url>`, as the object store keeps it.
    pub digest: String,
    /// The bucket that has it, where it is another one than `shoal_artifacts`, for how long it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_a_no_op_is_under_400_bytes() {
        let now = Timestamp::now();
        let key: TaskKey = "default.01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let mut record = TaskRecord::new(&key, 12_345_678, State::Succeeded, now);
        record.keep_task(br#"{"workload":{"kind":"call","handler":"noop"}}"#);
        record.ended_at = Some(now);
        record.attempts.push(Attempt {
            number: NonZeroU32::new(1),
            start: Some(StartId::new("k3v9x2abcdef").unwrap()),
            worker: Some(AgentId::new("w-5c1f").unwrap()),
            instance: Some("b71b71".into()),
            outcome: Outcome::Exited,
            exit_code: None,
            signal: None,
            oom: false,
            error: None,
            phases: Phases { started: Some(now), ..Phases::default() },
            usage: None,
            agent: None,
            more: More::default(),
        });
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.len() < 400, "{} bytes: {json}", json.len());
    }

    #[test]
    fn a_task_in_a_record_keeps_fields_we_do_not_know() {
        let key: TaskKey = "q.a".parse().unwrap();
        let mut record = TaskRecord::new(&key, 1, State::Running, Timestamp::now());
        record.keep_task(br#"{"workload":{"kind":"call","handler":"noop"},"newer":[1,2]}"#);
        let read: TaskRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert!(read.task.unwrap().get().contains("\"newer\":[1,2]"));
    }
}
