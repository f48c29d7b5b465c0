//! More workers, more slots.

use std::time::Duration;

use serde_json::json;

use super::super::BenchError;
use super::super::report::{Beside, Round};
use super::super::sitting::{Case, Sitting, noop};
use super::super::work::Work;
use crate::output;

/// No-ops with more and more worker processes, beside one of them; tasks that sleep with more and more slots, beside
/// what so many sleeps would take if nothing else took any time.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    if !sitting.fleet.is_own() {
        output::talk(format_args!("scaling: left out, for the fleet is not ours to stop and start"));
        return Ok(());
    }
    workers(sitting).await?;
    slots(sitting).await
}

async fn workers(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    let mut one: Vec<Round> = Vec::new();
    for workers in [1, 4, 16] {
        sitting.fleet.workers(workers, 1_000).await?;
        let name = format!("no-op, {workers} worker{}", if workers == 1 { "" } else { "s" });
        let case = Case {
            suite: "scaling",
            name,
            jobs: sitting.jobs(60_000),
            ours: Work::Cycle { body: noop(), in_flight: 1_000 },
            beside: Vec::new(),
            memory: false,
        };
        let rounds = sitting.case(case).await?;
        if one.is_empty() {
            one = rounds;
        } else if let Some(row) = sitting.rows.last_mut() {
            row.beside.push(Beside::new("one worker".into(), &one, &rounds));
        }
    }
    Ok(())
}

async fn slots(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    // The last is far from what the server can do at all, so that slots alone decide.
    for (slots, milliseconds) in [(16, 10), (64, 10), (256, 10), (1_000, 10), (2_000, 10), (2_000, 90)] {
        sitting.fleet.sleeper(slots).await?;
        let workload = json!({"kind": "call", "handler": "sleep", "payload": milliseconds});
        let waves = (3_000 / milliseconds).min(60_000 / slots).max(2);
        let case = Case {
            suite: "scaling",
            name: format!("sleep of {milliseconds} ms, {slots} slots"),
            // Fewer than two waves would measure their edges.
            jobs: sitting.jobs(slots * waves).max(2 * slots),
            // Enough beside those that sleep for every slot to find its next.
            ours: Work::Cycle {
                body: json!({ "workload": workload }).to_string().into(),
                in_flight: slots * 3 / 2 + 16,
            },
            beside: Vec::new(),
            memory: false,
        };
        let jobs = case.jobs;
        let rounds = sitting.case(case).await?;
        let took = Duration::from_secs_f64(jobs as f64 / slots as f64 * milliseconds as f64 / 1e3);
        let ideal = vec![Round { jobs, took, latencies: Vec::new() }; rounds.len()];
        if let Some(row) = sitting.rows.last_mut() {
            row.beside.push(Beside::new("the sleeps alone".into(), &ideal, &rounds));
        }
    }
    Ok(())
}
