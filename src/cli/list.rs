//! `shoal list`: many tasks, newest change first.

use clap::Args;
use schemas::Timestamp;

use super::filter::Filter;
use super::{Error, Server, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Largest page asked for at once.
const PAGE: usize = 1_000;

/// Flags of `shoal list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Which.
    #[command(flatten)]
    pub filter: Filter,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
}

/// Lists them, page by page, so that a million take no more memory than a page.
pub async fn run(args: List, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let now = Timestamp::now();
    let mut filter = args.filter.at(now);
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
