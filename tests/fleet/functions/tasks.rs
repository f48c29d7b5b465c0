//! The workload `invoke`: a call with the life of a task.

use schemas::{Code, State};
use serde_json::{Value, json};

use super::World;

#[tokio::test]
async fn a_call_as_a_task_leaves_its_response_as_its_result() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("echo", json!({})).await;
    let task = json!({"workload": {"kind": "invoke", "function": name, "payload": {"hello": "there"}}});
    let record = world.fleet.run("default.a", &task).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let result = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
    assert_eq!(serde_json::from_slice::<Value>(&result).expect("JSON"), json!({"hello": "there"}));

    // What is no JSON travels in base64; what is large is an object.
    let body = json!({"workload": {"kind": "invoke", "function": name, "body": "aGk=", "content_type": "text/plain"}});
    let record = world.fleet.run("default.b", &body).await;
    assert_eq!(record.result.expect("a result").inline_bytes().expect("inline").expect("base64"), b"hi");
    let big = json!({"workload": {"kind": "invoke", "function": name, "payload": {"do": "big", "bytes": 2 << 20}}});
    let record = world.fleet.run("default.c", &big).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert!(matches!(record.result, Some(schemas::record::TaskResult::Object(object)) if object.bytes == 2 << 20));
}

#[tokio::test]
async fn a_call_as_a_task_is_retried_under_the_same_request_id_and_dead_lettered() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("fails", json!({})).await;
    let retry = json!({"max_attempts": 3, "backoff": {"initial": "10ms", "jitter": "none"}});
    let task = json!({"workload": {"kind": "invoke", "function": name, "payload": {"do": "fail", "status": 500}}, "retry": retry});
    let record = world.fleet.run("default.a", &task).await;
    assert_eq!((record.state, record.attempts.len()), (State::Failed, 3), "{record:?}");
    assert_eq!(record.error.expect("it says why").code, Code::FunctionFailed);
    assert_eq!(world.fleet.messages("SHOAL_DEAD", "shoal.dead.default.a").await.len(), 1);
    // A fault of the request stays one.
    let task = json!({"workload": {"kind": "invoke", "function": name, "payload": {"do": "fail", "status": 400}}, "retry": retry});
    assert_eq!(world.fleet.run("default.b", &task).await.attempts.len(), 1);

    let ids = json!({"workload": {"kind": "invoke", "function": name, "payload": {"do": "headers"}}});
    let record = world.fleet.run("default.c", &ids).await;
    let headers = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
    let headers: Value = serde_json::from_slice(&headers).expect("JSON");
    assert_eq!(headers["x-request-id"], "default.c");

    let task = json!({"workload": {"kind": "invoke", "function": "nobody"}});
    assert_eq!(world.fleet.run("default.d", &task).await.error.expect("it says why").code, Code::NotFound);
}
