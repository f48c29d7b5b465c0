//! Agents of somebody else's, over HTTP.

use super::super::registry::Registry;
use super::super::report::Row;
use super::super::sitting::Sitting;
use super::super::{BenchError, machine};
use crate::output;

/// Registers them, lets them beat, lists them.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    let Some(http) = sitting.fleet.dispatcher().await? else {
        output::talk(format_args!("registry: left out, for a given fleet has no dispatcher of ours"));
        return Ok(());
    };
    output::talk(format_args!("registry: agents over HTTP …"));
    let agents = sitting.jobs(1_000);
    let mut registry = Registry::connect(&http).await?;
    let (mut register, mut beat, mut list) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..sitting.plan.rounds {
        let name = sitting.next_name();
        let own = machine::own_cpu();
        register.push(registry.register(agents, &name).await?);
        beat.push(registry.beat(agents, &name).await?);
        list.push(registry.list(sitting.jobs(200), agents).await?);
        sitting.ours += machine::own_cpu().saturating_sub(own);
        registry.forget(agents, &name).await?;
    }
    sitting.measured = machine::MachineTime::now();
    for (case, rounds) in [("register", register), ("beat", beat)] {
        sitting.rows.push(Row::new("registry", format!("{case}, one at a time"), &rounds));
    }
    sitting.rows.push(Row::new("registry", format!("list of {agents}"), &list));
    Ok(())
}
