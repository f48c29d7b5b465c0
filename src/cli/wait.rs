//! `shoal wait`: until tasks have ended. Ends with the job's own exit code, of several with the first that is not 0.

use clap::Args;
use futures_util::{StreamExt, stream};
use schemas::HumanDuration;

use super::{Error, Server, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Waits at once.
const AT_ONCE: usize = 256;

/// Flags of `shoal wait`.
#[derive(Clone, Debug, Args)]
pub struct Wait {
    /// Ids, `queue.id`, or prefixes that fit one task
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// Give up after this; the tasks go on
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<HumanDuration>,
}

/// Waits, prints, ends as the jobs did.
pub async fn run(args: Wait, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let deadline = args.timeout.map(|timeout| tokio::time::Instant::now() + timeout.0);
    let waits = args.ids.iter().map(|id| {
        let client = &client;
        async move {
            let key = client.find(id).await?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
            client.wait(&key, None, left).await
        }
    });
    let ends: Vec<_> = stream::iter(waits).buffered(AT_ONCE).collect().await;
    let (mut records, mut errors) = (Vec::new(), Vec::new());
    for end in ends {
        match end {
            Ok(end) => records.push(end.record),
            Err(error) => errors.push(Error::from(error)),
        }
    }
    match on.output() {
        Format::Json => view::print_json(&records, args.ids.len()),
        Format::Table if records.is_empty() => {}
        Format::Table => {
            let mut table = view::end_table();
            for record in &records {
                table.row(view::end_row(record));
            }
            table.print();
        }
    }
    if let Some(last) = errors.pop() {
        for error in &errors {
            output::talk(format_args!("{}", output::chain(error)));
        }
        return Err(last);
    }
    Ok(records.iter().filter_map(exit::of_record).find(|code| *code != exit::DONE).unwrap_or(exit::DONE))
}
