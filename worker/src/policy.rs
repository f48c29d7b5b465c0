//! What this worker allows in containers, whatever a task asks for. Pure.

use std::time::Duration;

use schemas::task::PullPolicy;
use schemas::{Bytes, Cpu, Limit};

use crate::runtime::Bounds;

/// How and what a worker runs in containers.
#[derive(Clone, Debug)]
pub struct ContainerSettings {
    /// The Docker engine as `unix:///…` or `tcp://…`; `None`: `DOCKER_HOST`, else the usual sockets.
    pub docker_host: Option<String>,
    /// What tasks may ask for.
    pub policy: Policy,
    /// Bounds where the task says nothing.
    pub limits: Bounds,
    /// Network of a task that asks for none.
    pub network: String,
    /// When images are pulled, where the task says nothing.
    pub pull: PullPolicy,
    /// Time between two sweeps of what nobody owns.
    pub sweep_every: Duration,
}

/// What loosens a container's confinement and is allowed here. Everything not named is forbidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Globs of images; `None` allows all, an empty list none.
    pub images: Option<Vec<String>>,
    /// Networks beside `none` and the worker's own default.
    pub networks: Vec<String>,
    /// Folders of this machine that may be mounted, with all below them.
    pub mounts: Vec<AllowedMount>,
    /// Capabilities that may be kept, as `NET_BIND_SERVICE`.
    pub capabilities: Vec<String>,
    /// Whether `privileged` is allowed.
    pub privileged: bool,
    /// Runtimes of the engine beside its default.
    pub engine_runtimes: Vec<String>,
}

/// A folder that may be mounted: `/data`, or `/data:ro`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedMount {
    /// Absolute.
    pub path: std::path::PathBuf,
    /// Only to be read.
    pub read_only: bool,
}

impl std::str::FromStr for AllowedMount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        if !path.starts_with('/') || path.contains(':') || path.split('/').any(|part| part == "..") {
            return Err(format!(
                "`{text}` is no mount: write an absolute path, with `:ro` behind it if only to be read"
            ));
        }
        Ok(Self { path: path.into(), read_only })
    }
}

impl Default for ContainerSettings {
    fn default() -> Self {
        Self {
            docker_host: None,
            policy: Policy::default(),
            limits: Bounds {
                cpu: Limit::At(Cpu { millis: 1_000 }),
                memory: Limit::At(Bytes::mebi(512)),
                pids: Limit::At(512),
            },
            network: "none".to_owned(),
            pull: PullPolicy::IfNotPresent,
            sweep_every: Duration::from_secs(60),
        }
    }
}
