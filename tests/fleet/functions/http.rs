//! Functions over HTTP, by curl alone.

use schemas::State;
use serde_json::{Value, json};

use super::{IMAGE, World};
use crate::support::{Answer, Program, curl, eventually};

/// A fleet with a dispatcher and one worker, and how its HTTP is asked.
struct Door {
    world: World,
    http: String,
    _programs: [Program; 2],
}

impl Door {
    async fn open() -> Option<Self> {
        let world = World::start().await?;
        let (dispatcher, http) = world.fleet.dispatcher(&[]).await;
        let worker = world.worker("w").await;
        Some(Self { world, http, _programs: [dispatcher, worker] })
    }

    async fn ask(&self, method: &str, path: &str, more: &[&str]) -> Answer {
        let url = format!("{}{path}", self.http);
        curl(&[&["-X", method, &url], more].concat()).await
    }

    async fn invoke(&self, name: &str, body: &Value, more: &[&str]) -> Answer {
        let body = body.to_string();
        self.ask("POST", &format!("/api/functions/{name}/invocations"), &[&["--json", &body], more].concat()).await
    }
}

#[tokio::test]
async fn a_function_is_defined_read_changed_and_deleted() {
    let Some(world) = World::start().await else { return };
    let (dispatcher, http) = world.fleet.dispatcher(&[]).await;
    let (second, other) = world.fleet.dispatcher(&[]).await;
    let _both = [dispatcher, second];
    let url = format!("{http}/api/functions/f");
    let put = async |body: Value| curl(&["-X", "PUT", "--json", &body.to_string(), &url]).await;
    let made = put(json!({"image": IMAGE, "max": 2})).await.status(201).json();
    assert_eq!((&made["name"], &made["function"]["max"]), (&json!("f"), &json!(2)));
    assert_eq!(put(json!({"image": IMAGE, "max": 2})).await.status(200).json()["revision"], made["revision"]);
    let changed = put(json!({"image": IMAGE, "max": 3})).await.status(200).json();
    assert!(changed["revision"].as_u64() > made["revision"].as_u64());
    let yaml = ["-X", "PUT", "-H", "content-type: application/yaml", "--data-binary", "image: a:1\nowner: ann", &url];
    curl(&yaml).await.status(200);
    put(json!({"image": IMAGE})).await.problem(403, "permission_denied");
    // What one dispatcher was told any other knows.
    let shown = curl(&[&format!("{other}/api/functions/f")]).await.status(200).json();
    assert_eq!((&shown["function"]["owner"], &shown["instances"]), (&json!("ann"), &json!([])));
    assert_eq!(curl(&[&format!("{other}/api/functions")]).await.status(200).json()[0]["name"], "f");

    put(json!({"image": IMAGE, "mxa": 1})).await.problem(400, "invalid_argument");
    let wrong = put(json!({"image": IMAGE, "max": 0})).await.problem(400, "invalid_argument");
    assert_eq!(wrong["field"], "max");
    curl(&["-X", "PUT", "--json", "{}", &format!("{http}/api/functions/NO")]).await.problem(400, "invalid_id");
    curl(&[&format!("{http}/api/functions/none")]).await.problem(404, "not_found");
    curl(&["-X", "DELETE", &url]).await.problem(403, "permission_denied");
    curl(&["-X", "DELETE", "-H", "X-Shoal-Owner: ann", &url]).await.status(204);
    curl(&["-X", "DELETE", &url]).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_call_is_answered_as_the_function_answers_with_ids_passed_on() {
    let Some(door) = Door::open().await else { return };
    door.world.define("f", json!({})).await;
    let answer = door.invoke("f", &json!({"hello": "there"}), &["-H", "X-Request-Id: order-42"]).await.status(200);
    assert_eq!(answer.json(), json!({"hello": "there"}));
    assert_eq!(answer.headers["x-shoal-request-id"], "order-42");
    assert_eq!(answer.headers["x-shoal-worker"], door.world.engine.id("w"));
    assert!(answer.headers["content-type"].starts_with("application/json"));
    let start = answer.headers["x-shoal-instance"].clone();
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = door.invoke("f", &json!({"do": "headers"}), &["-H", "X-Request-Id: r-2", "-H", trace]).await.json();
    assert_eq!((&headers["x-request-id"], &headers["lambda-runtime-aws-request-id"]), (&json!("r-2"), &json!("r-2")));
    assert!(trace.ends_with(headers["traceparent"].as_str().expect("passed on")));

    // What the function says is its own, whatever its status.
    let failed = door.invoke("f", &json!({"do": "fail", "status": 503}), &[]).await.status(503);
    assert_eq!(
        (&failed.headers["x-shoal-instance"], failed.headers["x-shoal-function-error"].as_str()),
        (&start, "status")
    );
    let threw = door.invoke("f", &json!({"do": "error"}), &[]).await.status(200);
    assert_eq!(threw.headers["x-shoal-function-error"], "Unhandled");
    door.invoke("f", &json!({"do": "log", "text": "written"}), &[]).await.status(200);
    eventually("what it wrote in its log", async || match door.ask("GET", "/api/tasks/_functions.f/logs", &[]).await {
        logs if logs.status == 200 && logs.text().contains("written") => Ok(()),
        logs => Err(format!("{logs:?}")),
    })
    .await;
    let big = door.invoke("f", &json!({"do": "big", "bytes": 3 << 20}), &[]).await.status(200);
    assert_eq!(big.body.len(), 3 << 20);
}

#[tokio::test]
async fn what_keeps_a_call_from_being_answered_is_a_problem() {
    let Some(door) = Door::open().await else { return };
    door.world.define("f", json!({"response_limit": "1Ki", "request_timeout": "300ms"})).await;
    door.world.define("late", json!({"pool": "nobody"})).await;
    door.world.define("missing", json!({"image": "shoal-test/no-such-image:1", "pull": "never"})).await;
    door.world.define("anns", json!({"owner": "ann"})).await;
    door.invoke("none", &json!({}), &[]).await.problem(404, "not_found");
    door.invoke("anns", &json!({}), &[]).await.problem(403, "permission_denied");
    door.invoke("anns", &json!({}), &["-H", "X-Shoal-Owner: ann"]).await.status(200);
    let late = door.ask("POST", "/api/functions/late/invocations?timeout=200ms", &["-d", "{}"]).await;
    assert!(late.headers.contains_key("retry-after"), "{late:?}");
    assert!(late.problem(503, "no_instance")["hint"].is_string());
    door.ask("POST", "/api/functions/late/ensure?timeout=200ms", &[]).await.problem(503, "no_instance");
    door.invoke("missing", &json!({}), &[]).await.problem(502, "image_not_found");
    door.invoke("f", &json!({"do": "big", "bytes": 2_000}), &[]).await.problem(502, "response_too_large");
    door.invoke("f", &json!({"do": "sleep", "ms": 5_000}), &[]).await.problem(504, "timed_out");
    door.invoke("f", &json!({"do": "close"}), &[]).await.problem(502, "response_lost");
    let file = door.world.fleet.folder().join("large");
    std::fs::write(&file, vec![b'x'; 2 << 20]).expect("writable");
    let body = format!("@{}", file.display());
    let path = "/api/functions/f/invocations";
    door.ask("POST", path, &["--data-binary", &body]).await.problem(413, "too_large");
    door.invoke("f", &json!({}), &["-H", "X-Shoal-Invocation: maybe"]).await.problem(400, "invalid_argument");
    door.ask("POST", "/api/functions/f/ensure?timeout=2h", &[]).await.problem(400, "invalid_argument");
    door.ask("POST", "/api/functions/f/ensure?tmeout=2s", &[]).await.problem(400, "invalid_argument");
}

#[tokio::test]
async fn an_event_becomes_a_task() {
    let Some(door) = Door::open().await else { return };
    door.world.define("f", json!({})).await;
    let url = "/api/functions/f/invocations?id=order-42";
    let event = ["-H", "X-Shoal-Invocation: event", "--json", "{\"b\":2,\"a\":1}"];
    let accepted = door.ask("POST", url, &event).await.status(202);
    assert_eq!(accepted.headers["location"], "/api/tasks/default.order-42");
    assert_eq!(accepted.json()["id"], "order-42");
    let record = door.world.fleet.ended("default.order-42").await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let result = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
    assert_eq!(result, b"{\"b\":2,\"a\":1}", "byte for byte");
    door.ask("POST", "/api/functions/none/invocations", &event).await.problem(404, "not_found");
}

#[tokio::test]
async fn an_instance_is_held_by_touching_it_and_goes_when_it_is_let_go() {
    let Some(door) = Door::open().await else { return };
    let name = door.world.define("f", json!({"idle_timeout": "2s"})).await;
    let held = door.ask("POST", "/api/functions/f/acquire", &[]).await.status(200).json();
    let start = held["instance"]["start"].as_str().expect("a start").to_owned();
    assert!(held["instance"]["ip_address"].is_string() && held["expires_at"].is_string(), "{held}");
    // Touched until its record has been used for longer than it may be idle.
    eventually("used for longer than it may idle", async || {
        let again = door.ask("POST", &format!("/api/instances/{start}/touch"), &[]).await.status(200).json();
        assert_eq!(again["instance"]["start"], start.as_str());
        let record = door.world.records(&name).await.pop().expect("a record");
        match record.last_used {
            Some(used) if used.since(record.created_at) > std::time::Duration::from_secs(4) => Ok(()),
            used => Err(format!("{used:?}")),
        }
    })
    .await;
    // Let go of.
    door.world.no_container(&name).await;
    door.world.records_where(&name, "no record", |it| it.is_empty()).await;
    door.ask("POST", &format!("/api/instances/{start}/touch"), &[]).await.problem(404, "not_found");

    // Evicted: gone at once.
    let held = door.ask("POST", "/api/functions/f/acquire", &[]).await.status(200).json();
    let id = held["instance"]["id"].as_str().expect("an id");
    let gone = door.ask("DELETE", &format!("/api/instances/{id}"), &[]).await.status(200).json();
    assert_eq!(gone[0]["id"], id);
    assert!(door.world.containers(&name).await.is_empty());
    assert_eq!(door.ask("DELETE", &format!("/api/instances/{id}"), &[]).await.status(200).json(), json!([]));
}

#[tokio::test]
async fn instances_are_listed_and_removed_by_their_function_over_http_and_nats() {
    let Some(door) = Door::open().await else { return };
    let name = door.world.define("f", json!({})).await;
    let ensured = door.ask("POST", "/api/functions/f/ensure", &[]).await.status(200).json();
    let listed = door.ask("GET", "/api/instances?function=f", &[]).await.status(200).json();
    assert_eq!(listed, json!([ensured]));
    assert_eq!(door.ask("GET", "/api/instances?function=g", &[]).await.status(200).json(), json!([]));
    let nats = &door.world.fleet.nats;
    let ask = async |verb: &str, body: Value| {
        let reply = nats.request(format!("shoal.api.{verb}"), body.to_string().into()).await.expect("answered");
        serde_json::from_slice::<Value>(&reply.payload).expect("JSON")
    };
    assert_eq!(ask("instances", json!({"function": "f"})).await, listed);
    assert_eq!(ask("functions", json!({})).await[0]["name"], "f");
    assert_eq!(ask("ensure", json!({"name": "f", "timeout": "30s"})).await["start"], ensured["start"]);

    let gone = door.ask("DELETE", "/api/functions/f/instances", &[]).await.status(200).json();
    assert_eq!(gone[0]["start"], ensured["start"]);
    eventually("no container", async || match door.world.containers(&name).await {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
}
