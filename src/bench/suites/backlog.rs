//! A long queue that drains.

use super::super::BenchError;
use super::super::sitting::{Case, Sitting, noop};
use super::super::work::Work;
use crate::output;

/// A million no-ops, filled in while the queue is paused and then drained, beside the same on the engine; and what a
/// short queue does in the same sitting. A dispatcher looks on, as in any fleet.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    if !sitting.fleet.is_own() {
        output::talk(format_args!("backlog: left out, for it would fill and pause a queue that is not ours"));
        return Ok(());
    }
    sitting.fleet.worker("call", 1_000, &[]).await?;
    sitting.fleet.dispatcher().await?;
    let short = sitting.noops("backlog", "short queue, 1000 in flight".into(), 100_000, 1_000).await?;
    sitting.case(Case { memory: true, ..short }).await?;
    let jobs = sitting.jobs(1_000_000);
    let (body, bytes) = (noop(), noop().len());
    let drain = Case {
        suite: "backlog",
        name: format!("drain of {jobs}"),
        jobs,
        ours: Work::Drain { body },
        beside: vec![Work::EngineDrain { bytes, same: false }, Work::EngineDrain { bytes, same: true }],
        memory: true,
    };
    let drained = sitting.case(drain).await;
    sitting.fleet.end_dispatcher().await;
    drained.map(drop)
}
