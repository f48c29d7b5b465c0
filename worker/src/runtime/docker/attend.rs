//! What accompanies one running container to its end: its output, its usage, its exit. Outlives outages of the engine.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard::container::AttachContainerResults;
use bollard::errors::Error;
use bollard::models::{ContainerState, ContainerStateStatusEnum};
use bollard::query_parameters::{AttachContainerOptionsBuilder, WaitContainerOptionsBuilder};
use futures_util::StreamExt;
use schemas::record::Usage;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::core::Core;
use super::engine::{Engine, LEAVES_WITHIN, PATIENCE};
use super::output::{Carried, Output};
use super::refusal::{status, words};
use super::usage;
use crate::logs::Notes;
use crate::runtime::Exit;
use crate::runtime::container::jobs::{Ended, Known};

/// The engine may learn of the kernel's kill a moment after the end itself: asked so often, with this pause before each.
const OOM_IS_TOLD: (u32, Duration) = (20, Duration::from_millis(50));
/// After an answer that makes no sense.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Attendant {
    pub(super) core: Arc<Core>,
    pub(super) known: Arc<Known>,
    pub(super) notes: Notes,
    /// The engine was away, and the container is still there: its output is to be had again.
    pub(super) again: Notify,
    /// How often the guard had killed before it; `None` where it does not kill this one.
    pub(super) kills: Option<u64>,
}

/// Attaches to a container, created or running.
pub(super) async fn attach(engine: &Engine, name: &str, stdin: bool) -> Result<AttachContainerResults, Error> {
    let options = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).stdin(stdin).build();
    engine.ask(PATIENCE, engine.docker.attach_container(name, Some(options))).await
}

impl Attendant {
    /// To the very end. Cancel safe: what is dropped half way tells no end.
    pub(super) async fn attend(
        self,
        attached: AttachContainerResults,
        output: Output,
        stdin: Option<String>,
        tell: watch::Sender<Option<Ended>>,
    ) {
        let gone = CancellationToken::new();
        let carrying = self.carry(attached, output, stdin, &gone);
        tokio::pin!(carrying);
        let mut carried = None;
        let metering = self.known.meter.follow(&self.core.engine, &self.known.name, usage::LONGEST_PAUSE);
        let ending = self.end();
        tokio::pin!(metering, ending);
        let ended = loop {
            tokio::select! {
                ended = &mut ending => break ended,
                () = self.known.abandoned.cancelled() => {
                    break Err("the engine does not answer, so it could not be stopped".to_owned());
                }
                done = &mut carrying, if carried.is_none() => carried = Some(done),
                () = &mut metering => {}
            }
        };
        tell.send_replace(Some(ended));
        gone.cancel();
        let carried = match carried {
            Some(carried) => carried,
            None => carrying.await,
        };
        if carried == Carried::Cut {
            self.notes.say("the engine kept the output open after the end of the container; it was cut").await;
        }
    }

    /// All the output there is; after an outage from then on.
    async fn carry(
        &self,
        attached: AttachContainerResults,
        mut output: Output,
        stdin: Option<String>,
        gone: &CancellationToken,
    ) -> Carried {
        let mut carried = output.carry(attached, stdin, gone).await;
        loop {
            tokio::select! {
                biased;
                () = gone.cancelled() => return carried,
                () = self.again.notified() => {}
            }
            match attach(&self.core.engine, &self.known.name, false).await {
                Ok(attached) => {
                    self.notes.say("the engine was away; output from meanwhile may be missing").await;
                    carried = output.carry(attached, None, gone).await;
                }
                Err(error) => tracing::debug!(name = self.known.name, %error, "not attached again"),
            }
        }
    }

    /// Waits for its exit, over every outage of the engine.
    async fn end(&self) -> Ended {
        let name = self.known.name.as_str();
        let mut returns = self.core.engine.returns();
        let mut broken: Option<SystemTime> = None;
        loop {
            returns.borrow_and_update();
            let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
            let mut answers = self.core.engine.docker.wait_container(name, Some(options));
            let (waited, is_back) = tokio::select! {
                biased;
                waited = answers.next() => (waited, false),
                _ = returns.changed() => (None, true),
            };
            drop(answers);
            match waited {
                // A code other than 0 comes as an error.
                Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => {}
                Some(Err(error)) if status(&error) == Some(404) => return Err("the container is gone".to_owned()),
                Some(Err(_)) | None => {
                    broken.get_or_insert_with(SystemTime::now);
                }
            }
            let inspect = || self.core.engine.docker.inspect_container(name, None);
            let state = match self.core.engine.insist(&self.core.closed, inspect).await {
                // Closed: whoever waited is told by the end of the channel.
                None => std::future::pending().await,
                Some(Ok(found)) => found.state.unwrap_or_default(),
                Some(Err(error)) if status(&error) == Some(404) => return Err("the container is gone".to_owned()),
                Some(Err(error)) => {
                    tracing::warn!(name, error = words(&error), "the engine does not tell how a container is");
                    tokio::time::sleep(ASK_AGAIN).await;
                    continue;
                }
            };
            if matches!(state.status, Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD)) {
                return Err("somebody else removes the container".to_owned());
            }
            if state.running.unwrap_or(false) {
                // Paused counts as running, too. What comes from now on is its own doing.
                broken = None;
                self.again.notify_one();
                if !is_back {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                continue;
            }
            if let Some(why) = self.lost(&state, broken) {
                return Err(why);
            }
            let exit = self.exit(state).await;
            if self.was_ended_by_a_leaving_engine(&exit).await {
                return Err("the engine was being stopped, and ended the container".to_owned());
            }
            return Ok(exit);
        }
    }

    /// Whether the engine itself ended it. One that lets its containers live tells their exits truly.
    fn lost(&self, state: &ContainerState, broken: Option<SystemTime>) -> Option<String> {
        let broken = jiff::Timestamp::try_from(broken?).ok()?;
        let finished = state.finished_at.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
        if self.core.engine.facts().live_restore || finished.is_some_and(|finished| finished < broken) {
            return None;
        }
        let code = state.exit_code.unwrap_or_default();
        Some(format!("the engine was away, and the container was ended meanwhile (exit code {code})"))
    }

    /// Whether nobody but the engine itself, on its way out, sent the signal that ended it. What sees it end so sees a
    /// connection that still works.
    async fn was_ended_by_a_leaving_engine(&self, exit: &Exit) -> bool {
        let patience = match exit.signal {
            Some(libc::SIGTERM) => LEAVES_WITHIN,
            // It had the grace before, with the door shut.
            Some(libc::SIGKILL) => Duration::ZERO,
            Some(_) | None => return false,
        };
        let by_others = self.known.placed().stopped || exit.oom || exit.not_kept_alive;
        !by_others && !self.core.engine.facts().live_restore && self.core.engine.is_leaving(patience).await
    }

    async fn exit(&self, state: ContainerState) -> Exit {
        let is_stopped = || self.known.placed().stopped;
        let (state, memory) = settled(&self.core.engine, &self.known.name, state, is_stopped).await;
        if let Some(error) = state.error.as_deref().filter(|error| !error.is_empty()) {
            self.notes.say(&format!("the engine says: {error}")).await;
        }
        let code = state.exit_code.and_then(|code| i32::try_from(code).ok());
        let meter = &self.known.meter;
        let usage = Usage { wall_ms: usage::wall_ms(&state), ..meter.usage() };
        let is_unasked = state.exit_code == Some(137) && !self.known.placed().stopped;
        let not_kept_alive = is_unasked && self.kills.is_some_and(|before| self.core.keeper.kills() > before);
        // A container that ends faster than the engine hears of the kernel's kill is never said to be killed for memory.
        // One that was killed by nobody we know of, with every byte of its memory used, was.
        let is_full = matches!((memory, usage.peak_memory_bytes), (Some(limit @ 1..), Some(peak)) if peak >= limit);
        Exit {
            code,
            signal: code.and_then(signal),
            oom: state.oom_killed.unwrap_or(false) || (is_unasked && !not_kept_alive && is_full),
            pids_exceeded: meter.pids_exceeded(),
            not_kept_alive,
            usage,
        }
    }
}

/// How it ended, once the engine has heard of the kernel's kill if there was one; and its bound of memory where it had to
/// be asked for.
pub(super) async fn settled(
    engine: &Engine,
    name: &str,
    mut state: ContainerState,
    is_stopped: impl Fn() -> bool,
) -> (ContainerState, Option<u64>) {
    let (times, pause) = OOM_IS_TOLD;
    let mut memory = None;
    for _ in 0..times {
        if state.exit_code != Some(137) || state.oom_killed == Some(true) || is_stopped() {
            break;
        }
        tokio::time::sleep(pause).await;
        match engine.ask(PATIENCE, engine.docker.inspect_container(name, None)).await {
            Ok(found) => {
                memory = found.host_config.and_then(|host| host.memory).and_then(|bytes| u64::try_from(bytes).ok());
                state = found.state.unwrap_or(state);
            }
            Err(_) => break,
        }
    }
    (state, memory)
}

/// The signal that an exit code stands for.
pub(super) fn signal(code: i32) -> Option<i32> {
    (129..=159).contains(&code).then(|| code - 128)
}
