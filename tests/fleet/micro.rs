//! The fleet as NATS services, asked as `nats micro ls`, `info`, `stats` and `nats request` ask: by a plain client.

use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt;
use schemas::{AgentStatus, State};
use serde_json::{Value, json};

use crate::support::{Fleet, With, echo, eventually, noop, process};

/// Everyone's answer, as `nats micro` gathers them: on one inbox, until nothing comes any more.
async fn ask_all(fleet: &Fleet, subject: &str) -> Vec<Value> {
    let inbox = fleet.nats.new_inbox();
    let mut replies = fleet.nats.subscribe(inbox.clone()).await.expect("an inbox");
    fleet.nats.publish_with_reply(subject.to_owned(), inbox, "".into()).await.expect("published");
    let mut found = Vec::new();
    while let Ok(Some(reply)) = tokio::time::timeout(Duration::from_millis(500), replies.next()).await {
        if reply.status.is_none() {
            found.push(serde_json::from_slice(&reply.payload).expect("JSON"));
        }
    }
    found
}

/// The same until `wanted` says that it is all.
async fn ask_until(fleet: &Fleet, subject: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually(format!("answers on {subject}"), async || {
        let found = ask_all(fleet, subject).await;
        if wanted(&found) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn endpoint<'a>(service: &'a Value, name: &str) -> &'a Value {
    let endpoints = service["endpoints"].as_array().expect("endpoints");
    endpoints.iter().find(|endpoint| endpoint["name"] == name).unwrap_or_else(|| panic!("no {name} in {service}"))
}

/// What a verb answers.
async fn call(fleet: &Fleet, verb: &str, request: &Value) -> Result<Value, (String, HeaderMap)> {
    let body = if request.is_null() { String::new() } else { request.to_string() };
    let reply = fleet.nats.request(format!("shoal.api.{verb}"), body.into()).await.expect("somebody answers");
    let headers = reply.headers.unwrap_or_default();
    match headers.get("Nats-Service-Error-Code") {
        Some(code) => Err((code.as_str().to_owned(), headers)),
        None => Ok(serde_json::from_slice(&reply.payload).expect("JSON")),
    }
}

#[tokio::test]
async fn dispatchers_and_workers_are_found_as_services() {
    let fleet = Fleet::start().await;
    let (_one, _) = fleet.dispatcher(&[]).await;
    let (_two, _) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w-1").slots(3).queues("critical:6,default:3").start().await;
    let all = ask_until(&fleet, "$SRV.PING", |found| found.len() == 3).await;
    let named = |name: &str| all.iter().filter(|ping| ping["name"] == name).count();
    assert_eq!((named("shoal"), named("shoal-worker")), (2, 1));
    assert!(all.iter().all(|ping| ping["type"] == "io.nats.micro.v1.ping_response" && ping["version"].is_string()));

    let info = ask_until(&fleet, "$SRV.INFO.shoal", |found| found.len() == 2).await.remove(0);
    assert_eq!(info["metadata"]["prefix"], "shoal");
    for verb in
        ["submit", "get", "explain", "list", "cancel", "retry", "agents", "queues", "functions", "instances", "ensure"]
    {
        assert_eq!(endpoint(&info, verb)["subject"], format!("shoal.api.{verb}"));
        assert!(endpoint(&info, verb)["metadata"]["takes"].is_string());
    }
    let info = ask_until(&fleet, "$SRV.INFO.shoal-worker", |found| found.len() == 1).await.remove(0);
    let metadata = &info["metadata"];
    assert_eq!((metadata["worker"].as_str(), metadata["queues"].as_str()), (Some("w-1"), Some("critical,default")));
    assert_eq!((metadata["runtimes"].as_str(), metadata["slots"].as_str()), (Some("call,process"), Some("3")));
    assert_eq!(endpoint(&info, "drain")["subject"], "shoal.control.w-1.drain");
    let one = info["id"].as_str().expect("an id");
    assert_eq!(ask_all(&fleet, &format!("$SRV.PING.shoal-worker.{one}")).await.len(), 1);
}

#[tokio::test]
async fn a_workers_counts_are_in_the_statistics() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    for n in 0..3 {
        fleet.run(&format!("default.good-{n}"), &noop()).await;
    }
    fleet.run("default.bad", &process(&["false"]).retried(2, "10ms")).await;
    let stats = ask_until(&fleet, "$SRV.STATS.shoal-worker", |found| {
        found.len() == 1 && endpoint(&found[0], "info")["data"]["failed"] == 1
    })
    .await
    .remove(0);
    let data = &endpoint(&stats, "info")["data"];
    assert_eq!((data["started"].as_u64(), data["succeeded"].as_u64()), (Some(5), Some(3)), "{data}");
    assert_eq!((data["retried"].as_u64(), data["lost"].as_u64()), (Some(1), Some(0)), "{data}");
    assert!(data["average_ms"].as_f64().expect("a number") > 0.0, "{data}");
}

#[tokio::test]
async fn a_worker_tells_what_it_runs_now() {
    let fleet = Fleet::start().await;
    // Its beats are too rare to know of the task.
    let _worker = fleet.worker("w").env("SHOAL_HEARTBEAT", "60s").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    job.started(1).await;
    let reply = fleet.nats.request("shoal.control.w.info", "".into()).await.expect("it answers");
    let info: Value = serde_json::from_slice(&reply.payload).expect("an agent");
    assert_eq!((info["id"].as_str(), info["running"][0].as_str()), (Some("w"), Some("default.a")));
    job.open();
    fleet.ended("default.a").await;
}

#[tokio::test]
async fn a_drain_that_says_nonsense_drains_nobody() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").start().await;
    let reply = fleet.nats.request("shoal.control.w.drain", r#"{"grace":"soon"}"#.into()).await.expect("it answers");
    let headers = reply.headers.expect("an error");
    assert_eq!(headers.get("Nats-Service-Error-Code").map(|code| code.as_str()), Some("400"));
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
    assert!(worker.try_wait().is_none());
    fleet.nats.request("shoal.control.w.drain", "".into()).await.expect("it answers");
    worker.wait().await.ok();
    fleet.agent_is("w", AgentStatus::Offline).await;
}

#[tokio::test]
async fn what_http_does_is_done_over_nats_too() {
    let fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let ok = async |verb: &str, request: &Value| call(&fleet, verb, request).await.unwrap_or_else(|e| panic!("{e:?}"));
    let accepted = ok("submit", &json!({"id": "a", "task": echo("hi")})).await;
    assert_eq!((accepted["id"].as_str(), accepted["queue"].as_str()), (Some("a"), Some("default")));
    assert_eq!(ok("get", &json!({"id": "a"})).await["state"], "queued");
    let many = ok("submit", &json!([noop(), noop().with("timeot", "1s")])).await;
    assert_eq!((many[0]["queue"].as_str(), many[1]["code"].as_str()), (Some("default"), Some("invalid_task")));
    assert_eq!(ok("list", &json!({"state": "queued"})).await["tasks"].as_array().map(Vec::len), Some(2));
    assert_eq!(ok("list", &Value::Null).await["tasks"].as_array().map(Vec::len), Some(2));
    assert_eq!(ok("cancel", &json!({"id": many[0]["id"], "reason": "why not"})).await["outcome"], "cancelled");
    let _worker = fleet.worker("w").start().await;
    assert_eq!(ok("get", &json!({"id": "a", "wait": "60s"})).await["state"], "succeeded");
    let again = ok("retry", &json!({"id": "a"})).await;
    fleet.run_ended("default.a", again["sequence"].as_u64().expect("a sequence")).await;
    assert_eq!(ok("agents", &Value::Null).await[0]["id"], "w");
    assert_eq!(ok("queues", &Value::Null).await[0]["name"], "default");

    let refused = async |verb: &str, request: &Value| call(&fleet, verb, request).await.expect_err("a refusal");
    for (verb, request, status, code) in [
        ("get", json!({"id": "none"}), "404", "not_found"),
        ("get", json!({}), "400", "invalid_argument"),
        ("get", json!({"id": "a", "wiat": "1s"}), "400", "invalid_argument"),
        ("submit", json!({"workload": {"kind": "call"}}), "400", "invalid_task"),
        ("queues", json!({"x": 1}), "400", "invalid_argument"),
    ] {
        let (found, headers) = refused(verb, &request).await;
        assert_eq!(found, status, "{verb} {request}");
        assert!(!headers.get("Nats-Service-Error").expect("words").as_str().is_empty());
        let problem = headers.get("Shoal-Problem").expect("the problem").as_str();
        let problem: Value = serde_json::from_str(problem).expect("JSON");
        assert_eq!(problem["code"], code, "{verb} {request}");
    }
    let stats = ask_until(&fleet, "$SRV.STATS.shoal", |found| found.len() == 1).await.remove(0);
    let get = endpoint(&stats, "get");
    assert_eq!((get["num_requests"].as_u64(), get["num_errors"].as_u64()), (Some(5), Some(3)), "{get}");
    assert!(get["average_processing_time"].as_u64().expect("nanoseconds") > 0);
}

#[tokio::test]
async fn any_dispatcher_answers_when_another_is_gone() {
    let fleet = Fleet::start().await;
    let (mut killed, _) = fleet.dispatcher(&[]).await;
    let (_other, _) = fleet.dispatcher(&[]).await;
    for n in 0..20 {
        call(&fleet, "submit", &json!({"id": format!("a-{n}"), "task": noop()})).await.expect("stored once");
    }
    let stats = ask_until(&fleet, "$SRV.STATS.shoal", |found| found.len() == 2).await;
    let answered: u64 = stats.iter().map(|stats| endpoint(stats, "submit")["num_requests"].as_u64().unwrap_or(0)).sum();
    assert_eq!(answered, 20, "each request is answered once: {stats:?}");
    killed.kill().await;
    ask_until(&fleet, "$SRV.PING.shoal", |found| found.len() == 1).await;
    for n in 0..5 {
        call(&fleet, "get", &json!({"id": format!("a-{n}")})).await.expect("the other answers");
    }
}

#[tokio::test]
async fn services_of_two_fleets_have_names_of_their_own() {
    let fleet = Fleet::builder().prefix("other").start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    ask_until(&fleet, "$SRV.PING.other", |found| found.len() == 1).await;
    ask_until(&fleet, "$SRV.PING.other-worker", |found| found.len() == 1).await;
    assert!(ask_all(&fleet, "$SRV.PING.shoal").await.is_empty());
    fleet.nats.request("other.api.queues", "".into()).await.expect("it answers under its prefix");
}
