//! The door for submitters: every unknown field is an error that names the nearest known one.

mod shape;

use std::sync::LazyLock;

use schemars::schema_for;
use serde_json::Value;

use crate::agent_job::AgentJob;
use crate::function::Function;
use crate::http::{AgentBeat, AgentRegistration};
use crate::playbook::Playbook;
use crate::queue::QueueSettings;
use crate::task::Task;

/// Why a message is no task: which field, what it holds, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", if field.is_empty() { String::new() } else { format!("field `{field}`: ") })]
pub struct InvalidTask {
    /// Path of the field, empty for the whole message.
    pub field: String,
    /// The sentence.
    pub problem: String,
}

impl InvalidTask {
    pub(crate) fn value(field: &str, value: &str, allowed: &str) -> Self {
        let shown: String = value.chars().take(64).collect();
        Self { field: field.into(), problem: format!("`{shown}` is not allowed; allowed is {allowed}") }
    }

    pub(crate) fn undecodable(error: &serde_json::Error) -> Self {
        // serde repeats the offending text; a hostile one may be a megabyte.
        let problem: String = error.to_string().chars().take(500).collect();
        Self { field: String::new(), problem }
    }

    /// A field that is not known, below `path`.
    pub fn unknown(path: &str, name: &str, known: &[&str]) -> Self {
        let hint = did_you_mean(name, known);
        let name: String = name.chars().take(64).collect();
        Self { field: join(path, &name), problem: format!("unknown field; {hint}") }
    }
}

/// The nearest known name, or all of them.
pub fn did_you_mean(name: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 3)
        .min();
    match nearest {
        Some((_, nearest)) => format!("did you mean `{nearest}`?"),
        None => format!("known are {}", known.join(", ")),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

static TASK: LazyLock<Value> = LazyLock::new(|| schema_for!(Task).to_value());
static QUEUE: LazyLock<Value> = LazyLock::new(|| schema_for!(QueueSettings).to_value());
static FUNCTION: LazyLock<Value> = LazyLock::new(|| schema_for!(Function).to_value());
static REGISTRATION: LazyLock<Value> = LazyLock::new(|| schema_for!(AgentRegistration).to_value());
static AGENT_JOB: LazyLock<Value> = LazyLock::new(|| schema_for!(AgentJob).to_value());
static PLAYBOOK: LazyLock<Value> = LazyLock::new(|| schema_for!(Playbook).to_value());
static BEAT: LazyLock<Value> = LazyLock::new(|| schema_for!(AgentBeat).to_value());

/// Reads a task as a submitter's: nothing unknown, nothing wrong.
pub fn task(value: &Value) -> Result<Task, InvalidTask> {
    let task: Task = checked(&TASK, value)?;
    task.check()?;
    Ok(task)
}

/// Reads queue settings the same way.
pub fn queue_settings(value: &Value) -> Result<QueueSettings, InvalidTask> {
    let settings: QueueSettings = checked(&QUEUE, value)?;
    if let Some(job) = &settings.agent {
        let job = job.read().map_err(|error| below("agent", InvalidTask::undecodable(&error)))?;
        job.check().map_err(|error| below("agent", error))?;
    }
    Ok(settings)
}

/// Reads the job that prompts become the same way. Its title is that of a prompt, so it may be left out.
pub fn agent_job(value: &Value) -> Result<AgentJob, InvalidTask> {
    let mut value = value.clone();
    if let Value::Object(fields) = &mut value {
        // It may be copied from a task.
        if fields.get("kind").is_some_and(|kind| kind == "agent") {
            fields.remove("kind");
        }
        fields.entry("title").or_insert_with(|| "of the prompt".into());
    }
    let job: AgentJob = checked(&AGENT_JOB, &value)?;
    job.check().map_err(|error| below("", error))?;
    Ok(job)
}

/// The problem of a job that is no task's workload but stands at `at`.
fn below(at: &str, error: InvalidTask) -> InvalidTask {
    let field = error.field.strip_prefix("workload.").unwrap_or(&error.field);
    let field = match (at, field) {
        ("", field) => field.to_owned(),
        (at, "") => at.to_owned(),
        (at, field) => join(at, field),
    };
    InvalidTask { field, ..error }
}

/// Reads the definition of a function the same way.
pub fn function(value: &Value) -> Result<Function, InvalidTask> {
    let function: Function = checked(&FUNCTION, value)?;
    function.check()?;
    Ok(function)
}

/// Reads the registration of an agent the same way.
pub fn agent_registration(value: &Value) -> Result<AgentRegistration, InvalidTask> {
    checked(&REGISTRATION, value)
}

/// Reads a heartbeat the same way.
pub fn agent_beat(value: &Value) -> Result<AgentBeat, InvalidTask> {
    checked(&BEAT, value)
}

/// Reads a playbook the same way. `at`: its path in what was submitted, empty for a file of its own.
pub fn playbook(value: &Value, at: &str) -> Result<Playbook, InvalidTask> {
    let playbook: Playbook = checked(&PLAYBOOK, value).map_err(|error| {
        if at.is_empty() || error.field.is_empty() {
            error
        } else {
            InvalidTask { field: join(at, &error.field), ..error }
        }
    })?;
    playbook.check(at)?;
    Ok(playbook)
}

fn checked<T: serde::de::DeserializeOwned>(schema: &Value, value: &Value) -> Result<T, InvalidTask> {
    shape::walk(schema, value, shape::Unknown::Refused)?;
    serde_path_to_error::deserialize(value).map_err(|error| at_its_path(&error))
}

/// What serde says, where it says it. Inside a tagged enum it knows no path; what can be wrong there, the shape has told.
fn at_its_path(error: &serde_path_to_error::Error<serde_json::Error>) -> InvalidTask {
    let path = error.path().to_string();
    InvalidTask { field: if path == "." { String::new() } else { path }, ..InvalidTask::undecodable(error.inner()) }
}

/// Why these bytes are no task, which serde has found: with the path of the field, if it can be told. Unknown fields pass.
pub(crate) fn no_task(bytes: &[u8], error: &serde_json::Error) -> InvalidTask {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return InvalidTask::undecodable(error) };
    let shape = shape::walk(&TASK, &value, shape::Unknown::Passed);
    let read = shape.and_then(|()| serde_path_to_error::deserialize(&value).map_err(|error| at_its_path(&error)));
    read.map_or_else(|found| found, |_: Task| InvalidTask::undecodable(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_unknown_field_names_the_nearest_known_one() {
        for (value, field, hint) in [
            (json!({"workload":{"kind":"call","handler":"noop"},"timeot":"1s"}), "timeot", "`timeout`"),
            (json!({"workload":{"kind":"call","handlr":"noop"}}), "workload.handlr", "`handler`"),
            (
                json!({"workload":{"kind":"call","handler":"noop"},"retry":{"max_attemps":2}}),
                "retry.max_attemps",
                "`max_attempts`",
            ),
            (
                json!({"workload":{"kind":"call","handler":"noop"},"retry":{"backoff":{"initail":"1s"}}}),
                "retry.backoff.initail",
                "`initial`",
            ),
            (json!({"workload":{"kind":"call","handler":"noop"},"zzzzzzzz":1}), "zzzzzzzz", "known are"),
        ] {
            let error = task(&value).unwrap_err();
            assert_eq!(error.field, field);
            assert!(error.problem.contains(hint), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        for (value, words) in [
            (json!({}), vec!["workload", "required"]),
            (json!([]), vec!["object"]),
            (json!({"workload":{"kind":"proces","command":["a"]}}), vec!["workload.kind", "proces", "process"]),
            (json!({"workload":{"kind":"process","command":"date"}}), vec!["workload.command", "array"]),
            (json!({"workload":{"kind":"process","command":[1]}}), vec!["workload.command[0]", "string"]),
            (json!({"workload":{"kind":"call","handler":"a"},"timeout":"soon"}), vec!["`timeout`", "soon", "1h30m"]),
            (json!({"workload":{"kind":"call","handler":"a"},"on_lost":"maybe"}), vec!["on_lost", "fail"]),
            (
                json!({"workload":{"kind":"call","handler":"a"},"retry":{"max_attempts":0}}),
                vec!["retry.max_attempts", "a whole number from 1 to 4294967295"],
            ),
        ] {
            let error = task(&value).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn the_job_of_prompts_is_checked_where_it_stands() {
        let settings = |job: Value| queue_settings(&json!({ "agent": job }));
        let good = json!({"repository": "https://host/a.git", "title": "a", "push": "patch"});
        assert_eq!(settings(good.clone()).unwrap().agent.unwrap().read().unwrap().repository, "https://host/a.git");
        for (job, field) in [
            (json!({"repository": "https://host/a.git", "title": "a", "pusch": "patch"}), "agent.pusch"),
            (json!({"repository": "a", "title": "a"}), "agent.repository"),
            (json!({"repository": "https://host/a.git", "title": "a\nb"}), "agent.title"),
            (json!({"title": "a"}), "agent.repository"),
            (json!(1), "agent"),
        ] {
            assert_eq!(settings(job).unwrap_err().field, field);
        }
        agent_job(&json!({"repository": "https://host/a.git"})).unwrap();
        assert_eq!(agent_job(&json!({"repository": "a"})).unwrap_err().field, "repository");
        agent_job(&json!({"repository": "https://host/a.git", "kind": "agent"})).unwrap();
        assert_eq!(agent_job(&json!({"repository": "https://host/a.git", "kind": "call"})).unwrap_err().field, "kind");
    }

    #[test]
    fn every_field_of_a_full_task_passes() {
        let value = json!({
            "workload": {"kind": "process", "command": ["sh", "-c", "true"], "env": {"A": "b"}, "stdin": "x"},
            "timeout": "30m", "idle_timeout": "1m", "expires_at": "2026-11-20T10:00:00Z",
            "retry": {"max_attempts": 3, "backoff": {"initial": "1s", "factor": 2.0, "max": "5m", "jitter": "none"},
                      "never_on_codes": ["timed_out"], "never_on_exit_codes": [2]},
            "on_lost": "retry", "stop_grace": "5s", "labels": {"team": "a"},
            "limits": {"cpu": "500m", "memory": "256Mi", "pids": 64, "logs": "unlimited"},
            "artifacts": ["out/**"],
        });
        let read = task(&value).unwrap();
        assert_eq!(read.retry.as_ref().unwrap().max_attempts.get(), 3);
    }
}
