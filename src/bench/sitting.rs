//! One sitting: the fleet, what is measured on it in turn, and what came of it so far.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use worker::runtime::docker::bare::Bare;

use super::fleet::Fleet;
use super::load::{Load, round};
use super::plan::{Place, Plan};
use super::report::{Idle, PartCpu, Report, Round, Row, Spread, WithoutShoal};
use super::{BenchError, bare, machine};
use crate::output;

/// A task that does nothing; `PAD` stands for its payload.
pub const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop","payload":"PAD"}}"#;
/// A no-op's task in bytes: that of the engine's own measure.
const TASK_BYTES: usize = 256;

/// One case of a suite.
pub struct Case {
    /// Which suite.
    pub suite: &'static str,
    /// What it is called.
    pub name: String,
    /// The task's JSON.
    pub body: Bytes,
    /// Jobs a round.
    pub jobs: usize,
    /// How many of them at once.
    pub in_flight: usize,
}

/// What is measured in turn with a case: the same work without Shoal.
pub enum Beside {
    /// So many processes at once.
    Processes(usize),
    /// So many containers at once, on an engine without Shoal.
    Containers(usize, Arc<Bare>),
}

impl Beside {
    fn what(&self) -> &'static str {
        match self {
            Self::Processes(_) => "spawn and wait",
            Self::Containers(..) => "Engine API: create, start, wait, logs, remove",
        }
    }

    async fn round(&self, jobs: usize) -> Result<Round, BenchError> {
        match self {
            Self::Processes(at_once) => bare::processes("/bin/true", jobs, *at_once).await,
            Self::Containers(at_once, engine) => bare::containers(engine, jobs, *at_once).await,
        }
    }
}

/// Measures everything.
pub async fn run(plan: &Plan, place: Place) -> Result<Report, BenchError> {
    let fleet = match place {
        Place::Own(program) => Fleet::own(program).await?,
        Place::Given(client) => Fleet::given(*client).await?,
    };
    let before = machine::MachineTime::now();
    let mut sitting =
        Sitting { plan, fleet, name: 0, rows: Vec::new(), idle: None, ours: Duration::ZERO, measured: before };
    let mut measured = Ok(());
    for suite in &plan.suites {
        measured = suite.run(&mut sitting).await;
        if measured.is_err() {
            break;
        }
    }
    let Sitting { fleet, rows, idle, ours, measured: until, .. } = sitting;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        server: fleet.client.js.client().server_info().version,
        storage: if fleet.is_own() { "file, one replica, default sync" } else { "as the given fleet is set up" },
        cores: machine::cores(),
        rounds: plan.rounds,
        foreign_cpu: fleet.is_own().then(|| until.foreign_share(before, ours)),
        rows,
        idle,
    };
    fleet.end().await;
    measured.map(|()| report)
}

/// What is measured, and what was.
pub struct Sitting<'a> {
    /// What to measure and how.
    pub plan: &'a Plan,
    /// On which fleet.
    pub fleet: Fleet,
    /// Cases so far.
    pub rows: Vec<Row>,
    /// The fleet at rest, if that was measured.
    pub idle: Option<Idle>,
    /// CPU time of ours so far.
    pub ours: Duration,
    /// The machine's until the last case ended.
    pub measured: machine::MachineTime,
    name: usize,
}

impl Sitting<'_> {
    /// Makes the ids of a round unique, also beside another bench on the same fleet.
    pub fn next_name(&mut self) -> String {
        self.name += 1;
        format!("{}-{}", std::process::id(), self.name)
    }

    /// What is usual, as the plan scales it.
    pub fn jobs(&self, usual: usize) -> usize {
        (usual * self.plan.percent / 100).max(1)
    }

    /// A case of no-ops.
    pub fn noop(&self, suite: &'static str, name: String, jobs: usize, in_flight: usize) -> Case {
        let pad = "p".repeat(TASK_BYTES.saturating_sub(NOOP.len() - "PAD".len()));
        Case { suite, name, body: NOOP.replace("PAD", &pad).into(), jobs: self.jobs(jobs), in_flight }
    }

    /// All rounds of one case, each followed by one of what it is compared with.
    pub async fn case(&mut self, case: Case, beside: Option<Beside>) -> Result<(), BenchError> {
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
            let fleet = &self.fleet;
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
            bare: beside.map(|beside| WithoutShoal {
                what: beside.what(),
                per_second: Spread::of(bare.iter().map(Round::per_second)),
                p50_ms: Spread::of(bare.iter().map(|round| round.quantile_ms(0.5))),
            }),
            ..Row::new(case.suite, case.name, &rounds)
        });
        Ok(())
    }
}
