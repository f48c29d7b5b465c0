//! `shoal logs`: what a task wrote, stored and live, each stream to where it was written.

use clap::Args;
use dispatcher::client::{LogCursor, LogOptions};
use futures_util::StreamExt;
use schemas::StartId;
use schemas::http::LogPiece;
use schemas::names::LogSource;

use super::printer::Printer;
use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Flags of `shoal logs`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "-o json prints one object a line, with `sequence` for --from; bytes that are no text are `base64`."
)]
pub struct Logs {
    /// Id, `queue.id`, or a prefix that fits one task; `_functions.NAME` for the instances of a function
    pub id: String,
    /// Go on until the task has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Only of these: stdout, stderr, system (what Shoal itself says)
    #[arg(long, value_delimiter = ',', value_parser = source, value_name = "SOURCE,…")]
    pub source: Vec<LogSource>,
    /// Only of this start of an attempt
    #[arg(long)]
    pub start: Option<StartId>,
    /// Only what comes after this sequence
    #[arg(long, value_name = "SEQUENCE")]
    pub from: Option<u64>,
    /// Of what is stored, only the last so many lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Also of earlier runs of the same id
    #[arg(long)]
    pub all_runs: bool,
}

fn source(word: &str) -> Result<LogSource, String> {
    LogSource::from_token(word).ok_or_else(|| "allowed is stdout, stderr, system".to_owned())
}

/// Prints it.
pub async fn run(args: Logs, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let key = client.find_log(&args.id).await?;
    let options = LogOptions {
        follow: args.follow,
        from: LogCursor(args.from.unwrap_or_default()),
        sources: args.source,
        start: args.start,
        tail: args.tail,
        all_runs: args.all_runs,
    };
    let mut chunks = client.logs(&key, options);
    let mut printer = Printer::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        match on.output() {
            Format::Table => printer.print(&chunk),
            Format::Json => {
                let piece = serde_json::to_string(&LogPiece::from(chunk)).expect("a piece of log is JSON");
                output::line(format_args!("{piece}"));
            }
        }
    }
    Ok(exit::DONE)
}
