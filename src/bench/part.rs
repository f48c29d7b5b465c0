//! Parts of a measured fleet that are this program in a hidden role: `shoal __bench <JSON>`.

use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::BenchError;
use super::engine;
use super::sleeper;
use crate::nats_server::die_with_parent;
use crate::output;

/// The word by which this program knows that it is one.
pub const WORD: &str = "__bench";
/// How long a part may take to say that it is ready.
const READY: Duration = Duration::from_secs(60);

/// What it is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The worker of the engine without Shoal.
    Engine(engine::Spec),
    /// A worker of Shoal with a handler that sleeps.
    Sleeper(sleeper::Spec),
}

/// This program as a part. Its stdout says when it is ready.
pub fn main(spec: Option<std::ffi::OsString>) -> std::process::ExitCode {
    let spec = spec.and_then(|spec| serde_json::from_str(spec.to_str()?).ok());
    let Some(part) = spec else {
        output::talk(format_args!("error: `{WORD}` is for `shoal bench` alone"));
        return std::process::ExitCode::from(2);
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr);
    subscriber.init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::talk(format_args!("error: cannot start: {error}"));
            return std::process::ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        match part {
            Part::Engine(spec) => {
                let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
                tokio::select! {
                    ended = engine::work(spec, || output::line(format_args!("ready engine"))) => ended,
                    _ = end.recv() => Ok(()),
                }
            }
            Part::Sleeper(spec) => sleeper::run(spec).await,
        }
    });
    runtime.shutdown_background();
    match ended {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            output::talk(format_args!("error: a part of `shoal bench`: {error}"));
            std::process::ExitCode::FAILURE
        }
    }
}

/// Starts a part; returns once it is ready.
pub async fn start(part: &Part) -> Result<Child, BenchError> {
    let mut command = this_program();
    command.arg(WORD).arg(serde_json::to_string(part).expect("our own types always serialize"));
    Ok(ready(command).await?.0)
}

/// This program, with nothing of our own settings. Dies with the thread that starts it, which must be the main one: that
/// ends last.
pub fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SHOAL_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    die_with_parent(&mut command);
    command
}

/// Starts it and waits for the line in which it says that it is ready.
pub async fn ready(mut command: Command) -> Result<(Child, String), BenchError> {
    let mut child = command.spawn().map_err(|error| BenchError::fleet("could not start a part of the fleet", error))?;
    let stdout = child.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(READY, lines.next_line()).await;
    match line {
        Ok(Ok(Some(line))) if line.starts_with("ready ") => Ok((child, line)),
        Ok(Ok(line)) => {
            let said = line.unwrap_or_default();
            Err(BenchError::broken(format!("a part of the fleet did not start; it said {said:?} and more on stderr")))
        }
        Ok(Err(error)) => Err(BenchError::fleet("could not hear a part of the fleet", error)),
        Err(error) => Err(BenchError::fleet("a part of the fleet was not ready in time", error)),
    }
}

/// Asks it to go, and sees it gone.
pub async fn end(mut child: Child) {
    if let Some(pid) = child.id() {
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        // Gone already is gone too.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(Duration::from_secs(30), child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
