//! What travels over HTTP and the micro service `shoal`, beside the messages themselves.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::agent::{AgentStatus, Resources, RuntimeInfo};
use crate::code::Code;
use crate::ids::{AgentId, QueueName, StartId, TaskId, TaskKey};
use crate::names::LogSource;
use crate::queue::QueueSettings;
use crate::record::{Artifact, TaskRecord};
use crate::time::Timestamp;

/// Why a call did not do what it was asked: RFC 9457, `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `urn:shoal:error:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time, for people.
    pub detail: String,
    /// From the table of codes.
    pub code: Code,
    /// What to try next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The field that is wrong, where it is one: `workload.command[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Who has the id, where it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<IdHolder>,
}

impl Problem {
    /// A problem of `code`.
    pub fn new(status: u16, code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:shoal:error:{code}"),
            title: code.meaning().trim_end_matches('.').to_owned(),
            status,
            detail: detail.into(),
            code,
            hint: None,
            field: None,
            holder: None,
        }
    }
}

/// Who has an id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdHolder {
    /// Which run.
    pub sequence: u64,
    /// `queued`, or the state in its record.
    pub state: String,
    /// On which worker, if it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<AgentId>,
    /// Since when it has the id.
    pub since: Timestamp,
}

/// A task that the server has stored.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// The id, made up where none was given.
    pub id: TaskId,
    /// The queue.
    pub queue: QueueName,
    /// Which run of the id.
    pub sequence: u64,
    /// The id of this submission.
    pub submission: String,
    /// Only with `once`: the record that exists already. Nothing was or will be started then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<Box<TaskRecord>>,
}

/// What became of one of many tasks submitted at once.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Submitted {
    /// It is stored.
    Accepted(Accepted),
    /// It is not; a problem has a `status`.
    Refused(Box<Problem>),
}

/// A task that only waits, in the shape of a record.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QueuedTask {
    /// The id.
    pub id: TaskId,
    /// The queue.
    pub queue: QueueName,
    /// Which run of the id.
    pub sequence: u64,
    /// The submitter's own id of this submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
    /// Always `queued`.
    #[schemars(extend("const" = "queued"))]
    pub state: String,
    /// As it came, if it is JSON; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Box<RawValue>>,
    /// When the server stored it.
    pub submitted_at: Timestamp,
    /// The record of an earlier run of the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<TaskRecord>>,
}

impl QueuedTask {
    /// A task of which no more is known.
    pub fn new(key: &TaskKey, sequence: u64, submitted_at: Timestamp) -> Self {
        let TaskKey { queue, id } = key.clone();
        Self { id, queue, sequence, submission: None, state: "queued".into(), task: None, submitted_at, previous: None }
    }
}

/// A task as it stands: its record, or the same shape for one that only waits.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ShownTask {
    /// There is a record of the newest run.
    Record(Box<TaskRecord>),
    /// It only waits.
    Queued(Box<QueuedTask>),
}

impl From<TaskRecord> for ShownTask {
    fn from(record: TaskRecord) -> Self {
        Self::Record(Box::new(record))
    }
}

/// One page of tasks.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TaskPage {
    /// Newest change first.
    pub tasks: Vec<ShownTask>,
    /// The `cursor` of the next page. A page may be short, or empty, and yet not the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How a cancel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// It is cancelled, and this call did it.
    Cancelled,
    /// It had ended before.
    AlreadyEnded,
    /// It ended by itself before it could be stopped.
    EndedMeanwhile,
    /// It is being stopped; the record does not say so yet.
    Asked,
}

/// What is said to a cancel.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cancelled {
    /// How it ended.
    pub outcome: CancelOutcome,
    /// The task now; its terminal record unless the outcome is `asked`.
    pub task: ShownTask,
}

/// One stored piece of log: some lines, as the worker sent them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogPiece {
    /// Its place, to go on from.
    pub sequence: u64,
    /// Which start of an attempt wrote it.
    pub start: StartId,
    /// Where it was written.
    pub source: LogSource,
    /// When it was stored.
    pub at: Timestamp,
    /// The lines, if they are text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The bytes, if they are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

/// The artifacts of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Artifacts {
    /// In the order of their starts; a path may come once a start.
    pub artifacts: Vec<Artifact>,
}

/// Somebody else's program that wants to be in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentRegistration {
    /// The same over restarts.
    pub id: AgentId,
    /// New at every boot; made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Where it can be reached; where the request came from, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Port of that address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Version of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How it is; `ready` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<AgentStatus>,
    /// Why it is not `ready`, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Queues it works for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueName>,
    /// Free words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it can run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runtimes: BTreeMap<String, RuntimeInfo>,
    /// Room for work at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
}

/// What a heartbeat may change. Without a body the agent merely lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AgentBeat {
    /// How it is; as before if absent, and `ready` where it was offline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<AgentStatus>,
    /// Why it is not `ready`, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What runs now; at most 64 are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<Vec<String>>,
    /// How many run now; as many as are named if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_count: Option<u32>,
    /// What is free on its machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<Resources>,
}

/// A queue as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueueInfo {
    /// Its name.
    pub name: QueueName,
    /// Never handed out yet.
    pub waiting: u64,
    /// Handed out and not settled, retries waiting for their time included.
    pub in_flight: u64,
    /// Open pulls: workers that would take something now.
    pub pulls: u64,
    /// Most handed out at once, if bounded.
    pub cap: Option<u32>,
    /// Nothing is handed out before.
    pub paused_until: Option<Timestamp>,
    /// Whether its consumer exists; a queue that no worker ever pulled from has none.
    pub consumer: bool,
    /// What is set for it.
    pub settings: QueueSettings,
}
