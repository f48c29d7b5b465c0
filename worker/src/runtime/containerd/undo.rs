//! The undoing of one container: everything that is found by its id, and its record last.

use std::io;
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, KillRequest, WaitRequest,
};
use containerd_client::tonic::{Code as Grpc, Status};

use super::engine::{Engine, PATIENCE, ours};
use super::input::Beside;
use super::labels::Ways;
use super::status::{is_missing, is_unreachable, words};
use super::{groups, network};

/// For the end of what was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to remove what is busy for a moment.
const AGAIN: Duration = Duration::from_millis(50);
/// How often that is tried.
const TRIES: u32 = 100;

/// Why something of a container is left. Whoever finds its record tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum UndoError {
    #[error("{}", words(.0))]
    Engine(#[from] Box<Status>),
    #[error("{what} is left: {source}")]
    Left { what: &'static str, source: io::Error },
}

impl UndoError {
    /// The engine does not answer.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Engine(status) if is_unreachable(status).is_some())
    }
}

impl From<Status> for UndoError {
    fn from(status: Status) -> Self {
        Self::Engine(Box::new(status))
    }
}

/// Kills what runs in it and removes it with all that belongs to it. What is gone already is gone. May be done twice at
/// once, and again after it failed.
pub(super) async fn undo(engine: &Engine, id: &str) -> Result<(), UndoError> {
    let request = GetContainerRequest { id: id.to_owned() };
    let record = match engine.ask(PATIENCE, engine.containers().get(ours(request))).await {
        Ok(found) => found.container.unwrap_or_default(),
        Err(status) if is_missing(&status) => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let ways = Ways::of(&record.labels);
    remove_task(engine, id, &ways.group).await?;
    // What fails must not keep the rest, but the record stays, and with it the task to try again.
    let mut ended = network::disconnect(&engine.place.cni_bin_dirs, id, &ways.network)
        .await
        .map_err(|source| UndoError::Left { what: "its network", source });
    if let Err(status) = remove_snapshot(engine, id).await {
        ended = ended.and(Err(status.into()));
    }
    if let Err(source) = Beside::of(id).remove() {
        ended = ended.and(Err(UndoError::Left { what: "a folder", source }));
    }
    ended?;
    let request = DeleteContainerRequest { id: id.to_owned() };
    match engine.ask(PATIENCE, engine.containers().delete(ours(request))).await {
        Err(status) if !is_missing(&status) => Err(status.into()),
        _ => Ok(()),
    }
}

/// Ends and removes its task, if it has one.
async fn remove_task(engine: &Engine, id: &str, group: &str) -> Result<(), Status> {
    let mut tries = 0;
    loop {
        tries += 1;
        let status = match delete_task(engine, id).await {
            Ok(()) => return Ok(()),
            Err(status) if is_unreachable(&status).is_some() || tries >= TRIES => return Err(status),
            Err(status) => status,
        };
        if status.code() != Grpc::FailedPrecondition {
            tokio::time::sleep(AGAIN).await;
        }
        kill(engine, id, group).await;
        let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        // However it ended: the next look tells.
        let _ = engine.ask(KILL_PATIENCE, engine.tasks().wait(ours(request))).await;
    }
}

/// Removes a task that has ended, or was never started.
pub(super) async fn delete_task(engine: &Engine, id: &str) -> Result<(), Status> {
    let request = DeleteTaskRequest { container_id: id.to_owned() };
    match engine.ask(PATIENCE, engine.tasks().delete(ours(request))).await {
        Err(status) if !is_missing(&status) => Err(status),
        _ => Ok(()),
    }
}

/// Kills all that runs in it, halted or not; by its control group too, so that it needs no answer.
pub(super) async fn kill(engine: &Engine, id: &str, group: &str) {
    let request =
        KillRequest { container_id: id.to_owned(), exec_id: String::new(), signal: libc::SIGKILL as u32, all: true };
    match engine.ask(PATIENCE, engine.tasks().kill(ours(request))).await {
        Ok(()) => {}
        // Gone, or no longer running.
        Err(status) if matches!(status.code(), Grpc::NotFound | Grpc::FailedPrecondition) => {}
        Err(status) => tracing::debug!(id, %status, "not killed by its engine"),
    }
    if !group.is_empty() {
        groups::kill(group);
    }
}

async fn remove_snapshot(engine: &Engine, id: &str) -> Result<(), Status> {
    let mut tries = 0;
    loop {
        tries += 1;
        match engine.remove_snapshot(id).await {
            Err(status) if is_unreachable(&status).is_none() && tries < TRIES => tokio::time::sleep(AGAIN).await,
            removed => return removed,
        }
    }
}
