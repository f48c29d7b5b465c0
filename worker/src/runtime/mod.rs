//! What runs workloads. One trait over every runtime; a further runtime is one new file beside this one.
//!
//! The caller owns the work folder, the environment and the decisions; a runtime starts, watches and ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use schemas::agent::RuntimeInfo;
use schemas::record::{TaskError, Usage};
use schemas::{Code, Cpu, Limit, StartId, TaskKey, Workload};
use tokio::io::AsyncRead;
use tokio::sync::watch;

use crate::logs::Notes;

mod clock;
pub mod container;
#[cfg(feature = "containerd")]
pub mod containerd;
pub mod docker;
#[cfg(test)]
pub mod fake;
pub mod instances;
pub mod process;

/// Runs workloads of one kind.
pub trait Runtime: Send + Sync + 'static {
    /// The word for it in configuration and registry: `process`, `docker`, …
    fn name(&self) -> &'static str;

    /// What it can do on this machine.
    fn capabilities(&self) -> RuntimeInfo;

    /// Why it can run nothing now, kept up to date; `None` where nothing of the kind can happen.
    fn trouble(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// What a workload finds around it: the base of its environment, and where it sees the files that it is told of.
    fn surroundings(&self, folder: &Path, result_file: &Path) -> Surroundings;

    /// Finds out what can be known before a start: what policy and limits forbid, whether the image can be had (it is
    /// pulled). Starts nothing, keeps nothing of the job; what a start then meets may be new. Cancel safe.
    fn prepare<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<(), StartError>> {
        let _ = job;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Starts one workload and returns once it runs, or ran. A failed start leaves nothing behind.
    /// Cancel safe: a start whose future is dropped is taken back; a [`Self::stop`] of it returns when it is.
    fn start(&self, job: Job) -> BoxFuture<'_, Result<Started, StartError>>;

    /// Waits for the end. When it returns, everything that the workload started is gone.
    /// Cancel safe, and may be called again.
    fn wait<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Exit, RuntimeError>>;

    /// Ends it: a polite signal, `grace`, then kill, to all that it started. Returns when it is gone; a `grace` of
    /// zero kills at once. Stopping what is gone already is no error. Two stops at once: the shorter grace wins.
    fn stop<'a>(&'a self, start: &'a StartId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// What it uses now.
    fn stats<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Usage, RuntimeError>>;

    /// Halts it without ending it.
    fn pause<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Lets it go on.
    fn resume<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Brings what an ended workload left, its result and the files that match its globs, into the job's folder and
    /// result file, where they are not there already. Returns warnings. Before `remove`.
    fn collect<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Vec<String>, RuntimeError>> {
        let _ = start;
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// What this runtime holds for this worker, running or not.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>>;

    /// Frees what is kept of an ended workload. Removing what is gone already is no error.
    fn remove<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Whether what it runs can be shown folders of this machine ([`Job::binds`]).
    fn shares_folders(&self) -> bool {
        true
    }

    /// Where it keeps containers that outlive a call; `None` where it keeps none.
    fn instances(&self) -> Option<&dyn instances::Instances> {
        None
    }

    /// The dead-man's switch: running workloads may live until `until` at least. A runtime that can, kills by itself
    /// what is not kept alive in time, also while the worker is frozen or gone.
    fn keep_alive(&self, until: Instant);

    /// Kills what still runs and returns when nothing of this runtime is left. Nothing can be started after it.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// One workload to start.
#[derive(Clone, Debug)]
pub struct Job {
    /// Names it; unique for ever.
    pub start: StartId,
    /// Whose it is, for labels and logs.
    pub key: TaskKey,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// What to run.
    pub workload: Workload,
    /// The whole environment; nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// An existing folder of its own: the working directory.
    pub folder: PathBuf,
    /// Where its result is looked for at its end; beside the folder.
    pub result_file: PathBuf,
    /// Globs below its working directory that are gathered at its end.
    pub artifacts: Vec<String>,
    /// For what people should know of the start: pull progress, trouble. To be let go of once the workload is gone.
    pub notes: Notes,
    /// Bounds, defaults filled in.
    pub limits: Bounds,
    /// Killed by then unless kept alive; `None` never.
    pub alive_until: Option<Instant>,
    /// What the worker itself shows a container of its machine, beside what the task asks for; no policy is asked.
    pub binds: Vec<schemas::task::Mount>,
}

/// What a workload finds around it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Variables below what the task sets.
    pub env: BTreeMap<String, String>,
    /// The result file as the workload sees it.
    pub result_file: String,
}

/// One workload that a runtime holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its start.
    pub start: StartId,
    /// How it is.
    pub status: Status,
}

/// How a workload is, in one vocabulary over all runtimes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It runs.
    Running,
    /// Halted, may go on.
    Paused,
    /// Not begun, or ended.
    Stopped,
    /// A word of the engine that this version does not know.
    Unknown(String),
}

/// Bounds of one workload, defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// CPU time per time.
    pub cpu: Limit<Cpu>,
    /// Memory.
    pub memory: Limit<schemas::Bytes>,
    /// Processes and threads.
    pub pids: Limit<u64>,
}

/// A running workload's output. Both ends reach EOF once everything that it started is gone.
pub struct Started {
    /// Standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Standard error.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// How long it has run when this is told; it may be over by then.
    pub ran: Duration,
}

/// How a workload ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed it, or part of it, for its memory.
    pub oom: bool,
    /// It ran into its bound of processes.
    pub pids_exceeded: bool,
    /// Killed by the dead-man's switch.
    pub not_kept_alive: bool,
    /// What it used, everything that it started included.
    pub usage: Usage,
}

/// Why a workload could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such program.
    #[error("there is no program `{program}` on this worker")]
    CommandNotFound {
        /// As the task names it.
        program: String,
    },
    /// It is there but cannot be executed.
    #[error("`{program}` cannot be executed")]
    CommandNotExecutable {
        /// As the task names it.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// This worker cannot hold a limit that the task asks for.
    #[error("this worker cannot hold the limit `{limit}`: {why}")]
    LimitUnsupported {
        /// Field of `limits`.
        limit: &'static str,
        /// What is missing.
        why: String,
    },
    /// The runtime does not run this kind of workload.
    #[error("the runtime `{runtime}` does not run `{kind}` workloads")]
    WrongKind {
        /// Whose word.
        runtime: &'static str,
        /// The workload's word.
        kind: &'static str,
    },
    /// The engine or this worker's policy will not have it, for a reason that has a code of its own.
    #[error("{message}")]
    Refused {
        /// From the table.
        code: Code,
        /// What is refused and why.
        message: String,
    },
    /// The engine does not answer. The workload was not started, and nothing of it is left.
    #[error("the runtime `{runtime}` does not answer: {why}")]
    Unavailable {
        /// Whose word.
        runtime: &'static str,
        /// What was seen.
        why: String,
    },
    /// The engine fell silent in the middle of the start: the workload may have run, and is removed as soon as it can be.
    #[error("the runtime `{runtime}` fell silent while it started the workload: {why}")]
    Unsure {
        /// Whose word.
        runtime: &'static str,
        /// What was seen.
        why: String,
    },
    /// Something that may pass.
    #[error("{what}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Option<std::io::Error>,
    },
}

impl StartError {
    /// The same for the record.
    pub fn to_task_error(&self) -> TaskError {
        let code = match self {
            Self::CommandNotFound { .. } => Code::CommandNotFound,
            Self::CommandNotExecutable { .. } => Code::CommandNotExecutable,
            Self::LimitUnsupported { .. } => Code::LimitUnsupported,
            Self::WrongKind { .. } => Code::RuntimeNotAllowed,
            Self::Refused { code, .. } => *code,
            Self::Unavailable { .. } => Code::EngineUnavailable,
            Self::Unsure { .. } => Code::EngineLost,
            Self::Failed { .. } => Code::StartFailed,
        };
        let mut message = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            message.push_str(": ");
            message.push_str(&error.to_string());
            source = error.source();
        }
        TaskError::new(code, message)
    }
}

/// Why a running workload could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime has no such ability; `capabilities` says so too.
    #[error("the runtime `{runtime}` cannot {what}")]
    Unimplemented {
        /// Whose word.
        runtime: &'static str,
        /// The verb.
        what: &'static str,
    },
    /// Nothing of that start id is known.
    #[error("nothing runs under the id {start}")]
    NotFound {
        /// The id asked for; of a container the beginning of its id.
        start: StartId,
    },
    /// The workload was lost with the engine behind the runtime: how it would have ended is not known.
    #[error("lost with the engine of the runtime `{runtime}`: {why}")]
    Lost {
        /// Whose word.
        runtime: &'static str,
        /// What was seen.
        why: String,
    },
    /// The engine behind the runtime is gone or refuses.
    #[error("the runtime `{runtime}` failed to {what}")]
    Engine {
        /// Whose word.
        runtime: &'static str,
        /// The verb.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
