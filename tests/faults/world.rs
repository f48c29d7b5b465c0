//! A fleet as an operator runs it, made to be broken: one server or a cluster of three, dispatchers, and workers that
//! each see the server through lines of their own.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::history::Fault;
use crate::support::{
    Client, Cluster, Engine, Fleet, Nats, OwnEngine, Program, Proxy, SmallDisk, Weather, eventually, old_binary,
    random_word,
};

/// Megabytes of a small disk: room for the server's streams of a short round.
const SERVER_DISK: u32 = 256;
/// The same for the state of a worker, which wants 64 free before it fetches.
const WORKER_DISK: u32 = 128;

/// What a world is made like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// One server, or a cluster of three with three replicas of everything.
    pub cluster: bool,
    /// Workers.
    pub workers: usize,
    /// Slots of each.
    pub slots: u32,
    /// What runs containers.
    pub containers: Containers,
    /// Whether server and workers keep their files on small disks, which can be filled.
    pub small_disks: bool,
    /// How long a delivery stays its holder's.
    pub ack_wait: Duration,
}

/// What runs the containers of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containers {
    /// The machine's engine, which others use too.
    Machine,
    /// An engine of its own, which may be stopped, frozen and killed.
    Own,
}

/// The engine of a world.
pub enum WorldEngine {
    /// The machine's.
    Machine(Engine),
    /// Its own.
    Own(OwnEngine),
}

impl Deref for WorldEngine {
    type Target = Engine;
    fn deref(&self) -> &Engine {
        match self {
            Self::Machine(engine) => engine,
            Self::Own(engine) => engine,
        }
    }
}

/// Everything that runs in one round.
pub struct World {
    /// How it was made.
    pub shape: Shape,
    /// One or three.
    pub servers: Vec<Nats>,
    /// The fleet, seen over a line that nothing breaks.
    pub fleet: Fleet,
    /// What runs containers, if anything does.
    pub engine: Option<WorldEngine>,
    /// By their number; a number keeps its id and its folder, whatever happens to the process.
    pub workers: Vec<Worker>,
    /// Two, so that one may be gone.
    pub dispatchers: Vec<Program>,
    /// In the environment of every job.
    pub mark: String,
    /// What was done to it.
    pub faults: Vec<Fault>,
    /// The server's disk, then the workers'; empty unless they are small.
    pub disks: Vec<SmallDisk>,
}

/// One worker and its lines to the servers.
pub struct Worker {
    /// In the registry.
    pub id: String,
    /// Its process; `None` while it is down.
    pub program: Option<Program>,
    /// One to each server.
    pub lines: Vec<Proxy>,
}

/// Milliseconds since the epoch by this machine's clock.
pub fn now() -> i64 {
    schemas::Timestamp::now().as_millis()
}

impl World {
    /// A world whose workers and dispatchers are all there.
    pub async fn start(shape: Shape) -> Self {
        let mut disks = Vec::new();
        let servers = match shape.cluster {
            true => Cluster::start().await.servers,
            false => {
                let small = shape.small_disks;
                let settings = |folder: &Path| {
                    disks.extend(small.then(|| SmallDisk::mount(&folder.join("store"), SERVER_DISK)).flatten());
                    String::new()
                };
                vec![Nats::with("nats", settings).await]
            }
        };
        let engine = match shape.containers {
            Containers::Machine => Engine::find().await.map(WorldEngine::Machine),
            Containers::Own => OwnEngine::start().await.map(WorldEngine::Own),
        };
        let urls: Vec<String> = servers.iter().map(Nats::url).collect();
        let ack_wait = format!("{}ms", shape.ack_wait.as_millis());
        let builder = Fleet::builder().ack_wait(&ack_wait).env("SHOAL_REPLICAS", if shape.cluster { "3" } else { "1" });
        let builder = if shape.small_disks { builder.env("SHOAL_LOGS_BYTES", "64Mi") } else { builder };
        let fleet = builder.bare().on(&urls.join(",")).await;
        // A cluster that has only just begun may leave a call without an answer.
        eventually("the stores are made", async || {
            let applied = fleet.shoal(&["admin", "apply"]).await;
            if applied.code == 0 { Ok(()) } else { Err(applied.stderr) }
        })
        .await;
        // A container's root has no capabilities, so it is an other as any.
        let effects = fleet.folder().join("effects");
        std::fs::create_dir(&effects).expect("a folder for effects");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&effects, all).expect("it is ours");
        let mut world = Self {
            shape,
            servers,
            fleet,
            engine,
            workers: Vec::new(),
            dispatchers: Vec::new(),
            mark: format!("mark-{}", random_word()),
            faults: Vec::new(),
            disks,
        };
        for n in 0..world.shape.workers {
            world.add_worker(n).await;
        }
        for n in 0..world.shape.workers {
            world.start_worker(n, None).await;
        }
        for n in 0..2 {
            let dispatcher = world.start_dispatcher(n).await;
            world.dispatchers.push(dispatcher);
        }
        world
    }

    /// Where jobs write their effects.
    pub fn effects(&self) -> PathBuf {
        self.fleet.folder().join("effects")
    }

    /// A connection of its own for one more user, past all bad lines.
    pub async fn user(&self) -> Client {
        Client::connect(&self.fleet.url(), "shoal").await
    }

    /// A dispatcher that is ready; every other one is of the older build, where one is given.
    pub async fn start_dispatcher(&self, n: usize) -> Program {
        match n % 2 {
            1 => self.fleet.dispatcher_of(&old_binary(), &[]).await.0,
            _ => self.fleet.dispatcher(&[]).await.0,
        }
    }

    async fn add_worker(&mut self, n: usize) {
        let name = format!("w-{n}");
        let id = self.engine.as_ref().map_or_else(|| name.clone(), |engine| engine.id(&name));
        let mut lines = Vec::new();
        for server in &self.servers {
            lines.push(Proxy::start(server.address()).await);
        }
        if self.shape.small_disks {
            let state = self.fleet.folder().join(&id);
            self.disks.extend(SmallDisk::mount(&state, WORKER_DISK));
        }
        self.workers.push(Worker { id, program: None, lines });
    }

    /// Starts a worker that is down; with a fail point it will die there. Does not wait until it pulls, for the server
    /// may be away.
    pub async fn start_worker(&mut self, n: usize, fail_point: Option<&str>) {
        let worker = &self.workers[n];
        assert!(worker.program.is_none(), "{} runs", worker.id);
        let builder = match &self.engine {
            Some(engine) => engine.worker(&self.fleet, &format!("w-{n}")).runtimes("call,process,docker"),
            None => self.fleet.worker(&worker.id).runtimes("call,process"),
        };
        let lines: Vec<String> = worker.lines.iter().map(Proxy::url).collect();
        let mut builder = builder
            .slots(self.shape.slots)
            .queues("default:3,other:1")
            .drain_grace("3s")
            .env("SHOAL_NATS_URL", &lines.join(","))
            .env("SHOAL_SWEEP_EVERY", "5s");
        // Every other worker is of the older build, where one is given.
        if n % 2 == 1 && fail_point.is_none() {
            builder = builder.binary(&old_binary());
        }
        if let Some(point) = fail_point {
            builder = builder.fails_at(point);
        }
        self.workers[n].program = Some(builder.spawn());
    }

    /// SIGKILL of one worker, noted.
    pub async fn kill_worker(&mut self, n: usize) {
        let Some(mut program) = self.workers[n].program.take() else { return };
        let from = now();
        // It may have died by its own hand a moment ago.
        if program.try_wait().is_none() {
            program.kill().await;
        }
        let killed = Some(self.workers[n].id.clone());
        self.faults.push(Fault { name: "kill-worker", from, until: now(), killed, ..Fault::default() });
    }

    /// Sets the weather of all lines of one worker.
    pub fn weather(&self, n: usize, weather: Weather) {
        for line in &self.workers[n].lines {
            line.weather(weather);
        }
    }

    /// Clear weather everywhere, every server up, every worker and dispatcher that is down started again.
    pub async fn heal(&mut self) {
        for server in &mut self.servers {
            if !server.runs() {
                server.restart().await;
            }
        }
        for n in 0..self.workers.len() {
            self.weather(n, Weather::Clear);
            let ended = self.workers[n].program.as_mut().is_some_and(|program| program.try_wait().is_some());
            if ended {
                self.workers[n].program = None;
            }
            if self.workers[n].program.is_none() {
                self.start_worker(n, None).await;
            }
        }
        for n in 0..self.dispatchers.len() {
            if self.dispatchers[n].try_wait().is_some() {
                self.dispatchers[n] = self.start_dispatcher(n).await;
            }
        }
    }

    /// Waits until every accepted task is out of the stream, with no hand on anything.
    pub async fn drained(&self, within: Duration) {
        let until = tokio::time::Instant::now() + within;
        let name = self.fleet.names.tasks_stream();
        let mut left = String::new();
        while tokio::time::Instant::now() < until {
            let seen = async {
                let mut stream = self.fleet.js.get_stream(&name).await.map_err(|e| e.to_string())?;
                Ok::<_, String>(stream.info().await.map_err(|e| e.to_string())?.state.messages)
            };
            match seen.await {
                Ok(0) => return,
                Ok(n) => left = format!("{n} left"),
                Err(error) => left = error,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The checker will name them.
        eprintln!("not drained within {within:?}: {left}");
    }

    /// Copies what all programs wrote to a folder, which outlives the world.
    pub fn keep_logs(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder for logs");
        let entries = std::fs::read_dir(self.fleet.folder()).expect("the fleet's folder").flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.is_file()) {
            std::fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a log is copied");
        }
        if let Some(WorldEngine::Own(engine)) = &self.engine {
            std::fs::copy(engine.log_file(), folder.join("dockerd.log")).expect("a log is copied");
        }
    }

    /// Tells every worker to leave and waits until all have.
    pub async fn leave(&mut self) {
        for worker in &mut self.workers {
            if let Some(program) = &mut worker.program {
                program.terminate();
            }
        }
        for worker in &mut self.workers {
            if let Some(mut program) = worker.program.take() {
                eventually(format!("{} leaves", worker.id), async || match program.try_wait() {
                    Some(_) => Ok(()),
                    None => Err("it is still there".into()),
                })
                .await;
            }
        }
    }
}
