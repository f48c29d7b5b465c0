//! Why a task waits, or what it does: the answer of `shoal explain`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::AgentStatus;
use crate::ids::{AgentId, QueueName, TaskId};
use crate::record::State;
use crate::time::Timestamp;
use crate::transcript::JobPhase;

/// What was found about one task at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The id.
    pub id: TaskId,
    /// The queue; absent where nothing is known of the id and none was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// Which run of the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Where it stands.
    pub status: Standing,
    /// What holds it there, the weightiest first; never empty.
    pub reasons: Vec<Reason>,
    /// What it runs, if it is a task at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// About how many tasks of its queue are before it, where it was never handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Who runs it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<AgentId>,
    /// When the server stored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Timestamp>,
    /// When the attempt that runs was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the next attempt is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    /// Not started by then it ends as `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Its queue, unless the task is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_in: Option<QueueFacts>,
    /// Who could run it, unless the task is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkerFacts>,
    /// How far it is, of an agent job that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentFacts>,
}

/// How far an agent job is in the attempt that runs, as far as it has told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentFacts {
    /// The phase that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<JobPhase>,
    /// When that began, if it can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Turns of the model that have begun, over all attempts.
    #[serde(default)]
    pub turns: u32,
    /// What it has asked and waits for, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<AskedQuestion>,
    /// When it last told anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_told: Option<Timestamp>,
}

/// A question that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AskedQuestion {
    /// What an answer names.
    pub id: String,
    /// The text.
    pub text: String,
    /// When it was asked.
    pub at: Timestamp,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// For programs.
    pub code: ReasonCode,
    /// For people.
    pub message: String,
    /// The next thing to try.
    pub next: String,
}

/// Where a task stands, what no record says included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// There is neither a message nor a record.
    Unknown,
    /// Its message waits.
    Queued,
    /// As in a record.
    Running,
    /// As in a record.
    Retrying,
    /// As in a record.
    Succeeded,
    /// As in a record.
    Failed,
    /// As in a record.
    Cancelled,
    /// As in a record.
    Lost,
    /// As in a record.
    Expired,
}

impl From<State> for Standing {
    fn from(state: State) -> Self {
        match state {
            State::Running => Self::Running,
            State::Retrying => Self::Retrying,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
            State::Lost => Self::Lost,
            State::Expired => Self::Expired,
        }
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
            Self::Expired => "expired",
        })
    }
}

/// What holds a task where it stands. API: a code keeps its word and its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// Nothing is known of it.
    Unknown,
    /// It is over.
    Finished,
    /// An attempt runs.
    Running,
    /// An agent job runs and waits for an answer.
    Asking,
    /// It runs, and somebody wants it stopped.
    Cancelling,
    /// Its record says that it runs, but the worker is gone or silent.
    WorkerSilent,
    /// Its record is unfinished and its message is gone from the stream.
    MessageLost,
    /// It is past its `expires_at`.
    Expired,
    /// Its message is no task.
    InvalidTask,
    /// No worker was ever told to pull from its queue, as far as the registry goes back.
    NoWorker,
    /// Every worker of its queue is offline.
    NoLiveWorker,
    /// No worker of its queue runs its kind.
    NoCapableWorker,
    /// A worker runs its kind, but the engine behind that is down.
    RuntimeDown,
    /// Those that could run it take nothing new now.
    NoReadyWorker,
    /// A worker had it and put it off, for it cannot run it.
    PutOff,
    /// The queue is paused.
    Paused,
    /// It waits for the time of its next attempt.
    RetryAt,
    /// The next attempt is due, and nobody has taken it yet.
    Due,
    /// As many tasks of the queue are out as its cap allows.
    Capped,
    /// All slots of those who could run it are taken.
    SlotsBusy,
    /// It was handed out, and there is no record of a start yet.
    HandedOut,
    /// Others of the queue are before it.
    Position,
    /// Nothing hinders it.
    Soon,
    /// It will not be started after a certain time.
    Expires,
    /// It calls a function that is not defined.
    NoFunction,
    /// No instance of the function that it calls takes calls, and none could be made.
    NoInstance,
}

/// A queue as the server sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueFacts {
    /// Never handed out yet.
    pub waiting: u64,
    /// Handed out and not settled, retries waiting for their time included.
    pub in_flight: u64,
    /// Open pulls: workers that would take something now.
    pub pulls: u64,
    /// Most handed out at once, if bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u32>,
    /// Nothing is handed out before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<Timestamp>,
}

/// The workers of a queue, as the registry last heard of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerFacts {
    /// Those that pull from the queue, the gone of the last day included.
    pub of_queue: u32,
    /// Of these, not offline.
    pub alive: u32,
    /// Of these, ready and running the task's kind.
    pub able: u32,
    /// Slots of the able.
    pub slots: u32,
    /// Of these, in use at the last beat.
    pub running: u32,
    /// The workers of the queue that do not run it now, and why; at most 16 are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hindered: Vec<Hindered>,
}

/// A worker that does not run the task now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hindered {
    /// Which.
    pub worker: AgentId,
    /// How it is.
    pub status: AgentStatus,
    /// Why not.
    pub reason: String,
}
