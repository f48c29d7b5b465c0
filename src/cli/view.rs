//! A task as the commands print it for people.

use dispatcher::client::{ListItem, TaskView};
use schemas::record::{Attempt, TaskResult, Waiting};
use schemas::task::Limits;
use schemas::{Outcome, Task, TaskRecord, Timestamp, Workload};
use serde::Serialize;

use crate::output::{self, Facts, Table, ago};

/// Everything about one task, for people.
pub fn task_facts(view: &TaskView) -> Facts {
    let now = Timestamp::now();
    let mut facts = Facts::default();
    facts.add("task", view.key.to_string());
    facts.add("state", view.status().map(|status| status.to_string()).unwrap_or_default());
    match (view.current(), &view.queued) {
        (Some(current), _) => record_facts(&mut facts, &current.record, now),
        (None, Some(queued)) => {
            facts.add("sequence", queued.sequence.to_string());
            facts.add("submitted", moment(queued.submitted_at, now));
            facts.add("submission", queued.submission.clone().unwrap_or_default());
            facts.add("task as sent", String::from_utf8_lossy(&queued.task));
            if let Some(previous) = &view.record {
                let record = &previous.record;
                facts.add("previous run", format!("{} (sequence {})", record.state, record.sequence));
            }
        }
        (None, None) => {}
    }
    facts
}

/// Everything about one record, for people.
fn record_facts(facts: &mut Facts, record: &TaskRecord, now: Timestamp) {
    facts.add("sequence", record.sequence.to_string());
    facts.add("submitted", moment(record.submitted_at, now));
    facts.add("ended", record.ended_at.map(|at| moment(at, now)).unwrap_or_default());
    facts.add("retry at", record.retry_at.map(|at| at.to_string()).unwrap_or_default());
    if let Some(waiting) = &record.waiting {
        let Waiting { code, message, since, worker, more: _ } = waiting;
        facts.add("waits for", format!("{code}: {message} (since {since}, last on {worker})"));
    }
    facts.add("submission", record.submission.clone().unwrap_or_default());
    let task = record.task.as_ref().and_then(|task| Task::decode(task.get().as_bytes()).ok());
    if let Some(task) = task {
        if let Workload::Container(container) = &task.workload {
            facts.add("image", &container.image);
        }
        facts.add("limits", limits(&task.limits));
    }
    if let Some(cancel) = &record.cancel {
        facts.add("cancel asked", format!("{} {}", cancel.at, cancel.reason.as_deref().unwrap_or_default()));
    }
    if let Some(error) = &record.error {
        facts.add("error", format!("{}: {}", error.code, error.message));
    }
    for attempt in &record.attempts {
        facts.add("attempt", attempt_line(attempt));
    }
    match &record.result {
        Some(TaskResult::Object(object)) => {
            facts.add("result", format!("{} bytes in the object store as {}", object.bytes, object.name));
        }
        Some(inline) => {
            if let Some(Ok(bytes)) = inline.inline_bytes() {
                facts.add("result", String::from_utf8_lossy(&bytes));
            }
        }
        None => {}
    }
    for artifact in &record.artifacts {
        facts.add("artifact", format!("{} ({} bytes, of start {})", artifact.path, artifact.bytes, artifact.start));
    }
    for warning in &record.warnings {
        facts.add("warning", warning);
    }
    facts.add("task as sent", record.task.as_ref().map(|task| task.get().to_owned()).unwrap_or_default());
}

/// The limits that a task names; the rest is its worker's.
fn limits(limits: &Limits) -> String {
    let Limits { cpu, memory, pids, logs } = limits;
    let named = [
        cpu.map(|cpu| format!("{cpu} CPU")),
        memory.map(|memory| format!("{memory} memory")),
        pids.map(|pids| format!("{pids} pids")),
        logs.map(|logs| format!("{logs} logs")),
    ];
    named.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn moment(at: Timestamp, now: Timestamp) -> String {
    format!("{at} ({} ago)", ago(at, now))
}

fn attempt_line(attempt: &Attempt) -> String {
    let mut words = vec![attempt.number.map_or("-".to_owned(), |number| number.to_string())];
    words.push(outcome(attempt.outcome).to_owned());
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            words.push(format!("{name} {value}"));
        }
    };
    add("code", attempt.exit_code.map(|code| code.to_string()));
    add("signal", attempt.signal.map(|signal| signal.to_string()));
    add("on", attempt.worker.as_ref().map(ToString::to_string));
    add("start", attempt.start.as_ref().map(ToString::to_string));
    add("started", attempt.phases.started.map(|at| at.to_string()));
    if let Some(usage) = &attempt.usage {
        add("took", Some(format!("{} ms", usage.wall_ms)));
        add("cpu", usage.cpu_ms.map(|ms| format!("{ms} ms")));
        add("peak", usage.peak_memory_bytes.map(|bytes| format!("{} KiB", bytes >> 10)));
    }
    if attempt.oom {
        add("out of", Some("memory".into()));
    }
    add("error", attempt.error.as_ref().map(|error| format!("{}: {}", error.code, error.message)));
    words.join(", ")
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Running => "running",
        Outcome::Exited => "exited",
        Outcome::FailedToStart => "failed to start",
        Outcome::TimedOut => "timed out",
        Outcome::Cancelled => "cancelled",
        Outcome::HandedBack => "handed back",
        Outcome::Newer(word) => word.as_str(),
        Outcome::Lost => "lost",
    }
}

/// Columns of `list`.
pub fn list_table() -> Table {
    Table::new(&["ID", "QUEUE", "STATE", "ATTEMPTS", "AGE", "WORKER", "REASON"])
}

/// One row of it.
pub fn list_row(item: &ListItem, now: Timestamp) -> [String; 7] {
    let record = item.record.as_ref().map(|recorded| &recorded.record);
    [
        item.key.id.to_string(),
        item.key.queue.to_string(),
        item.status.to_string(),
        record.map_or("0".into(), |record| record.spent().to_string()),
        ago(item.submitted_at, now),
        record.and_then(worker).unwrap_or_default(),
        record.and_then(reason).unwrap_or_default(),
    ]
}

/// Columns of `wait` and `cancel`.
pub fn end_table() -> Table {
    Table::new(&["ID", "QUEUE", "STATE", "ATTEMPTS", "EXIT", "REASON"])
}

/// One row of it.
pub fn end_row(record: &TaskRecord) -> [String; 6] {
    let last = record.attempts.iter().rev().find(|attempt| attempt.number.is_some());
    let exit = last.and_then(|attempt| match (attempt.exit_code, attempt.signal) {
        (Some(code), _) => Some(code.to_string()),
        (None, Some(signal)) => Some(format!("signal {signal}")),
        (None, None) => None,
    });
    [
        record.id.to_string(),
        record.queue.to_string(),
        record.state.to_string(),
        record.spent().to_string(),
        exit.unwrap_or_default(),
        reason(record).unwrap_or_default(),
    ]
}

fn worker(record: &TaskRecord) -> Option<String> {
    Some(record.attempts.last()?.worker.as_ref()?.to_string())
}

/// Why it did not succeed, or could not start yet, in one word.
pub fn reason(record: &TaskRecord) -> Option<String> {
    let error = record.error.as_ref().map(|error| error.code);
    let code = error.or_else(|| record.waiting.as_ref().map(|waiting| waiting.code));
    code.map(|code| code.to_string())
}

/// Prints one document for one name, a list for several. Nothing for one name that came to nothing: stderr tells.
pub fn print_json<T: Serialize>(values: &[T], names: usize) {
    match (values, names) {
        ([], 1) => {}
        ([one], 1) => output::json(one),
        (many, _) => output::json(&many),
    }
}
