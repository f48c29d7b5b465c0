//! `/bin/true` as a process task.

use super::super::BenchError;
use super::super::sitting::{Case, Sitting};
use super::super::work::Work;

const TRUE: &str = r#"{"workload":{"kind":"process","command":["/bin/true"]}}"#;

/// Beside a bare loop that spawns and waits.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    for (slots, in_flight, jobs) in [(1, 1, 1_000), (8, 64, 6_000), (32, 128, 6_000)] {
        sitting.fleet.worker("process", slots, &[]).await?;
        let jobs = sitting.jobs(jobs);
        let name = if slots == 1 { "/bin/true, one at a time".into() } else { format!("/bin/true, {slots} slots") };
        let case = Case {
            suite: "process",
            name,
            jobs,
            ours: Work::Cycle { body: TRUE.into(), in_flight },
            beside: vec![Work::Processes(slots)],
            memory: false,
        };
        sitting.case(case).await?;
    }
    Ok(())
}
