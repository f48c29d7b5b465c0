//! The suites: what is measured, beside what, and how often.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use schemas::QueueName;

use super::fleet::Fleet;
use super::load::{Load, round};
use super::report::{Bare, PartCpu, Report, Round, Row, Spread};
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
    let mut bench = Bench { plan, name: 0, rows: Vec::new(), ours: Duration::ZERO, measured: before };
    let measured = bench.all(&mut fleet).await;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        server: fleet.client.js.client().server_info().version,
        storage: if fleet.is_own() { "file, one replica, default sync" } else { "as the given fleet is set up" },
        cores: machine::cores(),
        rounds: plan.rounds,
        foreign_cpu: fleet.is_own().then(|| bench.measured.foreign_share(before, bench.ours)),
        rows: std::mem::take(&mut bench.rows),
    };
    fleet.end().await;
    measured.map(|()| report)
}

struct Bench<'a> {
    plan: &'a Plan,
    name: usize,
    rows: Vec<Row>,
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
            self.name += 1;
            let load = Load {
                queue: self.plan.queue.clone(),
                body: case.body.clone(),
                tasks: case.jobs,
                in_flight: case.in_flight,
            };
            let name = format!("{}-{}", std::process::id(), self.name);
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
            suite: case.suite,
            case: case.name,
            jobs: case.jobs,
            per_second: Spread::of(rounds.iter().map(Round::per_second)),
            p50_ms: Spread::of(rounds.iter().map(|round| round.quantile_ms(0.5))),
            p99_ms: Spread::of(rounds.iter().map(|round| round.quantile_ms(0.99))),
            cpu_us: (0..parts).map(median).collect(),
            bare: beside.map(|beside| Bare {
                what: beside.what(),
                per_second: Spread::of(bare.iter().map(Round::per_second)),
                p50_ms: Spread::of(bare.iter().map(|round| round.quantile_ms(0.5))),
            }),
        });
        Ok(())
    }
}
