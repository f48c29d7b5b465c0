//! `shoal submit`: tasks from a file or stdin. JSON or YAML; one task, a list of them, JSON lines, or several YAML
//! documents. Each is a task, or `{"id": …, "queue": …, "once": …, "task": {…}}` where more than the task is to be said.
//!
//! Everything is checked before the first is sent: a file with one wrong task submits nothing.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use dispatcher::client::documents::{self, Document, Syntax};
use dispatcher::client::{SubmitOptions, Submitted};
use schemas::http::Accepted;
use schemas::{QueueName, TaskId};
use serde_json::Value;

use super::{Error, Server, exit_of_submit, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table};

/// Flags of `shoal submit`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "A file holds one task, a list, JSON lines or several YAML documents. A task that wants an id or \
    a queue of its own is wrapped: {\"id\": \"order-42\", \"queue\": \"default\", \"once\": true, \"task\": {…}}.\n\
    Prints id, queue and sequence of each, in the order of the file.\n\nExample:\n  \
    echo '{\"workload\":{\"kind\":\"process\",\"command\":[\"date\"]}}' | shoal submit -"
)]
pub struct Submit {
    /// File of tasks, `-` for stdin
    pub file: PathBuf,
    /// Queue for tasks that name none
    #[arg(long, env = "SHOAL_QUEUE", default_value = "default")]
    pub queue: QueueName,
    /// Id of the task, where there is only one
    #[arg(long)]
    pub id: Option<TaskId>,
    /// Do not start what was ever started under the same id
    #[arg(long)]
    pub once: bool,
}

/// Reads, checks, submits, prints.
pub async fn run(args: Submit, on: &Server<'_>) -> Result<Exit, Error> {
    let entries = parse(&read(&args.file)?)?;
    let many = entries.len();
    if args.id.is_some() && many != 1 {
        return Err(Error::usage(
            format!("--id names one task, the file holds {many}"),
            "wrap each as {\"id\": …, \"task\": {…}}",
        ));
    }
    let mut submissions = Vec::with_capacity(many);
    for (i, mut entry) in entries.into_iter().enumerate() {
        entry.id = args.id.clone().or(entry.id);
        entry.once |= args.once;
        submissions.push(entry.submission(&args.queue).map_err(|error| match many {
            1 => Error::from(error),
            _ => Error::usage(
                format!("task {} of {many}: {error}", i + 1),
                "nothing was submitted; correct it and submit again",
            ),
        })?);
    }
    let client = on.connect().await?;
    let keys: Vec<_> = submissions.iter().map(|submission| submission.key.clone()).collect();
    let results = client.submit_many(submissions, &SubmitOptions::default()).await;
    let (mut accepted, mut worst, mut refused) = (Vec::new(), exit::DONE, 0);
    for (key, result) in keys.into_iter().zip(results) {
        match result {
            Ok(submitted) => accepted.push(submitted),
            Err(error) if many == 1 => return Err(error.into()),
            Err(error) => {
                refused += 1;
                // Refused for good counts more than not reached.
                worst = if worst == exit::FAILED { worst } else { exit_of_submit(&error) };
                output::talk(format_args!("{key}: {error}"));
            }
        }
    }
    print(&accepted, many, on.output());
    if refused > 0 {
        output::talk(format_args!("{} of {many} submitted, {refused} not", accepted.len()));
    }
    Ok(worst)
}

/// Prints what was accepted.
pub fn print(accepted: &[Submitted], asked: usize, format: Format) {
    match format {
        Format::Table => {
            let mut table = Table::new(&["ID", "QUEUE", "SEQUENCE"]);
            for Submitted { key, sequence, .. } in accepted {
                table.row([key.id.to_string(), key.queue.to_string(), sequence.to_string()]);
            }
            table.print();
        }
        Format::Json => {
            let accepted: Vec<Accepted> = accepted.iter().cloned().map(Into::into).collect();
            view::print_json(&accepted, asked);
        }
    }
    for Submitted { key, existing, .. } in accepted {
        if let Some(existing) = existing {
            output::talk(format_args!("{key} was not started: it exists already and is {}", existing.state));
        }
    }
}

/// The text of a file, or of stdin.
pub fn read(path: &PathBuf) -> Result<String, Error> {
    let read = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    read.map_err(|error| {
        Error::usage(format!("cannot read {}: {error}", path.display()), "name a file, or `-` for stdin")
    })
}

/// The documents of a text: JSON (one value, or one after the other) or YAML.
pub fn documents(text: &str) -> Result<Vec<Value>, Error> {
    documents::values(text, Syntax::Either)
        .map_err(|error| Error::usage(error.to_string(), "look at one that works: shoal submit --help"))
}

fn parse(text: &str) -> Result<Vec<Document>, Error> {
    let values = documents::flattened(documents(text)?);
    if values.is_empty() {
        return Err(Error::usage("there is no task in it", "shoal submit --help"));
    }
    let many = values.len();
    let parsed = |(i, value)| {
        Document::read(value).map_err(|problem| {
            let which = if many == 1 { String::new() } else { format!("task {} of {many}: ", i + 1) };
            Error::usage(format!("{which}{problem}"), "shoal submit --help")
        })
    };
    values.into_iter().enumerate().map(parsed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop"}}"#;

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, words) in [
            (format!("{NOOP}\n{{\"id\":[],\"task\":{NOOP}}}"), ["task 2 of 2", "`id`"]),
            (format!(r#"{{"qeue":"q","task":{NOOP}}}"#), ["qeue", "`queue`"]),
            (String::new(), ["no task", "in it"]),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
