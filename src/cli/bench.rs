//! `shoal bench`: measures this machine, or a given fleet.

use clap::Args;
use schemas::QueueName;

use super::{Error, Server};
use crate::bench::{BenchError, Place, Plan, Report, Row, Suite};
use crate::exit::{self, Exit};
use crate::nats_server;
use crate::output::{self, Format, Table};

/// Flags of `shoal bench`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Compare figures only within one sitting, and with other programs measured in the same one: a \
                        machine's speed changes from hour to hour.")]
pub struct Bench {
    /// What to measure [default: everything that runs here]
    #[arg(value_enum, value_name = "SUITE")]
    pub suites: Vec<Suite>,
    /// Rounds of each case; figures are their medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100), value_name = "N")]
    pub rounds: u16,
    /// Jobs a round in hundredths of the usual, for a quick look or a long one
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "PERCENT")]
    pub percent: u32,
    /// Measure the fleet at --nats-url instead of starting one for it; its workers must run what is measured
    #[arg(long)]
    pub on_fleet: bool,
    /// Queue for the jobs on a given fleet
    #[arg(long, default_value = "default", value_name = "QUEUE")]
    pub queue: QueueName,
    /// The nats-server of an own fleet [default: the one `shoal up` takes]
    #[arg(long, env = "SHOAL_NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<std::path::PathBuf>,
}

/// Runs it.
pub async fn run(args: Bench, on: &Server<'_>) -> Result<Exit, Error> {
    let place = if args.on_fleet {
        Place::Given(Box::new(on.connect().await?))
    } else {
        Place::Own(nats_server::find(args.nats_server.as_deref())?)
    };
    let suites = if args.suites.is_empty() { Suite::all().to_vec() } else { args.suites };
    let plan = Plan { suites, rounds: args.rounds.into(), percent: args.percent as usize, queue: args.queue };
    let measured = tokio::select! {
        measured = crate::bench::run(&plan, place) => measured,
        _ = tokio::signal::ctrl_c() => return Ok(exit::CANCELLED),
    };
    let report = measured.map_err(failed)?;
    match on.output() {
        Format::Json => output::json(&report),
        Format::Table => print(&report),
    }
    Ok(exit::DONE)
}

fn failed(error: BenchError) -> Error {
    match error {
        BenchError::Submit(error) => error.into(),
        error @ BenchError::WrongEnd { .. } => {
            Error::failed("the measurement is worth nothing", "look at the worker's log on stderr", error)
        }
        error => Error::failed("cannot measure", "once more with --log-level debug", error),
    }
}

fn print(report: &Report) {
    let mut table = Table::new(&["SUITE", "CASE", "JOBS", "PER SECOND", "P50 MS", "P99 MS", "CPU µS A JOB", "BESIDE"]);
    for row in &report.rows {
        table.row([
            row.suite.to_owned(),
            row.case.clone(),
            row.jobs.to_string(),
            format!("{:.0} [{:.0}-{:.0}]", row.per_second.median, row.per_second.least, row.per_second.most),
            format!("{:.2} [{:.2}-{:.2}]", row.p50_ms.median, row.p50_ms.least, row.p50_ms.most),
            format!("{:.2}", row.p99_ms.median),
            row.cpu_us.iter().map(|cpu| format!("{} {:.0}", cpu.part, cpu.us)).collect::<Vec<_>>().join(", "),
            beside(row),
        ]);
    }
    if !report.rows.is_empty() {
        table.print();
    }
    if let Some(idle) = &report.idle {
        let mut table = Table::new(&["AT REST", "CPU % OF A CORE", "MEMORY MIB"]);
        for part in &idle.parts {
            table.row([part.part.into(), format!("{:.2}", part.cpu_percent), format!("{:.1}", part.memory_mib)]);
        }
        table.print();
        let first = idle.first_task_ms;
        output::line(format_args!(
            "a new worker's first task had ended after {:.0} ms [{:.0}-{:.0}]",
            first.median, first.least, first.most
        ));
    }
    let foreign = report.foreign_cpu.map_or(String::new(), |share| {
        format!(", {:.0} % of the machine used by others and by what the jobs started", share * 100.0)
    });
    output::talk(format_args!(
        "shoal {}, nats-server {}, storage {}, {} cores{foreign}; medians of {} rounds, with the least and the most",
        report.version, report.server, report.storage, report.cores, report.rounds,
    ));
}

/// What the same work takes without Shoal.
fn beside(row: &Row) -> String {
    let Some(bare) = &row.bare else { return String::new() };
    format!(
        "{}: {:.0}/s, {:.2} ms; ours is {:.2} of its speed",
        bare.what,
        bare.per_second.median,
        bare.p50_ms.median,
        row.per_second.median / bare.per_second.median
    )
}
