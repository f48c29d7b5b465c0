//! One sitting: the fleet, what is measured on it in turn, and what came of it so far.

use std::time::Duration;

use bytes::Bytes;

use super::fleet::Fleet;
use super::meter::{self, CpuMeter, MemoryMeter};
use super::plan::{Place, Plan};
use super::report::{Beside, Idle, Memory, PartMemory, Report, Round, Row};
use super::work::Work;
use super::{BenchError, machine};
use crate::output;

/// A task that does nothing; `PAD` stands for its payload.
pub const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop","payload":"PAD"}}"#;
/// A no-op's task in bytes: that of the engine's own measure.
pub const TASK_BYTES: usize = 256;

/// One case of a suite.
pub struct Case {
    /// Which suite.
    pub suite: &'static str,
    /// What it is called.
    pub name: String,
    /// Jobs a round.
    pub jobs: usize,
    /// Ours.
    pub ours: Work,
    /// What is measured in turn with it.
    pub beside: Vec<Work>,
    /// Whether it is about memory as well.
    pub memory: bool,
}

/// A no-op's task.
pub fn noop() -> Bytes {
    let pad = "p".repeat(TASK_BYTES.saturating_sub(NOOP.len() - "PAD".len()));
    NOOP.replace("PAD", &pad).into()
}

/// Measures everything.
pub async fn run(plan: &Plan, place: Place) -> Result<Report, BenchError> {
    let (fleet, program) = match place {
        Place::Own(program) => (Fleet::own(program.clone(), 1, plan.percent).await?, Some(program)),
        Place::Given(client) => (Fleet::given(*client).await?, None),
    };
    let mut sitting = Sitting {
        plan,
        fleet,
        program,
        rows: Vec::new(),
        idle: None,
        memory: None,
        elsewhere: Duration::ZERO,
        name: 0,
    };
    let (before, ours) = (machine::MachineTime::now(), sitting.ours());
    let mut measured = Ok(());
    for suite in &plan.suites {
        measured = suite.run(&mut sitting).await;
        if measured.is_err() {
            break;
        }
    }
    let foreign = machine::MachineTime::now().foreign_share(before, sitting.ours().saturating_sub(ours));
    let Sitting { fleet, rows, idle, memory, .. } = sitting;
    let unknown = "as the given fleet is set up";
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        server: fleet.client.js.client().server_info().version,
        storage: if fleet.is_own() { "file, a replica on each server" } else { unknown },
        sync: if fleet.is_own() { "the server's default, every 2 minutes" } else { unknown },
        cores: machine::cores(),
        rounds: plan.rounds,
        percent: plan.percent,
        foreign_cpu: fleet.is_own().then_some(foreign),
        rows,
        idle,
        memory,
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
    /// The server of an own fleet.
    pub program: Option<std::path::PathBuf>,
    /// Cases so far.
    pub rows: Vec<Row>,
    /// The fleet at rest, if that was measured.
    pub idle: Option<Idle>,
    /// What it holds in RAM, if that was measured.
    pub memory: Option<Memory>,
    /// CPU time of another fleet of ours that lives just now.
    pub elsewhere: Duration,
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

    /// CPU time of everything of ours so far, dead or alive.
    fn ours(&self) -> Duration {
        let alive = self.fleet.all_pids().into_iter().map(|(_, pid)| machine::cpu_of(pid)).sum::<Duration>();
        machine::own_cpu() + machine::ended_cpu() + alive + self.elsewhere
    }

    /// A case of no-ops, beside the engine where that may run.
    pub async fn noops(
        &mut self,
        suite: &'static str,
        name: String,
        jobs: usize,
        in_flight: usize,
    ) -> Result<Case, BenchError> {
        let body = noop();
        let engine = |same| Work::EngineCycle { bytes: body.len(), in_flight, same };
        let beside = if self.fleet.start_engine().await? { vec![engine(false), engine(true)] } else { Vec::new() };
        let ours = Work::Cycle { body: body.clone(), in_flight };
        Ok(Case { suite, name, jobs: self.jobs(jobs), ours, beside, memory: false })
    }

    /// All rounds of one case, each followed by one of whatever it is compared with; a row of the report. Returns ours.
    pub async fn case(&mut self, case: Case) -> Result<Vec<Round>, BenchError> {
        output::talk(format_args!("{}: {} …", case.suite, case.name));
        let works: Vec<&Work> = std::iter::once(&case.ours).chain(&case.beside).collect();
        let mut rounds = vec![Vec::new(); works.len()];
        let mut cpu = vec![Vec::new(); works.len()];
        let mut memory: Vec<PartMemory> = Vec::new();
        for _ in 0..self.plan.rounds {
            for (at, work) in works.iter().enumerate() {
                let name = self.next_name();
                let parts = work.parts(&self.fleet);
                let held = (case.memory && at == 0).then(|| MemoryMeter::start(parts.clone()));
                let used = CpuMeter::start(parts);
                rounds[at].push(work.round(&self.fleet, &self.plan.queue, case.jobs, &name).await?);
                cpu[at].push(used.per_job(case.jobs));
                if let Some(held) = held {
                    meter::most(&mut memory, held.read());
                }
            }
        }
        let beside = case.beside.iter().enumerate().map(|(at, work)| Beside {
            cpu_us: if work.parts(&self.fleet).is_empty() { Vec::new() } else { meter::medians(&cpu[at + 1]) },
            ..Beside::new(work.what(), &rounds[at + 1], &rounds[0])
        });
        let beside = beside.collect();
        let row =
            Row { cpu_us: meter::medians(&cpu[0]), memory, beside, ..Row::new(case.suite, case.name, &rounds[0]) };
        self.rows.push(row);
        Ok(rounds.swap_remove(0))
    }
}
