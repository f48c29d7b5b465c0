//! What the runtime is made of, and the start of a task's container: each step is undone if a later one fails.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::StartRequest;
use schemas::task::{Container, PullPolicy, WORK_FOLDER};
use schemas::{Code, StartId, Workload};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attend::Attendant;
use super::create::{Made, Maker, Users, Wish, working_dir};
use super::engine::{Engine, PATIENCE, ours};
use super::groups::Span;
use super::image::{Image, Images};
use super::input::{self, Pipes};
use super::instances::Kept;
use super::labels::container_id;
use super::pull::Puller;
use super::spec::check_limits;
use super::status::{is_unreachable, start_refused, words};
use super::sweep::{remove_all, sweep};
use super::undo::undo;
use super::{ContainerdConfig, NAME};
use crate::image::ImageName;
use crate::logs::Notes;
use crate::policy::ContainerSettings;
use crate::registry::Registries;
use crate::runtime::container::files::open_to_all;
use crate::runtime::container::guard::Target;
use crate::runtime::container::jobs::{Jobs, Known};
use crate::runtime::container::keeper::Keeper;
use crate::runtime::container::labels::{Owner, task_labels};
use crate::runtime::container::usage::group;
use crate::runtime::{Job, StartError, Started};

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
    pub(super) images: Arc<Images>,
    puller: Arc<Puller>,
    users: Users,
    pub(super) kept: Kept,
}

impl Core {
    pub(super) async fn new(engine: Arc<Engine>, config: ContainerdConfig) -> Self {
        let owner = Owner { fleet: config.fleet, worker: config.worker, instance: config.instance };
        let target = Target::Containerd(engine.place.clone());
        let images = Arc::new(Images::new(engine.clone()));
        let registries = Registries::new(config.settings.registries.clone());
        Self {
            puller: Arc::new(Puller::new(images.clone(), registries, config.scratch)),
            images,
            users: Users::default(),
            kept: Kept::default(),
            keeper: Keeper::start(config.guard, target, owner.clone()).await,
            engine,
            settings: config.settings,
            owner,
            jobs: Jobs::default(),
            attendants: TaskTracker::new(),
            closed: CancellationToken::new(),
        }
    }

    pub(super) fn maker(&self) -> Maker<'_> {
        Maker { engine: &self.engine, owner: &self.owner, users: &self.users }
    }

    /// Starts in a task of its own, which takes back what it made when nobody waits for it any more.
    pub(super) async fn start(self: Arc<Self>, job: Job) -> Result<Started, StartError> {
        if self.closed.is_cancelled() {
            return Err(StartError::Failed { what: "the containerd runtime is closed".to_owned(), source: None });
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
        let id = container_id(&format!("{}-{}", job.key.queue, job.key.id), &job.start);
        let Some((known, tell_end)) = self.jobs.register(&job, id) else {
            let what = format!("the start id {} is in use", job.start);
            let _ = tell.send(Err(StartError::Failed { what, source: None }));
            return;
        };
        let (mut is_made, kills) = (false, self.keeper.kills());
        let begun = self.begin(&job, &known, &given_up, &mut is_made).await;
        let (pipes, stdin) = match begun {
            Ok(begun) => begun,
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
        let (started, output) = input::streams();
        let attendant = Attendant {
            core: self.clone(),
            known: known.clone(),
            notes: job.notes.clone(),
            kills: job.alive_until.map(|_| kills),
        };
        let start = job.start.clone();
        drop(job);
        // A dropped receiver has given up, too.
        let _ = tell.send(Ok(started));
        let attending = attendant.attend(pipes, output, stdin, tell_end.clone());
        if given_up.run_until_cancelled(attending).await.is_none() {
            self.take_back(&known).await;
            self.jobs.forget(&start);
        }
        // Whoever stops a start that was given up waits for this.
        drop(tell_end);
    }

    /// Everything up to the running container. `is_made` says that there may be one.
    async fn begin(
        &self,
        job: &Job,
        known: &Known,
        given_up: &CancellationToken,
        is_made: &mut bool,
    ) -> Result<(Pipes, Option<String>), StartError> {
        let Workload::Container(container) = &job.workload else {
            return Err(StartError::WrongKind { runtime: NAME, kind: job.workload.kind() });
        };
        let policy = &self.settings.policy;
        policy.check(&self.settings, container)?;
        for warning in check_limits(&job.limits, &self.settings.limits, &self.engine.facts())? {
            job.notes.say(&warning).await;
        }
        let gave_up = || StartError::Failed { what: "the start was given up".to_owned(), source: None };
        let preparing = self.ensure_image(container, &job.notes);
        let image = given_up.run_until_cancelled(preparing).await.ok_or_else(gave_up)??;
        // Where they lead now: a pull takes its time, and another task may write in one of these folders.
        let mut mounts = policy.mounts(&self.settings, container)?;
        mounts.extend(job.binds.iter().cloned());
        let working_dir = working_dir(container, &image, WORK_FOLDER);
        open_to_all(&job.folder).map_err(|source| StartError::Failed {
            what: format!("the work folder {} cannot be opened to the container", job.folder.display()),
            source: Some(source),
        })?;
        let span = match job.alive_until {
            Some(until) => {
                self.keeper.extend(until);
                Span::Mortal
            }
            None => Span::Life,
        };
        let wish = Wish {
            id: known.name.clone(),
            labels: task_labels(&self.owner, job, job.alive_until.is_some()),
            container,
            image: &image,
            env: &job.env,
            limits: &job.limits,
            folder: Some(&job.folder),
            mounts: &mounts,
            network: container.network.as_deref().unwrap_or(&self.settings.network),
            working_dir: &working_dir,
            hostname: hostname(&job.start),
            span,
            to_files: false,
        };
        known.place(working_dir.clone(), true);
        let made = self.maker().make(wish, given_up, is_made).await?;
        let Made { pid, pipes: Some(pipes), .. } = made else {
            return Err(StartError::Failed { what: "the container has no pipes".to_owned(), source: None });
        };
        // As long as it is only created, its first process is certainly there.
        let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        known.meter.set_group(group(&lines, &known.name));
        // We were frozen on the way here, or cut off: somebody else may run it by now.
        if job.alive_until.is_some() && self.keeper.has_lapsed() {
            let why = "the lease of the task ended while its container was being made".to_owned();
            return Err(StartError::Unavailable { runtime: NAME, why });
        }
        self.run(&known.name, container).await?;
        known.started();
        Ok((pipes, container.stdin.clone()))
    }

    /// Starts a created task.
    pub(super) async fn run(&self, id: &str, container: &Container) -> Result<(), StartError> {
        let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        let started = self.engine.ask(PATIENCE, self.engine.tasks().start(ours(request))).await;
        started.map(|_| ()).map_err(|status| start_refused(&status, container))
    }

    /// Makes sure that the engine has the image, ready to be stood on. Cancel safe.
    pub(super) async fn ensure_image(&self, container: &Container, notes: &Notes) -> Result<Image, StartError> {
        let name = ImageName::parse(&container.image).map_err(|why| StartError::Refused {
            code: Code::InvalidImage,
            message: format!("`{}` is no image: {why}", container.image),
        })?;
        let pull = match (self.settings.pull, container.pull) {
            // The operator's `never` wins over any task.
            (PullPolicy::Never, _) => PullPolicy::Never,
            (default, asked) => asked.unwrap_or(default),
        };
        self.puller.ensure(&name, pull, notes).await
    }

    /// Undoes what a start made, or may have made.
    pub(super) async fn take_back(&self, known: &Known) {
        if let Err(error) = undo(&self.engine, &known.name).await {
            tracing::warn!(name = known.name, %error, "not removed; a sweep will");
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
        let live = |start: &StartId| self.jobs.is_live(start);
        let sweeping = sweep(&self.engine, &self.owner, &live, SWEEP_GRACE);
        match tokio::time::timeout(SWEEP_PATIENCE, sweeping).await {
            Ok(Ok(swept)) if swept.containers == 0 && swept.refused == 0 => {}
            Ok(Ok(swept)) => tracing::info!(?swept, "swept what nobody owned"),
            Ok(Err(status)) if is_unreachable(&status).is_some() => {}
            Ok(Err(status)) => tracing::warn!(error = words(&status), "not swept"),
            Err(_) => tracing::warn!("not swept in time; tried again later"),
        }
    }

    /// Removes every container of this life of the worker; whether nothing is left.
    pub(super) async fn remove_all(&self) -> bool {
        match remove_all(&self.engine, &self.owner).await {
            Ok(swept) => swept.refused == 0,
            Err(status) => {
                tracing::warn!(error = words(&status), "nothing more is removed");
                false
            }
        }
    }
}

/// A start as the name of a host.
pub(super) fn hostname(start: &StartId) -> String {
    let name: String =
        start.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    name.trim_matches('-').to_owned()
}
