//! `shoal bench`: measures this machine, or a given fleet.

use clap::Args;
use schemas::QueueName;
use worker::policy::ContainerSettings;
use worker::runtime::docker;
use worker::runtime::docker::bare::TRUE_IMAGE;

use super::{Error, Server};
use crate::bench::{BenchError, Beside, PartCpu, Place, Plan, Report, Spread, Suite};
use crate::exit::{self, Exit};
use crate::nats_server;
use crate::output::{self, Format, Table};

/// Flags of `shoal bench`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Compare figures only within one sitting, and with other programs measured in the same one: a \
                        machine's speed changes from hour to hour.")]
pub struct Bench {
    /// What to measure [default: what runs here and takes a few minutes in all]
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
    /// What the suite `container` starts; its `true` is run [default: an image of our own, made on the spot]
    #[arg(long, default_value = TRUE_IMAGE, hide_default_value = true, value_name = "IMAGE")]
    pub image: String,
    /// What the suite `functions` calls: an image that gives each body back, as the Lambda runtime interface emulator
    #[arg(long, value_name = "IMAGE")]
    pub function_image: Option<String>,
    /// The Docker engine [default: DOCKER_HOST, else the usual sockets]
    #[arg(long, env = "SHOAL_DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
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
    let engine = ContainerSettings { docker_host: args.docker_host, ..ContainerSettings::default() };
    let suites = if args.suites.is_empty() { everything(&engine).await } else { args.suites };
    let plan = Plan {
        suites,
        rounds: args.rounds.into(),
        percent: args.percent as usize,
        queue: args.queue,
        image: args.image,
        function_image: args.function_image,
        engine,
    };
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

/// Every usual suite that runs here.
async fn everything(engine: &ContainerSettings) -> Vec<Suite> {
    let mut suites: Vec<Suite> = Suite::usual().collect();
    if !docker::found(engine).await {
        output::talk(format_args!("container: left out, for no Docker engine answers"));
        suites.retain(|suite| *suite != Suite::Container);
    }
    suites
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
        let cpu: Vec<_> = row.cpu_us.iter().map(cpu).collect();
        let mut beside = row.beside.iter().map(beside);
        table.row([
            row.suite.to_owned(),
            row.case.clone(),
            if row.unit == "jobs" { row.jobs.to_string() } else { format!("{} {}", row.jobs, row.unit) },
            rate(row.per_second),
            row.p50_ms.map_or(String::new(), |p50| format!("{:.2} [{:.2}-{:.2}]", p50.median, p50.least, p50.most)),
            row.p99_ms.map_or(String::new(), |p99| format!("{:.2}", p99.median)),
            cpu.join(", "),
            beside.next().unwrap_or_default(),
        ]);
        for beside in beside {
            table.row([(); 7].map(|()| String::new()).into_iter().chain([beside]).collect::<Vec<_>>());
        }
    }
    if !report.rows.is_empty() {
        table.print();
    }
    print_memory(report);
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
    let foreign = report
        .foreign_cpu
        .map_or(String::new(), |share| format!(", {:.0} % of the machine used by others", share * 100.0));
    output::talk(format_args!(
        "shoal {}, nats-server {}, storage {}, sync {}, {} cores{foreign}; medians of {} rounds at {} %, with the least \
         and the most",
        report.version, report.server, report.storage, report.sync, report.cores, report.rounds, report.percent,
    ));
}

/// What was held in RAM, where that was measured.
fn print_memory(report: &Report) {
    let rows = report.rows.iter().flat_map(|row| row.memory.iter().map(move |part| (row.case.clone(), part)));
    let whole = report.memory.iter().flat_map(|memory| {
        let case = format!("{} no-ops, then nothing", memory.jobs);
        memory.parts.iter().map(move |part| (case.clone(), part))
    });
    let mut table = Table::new(&["MEMORY MIB", "CASE", "START", "PEAK", "END"]);
    let mut empty = true;
    for (case, part) in rows.chain(whole) {
        let figures = [part.start_mib, part.peak_mib, part.end_mib].map(|figure| format!("{figure:.1}"));
        table.row([part.part.to_owned(), case].into_iter().chain(figures).collect::<Vec<_>>());
        empty = false;
    }
    if !empty {
        table.print();
    }
    if let Some(memory) = &report.memory {
        output::line(format_args!("this program's file is {:.1} MiB", memory.binary_mib));
    }
}

/// Jobs a second, with a fraction where a whole number would say too little.
fn rate(rate: Spread) -> String {
    let digits = if rate.median < 100.0 { 2 } else { 0 };
    format!("{:.digits$} [{:.digits$}-{:.digits$}]", rate.median, rate.least, rate.most)
}

/// Microseconds a job, with a fraction where a whole number would say too little.
fn cpu(cpu: &PartCpu) -> String {
    let digits = if cpu.us < 10.0 { 1 } else { 0 };
    format!("{} {:.digits$}", cpu.part, cpu.us)
}

/// What the same work takes without Shoal, and ours over it.
fn beside(beside: &Beside) -> String {
    let Beside { what, per_second, p50_ms, p99_ms, cpu_us, ratio } = beside;
    let cpu: Vec<_> = cpu_us.iter().map(cpu).collect();
    let times = |figures: &Option<Spread>| figures.map_or("-".into(), |figure| format!("{:.2}", figure.median));
    let mut text = format!("{what}: {}/s", rate(*per_second));
    if p50_ms.is_some() {
        text += &format!(", {} / {} ms", times(p50_ms), times(p99_ms));
    }
    if !cpu.is_empty() {
        text += &format!(", µs {}", cpu.join(", "));
    }
    text += &format!("; ours has {:.2} of its speed", ratio.per_second.median);
    if p50_ms.is_some() {
        text += &format!(", {} × p50, {} × p99", times(&ratio.p50), times(&ratio.p99));
    }
    text
}
