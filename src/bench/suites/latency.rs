//! No-ops, one at a time.

use super::super::BenchError;
use super::super::sitting::Sitting;

/// From a submission to the sight of its end, nothing else being under way.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    sitting.fleet.worker("call", 1_000, &[]).await?;
    let case = sitting.noops("latency", "no-op, one at a time".into(), 3_000, 1).await?;
    sitting.case(case).await.map(drop)
}
