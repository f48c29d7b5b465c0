//! Settings of one queue: `shoal_queues/<queue>`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent_job::AgentJob;
use crate::newer::{More, Word};
use crate::quantity::Limit;
use crate::task::RetryPolicy;
use crate::time::{HumanDuration, Timestamp};

/// What is set for a queue. The cap and the pause act on the server (the queue's consumer); this is their memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QueueSettings {
    /// Most tasks handed out at once, over the whole fleet; retries waiting for their time count too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<u32>,
    /// Nothing is handed out before this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<Timestamp>,
    /// What a holder cut off from the server does with its running workload.
    #[serde(skip_serializing_if = "OnDisconnect::is_stop")]
    pub on_disconnect: OnDisconnect,
    /// Used where a task says nothing.
    #[serde(skip_serializing_if = "QueueDefaults::is_empty")]
    pub defaults: QueueDefaults,
    /// The job that a prompt to this queue becomes; without one the queue takes no prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AgentJob>")]
    pub agent: Option<PromptJob>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// An agent job whose title and description a prompt fills in. Kept as it was given: what a newer version has in it comes
/// back, and makes nothing else of the settings unreadable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PromptJob(serde_json::Value);

impl PromptJob {
    /// The job, if this version can read it.
    pub fn read(&self) -> Result<AgentJob, serde_json::Error> {
        AgentJob::deserialize(&self.0)
    }
}

impl From<AgentJob> for PromptJob {
    fn from(job: AgentJob) -> Self {
        Self(serde_json::to_value(job).expect("our own types are JSON"))
    }
}

/// What happens to a running workload whose lease cannot be renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum OnDisconnect {
    /// It is stopped before another worker may start it.
    #[default]
    Stop,
    /// It goes on; a returning holder claims again before anything else, and may find itself superseded.
    Continue,
    /// A word of a newer version, taken for `stop`.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(Word),
}

impl OnDisconnect {
    fn is_stop(&self) -> bool {
        *self == Self::Stop
    }
}

/// A queue's own defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QueueDefaults {
    /// As in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Limit<HumanDuration>>,
    /// As in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
    /// As in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// As in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace: Option<HumanDuration>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

impl QueueDefaults {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
