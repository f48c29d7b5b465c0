//! The door that AWS Lambda's SDKs know, tried with Amazon's own.

use std::path::Path;
use std::process::{Command, Stdio};

use schemas::State;
use serde_json::{Value, json};

use super::World;
use crate::support::{Program, curl};

#[tokio::test]
async fn amazons_sdk_calls_a_function_by_another_endpoint_and_nothing_else() {
    let Some(world) = World::start().await else { return };
    let (_dispatcher, http) = world.fleet.dispatcher(&[("SHOAL_HTTP_TOKEN", "se/cret+token")]).await;
    let _worker = world.worker("w").await;
    world.define("f", json!({})).await;
    world.define("late", json!({"acquire_timeout": "200ms", "pool": "nobody"})).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".tools/venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `scripts/setup tests`", python.display());
    let mut command = Command::new(python);
    command.arg(root.join("tests/python/lambda_client.py")).args([http.as_str(), "se/cret+token", "f"]);
    command.env("NO_PROXY", "*").env("AWS_EC2_METADATA_DISABLED", "true");
    let said = Program::spawn("python", world.fleet.folder(), command, Stdio::null()).wait().await.ok().json();

    for (call, body) in
        [("echo", json!({"hello": "boto"})), ("arn", json!({"by": "arn"})), ("latest", json!({"by": "version"}))]
    {
        let told = &said[call];
        assert_eq!((&told["status"], &told["error"], &told["version"]), (&json!(200), &Value::Null, &json!("$LATEST")));
        assert_eq!(told["body"], body);
        assert!(told["request_id"].is_string(), "{told}");
    }
    for call in ["threw", "failed", "lost"] {
        assert_eq!((&said[call]["status"], &said[call]["error"]), (&json!(200), &json!("Unhandled")), "{}", said[call]);
    }
    assert!(said["threw"]["body"]["errorMessage"].is_string(), "{}", said["threw"]);
    assert_eq!(said["lost"]["body"]["errorType"], "response_lost");
    // Echo three times, error, fail, close, this one; the event may have come before.
    let count = said["count"]["body"]["count"].as_u64().expect("a count");
    assert!((7..=8).contains(&count), "{count} calls: the one that was cut off was sent once");
    assert_eq!((&said["event"]["status"], &said["dry"]["status"]), (&json!(202), &json!(204)));
    let key = said["event"]["request_id"].as_str().expect("the task's key");
    assert_eq!(world.fleet.ended(key).await.state, State::Succeeded);

    for (call, kind, status) in [
        ("none", "ResourceNotFoundException", 404),
        ("version", "ResourceNotFoundException", 404),
        ("late", "TooManyRequestsException", 429),
        ("large", "RequestTooLargeException", 413),
        ("upper", "InvalidParameterValueException", 400),
    ] {
        let told = &said[call];
        assert_eq!((&told["type"], &told["status"]), (&json!(kind), &json!(status)), "{told}");
        assert!(!told["message"].as_str().expect("a message").is_empty());
    }
    assert_eq!(said["stranger"]["code"], "AccessDeniedException");
}

#[tokio::test]
async fn what_is_no_invocation_is_refused_as_lambda_refuses_it() {
    let Some(world) = World::start().await else { return };
    let (_dispatcher, http) = world.fleet.dispatcher(&[]).await;
    world.define("f", json!({"owner": "ann"})).await;
    let invoke = format!("{http}/2015-03-31/functions/f/invocations");
    let owned = curl(&["-d", "{}", &invoke]).await.status(403);
    assert_eq!(owned.headers["x-amzn-errortype"], "AccessDeniedException");
    let kind = curl(&["-d", "{}", "-H", "X-Amz-Invocation-Type: Sometimes", &invoke]).await.status(400);
    assert_eq!(kind.headers["x-amzn-errortype"], "InvalidParameterValueException");
    assert!(kind.json()["Message"].as_str().expect("a message").contains("RequestResponse"));
    let anns = ["-H", "X-Shoal-Owner: ann", "-H", "X-Amz-Invocation-Type: DryRun"];
    curl(&[&anns[..], &["-d", "{}", &invoke]].concat()).await.status(204);
}
