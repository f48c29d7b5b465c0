//! Three servers that hold everything three times.

use super::super::fleet::Fleet;
use super::super::sitting::Sitting;
use super::super::{BenchError, machine};
use crate::output;

/// Servers, and replicas of every store.
const SERVERS: u8 = 3;

/// The throughput and latency of no-ops on a fleet of its own, beside the engine on the same servers.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    let Some(program) = sitting.program.clone() else {
        output::talk(format_args!("cluster: left out, for it needs three servers of our own"));
        return Ok(());
    };
    let lone = std::mem::replace(&mut sitting.fleet, Fleet::own(program, SERVERS, sitting.plan.percent).await?);
    sitting.elsewhere = lone.all_pids().into_iter().map(|(_, pid)| machine::cpu_of(pid)).sum();
    let measured = cases(sitting).await;
    let clustered = std::mem::replace(&mut sitting.fleet, lone);
    // Its processes end now and count as ended from then on.
    sitting.elsewhere = std::time::Duration::ZERO;
    clustered.end().await;
    measured
}

async fn cases(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    sitting.fleet.worker("call", 1_000, &[]).await?;
    for (in_flight, jobs) in [(1, 1_000), (64, 10_000), (1_000, 15_000)] {
        let name = format!("no-op, {SERVERS} servers, {in_flight} in flight");
        let case = sitting.noops("cluster", name, jobs, in_flight).await?;
        sitting.case(case).await?;
    }
    Ok(())
}
