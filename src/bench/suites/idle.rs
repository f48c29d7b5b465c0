//! A fleet at rest.

use std::time::{Duration, Instant};

use super::super::load::{Load, round};
use super::super::report::{Idle, IdlePart, Spread};
use super::super::sitting::{NOOP, Sitting};
use super::super::{BenchError, machine};
use crate::output;

/// How long a fleet at rest is watched.
const IDLE_SPAN: Duration = Duration::from_secs(30);

/// How soon a new worker is of use, and what worker, dispatcher and server take while nothing is to do.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    if !sitting.fleet.is_own() {
        output::talk(format_args!("idle: left out, for the fleet is not ours to stop and start"));
        return Ok(());
    }
    output::talk(format_args!("idle: a new worker, then nothing …"));
    let plan = sitting.plan;
    sitting.fleet.end_dispatcher().await;
    sitting.fleet.dispatcher().await?;
    let mut first_task_ms = Vec::new();
    for _ in 0..plan.rounds {
        let name = sitting.next_name();
        let fleet = &mut sitting.fleet;
        fleet.end_workers().await;
        let load = Load { body: NOOP.into(), queue: plan.queue.clone(), tasks: 1, in_flight: 1 };
        let (client, watcher) = (fleet.client.clone(), fleet.watcher.clone());
        let waiting = tokio::spawn(async move { round(&client, &watcher, &load, &name).await });
        fleet.queued(&plan.queue).await?;
        let began = Instant::now();
        fleet.start_worker("call", 16, &[]).await?;
        waiting.await.map_err(|error| BenchError::fleet("the first task was not seen", error))??;
        first_task_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let span = IDLE_SPAN.mul_f64(plan.percent as f64 / 100.0);
    let parts = sitting.fleet.pids();
    let before: Vec<Duration> = parts.iter().map(|(_, pid)| machine::cpu_of(*pid)).collect();
    tokio::time::sleep(span).await;
    let part = |((part, pid), before): (&(&'static str, u32), Duration)| IdlePart {
        part,
        cpu_percent: machine::cpu_of(*pid).saturating_sub(before).as_secs_f64() / span.as_secs_f64() * 100.0,
        memory_mib: machine::memory_mib(*pid),
    };
    let parts = parts.iter().zip(before).map(part).collect();
    sitting.idle = Some(Idle { first_task_ms: Spread::of(first_task_ms), parts });
    sitting.fleet.end_dispatcher().await;
    Ok(())
}
