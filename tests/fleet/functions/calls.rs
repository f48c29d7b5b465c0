//! Calls: what goes in, what comes out, and what is said where nothing does.

use std::time::Duration;

use functions::Call;
use futures_util::future::join_all;
use schemas::{Code, InstanceStatus};
use serde_json::{Value, json};

use super::{PATIENCE, World, code};

#[tokio::test]
async fn a_cold_call_makes_an_instance_and_the_next_ones_find_it_warm() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("echo", json!({})).await;
    let response = world.call(&name, json!({"hello": "there"})).await.expect("answered");
    assert_eq!((response.status, response.function_error), (200, None));
    assert_eq!(serde_json::from_slice::<Value>(&response.body).expect("JSON"), json!({"hello": "there"}));
    assert_eq!(response.worker.expect("named").as_str(), world.engine.id("w"));
    let counts = join_all((0..20).map(|_| world.answer(&name, json!({"do": "count"})))).await;
    assert!(counts.iter().all(|count| count["hostname"] == counts[0]["hostname"]), "{counts:?}");
    assert_eq!(world.containers(&name).await.len(), 1);
}

#[tokio::test]
async fn request_id_and_trace_context_reach_the_container() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("headers", json!({"path": "/invoke"})).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let call = Call {
        request_id: Some("order-42".into()),
        traceparent: Some(trace.into()),
        content_type: Some("application/json; charset=utf-8".into()),
        ..Call::new(json!({"do": "headers"}).to_string())
    };
    let response = world.caller.invoke(&name, &call).await.expect("answered");
    assert_eq!(response.request_id, "order-42");
    let headers: Value = serde_json::from_slice(&response.body).expect("JSON");
    assert_eq!(headers["x-request-id"], "order-42");
    assert_eq!(headers["lambda-runtime-aws-request-id"], "order-42");
    assert_eq!(headers["traceparent"], trace);
    assert_eq!(headers["content-type"], "application/json; charset=utf-8");
}

#[tokio::test]
async fn what_the_function_says_of_itself_is_its_own_and_passes_as_it_is() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("fails", json!({})).await;
    // More often than any circuit would stand, if these were faults of the platform.
    for _ in 0..12 {
        let failed = world.call(&name, json!({"do": "fail", "status": 503})).await.expect("an answer");
        assert_eq!((failed.status, failed.function_error.as_deref()), (503, Some("status")));
        let threw = world.call(&name, json!({"do": "error"})).await.expect("an answer");
        assert_eq!((threw.status, threw.function_error.as_deref()), (200, Some("Unhandled")));
    }
    assert_eq!(world.answer(&name, json!({"still": "here"})).await, json!({"still": "here"}));
}

#[tokio::test]
async fn a_response_up_to_the_limit_is_whole_and_one_byte_more_is_refused_with_both_sizes() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("big", json!({})).await;
    let cap = 10 << 20;
    // Above the server's payload limit it travels as an object, which is gone once it was fetched.
    for bytes in [0, 1 << 10, 1 << 20, cap] {
        let response = world.call(&name, json!({"do": "big", "bytes": bytes})).await.expect("answered");
        assert_eq!(response.body.len(), bytes);
    }
    match world.call(&name, json!({"do": "big", "bytes": cap + 1})).await {
        Err(functions::CallError::Failed(error)) => {
            assert_eq!(error.code, Code::ResponseTooLarge);
            for size in [cap, cap + 1] {
                assert!(error.message.contains(&size.to_string()), "{}", error.message);
            }
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.answer(&name, json!({"still": "here"})).await, json!({"still": "here"}));
    let left = world.fleet.messages("OBJ_shoal_artifacts", "$O.shoal_artifacts.C.>").await;
    assert!(left.is_empty(), "{} chunks of responses are left", left.len());
}

#[tokio::test]
async fn a_request_too_large_for_a_message_is_refused_before_it_is_sent() {
    let Some(world) = World::start().await else { return };
    let name = world.define("large", json!({})).await;
    let body = vec![b'x'; 2 << 20];
    assert_eq!(code(world.caller.invoke(&name, &Call::new(body)).await), Code::TooLarge);
}

#[tokio::test]
async fn a_call_that_takes_too_long_ends_with_its_limit() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("slow", json!({"request_timeout": "500ms"})).await;
    assert_eq!(code(world.call(&name, json!({"do": "sleep", "ms": 30_000})).await), Code::TimedOut);
}

#[tokio::test]
async fn a_container_that_dies_under_a_call_is_told_and_the_call_is_not_made_again() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("crash", json!({})).await;
    world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    assert_eq!(code(world.call(&name, json!({"do": "crash"})).await), Code::InstanceExited);
    // A new one, that was never called: nothing was sent to it.
    let count = world.answer(&name, json!({"do": "count"})).await;
    assert_eq!(count["count"], 1, "{count}");
}

#[tokio::test]
async fn a_lost_response_is_asked_for_again_only_of_an_idempotent_function() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    for (once, what) in [("close", "close"), ("half", "half")] {
        let name = world.define(once, json!({})).await;
        assert_eq!(code(world.call(&name, json!({"do": what})).await), Code::ResponseLost);
        assert_eq!(world.answer(&name, json!({"do": "count"})).await["count"], 2, "{what}: sent once");
    }
    let name = world.define("again", json!({"idempotent": true})).await;
    assert_eq!(code(world.call(&name, json!({"do": "close"})).await), Code::ResponseLost);
    assert_eq!(world.answer(&name, json!({"do": "count"})).await["count"], 3, "sent twice, and this one");
}

#[tokio::test]
async fn faults_of_the_platform_open_the_circuit_and_one_good_call_closes_it() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("broken", json!({})).await;
    for _ in 0..5 {
        assert_eq!(code(world.call(&name, json!({"do": "close"})).await), Code::ResponseLost);
    }
    assert_eq!(code(world.call(&name, json!({"do": "count"})).await), Code::CircuitOpen);
    // Refused calls are not sent; once the pause is over, one is let through and decides.
    let mut refused = 1;
    let answered = loop {
        match world.call(&name, json!({"do": "count"})).await {
            Ok(response) => break serde_json::from_slice::<Value>(&response.body).expect("JSON"),
            Err(error) => {
                assert_eq!(error.to_task_error().code, Code::CircuitOpen);
                refused += 1;
                assert!(refused < 1000, "it stays open");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    assert_eq!(answered["count"], 6, "five that closed it, and this one");
    assert_eq!(world.answer(&name, json!({"do": "count"})).await["count"], 7);
}

#[tokio::test]
async fn an_idle_instance_is_paused_and_goes_on_with_the_next_call() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("naps", json!({"pause_after": "500ms"})).await;
    let before = world.answer(&name, json!({"do": "count"})).await;
    world.records_where(&name, "paused", |all| all.iter().all(|it| it.status == InstanceStatus::Paused)).await;
    assert_eq!(world.containers(&name).await[0]["State"], "paused");
    let after = world.answer(&name, json!({"do": "count"})).await;
    assert_eq!((&after["hostname"], &after["count"]), (&before["hostname"], &json!(2)));
}
