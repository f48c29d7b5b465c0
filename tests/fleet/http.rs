//! HTTP from outside: the `curl` program against real dispatchers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use schemas::{AgentKind, AgentStatus, State};
use serde_json::{Value, json};

use crate::support::{
    Answer, Event, Fleet, Program, With, curl, curl_stream, echo, events, eventually, http_get, noop, process, shell,
};

/// Waits until a stream has so many events, and returns them.
async fn events_of(reader: &Program, n: usize) -> Vec<Event> {
    eventually(format!("{n} events"), async || {
        let seen = events(&reader.stdout());
        if seen.len() >= n { Ok(seen) } else { Err(format!("{seen:?} {}", reader.stderr())) }
    })
    .await
}

fn states(events: &[Event]) -> Vec<&str> {
    let tasks = events.iter().filter(|event| event.name == "task");
    tasks.map(|event| event.data["state"].as_str().expect("a state")).collect()
}

fn log_text(events: &[Event]) -> String {
    let pieces = events.iter().filter(|event| event.name == "log");
    pieces.map(|event| event.data["text"].as_str().expect("text")).collect()
}

async fn submit(http: &str, query: &str, body: &Value) -> Answer {
    curl(&["--json", &body.to_string(), &format!("{http}/api/tasks{query}")]).await
}

#[tokio::test]
async fn a_task_is_submitted_followed_and_read_by_curl_alone() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let job = fleet.job();
    let task = job.gated("echo begun; mkdir out; echo art > out/a.txt; printf done > $SHOAL_RESULT_FILE");
    let task = task.with("artifacts", json!(["out/**"]));
    let accepted = submit(&http, "?id=order-42", &task).await.status(201);
    assert_eq!(accepted.headers["location"], "/api/tasks/default.order-42");
    let accepted = accepted.json();
    assert_eq!((accepted["id"].as_str(), accepted["queue"].as_str()), (Some("order-42"), Some("default")));

    let reader = curl_stream(fleet.folder(), &[&format!("{http}/api/tasks/order-42/events")]);
    assert_eq!(states(&events_of(&reader, 1).await), ["queued"], "who comes early hears at once that it waits");
    let _worker = fleet.worker("w").start().await;
    assert_eq!(states(&events_of(&reader, 2).await), ["queued", "running"]);
    job.open();
    let seen = events_of(&reader, 4).await;
    assert_eq!(states(&seen), ["queued", "running", "succeeded"]);
    assert_eq!((seen[3].name.as_str(), seen[3].id), ("end", seen[2].id));
    let (revision, record) = fleet.try_record("default.order-42").await.expect("readable").expect("a record");
    assert_eq!(seen[2].id, Some(revision), "an event's id is the record's revision");
    assert_eq!(accepted["sequence"].as_u64(), Some(record.sequence));

    let get = async |path: &str| curl(&[&format!("{http}/api/tasks/order-42{path}")]).await.status(200);
    assert_eq!(get("").await.json()["state"], "succeeded");
    assert_eq!(get("/result").await.text(), "done");
    assert_eq!(get("/logs").await.text(), "begun\n");
    assert_eq!(get("/artifacts").await.json()["artifacts"][0]["path"], "out/a.txt");
    let artifact = get("/artifacts/out/a.txt").await;
    assert_eq!((artifact.text().as_str(), artifact.headers["content-length"].as_str()), ("art\n", "4"));
}

#[tokio::test]
async fn a_batch_of_a_thousand_is_one_post() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let tasks: Vec<Value> = (0..1_000).map(|n| json!({"id": format!("t-{n}"), "task": noop()})).collect();
    let file = fleet.folder().join("batch.json");
    std::fs::write(&file, Value::from(tasks).to_string()).expect("a file");
    let began = Instant::now();
    let accepted = curl(&["--json", &format!("@{}", file.display()), &format!("{http}/api/tasks")]).await.status(201);
    let took = began.elapsed();
    let accepted = accepted.json();
    let sequences: BTreeSet<u64> =
        accepted.as_array().expect("a list").iter().map(|item| item["sequence"].as_u64().expect("stored")).collect();
    assert_eq!(sequences.len(), 1_000);
    assert_eq!(accepted[999]["id"], "t-999", "answers are in the order of the tasks");
    // One after the other they would take longer than this on any machine that runs these tests at the same time.
    assert!(took < Duration::from_secs(5), "{took:?}");
    let _worker = fleet.worker("w").slots(64).start().await;
    fleet.drained().await;
    assert_eq!(fleet.ended("default.t-999").await.state, State::Succeeded);
}

#[tokio::test]
async fn one_bad_task_of_many_harms_no_other() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    fleet.publish("default.taken", &noop()).await;
    let tasks = json!([
        {"id": "good", "task": noop()},
        noop().with("timeot", "1s"),
        {"id": "taken", "task": noop()},
        {"id": "no.id", "task": noop()},
        {"id": "other", "queue": "reports", "task": noop()},
    ]);
    let answers = submit(&http, "", &tasks).await.status(207).json();
    let codes: Vec<Option<&str>> = (0..5).map(|n| answers[n]["code"].as_str()).collect();
    assert_eq!(codes, [None, Some("invalid_task"), Some("locked"), Some("invalid_task"), None]);
    assert_eq!(answers[1]["field"], "timeot");
    assert!(answers[1]["detail"].as_str().expect("a detail").contains("`timeout`"), "{answers}");
    assert_eq!(answers[4]["queue"], "reports");
    for key in ["default.good", "reports.other"] {
        assert!(fleet.message(key).await.is_some(), "{key}");
    }
}

#[tokio::test]
async fn yaml_says_the_same_as_json() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let yaml = "id: 42\ntask:\n  workload: {kind: call, handler: noop}\n---\nworkload: {kind: call, handler: echo}\n";
    for media in ["application/yaml", "text/yaml; charset=utf-8", "application/x-yaml"] {
        let header = format!("content-type: {media}");
        let url = format!("{http}/api/tasks?queue={}", media.split('/').next().expect("a word"));
        let args = ["-H", &header, "--data-binary", yaml, &url];
        let answer = curl(&args).await;
        if answer.status == 207 {
            // The third finds 42 where the first left it.
            assert_eq!(answer.json()[0]["code"], "locked");
        } else {
            assert_eq!(answer.status(201).json()[0]["id"], "42");
        }
    }
    let message = fleet.message("application.42").await.expect("it is queued");
    assert_eq!(serde_json::from_slice::<Value>(&message.payload).expect("JSON"), noop());
    let one = ["-H", "content-type: application/yaml", "-d", "workload: {kind: call, handler: noop}"];
    let answer = curl(&[&one[..], &[&format!("{http}/api/tasks")]].concat()).await.status(201);
    assert!(answer.json().is_object(), "one task is answered as one");
}

#[tokio::test]
async fn a_locked_id_is_refused_and_its_holder_named() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    submit(&http, "?id=a", &job.gated("")).await.status(201);
    fleet.in_state("default.a", State::Running).await;
    let problem = submit(&http, "?id=a", &noop()).await.problem(409, "locked");
    assert_eq!(
        (problem["holder"]["state"].as_str(), problem["holder"]["worker"].as_str()),
        (Some("running"), Some("w"))
    );
    assert!(problem["hint"].is_string(), "{problem}");
    curl(&[&format!("{http}/api/tasks/a/result")]).await.problem(409, "conflict");
    curl(&["-X", "POST", &format!("{http}/api/tasks/a/retry")]).await.problem(409, "conflict");
    job.open();
    fleet.ended("default.a").await;
    curl(&[&format!("{http}/api/tasks/a/result")]).await.problem(404, "not_found");
    let once = submit(&http, "?id=a&once=true", &noop()).await.status(200).json();
    assert_eq!(once["existing"]["state"], "succeeded", "nothing is started, and the record shown");
    job.write("starts", "");
    let again = curl(&["-X", "POST", &format!("{http}/api/tasks/a/retry")]).await.status(201).json();
    fleet.run_ended("default.a", again["sequence"].as_u64().expect("a sequence")).await;
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_long_poll_answers_at_the_end_or_in_time() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("exit 3")).await;
    let early = curl(&[&format!("{http}/api/tasks/a?wait=300ms")]).await.status(200);
    assert!(["queued", "running"].contains(&early.json()["state"].as_str().expect("a state")), "{}", early.text());
    let url = format!("{http}/api/tasks/a?wait=60s");
    let args = [url.as_str()];
    let (ended, ()) = tokio::join!(curl(&args), async {
        job.started(1).await;
        job.open();
    });
    assert_eq!(ended.status(200).json()["attempts"][0]["exit_code"], 3);
    let problem = curl(&[&format!("{http}/api/tasks/a?wait=1d")]).await.problem(400, "invalid_argument");
    assert_eq!(problem["field"], "wait");
}

#[tokio::test]
async fn a_cancel_is_confirmed_or_said_to_be_under_way() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    fleet.publish("default.queued", &noop()).await;
    let url = format!("{http}/api/tasks/queued?reason=by+curl");
    let cancelled = curl(&["-X", "DELETE", &url]).await.status(200).json();
    assert_eq!(
        (cancelled["outcome"].as_str(), cancelled["task"]["state"].as_str()),
        (Some("cancelled"), Some("cancelled"))
    );
    assert_eq!(cancelled["task"]["cancel"]["reason"], "by curl");
    assert_eq!(curl(&["-X", "DELETE", &url]).await.status(200).json()["outcome"], "already_ended");

    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    // It takes the signal and does not go for a while.
    let task = job.script("trap '' TERM\ntouch $D/deaf\nwhile :; do sleep 0.1; done").with("stop_grace", "2s");
    fleet.publish("default.deaf", &task).await;
    eventually("it is deaf", async || job.folder().join("deaf").exists().then_some(()).ok_or("not yet".to_owned()))
        .await;
    let asked = curl(&["-X", "DELETE", &format!("{http}/api/tasks/deaf?wait=200ms")]).await.status(202).json();
    assert_eq!(asked["outcome"], "asked");
    assert_eq!(fleet.ended("default.deaf").await.state, State::Cancelled, "it goes on without its caller");
    job.gone().await;
    curl(&["-X", "DELETE", &format!("{http}/api/tasks/nobody")]).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_reader_of_events_goes_on_where_it_was_cut_off() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("[ $SHOAL_TASK_ATTEMPT = 2 ]").retried(2, "100ms")).await;
    fleet.in_state("default.a", State::Running).await;
    let url = format!("{http}/api/tasks/default.a/events");
    let mut reader = curl_stream(fleet.folder(), &[&url]);
    let first = events_of(&reader, 1).await;
    assert_eq!(states(&first), ["running"]);
    reader.kill().await;
    job.open();
    let record = fleet.ended("default.a").await;
    let last = format!("Last-Event-ID: {}", first[0].id.expect("an id"));
    let mut reader = curl_stream(fleet.folder(), &["-H", &last, &url]);
    let rest = events(&reader.wait().await.ok().stdout);
    assert_eq!(states(&rest), ["succeeded"], "what was seen does not come again, what was missed comes as it is now");
    assert_eq!(rest[0].data["attempts"].as_array().map(Vec::len), Some(record.attempts.len()));
    // An `EventSource` comes back by itself; this tells it to stop.
    let last = format!("Last-Event-ID: {}", rest[1].id.expect("an id"));
    curl(&["-H", &last, &url]).await.status(204);
    curl(&["-H", "Last-Event-ID: soon", &url]).await.problem(400, "invalid_argument");
}

#[tokio::test]
async fn a_reader_of_a_killed_dispatcher_goes_on_at_another() {
    let fleet = Fleet::start().await;
    let (mut killed, first) = fleet.dispatcher(&[]).await;
    let (_other, second) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let script = "echo one; while [ ! -e $D/two ]; do sleep 0.05; done; echo two; \
        while [ ! -e $D/three ]; do sleep 0.05; done; echo three";
    fleet.publish("default.a", &job.script(script)).await;
    fleet.in_state("default.a", State::Running).await;
    let url = |http: &str| format!("{http}/api/tasks/a/logs?source=stdout");
    let sse = ["-H", "Accept: text/event-stream"];
    let mut reader = curl_stream(fleet.folder(), &[&sse[..], &[&url(&first)]].concat());
    let changes = curl_stream(fleet.folder(), &[&format!("{first}/api/tasks/a/events")]);
    let seen = events_of(&reader, 1).await;
    assert_eq!(log_text(&seen), "one\n");
    events_of(&changes, 1).await;
    killed.kill().await;
    assert_ne!(reader.wait().await.code, 0, "curl says that it was cut off");
    job.write("two", "");
    let last = format!("Last-Event-ID: {}", seen[0].id.expect("an id"));
    let mut reader = curl_stream(fleet.folder(), &[&sse[..], &["-H", &last, &url(&second)]].concat());
    assert_eq!(log_text(&events_of(&reader, 1).await), "two\n");
    job.write("three", "");
    let rest = events(&reader.wait().await.ok().stdout);
    assert_eq!(log_text(&rest), "two\nthree\n");
    assert_eq!(rest.last().map(|event| event.name.as_str()), Some("end"));
    let last = format!("Last-Event-ID: {}", rest[0].id.expect("an id"));
    let tail = curl(&[&sse[..], &["-H", &last, &url(&second)]].concat()).await.status(200);
    assert_eq!(log_text(&events(&tail.text())), "three\n");
    let last = format!("Last-Event-ID: {}", rest[2].id.expect("an id"));
    curl(&[&sse[..], &["-H", &last, &url(&second)]].concat()).await.status(204);
}

#[tokio::test]
async fn a_log_is_text_lines_or_events_and_followed_to_its_end() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet
        .publish(
            "default.a",
            &job.script(
                "echo out; echo err >&2; printf '\\377'; while [ ! -e $D/open ]; do sleep 0.05; done; echo end",
            ),
        )
        .await;
    fleet.in_state("default.a", State::Running).await;
    let url = |query: &str| format!("{http}/api/tasks/a/logs{query}");
    let mut follower = curl_stream(fleet.folder(), &[&url("?follow=true&source=stderr,stdout")]);
    eventually("the first line", async || match follower.stdout() {
        seen if seen.contains("out\n") && seen.contains("err\n") => Ok(()),
        seen => Err(seen),
    })
    .await;
    job.open();
    assert!(follower.wait().await.ok().stdout.ends_with("end\n"));
    assert_eq!(curl(&[&url("?source=stderr")]).await.status(200).text(), "err\n");
    assert_eq!(curl(&[&url("?source=stdout")]).await.status(200).body, b"out\n\xffend\n", "bytes as they were written");
    let lines = curl(&["-H", "Accept: application/x-ndjson", &url("?source=stdout")]).await.status(200);
    let lines: Vec<Value> = lines.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let last = lines.last().expect("lines");
    assert!(lines.iter().any(|line| line["base64"].is_string()) && last["text"] == "end\n", "{lines:?}");
    let after = format!("?source=stdout&after={}", lines[lines.len() - 2]["sequence"]);
    assert_eq!(curl(&[&url(&after)]).await.status(200).text(), "end\n");
    let problem = curl(&[&url("?source=stdot")]).await.problem(400, "invalid_argument");
    assert_eq!(problem["field"], "source");
}

#[tokio::test]
async fn large_results_and_artifacts_come_whole() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let script = "mkdir out; head -c 3000000 /dev/urandom | tee out/big > $SHOAL_RESULT_FILE; : > out/empty; echo x > 'out/a b.txt'";
    let record = fleet.run("default.a", &shell(script).with("artifacts", json!(["out/**"]))).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let result = curl(&[&format!("{http}/api/tasks/a/result")]).await.status(200);
    let artifact = curl(&[&format!("{http}/api/tasks/a/artifacts/out/big")]).await.status(200);
    assert_eq!((result.body.len(), result.headers["content-length"].as_str()), (3_000_000, "3000000"));
    assert!(result.body == artifact.body, "the same bytes");
    assert!(artifact.headers["etag"].contains("SHA-256="), "{:?}", artifact.headers);
    assert_eq!(curl(&[&format!("{http}/api/tasks/a/artifacts/out/empty")]).await.status(200).body, b"");
    assert_eq!(curl(&[&format!("{http}/api/tasks/a/artifacts/out/a%20b.txt")]).await.status(200).body, b"x\n");
    curl(&[&format!("{http}/api/tasks/a/artifacts/out/none")]).await.problem(404, "not_found");
    curl(&["--path-as-is", &format!("{http}/api/tasks/a/artifacts/../../../etc/passwd")])
        .await
        .problem(404, "not_found");
}

#[tokio::test]
async fn a_damaged_artifact_is_never_taken_for_whole() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let task = shell("head -c 2000000 /dev/urandom > big; echo x > small").with("artifacts", json!(["big", "small"]));
    let record = fleet.run("default.a", &task).await;
    let store = fleet.js.get_object_store("shoal_artifacts").await.expect("the store");
    let stream = fleet.stream("OBJ_shoal_artifacts").await;
    for artifact in &record.artifacts {
        let info = store.info(format!("default/a/{}/{}", artifact.start, artifact.path)).await.expect("an object");
        let chunks = format!("$O.shoal_artifacts.C.{}", info.nuid);
        let last = stream.get_last_raw_message_by_subject(&chunks).await.expect("a chunk");
        // The last chunk goes, and as many other bytes come in its place.
        stream.delete_message(last.sequence).await.expect("deleted");
        let other: Vec<u8> = last.payload.iter().map(|byte| byte ^ 1).collect();
        fleet.js.publish(chunks, other.into()).await.expect("published").await.expect("stored");
    }
    curl(&[&format!("{http}/api/tasks/a/artifacts/small")]).await.problem(500, "internal");
    let mut reader = curl_stream(fleet.folder(), &["-o", "/dev/null", &format!("{http}/api/tasks/a/artifacts/big")]);
    assert_ne!(reader.wait().await.code, 0, "the connection breaks before the promised length");
}

#[tokio::test]
async fn an_external_agent_registers_beats_turns_offline_and_comes_back() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let agents = format!("{http}/api/agents");
    let beat = format!("{agents}/gpu-box/heartbeat");
    curl(&["-X", "POST", &beat]).await.problem(404, "not_found");
    let body = json!({"id": "gpu-box", "hostname": "node-9", "port": 8080, "queues": ["gpu"], "labels": {"zone": "b"}, "slots": 4});
    let registered = curl(&["--json", &body.to_string(), &agents]).await.status(201);
    assert_eq!(registered.headers["location"], "/api/agents/gpu-box");
    let record = fleet.agent_is("gpu-box", AgentStatus::Ready).await;
    assert_eq!((record.kind, record.hostname.as_str(), record.slots), (AgentKind::External, "node-9", 4));
    assert_eq!(registered.json(), serde_json::to_value(&record).expect("JSON"), "the same record");

    let beaten = curl(&["--json", r#"{"running":["gpu.a"]}"#, &beat]).await.status(200).json();
    assert_eq!((beaten["running_count"].as_u64(), beaten["queues"][0].as_str()), (Some(1), Some("gpu")));
    // It falls silent, and is judged like everyone else.
    let offline = fleet.agent_is("gpu-box", AgentStatus::Offline).await;
    assert!(offline.reason.is_some());
    eventually("the list says so too", async || {
        let list = curl(&[&format!("{agents}?label=zone=b&status=offline")]).await.status(200).json();
        if list[0]["id"] == "gpu-box" { Ok(()) } else { Err(list.to_string()) }
    })
    .await;
    let back = curl(&["-X", "POST", &beat]).await.status(200).json();
    assert_eq!((back["status"].as_str(), back["reason"].as_str()), (Some("ready"), None));
    assert_eq!(curl(&[&format!("{agents}/gpu")]).await.status(200).json()["status"], "ready");
    let list = curl(&[&agents]).await.status(200).json();
    assert_eq!((list[0]["id"].as_str(), list[0]["status"].as_str()), (Some("gpu-box"), Some("ready")));

    let again = curl(&["--json", &body.to_string(), &agents]).await.status(201).json();
    assert_eq!(again["registered_at"], back["registered_at"], "it is known");
    assert_ne!(again["instance"], back["instance"], "and has booted anew");
    curl(&["-X", "DELETE", &format!("{agents}/gpu-box")]).await.status(204);
    curl(&["-X", "DELETE", &format!("{agents}/gpu-box")]).await.problem(404, "not_found");
    curl(&["-X", "POST", &beat]).await.problem(404, "not_found");
    assert_eq!(curl(&[&agents]).await.status(200).json(), json!([]));
    let wrong = curl(&["--json", r#"{"id":"a","prot":1}"#, &agents]).await.problem(400, "invalid_argument");
    assert_eq!(wrong["field"], "prot");
    assert!(wrong["detail"].as_str().expect("a detail").contains("`port`"), "{wrong}");
    curl(&["--json", r#"{"id":"NO"}"#, &agents]).await.problem(400, "invalid_argument");
}

#[tokio::test]
async fn beats_through_two_dispatchers_write_over_each_other_and_lose_nothing() {
    let fleet = Fleet::start().await;
    let (_one, one) = fleet.dispatcher(&[]).await;
    let (_other, other) = fleet.dispatcher(&[]).await;
    let beat = |http: &str| format!("{http}/api/agents/ext/heartbeat");
    curl(&["--json", r#"{"id":"ext","slots":4}"#, &format!("{one}/api/agents")]).await.status(201);
    curl(&["--json", r#"{"running":["gpu.a"]}"#, &beat(&one)]).await.status(200);
    curl(&["--json", r#"{"status":"draining"}"#, &beat(&other)]).await.status(200);
    // What the first one wrote itself is no longer the newest.
    let beaten = curl(&["-X", "POST", &beat(&one)]).await.status(200).json();
    let said = (beaten["status"].as_str(), beaten["running"][0].as_str(), beaten["slots"].as_u64());
    assert_eq!(said, (Some("draining"), Some("gpu.a"), Some(4)));
    for http in [&one, &other] {
        assert_eq!(curl(&[&format!("{http}/api/agents")]).await.status(200).json(), json!([beaten]), "{http}");
    }
    curl(&["-X", "DELETE", &format!("{other}/api/agents/ext")]).await.status(204);
    curl(&["-X", "POST", &beat(&one)]).await.problem(404, "not_found");
}

#[tokio::test]
async fn the_record_of_a_living_worker_is_its_own() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let mut worker = fleet.worker("w").start().await;
    let record = fleet.agent_is("w", AgentStatus::Ready).await;
    let agents = format!("{http}/api/agents");
    let registration = ["--json", r#"{"id":"w"}"#, &agents];
    curl(&registration).await.problem(409, "conflict");
    curl(&["-X", "DELETE", &format!("{agents}/w")]).await.problem(409, "conflict");
    curl(&["-X", "POST", &format!("{agents}/w/heartbeat")]).await.problem(409, "conflict");
    let now = fleet.agent_is("w", AgentStatus::Ready).await;
    assert_eq!((now.instance, now.kind), (record.instance, AgentKind::Worker));
    worker.kill().await;
    fleet.agent_is("w", AgentStatus::Offline).await;
    curl(&["-X", "DELETE", &format!("{agents}/w")]).await.status(204);
    assert!(fleet.agent("w").await.expect("readable").is_none());
}

#[tokio::test]
async fn with_a_token_nobody_calls_without_it() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[("SHOAL_HTTP_TOKEN", "s3cret")]).await;
    for path in ["/api/tasks", "/api/agents", "/openapi.json", "/nowhere"] {
        let answer = curl(&[&format!("{http}{path}")]).await;
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"), "{path}");
        answer.problem(401, "unauthenticated");
    }
    let tasks = format!("{http}/api/tasks");
    curl(&["-H", "Authorization: Bearer other", &tasks]).await.problem(401, "unauthenticated");
    curl(&["-H", "Authorization: Bearer s3cret", &tasks]).await.status(200);
    assert_eq!(http_get(&http, "/health/live").await.expect("it answers").0, 200, "health is open");
    eventually("ready without a token", async || match http_get(&http, "/health/ready").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn beyond_this_machine_http_wants_a_token() {
    let fleet = Fleet::start().await;
    let env = [("SHOAL_HTTP", "0.0.0.0:0")];
    let refused = fleet.spawn_with(&["dispatcher"], "", &env).wait().await.exit(2);
    assert!(refused.stderr.contains("token") && refused.stderr.contains("try:"), "{}", refused.stderr);
    let file = fleet.folder().join("token");
    std::fs::write(&file, "s3cret\n").expect("a file");
    let file = file.display().to_string();
    let (dispatcher, http) = fleet.dispatcher(&[("SHOAL_HTTP", "0.0.0.0:0"), ("SHOAL_HTTP_TOKEN_FILE", &file)]).await;
    let http = http.replace("0.0.0.0", "127.0.0.1");
    curl(&[&format!("{http}/api/tasks")]).await.problem(401, "unauthenticated");
    let fleet_host = ["-H", "Host: fleet.example.com", "-H", "Authorization: Bearer s3cret"];
    curl(&[&fleet_host[..], &[&format!("{http}/api/tasks")]].concat()).await.status(200);
    assert!(!dispatcher.stderr().contains("s3cret"), "a token is not logged");
    let env = [("SHOAL_HTTP_TOKEN", "s3cret")];
    let shown = fleet.spawn_with(&["config", "show", "-o", "json"], "", &env).wait().await.ok().stdout;
    assert!(shown.contains("***") && !shown.contains("s3cret"));
}

#[tokio::test]
async fn pages_of_other_sites_and_other_names_are_refused() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) =
        fleet.dispatcher(&[("SHOAL_HTTP_ORIGINS", "https://fleet.example.com,http://localhost:3000")]).await;
    let tasks = format!("{http}/api/tasks");
    curl(&["-H", "Origin: https://evil.example.com", &tasks]).await.problem(403, "permission_denied");
    curl(&["-H", "Origin: null", &tasks]).await.problem(403, "permission_denied");
    curl(&["-H", "Host: evil.example.com", &tasks]).await.problem(403, "permission_denied");
    let own = format!("Origin: {http}");
    curl(&["-H", &own, &tasks]).await.status(200);
    let listed = curl(&["-H", "Origin: https://fleet.example.com", &tasks]).await.status(200);
    assert_eq!(listed.headers["access-control-allow-origin"], "https://fleet.example.com", "and no star");
    let evil = curl(&["-H", "Origin: https://evil.example.com", &tasks]).await;
    assert!(!evil.headers.contains_key("access-control-allow-origin"), "{:?}", evil.headers);
    let preflight =
        ["-X", "OPTIONS", "-H", "Origin: http://localhost:3000", "-H", "Access-Control-Request-Method: DELETE"];
    let allowed = curl(&[&preflight[..], &[&tasks]].concat()).await.status(200);
    assert!(allowed.headers["access-control-allow-methods"].contains("DELETE"), "{:?}", allowed.headers);
    // A form of another site is a body of a type that is not read; so is one without a page.
    curl(&["-d", "{}", &tasks]).await.problem(415, "unsupported_media_type");
}

#[tokio::test]
async fn bodies_calls_and_streams_are_bounded() {
    let fleet = Fleet::start().await;
    let limits = [("SHOAL_HTTP_BODY_LIMIT", "64Ki"), ("SHOAL_HTTP_RATE", "10"), ("SHOAL_HTTP_STREAMS", "2")];
    let (_dispatcher, http) = fleet.dispatcher(&limits).await;
    let tasks = format!("{http}/api/tasks");
    let file = fleet.folder().join("big.json");
    std::fs::write(&file, echo("x".repeat(100 << 10)).to_string()).expect("a file");
    let big = format!("@{}", file.display());
    curl(&["--json", &big, &tasks]).await.problem(413, "too_large");
    // The same without a length that would tell in advance.
    curl(&["--json", &big, "-H", "Transfer-Encoding: chunked", &tasks]).await.problem(413, "too_large");

    fleet.publish("nobody.a", &noop()).await;
    let events = format!("{http}/api/tasks/a/events");
    let readers = [curl_stream(fleet.folder(), &[&events]), curl_stream(fleet.folder(), &[&events])];
    for reader in &readers {
        events_of(reader, 1).await;
    }
    let full = curl(&[&events]).await;
    assert!(full.headers.contains_key("retry-after"));
    full.problem(503, "unavailable");
    drop(readers);
    eventually("room again", async || match curl(&[&format!("{http}/api/tasks/a?wait=1ms")]).await.status {
        200 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;

    // One connection, so that they come faster than they may.
    let url = format!("{http}/api/tasks/nobody.a?wait=0s&n=[1-60]");
    let many = curl_stream(fleet.folder(), &["-o", "/dev/null", "-w", "%{http_code} %header{retry-after}\\n", &url])
        .wait()
        .await;
    let limited = many.stdout.lines().filter(|line| *line == "429 1").count();
    assert!(limited > 10, "{}", many.stdout);
    eventually("calls again, in time", async || match curl(&[&tasks]).await.status {
        200 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
}

#[tokio::test]
async fn mistakes_are_problems_that_name_what_is_allowed() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let tasks = format!("{http}/api/tasks");
    let said = |problem: Value| problem["detail"].as_str().expect("a detail").to_owned();
    let detail =
        said(submit(&http, "", &process(&["date"]).with("on_lost", "maybe")).await.problem(400, "invalid_task"));
    assert!(detail.contains("maybe") && detail.contains("fail"), "{detail}");
    let detail = said(curl(&["--json", "{", &tasks]).await.problem(400, "invalid_argument"));
    assert!(detail.contains("not JSON"), "{detail}");
    curl(&["--json", "[]", &tasks]).await.problem(400, "invalid_argument");
    curl(&["--json", r#"{"once":true,"task":{"workload":{"kind":"call","handler":"noop"}}}"#, &tasks])
        .await
        .problem(400, "invalid_task");
    let detail = said(curl(&[&format!("{tasks}?state=done")]).await.problem(400, "invalid_argument"));
    assert!(detail.contains("succeeded"), "{detail}");
    let detail = said(curl(&[&format!("{tasks}?lmit=1")]).await.problem(400, "invalid_argument"));
    assert!(detail.contains("lmit") && detail.contains("limit"), "{detail}");
    curl(&[&format!("{tasks}?limit=1001")]).await.problem(400, "invalid_argument");
    curl(&[&format!("{tasks}?cursor=x")]).await.problem(400, "invalid_argument");
    curl(&[&format!("{tasks}/no%20id")]).await.problem(400, "invalid_id");
    curl(&[&format!("{tasks}/nobody")]).await.problem(404, "not_found");
    curl(&[&format!("{http}/api/nothing")]).await.problem(404, "not_found");
    let not_so = curl(&["-X", "PUT", &tasks]).await;
    assert!(not_so.headers["allow"].contains("POST"));
    not_so.problem(405, "method_not_allowed");
    for key in ["default.t-1", "default.t-2"] {
        fleet.publish(key, &noop()).await;
    }
    let detail = said(curl(&[&format!("{tasks}/t-")]).await.problem(409, "ambiguous"));
    assert!(detail.contains("default.t-1") && detail.contains("default.t-2"), "{detail}");
}

#[tokio::test]
async fn a_list_is_paged_to_its_end() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    for n in 0..25 {
        fleet.publish(&format!("default.t-{n}"), &noop().with("labels", json!({"n": n.to_string()}))).await;
    }
    fleet.publish("reports.other", &noop()).await;
    let mut seen = BTreeSet::new();
    let mut url = format!("{http}/api/tasks?queue=default&state=queued&limit=10");
    loop {
        let page = curl(&[&url]).await.status(200).json();
        let tasks = page["tasks"].as_array().expect("tasks");
        assert!(tasks.len() <= 10);
        seen.extend(tasks.iter().map(|task| task["id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        url = format!("{http}/api/tasks?queue=default&state=queued&limit=10&cursor={next}");
    }
    assert_eq!(seen.len(), 25);
    let labelled = curl(&[&format!("{http}/api/tasks?label=n=7&since=1h")]).await.status(200).json();
    assert_eq!(labelled["tasks"][0]["id"], "t-7");
    assert_eq!(labelled["tasks"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn without_nats_a_call_says_so_soon_and_streams_go_on_after() {
    let mut fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    fleet.publish("default.a", &noop()).await;
    let reader = curl_stream(fleet.folder(), &[&format!("{http}/api/tasks/a/events")]);
    events_of(&reader, 1).await;
    fleet.nats().kill();
    eventually("it says so", async || {
        let began = Instant::now();
        let answer = curl(&["--json", &noop().to_string(), &format!("{http}/api/tasks")]).await;
        assert!(began.elapsed() < Duration::from_secs(20));
        match answer.status {
            503 => {
                answer.problem(503, "unavailable");
                Ok(())
            }
            _ => Err(answer.text()),
        }
    })
    .await;
    assert_eq!(http_get(&http, "/health/live").await.expect("it answers").0, 200);
    fleet.nats().restart().await;
    fleet.reachable().await;
    let _worker = fleet.worker("w").start().await;
    eventually("the open stream misses no end", async || {
        let seen = events(&reader.stdout());
        match seen.last() {
            Some(last) if last.name == "end" && states(&seen).last() == Some(&"succeeded") => Ok(()),
            _ => Err(format!("{seen:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_dispatcher_that_is_told_to_stop_ends_its_streams() {
    let fleet = Fleet::start().await;
    let (mut dispatcher, http) = fleet.dispatcher(&[]).await;
    fleet.publish("default.a", &noop()).await;
    let mut reader = curl_stream(fleet.folder(), &[&format!("{http}/api/tasks/a/events")]);
    events_of(&reader, 1).await;
    let url = format!("{http}/api/tasks/a?wait=60s");
    let mut poll = curl_stream(fleet.folder(), &[&url]);
    dispatcher.terminate();
    let began = Instant::now();
    dispatcher.wait().await.ok();
    assert!(began.elapsed() < Duration::from_secs(3), "no reader holds it up: {:?}", began.elapsed());
    reader.wait().await.ok();
    // It may not have been let in before the end; if it was, it is answered.
    let _ = poll.wait().await;
}

#[tokio::test]
async fn trace_context_travels_with_the_task() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let header = format!("traceparent: {trace}");
    let url = format!("{http}/api/tasks?id=a");
    curl(&["-H", &header, "--json", &noop().to_string(), &url]).await.status(201);
    let message = fleet.message("default.a").await.expect("queued");
    assert_eq!(message.headers.get("traceparent").map(|value| value.as_str()), Some(trace));
}

/// A document and what was seen of it.
struct Document {
    document: Value,
    seen: BTreeMap<String, BTreeSet<u16>>,
}

impl Document {
    fn operations(&self) -> Vec<(String, String, Value)> {
        let paths = self.document["paths"].as_object().expect("paths").iter();
        paths
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("methods").iter();
                methods.map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
            })
            .collect()
    }

    fn check(&self, what: &str, schema: &Value, value: &Value) {
        let whole = json!({"allOf": [schema], "components": self.document["components"]});
        let validator = jsonschema::draft202012::new(&whole).unwrap_or_else(|e| panic!("{what}: no schema: {e}"));
        let errors: Vec<String> =
            validator.iter_errors(value).map(|e| format!("{} at {}", e, e.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {errors:#?}\n{value:#}");
    }

    /// Calls one operation and holds its answer against the document.
    async fn call(&mut self, http: &str, id: &str, path: &str, args: &[&str]) -> Answer {
        let operations = self.operations();
        let found = operations.iter().find(|(_, _, operation)| operation["operationId"] == id);
        let (method, template, operation) = found.unwrap_or_else(|| panic!("no operation {id}"));
        let what = format!("{method} {path}");
        let fits = |path: &str| {
            let path = path.split('?').next().unwrap_or_default();
            let (mut parts, mut wanted) = (path.split('/'), template.split('/'));
            let fits = wanted.all(|word| parts.next().is_some_and(|part| word.starts_with('{') || word == part));
            fits && (parts.next().is_none() || template.ends_with("{path}"))
        };
        assert!(fits(path), "{path} is no {template}");
        let answer = curl(&[args, &["-X", method, &format!("{http}{path}")]].concat()).await;
        let response = &operation["responses"][answer.status.to_string()];
        let response = match response["$ref"].as_str() {
            Some(target) => self.document.pointer(target.trim_start_matches('#')).expect("a response"),
            None => response,
        };
        assert!(response.is_object(), "{what}: {} is not documented: {}", answer.status, answer.text());
        let contents = response["content"].as_object();
        match answer.headers.get("content-type").map(|media| media.split(';').next().unwrap_or_default()) {
            None => assert!(contents.is_none() && answer.body.is_empty(), "{what}: {answer:?}"),
            Some(media) => {
                let content = contents.and_then(|contents| contents.get(media));
                let content = content.unwrap_or_else(|| panic!("{what}: {media} is not documented"));
                match (media, content.get("schema")) {
                    ("text/event-stream", Some(schema)) => {
                        let events = events(&answer.text());
                        assert!(!events.is_empty(), "{what}");
                        for event in events.iter().filter(|event| event.name != "end") {
                            self.check(&what, schema, &event.data);
                        }
                    }
                    ("application/x-ndjson", Some(schema)) => {
                        for line in answer.text().lines() {
                            self.check(&what, schema, &serde_json::from_str(line).expect("JSON"));
                        }
                    }
                    (_, Some(schema)) => self.check(&what, schema, &answer.json()),
                    (_, None) => {}
                }
            }
        }
        self.seen.entry(id.to_owned()).or_default().insert(answer.status);
        answer
    }
}

/// A worker that holds an instance of the function `f`, played by plain NATS.
async fn play_instance(fleet: &Fleet) -> tokio::task::JoinHandle<()> {
    let record = json!({
        "function": "f", "index": 0, "status": "ready", "id": "1", "worker": "played", "boot": "b", "start": "abc111",
        "revision": 1, "spec": schemas::Function::new("a:1").spec(), "created_at": schemas::Timestamp::now(),
    });
    let instances = fleet.js.get_key_value("shoal_instances").await.expect("the bucket");
    instances.put("f.0", record.to_string().into()).await.expect("written");
    let nats = fleet.nats.clone();
    let mut calls = nats.subscribe("shoal.invoke.f").await.expect("subscribed");
    let mut infos = nats.subscribe("shoal.control.played.info").await.expect("subscribed");
    nats.flush().await.expect("flushed");
    tokio::spawn(async move {
        loop {
            let (reply, body) = tokio::select! {
                Some(call) = calls.next() => (call.reply, call.payload),
                Some(info) = infos.next() => (info.reply, "{}".into()),
                else => return,
            };
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Shoal-Status", "200");
            headers.insert("Content-Type", "application/json");
            nats.publish_with_headers(reply.expect("a request"), headers, body).await.expect("answered");
        }
    })
}

#[tokio::test]
async fn every_operation_answers_as_the_document_says() {
    let fleet = Fleet::start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").slots(4).start().await;
    let document = curl(&[&format!("{http}/openapi.json")]).await.status(200).json();
    let mut document = Document { document, seen: BTreeMap::new() };
    let full = shell("echo out; echo err >&2; mkdir out; echo x > out/a.txt; echo r > $SHOAL_RESULT_FILE")
        .with("artifacts", json!(["out/**"]))
        .with("labels", json!({"team": "a"}));
    fleet.run("default.full", &full).await;
    fleet.run("default.failed", &shell("exit 3").retried(2, "10ms")).await;
    fleet.publish("nobody.queued", &full).await;
    let job = fleet.job();
    fleet
        .publish(
            "default.deaf",
            &job.script("trap '' TERM; touch $D/deaf; while :; do sleep 0.1; done").with("stop_grace", "1s"),
        )
        .await;
    eventually("it is deaf", async || job.folder().join("deaf").exists().then_some(()).ok_or("not yet".to_owned()))
        .await;
    let mut call = async |id: &str, path: &str, args: &[&str]| document.call(&http, id, path, args).await;

    let one = full.to_string();
    let bad = noop().with("timeot", "1s").to_string();
    let mixed = format!("[{one},{bad}]");
    call("live", "/health/live", &[]).await.status(200);
    call("ready", "/health/ready", &[]).await;
    call("document", "/openapi.json", &[]).await.status(200);
    call("submitTasks", "/api/tasks?queue=nobody", &["--json", &one]).await.status(201);
    call("submitTasks", "/api/tasks?queue=nobody", &["--json", &format!("[{one},{one}]")]).await.status(201);
    call("submitTasks", "/api/tasks?queue=nobody", &["--json", &mixed]).await.status(207);
    call("submitTasks", "/api/tasks?id=full&once=true", &["--json", &one]).await.status(200);
    call("submitTasks", "/api/tasks", &["--json", &bad]).await.status(400);
    call("submitTasks", "/api/tasks?queue=nobody&id=queued", &["--json", &one]).await.status(409);
    call("submitTasks", "/api/tasks", &["-d", &one]).await.status(415);
    call("listTasks", "/api/tasks", &[]).await.status(200);
    call("listTasks", "/api/tasks?state=failed,queued&label=team=a&limit=1", &[]).await.status(200);
    call("listTasks", "/api/tasks?limit=0", &[]).await.status(400);
    for task in ["full", "failed", "queued", "deaf"] {
        call("getTask", &format!("/api/tasks/{task}"), &[]).await.status(200);
    }
    for task in ["full", "failed", "queued", "deaf", "none"] {
        let explained = call("explainTask", &format!("/api/tasks/{task}/explain"), &[]).await.status(200);
        assert!(explained.json()["reasons"][0]["message"].is_string(), "{}", explained.text());
    }
    call("explainTask", "/api/tasks/*/explain", &[]).await.status(400);
    call("getTask", "/api/tasks/full?wait=1s", &[]).await.status(200);
    call("getTask", "/api/tasks/none", &[]).await.status(404);
    call("cancelTask", "/api/tasks/deaf?wait=1ms", &[]).await.status(202);
    call("cancelTask", "/api/tasks/deaf", &[]).await.status(200);
    call("cancelTask", "/api/tasks/none", &[]).await.status(404);
    call("retryTask", "/api/tasks/queued/retry", &[]).await.status(409);
    call("retryTask", "/api/tasks/failed/retry", &[]).await.status(201);
    let seen = call("watchTask", "/api/tasks/full/events", &[]).await.status(200);
    let last = format!("Last-Event-ID: {}", events(&seen.text())[0].id.expect("an id"));
    call("watchTask", "/api/tasks/full/events", &["-H", &last]).await.status(204);
    call("watchTask", "/api/tasks/none/events", &[]).await.status(404);
    call("readLog", "/api/tasks/full/logs", &[]).await.status(200);
    call("readLog", "/api/tasks/full/logs?tail=1", &["-H", "Accept: application/x-ndjson"]).await.status(200);
    let sse = ["-H", "Accept: text/event-stream"];
    let seen = call("readLog", "/api/tasks/full/logs", &sse).await.status(200);
    let last = format!("Last-Event-ID: {}", events(&seen.text()).last().and_then(|event| event.id).expect("an id"));
    call("readLog", "/api/tasks/full/logs", &[&sse[..], &["-H", &last]].concat()).await.status(204);
    call("readLog", "/api/tasks/full/logs?source=x", &[]).await.status(400);
    call("getResult", "/api/tasks/full/result", &[]).await.status(200);
    call("getResult", "/api/tasks/queued/result", &[]).await.status(409);
    call("listArtifacts", "/api/tasks/full/artifacts", &[]).await.status(200);
    call("getArtifact", "/api/tasks/full/artifacts/out/a.txt", &[]).await.status(200);
    call("getArtifact", "/api/tasks/full/artifacts/none", &[]).await.status(404);
    call("registerAgent", "/api/agents", &["--json", r#"{"id":"ext","runtimes":{"gpu":{"version":"1"}}}"#])
        .await
        .status(201);
    call("registerAgent", "/api/agents", &["--json", r#"{"id":"w"}"#]).await.status(409);
    call("registerAgent", "/api/agents", &["--json", "{}"]).await.status(400);
    call("listAgents", "/api/agents", &[]).await.status(200);
    call("listAgents", "/api/agents?status=gone", &[]).await.status(400);
    call("getAgent", "/api/agents/w", &[]).await.status(200);
    call("getAgent", "/api/agents/none", &[]).await.status(404);
    let beat = r#"{"status":"draining","free":{"cpu_millis":1,"memory_bytes":2,"disk_bytes":3}}"#;
    call("beat", "/api/agents/ext/heartbeat", &["--json", beat]).await.status(200);
    call("beat", "/api/agents/ext/heartbeat", &[]).await.status(200);
    call("beat", "/api/agents/none/heartbeat", &[]).await.status(404);
    call("removeAgent", "/api/agents/w", &[]).await.status(409);
    call("removeAgent", "/api/agents/ext", &[]).await.status(204);
    call("listQueues", "/api/queues", &[]).await.status(200);

    let image = ["--json", r#"{"image":"a:1"}"#];
    call("applyFunction", "/api/functions/f", &image).await.status(201);
    call("applyFunction", "/api/functions/f", &image).await.status(200);
    call("applyFunction", "/api/functions/f", &["--json", r#"{"image":"a:1","max":0}"#]).await.status(400);
    // Of a function that is not defined a dispatcher would have it stopped.
    let _worker = play_instance(&fleet).await;
    call("listFunctions", "/api/functions", &[]).await.status(200);
    call("getFunction", "/api/functions/f", &[]).await.status(200);
    call("getFunction", "/api/functions/none", &[]).await.status(404);
    call("ensureInstance", "/api/functions/f/ensure", &[]).await.status(200);
    call("ensureInstance", "/api/functions/none/ensure", &[]).await.status(404);
    call("acquireInstance", "/api/functions/f/acquire", &[]).await.status(200);
    call("touchInstance", "/api/instances/abc111/touch", &[]).await.status(200);
    call("touchInstance", "/api/instances/none/touch", &[]).await.status(404);
    call("listInstances", "/api/instances?function=f", &[]).await.status(200);
    let event = ["-H", "X-Shoal-Invocation: event", "--json", "{}"];
    call("invokeFunction", "/api/functions/f/invocations", &["--json", "{}"]).await.status(200);
    call("invokeFunction", "/api/functions/f/invocations?id=later", &event).await.status(202);
    call("invokeFunction", "/api/functions/f/invocations?id=later", &event).await;
    call("invokeFunction", "/api/functions/none/invocations", &["--json", "{}"]).await.status(404);
    let lambda = "/2015-03-31/functions/f/invocations";
    call("lambdaInvoke", lambda, &["--json", "{}"]).await.status(200);
    call("lambdaInvoke", lambda, &["-H", "X-Amz-Invocation-Type: Event", "--json", "{}"]).await.status(202);
    call("lambdaInvoke", lambda, &["-H", "X-Amz-Invocation-Type: DryRun", "--json", "{}"]).await.status(204);
    call("lambdaInvoke", "/2015-03-31/functions/none/invocations", &["--json", "{}"]).await.status(404);
    call("destroyInstance", "/api/instances/none", &[]).await.status(200);
    call("destroyInstances", "/api/functions/none/instances", &[]).await.status(200);
    call("deleteFunction", "/api/functions/f", &[]).await.status(204);
    call("deleteFunction", "/api/functions/f", &[]).await.status(404);

    // Whatever the document promises was seen: every operation, every way in which it succeeds.
    for (method, path, operation) in document.operations() {
        let id = operation["operationId"].as_str().expect("an id");
        let responses = operation["responses"].as_object().expect("responses");
        for status in responses.keys().filter(|status| status.starts_with('2')) {
            let status: u16 = status.parse().expect("a status");
            let seen = document.seen.get(id).is_some_and(|seen| seen.contains(&status));
            assert!(seen, "call {method} {path} in this test so that it answers {status}");
        }
    }
}
