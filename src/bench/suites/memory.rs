//! What worker and dispatcher hold in RAM.

use std::time::Duration;

use super::super::BenchError;
use super::super::meter::MemoryMeter;
use super::super::report::Memory;
use super::super::sitting::{Sitting, noop};
use super::super::work::Work;
use crate::output;

/// What is freed is given back within this.
const REST: Duration = Duration::from_secs(5);

/// Fresh and idle, at saturation, and idle again.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    if !sitting.fleet.is_own() {
        output::talk(format_args!("memory: left out, for the fleet's processes are not ours to look into"));
        return Ok(());
    }
    output::talk(format_args!("memory: a new fleet, saturated, and at rest again …"));
    sitting.fleet.end_dispatcher().await;
    sitting.fleet.dispatcher().await?;
    sitting.fleet.worker("call,process", 1_000, &[]).await?;
    let held = MemoryMeter::start(sitting.fleet.pids());
    let (jobs, work) = (sitting.jobs(60_000), Work::Cycle { body: noop(), in_flight: 1_000 });
    for _ in 0..sitting.plan.rounds {
        let name = sitting.next_name();
        work.round(&sitting.fleet, &sitting.plan.queue, jobs, &name).await?;
    }
    tokio::time::sleep(REST).await;
    let binary = std::fs::metadata("/proc/self/exe").map_or(0, |file| file.len());
    sitting.memory = Some(Memory {
        binary_mib: binary as f64 / f64::from(1 << 20),
        parts: held.read(),
        jobs: jobs * sitting.plan.rounds,
    });
    sitting.fleet.end_dispatcher().await;
    Ok(())
}
