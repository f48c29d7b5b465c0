//! A shell of plain processes of this machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use schemas::{Code, TaskError};
use shoal_agents::{Command, Conversation, Kept, Ran, Shell, ShellError};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Runs each command as a process group of its own, which dies with the future that waits for it.
pub struct LocalShell {
    root: PathBuf,
    aside: tempfile::TempDir,
}

impl LocalShell {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), aside: tempfile::tempdir().unwrap() }
    }

    fn command(&self, command: &Command) -> std::io::Result<tokio::process::Child> {
        tokio::process::Command::new(&command.argv[0])
            .args(&command.argv[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.aside.path())
            .envs(&command.env)
            .current_dir(self.root.join(&command.folder))
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()
    }
}

fn not_started(command: &Command, error: &std::io::Error) -> ShellError {
    ShellError::NotStarted(TaskError::new(Code::StartFailed, format!("cannot start {}: {error}", command.argv[0])))
}

/// Kills what is left of a process group.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

impl Shell for LocalShell {
    fn root(&self) -> &Path {
        &self.root
    }

    fn sees(&self, name: &str) -> PathBuf {
        self.aside.path().join(name)
    }

    fn aside(&self) -> &Path {
        self.aside.path()
    }

    fn run(&self, command: Command) -> BoxFuture<'_, Result<Ran, ShellError>> {
        Box::pin(async move {
            let mut child = self.command(&command).map_err(|error| not_started(&command, &error))?;
            drop(child.stdin.take());
            let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            ended(child, &command, keep(stdout, command.keep), keep(stderr, command.keep)).await
        })
    }

    fn open(&self, command: Command) -> BoxFuture<'_, Result<Conversation, ShellError>> {
        Box::pin(async move {
            let mut child = self.command(&command).map_err(|error| not_started(&command, &error))?;
            let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let stderr = child.stderr.take().unwrap();
            let end = async move {
                let keep = keep(stderr, command.keep);
                ended(child, &command, std::future::ready(Kept::default()), keep).await
            };
            Ok(Conversation { stdin: Box::new(stdin), stdout: Box::new(stdout), end: Box::pin(end) })
        })
    }
}

async fn ended(
    mut child: tokio::process::Child,
    command: &Command,
    stdout: impl Future<Output = Kept>,
    stderr: impl Future<Output = Kept>,
) -> Result<Ran, ShellError> {
    use std::os::unix::process::ExitStatusExt;
    let began = Instant::now();
    let group = Group(Pid::from_raw(child.id().unwrap().cast_signed()));
    let wait = async {
        let ended = tokio::time::timeout(command.timeout, child.wait()).await;
        let timed_out = ended.is_err();
        if timed_out {
            let _ = killpg(group.0, Signal::SIGTERM);
            let _ = tokio::time::timeout(Duration::from_millis(500), child.wait()).await;
        }
        let _ = killpg(group.0, Signal::SIGKILL);
        (child.wait().await.unwrap(), timed_out)
    };
    let ((status, timed_out), stdout, stderr) = tokio::join!(wait, stdout, stderr);
    Ok(Ran {
        exit_code: status.code(),
        signal: status.signal(),
        timed_out,
        stdout,
        stderr,
        wall: began.elapsed(),
        ..Ran::default()
    })
}

/// Half of `most` bytes from the beginning, half from the end.
async fn keep(mut from: impl AsyncRead + Unpin, most: usize) -> Kept {
    let (mut kept, mut buffer) = (Kept::default(), vec![0; 16 << 10]);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let head = (most / 2 - kept.head.len()).min(read);
        kept.head.extend_from_slice(&buffer[..head]);
        kept.tail.extend_from_slice(&buffer[head..read]);
        let over = kept.tail.len().saturating_sub(most / 2);
        kept.tail.drain(..over);
        kept.cut += over as u64;
    }
    kept
}
