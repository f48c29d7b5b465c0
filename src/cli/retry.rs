//! `shoal retry`: finished tasks once more, under the same ids, by name or by what they are.

use clap::Args;
use dispatcher::client::{Client, RETRYABLE};
use futures_util::StreamExt;
use schemas::Timestamp;

use super::bulk::{self, Count};
use super::filter::Filter;
use super::{Error, Server, submit};
use crate::exit::{self, Exit};
use crate::output;

/// Flags of `shoal retry`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "By filter: whatever matches and had ended when the command began; without --state what is failed, lost \
    or expired. One line each, failures are told and end with exit code 1.\n\nExamples:\n  shoal retry order-42\n  \
    shoal retry --queue reports --error-code timed_out --since 2h --dry-run"
)]
pub struct Retry {
    /// Ids, `queue.id`, or prefixes that fit one task
    #[arg(required_unless_present_any = ["all", "filter"], conflicts_with_all = ["all", "filter", "dry_run"], value_name = "ID")]
    pub ids: Vec<String>,
    /// Which, instead of ids.
    #[command(flatten)]
    pub filter: Filter,
    /// Everything that matches; without a filter everything that is failed, lost or expired
    #[arg(long)]
    pub all: bool,
    /// Only list what would be submitted
    #[arg(long)]
    pub dry_run: bool,
}

/// Submits them again.
pub async fn run(args: Retry, on: &Server<'_>) -> Result<Exit, Error> {
    if args.ids.is_empty() {
        return by_filter(args, on).await;
    }
    let client = on.connect().await?;
    let (mut accepted, mut errors) = (Vec::new(), Vec::new());
    for id in &args.ids {
        let again = async { client.retry(&client.find(id).await?).await };
        match again.await {
            Ok(submitted) => accepted.push(submitted),
            Err(error) => errors.push(Error::from(error)),
        }
    }
    if !accepted.is_empty() {
        submit::print(&accepted, args.ids.len(), on.output());
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

/// Submits what matches.
async fn by_filter(args: Retry, on: &Server<'_>) -> Result<Exit, Error> {
    let mut filter = args.filter.at(Timestamp::now());
    if let Some(state) = filter.states.iter().find(|state| !state.is_terminal()) {
        let problem = format!("what is {state} is not over; only finished tasks are submitted again");
        return Err(Error::usage(problem, "shoal retry --state failed,lost,expired --dry-run"));
    }
    if filter.states.is_empty() {
        filter.states = RETRYABLE.to_vec();
    }
    let client: Client = on.connect().await?;
    if args.dry_run {
        return bulk::rehearse(&client, filter, "submitted again", on).await;
    }
    let (mut count, format) = (Count::default(), on.output());
    let mut results = client.retry_all(filter);
    while let Some(one) = results.next().await {
        let one = one?;
        let outrun = one.is_outrun();
        match one.result {
            Ok(again) => count.done(&one.item, again.sequence, "submitted", format),
            Err(_) if outrun => count.outrun(&one.item, "changed", format),
            Err(error) => count.failed(&one.item, error, format),
        }
    }
    Ok(count.end("submitted again"))
}
