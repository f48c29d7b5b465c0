//! An agent's record in the registry: `shoal_agents/<id>`, put whole with every heartbeat.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, QueueName};
use crate::newer::{More, Word};
use crate::time::Timestamp;

/// One member of the fleet, as it last described itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentRecord {
    /// The same over restarts.
    pub id: AgentId,
    /// New at every boot.
    pub instance: String,
    /// What kind of program.
    pub kind: AgentKind,
    /// Where it runs.
    pub hostname: String,
    /// Where it can be reached, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Port of that address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Version of the program.
    pub version: String,
    /// How it says it is.
    pub status: AgentStatus,
    /// Why it is not `ready`, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Queues it pulls from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueName>,
    /// Free words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it can run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runtimes: BTreeMap<String, RuntimeInfo>,
    /// Room for attempts at once.
    #[serde(default)]
    pub slots: u32,
    /// Of these, taken now; absent where nobody counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_taken: Option<u32>,
    /// What runs now, as `<queue>.<id>`; at most 64 are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<String>,
    /// How many run now.
    #[serde(default)]
    pub running_count: u32,
    /// What is free on its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<Resources>,
    /// When this instance began.
    pub registered_at: Timestamp,
    /// When this record was written.
    pub last_heartbeat: Timestamp,
    /// When the server last answered a pull, with a task or without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fetch: Option<Timestamp>,
    /// When the server last confirmed an ack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ack: Option<Timestamp>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// What kind of program an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum AgentKind {
    /// A Shoal worker.
    Worker,
    /// Somebody else's program, registered over HTTP.
    External,
    /// A word of a newer version.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(Word),
}

/// How an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum AgentStatus {
    /// Not taking work yet.
    Starting,
    /// Fetching work.
    Ready,
    /// Finishing what runs, taking nothing new.
    Draining,
    /// Gone.
    Offline,
    /// A word of a newer version.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(Word),
}

impl AgentStatus {
    /// Every status of this version.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Draining, Self::Offline];
}

impl std::fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Offline => "offline",
            Self::Newer(word) => word.as_str(),
        })
    }
}

/// What one runtime of a worker can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuntimeInfo {
    /// Version of the engine behind it, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Words: `cpu_limit`, `memory_limit`, `pids_limit`, `pause`, …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Why it runs nothing now, if so: the engine behind it is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// The names of runtimes that run `container` workloads, in the order in which a worker prefers them.
pub const CONTAINER_RUNTIMES: [&str; 3] = ["docker", "containerd", "kubernetes"];

impl AgentRecord {
    /// Whether it runs workloads of this kind now, as far as its runtimes go.
    pub fn runs(&self, kind: &str) -> bool {
        let works = |name: &str| self.runs_in(name);
        match kind {
            "container" => CONTAINER_RUNTIMES.into_iter().any(works),
            // A call over NATS, whatever it reaches.
            "invoke" => works("call"),
            kind => works(kind),
        }
    }

    /// Whether it has a skill: the name of one of its queues, or a word of its label [`SKILLS`].
    pub fn is_skilled(&self, skill: &str) -> bool {
        is_skilled(skill, self.queues.iter(), self.labels.get(SKILLS))
    }

    /// Whether its runtime of this name works.
    pub fn runs_in(&self, runtime: &str) -> bool {
        self.runtimes.get(runtime).is_some_and(|runtime| runtime.reason.is_none())
    }
}

/// The label of a worker that lists its skills, separated by commas or spaces.
pub const SKILLS: &str = "skills";

/// Whether a worker of these queues and this label has a skill.
pub fn is_skilled<'a>(skill: &str, mut queues: impl Iterator<Item = &'a QueueName>, label: Option<&String>) -> bool {
    let words = label.map(String::as_str).unwrap_or_default();
    queues.any(|queue| queue.as_str() == skill) || words.split([',', ' ']).any(|word| word == skill)
}

/// What is free on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// Idle CPU, in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory that can be had without swapping.
    pub memory_bytes: u64,
    /// Space where work folders are.
    pub disk_bytes: u64,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// What a worker has run since it began: the data of its service's endpoint `info` in `nats micro stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tally {
    /// Attempts started.
    pub started: u64,
    /// Tasks that succeeded.
    pub succeeded: u64,
    /// Tasks given up.
    pub failed: u64,
    /// Attempts after which another follows, handed-back ones included.
    pub retried: u64,
    /// Tasks stopped on request.
    pub cancelled: u64,
    /// Attempts whose lease was lost, and tasks that ended so.
    pub lost: u64,
    /// Average time of an attempt, from start to end.
    pub average_ms: f64,
}
