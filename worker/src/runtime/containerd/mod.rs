//! The containerd runtime: one container a start, by containerd's own API, in a namespace of its own.
//!
//! ```text
//! start:  policy -> image -> record -> snapshot -> network -> task -> start     all undone if a later step fails
//! attend: wait -> control group's last numbers -> delete task -> exit            asked again after every outage
//!         FIFOs ---------> stdout, stderr                                        held by the shim while we are away
//! end:    collect (result, artifacts) -> undo
//! ```
//!
//! **The record is the journal.** A container's record is made before anything else of it and removed after everything
//! else. Whatever else it has (task, snapshot, network namespace, address, FIFOs) is found by its id alone, so a start
//! that broke off anywhere, in this process or in one that was killed, is undone from its record: by the start itself,
//! by the guard, by the next sweep.
//!
//! **The engine may go.** containerd leaves its containers running when it stops; they are waited for again when it is
//! back. Their dead-man's switch needs no engine: the guard kills by control group.
//!
//! It works on a containerd of this machine and as root: it makes FIFOs, mounts and network namespaces.

#![cfg(target_os = "linux")]

mod attend;
mod cni;
mod content;
mod core;
mod create;
mod engine;
pub(in crate::runtime) mod grip;
mod groups;
mod image;
mod import;
mod input;
mod instances;
mod labels;
mod launch;
mod namespace;
mod network;
mod pull;
mod runtime;
mod seccomp;
mod snapshot;
mod spec;
mod status;
mod sweep;
mod tail;
mod undo;
mod users;
mod view;

use std::path::PathBuf;

use schemas::AgentId;
use serde::{Deserialize, Serialize};

use super::process::GuardCommand;
use crate::policy::ContainerSettings;

pub use engine::found;
pub use image::ImportError;
pub use runtime::ContainerdRuntime;

/// The word for this runtime in configuration, registry and errors.
const NAME: &str = "containerd";

/// The namespace of containerd that everything of ours is in.
pub const NAMESPACE: &str = "shoal";

/// Which containerd, and where what belongs to its containers beside it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its socket.
    pub socket: PathBuf,
    /// Where CNI's plugins are looked for.
    pub cni_bin_dirs: Vec<PathBuf>,
}

impl Place {
    /// As these settings say.
    pub fn of(settings: &ContainerSettings) -> Self {
        let usual = || ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from).to_vec();
        Self {
            socket: settings.containerd_address.clone(),
            cni_bin_dirs: settings.cni_bin_dir.clone().map_or_else(usual, |folder| vec![folder]),
        }
    }
}

/// Settings of the containerd runtime.
#[derive(Clone, Debug)]
pub struct ContainerdConfig {
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

/// Why the containerd runtime is not available.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdRuntimeError {
    /// It makes mounts, FIFOs and network namespaces.
    #[error("containers on containerd are for root; this worker runs as another user")]
    NotRoot,
    /// The address is no path.
    #[error("the containerd address `{address}` cannot be used: {why}")]
    Address {
        /// As it was named.
        address: String,
        /// What is wrong.
        why: String,
    },
}
