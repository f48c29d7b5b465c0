//! `shoal containers`: what workers hold on their engines, as the engines say, and halting one by hand.

use clap::Subcommand;
use dispatcher::client::Held;
use schemas::AgentId;
use schemas::containers::HeldContainer;

use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table};

/// `shoal containers …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Containers {
    /// List the containers of functions on all workers
    List {
        /// Only of this worker
        #[arg(long, value_name = "ID")]
        worker: Option<AgentId>,
    },
    /// The same with what they use
    Stats {
        /// Only of this worker
        #[arg(long, value_name = "ID")]
        worker: Option<AgentId>,
    },
    /// Halt one; it keeps its memory and does nothing
    Pause {
        /// Its id (12 characters or more), name or start id
        id: String,
    },
    /// Let one go on
    Resume {
        /// Its id (12 characters or more), name or start id
        id: String,
    },
}

/// Runs one of them. Exit code 1 if a worker did not answer.
pub async fn run(args: Containers, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let (held, stats) = match args {
        Containers::List { worker } => (client.containers(worker.as_ref(), false).await?, false),
        Containers::Stats { worker } => (client.containers(worker.as_ref(), true).await?, true),
        Containers::Pause { id } => (one(client.halt_container(&id, true).await?), false),
        Containers::Resume { id } => (one(client.halt_container(&id, false).await?), false),
    };
    match on.output() {
        Format::Json => output::json(&held.containers),
        Format::Table => table(&held.containers, stats).print(),
    }
    for (worker, why) in &held.silent {
        output::talk(format_args!("{worker} is left out: {why}"));
    }
    Ok(if held.silent.is_empty() { exit::DONE } else { exit::FAILED })
}

fn one(container: HeldContainer) -> Held {
    Held { containers: vec![container], silent: Vec::new() }
}

fn table(containers: &[HeldContainer], stats: bool) -> Table {
    let head = ["ID", "NAME", "FUNCTION", "INDEX", "STATUS", "START", "WORKER", "RUNTIME"];
    let more = ["CPU", "PEAK MEMORY"];
    let mut table = match stats {
        true => Table::new(&[head.as_slice(), more.as_slice()].concat()),
        false => Table::new(&head),
    };
    for it in containers {
        let mut row = vec![
            it.id.chars().take(12).collect(),
            it.name.clone(),
            it.function.to_string(),
            it.index.to_string(),
            it.status.clone(),
            it.start.to_string(),
            it.worker.to_string(),
            it.runtime.clone(),
        ];
        if stats {
            let usage = it.usage.as_ref();
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            row.push(or_dash(usage.and_then(|usage| usage.cpu_ms).map(|ms| format!("{ms}ms"))));
            row.push(or_dash(
                usage.and_then(|usage| usage.peak_memory_bytes).map(|bytes| format!("{} KiB", bytes >> 10)),
            ));
        }
        table.row(row);
    }
    table
}
