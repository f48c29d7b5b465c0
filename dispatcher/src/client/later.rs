//! A call of a function as a task: durable, retried, dead-lettered.

use base64::Engine;
use schemas::{FunctionName, QueueName, TaskId};
use serde_json::{Map, Value, json};

use super::{Call, Client, ClientError, Submission, Submitted};

/// How a call becomes a task.
#[derive(Clone, Debug, Default)]
pub struct Later {
    /// The queue; default the function's pool, which has workers if anything has.
    pub queue: Option<QueueName>,
    /// Its id; default a new one.
    pub id: Option<TaskId>,
    /// Who calls, where the function has an owner.
    pub owner: Option<String>,
}

impl Client {
    /// Submits one call as a task. The function must be defined, and open to `owner`; else no attempt could go well.
    pub async fn invoke_later(&self, name: &FunctionName, call: &Call, later: Later) -> Result<Submitted, ClientError> {
        let caller = self.functions(later.owner.clone());
        let defined = caller.admitted(name).await?;
        let queue = later.queue.unwrap_or(defined.function.pool);
        let payload = serde_json::to_vec(&task(name, call, later.owner.as_deref())).expect("a JSON value is JSON");
        let mut submission = Submission::checked(queue, later.id, payload)?;
        submission
            .headers
            .extend(call.traceparent.iter().map(|t| (schemas::header::TRACEPARENT.to_owned(), t.clone())));
        Ok(self.submit(submission).await?)
    }
}

/// The task of a call. Its body arrives byte for byte: what JSON would write otherwise goes as base64.
fn task(name: &FunctionName, call: &Call, owner: Option<&str>) -> Value {
    let mut workload = Map::from_iter([("kind".into(), json!("invoke")), ("function".into(), json!(name))]);
    let kept = serde_json::from_slice::<Value>(&call.body).ok();
    let kept = kept.filter(|value| !value.is_null() && serde_json::to_vec(value).is_ok_and(|text| text == call.body));
    match kept {
        _ if call.body.is_empty() => {}
        Some(value) => drop(workload.insert("payload".into(), value)),
        None => {
            let text = base64::engine::general_purpose::STANDARD.encode(&call.body);
            workload.insert("body".into(), json!(text));
            workload.insert("content_type".into(), json!(call.content_type.as_deref().unwrap_or("application/json")));
        }
    }
    if let Some(kind) = &call.content_type {
        workload.insert("content_type".into(), json!(kind));
    }
    if let Some(owner) = owner {
        workload.insert("owner".into(), json!(owner));
    }
    json!({"workload": workload})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_arrives_byte_for_byte() {
        let name: FunctionName = "f".parse().unwrap();
        let bodies: [&[u8]; 9] =
            [b"", b"{}", br#"{"a":1}"#, br#"{ "a": 1 }"#, br#"{"b":1,"a":2}"#, b"null", b"1.0", b"1e3", b"\xff\x00"];
        for body in bodies {
            let task = task(&name, &Call::new(body.to_vec()), Some("ann"));
            let read = schemas::strict::task(&task).unwrap_or_else(|error| panic!("{error} in {task}"));
            let schemas::Workload::Invoke(invoke) = read.workload else { panic!("{task}") };
            assert_eq!(invoke.bytes().unwrap(), body, "{task}");
            assert_eq!(invoke.owner.as_deref(), Some("ann"));
        }
    }
}
