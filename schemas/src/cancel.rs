//! The request to the holder of a running task: `shoal.cancel.<queue>.<id>`, and to a worker: drain, cordon.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
