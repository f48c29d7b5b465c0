//! The fleet that is measured: one of our own, each part a process of its own so that its CPU can be counted, or
//! somebody else's.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream;
use dispatcher::client::Client;
use schemas::stores::StoreSettings;
use schemas::{AgentStatus, HumanDuration, Names, QueueName};
use tokio::process::{Child, Command};

use super::BenchError;
use super::engine::Engine;
use super::meter::Parts;
use super::part::{self, Part, ready};
use super::sleeper;
use crate::nats_server::{Cluster, NatsServer};

/// The lease of an own fleet. Nothing measured lasts as long, and after a start it must pass once.
const ACK_WAIT: HumanDuration = HumanDuration::seconds(5);
/// How long a cluster may take to elect its leaders.
const ELECTED: Duration = Duration::from_secs(60);

/// Connections to the measured fleet, and its processes where they are ours.
pub struct Fleet {
    /// Submits.
    pub client: Client,
    /// Sees the ends: a connection of its own, as another program would have.
    pub watcher: Client,
    own: Option<Own>,
}

struct Own {
    settles: Duration,
    servers: Vec<NatsServer>,
    stores: StoreSettings,
    workers: Vec<Child>,
    dispatcher: Option<(Child, String)>,
    engine: Option<Engine>,
    folder: tempfile::TempDir,
}

/// What a worker of an own fleet is told beside the usual.
pub type Setting = (&'static str, String);

impl Fleet {
    /// One of our own: so many servers, the stores as a dispatcher makes them with a replica on each, no worker yet. A
    /// quick look does not wait until a worker has settled.
    pub async fn own(program: PathBuf, servers: u8, percent: usize) -> Result<Self, BenchError> {
        let folder = tempfile::Builder::new().prefix("shoal-bench-").tempdir();
        let folder = folder.map_err(|error| BenchError::fleet("could not make a folder for the fleet", error))?;
        let ports = free_ports(2 * usize::from(servers))?;
        let (clients, routes) = ports.split_at(servers.into());
        let mut started = Vec::new();
        for (at, port) in clients.iter().enumerate() {
            let store = folder.path().join(format!("nats-{at}"));
            let server = if servers == 1 {
                NatsServer::start(program.clone(), &store, Some(*port)).await
            } else {
                let cluster = Cluster { name: "shoal-bench".into(), port: routes[at], routes: routes.to_vec() };
                NatsServer::start_in(program.clone(), &store, Some(*port), Some(cluster)).await
            };
            started.push(server.map_err(|error| BenchError::fleet("could not start nats-server", error))?);
        }
        let (servers, mut connections): (Vec<_>, Vec<_>) = started.into_iter().unzip();
        let client = Client::new(connections.remove(0), Names::default());
        let replicas = servers.len() as u8;
        let stores = StoreSettings { ack_wait: ACK_WAIT, replicas, ..StoreSettings::default() };
        ensure(&client, &stores).await?;
        let watcher = connect(&servers[0].url(), Names::default()).await?;
        let settles = (ACK_WAIT.0 + Duration::from_secs(1)).mul_f64((percent as f64 / 10.0).min(1.0));
        let own = Own { settles, servers, stores, workers: Vec::new(), dispatcher: None, engine: None, folder };
        Ok(Self { client, watcher, own: Some(own) })
    }

    /// Somebody else's, already connected to.
    pub async fn given(client: Client) -> Result<Self, BenchError> {
        let url = client.connection.url.clone();
        let names = client.names.clone();
        Ok(Self { client, watcher: connect(&url, names).await?, own: None })
    }

    /// Whether its parts are ours.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Replaces the workers of an own fleet by one with these settings, and waits until it runs as it will go on
    /// running: for one ack wait after a connect every start is claimed first.
    pub async fn worker(&mut self, runtimes: &str, slots: usize, settings: &[Setting]) -> Result<(), BenchError> {
        if self.own.is_none() {
            return Ok(());
        }
        self.end_workers().await;
        self.start_worker(runtimes, slots, settings).await?;
        self.settled(1).await
    }

    /// The same with so many workers of no-ops, a process each.
    pub async fn workers(&mut self, count: usize, slots: usize) -> Result<(), BenchError> {
        self.end_workers().await;
        for _ in 0..count {
            self.start_worker("call", slots, &[]).await?;
        }
        self.settled(count).await
    }

    /// The same with one worker that has the handler `sleep`.
    pub async fn sleeper(&mut self, slots: usize) -> Result<(), BenchError> {
        self.end_workers().await;
        let Some(own) = &mut self.own else { return Ok(()) };
        let spec = sleeper::Spec {
            url: own.servers[0].url(),
            id: "bench-0".into(),
            slots,
            state_dir: own.folder.path().join("state"),
            ack_wait: ACK_WAIT,
        };
        own.workers.push(part::start(&Part::Sleeper(spec)).await?);
        self.settled(1).await
    }

    async fn settled(&self, workers: usize) -> Result<(), BenchError> {
        tokio::time::sleep(self.own.as_ref().map_or(Duration::ZERO, |own| own.settles)).await;
        for at in 0..workers {
            match self.client.agent(&format!("bench-{at}")).await {
                Ok(agent) if agent.status == AgentStatus::Ready => {}
                Ok(agent) => {
                    let reason = agent.record.reason.unwrap_or_default();
                    return Err(BenchError::broken(format!("the worker is {}: {reason}", agent.status)));
                }
                Err(error) => return Err(BenchError::fleet("the worker is not in the registry", error)),
            }
        }
        Ok(())
    }

    /// Waits until a task lies in the queue.
    pub async fn queued(&self, queue: &QueueName) -> Result<(), BenchError> {
        let (stream, subjects) = (self.client.names.tasks_stream(), self.client.names.queue_subjects(queue));
        loop {
            let found = self.client.js.subjects(&stream, &subjects, 0).await;
            if found.map_err(|error| BenchError::fleet("could not look at the queue", error))?.total > 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Throws away what lies in a queue that nobody works, of which there must be so much.
    pub async fn empty(&self, queue: &QueueName, tasks: usize) -> Result<(), BenchError> {
        type Failure = Box<dyn std::error::Error + Send + Sync>;
        let purge = async {
            let js = jetstream::new(self.client.js.client().clone());
            let stream = js.get_stream(self.client.names.tasks_stream()).await?;
            let purged = stream.purge().filter(self.client.names.queue_subjects(queue)).await?.purged;
            Ok::<_, Failure>(purged)
        };
        match purge.await.map_err(|error| BenchError::fleet("could not empty the queue", error))? {
            purged if purged == tasks as u64 => Ok(()),
            purged => Err(BenchError::broken(format!("{purged} of {tasks} accepted tasks lay in the queue"))),
        }
    }

    /// Size of the record that was written last.
    pub async fn record_bytes(&self) -> Result<usize, BenchError> {
        let failed = |error| BenchError::fleet("could not read a record", error);
        let (js, stream) = (&self.client.js, self.client.names.records_stream());
        let last = js.stream_state(&stream).await.map_err(failed)?.map_or(0, |state| state.last_seq);
        let record = js.at(&stream, last).await.map_err(failed)?;
        record.map(|record| record.payload.len()).ok_or_else(|| BenchError::broken("there is no record yet".into()))
    }

    /// Ends the workers of an own fleet.
    pub async fn end_workers(&mut self) {
        let workers = self.own.as_mut().map(|own| std::mem::take(&mut own.workers)).unwrap_or_default();
        futures_util::future::join_all(workers.into_iter().map(part::end)).await;
    }

    /// Starts one more worker of an own fleet; returns once it takes work.
    pub async fn start_worker(&mut self, runtimes: &str, slots: usize, settings: &[Setting]) -> Result<(), BenchError> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let mut command = shoal("worker", &own.servers[0].url());
        command.env("SHOAL_WORKER_ID", format!("bench-{}", own.workers.len())).env("SHOAL_RUNTIMES", runtimes);
        command.env("SHOAL_SLOTS", slots.to_string()).env("SHOAL_STATE_DIR", own.folder.path().join("state"));
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        let (worker, _) = ready(command).await?;
        own.workers.push(worker);
        Ok(())
    }

    /// Starts a dispatcher of an own fleet, unless it runs; where its HTTP listens.
    pub async fn dispatcher(&mut self) -> Result<Option<String>, BenchError> {
        let Some(own) = &mut self.own else { return Ok(None) };
        if let Some((_, http)) = &own.dispatcher {
            return Ok(Some(http.clone()));
        }
        let mut command = shoal("dispatcher", &own.servers[0].url());
        command.env("SHOAL_HTTP", "127.0.0.1:0").env("SHOAL_REPLICAS", own.stores.replicas.to_string());
        let (dispatcher, said) = ready(command).await?;
        let http = said.split_whitespace().find_map(|word| word.strip_prefix("http=http://"));
        let http = http.ok_or_else(|| BenchError::broken(format!("the dispatcher said {said:?}")))?.to_owned();
        own.dispatcher = Some((dispatcher, http.clone()));
        Ok(Some(http))
    }

    /// Ends the dispatcher of an own fleet.
    pub async fn end_dispatcher(&mut self) {
        if let Some((dispatcher, _)) = self.own.as_mut().and_then(|own| own.dispatcher.take()) {
            part::end(dispatcher).await;
        }
    }

    /// Starts the engine without Shoal beside an own fleet, unless it runs. Whether there is one.
    pub async fn start_engine(&mut self) -> Result<bool, BenchError> {
        let Some(own) = &mut self.own else { return Ok(false) };
        if own.engine.is_none() {
            own.engine = Some(Engine::start(&own.servers[0].url(), &own.stores).await?);
        }
        Ok(true)
    }

    /// The engine without Shoal, where it runs.
    pub fn engine(&self) -> Option<&Engine> {
        self.own.as_ref()?.engine.as_ref()
    }

    /// The processes of `worker`, `server` and `dispatcher`, where they are ours.
    pub fn pids(&self) -> Parts {
        let Some(own) = &self.own else { return Parts::new() };
        let workers = own.workers.iter().filter_map(|worker| Some(("worker", worker.id()?)));
        let dispatcher = own.dispatcher.iter().filter_map(|(child, _)| Some(("dispatcher", child.id()?)));
        workers.chain(servers(own)).chain(dispatcher).collect()
    }

    /// The processes of the engine without Shoal: its worker, and the server.
    pub fn engine_pids(&self) -> Parts {
        let Some(own) = &self.own else { return Parts::new() };
        let worker = own.engine.as_ref().and_then(|engine| Some(("worker", engine.pid()?)));
        worker.into_iter().chain(servers(own)).collect()
    }

    /// Every process of ours.
    pub fn all_pids(&self) -> Parts {
        let engine = self.engine().and_then(|engine| Some(("engine", engine.pid()?)));
        self.pids().into_iter().chain(engine).collect()
    }

    /// Ends what is ours.
    pub async fn end(mut self) {
        self.end_workers().await;
        self.end_dispatcher().await;
        let Some(own) = self.own else { return };
        if let Some(engine) = own.engine {
            engine.end().await;
        }
        drop((self.client, self.watcher));
        futures_util::future::join_all(own.servers.into_iter().map(NatsServer::stop)).await;
    }
}

fn servers(own: &Own) -> impl Iterator<Item = (&'static str, u32)> {
    own.servers.iter().filter_map(|server| Some(("server", server.pid()?)))
}

/// So many, free at the same time.
fn free_ports(count: usize) -> Result<Vec<u16>, BenchError> {
    let failed = |error| BenchError::fleet("could not find a free port", error);
    let held: Result<Vec<_>, _> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect();
    let ports = held.map_err(failed)?;
    ports.iter().map(|held| Ok(held.local_addr().map_err(failed)?.port())).collect()
}

/// Makes the stores of the fleet that `client` names. A cluster that was just started has no leader yet.
pub async fn ensure(client: &Client, stores: &StoreSettings) -> Result<(), BenchError> {
    let deadline = tokio::time::Instant::now() + ELECTED;
    loop {
        let made = dispatcher::topology::ensure(&client.js, &client.names, stores, ::jetstream::Ensure::Upgrade).await;
        match made {
            Ok(_) => return Ok(()),
            Err(_) if stores.replicas > 1 && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Err(error) => return Err(BenchError::fleet("could not make the stores", error)),
        }
    }
}

/// One more connection.
pub async fn connect(url: &str, names: Names) -> Result<Client, BenchError> {
    let settings = ::jetstream::ConnectSettings { url: Some(url.to_owned()), ..Default::default() };
    let connected = settings.connect("shoal bench").await;
    let connection = connected.map_err(|error| BenchError::fleet("could not connect to the fleet", error))?;
    Ok(Client::new(connection, names))
}

/// This program in another role, with nothing of our own settings.
fn shoal(role: &str, url: &str) -> Command {
    let mut command = part::this_program();
    // The worker makes the queue's consumer, whose lease it is.
    command.env("SHOAL_LOG_LEVEL", "warn").env("SHOAL_ACK_WAIT", ACK_WAIT.to_string());
    command.arg(role).env("SHOAL_NATS_URL", url);
    command
}
