//! `shoal get`: one task as it stands.

use clap::Args;

use super::{Error, Server, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Flags of `shoal get`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "-o json prints the record as the bucket holds it; of a task that only waits the same shape \
    with the state `queued`.")]
pub struct Get {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
    /// Write the bytes of its result to stdout, and nothing else
    #[arg(long)]
    pub result: bool,
}

/// Shows it.
pub async fn run(args: Get, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let key = client.find(&args.id).await?;
    let view = client.get(&key).await?;
    if args.result {
        let hint = format!("shoal get {key}");
        let Some(current) = view.current() else {
            return Err(Error::Failed { problem: format!("task {key} has no result yet"), hint, source: None });
        };
        let Some(bytes) = client.result(&current.record).await? else {
            return Err(Error::Failed { problem: format!("task {key} left no result"), hint, source: None });
        };
        output::data(&bytes);
        return Ok(exit::DONE);
    }
    match on.output() {
        Format::Json => output::json(&view.shown()),
        Format::Table => view::task_facts(&view).print(),
    }
    Ok(exit::DONE)
}
