//! Tasks as people write them: one, a list, JSON lines or several YAML documents. Each is a task, or
//! `{"id": …, "queue": …, "once": …, "task": {…}}` where more than the task is to be said. `shoal submit` and HTTP take
//! the same. Pure.

use schemas::strict::InvalidTask;
use schemas::{QueueName, TaskId};
use serde_json::{Map, Value};

use super::{Submission, SubmitError};

/// What a task may be wrapped in.
const AROUND: [&str; 4] = ["id", "once", "queue", "task"];

/// How a text is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// One JSON value, or one after the other.
    Json,
    /// One YAML document, or several.
    Yaml,
    /// Whichever it is.
    Either,
}

/// Why a text holds no documents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

/// One task of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its id, if it says one.
    pub id: Option<TaskId>,
    /// Its queue, if it says one.
    pub queue: Option<QueueName>,
    /// Start only if no record of its id exists.
    pub once: bool,
    /// The task, unchecked.
    pub task: Value,
}

/// The values of a text, lists among them as they are.
pub fn values(text: &str, syntax: Syntax) -> Result<Vec<Value>, Unreadable> {
    let json = || serde_json::Deserializer::from_str(text).into_iter().collect::<Result<Vec<Value>, _>>();
    let yaml = || serde_saphyr::from_multiple(text);
    match syntax {
        Syntax::Json => json().map_err(|error| Unreadable(format!("not JSON: {error}"))),
        Syntax::Yaml => yaml().map_err(|error| Unreadable(format!("not YAML: {error}"))),
        Syntax::Either if text.trim_start().starts_with(['{', '[']) => match (json(), yaml()) {
            (Ok(values), _) => Ok(values),
            // YAML may begin with a brace too.
            (Err(_), Ok(values)) => Ok(values),
            (Err(error), Err(_)) => Err(Unreadable(format!("not JSON: {error}"))),
        },
        Syntax::Either => yaml().map_err(|error| Unreadable(format!("neither JSON nor YAML: {error}"))),
    }
}

/// The same with every list taken apart.
pub fn flattened(values: Vec<Value>) -> Vec<Value> {
    let mut flat = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::Array(items) => flat.extend(items),
            one => flat.push(one),
        }
    }
    flat
}

impl Document {
    /// Reads a task, or one that is wrapped. What is no task at all is left to the task's own checks.
    pub fn read(value: Value) -> Result<Self, InvalidTask> {
        let bare = |task| Self { id: None, queue: None, once: false, task };
        let mut fields: Map<String, Value> = match value {
            Value::Object(fields) if fields.contains_key("task") && !fields.contains_key("workload") => fields,
            task => return Ok(bare(task)),
        };
        let mut document = bare(fields.remove("task").unwrap_or_default());
        let wrong = |field: &str, problem: String| InvalidTask { field: field.into(), problem };
        let text = |name: &str, value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            // YAML reads a plain 42 as a number.
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(wrong(name, "must be text".into())),
        };
        document.id = text("id", fields.remove("id"))?
            .map(TaskId::new)
            .transpose()
            .map_err(|error| wrong("id", error.to_string()))?;
        document.queue = text("queue", fields.remove("queue"))?
            .map(QueueName::new)
            .transpose()
            .map_err(|error| wrong("queue", error.to_string()))?;
        document.once = match fields.remove("once") {
            None => false,
            Some(Value::Bool(once)) => once,
            Some(_) => return Err(wrong("once", "must be true or false".into())),
        };
        match fields.keys().next() {
            Some(name) => Err(InvalidTask::unknown("", name, &AROUND)),
            None => Ok(document),
        }
    }

    /// Checks the task and makes a submission of it, for `queue` if it names none.
    pub fn submission(self, queue: &QueueName) -> Result<Submission, SubmitError> {
        if self.once && self.id.is_none() {
            let problem = "means nothing without an id of the task's own".to_owned();
            return Err(InvalidTask { field: "once".into(), problem }.into());
        }
        let payload = serde_json::to_vec(&self.task).expect("a value is JSON");
        let queue = self.queue.unwrap_or_else(|| queue.clone());
        let submission = Submission::checked(queue, self.id, payload)?;
        Ok(Submission { once: self.once, ..submission })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop"}}"#;

    fn read(text: &str) -> Result<Vec<Document>, String> {
        let values = values(text, Syntax::Either).map_err(|error| error.to_string())?;
        flattened(values).into_iter().map(|value| Document::read(value).map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn one_many_lines_and_documents_are_all_read() {
        let count = |text: &str| read(text).unwrap().len();
        assert_eq!(count(NOOP), 1);
        assert_eq!(count(&format!("[{NOOP},{NOOP}]")), 2);
        assert_eq!(count(&format!("{NOOP}\n{NOOP}\n{NOOP}\n")), 3);
        let yaml = "workload:\n  kind: call\n  handler: noop\n";
        assert_eq!(count(yaml), 1);
        assert_eq!(count(&format!("{yaml}---\n{yaml}")), 2);
        assert_eq!(count("- workload: {kind: call, handler: noop}\n- workload: {kind: call, handler: echo}\n"), 2);
        assert_eq!(read(yaml).unwrap()[0].task, serde_json::from_str::<Value>(NOOP).unwrap());
        assert_eq!(count(""), 0);
    }

    #[test]
    fn a_syntax_that_was_named_is_the_only_one() {
        assert!(values("a: b", Syntax::Json).is_err());
        assert!(values("a: b", Syntax::Yaml).is_ok());
        assert!(values(NOOP, Syntax::Json).is_ok());
    }

    #[test]
    fn a_wrapped_task_says_more() {
        let text = format!(r#"{{"id":"a-1","queue":"q","once":true,"task":{NOOP}}}"#);
        let document = read(&text).unwrap().remove(0);
        let submission = document.submission(&"default".parse().unwrap()).unwrap();
        assert_eq!((submission.key.to_string().as_str(), submission.once), ("q.a-1", true));
        let document = read("id: 42\ntask: {workload: {kind: call, handler: noop}}").unwrap().remove(0);
        assert_eq!(document.id.unwrap().as_str(), "42");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            (format!(r#"{{"qeue":"q","task":{NOOP}}}"#), ["qeue", "`queue`"]),
            (format!(r#"{{"id":"a.b","task":{NOOP}}}"#), ["a.b", "A-Z"]),
            (format!("{{\"id\":[],\"task\":{NOOP}}}"), ["`id`", "text"]),
            (format!("{{\"once\":1,\"task\":{NOOP}}}"), ["`once`", "true or false"]),
            ("{".into(), ["not JSON", "EOF"]),
        ] {
            let error = read(&text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn what_is_no_task_is_left_to_the_tasks_own_checks() {
        let document = read("7").unwrap().remove(0);
        assert_eq!(document.task, json!(7));
        assert!(document.submission(&"q".parse().unwrap()).is_err());
    }

    #[test]
    fn once_wants_an_id() {
        let text = format!(r#"{{"once":true,"task":{NOOP}}}"#);
        let error = read(&text).unwrap().remove(0).submission(&"q".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("`once`"), "{error}");
    }
}
