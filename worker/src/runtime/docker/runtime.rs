//! The runtime as the worker sees it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::errors::Error;
use bollard::models::ContainerSummaryStateEnum;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, StopContainerOptionsBuilder,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::StartId;
use schemas::agent::RuntimeInfo;
use schemas::record::Usage;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::core::Core;
use super::engine::{Engine, PATIENCE};
use super::files;
use super::refusal::{is_unreachable, status};
use super::{DockerConfig, DockerRuntimeError, NAME};
use crate::runtime::container::jobs::Known;
use crate::runtime::container::labels;
use crate::runtime::instances::Instances;
use crate::runtime::{Exit, Job, Listed, Runtime, RuntimeError, StartError, Started, Status, Surroundings};

/// For everything that is left at the end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(20);
/// The same where the engine does not answer: the guard goes on without us.
const CLOSE_PATIENCE_DOWN: Duration = Duration::from_secs(2);
/// Between two kills of a container that does not go.
const KILL_AGAIN: Duration = Duration::from_secs(5);
/// How long a container is tried to be stopped while the engine does not answer; less where its grace is shorter.
const ABANDON_AFTER: Duration = Duration::from_secs(10);
/// How long a stop may take the engine beyond its grace.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Runs containers on one Docker engine.
pub struct DockerRuntime {
    pub(super) core: Arc<Core>,
    /// What runs beside the jobs: the watch over the engine, the sweeps.
    services: TaskTracker,
    end_services: CancellationToken,
}

impl DockerRuntime {
    /// Finds the engine and sweeps what earlier lives of this worker left on it.
    pub async fn new(config: DockerConfig) -> Result<Self, DockerRuntimeError> {
        let engine = Arc::new(Engine::connect(&config.settings).await?);
        let core = Arc::new(Core::new(engine.clone(), config).await);
        let (services, end_services) = (TaskTracker::new(), CancellationToken::new());
        let end = end_services.clone();
        services.spawn(async move { engine.keep_watch(end).await });
        // Before the first job: what an earlier life left may hold what this one needs.
        if core.engine.trouble().borrow().is_none() {
            core.sweep().await;
        }
        let (sweeper, end) = (core.clone(), end_services.clone());
        services.spawn(async move { sweeper.keep_clean(end).await });
        let (keeper, end) = (core.clone(), end_services.clone());
        services.spawn(async move { keeper.keeper.keep(end).await });
        Ok(Self { core, services, end_services })
    }

    fn known(&self, start: &StartId) -> Result<Arc<Known>, RuntimeError> {
        self.core.jobs.get(start).ok_or_else(|| RuntimeError::NotFound { start: start.clone() })
    }

    async fn ended(&self, start: &StartId) -> Result<Exit, RuntimeError> {
        let mut ended = self.known(start)?.ended.clone();
        match ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone()) {
            Some(Ok(exit)) => Ok(exit),
            Some(Err(why)) => Err(RuntimeError::Lost { runtime: NAME, why }),
            None => Err(RuntimeError::NotFound { start: start.clone() }),
        }
    }

    async fn end(&self, start: &StartId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(known) = self.core.jobs.get(start) else { return Ok(()) };
        let mut ended = known.ended.clone();
        known.stopping();
        let stopping = async {
            if !grace.is_zero() {
                tokio::select! {
                    () = self.ask_to_stop(&known, grace) => {}
                    () = tokio::time::sleep(grace) => {}
                }
            }
            self.kill(&known).await
        };
        // Its end is told by whoever attends it; a channel that closes has nobody to tell.
        tokio::select! {
            biased;
            _ = ended.wait_for(Option::is_some) => {}
            never = stopping => never,
            () = self.give_up(&known, grace) => {}
        }
        Ok(())
    }

    /// Lets go of a container behind an engine that does not answer: its attempt, and the worker, must be able to end.
    async fn give_up(&self, known: &Known, grace: Duration) {
        tokio::time::sleep(grace.min(ABANDON_AFTER)).await;
        let _ = self.core.engine.trouble().wait_for(Option::is_some).await;
        known.abandoned.cancel();
    }

    /// The image's own signal, by the engine. Returns only when the engine thinks that it did all it can.
    async fn ask_to_stop(&self, known: &Known, grace: Duration) {
        let engine = &self.core.engine;
        // The engine counts whole seconds; ours is the exact end.
        let seconds = i32::try_from(grace.as_secs().saturating_add(1)).unwrap_or(i32::MAX);
        let stop = || {
            let options = StopContainerOptionsBuilder::default().t(seconds).build();
            engine.docker.stop_container(&known.name, Some(options))
        };
        loop {
            engine.up().await;
            match engine.ask(grace + STOP_PATIENCE, stop()).await {
                // One that answers others has heard this, too, and only counts the grace; a second signal could mean more.
                Err(Error::RequestTimeoutError) if engine.trouble().borrow().is_none() => {
                    return std::future::pending().await;
                }
                Err(error) if is_unreachable(&error).is_some() => tokio::time::sleep(KILL_AGAIN / 10).await,
                // Stopped, or about to be told so.
                _ => return std::future::pending().await,
            }
        }
    }

    /// Again and again until its end is seen.
    async fn kill(&self, known: &Known) {
        let engine = &self.core.engine;
        loop {
            engine.up().await;
            let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
            match engine.ask(PATIENCE, engine.docker.kill_container(&known.name, Some(options))).await {
                // Gone, or no longer running.
                Ok(()) => {}
                Err(error) if matches!(status(&error), Some(404 | 409)) => {}
                Err(error) => tracing::warn!(name = known.name, %error, "not killed yet"),
            }
            tokio::time::sleep(KILL_AGAIN).await;
        }
    }

    async fn halt(&self, start: &StartId, paused: bool) -> Result<(), RuntimeError> {
        let (known, engine) = (self.known(start)?, &self.core.engine);
        let name = known.name.as_str();
        let (what, halted) = if paused {
            ("pause", engine.ask(PATIENCE, engine.docker.pause_container(name)).await)
        } else {
            ("resume", engine.ask(PATIENCE, engine.docker.unpause_container(name)).await)
        };
        match halted {
            Ok(()) => Ok(()),
            // So it is already, or it has ended.
            Err(error) if matches!(status(&error), Some(304 | 404 | 409)) => Ok(()),
            Err(error) if status(&error) == Some(500) && error.to_string().contains("is not paused") => Ok(()),
            Err(source) => Err(failed(what, source)),
        }
    }

    async fn used(&self, start: &StartId) -> Result<Usage, RuntimeError> {
        let known = self.known(start)?;
        let ended = known.ended.borrow().clone();
        if let Some(Ok(exit)) = ended {
            return Ok(exit.usage);
        }
        known.meter.look(&self.core.engine, &known.name).await.map_err(|source| failed("tell usage", source))?;
        let wall_ms = known.placed().started.map_or(0, |started| started.elapsed().as_millis() as u64);
        Ok(Usage { wall_ms, ..known.meter.usage() })
    }

    async fn listed(&self) -> Result<Vec<Listed>, RuntimeError> {
        let (engine, owner) = (&self.core.engine, &self.core.owner);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&owner.filters()).build();
        let found = engine.ask(PATIENCE, engine.docker.list_containers(Some(options))).await;
        let found = found.map_err(|source| failed("list", source))?;
        let listed = found.into_iter().filter_map(|container| {
            let labels = container.labels?;
            let is_task = labels.get(labels::KIND).is_some_and(|kind| kind == labels::TASK_KIND);
            let start = labels.get(labels::START).and_then(|start| StartId::new(start).ok())?;
            (is_task && owner.is_of_this_life(&labels))
                .then(|| Listed { start, status: word(container.state, container.status.as_deref()) })
        });
        Ok(listed.collect())
    }

    async fn end_all(&self) {
        let core = &self.core;
        core.closed.cancel();
        core.attendants.close();
        let ending = async {
            core.attendants.wait().await;
            core.remove_all().await;
        };
        let mut trouble = core.engine.trouble();
        let down = async {
            // Its sender lives as long as the engine.
            let _ = trouble.wait_for(Option::is_some).await;
            tokio::time::sleep(CLOSE_PATIENCE_DOWN).await;
        };
        let removed = tokio::select! {
            () = ending => true,
            () = tokio::time::sleep(CLOSE_PATIENCE) => false,
            () = down => false,
        };
        if !removed {
            tracing::warn!(
                "the engine does not let everything be removed; the guard, or the next life of this worker, does"
            );
        }
        self.end_services.cancel();
        self.services.close();
        self.services.wait().await;
        match removed && core.engine.trouble().borrow().is_none() {
            true => core.keeper.end().await,
            false => core.keeper.leave(),
        }
    }
}

pub(super) fn failed(what: &'static str, source: Error) -> RuntimeError {
    RuntimeError::Engine { runtime: NAME, what, source: Box::new(source) }
}

/// The engine's word in ours.
pub(super) fn word(state: Option<ContainerSummaryStateEnum>, raw: Option<&str>) -> Status {
    use ContainerSummaryStateEnum as State;
    match state {
        Some(State::RUNNING | State::RESTARTING | State::STOPPING) => Status::Running,
        Some(State::PAUSED) => Status::Paused,
        Some(State::CREATED | State::EXITED | State::DEAD | State::REMOVING) => Status::Stopped,
        Some(State::EMPTY) | None => Status::Unknown(raw.unwrap_or_default().to_owned()),
    }
}

impl Runtime for DockerRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> RuntimeInfo {
        let facts = self.core.engine.facts();
        let words = [
            ("cpu_limit", facts.cpu_limit),
            ("instances", true),
            ("keep_alive", self.core.keeper.is_guarded()),
            ("memory_limit", facts.memory_limit),
            ("network_none", true),
            ("network_shared", super::network::is_possible(&facts.architecture)),
            ("pause", true),
            ("pids_limit", facts.pids_limit),
            ("stats", true),
        ];
        let mut capabilities: Vec<_> =
            words.into_iter().filter(|(_, can)| *can).map(|(word, _)| word.to_owned()).collect();
        capabilities.sort();
        let reason = self.core.engine.trouble().borrow().clone();
        RuntimeInfo { version: facts.version.clone(), capabilities, reason, ..RuntimeInfo::default() }
    }

    fn trouble(&self) -> Option<watch::Receiver<Option<String>>> {
        Some(self.core.engine.trouble())
    }

    fn shares_folders(&self) -> bool {
        self.core.shares_folders()
    }

    fn surroundings(&self, _folder: &Path, _result_file: &Path) -> Surroundings {
        // The rest of the environment is the image's business.
        Surroundings { env: Default::default(), result_file: files::result_path() }
    }

    fn prepare<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<(), StartError>> {
        let closed = || StartError::Failed { what: "the docker runtime is closed".to_owned(), source: None };
        async move {
            let prepared = self.core.closed.run_until_cancelled(self.core.prepare(job)).await;
            prepared.unwrap_or_else(|| Err(closed())).map(|_| ())
        }
        .boxed()
    }

    fn start(&self, job: Job) -> BoxFuture<'_, Result<Started, StartError>> {
        self.core.clone().start(job).boxed()
    }

    fn wait<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        self.ended(start).boxed()
    }

    fn stop<'a>(&'a self, start: &'a StartId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.end(start, grace).boxed()
    }

    fn stats<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Usage, RuntimeError>> {
        self.used(start).boxed()
    }

    fn pause<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.halt(start, true).boxed()
    }

    fn resume<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.halt(start, false).boxed()
    }

    fn collect<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Vec<String>, RuntimeError>> {
        async move { Ok(files::collect(&self.core.engine, &*self.known(start)?).await) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>> {
        self.listed().boxed()
    }

    fn remove<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let Some(known) = self.core.jobs.get(start) else { return Ok(()) };
            let removed = self.core.remove(&known.name).await;
            self.core.jobs.forget(start);
            match removed {
                Err(error) if is_unreachable(&error).is_some() => Ok(()),
                removed => removed.map_err(|source| failed("remove", source)),
            }
        }
        .boxed()
    }

    fn instances(&self) -> Option<&dyn Instances> {
        Some(self)
    }

    fn keep_alive(&self, until: Instant) {
        self.core.keeper.extend(until);
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.end_all().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_engine_is_one_of_ours() {
        let words = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
        let ours = words.map(|raw| {
            let state = serde_json::from_value(serde_json::Value::from(raw)).unwrap();
            word(Some(state), Some(raw))
        });
        use Status::{Paused, Running, Stopped};
        assert_eq!(ours, [Stopped, Running, Paused, Running, Stopped, Stopped, Stopped]);
        assert_eq!(word(None, Some("hibernating")), Status::Unknown("hibernating".to_owned()));
    }
}
