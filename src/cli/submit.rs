//! `shoal submit`: tasks from a file or stdin. JSON or YAML; one task, a list of them, JSON lines, or several YAML
//! documents. Each is a task, or `{"id": …, "queue": …, "once": …, "task": {…}}` where more than the task is to be said.
//!
//! Everything is checked before the first is sent: a file with one wrong task submits nothing.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use dispatcher::client::{Submission, SubmitOptions, Submitted};
use schemas::{QueueName, TaskId, TaskRecord};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Error, Server, exit_of_submit, view};
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table, did_you_mean};

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

/// One task of a file, checked.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    id: Option<TaskId>,
    queue: Option<QueueName>,
    once: bool,
    task: Value,
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
    for (i, entry) in entries.into_iter().enumerate() {
        let queue = entry.queue.unwrap_or_else(|| args.queue.clone());
        let id = args.id.clone().or(entry.id);
        if (args.once || entry.once) && id.is_none() {
            return Err(Error::usage(format!("task {} has `once` but no id", i + 1), "give it an id of its own"));
        }
        let payload = serde_json::to_vec(&entry.task).expect("a value is JSON");
        let mut submission = Submission::checked(queue, id, payload).map_err(|error| match many {
            1 => Error::from(error),
            _ => Error::usage(
                format!("task {} of {many}: {error}", i + 1),
                "nothing was submitted; correct it and submit again",
            ),
        })?;
        submission.once = args.once || entry.once;
        submissions.push(submission);
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

/// What was accepted, as JSON.
#[derive(Serialize)]
struct Accepted<'a> {
    id: &'a TaskId,
    queue: &'a QueueName,
    sequence: u64,
    submission: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    existing: Option<&'a TaskRecord>,
}

impl<'a> Accepted<'a> {
    fn of(submitted: &'a Submitted) -> Self {
        let Submitted { key, sequence, submission, existing } = submitted;
        Self { id: &key.id, queue: &key.queue, sequence: *sequence, submission, existing: existing.as_deref() }
    }
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
            let accepted: Vec<_> = accepted.iter().map(Accepted::of).collect();
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
    let hint = "look at one that works: shoal submit --help";
    let json = text.trim_start().starts_with(['{', '[']);
    if json {
        let values = serde_json::Deserializer::from_str(text).into_iter().collect::<Result<Vec<Value>, _>>();
        match (values, serde_saphyr::from_multiple(text)) {
            (Ok(values), _) => return Ok(values),
            // YAML may begin with a brace too.
            (Err(_), Ok(values)) => return Ok(values),
            (Err(error), Err(_)) => return Err(Error::usage(format!("not JSON: {error}"), hint)),
        }
    }
    serde_saphyr::from_multiple(text).map_err(|error| Error::usage(format!("neither JSON nor YAML: {error}"), hint))
}

fn parse(text: &str) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for document in documents(text)? {
        match document {
            Value::Array(items) => entries.extend(items),
            one => entries.push(one),
        }
    }
    if entries.is_empty() {
        return Err(Error::usage("there is no task in it", "shoal submit --help"));
    }
    let many = entries.len();
    let parsed = |(i, value)| {
        entry(value).map_err(|problem| {
            let which = if many == 1 { String::new() } else { format!("task {} of {many}: ", i + 1) };
            Error::usage(format!("{which}{problem}"), "shoal submit --help")
        })
    };
    entries.into_iter().enumerate().map(parsed).collect()
}

fn entry(value: Value) -> Result<Entry, String> {
    let bare = |task| Entry { id: None, queue: None, once: false, task };
    let mut fields: Map<String, Value> = match value {
        Value::Object(fields) if fields.contains_key("task") && !fields.contains_key("workload") => fields,
        // Whatever else it is, the task's own checks name what is wrong.
        task => return Ok(bare(task)),
    };
    let mut entry = bare(fields.remove("task").unwrap_or_default());
    let text = |name: &str, value: Option<Value>| match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(format!("`{name}` must be text")),
    };
    entry.id = text("id", fields.remove("id"))?.map(TaskId::new).transpose().map_err(|error| error.to_string())?;
    entry.queue =
        text("queue", fields.remove("queue"))?.map(QueueName::new).transpose().map_err(|error| error.to_string())?;
    entry.once = match fields.remove("once") {
        None => false,
        Some(Value::Bool(once)) => once,
        Some(_) => return Err("`once` must be true or false".into()),
    };
    match fields.keys().next() {
        Some(name) => Err(format!(
            "unknown field `{name}` beside `task`; {}",
            did_you_mean(name, &["id", "once", "queue", "task"])
        )),
        None => Ok(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop"}}"#;

    fn count(text: &str) -> usize {
        parse(text).unwrap().len()
    }

    #[test]
    fn one_many_lines_and_documents_are_all_read() {
        assert_eq!(count(NOOP), 1);
        assert_eq!(count(&format!("[{NOOP},{NOOP}]")), 2);
        assert_eq!(count(&format!("{NOOP}\n{NOOP}\n{NOOP}\n")), 3);
        let yaml = "workload:\n  kind: call\n  handler: noop\n";
        assert_eq!(count(yaml), 1);
        assert_eq!(count(&format!("{yaml}---\n{yaml}")), 2);
        assert_eq!(count("- workload: {kind: call, handler: noop}\n- workload: {kind: call, handler: echo}\n"), 2);
        assert_eq!(parse(yaml).unwrap()[0].task, serde_json::from_str::<Value>(NOOP).unwrap());
    }

    #[test]
    fn a_wrapped_task_says_more() {
        let text = format!(r#"{{"id":"a-1","queue":"q","once":true,"task":{NOOP}}}"#);
        let entry = parse(&text).unwrap().remove(0);
        assert_eq!((entry.id.unwrap().as_str(), entry.queue.unwrap().as_str(), entry.once), ("a-1", "q", true));
        // YAML reads a plain 42 as a number; an id it is all the same.
        let entry = parse("id: 42\ntask: {workload: {kind: call, handler: noop}}").unwrap().remove(0);
        assert_eq!(entry.id.unwrap().as_str(), "42");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, words) in [
            (format!(r#"{{"qeue":"q","task":{NOOP}}}"#), ["qeue", "`queue`"]),
            (format!(r#"{{"id":"a.b","task":{NOOP}}}"#), ["a.b", "A-Z"]),
            (format!("{NOOP}\n{{\"id\":[],\"task\":{NOOP}}}"), ["task 2 of 2", "`id`"]),
            ("{".into(), ["not JSON", "EOF"]),
            (String::new(), ["no task", "in it"]),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn what_is_no_task_is_left_to_the_tasks_own_checks() {
        assert_eq!(parse("7").unwrap()[0].task, json!(7));
        assert!(Submission::checked("q".parse().unwrap(), None, "7").is_err());
    }
}
