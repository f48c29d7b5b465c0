//! Functions that are not kept as they are defined.

use functions::Caller;
use jetstream::JetStream;
use schemas::{Function, FunctionName, Instance, Names};
use serde_json::{Value, json};

use super::{codes, examine, found, message};
use crate::support::Fleet;

async fn defined(fleet: &Fleet, min: u32) -> (Caller, FunctionName) {
    let caller = Caller::new(JetStream::new(fleet.js.client()), Names::default());
    let name: FunctionName = "f".parse().expect("a name");
    let mut function = Function::new("a:1");
    (function.min, function.max) = (min, 3);
    caller.apply(&name, function).await.expect("applied");
    (caller, name)
}

fn instance(index: u32, status: &str, fields: Value) -> Instance {
    let mut value = json!({
        "function": "f", "index": index, "status": status, "worker": "w", "boot": "b", "revision": 1, "spec": "s",
        "created_at": schemas::Timestamp::now(),
    });
    value.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    serde_json::from_value(value).expect("a record")
}

#[tokio::test]
async fn a_function_below_min_is_told_with_what_keeps_it_there() {
    let fleet = Fleet::start().await;
    let (caller, _) = defined(&fleet, 2).await;
    let finding = found(&fleet, "function_below_min", "function f", &[]).await;
    assert!(message(&finding).starts_with("0 of 2 instances"), "{finding}");
    assert!(finding["next"].as_str().expect("text").contains("`default`"), "{finding}");

    let error = json!({"error": {"code": "image_not_found", "message": "no a:1 anywhere"}, "failures": 3});
    caller.put_instance(&instance(0, "failed", error), 0).await.expect("written");
    let finding = found(&fleet, "function_below_min", "function f", &[]).await;
    assert!(message(&finding).contains("slot 0: image_not_found: no a:1 anywhere"), "{finding}");
    assert_eq!(finding["evidence"]["error"], "image_not_found");
}

#[tokio::test]
async fn an_instance_whose_worker_is_gone_is_told_and_one_whose_worker_is_there_is_not() {
    let fleet = Fleet::start().await;
    let (caller, _) = defined(&fleet, 0).await;
    let held = json!({"id": "1", "start": "abc111"});
    caller.put_instance(&instance(0, "ready", held), 0).await.expect("written");
    let finding = found(&fleet, "instance_without_worker", "instance f.0", &[]).await;
    assert_eq!(finding["evidence"]["worker"], "w");
    // The worker comes; it has no containers, but it answers.
    let _worker = fleet.worker("w").start().await;
    let report = examine(&fleet, &[]).await;
    assert!(codes(&report).iter().all(|(code, _)| *code != "instance_without_worker"), "{report}");
}
