//! A job that writes lines as fast as it can.

use std::time::Instant;

use schemas::TaskKey;
use serde_json::json;

use super::super::BenchError;
use super::super::load::{self, Load};
use super::super::logs::{Written, count};
use super::super::meter::{self, CpuMeter, MemoryMeter};
use super::super::report::{Round, Row};
use super::super::sitting::Sitting;
use super::super::watch::id;
use crate::output;

/// A line with its end.
const LINE_BYTES: usize = 100;

/// Lines a second until the last lies in the stream, and the memory of the worker meanwhile: at the usual limit, and
/// for a gigabyte under a raised one.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    if !sitting.fleet.is_own() {
        output::talk(format_args!("logs: left out, for it would fill a stream that is not ours"));
        return Ok(());
    }
    case(sitting, 500_000, None, sitting.plan.rounds).await?;
    // Of the second one the memory counts, for which one round is enough.
    case(sitting, 10_000_000, Some(("SHOAL_LOG_LIMIT", "2Gi".to_owned())), 1).await
}

async fn case(
    sitting: &mut Sitting<'_>,
    lines: usize,
    setting: Option<(&'static str, String)>,
    rounds: usize,
) -> Result<(), BenchError> {
    let lines = sitting.jobs(lines);
    let case = format!("{LINE_BYTES}-byte lines, {:.1} MB", (lines * LINE_BYTES) as f64 / 1e6);
    output::talk(format_args!("logs: {case} …"));
    let settings: Vec<_> = setting.into_iter().collect();
    sitting.fleet.worker("process", 4, &settings).await?;
    let script = format!("yes {} | head -n {lines}", "l".repeat(LINE_BYTES - 1));
    let body = json!({"workload": {"kind": "process", "command": ["/bin/sh", "-c", script]}}).to_string();
    let (mut measured, mut cpu, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let name = sitting.next_name();
        let (fleet, queue) = (&sitting.fleet, sitting.plan.queue.clone());
        let key: TaskKey = format!("{queue}.{}", id(&name, 0)).parse().expect("a queue's name and an id of ours");
        let load = Load { queue, body: body.clone().into(), tasks: 1, in_flight: 1 };
        let (used, held) = (CpuMeter::start(fleet.pids()), MemoryMeter::start(fleet.pids()));
        let began = Instant::now();
        load::round(&fleet.client, &fleet.watcher, &load, &name).await?;
        let took = began.elapsed();
        cpu.push(used.per_job(lines));
        meter::most(&mut memory, held.read());
        // The end is told after the last line: whatever lies in the stream by now was in time.
        let (found, all) = (count(&fleet.client, &key).await?, Written::of(lines, LINE_BYTES));
        if found != all {
            return Err(BenchError::broken(format!("the log of {key} holds {found:?} where {all:?} were written")));
        }
        measured.push(Round { jobs: lines, took, latencies: Vec::new() });
    }
    let row = Row::new("logs", case, &measured);
    sitting.rows.push(Row { unit: "lines", cpu_us: meter::medians(&cpu), memory, ..row });
    Ok(())
}
