//! The Docker runtime: one container a start, on any engine that speaks the Engine API from 1.41 on.
//!
//! ```text
//! start:  policy -> image -> create -> attach -> start          each step undone if a later one fails
//! attend:           wait ----------> inspect -> exit            asked again after every outage of the engine
//!                   attach --------> stdout, stderr             bounded pipes; attached again after an outage
//!                   stats or cgroup files, from 100 ms on
//! end:    collect (result, artifacts) -> remove
//! ```
//!
//! **Nothing slips away.** A container is known by its labels: fleet, worker, instance, start. It is `live` from before
//! it is created until it is removed; what carries our labels and is not live is swept. The guard, a process of its
//! own, kills what a frozen or dead worker left.
//!
//! **The engine may go.** Every request is bounded in time and given up as soon as the engine does not answer; a start
//! then fails as `Unavailable`, a running container is waited for again when the engine is back.

#![cfg(target_os = "linux")]

mod attend;
pub mod bare;
pub mod census;
mod core;
mod create;
pub mod credentials;
mod early;
mod engine;
mod files;
pub(in crate::runtime) mod grip;
mod instances;
mod launch;
mod load;
mod network;
mod output;
mod program;
pub mod pull;
pub mod refusal;
mod runtime;
pub mod sweep;
mod usage;

use std::path::PathBuf;

use schemas::AgentId;

pub use super::container::{guard, labels};

use super::process::GuardCommand;
use crate::policy::ContainerSettings;

pub use engine::found;
pub use runtime::DockerRuntime;

/// The word for this runtime in configuration, registry and errors.
const NAME: &str = "docker";

/// Settings of the Docker runtime.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// Which engine, and what is allowed on it.
    pub settings: ContainerSettings,
    /// Tells this fleet from all others that may use the same engine.
    pub fleet: String,
    /// The worker's id: what other instances of it left is swept.
    pub worker: AgentId,
    /// This boot of the worker.
    pub instance: String,
    /// A folder of this worker alone, for images on their way to the engine. Emptied at the start; made when needed.
    pub scratch: PathBuf,
    /// How the guard is started: this program, with another first argument.
    pub guard: GuardCommand,
}

/// Why the Docker runtime is not available.
#[derive(Debug, thiserror::Error)]
pub enum DockerRuntimeError {
    /// No engine is where one is looked for.
    #[error("no Docker engine was found at {tried}; name one with --docker-host or DOCKER_HOST")]
    NoEngine {
        /// Where.
        tried: String,
    },
    /// The host cannot be used.
    #[error("the Docker engine `{host}` cannot be used: {why}")]
    Host {
        /// As it was named.
        host: String,
        /// What is wrong.
        why: String,
    },
}
