//! The suites: what is measured, beside what, and how often.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use schemas::QueueName;

use super::fleet::Fleet;
use super::load::{Load, round};
use super::registry::Registry;
use super::report::{Bare, Idle, IdlePart, PartCpu, Report, Round, Row, Spread};
use super::{BenchError, bare, machine};
use crate::output;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Suite {
    /// No-op calls, 64 and 1,000 under way at once
    Throughput,
    /// No-op calls, one at a time
    Latency,
    /// `/bin/true` as a process, beside a bare spawn loop
    Process,
    /// 1,000 agents over HTTP: register, beat, list; a dispatcher of our own
    Registry,
    /// A fleet of our own at rest, and how soon a new worker is of use
    Idle,
}

impl Suite {
    /// Every one, in the order in which they are measured.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }
}

/// What to measure and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which suites.
    pub suites: Vec<Suite>,
    /// Rounds of each case.
    pub rounds: usize,
    /// Jobs a round in hundredths of the usual: 100 is the usual.
    pub percent: usize,
    /// Where jobs go.
    pub queue: QueueName,
}

const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop","payload":"PAD"}}"#;
const TRUE: &str = r#"{"workload":{"kind":"process","command":["/bin/true"]}}"#;
/// Payload of a no-op's task, in bytes: that of the engine's own measure.
const TASK_BYTES: usize = 256;

/// How long a fleet at rest is watched.
const IDLE_SPAN: Duration = Duration::from_secs(30);

/// One case of a suite.
struct Case {
    suite: &'static str,
    name: String,
    body: Bytes,
    jobs: usize,
    in_flight: usize,
}

/// What is measured in turn with a case: the same work without Shoal.
enum Beside {
    /// So many processes at once.
    Processes(usize),
}

impl Beside {
    fn what(&self) -> &'static str {
        match self {
            Self::Processes(_) => "spawn and wait",
        }
    }

    async fn round(&self, jobs: usize) -> Result<Round, BenchError> {
        match self {
            Self::Processes(at_once) => bare::processes("/bin/true", jobs, *at_once).await,
        }
    }
}

/// Where it is measured.
pub enum Place {
    /// On a fleet of our own, with this nats-server.
    Own(PathBuf),
    /// On this one.
    Given(Box<dispatcher::client::Client>),
}

/// Measures everything.
pub async fn run(plan: &Plan, place: Place) -> Result<Report, BenchError> {
    let mut fleet = match place {
        Place::Own(program) => Fleet::own(program).await?,
        Place::Given(client) => Fleet::given(*client).await?,
    };
    let before = machine::MachineTime::now();
    let mut bench = Bench { plan, name: 0, rows: Vec::new(), idle: None, ours: Duration::ZERO, measured: before };
    let measured = bench.all(&mut fleet).await;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        server: fleet.client.js.client().server_info().version,
        storage: if fleet.is_own() { "file, one replica, default sync" } else { "as the given fleet is set up" },
        cores: machine::cores(),
        rounds: plan.rounds,
        foreign_cpu: fleet.is_own().then(|| bench.measured.foreign_share(before, bench.ours)),
        rows: std::mem::take(&mut bench.rows),
        idle: bench.idle.take(),
    };
    fleet.end().await;
    measured.map(|()| report)
}

struct Bench<'a> {
    plan: &'a Plan,
    name: usize,
    rows: Vec<Row>,
    idle: Option<Idle>,
    ours: Duration,
    measured: machine::MachineTime,
}

impl Bench<'_> {
    async fn all(&mut self, fleet: &mut Fleet) -> Result<(), BenchError> {
        for suite in self.plan.suites.clone() {
            match suite {
                Suite::Throughput => self.throughput(fleet).await?,
                Suite::Latency => self.latency(fleet).await?,
                Suite::Process => self.process(fleet).await?,
                Suite::Registry => self.registry(fleet).await?,
                Suite::Idle => self.idle(fleet).await?,
            }
        }
        Ok(())
    }

    async fn throughput(&mut self, fleet: &mut Fleet) -> Result<(), BenchError> {
        fleet.worker("call", 1_000, &[]).await?;
        for (in_flight, jobs) in [(64, 30_000), (1_000, 60_000)] {
            let name = format!("no-op, {in_flight} in flight");
            self.case(fleet, self.noop("throughput", name, jobs, in_flight), None).await?;
        }
        Ok(())
    }

    async fn latency(&mut self, fleet: &mut Fleet) -> Result<(), BenchError> {
        fleet.worker("call", 1_000, &[]).await?;
        self.case(fleet, self.noop("latency", "no-op, one at a time".into(), 3_000, 1), None).await
    }

    async fn process(&mut self, fleet: &mut Fleet) -> Result<(), BenchError> {
        for (slots, in_flight, jobs) in [(1, 1, 1_000), (8, 64, 6_000), (32, 128, 6_000)] {
            fleet.worker("process", slots, &[]).await?;
            let jobs = self.jobs(jobs);
            let name = if slots == 1 { "/bin/true, one at a time".into() } else { format!("/bin/true, {slots} slots") };
            let case = Case { suite: "process", name, body: TRUE.into(), jobs, in_flight };
            self.case(fleet, case, Some(Beside::Processes(slots))).await?;
        }
        Ok(())
    }

    async fn registry(&mut self, fleet: &mut Fleet) -> Result<(), BenchError> {
        let Some(http) = fleet.dispatcher().await? else {
            output::talk(format_args!("registry: left out, for a given fleet has no dispatcher of ours"));
            return Ok(());
        };
        output::talk(format_args!("registry: agents over HTTP …"));
        let agents = self.jobs(1_000);
        let mut registry = Registry::connect(&http).await?;
        let (mut register, mut beat, mut list) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.plan.rounds {
            let name = self.next_name();
            let own = machine::own_cpu();
            register.push(registry.register(agents, &name).await?);
            beat.push(registry.beat(agents, &name).await?);
            list.push(registry.list(self.jobs(200), agents).await?);
            self.ours += machine::own_cpu().saturating_sub(own);
            registry.forget(agents, &name).await?;
        }
        self.measured = machine::MachineTime::now();
        for (case, rounds) in [("register", register), ("beat", beat)] {
            self.rows.push(Row::new("registry", format!("{case}, one at a time"), &rounds));
        }
        self.rows.push(Row::new("registry", format!("list of {agents}"), &list));
        Ok(())
    }

    async fn idle(&mut self, fleet: &mut Fleet) -> Result<(), BenchError> {
        if !fleet.is_own() {
            output::talk(format_args!("idle: left out, for the fleet is not ours to stop and start"));
            return Ok(());
        }
        output::talk(format_args!("idle: a new worker, then nothing …"));
        let mut first_task_ms = Vec::new();
        for _ in 0..self.plan.rounds {
            fleet.end_worker().await;
            let load = Load { body: NOOP.into(), queue: self.plan.queue.clone(), tasks: 1, in_flight: 1 };
            let (client, watcher, name) = (fleet.client.clone(), fleet.watcher.clone(), self.next_name());
            let waiting = tokio::spawn(async move { round(&client, &watcher, &load, &name).await });
            fleet.queued(&self.plan.queue).await?;
            let began = Instant::now();
            fleet.start_worker("call", 16, &[]).await?;
            waiting.await.map_err(|error| BenchError::fleet("the first task was not seen", error))??;
            first_task_ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let span = IDLE_SPAN.mul_f64(self.plan.percent as f64 / 100.0);
        let before = fleet.cpu();
        tokio::time::sleep(span).await;
        let cpu = fleet.cpu().into_iter().zip(before).map(|((_, now), (_, then))| now.saturating_sub(then));
        let part = |((part, pid), cpu): ((&'static str, u32), Duration)| IdlePart {
            part,
            cpu_percent: cpu.as_secs_f64() / span.as_secs_f64() * 100.0,
            memory_mib: machine::memory_mib(pid),
        };
        let parts = fleet.pids().zip(cpu).map(part).collect();
        self.measured = machine::MachineTime::now();
        self.idle = Some(Idle { first_task_ms: Spread::of(first_task_ms), parts });
        Ok(())
    }

    /// Makes the ids of a round unique, also beside another bench on the same fleet.
    fn next_name(&mut self) -> String {
        self.name += 1;
        format!("{}-{}", std::process::id(), self.name)
    }

    fn jobs(&self, usual: usize) -> usize {
        (usual * self.plan.percent / 100).max(1)
    }

    fn noop(&self, suite: &'static str, name: String, jobs: usize, in_flight: usize) -> Case {
        let pad = "p".repeat(TASK_BYTES.saturating_sub(NOOP.len() - "PAD".len()));
        Case { suite, name, body: NOOP.replace("PAD", &pad).into(), jobs: self.jobs(jobs), in_flight }
    }

    /// All rounds of one case, each followed by one of what it is compared with.
    async fn case(&mut self, fleet: &Fleet, case: Case, beside: Option<Beside>) -> Result<(), BenchError> {
        output::talk(format_args!("{}: {} …", case.suite, case.name));
        let (mut rounds, mut bare, mut cpu) = (Vec::new(), Vec::new(), Vec::<Vec<PartCpu>>::new());
        for _ in 0..self.plan.rounds {
            let load = Load {
                queue: self.plan.queue.clone(),
                body: case.body.clone(),
                tasks: case.jobs,
                in_flight: case.in_flight,
            };
            let name = self.next_name();
            let (parts, own) = (fleet.cpu(), machine::own_cpu());
            rounds.push(round(&fleet.client, &fleet.watcher, &load, &name).await?);
            let own = machine::own_cpu().saturating_sub(own);
            let used =
                fleet.cpu().into_iter().zip(parts).map(|((part, now), (_, then))| (part, now.saturating_sub(then)));
            let used: Vec<_> = used.chain([("submitter", own)]).collect();
            self.ours += used.iter().map(|(_, used)| *used).sum::<Duration>();
            let per_job =
                |(part, used): (_, Duration)| PartCpu { part, us: used.as_secs_f64() * 1e6 / case.jobs as f64 };
            cpu.push(used.into_iter().map(per_job).collect());
            if let Some(beside) = &beside {
                let own = machine::own_cpu();
                bare.push(beside.round(case.jobs).await?);
                self.ours += machine::own_cpu().saturating_sub(own);
            }
        }
        self.measured = machine::MachineTime::now();
        let parts = cpu.first().map_or(0, Vec::len);
        let median = |part: usize| PartCpu {
            part: cpu[0][part].part,
            us: Spread::of(cpu.iter().map(|round| round[part].us)).median,
        };
        self.rows.push(Row {
            cpu_us: (0..parts).map(median).collect(),
            bare: beside.map(|beside| Bare {
                what: beside.what(),
                per_second: Spread::of(bare.iter().map(Round::per_second)),
                p50_ms: Spread::of(bare.iter().map(|round| round.quantile_ms(0.5))),
            }),
            ..Row::new(case.suite, case.name, &rounds)
        });
        Ok(())
    }
}
