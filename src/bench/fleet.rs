//! The fleet that is measured: one of our own, each part a process of its own so that its CPU can be counted, or
//! somebody else's.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use dispatcher::client::Client;
use jetstream::{ConnectSettings, Ensure};
use schemas::stores::StoreSettings;
use schemas::{AgentStatus, HumanDuration, Names};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::BenchError;
use super::machine::cpu_of;
use crate::nats_server::NatsServer;

/// The lease of an own fleet. Nothing measured lasts as long, and after a start it must pass once.
const ACK_WAIT: HumanDuration = HumanDuration::seconds(5);
/// How long a part may take to say that it is ready.
const READY: Duration = Duration::from_secs(60);

/// Connections to the measured fleet, and its processes where they are ours.
pub struct Fleet {
    /// Submits.
    pub client: Client,
    /// Sees the ends: a connection of its own, as another program would have.
    pub watcher: Client,
    own: Option<Own>,
}

struct Own {
    server: NatsServer,
    worker: Option<Child>,
    dispatcher: Option<Child>,
    folder: tempfile::TempDir,
}

/// What a worker of an own fleet is told beside the usual.
pub type Setting = (&'static str, String);

impl Fleet {
    /// One of our own: a server, the stores as a dispatcher makes them, no worker yet.
    pub async fn own(program: PathBuf) -> Result<Self, BenchError> {
        let folder = tempfile::Builder::new().prefix("shoal-bench-").tempdir();
        let folder = folder.map_err(|error| BenchError::fleet("could not make a folder for the fleet", error))?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.map_err(|error| BenchError::fleet("could not find a free port", error))?.port();
        let started = NatsServer::start(program, &folder.path().join("nats"), Some(port)).await;
        let (server, connection) = started.map_err(|error| BenchError::fleet("could not start nats-server", error))?;
        let client = Client::new(connection, Names::default());
        let stores = StoreSettings { ack_wait: ACK_WAIT, ..StoreSettings::default() };
        let ensured = dispatcher::topology::ensure(&client.js, &client.names, &stores, Ensure::Upgrade).await;
        ensured.map_err(|error| BenchError::fleet("could not make the stores", error))?;
        let watcher = connect(&server.url(), Names::default()).await?;
        Ok(Self { client, watcher, own: Some(Own { server, worker: None, dispatcher: None, folder }) })
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

    /// Replaces the worker of an own fleet by one with these settings, and waits until it runs as it will go on
    /// running: for one ack wait after a connect every start is claimed first.
    pub async fn worker(&mut self, runtimes: &str, slots: usize, settings: &[Setting]) -> Result<(), BenchError> {
        if self.own.is_none() {
            return Ok(());
        }
        self.end_worker().await;
        self.start_worker(runtimes, slots, settings).await?;
        tokio::time::sleep(ACK_WAIT.0 + Duration::from_secs(1)).await;
        match self.client.agent("bench").await {
            Ok(agent) if agent.status == AgentStatus::Ready => Ok(()),
            Ok(agent) => Err(BenchError::Fleet {
                what: format!("the worker is {}: {}", agent.status, agent.record.reason.unwrap_or_default()),
                source: None,
            }),
            Err(error) => Err(BenchError::fleet("the worker is not in the registry", error)),
        }
    }

    /// Waits until a task lies in the queue.
    pub async fn queued(&self, queue: &schemas::QueueName) -> Result<(), BenchError> {
        let (stream, subjects) = (self.client.names.tasks_stream(), self.client.names.queue_subjects(queue));
        loop {
            let found = self.client.js.subjects(&stream, &subjects, 0).await;
            if found.map_err(|error| BenchError::fleet("could not look at the queue", error))?.total > 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the worker of an own fleet.
    pub async fn end_worker(&mut self) {
        if let Some(worker) = self.own.as_mut().and_then(|own| own.worker.take()) {
            end(worker).await;
        }
    }

    /// Starts the worker of an own fleet; returns once it takes work.
    pub async fn start_worker(&mut self, runtimes: &str, slots: usize, settings: &[Setting]) -> Result<(), BenchError> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let mut command = shoal("worker", &own.server.url());
        command.env("SHOAL_WORKER_ID", "bench").env("SHOAL_RUNTIMES", runtimes);
        command.env("SHOAL_SLOTS", slots.to_string()).env("SHOAL_STATE_DIR", own.folder.path().join("state"));
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        let (worker, _) = ready(command).await?;
        own.worker = Some(worker);
        Ok(())
    }

    /// Starts a dispatcher of an own fleet; where its HTTP listens.
    pub async fn dispatcher(&mut self) -> Result<Option<String>, BenchError> {
        let Some(own) = &mut self.own else { return Ok(None) };
        let mut command = shoal("dispatcher", &own.server.url());
        command.env("SHOAL_HTTP", "127.0.0.1:0");
        let (dispatcher, said) = ready(command).await?;
        own.dispatcher = Some(dispatcher);
        Ok(said.split_whitespace().find_map(|word| word.strip_prefix("http=http://")).map(str::to_owned))
    }

    /// CPU time so far of `worker` and `server`, where they are ours.
    pub fn cpu(&self) -> Vec<(&'static str, Duration)> {
        self.pids().map(|(part, pid)| (part, cpu_of(pid))).collect()
    }

    /// The processes of `worker` and `server`, where they are ours.
    pub fn pids(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let worker = self.own.as_ref().and_then(|own| own.worker.as_ref()?.id()).map(|pid| ("worker", pid));
        let server = self.own.as_ref().and_then(|own| own.server.pid()).map(|pid| ("server", pid));
        worker.into_iter().chain(server)
    }

    /// Ends what is ours.
    pub async fn end(self) {
        let Some(own) = self.own else { return };
        for child in [own.worker, own.dispatcher].into_iter().flatten() {
            end(child).await;
        }
        drop((self.client, self.watcher));
        own.server.stop().await;
    }
}

async fn connect(url: &str, names: Names) -> Result<Client, BenchError> {
    let settings = ConnectSettings { url: Some(url.to_owned()), ..ConnectSettings::default() };
    let connected = settings.connect("shoal bench").await;
    let connection = connected.map_err(|error| BenchError::fleet("could not connect to the fleet", error))?;
    Ok(Client::new(connection, names))
}

/// This program in another role, with nothing of our own settings.
fn shoal(role: &str, url: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SHOAL_")) {
        command.env_remove(name);
    }
    // The worker makes the queue's consumer, whose lease it is.
    command.env("SHOAL_LOG_LEVEL", "warn").env("SHOAL_ACK_WAIT", ACK_WAIT.to_string());
    command.arg(role).env("SHOAL_NATS_URL", url).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// Starts a role and waits for its line.
async fn ready(mut command: Command) -> Result<(Child, String), BenchError> {
    let mut child = command.spawn().map_err(|error| BenchError::fleet("could not start a part of the fleet", error))?;
    let stdout = child.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(READY, lines.next_line()).await;
    match line {
        Ok(Ok(Some(line))) if line.starts_with("ready ") => Ok((child, line)),
        Ok(Ok(line)) => Err(BenchError::Fleet {
            what: format!(
                "a part of the fleet did not start; it said {:?} and more on stderr",
                line.unwrap_or_default()
            ),
            source: None,
        }),
        Ok(Err(error)) => Err(BenchError::fleet("could not hear a part of the fleet", error)),
        Err(error) => Err(BenchError::fleet("a part of the fleet was not ready in time", error)),
    }
}

/// Asks it to go, and sees it gone.
async fn end(mut child: Child) {
    if let Some(pid) = child.id() {
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        // Gone already is gone too.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(Duration::from_secs(30), child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
