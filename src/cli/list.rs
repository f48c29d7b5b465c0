//! `shoal list`: many tasks, newest change first.

use clap::Args;
use dispatcher::client::{ListFilter, Status};
use schemas::{HumanDuration, QueueName, Timestamp};

use super::{Error, Server, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Largest page asked for at once.
const PAGE: usize = 1_000;

/// Flags of `shoal list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Only of this queue
    #[arg(long)]
    pub queue: Option<QueueName>,
    /// Only in these states: queued, running, retrying, succeeded, failed, cancelled, lost, expired
    #[arg(long, value_delimiter = ',', value_name = "STATE,…")]
    pub state: Vec<Status>,
    /// Only with this label; may be repeated
    #[arg(long, value_parser = label, value_name = "NAME[=VALUE]")]
    pub label: Vec<(String, Option<String>)>,
    /// Only what was submitted within this time
    #[arg(long, value_name = "DURATION")]
    pub since: Option<HumanDuration>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
}

fn label(text: &str) -> Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((text.to_owned(), None)),
    }
}

/// Lists them, page by page, so that a million take no more memory than a page.
pub async fn run(args: List, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let now = Timestamp::now();
    let mut filter = ListFilter {
        queue: args.queue,
        states: args.state,
        labels: args.label,
        since: args.since.map(|since| Timestamp::from_millis(now.as_millis() - since.0.as_millis() as i64)),
        ..ListFilter::default()
    };
    let mut left = args.limit;
    let mut table = view::list_table();
    let mut first = true;
    let mut more = false;
    while left > 0 {
        filter.limit = left.min(PAGE);
        let page = client.list(&filter).await?;
        left = left.saturating_sub(page.tasks.len());
        for item in page.tasks {
            match on.output() {
                Format::Table => table.row(view::list_row(&item, now)),
                Format::Json => {
                    let text = serde_json::to_string(&item.shown()).expect("a task is JSON");
                    output::data(format!("{}{text}", if first { "[\n" } else { ",\n" }).as_bytes());
                }
            }
            first = false;
        }
        more = page.next.is_some();
        match page.next {
            Some(next) => filter.cursor = Some(next),
            None => break,
        }
    }
    match on.output() {
        Format::Table => table.print(),
        Format::Json => output::data(if first { b"[]\n" } else { b"\n]\n" }),
    }
    if more && left == 0 {
        output::talk(format_args!("there may be more\n  try: shoal list --limit {}", args.limit.saturating_mul(10)));
    }
    Ok(exit::DONE)
}
