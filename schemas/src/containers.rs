//! What a worker holds on its engines, and how it is halted by hand: `shoal.control.<agent>.containers`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, FunctionName, StartId};
use crate::record::Usage;

/// What is asked of one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainersRequest {
    /// What is to be done.
    pub verb: ContainersVerb,
    /// Which container, by its whole id; all where it is left out. `pause` and `resume` want one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// What is to be done with containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainersVerb {
    /// Tell which there are.
    List,
    /// The same with what they use now.
    Stats,
    /// Halt one.
    Pause,
    /// Let one go on.
    Resume,
}

/// What the worker says: those that were meant, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContainersReply {
    /// By function and index.
    pub containers: Vec<HeldContainer>,
}

/// A container on a worker's engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldContainer {
    /// Its id on the engine.
    pub id: String,
    /// Its name on the engine.
    pub name: String,
    /// The worker that holds it.
    pub worker: AgentId,
    /// The runtime it is in: `docker`, `containerd`.
    pub runtime: String,
    /// `running`, `paused`, `stopped`, `unknown`.
    pub status: String,
    /// The function whose instance it is.
    pub function: FunctionName,
    /// Which of its instances.
    pub index: u32,
    /// The start id of the instance; also of its logs.
    pub start: StartId,
    /// Where its worker reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// What it uses, where that was asked and is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}
