//! No-ops, many at once.

use super::super::BenchError;
use super::super::sitting::Sitting;

/// The whole cycle: submitted, run, recorded, seen.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    sitting.fleet.worker("call", 1_000, &[]).await?;
    for (in_flight, jobs) in [(64, 30_000), (1_000, 60_000)] {
        let name = format!("no-op, {in_flight} in flight");
        sitting.case(sitting.noop("throughput", name, jobs, in_flight), None).await?;
    }
    Ok(())
}
