//! Services beside NATS: a registry, a pool and a store behind real HTTP, there and not there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use schemas::transcript::JobPhase;
use schemas::{Code, State, TaskRecord};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{World, mends, phases, report, succeeded};
use crate::support::{WorkerBuilder, eventually};

const TOKEN: &str = "outside-0123456789-secret";

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

/// What is answered: status, headers, JSON. `None`: nothing, ever.
pub(super) type Answer = Option<(u16, &'static str, Value)>;

/// A REST service that notes what is asked.
pub(super) struct Rest {
    pub(super) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    server: JoinHandle<()>,
}

impl Rest {
    /// `answer` is given each request, and how many were before it.
    pub(super) async fn start(answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        // Below a folder, as behind a gateway.
        let url = format!("http://{}/api", listener.local_addr().expect("its address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (shared, answer) = (asked.clone(), Arc::new(answer));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone(), answer.clone()));
            }
        });
        Self { url, asked, server }
    }

    /// One that says yes to everything.
    pub(super) async fn content() -> Self {
        Self::start(|asked, before| match (asked.method.as_str(), asked.path.as_str()) {
            ("POST", "/api/slots") => Some((201, "", json!({"slot": format!("slot {before}"), "lease_s": 60}))),
            _ => Some((204, "", Value::Null)),
        })
        .await
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("nothing panics with it").clone()
    }

    fn of(&self, method: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.method == method).collect()
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Asked {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

async fn serve(
    stream: TcpStream,
    shared: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<impl Fn(&Asked, usize) -> Answer>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let asked = Asked { method, path, headers, body };
    let answer = {
        let mut all = shared.lock().expect("nothing panics with it");
        let answer = answer(&asked, all.len());
        all.push(asked);
        answer
    };
    let Some((status, more, body)) = answer else { return std::future::pending().await };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("HTTP/1.1 {status} said\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Where nobody listens.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("its address"))
}

fn with<'a>(builder: WorkerBuilder<'a>, what: &str, url: &str) -> WorkerBuilder<'a> {
    builder.env(&format!("{what}_URL"), url).env(&format!("{what}_TOKEN"), TOKEN)
}

#[track_caller]
fn warned(record: &TaskRecord, of: &str) {
    assert!(record.warnings.iter().any(|warning| warning.contains(of)), "{:?}", record.warnings);
}

#[tokio::test]
async fn registry_pool_and_store_hear_of_a_job() {
    let world = World::of(mends()).await;
    let (registry, pool, store) = (Rest::content().await, Rest::content().await, Rest::content().await);
    let mut builder = world.builder("w");
    for (what, rest) in [("TASK_REGISTRY", &registry), ("REPO_POOL", &pool), ("ARTIFACT_STORE", &store)] {
        builder = with(builder, what, &rest.url);
    }
    let _worker = builder.start().await;
    let record = world.run("default.t1", json!({})).await;
    succeeded(&record);
    assert_eq!(record.warnings, Vec::<String>::new());
    let start = record.attempts[0].start.as_ref().expect("a start").to_string();
    for asked in [registry.asked(), pool.asked(), store.asked()].concat() {
        assert_eq!(asked.headers.get("authorization"), Some(&format!("Bearer {TOKEN}")), "{asked:?}");
    }

    let states = registry.of("PUT");
    assert!(states.iter().all(|asked| asked.path == "/api/tasks/default.t1"), "{states:?}");
    let states: Vec<Value> = states.iter().map(Asked::json).collect();
    for state in &states {
        assert_eq!((state["start"].as_str(), state["attempt"].as_u64()), (Some(start.as_str()), Some(1)));
        assert_eq!(
            (state["queue"].as_str(), state["id"].as_str(), state["worker"].as_str()),
            (Some("default"), Some("t1"), Some("w"))
        );
    }
    let (end, running) = states.split_last().expect("states");
    assert!(!running.is_empty() && running.iter().all(|state| state["state"] == "running"), "{running:?}");
    assert_eq!((end["state"].as_str(), end["pushed"].as_bool()), (Some("succeeded"), Some(true)));
    let branch = "feature/task-t1-add-do-not-subtract";
    assert_eq!((end["branch"].as_str(), end["commit"].as_str()), (Some(branch), world.repo.tip(branch).as_deref()));

    let batches = registry.of("POST");
    assert!(batches.iter().all(|asked| asked.path == "/api/tasks/default.t1/events"), "{batches:?}");
    let events: Vec<Value> =
        batches.iter().flat_map(|asked| asked.json()["events"].as_array().expect("events").clone()).collect();
    let told: Vec<Value> =
        world.told("t1").await.iter().map(|entry| serde_json::to_value(entry).expect("JSON")).collect();
    assert!(!told.is_empty());
    assert_eq!(events, told, "all of it, once, in order");

    let asked = pool.asked();
    let slots: Vec<(&str, &str)> = asked.iter().map(|asked| (asked.method.as_str(), asked.path.as_str())).collect();
    assert_eq!(slots, [("POST", "/api/slots"), ("DELETE", "/api/slots/slot%200")]);
    let wish = asked[0].json();
    assert_eq!(
        (wish["repository"].as_str(), wish["task"].as_str()),
        (Some(world.repo.url().as_str()), Some("default.t1"))
    );

    let puts = store.of("PUT");
    let paths: Vec<String> = puts.iter().map(|asked| asked.path.clone()).collect();
    let kept: Vec<String> = record
        .artifacts
        .iter()
        .map(|artifact| format!("/api/artifacts/default/t1/{start}/{}", artifact.path))
        .collect();
    assert_eq!(paths, kept);
    assert_eq!(kept.len(), 4, "patch, tests, log, transcript");
    for asked in &puts {
        let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(&asked.body));
        assert_eq!(asked.headers.get("content-digest"), Some(&format!("sha-256=:{digest}:")));
    }
    for (path, days) in
        [("changes.patch", Some("30")), ("tests.json", Some("14")), ("job.log", None), ("transcript.jsonl", Some("30"))]
    {
        let put = puts.iter().find(|asked| asked.path.ends_with(path)).expect("it was put");
        assert_eq!(put.headers.get("shoal-retention-days").map(String::as_str), days, "{path}");
        assert_eq!(String::from_utf8_lossy(&put.body), world.artifact("t1", path).await, "{path}");
    }
}

#[tokio::test]
async fn a_registry_and_a_store_that_are_down_fail_no_job() {
    let world = World::of(mends()).await;
    let builder = with(world.builder("w"), "TASK_REGISTRY", &nowhere());
    let _worker = with(builder, "ARTIFACT_STORE", &nowhere()).start().await;
    let record = world.run("default.t2", json!({})).await;
    succeeded(&record);
    warned(&record, "the task registry was not told of");
    warned(&record, "the task registry was not told how the attempt ended");
    warned(&record, "4 artifacts not put into the artifact store");
    assert_eq!(world.repo.branches().len(), 1);
}

#[tokio::test]
async fn a_registry_and_a_store_that_never_answer_hold_no_job_up() {
    let world = World::of(mends()).await;
    let (registry, store) = (Rest::start(|_, _| None).await, Rest::start(|_, _| None).await);
    let builder = with(world.builder("w"), "TASK_REGISTRY", &registry.url);
    let _worker = with(builder, "ARTIFACT_STORE", &store.url).start().await;
    let record = world.run("default.t3", json!({})).await;
    succeeded(&record);
    warned(&record, "the task registry was not told of");
    warned(&record, "4 artifacts not put into the artifact store: it took too long");
    assert_eq!((registry.asked().len(), store.asked().len()), (1, 1));
}

#[tokio::test]
async fn a_registry_that_comes_back_hears_everything_in_order() {
    let world = World::of(mends()).await;
    let registry = Rest::start(|_, before| Some((if before < 2 { 503 } else { 204 }, "", Value::Null))).await;
    let _worker = with(world.builder("w"), "TASK_REGISTRY", &registry.url).start().await;
    let record = world.run("default.t4", json!({})).await;
    succeeded(&record);
    assert_eq!(record.warnings, Vec::<String>::new());
    let taken: Vec<Asked> = registry.asked().split_off(2);
    let posts = taken.iter().filter(|asked| asked.method == "POST");
    let numbers: Vec<u64> = posts
        .flat_map(|asked| asked.json()["events"].as_array().expect("events").clone())
        .map(|event| event["number"].as_u64().expect("a number"))
        .collect();
    assert_eq!(numbers, (1..=world.told("t4").await.len() as u64).collect::<Vec<_>>());
    assert_eq!(taken.last().expect("an end").json()["state"], "succeeded");
}

#[tokio::test]
async fn without_the_pool_no_job_begins() {
    let world = World::of(mends()).await;
    let _worker = with(world.builder("w"), "REPO_POOL", &nowhere()).start().await;
    let record = world.run("default.t5", json!({})).await;
    assert_eq!(record.state, State::Failed, "{record:#?}");
    assert_eq!(record.error.as_ref().map(|error| error.code), Some(Code::WorkspaceFailed));
    let report = report(&record);
    assert_eq!((phases(&report), report.phases[0].retries), (vec![JobPhase::Slot], 4));
    assert_eq!((world.model.requests().len(), world.repo.branches().len()), (0, 0));
}

#[tokio::test]
async fn a_pool_that_stays_full_fails_the_job_before_its_deadline() {
    let world = World::of(mends()).await;
    let pool = Rest::start(|_, _| Some((409, "Retry-After: 1\r\n", Value::Null))).await;
    let _worker = with(world.builder("w"), "REPO_POOL", &pool.url).start().await;
    let mut job = world.job(json!({}));
    job["timeout"] = "10s".into();
    let record = world.fleet.run("default.t6", &job).await;
    let error = record.error.as_ref().expect("an error");
    assert_eq!(error.code, Code::WorkspaceFailed, "{error:?}");
    assert!(error.message.contains("409"), "{error:?}");
    assert!(pool.of("POST").len() > 1 && pool.of("DELETE").is_empty());
}

#[tokio::test]
async fn a_full_pool_is_waited_for_and_its_slot_is_renewed_until_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let gate = folder.path().join("gate");
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    let mut turns = mends();
    turns
        .as_array_mut()
        .expect("turns")
        .insert(0, json!({"calls": [{"name": "run_command", "arguments": {"command": wait}}]}));
    let world = World::of(turns).await;
    let pool = Rest::start(|asked, before| match (asked.method.as_str(), before) {
        (_, 0) => Some((409, "Retry-After: 0\r\n", Value::Null)),
        (_, 1) => Some((429, "Retry-After: 1\r\n", Value::Null)),
        ("POST", _) => Some((201, "", json!({"slot": "s7", "lease_s": 1, "of": "tomorrow"}))),
        _ => Some((200, "", json!({}))),
    })
    .await;
    let _worker = with(world.builder("w"), "REPO_POOL", &pool.url).start().await;
    world.fleet.publish("default.t7", &world.job(json!({}))).await;
    eventually("the slot is renewed", async || {
        let renewed = pool.of("PUT");
        if renewed.len() >= 3 { Ok(()) } else { Err(format!("{:?}", pool.asked())) }
    })
    .await;
    std::fs::write(&gate, "").expect("a gate");
    let record = world.fleet.ended("default.t7").await;
    succeeded(&record);
    assert_eq!(report(&record).phases[0].retries, 2);
    assert!(pool.of("PUT").iter().all(|asked| asked.path == "/api/slots/s7"));
    let last = pool.asked().pop().expect("the end");
    assert_eq!((last.method.as_str(), last.path.as_str()), ("DELETE", "/api/slots/s7"));
    assert_eq!((pool.of("POST").len(), pool.of("DELETE").len()), (3, 1));
}

#[tokio::test]
async fn a_service_with_a_password_in_its_url_is_refused_and_not_repeated() {
    let world = World::of(json!([])).await;
    let url = "http://somebody:hunter2@127.0.0.1:1";
    let mut worker = world.builder("w").env("TASK_REGISTRY_URL", url).spawn();
    let output = worker.wait().await;
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("task registry") && !output.stderr.contains("hunter2"), "{output:?}");
    assert!(output.stderr.contains("try: correct TASK_REGISTRY_URL") && !output.stderr.contains("git"), "{output:?}");
}
