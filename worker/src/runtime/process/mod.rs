//! The process runtime: OS processes on this machine that never outlive their worker. Linux only so far.
//!
//! ```text
//! worker --- guard                one small single-threaded process, started once
//!   |          +-- shepherd --- job      a main process and all that it forks
//!   |          +-- shepherd --- job
//!   |          +-- shepherd              idle, kept for the next job
//!   +---sockets---^
//! ```
//!
//! **Nothing slips away.** Guard and shepherds are subreapers: whatever a job forks, in whichever session it hides,
//! becomes a child of its shepherd once its parents are gone. A shepherd runs one job at a time, so its descendants
//! are exactly that job's, and "the job is gone" is the kernel saying that there is no child. No marker in the
//! environment, no search through `/proc`, no control group is needed for that.
//!
//! **Each falls back on the next.** A worker that ends, in whatever way, closes its sockets: every shepherd kills its
//! job, and the guard leaves when all are gone. A shepherd that is killed takes the main process with it (parent-death
//! signal) and leaves the rest to the guard, which kills every child that is no shepherd. A guard that is killed is
//! noticed by its shepherds, which kill their jobs; the worker starts another. Only who kills guard *and* shepherd at
//! once can set a daemon free that has left its session. A worker that is frozen cannot renew the lease, a word in
//! shared memory that each shepherd checks when its job's time is over.
//!
//! **Fast.** A shepherd is small and used again, so a start is a `vfork`, and many start in parallel. A short job costs
//! two packets, one there and one back, and its pipes are read when all is in them. One guard that
//! starts every job itself (the obvious way) has to guess whose a daemon is that scrubbed its environment; one new
//! process around each job has not, but doubles the forks.

#![cfg(target_os = "linux")]

mod cgroups;
mod guard;
mod handle;
mod jobs;
mod mounts;
mod output;
mod plan;
mod runtime;
mod shepherd;
mod signals;
mod spawn;
mod tree;
mod wire;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub use guard::guard_main;
pub use runtime::ProcessRuntime;

/// The first argument by which the program is asked to be a guard.
pub const GUARD_ARGUMENT: &str = "__guard";

/// Settings of the process runtime.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// How a guard is started.
    pub guard: GuardCommand,
    /// Names the worker's control groups (`shoal-<name>`): the worker's id, say. Need not be unique.
    pub name: String,
    /// Whether control groups are made for jobs with bounds; else rlimits hold what they can.
    pub cgroups: bool,
    /// Whether the jobs of a worker that is not root may gain privileges by setuid programs such as `sudo`. The
    /// worker cannot kill what runs as root, so such a job may survive it.
    pub allow_setuid: bool,
    /// Kept open by the guard until nothing of the jobs is left, also once the worker is gone: with a lock on it, it shows
    /// others when that is.
    pub lock: Option<Arc<OwnedFd>>,
}

impl ProcessConfig {
    /// The usual settings: this program is the guard too.
    pub fn new(name: impl Into<String>) -> Self {
        let guard = GuardCommand::this_program();
        Self { guard, name: name.into(), cgroups: true, allow_setuid: false, lock: None }
    }
}

/// How a guard is started. The program must call [`guard_main`] before anything else.
#[derive(Clone, Debug)]
pub struct GuardCommand {
    /// What is executed.
    pub program: PathBuf,
    /// With these arguments.
    pub args: Vec<OsString>,
}

impl GuardCommand {
    /// The running program itself, also when its file has been replaced meanwhile.
    pub fn this_program() -> Self {
        Self { program: "/proc/self/exe".into(), args: vec![GUARD_ARGUMENT.into()] }
    }
}

/// Why the process runtime is not available.
#[derive(Debug, thiserror::Error)]
pub enum ProcessRuntimeError {
    /// The guard did not start.
    #[error("could not start the guard `{program}`")]
    Guard {
        /// What was to be executed.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The memory that worker and guard share could not be made.
    #[error("could not make memory to share with the guard")]
    Lease(#[source] std::io::Error),
}
