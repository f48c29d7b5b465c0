//! Instances of functions, as the worker sees them: by id, whatever boot of the worker made them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerState, ContainerSummary};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use schemas::record::Usage;
use schemas::{FunctionName, StartId};
use tokio_util::sync::CancellationToken;

use super::attend::{ASK_AGAIN, attach, settled, signal};
use super::core::Core;
use super::early::{Early, follow};
use super::engine::PATIENCE;
use super::labels;
use super::launch::address;
use super::output;
use super::refusal::{status, words};
use super::runtime::{DockerRuntime, failed, word};
use super::sweep::is_inherited;
use super::usage::{LONGEST_PAUSE_OF_INSTANCES, wall_ms};
use crate::policy::FUNCTION_NETWORK;
use crate::runtime::container::usage::Meter;
use crate::runtime::instances::{Found, Instances, Launch, Launched, Output};
use crate::runtime::{Exit, RuntimeError, StartError, Started};

/// What this boot of the worker knows of its instances beside what the engine does, by id.
#[derive(Default)]
pub(super) struct Kept {
    all: Mutex<HashMap<String, Arc<Instance>>>,
}

/// One of them.
#[derive(Default)]
struct Instance {
    meter: Meter,
    /// Its output from the beginning, until somebody takes it; `None` of one that another boot made.
    early: Mutex<Option<Early>>,
    /// It is to end at our own wish.
    stopping: AtomicBool,
    /// Nothing more will be written.
    gone: CancellationToken,
}

impl Kept {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Instance>>> {
        // No code that holds it can panic half way.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, id: &str, early: Early, gone: CancellationToken) {
        let early = Mutex::new(Some(early));
        self.all().insert(id.to_owned(), Arc::new(Instance { early, gone, ..Instance::default() }));
    }

    fn of(&self, id: &str) -> Arc<Instance> {
        self.all().entry(id.to_owned()).or_default().clone()
    }

    pub(super) fn forget(&self, id: &str) {
        if let Some(instance) = self.all().remove(id) {
            instance.gone.cancel();
        }
    }
}

impl Core {
    /// The engine's word on one of ours.
    async fn state(&self, what: &'static str, id: &str) -> Result<ContainerState, RuntimeError> {
        match self.engine.ask(PATIENCE, self.engine.docker.inspect_container(id, None)).await {
            Ok(found) => Ok(found.state.unwrap_or_default()),
            Err(error) => Err(self.refused(what, id, error)),
        }
    }

    fn refused(&self, what: &'static str, id: &str, error: Error) -> RuntimeError {
        match status(&error) {
            Some(404) => {
                self.kept.forget(id);
                not_found(id)
            }
            _ => failed(what, error),
        }
    }

    async fn list_instances(&self) -> Result<Vec<Found>, RuntimeError> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(&self.owner.instance_filters()).build();
        let listing = async {
            let mut found = Vec::new();
            for container in self.engine.docker.list_containers(Some(options)).await? {
                let docker = &self.engine.docker;
                if !is_inherited(docker, container.labels.as_ref(), container.image_id.as_deref()).await? {
                    found.extend(self.found(container));
                }
            }
            Ok(found)
        };
        self.engine.ask(PATIENCE, listing).await.map_err(|source| failed("list", source))
    }

    /// What the labels tell; `None` of what is none of ours after all.
    fn found(&self, container: ContainerSummary) -> Option<Found> {
        let labels = container.labels.filter(|labels| self.owner.owns_instance(labels))?;
        let id = container.id?;
        let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
        let read = (
            FunctionName::new(label(labels::FUNCTION)),
            label(labels::INDEX).parse::<u32>(),
            StartId::new(label(labels::START)),
        );
        let (Ok(function), Ok(index), Ok(start)) = read else {
            tracing::warn!(id, "a container has our labels, but they name no instance; it is left alone");
            return None;
        };
        let name = container.names.into_iter().flatten().next().unwrap_or_default();
        let network = container.host_config.and_then(|host| host.network_mode);
        let networks = container.network_settings.and_then(|settings| settings.networks);
        let status = word(container.state, container.status.as_deref());
        let address = match status {
            crate::runtime::Status::Stopped => None,
            _ => address(networks.into_iter().flatten(), network.as_deref().unwrap_or(FUNCTION_NETWORK)),
        };
        Some(Found {
            id,
            name: name.trim_start_matches('/').to_owned(),
            function,
            index,
            start,
            spec: label(labels::SPEC).to_owned(),
            status,
            address,
        })
    }

    async fn listen(self: &Arc<Self>, id: &str) -> Result<Output, RuntimeError> {
        let instance = self.kept.of(id);
        let (Started { stdout, stderr, .. }, mut output) = output::pipes();
        let early = instance.early.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(early) = early {
            match early.hand_to(output) {
                Ok(()) => return Ok(Output { stdout, stderr }),
                Err(back) => output = back,
            }
        }
        let attached = attach(&self.engine, id, false).await;
        let attached = attached.map_err(|error| self.refused("tell output", id, error))?;
        let (core, id, gone) = (self.clone(), id.to_owned(), instance.gone.clone());
        self.attendants.spawn(async move {
            core.closed.run_until_cancelled(follow(&core, &id, Some(attached), output, &gone)).await;
        });
        Ok(Output { stdout, stderr })
    }

    async fn instance_ended(&self, id: &str) -> Result<Exit, RuntimeError> {
        let instance = self.kept.of(id);
        let metering = instance.meter.follow(&self.engine, id, LONGEST_PAUSE_OF_INSTANCES);
        tokio::select! {
            biased;
            ended = self.end_of(id, &instance) => ended,
            () = metering => unreachable!("it never completes"),
        }
    }

    /// Waits over every outage of the engine. Once this runtime is closed it is nobody's business any more.
    async fn end_of(&self, id: &str, instance: &Instance) -> Result<Exit, RuntimeError> {
        let mut returns = self.engine.returns();
        loop {
            returns.borrow_and_update();
            let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
            let mut answers = self.engine.docker.wait_container(id, Some(options));
            let is_back = tokio::select! {
                biased;
                _ = answers.next() => false,
                _ = returns.changed() => true,
            };
            drop(answers);
            let inspect = || self.engine.docker.inspect_container(id, None);
            let state = match self.engine.insist(&self.closed, inspect).await {
                None => std::future::pending().await,
                Some(Ok(found)) => found.state.unwrap_or_default(),
                Some(Err(error)) if status(&error) == Some(404) => return Err(self.refused("wait", id, error)),
                Some(Err(error)) => {
                    tracing::warn!(id, error = words(&error), "the engine does not tell how an instance is");
                    tokio::time::sleep(ASK_AGAIN).await;
                    continue;
                }
            };
            if state.running.unwrap_or(false) {
                // Paused counts as running, too.
                if !is_back {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                continue;
            }
            return Ok(self.instance_exit(id, state, instance).await);
        }
    }

    async fn instance_exit(&self, id: &str, state: ContainerState, instance: &Instance) -> Exit {
        let is_stopping = || instance.stopping.load(Ordering::Relaxed);
        let (state, memory) = settled(&self.engine, id, state, is_stopping).await;
        let code = state.exit_code.and_then(|code| i32::try_from(code).ok());
        let usage = Usage { wall_ms: wall_ms(&state), ..instance.meter.usage() };
        // As with tasks: killed by nobody we know of, with every byte of its memory used.
        let is_full = matches!((memory, usage.peak_memory_bytes), (Some(limit @ 1..), Some(peak)) if peak >= limit);
        let is_unasked = state.exit_code == Some(137) && !is_stopping();
        Exit {
            code,
            signal: code.and_then(signal),
            oom: state.oom_killed.unwrap_or(false) || (is_unasked && is_full),
            pids_exceeded: instance.meter.pids_exceeded(),
            not_kept_alive: false,
            usage,
        }
    }

    async fn used_by_instance(&self, id: &str) -> Result<Usage, RuntimeError> {
        let (state, instance) = (self.state("tell usage", id).await?, self.kept.of(id));
        let is_running = state.running.unwrap_or(false);
        if is_running && let Err(error) = instance.meter.look(&self.engine, id).await {
            return Err(self.refused("tell usage", id, error));
        }
        let so_far = ContainerState { finished_at: Some(jiff::Timestamp::now().to_string()), ..state.clone() };
        let wall_ms = wall_ms(if is_running { &so_far } else { &state });
        Ok(Usage { wall_ms, ..instance.meter.usage() })
    }

    async fn halt(&self, id: &str, halted: bool) -> Result<(), RuntimeError> {
        let docker = &self.engine.docker;
        let (what, done) = if halted {
            ("pause", self.engine.ask(PATIENCE, docker.pause_container(id)).await)
        } else {
            ("resume", self.engine.ask(PATIENCE, docker.unpause_container(id)).await)
        };
        let Err(error) = done else { return Ok(()) };
        if status(&error).is_none_or(|status| status == 404) {
            return Err(self.refused(what, id, error));
        }
        // It may be so already; one that has ended is neither halted nor going on.
        let state = self.state(what, id).await?;
        let is_so = state.running.unwrap_or(false) && state.paused.unwrap_or(false) == halted;
        if is_so { Ok(()) } else { Err(failed(what, error)) }
    }

    async fn end_instance(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let found = match self.engine.ask(PATIENCE, self.engine.docker.inspect_container(id, None)).await {
            Ok(found) => found,
            Err(error) if status(&error) == Some(404) => {
                self.kept.forget(id);
                return Ok(());
            }
            Err(error) => return Err(failed("remove", error)),
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        if !self.owner.owns_instance(&labels) {
            return Err(not_found(id));
        }
        let instance = self.kept.of(id);
        instance.stopping.store(true, Ordering::Relaxed);
        let state = found.state.unwrap_or_default();
        if !grace.is_zero() && state.running.unwrap_or(false) {
            tokio::select! {
                () = self.ask_instance_to_end(id, grace, state.paused.unwrap_or(false)) => {}
                () = tokio::time::sleep(grace) => {}
            }
        }
        self.remove(id).await.map_err(|source| failed("remove", source))?;
        self.kept.forget(id);
        Ok(())
    }

    /// The image's own signal; returns when it has ended, or cannot be asked.
    async fn ask_instance_to_end(&self, id: &str, grace: Duration, is_paused: bool) {
        if is_paused {
            // A signal to who stands still is heard by nobody.
            let _ = self.engine.ask(PATIENCE, self.engine.docker.unpause_container(id)).await;
        }
        // The engine counts whole seconds; ours is the exact end.
        let seconds = i32::try_from(grace.as_secs().saturating_add(1)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        if let Err(error) =
            self.engine.ask(grace + PATIENCE, self.engine.docker.stop_container(id, Some(options))).await
        {
            tracing::debug!(id, error = words(&error), "an instance could not be asked to end");
        }
    }
}

/// The engine's ids are longer than ours; the beginning is what people know them by.
fn not_found(id: &str) -> RuntimeError {
    let short: String = id.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    let start = StartId::new(short.to_ascii_lowercase());
    RuntimeError::NotFound { start: start.unwrap_or_else(|_| StartId::new("unknown").expect("a literal")) }
}

impl Instances for DockerRuntime {
    fn launch(&self, wish: Launch) -> BoxFuture<'_, Result<Launched, StartError>> {
        self.core.clone().launch(wish).boxed()
    }

    fn instances(&self) -> BoxFuture<'_, Result<Vec<Found>, RuntimeError>> {
        self.core.list_instances().boxed()
    }

    fn output<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Output, RuntimeError>> {
        self.core.listen(id).boxed()
    }

    fn ended<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        self.core.instance_ended(id).boxed()
    }

    fn instance_stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Usage, RuntimeError>> {
        self.core.used_by_instance(id).boxed()
    }

    fn halt_instance<'a>(&'a self, id: &'a str, halted: bool) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.core.halt(id, halted).boxed()
    }

    fn destroy<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.core.end_instance(id, grace).boxed()
    }
}
