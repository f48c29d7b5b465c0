//! `shoal cancel`: ends tasks wherever they stand, and says so once their records do.

use clap::Args;
use dispatcher::client::{CancelEnd, CancelOptions};
use futures_util::{StreamExt, stream};

use super::{Error, Server, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Cancels at once.
const AT_ONCE: usize = 64;

/// Flags of `shoal cancel`.
#[derive(Clone, Debug, Args)]
pub struct Cancel {
    /// Ids, `queue.id`, or prefixes that fit one task
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// By whom or why, for the record
    #[arg(long)]
    pub reason: Option<String>,
}

/// Cancels them; exit code 0 once every one is confirmed over.
pub async fn run(args: Cancel, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let cancels = args.ids.iter().map(|id| {
        let (client, reason) = (&client, args.reason.clone());
        async move {
            let key = client.find(id).await?;
            client.cancel(&key, CancelOptions { sequence: None, reason }).await
        }
    });
    let outcomes: Vec<_> = stream::iter(cancels).buffered(AT_ONCE).collect().await;
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Ok(outcome) => done.push(outcome),
            Err(error) => errors.push(Error::from(error)),
        }
    }
    match on.output() {
        Format::Json => {
            let records: Vec<_> = done.iter().map(|outcome| &outcome.record.record).collect();
            view::print_json(&records, args.ids.len());
        }
        Format::Table if done.is_empty() => {}
        Format::Table => {
            let mut table = view::end_table();
            for outcome in &done {
                table.row(view::end_row(&outcome.record.record));
            }
            table.print();
        }
    }
    for outcome in &done {
        let record = &outcome.record.record;
        match outcome.end {
            CancelEnd::Cancelled => {}
            CancelEnd::AlreadyEnded => {
                output::talk(format_args!("{} had ended before: {}", record.key(), record.state))
            }
            CancelEnd::EndedMeanwhile => {
                output::talk(format_args!("{} ended by itself meanwhile: {}", record.key(), record.state));
            }
        }
    }
    match errors.pop() {
        None => Ok(exit::DONE),
        Some(last) => {
            for error in &errors {
                output::talk(format_args!("{}", output::chain(error)));
            }
            Err(last)
        }
    }
}
