//! `/bin/true` as a process task.

use super::super::BenchError;
use super::super::sitting::{Beside, Case, Sitting};

const TRUE: &str = r#"{"workload":{"kind":"process","command":["/bin/true"]}}"#;

/// Beside a bare loop that spawns and waits.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    for (slots, in_flight, jobs) in [(1, 1, 1_000), (8, 64, 6_000), (32, 128, 6_000)] {
        sitting.fleet.worker("process", slots, &[]).await?;
        let jobs = sitting.jobs(jobs);
        let name = if slots == 1 { "/bin/true, one at a time".into() } else { format!("/bin/true, {slots} slots") };
        let case = Case { suite: "process", name, body: TRUE.into(), jobs, in_flight };
        sitting.case(case, Some(Beside::Processes(slots))).await?;
    }
    Ok(())
}
