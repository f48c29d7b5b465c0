//! Agents of somebody else's, over HTTP.

use std::time::Duration;

use super::super::BenchError;
use super::super::meter::{self, CpuMeter};
use super::super::registry::{Registry, beat};
use super::super::report::{PartCpu, Round, Row};
use super::super::sitting::Sitting;
use crate::output;

/// All beat once within this.
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// The connections that they share.
const CONNECTIONS: usize = 16;

/// What was measured of one kind of request.
struct Asked {
    name: String,
    rounds: Vec<Round>,
    cpu: Vec<Vec<PartCpu>>,
}

impl Asked {
    fn new(name: String) -> Self {
        Self { name, rounds: Vec::new(), cpu: Vec::new() }
    }

    fn add(&mut self, used: CpuMeter, round: Round) {
        self.cpu.push(used.per_job(round.jobs));
        self.rounds.push(round);
    }

    fn row(self) -> Row {
        let row = Row::new("registry", self.name, &self.rounds);
        Row { unit: "requests", cpu_us: meter::medians(&self.cpu), ..row }
    }
}

/// Registers them, lets them beat, lists them; a worker of ours looks on.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    let Some(http) = sitting.fleet.dispatcher().await? else {
        output::talk(format_args!("registry: left out, for a given fleet has no dispatcher of ours"));
        return Ok(());
    };
    sitting.fleet.worker("call", 16, &[]).await?;
    output::talk(format_args!("registry: agents over HTTP …"));
    // As many a second whatever the share: fewer agents beat for a shorter time.
    let (agents, span) = (sitting.jobs(10_000), BEAT_EVERY.mul_f64(sitting.plan.percent as f64 / 100.0));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Registry::connect(&http).await?);
    }
    let mut register = Asked::new("register, one at a time".into());
    let mut beats = Asked::new(format!("beat of {agents} in {span:?}"));
    let mut list = Asked::new(format!("list of {agents}"));
    for _ in 0..sitting.plan.rounds {
        let (name, lists) = (sitting.next_name(), sitting.jobs(20));
        let meter = || CpuMeter::start(sitting.fleet.pids());
        let used = meter();
        register.add(used, connections[0].register(agents, &name).await?);
        let used = meter();
        beats.add(used, beat(&mut connections, agents, span, &name).await?);
        let used = meter();
        list.add(used, connections[0].list(lists, agents).await?);
        connections[0].forget(agents, &name).await?;
    }
    sitting.rows.extend([register.row(), beats.row(), list.row()]);
    sitting.fleet.end_dispatcher().await;
    Ok(())
}
