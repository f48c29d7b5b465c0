//! The commands, as a person types them.

use schemas::InstanceStatus;
use serde_json::{Value, json};

use super::{IMAGE, World};
use crate::support::{Output, eventually};

/// A person at a fleet with one worker.
async fn world() -> Option<(World, crate::support::Program)> {
    let world = World::start().await?;
    let worker = world.worker("w").await;
    Some((world, worker))
}

impl World {
    async fn shoal(&self, args: &[&str]) -> Output {
        self.fleet.shoal(args).await
    }

    /// The JSON that a command prints.
    #[track_caller]
    fn json<'a>(&'a self, args: &'a [&'a str]) -> impl Future<Output = Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let output = self.shoal(&[args, &["-o", "json"]].concat()).await;
            assert_eq!(output.code, 0, "{caller}: {args:?}: {}", output.stderr);
            serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{caller}: {error}: {}", output.stdout))
        }
    }
}

#[tokio::test]
async fn a_function_is_applied_by_flags_and_by_file_shown_and_deleted() {
    // Definitions need no worker.
    let Some(world) = World::start().await else { return };
    let by_flags =
        ["function", "apply", "f", "--image", IMAGE, "--max", "3", "--env", "A=b", "--health-path", "/health"];
    let applied = world.json(&by_flags).await;
    assert_eq!((&applied[0]["changed"], &applied[0]["function"]["max"]), (&json!(true), &json!(3)));
    let again = world.shoal(&by_flags).await;
    assert!(again.stdout.contains("already"), "{}", again.stdout);
    let file = format!("name: f\nimage: {IMAGE}\nmax: 4\n---\nname: g\nimage: {IMAGE}\nowner: ann\n");
    let output = world.fleet.shoal_with_input(&["function", "apply", "-"], &file).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stdout.lines().count(), 2);
    let listed = world.json(&["function", "list"]).await;
    assert_eq!((listed[0]["name"].as_str(), listed[1]["name"].as_str()), (Some("f"), Some("g")));
    let shown = world.json(&["function", "show", "f"]).await;
    assert_eq!((&shown["function"]["max"], &shown["instances"]), (&json!(4), &json!([])));
    assert!(world.shoal(&["function", "show", "f"]).await.stdout.contains("max: 4"));

    for (args, code, words) in [
        (vec!["function", "apply", "f"], 2, "--image"),
        (vec!["function", "apply", "F!", "--image", "a"], 2, "function name"),
        (vec!["function", "apply", "f", "--image", "a", "--max", "0"], 2, "`max`"),
        (vec!["function", "show", "none"], 1, "shoal function list"),
        (vec!["function", "delete", "g"], 1, "--owner"),
        (vec!["instances", "none"], 1, "not_found"),
    ] {
        let output = world.shoal(&args).await;
        assert_eq!(output.code, code, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(words) && output.stderr.contains("try:"), "{args:?}: {}", output.stderr);
    }
    for (body, words) in [
        ("{\"image\":\"a\"}", "no `name`"),
        ("{\"name\":\"f\",\"image\":\"a\",\"mxa\":2}", "did you mean `max`"),
        ("", "no function in it"),
    ] {
        let output = world.fleet.shoal_with_input(&["function", "apply", "-"], &format!("{body} ")).await;
        assert_eq!(output.code, 2, "{body}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{body}: {}", output.stderr);
    }
    assert_eq!(world.shoal(&["function", "delete", "g", "--owner", "ann"]).await.code, 0);
    let deleted = world.json(&["function", "delete", "f", "g"]).await;
    assert_eq!((&deleted[0]["deleted"], &deleted[1]["deleted"]), (&json!(true), &json!(false)));
}

#[tokio::test]
async fn ensure_prints_where_it_is_and_destroy_removes_it() {
    let Some((world, _worker)) = world().await else { return };
    let name = world.define("where", json!({})).await;
    let ensured = world.json(&["ensure", "where"]).await;
    for field in ["id", "name", "ip_address", "port", "worker", "revision", "start"] {
        assert!(!ensured[field].is_null(), "{field} in {ensured}");
    }
    let text = world.shoal(&["ensure", "where"]).await.stdout;
    for word in ["ip_address:", "port:", "worker:", "revision:", ensured["id"].as_str().unwrap()] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let listed = world.json(&["instances", "where"]).await;
    assert_eq!((listed[0]["start"].as_str(), listed[0]["status"].as_str()), (ensured["start"].as_str(), Some("ready")));
    assert!(world.shoal(&["instances"]).await.stdout.contains(ensured["start"].as_str().unwrap()));

    // By the beginning of its id, then by the name of the function, then there is none.
    let short = &ensured["id"].as_str().unwrap()[..12];
    assert_eq!(world.json(&["destroy", short]).await[0]["id"], ensured["id"]);
    world.no_container(&name).await;
    world.json(&["ensure", "where"]).await;
    assert_eq!(world.json(&["destroy", "where"]).await.as_array().unwrap().len(), 1);
    world.no_container(&name).await;
    for target in ["where", short] {
        let nothing = world.shoal(&["destroy", target]).await;
        assert_eq!((nothing.code, nothing.stdout.as_str()), (0, ""), "{}", nothing.stderr);
    }
}

#[tokio::test]
async fn invoke_prints_the_response_as_it_came() {
    let Some((world, _worker)) = world().await else { return };
    world.define("f", json!({})).await;
    let output = world.shoal(&["invoke", "f", "{\"a\": 1}"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "{\"a\": 1}"), "{}", output.stderr);
    let output = world.fleet.shoal_with_input(&["invoke", "f", "-"], "{\"from\":\"stdin\"}").await;
    assert_eq!(output.stdout, "{\"from\":\"stdin\"}");
    let file = world.fleet.folder().join("payload.json");
    std::fs::write(&file, "{\"from\":\"file\"}").unwrap();
    let output = world.shoal(&["invoke", "f", "--file", file.to_str().unwrap()]).await;
    assert_eq!(output.stdout, "{\"from\":\"file\"}");
    let told = world.json(&["invoke", "f", "{\"do\":\"count\"}"]).await;
    assert_eq!((&told["status"], &told["body"]["count"]), (&json!(200), &json!(4)));
    assert_eq!(told["worker"], world.engine.id("w"));

    assert_eq!(world.shoal(&["invoke", "f", "{\"do\":\"log\",\"text\":\"written\"}"]).await.code, 0);
    eventually("what it wrote in its log", async || match world.shoal(&["logs", "_functions.f"]).await {
        logs if logs.code == 0 && logs.stdout.contains("written") => Ok(()),
        logs => Err(format!("{logs:?}")),
    })
    .await;

    let none = world.shoal(&["logs", "_functions.none"]).await;
    assert!(none.code == 1 && none.stderr.contains("shoal function list"), "{none:?}");

    let failed = world.shoal(&["invoke", "f", "{\"do\":\"fail\",\"status\":503}"]).await;
    assert_eq!(failed.code, 1);
    assert!(failed.stderr.contains("function_failed") && failed.stderr.contains("503"), "{}", failed.stderr);
    let threw = world.shoal(&["invoke", "f", "{\"do\":\"error\"}"]).await;
    assert_eq!(threw.code, 1);
    assert!(threw.stdout.contains("errorMessage") && threw.stderr.contains("shoal logs _functions.f"), "{threw:?}");
}

#[tokio::test]
async fn what_keeps_a_call_from_being_answered_is_told_with_its_code_and_the_next_step() {
    let Some((world, _worker)) = world().await else { return };
    world.define("late", json!({"acquire_timeout": "1s", "pool": "nobody"})).await;
    world.define("missing", json!({"image": "shoal-test/no-such-image:1", "pull": "never"})).await;
    world.define("anns", json!({"owner": "ann"})).await;
    world.define("slow", json!({"request_timeout": "300ms"})).await;
    for (args, code, word) in [
        (vec!["invoke", "late"], 124, "no_instance"),
        (vec!["ensure", "late", "--timeout", "100ms"], 124, "no_instance"),
        (vec!["invoke", "missing"], 125, "image_not_found"),
        (vec!["invoke", "anns"], 1, "permission_denied"),
        (vec!["invoke", "slow", "{\"do\":\"sleep\",\"ms\":5000}"], 124, "timed_out"),
        (vec!["invoke", "slow", "{\"do\":\"close\"}"], 1, "response_lost"),
        (vec!["invoke", "nobody-defined"], 1, "not_found"),
    ] {
        let output = world.shoal(&args).await;
        assert_eq!((output.code, output.stdout.as_str()), (code, ""), "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(word) && output.stderr.contains("try:"), "{args:?}: {}", output.stderr);
    }
    assert_eq!(world.shoal(&["invoke", "anns", "{}", "--owner", "ann"]).await.stdout, "{}");
}

#[tokio::test]
async fn an_asynchronous_call_is_a_task_with_the_response_as_its_result() {
    let Some((world, _worker)) = world().await else { return };
    world.define("f", json!({})).await;
    let key = world.shoal(&["invoke", "f", "--async", "{\"b\":2,\"a\":1}"]).await.stdout;
    let waited = world.shoal(&["wait", key.trim(), "--timeout", "60s"]).await;
    assert_eq!(waited.code, 0, "{key}: {}", waited.stderr);
    let result = world.shoal(&["get", key.trim(), "--result"]).await;
    assert_eq!(result.stdout, "{\"b\":2,\"a\":1}", "byte for byte");
    let accepted =
        world.json(&["invoke", "f", "--async", "--id", "order-42", "{\"do\":\"fail\",\"status\":400}"]).await;
    assert_eq!(accepted["id"], "order-42");
    assert_eq!(world.shoal(&["wait", "order-42", "--timeout", "60s"]).await.code, 1);
    assert_eq!(world.shoal(&["invoke", "none", "--async"]).await.code, 1, "nobody could ever carry it out");
}

#[tokio::test]
async fn containers_are_listed_measured_halted_and_go_on_with_the_next_call() {
    let Some((world, _worker)) = world().await else { return };
    let name = world.define("f", json!({})).await;
    let ensured = world.json(&["ensure", "f"]).await;
    let id = ensured["id"].as_str().unwrap();
    let listed = world.json(&["containers", "list"]).await;
    let fields = ["id", "start", "ip_address", "name"];
    assert!(fields.iter().all(|field| listed[0][field] == ensured[field]), "{listed} {ensured}");
    assert_eq!((&listed[0]["status"], &listed[0]["function"]), (&json!("running"), &json!("f")));
    let measured = world.json(&["containers", "stats"]).await;
    assert!(measured[0]["usage"]["cpu_ms"].is_u64(), "{measured}");

    assert_eq!(world.json(&["containers", "pause", &id[..12]]).await[0]["status"], "paused");
    world.records_where(&name, "a paused record", |it| it[0].status == InstanceStatus::Paused).await;
    assert_eq!(world.json(&["containers", "resume", id]).await[0]["status"], "running");
    world.records_where(&name, "a ready record", |it| it[0].status == InstanceStatus::Ready).await;
    assert_eq!(world.shoal(&["containers", "pause", ensured["start"].as_str().unwrap()]).await.code, 0);
    assert_eq!(world.shoal(&["invoke", "f", "{}"]).await.stdout, "{}");
    eventually("running again", async || match &world.json(&["containers", "list"]).await[0]["status"] {
        status if status == "running" => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
    let none = world.shoal(&["containers", "pause", "nothing-like-it"]).await;
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("shoal containers list"), "{}", none.stderr);
}

#[tokio::test]
async fn a_plain_request_over_nats_calls_what_is_warm_and_has_no_responders_where_nothing_is() {
    let Some((world, _worker)) = world().await else { return };
    let name = world.define("f", json!({})).await;
    let nats = &world.fleet.nats;
    assert!(nats.request("shoal.invoke.f", "{}".into()).await.is_err(), "cold");
    world.caller.ensure(&name, Some(super::PATIENCE)).await.expect("an instance");
    let reply = nats.request("shoal.invoke.f", "{\"a\":1}".into()).await.expect("warm");
    assert_eq!(reply.payload.as_ref(), b"{\"a\":1}");
    let headers = reply.headers.expect("headers");
    assert_eq!(headers.get("Shoal-Status").map(|it| it.as_str()), Some("200"));
    assert_eq!(headers.get("Shoal-Worker").map(|it| it.as_str()), Some(world.engine.id("w").as_str()));
    // And the record is a plain entry.
    let (_, record) = world.fleet.get("shoal_instances", "f.0").await.expect("readable").expect("an entry");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    assert_eq!(record["status"], "ready");
    assert!(world.fleet.get("shoal_functions", "f").await.expect("readable").is_some());
}
