//! The request to the holder of a running task: `shoal.cancel.<queue>.<id>`, and to a worker: drain.

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
