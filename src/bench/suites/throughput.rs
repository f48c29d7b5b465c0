//! No-ops, many at once; and how fast they are taken.

use super::super::BenchError;
use super::super::sitting::{Case, Sitting, noop};
use super::super::work::Work;
use crate::output;

/// The whole cycle: submitted, run, recorded, seen. Then the submission alone.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    sitting.fleet.worker("call", 1_000, &[]).await?;
    for (in_flight, jobs) in [(64, 30_000), (1_000, 60_000)] {
        let case = sitting.noops("throughput", format!("no-op, {in_flight} in flight"), jobs, in_flight).await?;
        sitting.case(case).await?;
    }
    if !sitting.fleet.is_own() {
        output::talk(format_args!("throughput: submission alone is left out, for the fleet's workers are not ours"));
        return Ok(());
    }
    sitting.fleet.end_workers().await;
    let bytes = noop().len();
    let engine = |same| Work::EngineSubmit { bytes, in_flight: 1_000, same };
    let case = Case {
        suite: "throughput",
        name: "submit alone, 1000 in flight".into(),
        jobs: sitting.jobs(60_000),
        ours: Work::Submit { body: noop(), in_flight: 1_000 },
        beside: vec![engine(false), engine(true)],
        memory: false,
    };
    sitting.case(case).await?;
    let engine = |same| Work::EngineBursts { bytes, at_once: 1_000, same };
    let case = Case {
        suite: "throughput",
        name: "submit_many, calls of 1000".into(),
        jobs: sitting.jobs(60_000),
        ours: Work::SubmitMany { body: noop(), at_once: 1_000 },
        beside: vec![engine(false), engine(true)],
        memory: false,
    };
    sitting.case(case).await.map(drop)
}
