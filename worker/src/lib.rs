//! The node agent: pulls tasks, runs them, records their ends.
//!
//! `intake` pulls into free slots, `attempt` runs one delivery to its settlement, `runtime` runs workloads, `nats` is
//! the only place that speaks to the server.

pub mod agent;
pub mod attempt;
pub mod census;
mod clock;
pub mod config;
mod cordon;
pub mod drain;
mod fail;
mod folder;
mod functions;
pub mod handlers;
mod heartbeat;
mod held;
mod identity;
pub mod image;
mod intake;
pub mod logs;
pub mod nats;
mod objects;
mod placement;
mod poison;
pub mod policy;
mod quarantine;
pub mod registry;
pub mod runtime;
mod service;
mod settle;
mod slots;
mod stores;
mod tally;
mod worker;

/// The pure decisions at an attempt's end, for the benches.
#[doc(hidden)]
pub mod settling {
    pub use crate::settle::{Settlement, outcome, settle};
}

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryFutureExt};
use jetstream::{ApiError, Connection, JetStream};
use schemas::{AgentId, QueueName, QueueSettings};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, InvalidQueues, Queues, RuntimeName};
pub use drain::Stop;
pub use handlers::{Call, HandlerError, Handlers};
pub use runtime::docker::guard::container_guard_main;
pub use runtime::process::{GuardCommand, guard_main};

use crate::identity::{Identity, IdentityError};
use crate::intake::Intake;
use crate::nats::lease::Leases;
use crate::nats::pull::Pulls;
use crate::nats::store::Store;
use crate::runtime::Runtime;
use crate::runtime::docker::{self, DockerConfig, DockerRuntime, DockerRuntimeError};
use crate::runtime::process::{ProcessConfig, ProcessRuntime, ProcessRuntimeError};
use crate::slots::Slots;
use crate::tally::Tally;
use crate::worker::{GivenBack, Pulse, Queue, Running, Worker};

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No id.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The state folder cannot be swept.
    #[error("work folders left by an earlier boot cannot be removed")]
    Folders(#[source] std::io::Error),
    /// The server has not what is needed, and it could not be made.
    #[error("the queue `{queue}` cannot be used on this server")]
    Stores {
        /// Which queue.
        queue: String,
        /// Why.
        source: ApiError,
    },
    /// A runtime that was asked for does not work here.
    #[error("the runtime `process` does not work here")]
    Process(#[from] ProcessRuntimeError),
    /// The engine that was asked for does not work here.
    #[error("the runtime `docker` does not work here")]
    Docker(#[from] DockerRuntimeError),
    /// The containerd that was asked for does not work here.
    #[cfg(feature = "containerd")]
    #[error("the runtime `containerd` does not work here")]
    Containerd(#[from] runtime::containerd::ContainerdRuntimeError),
    /// It was asked for, and this build has none.
    #[error("this build has no runtime `containerd`")]
    WithoutContainerd,
    /// Agent jobs were asked for and cannot be run here.
    #[error("agent jobs do not work here")]
    Agents(#[from] agent::AgentsError),
    /// The connection is gone for good.
    #[error("the connection to NATS broke for good; nothing can be pulled any more")]
    Broken,
    /// The inbox could not be opened.
    #[error("the inbox for tasks cannot be opened")]
    Inbox(#[source] ApiError),
}

/// Runs a worker until it is told to stop. `ready` is told once the server answers its pulls and the registry says so.
pub async fn run(
    mut config: Config,
    connection: Connection,
    handlers: Handlers,
    stop: Stop,
    ready: oneshot::Sender<AgentId>,
) -> Result<(), WorkerError> {
    // Jobs begin in folders below it, and who starts them stands elsewhere.
    config.state_dir = std::path::absolute(&config.state_dir).map_err(WorkerError::Folders)?;
    let identity = Identity::hold(&config.state_dir, config.id.as_ref())?;
    folder::sweep(&config.state_dir, &identity.id).map_err(WorkerError::Folders)?;
    let held = held::Held::take_over(&config.state_dir, &identity.id).await;
    let js = JetStream::new(connection.client.clone());
    let queues = bind_queues(&js, &config).await?;
    let (calls, runtimes) = allowed_runtimes(&js, &config, &identity, &held).await?;
    let agents = open_agents(&js, &config, &identity, &runtimes).await?;
    let worker = Arc::new(Worker {
        id: identity.id.clone(),
        instance: identity.instance.clone(),
        store: Store::new(js.clone(), config.names.clone(), config.records_kept),
        leases: Leases::new(js.clone()),
        held,
        folders: folder::Folders::new(&config.state_dir, &identity.id),
        slots: Slots::new(config.slots),
        handlers,
        runtimes,
        agents,
        calls,
        queues,
        running: Running::default(),
        blocked: watch::Sender::new(None),
        cordon: cordon::Cordon::default(),
        looks: placement::Looks::default(),
        beat_soon: Notify::new(),
        given_back: GivenBack::default(),
        pulse: Pulse::default(),
        tally: Tally::default(),
        said: watch::Sender::new(None),
        stop_attempts: CancellationToken::new(),
        stop_now: CancellationToken::new(),
        js,
        config,
    });
    tracing::info!(worker = %worker.id, instance = worker.instance, "worker starts");

    // What serves the attempts ends after them, the heartbeat last of all.
    let (attempts, services) = (TaskTracker::new(), TaskTracker::new());
    let (end_services, end_beat) = (CancellationToken::new(), CancellationToken::new());
    services.spawn(worker.leases.clone().keep(end_services.clone()));
    services.spawn(keep_alive(worker.clone(), end_services.clone()));
    services.spawn(follow_trouble(worker.clone(), end_services.clone()));
    services.spawn(clock::keep(worker.clone(), connection.clone(), end_services.clone()));
    services.spawn(follow_settings(worker.clone(), connection.clone(), end_services.clone()));
    let (drain_asked, drain_wish) = watch::channel(None);
    // Before the first pull: a worker that says that it is ready can be asked.
    services.spawn(service::listen(worker.clone(), drain_asked, end_services.clone()).await);
    let (answered, is_ready) = watch::channel(false);
    let (say_draining, draining) = watch::channel(false);
    let (say_shown, is_shown) = watch::channel(false);
    let beat = heartbeat::Heartbeat::new(worker.clone(), is_ready, draining, say_shown);
    let beating = tokio::spawn(beat.run(end_beat.clone()));

    for queue in &worker.queues {
        quarantine::sweep(&worker, queue, false).await;
    }
    held::give_back(&worker).await;
    let consumers = worker.queues.iter().map(|queue| (queue.name.to_string(), queue.ack_wait()));
    let stream = worker.config.names.tasks_stream();
    let inbox = Pulls::open(&worker.js, stream, consumers).await.map_err(WorkerError::Inbox)?;
    let functions = functions::Functions::start(worker.clone());
    let end_intake = CancellationToken::new();
    let intake = Intake::new(worker.clone(), inbox, attempts.clone(), connection.link.clone(), answered);
    let mut pulling = tokio::spawn(intake.run(end_intake.clone()));
    let (grace, broken) = tokio::select! {
        grace = wait_for_end(&worker, &stop, is_shown, drain_wish, ready) => (grace, None),
        // Only a client that is gone for good ends it by itself; nothing can be settled then.
        ended = &mut pulling => (Duration::ZERO, Some(ended)),
    };

    say_draining.send_replace(true);
    end_intake.cancel();
    let is_broken = broken.is_some();
    if is_broken {
        worker.stop_now.cancel();
    }
    let pulled = match broken {
        Some(ended) => ended,
        None => pulling.await,
    };
    if pulled.is_err() {
        tracing::error!("the pull loop panicked");
    }
    tracing::info!(worker = %worker.id, running = worker.running.count(), "draining");
    // Both have the whole grace; what is stopped now ends both.
    tokio::join!(drain::drain(&worker, &attempts, grace, &stop), async {
        tokio::select! {
            () = functions.leave(grace) => {}
            () = worker.stop_now.cancelled() => functions.leave(Duration::ZERO).await,
        }
    });
    end_services.cancel();
    services.close();
    services.wait().await;
    for runtime in worker.runtimes.values() {
        runtime.close().await;
    }
    end_beat.cancel();
    // A client without a connection may take nothing more at all.
    let _ = tokio::time::timeout(Duration::from_secs(10), beating).await;
    let _ = tokio::time::timeout(Duration::from_secs(2), worker.js.client().flush()).await;
    tracing::info!(worker = %worker.id, "worker gone");
    if is_broken { Err(WorkerError::Broken) } else { Ok(()) }
}

/// Waits until something ends the worker, and tells readiness in between. Returns the grace of the drain.
async fn wait_for_end(
    worker: &Worker,
    stop: &Stop,
    mut is_shown: watch::Receiver<bool>,
    mut drain_wish: watch::Receiver<Option<Duration>>,
    ready: oneshot::Sender<AgentId>,
) -> Duration {
    let mut ready = Some(ready);
    loop {
        tokio::select! {
            () = stop.drain.cancelled() => return worker.config.drain_grace,
            () = stop.now.cancelled() => return Duration::ZERO,
            Ok(wish) = drain_wish.wait_for(Option::is_some) => {
                return wish.unwrap_or(worker.config.drain_grace);
            }
            shown = is_shown.wait_for(|shown| *shown), if ready.is_some() => {
                if let (Ok(_), Some(ready)) = (shown, ready.take()) {
                    // Nobody needs to listen.
                    let _ = ready.send(worker.id.clone());
                }
            }
        }
    }
}

/// Binds every queue, and makes what is missing; compares clocks meanwhile. Whatever need not wait for another goes out
/// with it: each of these is a way to the server and back before the first task.
async fn bind_queues(js: &JetStream, config: &Config) -> Result<Vec<Queue>, WorkerError> {
    let failed = |name: &QueueName| {
        let queue = name.to_string();
        |source| WorkerError::Stores { queue, source }
    };
    let mut names = config.queues.names().iter();
    let bind = |name| stores::ensure_queue(js, config, name).map_err(failed(name));
    let mut consumers = Vec::new();
    // The first one makes the stores if there are none.
    if let Some(first) = names.next() {
        consumers.push(bind(first).await?);
    }
    consumers.extend(try_join_all(names.map(bind)).await?);
    let read = |name| stores::read_settings(js, config, name).map_err(failed(name));
    let settings = try_join_all(config.queues.names().iter().map(read));
    let (settings, ()) = tokio::join!(settings, clock::heed(js, config));
    let bound = config.queues.names().iter().zip(consumers).zip(settings?);
    Ok(bound.map(|((name, consumer), settings)| Queue::new(name.clone(), consumer.ack_wait(), settings)).collect())
}

type Runtimes = BTreeMap<&'static str, Arc<dyn Runtime>>;

/// What this worker runs: whether `call`, and which runtimes.
async fn allowed_runtimes(
    js: &JetStream,
    config: &Config,
    own: &Identity,
    held: &held::Held,
) -> Result<(bool, Runtimes), WorkerError> {
    const DEFAULT: [RuntimeName; 2] = [RuntimeName::Call, RuntimeName::Containers];
    let (mut calls, mut runtimes) = (false, Runtimes::new());
    for name in config.runtimes.as_deref().unwrap_or(&DEFAULT) {
        match name {
            RuntimeName::Call => calls = true,
            RuntimeName::Process => {
                let process = ProcessConfig {
                    guard: config.guard.clone(),
                    lock: held.lock().map(Arc::new),
                    ..ProcessConfig::new(own.id.as_str())
                };
                runtimes.insert("process", Arc::new(ProcessRuntime::new(process).await?));
            }
            RuntimeName::Docker => add_docker(js, config, own, &mut runtimes).await?,
            RuntimeName::Containerd => add_containerd(js, config, own, &mut runtimes).await?,
            // They run in the others.
            RuntimeName::Agent => {}
            RuntimeName::Containers => {
                if docker::found(&config.containers).await {
                    add_docker(js, config, own, &mut runtimes).await?;
                }
                if is_containerd_found(config).await {
                    add_containerd(js, config, own, &mut runtimes).await?;
                }
            }
        }
    }
    Ok((calls, runtimes))
}

/// What this worker has for agent jobs: where they are named, or nothing is named, git is there, and so is a runtime that
/// they can run in.
async fn open_agents(
    js: &JetStream,
    config: &Config,
    own: &Identity,
    runtimes: &Runtimes,
) -> Result<Option<agent::Agents>, WorkerError> {
    let named = config.runtimes.as_ref().map(|names| names.contains(&RuntimeName::Agent));
    let can_run = runtimes.contains_key("process") || runtimes.contains_key("docker");
    if named == Some(false) || (named.is_none() && !can_run) {
        return Ok(None);
    }
    let opened = agent::Agents::open(config, &own.id).await;
    match (opened, named) {
        (Ok(opened), _) => {
            if let Err(error) = stores::ensure_agents(js, config).await {
                tracing::warn!(%error, "not every store of agent jobs is there");
            }
            Ok(Some(opened))
        }
        (Err(error), None) => {
            let error: &dyn std::error::Error = &error;
            tracing::info!(error, "no agent jobs here");
            Ok(None)
        }
        (Err(error), Some(_)) => Err(error.into()),
    }
}

/// One that is there already is as good: its engine may have been named and found.
async fn add_docker(
    js: &JetStream,
    config: &Config,
    own: &Identity,
    runtimes: &mut Runtimes,
) -> Result<(), WorkerError> {
    if runtimes.contains_key("docker") {
        return Ok(());
    }
    let docker = DockerConfig {
        scratch: config.state_dir.join("pulls").join(own.id.as_str()),
        settings: config.containers.clone(),
        fleet: stores::fleet(js, config).await.map_err(WorkerError::Inbox)?,
        worker: own.id.clone(),
        instance: own.instance.clone(),
        guard: config.guard.clone(),
    };
    runtimes.insert("docker", Arc::new(DockerRuntime::new(docker).await?));
    Ok(())
}

#[cfg(feature = "containerd")]
async fn is_containerd_found(config: &Config) -> bool {
    runtime::containerd::found(&config.containers).await
}

#[cfg(not(feature = "containerd"))]
async fn is_containerd_found(_config: &Config) -> bool {
    false
}

/// The same of containerd.
#[cfg(feature = "containerd")]
async fn add_containerd(
    js: &JetStream,
    config: &Config,
    own: &Identity,
    runtimes: &mut Runtimes,
) -> Result<(), WorkerError> {
    use runtime::containerd::{ContainerdConfig, ContainerdRuntime};
    if runtimes.contains_key("containerd") {
        return Ok(());
    }
    let containerd = ContainerdConfig {
        scratch: config.state_dir.join("pulls-containerd").join(own.id.as_str()),
        settings: config.containers.clone(),
        fleet: stores::fleet(js, config).await.map_err(WorkerError::Inbox)?,
        worker: own.id.clone(),
        instance: own.instance.clone(),
        guard: config.guard.clone(),
    };
    runtimes.insert("containerd", Arc::new(ContainerdRuntime::new(containerd).await?));
    Ok(())
}

#[cfg(not(feature = "containerd"))]
async fn add_containerd(
    _js: &JetStream,
    _config: &Config,
    _own: &Identity,
    _runtimes: &mut Runtimes,
) -> Result<(), WorkerError> {
    Err(WorkerError::WithoutContainerd)
}

/// Tells the registry at once when a runtime goes down or comes back.
async fn follow_trouble(worker: Arc<Worker>, stop: CancellationToken) {
    let troubles = worker.runtimes.values().filter_map(|runtime| runtime.trouble());
    let changes = |mut trouble: watch::Receiver<Option<String>>| async move {
        trouble.changed().await.ok()?;
        let now = trouble.borrow_and_update().clone();
        Some((now, trouble))
    };
    let news = troubles.map(|trouble| Box::pin(futures_util::stream::unfold(trouble, changes)));
    let mut news = futures_util::stream::select_all(news);
    while let Some(Some(trouble)) = stop.run_until_cancelled(news.next()).await {
        match trouble {
            Some(reason) => tracing::warn!(reason, "a runtime is down"),
            None => tracing::info!("a runtime is back"),
        }
        worker.beat_soon.notify_one();
    }
}

/// Hands every confirmed beat on to the runtimes' dead-man's switches.
async fn keep_alive(worker: Arc<Worker>, stop: CancellationToken) {
    let mut kept = worker.leases.kept_until();
    loop {
        tokio::select! {
            changed = kept.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        if let Some(until) = *kept.borrow_and_update() {
            worker.runtimes.values().for_each(|runtime| runtime.keep_alive(until));
        }
    }
}

/// Keeps the queues' settings current: told by whoever changes them, read again after a reconnect.
async fn follow_settings(worker: Arc<Worker>, connection: Connection, stop: CancellationToken) {
    let mut link = connection.link.clone();
    let mut news = Vec::new();
    for (at, queue) in worker.queues.iter().enumerate() {
        let subject = worker.config.names.queue_event_subject(&queue.name);
        match worker.js.client().subscribe(subject).await {
            Ok(subscriber) => news.push(subscriber.map(move |message| (at, message))),
            Err(error) => tracing::warn!(queue = %queue.name, %error, "changes of its settings come with a reconnect"),
        }
    }
    let mut news = futures_util::stream::select_all(news);
    let set = |at: usize, settings: QueueSettings| {
        let queue: &Queue = &worker.queues[at];
        queue.set_settings(settings);
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some((at, message)) = news.next() => match serde_json::from_slice(&message.payload) {
                Ok(settings) => set(at, settings),
                Err(error) => tracing::warn!(queue = %worker.queues[at].name, %error, "unreadable settings ignored"),
            },
            changed = link.changed() => {
                if changed.is_err() { return }
                if !link.borrow_and_update().connected { continue }
                for (at, queue) in worker.queues.iter().enumerate() {
                    match stores::read_settings(&worker.js, &worker.config, &queue.name).await {
                        Ok(settings) => set(at, settings),
                        Err(error) => tracing::warn!(queue = %queue.name, %error, "settings not readable"),
                    }
                }
            }
        }
    }
}
