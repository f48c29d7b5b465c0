//! `shoal retry`: finished tasks once more, under the same ids.

use clap::Args;

use super::{Error, Server, submit};
use crate::exit::{self, Exit};
use crate::output;

/// Flags of `shoal retry`.
#[derive(Clone, Debug, Args)]
pub struct Retry {
    /// Ids, `queue.id`, or prefixes that fit one task
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
}

/// Submits them again.
pub async fn run(args: Retry, on: &Server<'_>) -> Result<Exit, Error> {
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
