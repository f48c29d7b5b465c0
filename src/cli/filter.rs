//! Which tasks: the same flags for whoever means many of them.

use clap::Args;
use dispatcher::client::{ListFilter, Status};
use schemas::{Code, HumanDuration, QueueName, Timestamp};

use crate::output::did_you_mean;

/// Flags that name tasks by what they are.
#[derive(Clone, Debug, Args)]
#[group(id = "filter", multiple = true)]
pub struct Filter {
    /// Only of this queue
    #[arg(long)]
    pub queue: Option<QueueName>,
    /// Only in these states: queued, running, retrying, succeeded, failed, cancelled, lost, expired
    #[arg(long, value_delimiter = ',', value_name = "STATE,…")]
    pub state: Vec<Status>,
    /// Only with this label; may be repeated
    #[arg(long, value_parser = label, value_name = "NAME[=VALUE]")]
    pub label: Vec<(String, Option<String>)>,
    /// Only given up with, or kept waiting by, one of these codes, as timed_out
    #[arg(long, value_delimiter = ',', value_parser = code, value_name = "CODE,…")]
    pub error_code: Vec<Code>,
    /// Only what was submitted within this time
    #[arg(long, value_name = "DURATION")]
    pub since: Option<HumanDuration>,
}

impl Filter {
    /// The same for the client, as of `now`.
    pub fn at(self, now: Timestamp) -> ListFilter {
        let Self { queue, state, label, error_code, since } = self;
        let since = since.map(|since| Timestamp::from_millis(now.as_millis() - since.0.as_millis() as i64));
        ListFilter { queue, states: state, labels: label, codes: error_code, since, ..ListFilter::default() }
    }
}

fn label(text: &str) -> Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((text.to_owned(), None)),
    }
}

/// An error code that this version knows.
pub fn code(word: &str) -> Result<Code, String> {
    let known: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    match word.parse() {
        Ok(Code::Newer(_)) => Err(did_you_mean(word, &known)),
        Ok(code) => Ok(code),
        Err(never) => match never {},
    }
}
