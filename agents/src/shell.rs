//! Where a job's commands run, seen from those who want one run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemas::TaskError;
use schemas::record::Usage;
use tokio::io::{AsyncRead, AsyncWrite};

/// Runs commands of one job, all in the same surroundings: its workspace, its environment, its limits.
pub trait Shell: Send + Sync {
    /// The workspace's root as commands see it.
    fn root(&self) -> &Path;

    /// Where commands see the file `name` of the folder that [`Shell::aside`] names.
    fn sees(&self, name: &str) -> PathBuf;

    /// A folder beside the workspace that both sides see: for prompts and other files that are no part of the change.
    /// As this process sees it.
    fn aside(&self) -> &Path;

    /// Runs one command until all that it started is gone. What it writes goes to the job's log too, masked.
    /// Dropped half way, the command is stopped by whoever owns the shell.
    fn run(&self, command: Command) -> BoxFuture<'_, Result<Ran, ShellError>>;

    /// Starts one that is spoken to over its stdin and stdout. Its stderr goes to the job's log. It ends with its
    /// `timeout`, or once the conversation is dropped.
    fn open(&self, command: Command) -> BoxFuture<'_, Result<Conversation, ShellError>>;
}

/// One command.
#[derive(Clone, Debug)]
pub struct Command {
    /// Program and arguments; no shell stands between.
    pub argv: Vec<String>,
    /// Added to the job's own environment.
    pub env: BTreeMap<String, String>,
    /// Working directory below the workspace's root; empty is the root.
    pub folder: PathBuf,
    /// Stopped after this: a polite signal, then kill, to all that it started.
    pub timeout: Duration,
    /// Bytes kept of each of stdout and stderr: half of them from the beginning, half from the end.
    pub keep: usize,
}

impl Command {
    /// A line for `sh -c` in the workspace's root, with 64 KiB of output kept of each stream.
    pub fn line(line: impl Into<String>, timeout: Duration) -> Self {
        Self::new(["sh".to_owned(), "-c".to_owned(), line.into()], timeout)
    }

    /// A program in the workspace's root, with 64 KiB of output kept of each stream.
    pub fn new(argv: impl IntoIterator<Item = String>, timeout: Duration) -> Self {
        Self { argv: argv.into_iter().collect(), env: BTreeMap::new(), folder: PathBuf::new(), timeout, keep: 64 << 10 }
    }
}

/// How a command ended.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Its exit code, unless a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed it, or part of it, for its memory.
    pub oom: bool,
    /// Stopped for its timeout.
    pub timed_out: bool,
    /// What it wrote, masked.
    pub stdout: Kept,
    /// What it wrote there, masked.
    pub stderr: Kept,
    /// Start to end.
    pub wall: Duration,
    /// What it used, where that is measured.
    pub usage: Usage,
}

impl Ran {
    /// Whether it ended with exit code 0, by itself.
    pub fn is_ok(&self) -> bool {
        self.exit_code == Some(0) && !self.timed_out
    }

    /// How it ended, for people: `exit code 1`, `timed out after 5s`, `signal 9 (out of memory)`.
    pub fn how(&self) -> String {
        match (self.timed_out, self.oom, self.exit_code, self.signal) {
            (true, ..) => {
                format!("timed out after {}", schemas::HumanDuration(Duration::from_secs(self.wall.as_secs())))
            }
            (_, true, ..) => "killed for using more memory than its limit".to_owned(),
            (.., Some(code), _) => format!("exit code {code}"),
            (.., Some(signal)) => format!("signal {signal}"),
            (.., None, None) => "no exit code".to_owned(),
        }
    }
}

/// What is kept of a stream: its beginning and its end, and how much there was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The beginning.
    pub head: Vec<u8>,
    /// The end; empty while everything fits into the beginning.
    pub tail: Vec<u8>,
    /// Bytes between them that are not kept.
    pub cut: u64,
}

impl Kept {
    /// As text, with the cut told in its place.
    pub fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if self.cut > 0 {
            text.push_str(&format!("\n[… {} bytes left out …]\n", self.cut));
        }
        text.push_str(&String::from_utf8_lossy(&self.tail));
        text
    }
}

/// A running command that is spoken to.
pub struct Conversation {
    /// To it.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// From it.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its end; dropped, it is stopped.
    pub end: BoxFuture<'static, Result<Ran, ShellError>>,
}

/// Why a command could not be run to an end of its own or of its timeout.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShellError {
    /// It could not be started: no such program, no such image, an engine that is down.
    #[error("{}", .0.message)]
    NotStarted(TaskError),
    /// It was lost with what ran it.
    #[error("{}", .0.message)]
    Lost(TaskError),
}

impl ShellError {
    /// The same for the record.
    pub fn to_task_error(&self) -> TaskError {
        match self {
            Self::NotStarted(error) | Self::Lost(error) => error.clone(),
        }
    }
}
