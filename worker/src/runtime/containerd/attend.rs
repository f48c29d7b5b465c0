//! What accompanies one running container to its end: its output, its usage, its exit. Outlives outages of containerd.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{CloseIoRequest, WaitRequest, WaitResponse};
use schemas::record::Usage;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::core::Core;
use super::engine::{Engine, PATIENCE, ours};
use super::input::{Beside, Output, Pipes};
use super::status::{is_missing, is_unreachable, words};
use super::undo::delete_task;
use crate::logs::Notes;
use crate::runtime::Exit;
use crate::runtime::container::jobs::{Ended, Known};
use crate::runtime::container::usage::Meter;

/// The first look; most short jobs are over by then.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Longest time between two looks. What is used after the last one is seen at the end, except memory where the kernel
/// keeps no peak.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A wait has no end of its own.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// After an answer that makes no sense.
const ASK_AGAIN: Duration = Duration::from_millis(500);

pub(super) struct Attendant {
    pub(super) core: Arc<Core>,
    pub(super) known: Arc<Known>,
    pub(super) notes: Notes,
    /// How often the guard had killed before it; `None` where it does not kill this one.
    pub(super) kills: Option<u64>,
}

impl Attendant {
    /// To the very end. Cancel safe: what is dropped half way tells no end.
    pub(super) async fn attend(
        self,
        pipes: Pipes,
        output: Output,
        stdin: Option<String>,
        tell: watch::Sender<Option<Ended>>,
    ) {
        let began = SystemTime::now();
        let gone = CancellationToken::new();
        let carrying = pipes.carry(output, &gone);
        let feeding = self.feed(stdin);
        tokio::pin!(carrying, feeding);
        let (mut cut, mut fed) = (None, false);
        let metering = follow(&self.known.meter);
        let ending = self.end(began);
        tokio::pin!(metering, ending);
        let ended = loop {
            tokio::select! {
                ended = &mut ending => break ended,
                () = self.known.abandoned.cancelled() => {
                    break Err("the engine does not answer, so it could not be stopped".to_owned());
                }
                was_cut = &mut carrying, if cut.is_none() => cut = Some(was_cut),
                () = &mut feeding, if !fed => fed = true,
                () = &mut metering => {}
            }
        };
        let is_known = ended.is_ok();
        tell.send_replace(Some(ended));
        gone.cancel();
        let cut = match cut {
            Some(cut) => cut,
            None => carrying.await,
        };
        if cut {
            self.notes.say("the output was kept open after the end of the container; it was cut").await;
        }
        // Not before: with the task goes the shim, and with that what it has not handed on yet.
        if is_known && let Err(status) = delete_task(&self.core.engine, &self.known.name).await {
            tracing::debug!(name = self.known.name, %status, "its task stays until it is removed");
        }
    }

    /// All the input there is, and then its end: ours, and that which the shim holds open meanwhile.
    async fn feed(&self, stdin: Option<String>) {
        let Some(stdin) = stdin else { return };
        Beside::of(&self.known.name).feed(stdin).await;
        let engine = &self.core.engine;
        let request = CloseIoRequest { container_id: self.known.name.clone(), exec_id: String::new(), stdin: true };
        if let Err(status) = engine.ask(PATIENCE, engine.tasks().close_io(ours(request))).await {
            tracing::debug!(name = self.known.name, %status, "its input is not closed");
        }
    }

    async fn end(&self, began: SystemTime) -> Ended {
        let ended = match wait(&self.core.engine, &self.known.name).await {
            Ok(ended) => ended,
            Err(why) => return Err(why),
        };
        let meter = &self.known.meter;
        // The last numbers, exact: the group stays as long as the task.
        meter.read();
        let mut exit = exit(&ended, meter, began);
        let is_unasked = exit.signal == Some(libc::SIGKILL) && !self.known.placed().stopped;
        exit.not_kept_alive = is_unasked && self.kills.is_some_and(|before| self.core.keeper.kills() > before);
        Ok(exit)
    }
}

/// How it ended, by what was told and measured.
pub(super) fn exit(ended: &WaitResponse, meter: &Meter, began: SystemTime) -> Exit {
    let code = i32::try_from(ended.exit_status).ok();
    let at = ended.exited_at.and_then(|at| SystemTime::try_from(at).ok());
    let wall_ms = at.and_then(|at| at.duration_since(began).ok()).map_or(0, |ran| ran.as_millis() as u64);
    Exit {
        code,
        signal: code.filter(|code| (129..=192).contains(code)).map(|code| code - 128),
        oom: meter.oom(),
        pids_exceeded: meter.pids_exceeded(),
        not_kept_alive: false,
        usage: Usage { wall_ms, ..meter.usage() },
    }
}

/// Waits for the end of a task, over every outage; an error says how it was lost. Cancel safe.
pub(super) async fn wait(engine: &Engine, id: &str) -> Result<WaitResponse, String> {
    loop {
        engine.up().await;
        let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        match engine.ask(FOR_EVER, engine.tasks().wait(ours(request))).await {
            Ok(ended) => return Ok(ended),
            Err(status) if is_missing(&status) => return Err("somebody else removed the container".to_owned()),
            Err(status) if is_unreachable(&status).is_some() => tokio::time::sleep(ASK_AGAIN / 5).await,
            Err(status) => {
                tracing::warn!(id, error = words(&status), "containerd does not tell how a container is");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

/// Looks again and again; never completes. Cancel safe.
pub(super) async fn follow(meter: &Meter) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        meter.read();
    }
}
