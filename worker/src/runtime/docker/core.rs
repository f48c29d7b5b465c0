//! What the runtime is made of, and the start of a container: each step is undone if a later one fails.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bollard::container::AttachContainerResults;
use bollard::errors::Error;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use schemas::task::{Container, PullPolicy, WORK_FOLDER};
use schemas::{Code, StartId, Workload};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attend::{Attendant, attach};
use super::create::{Plan, Work, check_limits};
use super::engine::{Engine, Facts, LEAVES_WITHIN, PATIENCE};
use super::instances::Kept;
use super::labels::{Owner, container_name, task_labels};
use super::network::Holder;
use super::pull::{Image, Images};
use super::refusal::{attach_refused, create_refused, is_unreachable, start_refused, status, words};
use super::sweep::sweep;
use super::{DockerConfig, NAME, files, output};
use crate::policy::ContainerSettings;
use crate::registry::Registries;
use crate::runtime::container::guard::Target;
use crate::runtime::container::jobs::{Jobs, Known};
use crate::runtime::container::keeper::Keeper;
use crate::runtime::{Job, StartError, Started};

/// Between two tries to remove what the engine is busy with.
const REMOVE_AGAIN: Duration = Duration::from_millis(50);
/// How often that is tried.
const REMOVE_TRIES: u32 = 100;

/// For a whole sweep.
const SWEEP_PATIENCE: Duration = Duration::from_secs(120);
/// What is younger may not be known to be live yet.
const SWEEP_GRACE: Duration = Duration::from_secs(10);

pub(super) struct Core {
    pub(super) engine: Arc<Engine>,
    pub(super) settings: ContainerSettings,
    pub(super) owner: Owner,
    pub(super) jobs: Jobs,
    pub(super) attendants: TaskTracker,
    /// Nothing starts any more, and what runs ends.
    pub(super) closed: CancellationToken,
    pub(super) keeper: Keeper,
    pub(super) kept: Kept,
    /// Instances that could not be taken back yet, by name, and since when.
    pub(super) undone: Mutex<HashMap<String, Instant>>,
    pub(super) images: Images,
    holder: Holder,
    /// The engine sees this machine's folders; until it turns out that it does not.
    binds: AtomicBool,
}

impl Core {
    pub(super) async fn new(engine: Arc<Engine>, config: DockerConfig) -> Self {
        let owner = Owner { fleet: config.fleet, worker: config.worker, instance: config.instance };
        // A folder that others write to can only be read and removed by root.
        let binds = nix::unistd::geteuid().is_root() && !engine.facts().is_shut_out;
        let registries = Registries::new(config.settings.registries.clone());
        Self {
            images: Images::new(engine.docker.clone(), NAME).with_registries(registries, config.scratch),
            holder: Holder::new(owner.clone()),
            keeper: Keeper::start(config.guard, Target::Docker(engine.host.clone()), owner.clone()).await,
            engine,
            settings: config.settings,
            owner,
            jobs: Jobs::default(),
            kept: Kept::default(),
            undone: Mutex::default(),
            attendants: TaskTracker::new(),
            closed: CancellationToken::new(),
            binds: AtomicBool::new(binds),
        }
    }

    /// Whether containers can be shown folders of this machine.
    pub(super) fn shares_folders(&self) -> bool {
        self.binds.load(Ordering::Relaxed)
    }

    /// Starts in a task of its own, which takes back what it made when nobody waits for it any more.
    pub(super) async fn start(self: Arc<Self>, job: Job) -> Result<Started, StartError> {
        if self.closed.is_cancelled() {
            return Err(StartError::Failed { what: "the docker runtime is closed".to_owned(), source: None });
        }
        let given_up = self.closed.child_token();
        let on_drop = given_up.clone().drop_guard();
        let (tell, told) = oneshot::channel();
        let core = self.clone();
        self.attendants.spawn(async move { core.accompany(job, given_up, tell).await });
        let started = told.await;
        on_drop.disarm();
        started.unwrap_or_else(|_| Err(StartError::Failed { what: "the start broke off".to_owned(), source: None }))
    }

    /// The whole life of one container. Nothing of it is left if it did not start, or if `given_up` comes.
    async fn accompany(
        self: Arc<Self>,
        job: Job,
        given_up: CancellationToken,
        tell: oneshot::Sender<Result<Started, StartError>>,
    ) {
        let Some((known, tell_end)) = self.jobs.register(&job, container_name(&job)) else {
            let what = format!("the start id {} is in use", job.start);
            let _ = tell.send(Err(StartError::Failed { what, source: None }));
            return;
        };
        let (mut is_made, kills) = (false, self.keeper.kills());
        let begun = self.begin(&job, &known, &given_up, &mut is_made).await;
        let (started, attached, output, stdin) = match begun {
            Ok((attached, stdin)) => {
                let (started, output) = output::pipes();
                (started, attached, output, stdin)
            }
            Err(error) => {
                if is_made {
                    self.take_back(&known).await;
                }
                self.jobs.forget(&job.start);
                // The log is complete before the start is known to have failed.
                let Job { notes, .. } = job;
                drop(notes);
                let _ = tell.send(Err(error));
                return;
            }
        };
        let attendant = Attendant {
            core: self.clone(),
            known: known.clone(),
            notes: job.notes.clone(),
            again: Notify::new(),
            kills: job.alive_until.map(|_| kills),
        };
        let start = job.start.clone();
        drop(job);
        // A dropped receiver has given up, too.
        let _ = tell.send(Ok(started));
        let attending = attendant.attend(attached, output, stdin, tell_end.clone());
        if given_up.run_until_cancelled(attending).await.is_none() {
            self.take_back(&known).await;
            self.jobs.forget(&start);
        }
        // Whoever stops a start that was given up waits for this.
        drop(tell_end);
    }

    /// What policy and limits say of it, and its image and network. Makes nothing of the job. Cancel safe.
    pub(super) async fn prepare(&self, job: &Job) -> Result<Prepared, StartError> {
        let container = contained(job)?;
        self.settings.policy.check(&self.settings, container)?;
        self.check_mounts(container)?;
        if !self.shares_folders() && !job.binds.is_empty() {
            return Err(no_folders());
        }
        let facts = self.engine.facts();
        for warning in check_limits(&job.limits, &self.settings.limits, &facts)? {
            job.notes.say(&warning).await;
        }
        let image = self.images.ensure(&container.image, self.pull_policy(container), &job.notes).await?;
        let network = match container.network.as_deref().unwrap_or(&self.settings.network) {
            "shared" => self.holder.ensure(&self.engine).await?,
            network => network.to_owned(),
        };
        Ok(Prepared { image, network, facts })
    }

    /// Everything up to the running container. `is_made` says that there may be one.
    async fn begin(
        &self,
        job: &Job,
        known: &Known,
        given_up: &CancellationToken,
        is_made: &mut bool,
    ) -> Result<(AttachContainerResults, Option<String>), StartError> {
        let container = contained(job)?;
        let gave_up = || StartError::Failed { what: "the start was given up".to_owned(), source: None };
        let preparing = self.prepare(job);
        let Prepared { image, network, facts } = given_up.run_until_cancelled(preparing).await.ok_or_else(gave_up)??;
        // Where they lead now: a pull takes its time, and another task may write in one of these folders.
        let mut mounts = self.settings.policy.mounts(&self.settings, container)?;
        mounts.extend(job.binds.iter().cloned());
        let working_dir = container.working_dir.clone().or(image.working_dir);
        let working_dir = working_dir.unwrap_or_else(|| WORK_FOLDER.to_owned());
        let binds = self.shares_folders();
        let mut plan = Plan {
            container,
            env: job.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            limits: &job.limits,
            image: &image.id,
            working_dir: Some(&working_dir),
            labels: task_labels(&self.owner, job, job.alive_until.is_some()),
            network: &network,
            mounts: &mounts,
            work: if binds { Work::Bound(&job.folder) } else { Work::Copied },
            facts: &facts,
        };
        if let Some(until) = job.alive_until {
            self.keeper.extend(until);
        }
        // No request from here on is broken off half way: what the engine made of it would not be known.
        *is_made = true;
        self.create(&mut plan, job, known).await?;
        known.place(working_dir.clone(), matches!(plan.work, Work::Bound(_)));
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        let attached = attach(&self.engine, &known.name, container.stdin.is_some()).await;
        let attached = attached.map_err(|error| attach_refused(error, container))?;
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        // Not even asked for, it certainly does not run.
        if let Some(why) = self.engine.trouble().borrow().clone() {
            return Err(StartError::Unavailable { runtime: NAME, why });
        }
        // We were frozen on the way here, or cut off: somebody else may run it by now.
        if job.alive_until.is_some() && self.keeper.has_lapsed() {
            let why = "the lease of the task ended while its container was being made".to_owned();
            return Err(StartError::Unavailable { runtime: NAME, why });
        }
        self.start_created(&known.name, container).await?;
        known.started();
        Ok((attached, container.stdin.clone()))
    }

    /// Where a link leads on another machine cannot be seen from here, and so not judged.
    pub(super) fn check_mounts(&self, container: &Container) -> Result<(), StartError> {
        if container.mounts.is_empty() || self.engine.is_local() {
            return Ok(());
        }
        let message = "this worker's engine is on another machine, so it allows no mounts".to_owned();
        Err(StartError::Refused { code: schemas::Code::PolicyForbidden, message })
    }

    /// The operator's `never` wins over any task.
    pub(super) fn pull_policy(&self, container: &Container) -> PullPolicy {
        match (self.settings.pull, container.pull) {
            (PullPolicy::Never, _) => PullPolicy::Never,
            (default, asked) => asked.unwrap_or(default),
        }
    }

    /// The last step of a start.
    pub(super) async fn start_created(&self, name: &str, container: &Container) -> Result<(), StartError> {
        let started = self.engine.ask(PATIENCE, self.engine.docker.start_container(name, None)).await;
        let Err(error) = started else { return Ok(()) };
        Err(match start_refused(error, container) {
            StartError::Failed { source, .. } if self.engine.is_leaving(LEAVES_WITHIN).await => {
                let why = source.map_or_else(String::new, |source| format!(": {source}"));
                StartError::Unsure { runtime: NAME, why: format!("the engine was being stopped{why}") }
            }
            refused => refused,
        })
    }

    /// Creates it with its work folder: bound, or copied where the engine does not see ours.
    async fn create(&self, plan: &mut Plan<'_>, job: &Job, known: &Known) -> Result<(), StartError> {
        let (engine, container) = (&self.engine, plan.container);
        let is_bound = |plan: &Plan<'_>| matches!(plan.work, Work::Bound(_));
        if is_bound(plan) {
            files::open_to_all(&job.folder).map_err(|source| StartError::Failed {
                what: format!("the work folder {} cannot be opened to the container", job.folder.display()),
                source: Some(source),
            })?;
        }
        let request = |plan: &Plan<'_>| {
            let options = CreateContainerOptionsBuilder::default().name(&known.name).build();
            engine.docker.create_container(Some(options), plan.body())
        };
        let mut created = engine.ask(PATIENCE, request(plan)).await;
        if is_bound(plan) && created.as_ref().is_err_and(|error| sees_not(error, job)) {
            tracing::info!("the engine does not see this machine's folders: files are copied");
            self.binds.store(false, Ordering::Relaxed);
            if !job.binds.is_empty() {
                return Err(no_folders());
            }
            plan.work = Work::Copied;
            created = engine.ask(PATIENCE, request(plan)).await;
        }
        let created = created.map_err(|error| create_refused(error, container))?;
        for warning in created.warnings.iter().filter(|warning| !warning.is_empty()) {
            tracing::debug!(name = known.name, warning, "the engine warns");
        }
        if !is_bound(plan) && container.read_only {
            // The folder is a volume there, which the engine makes root's own and nobody can open.
            job.notes.say("the image is read-only on an engine elsewhere: only root can write to /shoal").await;
        } else if !is_bound(plan) {
            files::make_folder(engine, &known.name).await.map_err(|error| create_refused(error, container))?;
        }
        Ok(())
    }

    /// Removes what a start made, or may have made.
    async fn take_back(&self, known: &Known) {
        if let Err(error) = self.remove(&known.name).await {
            tracing::warn!(name = known.name, error = words(&error), "not removed; a sweep will");
        }
    }

    /// Kills and removes one container with its volumes, and returns when it is gone.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            match self.engine.ask(PATIENCE, self.engine.docker.remove_container(name, Some(options))).await {
                Ok(()) => return Ok(()),
                Err(error) if status(&error) == Some(404) => return Ok(()),
                // Being removed by somebody else, or a file system that is busy for a moment.
                Err(error) if matches!(status(&error), Some(409 | 500)) && tries < REMOVE_TRIES => {
                    tokio::time::sleep(REMOVE_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sweeps now, on a timer and whenever the engine is back, until `stop`.
    pub(super) async fn keep_clean(&self, stop: CancellationToken) {
        let mut returns = self.engine.returns();
        let mut pause = self.settings.sweep_every;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = self.settings.sweep_every,
                // What it still does of the time before its outage is too young for a sweep now.
                _ = returns.changed() => pause = self.settings.sweep_every.min(SWEEP_GRACE + Duration::from_secs(2)),
                () = stop.cancelled() => return,
            }
            stop.run_until_cancelled(self.sweep()).await;
        }
    }

    /// Removes what nobody owns. An engine that is down is swept when it is back. Cancel safe.
    pub(super) async fn sweep(&self) {
        self.take_back_undone().await;
        let live = |start: &StartId| self.jobs.is_live(start);
        match self.engine.ask(SWEEP_PATIENCE, sweep(&self.engine.docker, &self.owner, &live, SWEEP_GRACE)).await {
            Ok(swept) if swept.is_nothing() => {}
            Ok(swept) => tracing::info!(?swept, "swept what nobody owned"),
            Err(error) if is_unreachable(&error).is_some() => {}
            Err(error) => tracing::warn!(error = words(&error), "not swept"),
        }
    }

    /// Removes every container of this life of the worker.
    pub(super) async fn remove_all(&self) {
        let engine = &self.engine;
        let options = ListContainersOptionsBuilder::default().all(true).filters(&self.owner.filters()).build();
        let found = match engine.ask(PATIENCE, engine.docker.list_containers(Some(options))).await {
            Ok(found) => found,
            Err(error) => return tracing::warn!(error = words(&error), "nothing more is removed"),
        };
        for container in found {
            let is_ours =
                container.labels.is_some_and(|labels| self.owner.owns(&labels) && self.owner.is_of_this_life(&labels));
            if let (true, Some(id)) = (is_ours, container.id)
                && let Err(error) = self.remove(&id).await
            {
                tracing::warn!(id, error = words(&error), "not removed");
            }
        }
    }
}

/// What a container is made of.
pub(super) struct Prepared {
    image: Image,
    /// As the engine names it.
    network: String,
    facts: Arc<Facts>,
}

fn contained(job: &Job) -> Result<&Container, StartError> {
    match &job.workload {
        Workload::Container(container) => Ok(container),
        other => Err(StartError::WrongKind { runtime: NAME, kind: other.kind() }),
    }
}

/// The engine has no such folder: it is on another machine, or the worker in a container.
fn sees_not(error: &Error, job: &Job) -> bool {
    let text = words(error);
    text.contains("bind source path does not exist") && text.contains(&*job.folder.to_string_lossy())
}

/// The job needs folders of this machine, and its containers cannot be shown any.
fn no_folders() -> StartError {
    StartError::Refused {
        code: Code::RuntimeNotAllowed,
        message: "the docker engine cannot be shown folders of this worker: the engine is elsewhere, or the worker is not root"
            .to_owned(),
    }
}
