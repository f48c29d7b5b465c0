//! The request to the holder of a running task: `shoal.cancel.<queue>.<id>`, and to a worker: drain, cordon, holds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{QueueName, TaskId};
use crate::time::HumanDuration;

/// Stop this run. The durable part is the flag in the record; this only makes it quick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelRequest {
    /// Which run, so that a cancel never hits a later one.
    pub sequence: u64,
}

/// What the holder says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelReply {
    /// Whether it runs this very run and is stopping it.
    pub stopping: bool,
    /// Whether this very run has done what cannot be undone: it is too late, and its own end is about to be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ending: bool,
}

/// Take nothing new, finish or hand back, leave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DrainRequest {
    /// How long running attempts may take; the worker's own drain grace if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<HumanDuration>,
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainReply {
    /// How many attempts it still holds.
    pub running: u32,
}

/// Take nothing new but stay: `shoal.control.<agent>.cordon`. A wish to this boot of the worker, gone with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CordonRequest {
    /// `false` lets it take tasks again.
    pub cordon: bool,
    /// By whom or why, for the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Default for CordonRequest {
    fn default() -> Self {
        Self { cordon: true, reason: None }
    }
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CordonReply {
    /// Whether it is cordoned now.
    pub cordoned: bool,
    /// How many attempts it still runs.
    pub running: u32,
}

/// Do you still hold this run: `shoal.control.<agent>.holds`. Asked by a worker that was handed what another's record says
/// runs there: a leader of a cluster that has just taken over may not know of renewals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldsRequest {
    /// Queue of the task.
    pub queue: QueueName,
    /// Its id.
    pub id: TaskId,
    /// Which run of it.
    pub sequence: u64,
    /// Which boot of the worker it was given to.
    pub instance: String,
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldsReply {
    /// Whether it runs it and has renewed its lease in time.
    pub holds: bool,
}
