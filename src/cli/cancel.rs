//! `shoal cancel`: ends tasks wherever they stand, by name or by what they are, and says so once their records do.

use clap::Args;
use dispatcher::client::{CANCELLABLE, CancelEnd, CancelOptions, Client};
use futures_util::{StreamExt, stream};
use schemas::{State, Timestamp};

use super::bulk::{self, Count};
use super::filter::Filter;
use super::{Error, Server, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Cancels at once.
const AT_ONCE: usize = 64;

/// Flags of `shoal cancel`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "By filter: whatever matches, is not over and was there when the command began; one line each, failures \
    are told and end with exit code 1.\n\nExamples:\n  shoal cancel order-42\n  shoal cancel --queue reports \
    --state queued --dry-run\n  shoal cancel --label team=search"
)]
pub struct Cancel {
    /// Ids, `queue.id`, or prefixes that fit one task
    #[arg(required_unless_present_any = ["all", "filter"], conflicts_with_all = ["all", "filter", "dry_run"], value_name = "ID")]
    pub ids: Vec<String>,
    /// Which, instead of ids.
    #[command(flatten)]
    pub filter: Filter,
    /// Everything that matches; without a filter everything there is
    #[arg(long)]
    pub all: bool,
    /// Only list what would be cancelled
    #[arg(long)]
    pub dry_run: bool,
    /// By whom or why, for the record
    #[arg(long)]
    pub reason: Option<String>,
}

/// Cancels them; exit code 0 once every one is confirmed over.
pub async fn run(args: Cancel, on: &Server<'_>) -> Result<Exit, Error> {
    if args.ids.is_empty() {
        return by_filter(args, on).await;
    }
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

/// Cancels what matches.
async fn by_filter(args: Cancel, on: &Server<'_>) -> Result<Exit, Error> {
    let mut filter = args.filter.at(Timestamp::now());
    if let Some(over) = filter.states.iter().find(|state| state.is_terminal()) {
        let problem = format!("what is {over} is over; only queued, running and retrying tasks are cancelled");
        return Err(Error::usage(problem, "shoal cancel --state queued,running,retrying --dry-run"));
    }
    if filter.states.is_empty() {
        filter.states = CANCELLABLE.to_vec();
    }
    let client: Client = on.connect().await?;
    if args.dry_run {
        return bulk::rehearse(&client, filter, "cancelled", on).await;
    }
    let (mut count, format) = (Count::default(), on.output());
    let mut outcomes = client.cancel_all(filter, args.reason);
    while let Some(one) = outcomes.next().await {
        let one = one?;
        let outrun = one.is_outrun();
        match one.result {
            Ok(outcome) => match outcome.end {
                CancelEnd::Cancelled => count.done(&one.item, one.item.sequence, State::Cancelled.as_str(), format),
                CancelEnd::AlreadyEnded | CancelEnd::EndedMeanwhile => {
                    count.outrun(&one.item, outcome.record.record.state.as_str(), format);
                }
            },
            Err(_) if outrun => count.outrun(&one.item, "gone", format),
            Err(error) => count.failed(&one.item, error, format),
        }
    }
    Ok(count.end("cancelled"))
}
