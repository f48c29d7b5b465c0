//! The runtime as the worker sees it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::services::v1::{GetRequest, KillRequest, ListTasksRequest, PauseTaskRequest, ResumeTaskRequest};
use containerd_client::tonic::{Code as Grpc, Status as Answer};
use containerd_client::types::v1::Status as Word;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::StartId;
use schemas::agent::RuntimeInfo;
use schemas::record::Usage;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::core::Core;
use super::engine::{Engine, PATIENCE, ours};
use super::groups;
use super::labels::Ways;
use super::status::{failed, is_missing, is_unreachable};
use super::sweep::records;
use super::undo::{UndoError, kill, undo};
use super::{ContainerdConfig, ContainerdRuntimeError, ImportError, NAME, Place, view};
use crate::objects;
use crate::runtime::container::files::{self, RESULT, Take, prefixes, replace, take_result, unpack};
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

/// Runs containers on one containerd.
pub struct ContainerdRuntime {
    pub(super) core: Arc<Core>,
    /// What runs beside the jobs: the watch over the engine, the sweeps.
    services: TaskTracker,
    end_services: CancellationToken,
}

impl ContainerdRuntime {
    /// Finds the engine and sweeps what earlier lives of this worker left on it.
    pub async fn new(config: ContainerdConfig) -> Result<Self, ContainerdRuntimeError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(ContainerdRuntimeError::NotRoot);
        }
        let engine = Arc::new(Engine::connect(Place::of(&config.settings)).await?);
        let core = Arc::new(Core::new(engine.clone(), config).await);
        let (services, end_services) = (TaskTracker::new(), CancellationToken::new());
        let end = end_services.clone();
        services.spawn(async move { engine.keep_watch(end).await });
        // Before the first job: what an earlier life left may hold what this one needs.
        if !core.engine.is_down() {
            core.sweep().await;
        }
        let (sweeper, end) = (core.clone(), end_services.clone());
        services.spawn(async move { sweeper.keep_clean(end).await });
        let (keeper, end) = (core.clone(), end_services.clone());
        services.spawn(async move { keeper.keeper.keep(end).await });
        Ok(Self { core, services, end_services })
    }

    /// Imports the images of an archive that `docker save` or a tool of OCI wrote; returns their names. May be done again.
    pub async fn import(&self, archive: &Path) -> Result<Vec<String>, ImportError> {
        self.core.images.import(archive, self.core.engine.facts().architecture).await
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
        let stopping = stop(&self.core.engine, &known.name, grace);
        // Its end is told by whoever attends it; a channel that closes has nobody to tell.
        tokio::select! {
            biased;
            _ = ended.wait_for(Option::is_some) => {}
            never = stopping => match never {},
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

    async fn used(&self, start: &StartId) -> Result<Usage, RuntimeError> {
        let known = self.known(start)?;
        let ended = known.ended.borrow().clone();
        if let Some(Ok(exit)) = ended {
            return Ok(exit.usage);
        }
        known.meter.read();
        let wall_ms = known.placed().started.map_or(0, |started| started.elapsed().as_millis() as u64);
        Ok(Usage { wall_ms, ..known.meter.usage() })
    }

    async fn listed(&self) -> Result<Vec<Listed>, RuntimeError> {
        let (engine, owner) = (&self.core.engine, &self.core.owner);
        let found = records(engine, owner).await.map_err(|status| failed("list", status))?;
        let states = states(engine).await.map_err(|status| failed("list", status))?;
        let listed = found.into_iter().filter_map(|record| {
            let is_task = record.labels.get(labels::KIND).is_some_and(|kind| kind == labels::TASK_KIND);
            let start = record.labels.get(labels::START).and_then(|start| StartId::new(start).ok())?;
            let status = states.get(&record.id).map_or(Status::Stopped, |state| word(*state));
            (is_task && owner.is_of_this_life(&record.labels)).then_some(Listed { start, status })
        });
        Ok(listed.collect())
    }

    /// The result, and what the globs match where the working directory is the container's own.
    async fn collected(&self, known: &Known) -> Vec<String> {
        let placed = known.placed();
        let mut warnings = Vec::new();
        if let Err(error) = take_result(&known.folder.join(RESULT), &known.result_file) {
            warnings.push(format!("result not taken: {error}"));
        }
        let in_folder = Path::new(&placed.working_dir) == Path::new(schemas::task::WORK_FOLDER);
        let globs = match objects::globs(&known.artifacts) {
            Ok(globs) if !known.artifacts.is_empty() && !in_folder => globs,
            // Nothing to do, or told when they are gathered.
            _ => return warnings,
        };
        let mounts = match self.core.engine.mounts(&known.name).await {
            Ok(mounts) => mounts,
            Err(status) => {
                warnings.push(format!("artifacts not collected: {}", super::status::words(&status)));
                return warnings;
            }
        };
        // Beside the folder, which the container has as its own: what is taken may lie in it.
        let taken = known.folder.with_extension("fetched");
        let mut failures = Vec::new();
        for prefix in prefixes(&known.artifacts) {
            let path = Path::new(&placed.working_dir).join(&prefix);
            let take = Take::Matching { globs: globs.clone(), prefix, into: taken.clone() };
            if let Err(error) = copy(mounts.clone(), path.clone(), take).await {
                failures.push(format!("artifacts not collected from {}: {error}", path.display()));
            }
        }
        warnings.extend(failures);
        // What the container left in the folder otherwise is no artifact, and may be a link to anywhere.
        let into = known.folder.clone();
        let replaced = tokio::task::spawn_blocking(move || replace(&into, &taken)).await;
        if let Err(error) = replaced.unwrap_or_else(|_| Err(std::io::Error::other("it panicked"))) {
            warnings.push(format!("artifacts not collected: {error}"));
        }
        warnings
    }

    async fn end_all(&self) {
        let core = &self.core;
        core.closed.cancel();
        core.attendants.close();
        let ending = async {
            core.attendants.wait().await;
            core.remove_all().await
        };
        let mut trouble = core.engine.trouble();
        let down = async {
            // Its sender lives as long as the engine.
            let _ = trouble.wait_for(Option::is_some).await;
            tokio::time::sleep(CLOSE_PATIENCE_DOWN).await;
        };
        let removed = tokio::select! {
            removed = ending => removed,
            () = tokio::time::sleep(CLOSE_PATIENCE) => false,
            () = down => false,
        };
        if !removed {
            tracing::warn!(
                "containerd does not let everything be removed; the guard, or the next life of this worker, does"
            );
        }
        self.end_services.cancel();
        self.services.close();
        self.services.wait().await;
        match removed && !core.engine.is_down() {
            true => core.keeper.end().await,
            false => core.keeper.leave(),
        }
    }
}

/// Asks it to stop, and kills it after `grace`, again and again. Whoever waits for its end drops this.
pub(super) async fn stop(engine: &Engine, id: &str, grace: Duration) -> std::convert::Infallible {
    let ways = ways(engine, id).await;
    if !grace.is_zero() {
        tokio::select! {
            () = ask_to_stop(engine, id, ways.stop_signal) => {}
            () = tokio::time::sleep(grace) => {}
        }
    }
    loop {
        engine.up().await;
        kill(engine, id, &ways.group).await;
        tokio::time::sleep(KILL_AGAIN).await;
    }
}

async fn ways(engine: &Engine, id: &str) -> Ways {
    use containerd_client::services::v1::GetContainerRequest;
    loop {
        engine.up().await;
        let request = GetContainerRequest { id: id.to_owned() };
        match engine.ask(PATIENCE, engine.containers().get(ours(request))).await {
            Ok(found) => return Ways::of(&found.container.unwrap_or_default().labels),
            Err(status) if is_unreachable(&status).is_some() => tokio::time::sleep(KILL_AGAIN / 10).await,
            Err(_) => return Ways::of(&HashMap::new()),
        }
    }
}

/// The image's own signal, to its first process. Returns only when it cannot be asked.
async fn ask_to_stop(engine: &Engine, id: &str, signal: u32) {
    loop {
        engine.up().await;
        let request = KillRequest { container_id: id.to_owned(), exec_id: String::new(), signal, all: false };
        match engine.ask(PATIENCE, engine.tasks().kill(ours(request))).await {
            Err(status) if is_unreachable(&status).is_some() => tokio::time::sleep(KILL_AGAIN / 10).await,
            // It is about to end, or to be told so.
            _ => break,
        }
    }
    // What is halted cannot do what it is asked.
    let _ = halt(engine, id, false).await;
    std::future::pending().await
}

/// Halts it, or lets it go on; so it may be already, or it has ended.
pub(super) async fn halt(engine: &Engine, id: &str, halted: bool) -> Result<(), Answer> {
    let answer = if halted {
        let request = PauseTaskRequest { container_id: id.to_owned() };
        engine.ask(PATIENCE, engine.tasks().pause(ours(request))).await
    } else {
        let request = ResumeTaskRequest { container_id: id.to_owned() };
        engine.ask(PATIENCE, engine.tasks().resume(ours(request))).await
    };
    let Err(status) = answer else { return Ok(()) };
    if is_missing(&status) {
        return Ok(());
    }
    // Its words for what is so already differ from one version to the next; how it is tells.
    let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
    let now = match engine.ask(PATIENCE, engine.tasks().get(ours(request))).await {
        Ok(found) => found.process.map(|process| word(process.status)),
        Err(gone) if gone.code() == Grpc::NotFound => return Ok(()),
        Err(other) => return Err(other),
    };
    match (now, halted) {
        (Some(Status::Stopped) | None, _) | (Some(Status::Paused), true) | (Some(Status::Running), false) => Ok(()),
        _ => Err(status),
    }
}

/// How each task is, by its container.
pub(super) async fn states(engine: &Engine) -> Result<HashMap<String, i32>, Answer> {
    let found = engine.ask(PATIENCE, engine.tasks().list(ours(ListTasksRequest::default()))).await?;
    // What containerd calls the id of a task's first process is that of its container.
    Ok(found.tasks.into_iter().map(|task| (task.id, task.status)).collect())
}

/// The engine's word in ours.
pub(super) fn word(state: i32) -> Status {
    match Word::try_from(state) {
        Ok(Word::Running) => Status::Running,
        Ok(Word::Paused | Word::Pausing) => Status::Paused,
        Ok(Word::Created | Word::Stopped) => Status::Stopped,
        Ok(Word::Unknown) => Status::Unknown("UNKNOWN".to_owned()),
        Err(_) => Status::Unknown(state.to_string()),
    }
}

/// Copies out of a container's files what is to be taken below `path`, which may be nothing.
async fn copy(
    mounts: Vec<containerd_client::types::Mount>,
    path: std::path::PathBuf,
    take: Take,
) -> std::io::Result<()> {
    let (from, to) = std::io::pipe()?;
    let unpacking = tokio::task::spawn_blocking(move || unpack(from, &take));
    let packing = view::within(mounts, view::place()?, move || {
        let mut archive = tar::Builder::new(to);
        let name = path.file_name().map_or_else(|| "root".into(), std::path::PathBuf::from);
        pack(&mut archive, &path, &name)?;
        archive.finish()
    });
    let packed = packing.await;
    match unpacking.await {
        Ok(Ok(())) => packed,
        // It broke off what the other end wrote.
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::Error::other("unpacking panicked")),
    }
}

/// Plain files only, as deep as they lie: no links, no sockets, nothing that is not there any more.
fn pack(archive: &mut tar::Builder<impl std::io::Write>, path: &Path, name: &Path) -> std::io::Result<()> {
    let mut left = vec![(path.to_owned(), name.to_owned())];
    while let Some((path, name)) = left.pop() {
        let about = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            about => about?,
        };
        if about.is_file() {
            archive.append_path_with_name(&path, &name)?;
        } else if about.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                left.push((entry.path(), name.join(entry.file_name())));
            }
        }
    }
    Ok(())
}

pub(super) fn undone(what: &'static str, undone: Result<(), UndoError>) -> Result<(), RuntimeError> {
    match undone {
        // The guard and the sweeps see to it.
        Err(error) if error.is_unreachable() => Ok(()),
        undone => undone.map_err(|error| RuntimeError::Engine { runtime: NAME, what, source: Box::new(error) }),
    }
}

impl Runtime for ContainerdRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> RuntimeInfo {
        let (engine, facts) = (&self.core.engine, self.core.engine.facts());
        let has = |controller| facts.hierarchy.has(controller);
        let has_cni = engine.place.cni_bin_dirs.iter().any(|folder| folder.join("bridge").is_file());
        let halts = has("freezer") || matches!(facts.hierarchy, groups::Hierarchy::V2(_));
        let words = [
            ("cpu_limit", has("cpu")),
            ("keep_alive", self.core.keeper.is_guarded()),
            ("memory_limit", has("memory")),
            ("network_bridge", has_cni),
            ("network_none", true),
            ("network_shared", true),
            ("pause", halts),
            ("pids_limit", has("pids")),
            ("stats", has("memory")),
        ];
        let capabilities = words.into_iter().filter(|(_, can)| *can).map(|(word, _)| word.to_owned()).collect();
        let reason = engine.trouble().borrow().clone();
        RuntimeInfo { version: facts.version.clone(), capabilities, reason, ..RuntimeInfo::default() }
    }

    fn trouble(&self) -> Option<watch::Receiver<Option<String>>> {
        Some(self.core.engine.trouble())
    }

    fn surroundings(&self, _folder: &Path, _result_file: &Path) -> Surroundings {
        // The rest of the environment is the image's business.
        Surroundings { env: Default::default(), result_file: files::result_path() }
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
        async move {
            let known = self.known(start)?;
            halt(&self.core.engine, &known.name, true).await.map_err(|status| failed("pause", status))
        }
        .boxed()
    }

    fn resume<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let known = self.known(start)?;
            halt(&self.core.engine, &known.name, false).await.map_err(|status| failed("resume", status))
        }
        .boxed()
    }

    fn collect<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Vec<String>, RuntimeError>> {
        async move { Ok(self.collected(&*self.known(start)?).await) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>> {
        self.listed().boxed()
    }

    fn remove<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let Some(known) = self.core.jobs.get(start) else { return Ok(()) };
            let removed = undo(&self.core.engine, &known.name).await;
            self.core.jobs.forget(start);
            undone("remove", removed)
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
        use Status::{Paused, Running, Stopped};
        let ours =
            [Word::Created, Word::Running, Word::Stopped, Word::Paused, Word::Pausing].map(|state| word(state as i32));
        assert_eq!(ours, [Stopped, Running, Stopped, Paused, Paused]);
        assert_eq!(word(Word::Unknown as i32), Status::Unknown("UNKNOWN".to_owned()));
        assert_eq!(word(42), Status::Unknown("42".to_owned()));
    }
}
