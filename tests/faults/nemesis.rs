//! What is done to a world: one trouble after the other, each healed before the next.

use std::time::Duration;

use tokio::time::sleep;

use crate::dice::Dice;
use crate::firewall::{Firewall, Way};
use crate::history::Fault;
use crate::support::{Nats, Weather};
use crate::world::{World, WorldEngine, now};

/// One kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trouble {
    /// SIGKILL of a worker; it comes back under its id after a moment.
    KillWorker,
    /// A worker dies between two of its writes, at a fail point.
    DieBetweenWrites,
    /// SIGSTOP of a worker for longer than its lease, then SIGCONT.
    FreezeWorker,
    /// SIGTERM of a worker; it comes back.
    RestartWorker,
    /// Every worker leaves, then all come back.
    Churn,
    /// A worker's connections are broken, for shorter or longer than the lease.
    CutWorker,
    /// The packet filter swallows what a worker sends, what it is sent, or both.
    FilterWorker,
    /// TCP resets of all workers' connections every second or two.
    Resets,
    /// A worker's connection stands and nothing passes.
    HalfOpen,
    /// Every piece is late by up to 400 ms.
    Slow,
    /// SIGKILL of a server, and its restart; of a cluster, of one.
    KillServer,
    /// SIGTERM of a server, and its restart; of a cluster, of one after the other.
    RestartServer,
    /// The leaders of the tasks, the records and the consumers step down.
    StepDown,
    /// SIGKILL of a dispatcher; it comes back.
    KillDispatcher,
    /// No byte is free on the server's disk, for a while; what the server froze, its restart thaws.
    FillServer,
    /// No byte is free on a worker's disk, for a while.
    FillWorker,
    /// The container engine is told to stop, which stops its containers, and started again.
    RestartEngine,
    /// SIGKILL of the container engine; its containers run on until it is started again.
    KillEngine,
    /// SIGSTOP of the container engine, then SIGCONT.
    FreezeEngine,
}

impl Trouble {
    /// What one machine with one server may suffer.
    pub const ONE: [Self; 13] = [
        Self::KillWorker,
        Self::DieBetweenWrites,
        Self::FreezeWorker,
        Self::RestartWorker,
        Self::Churn,
        Self::CutWorker,
        Self::FilterWorker,
        Self::Resets,
        Self::HalfOpen,
        Self::Slow,
        Self::KillServer,
        Self::RestartServer,
        Self::KillDispatcher,
    ];

    /// What a cluster may suffer besides.
    pub const CLUSTER: [Self; 3] = [Self::KillServer, Self::RestartServer, Self::StepDown];
    /// What disks may do.
    pub const DISKS: [Self; 2] = [Self::FillServer, Self::FillWorker];
    /// What a container engine may do.
    pub const ENGINE: [Self; 3] = [Self::RestartEngine, Self::KillEngine, Self::FreezeEngine];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "kill-worker",
            Self::DieBetweenWrites => "die-between-writes",
            Self::FreezeWorker => "freeze-worker",
            Self::RestartWorker => "restart-worker",
            Self::Churn => "churn",
            Self::CutWorker => "cut-worker",
            Self::FilterWorker => "filter-worker",
            Self::Resets => "resets",
            Self::HalfOpen => "half-open",
            Self::Slow => "slow",
            Self::KillServer => "kill-server",
            Self::RestartServer => "restart-server",
            Self::StepDown => "step-down",
            Self::KillDispatcher => "kill-dispatcher",
            Self::FillServer => "fill-server",
            Self::FillWorker => "fill-worker",
            Self::RestartEngine => "restart-engine",
            Self::KillEngine => "kill-engine",
            Self::FreezeEngine => "freeze-engine",
        }
    }
}

/// Fail points of a worker: between any two of its writes.
const POINTS: [&str; 10] = [
    "after_pull",
    "before_claim",
    "after_claim",
    "after_start",
    "before_end_record",
    "after_end_record",
    "after_dead_letter",
    "after_retry_record",
    "after_event",
    "after_settle",
];
/// Within so long after a trouble of the server everybody has connected again and knows the leaders.
const RECOVERY_MS: i64 = 5_000;
/// How long a worker is given to come to its fail point.
const TO_THE_POINT: Duration = Duration::from_secs(5);

/// Throws the dice and does it.
pub struct Nemesis {
    dice: Dice,
}

impl Nemesis {
    /// One that does the same for the same seed.
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed, "nemesis") }
    }

    /// The order in which these come.
    pub fn order(&mut self, troubles: &[Trouble]) -> Vec<Trouble> {
        self.dice.shuffled(troubles)
    }

    /// Does one thing to the world and heals it.
    pub async fn strike(&mut self, world: &mut World, trouble: Trouble) {
        let from = now();
        let n = self.dice.between(0, world.workers.len() as u64) as usize;
        let lease = world.shape.ack_wait;
        let lease_ms = lease.as_millis() as i64;
        let mut fault = Fault { name: trouble.name(), from, ..Fault::default() };
        eprintln!("  {} of worker {n}", trouble.name());
        match trouble {
            Trouble::KillWorker => {
                world.kill_worker(n).await;
                sleep(self.dice.pause(100, 2_000)).await;
                world.start_worker(n, None).await;
                // Its fault is noted with the moment of its death.
                return;
            }
            Trouble::DieBetweenWrites => {
                let point = format!("{}:{}", self.dice.one_of(&POINTS), self.dice.between(1, 6));
                leave(world, n).await;
                world.start_worker(n, Some(&point)).await;
                let until = tokio::time::Instant::now() + TO_THE_POINT;
                let program = world.workers[n].program.as_mut().expect("just started");
                while program.try_wait().is_none() && tokio::time::Instant::now() < until {
                    sleep(Duration::from_millis(20)).await;
                }
                world.kill_worker(n).await;
                world.start_worker(n, None).await;
            }
            Trouble::FreezeWorker => {
                let program = world.workers[n].program.as_ref().expect("healed before");
                program.freeze();
                sleep(lease + self.dice.pause(500, 3_000)).await;
                program.thaw();
            }
            Trouble::RestartWorker => {
                leave(world, n).await;
                world.start_worker(n, None).await;
            }
            Trouble::Churn => {
                for n in 0..world.workers.len() {
                    leave(world, n).await;
                }
                sleep(self.dice.pause(200, 1_500)).await;
                for n in 0..world.workers.len() {
                    world.start_worker(n, None).await;
                }
            }
            Trouble::CutWorker => {
                world.weather(n, Weather::Cut);
                sleep(self.outage(lease)).await;
                world.weather(n, Weather::Clear);
            }
            Trouble::FilterWorker => {
                let way = *self.dice.one_of(&[Way::In, Way::Out, Way::Both]);
                let ports: Vec<u16> = world.workers[n].lines.iter().map(|line| line.port()).collect();
                let Some(wall) = Firewall::swallow(&ports, way) else { return };
                sleep(self.outage(lease)).await;
                drop(wall);
            }
            Trouble::Resets => {
                for _ in 0..4 {
                    for line in world.workers.iter().flat_map(|worker| &worker.lines) {
                        line.reset();
                    }
                    sleep(self.dice.pause(800, 2_500)).await;
                }
            }
            Trouble::HalfOpen => {
                world.weather(n, Weather::HalfOpen);
                sleep(self.outage(lease)).await;
                world.weather(n, Weather::Clear);
            }
            Trouble::Slow => {
                for n in 0..world.workers.len() {
                    world.weather(n, Weather::Slow(Duration::from_millis(400)));
                }
                sleep(self.dice.pause(3_000, 6_000)).await;
                for n in 0..world.workers.len() {
                    world.weather(n, Weather::Clear);
                }
            }
            Trouble::KillServer => {
                // It forgets what it handed out in its last 50 to 80 ms: two starts until the older one's next write.
                fault.may_overlap = Some(lease_ms);
                let server = self.server(world);
                server.kill();
                sleep(self.dice.pause(100, 4_000)).await;
                server.restart().await;
            }
            Trouble::RestartServer => {
                for n in 0..world.servers.len() {
                    world.servers[n].terminate().await;
                    sleep(self.dice.pause(100, 1_500)).await;
                    world.servers[n].restart().await;
                    caught_up(&world.servers[n]).await;
                }
            }
            Trouble::StepDown => {
                for _ in 0..4 {
                    step_down(world).await;
                    sleep(self.dice.pause(500, 1_500)).await;
                }
            }
            // Where no disk could be mounted, it was said.
            Trouble::FillServer | Trouble::FillWorker if world.disks.is_empty() => return,
            Trouble::FillServer => {
                world.disks[0].fill();
                sleep(self.dice.pause(2_000, 4_000)).await;
                world.disks[0].free();
                // Since 2.14 a stream that could not be written to stays frozen until its server starts anew.
                world.servers[0].terminate().await;
                world.servers[0].restart().await;
            }
            Trouble::FillWorker => {
                world.disks[1 + n].fill();
                sleep(self.dice.pause(2_000, 4_000)).await;
                world.disks[1 + n].free();
            }
            Trouble::RestartEngine | Trouble::KillEngine | Trouble::FreezeEngine => {
                // What an engine does not answer for, nobody can stop.
                fault.may_overlap = Some(lease_ms);
                let pause = self.dice.pause(1_000, lease_ms as u64 * 3 / 2);
                let Some(WorldEngine::Own(engine)) = &mut world.engine else { return };
                match trouble {
                    Trouble::FreezeEngine => engine.freeze(),
                    Trouble::KillEngine => engine.kill().await,
                    _ => engine.stop().await,
                }
                sleep(pause).await;
                match trouble {
                    Trouble::FreezeEngine => engine.thaw(),
                    _ => engine.restart().await,
                }
            }
            Trouble::KillDispatcher => {
                let n = self.dice.between(0, world.dispatchers.len() as u64) as usize;
                world.dispatchers[n].kill().await;
                world.dispatchers[n] = world.start_dispatcher(n).await;
            }
        }
        fault.until = now();
        match trouble {
            Trouble::FreezeWorker | Trouble::CutWorker | Trouble::FilterWorker | Trouble::HalfOpen => {
                fault.silent = Some(lease_ms);
            }
            Trouble::KillServer
            | Trouble::RestartServer
            | Trouble::StepDown
            | Trouble::FillServer
            | Trouble::Slow
            | Trouble::Resets => {
                fault.silent = Some(lease_ms);
                // Everybody connects again, and a cluster elects its leaders.
                fault.away = Some(RECOVERY_MS);
            }
            _ => {}
        }
        world.faults.push(fault);
    }

    /// Half of them shorter than a lease, half longer.
    fn outage(&mut self, lease: Duration) -> Duration {
        let lease = lease.as_millis() as u64;
        self.dice.pause(lease / 4, lease * 7 / 4)
    }

    fn server<'a>(&mut self, world: &'a mut World) -> &'a mut Nats {
        let n = self.dice.between(0, world.servers.len() as u64) as usize;
        &mut world.servers[n]
    }
}

/// A worker leaves as it was told to.
async fn leave(world: &mut World, n: usize) {
    if let Some(mut program) = world.workers[n].program.take() {
        program.terminate();
        program.wait().await;
    }
}

/// Before the next server goes, this one has what the others have.
async fn caught_up(server: &Nats) {
    crate::support::eventually("the server is caught up", async || server.healthy().await).await;
}

/// The leaders of what a task needs step down. Without a leader there is nobody to ask, which is as good.
async fn step_down(world: &World) {
    let names = &world.fleet.names;
    for stream in [names.tasks_stream(), names.records_stream()] {
        let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
        let _ = world.fleet.nats.request(subject, "".into()).await;
    }
    for queue in ["default", "other"] {
        let subject = format!("$JS.API.CONSUMER.LEADER.STEPDOWN.{}.{queue}", names.tasks_stream());
        let _ = world.fleet.nats.request(subject, "".into()).await;
    }
}
