//! Agent jobs: what they take beside their model and their tests, one at a time, warm; and many at once.

use super::super::BenchError;
use super::super::agent::{Workshop, parts};
use super::super::load::{self, Load};
use super::super::meter::{self, CpuMeter, MemoryMeter};
use super::super::report::{Beside, Round, Row};
use super::super::sitting::Sitting;
use crate::output;

/// Runtimes of the worker.
const RUNTIMES: &str = "process,agent";
/// Jobs at once.
const CROWD: usize = 20;

/// A repository of 1,000 files on this machine; git alone in turn with it.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    if !sitting.fleet.is_own() {
        output::talk(format_args!(
            "agents: left out, for a given fleet's workers know neither our repository nor our model"
        ));
        return Ok(());
    }
    let shop = Workshop::open().await?;
    one_at_a_time(sitting, &shop).await?;
    crowd(sitting, &shop).await
}

async fn one_at_a_time(sitting: &mut Sitting<'_>, shop: &Workshop) -> Result<(), BenchError> {
    output::talk(format_args!("agents: one at a time …"));
    sitting.fleet.worker(RUNTIMES, 1, &shop.settings()).await?;
    shop.model.gather(1);
    let jobs = sitting.jobs(20);
    // The mirror is there from then on.
    round(sitting, shop, 1, 1).await?;
    shop.by_git(1, &sitting.next_name()).await?;
    let (mut ours, mut git, mut ready, mut overhead, mut cpu) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..sitting.plan.rounds {
        let used = CpuMeter::start(sitting.fleet.pids());
        let (name, measured) = round(sitting, shop, jobs, 1).await?;
        cpu.push(used.per_job(jobs));
        let parts = parts(&sitting.fleet.client, &sitting.plan.queue, &name, jobs).await?;
        let timed = |latencies: Vec<std::time::Duration>| Round::timed(latencies.iter().sum(), latencies);
        ready.push(timed(parts.iter().map(|parts| parts.ready).collect()));
        overhead.push(timed(parts.iter().map(|parts| parts.overhead).collect()));
        ours.push(measured);
        git.push(shop.by_git(jobs, &name).await?);
    }
    let beside = |ours: &[Round]| vec![Beside::new("git alone, the same change".to_owned(), &git, ours)];
    let row = |case: &str, rounds: &[Round]| Row::new("agents", case.to_owned(), rounds);
    let whole = Row { cpu_us: meter::medians(&cpu), beside: beside(&ours), ..row("job, warm, one at a time", &ours) };
    let rest = Row { beside: beside(&overhead), ..row("of it: all but model and tests", &overhead) };
    let first = row("of it: until its branch stands", &ready);
    sitting.rows.extend([whole, rest, first]);
    Ok(())
}

async fn crowd(sitting: &mut Sitting<'_>, shop: &Workshop) -> Result<(), BenchError> {
    let jobs = sitting.jobs(CROWD).min(CROWD);
    output::talk(format_args!("agents: {jobs} at once …"));
    sitting.fleet.worker(RUNTIMES, CROWD, &shop.settings()).await?;
    let (mut rounds, mut memory) = (vec![], vec![]);
    for _ in 0..sitting.plan.rounds {
        // All of them are in the middle of their work at one moment.
        shop.model.gather(jobs);
        let held = MemoryMeter::start(sitting.fleet.pids());
        rounds.push(round(sitting, shop, jobs, jobs).await?.1);
        meter::most(&mut memory, held.read());
    }
    sitting.rows.push(Row { memory, ..Row::new("agents", format!("{jobs} at once"), &rounds) });
    Ok(())
}

/// So many jobs, so many at once; the name of the round.
async fn round(
    sitting: &mut Sitting<'_>,
    shop: &Workshop,
    jobs: usize,
    at_once: usize,
) -> Result<(String, Round), BenchError> {
    let name = sitting.next_name();
    let load = Load { queue: sitting.plan.queue.clone(), body: shop.task(), tasks: jobs, in_flight: at_once };
    let measured = load::round(&sitting.fleet.client, &sitting.fleet.watcher, &load, &name).await?;
    Ok((name, measured))
}
