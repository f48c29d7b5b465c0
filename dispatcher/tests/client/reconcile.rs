//! What dispatchers do besides, and their health, against a real server. The rhythm is quick; the rules are the same.

use std::net::SocketAddr;
use std::time::Duration;

use async_nats::HeaderMap;
use schemas::stores::StoreSettings;
use schemas::{
    AgentKind, AgentRecord, AgentStatus, Code, HumanDuration, Outcome, State, TaskKey, TaskRecord, Timestamp, header,
};
use shoal_dispatcher::client::{Client, Submission, record};
use shoal_dispatcher::{Config, topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Hand, Server, eventually, fleet, key, queue, task};

const EVERY: Duration = Duration::from_millis(200);
const BEAT: Duration = Duration::from_millis(500);

/// A dispatcher in this process.
struct Dispatcher {
    http: SocketAddr,
    _stop: DropGuard,
}

impl Dispatcher {
    async fn start(server: &Server) -> Self {
        let connection = server.client().await.connection;
        let config = Config {
            names: schemas::Names::default(),
            stores: StoreSettings::default(),
            http: ([127, 0, 0, 1], 0).into(),
            http_settings: Default::default(),
            reconcile_every: EVERY,
            heartbeat: BEAT,
        };
        let stop = CancellationToken::new();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        tokio::spawn(shoal_dispatcher::run(config, connection, stop.clone(), ready));
        Self { http: is_ready.await.expect("it gets ready"), _stop: stop.drop_guard() }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

async fn record_of(client: &Client, key: &TaskKey) -> Option<TaskRecord> {
    Some(record::read(&client.js, &client.names, key).await.unwrap().recorded?.record)
}

async fn record_in(client: &Client, key: &TaskKey, state: State) -> TaskRecord {
    eventually(|| async { record_of(client, key).await.filter(|record| record.state == state) }).await
}

/// A task that must be started within `after`.
fn expiring(text: &str, after: Duration) -> Submission {
    let at = Timestamp::now().plus(after);
    let payload = format!(r#"{{"workload":{{"kind":"call","handler":"noop"}},"expires_at":"{at}"}}"#);
    let TaskKey { queue, id } = key(text);
    Submission::checked(queue, Some(id), payload).unwrap()
}

/// A client, once the server answers.
async fn try_client(url: &str) -> Option<Client> {
    let settings = jetstream::ConnectSettings { url: Some(url.to_owned()), ..Default::default() };
    let client = Client::new(settings.connect("test").await.ok()?, schemas::Names::default());
    client.js.stream_state(&client.names.tasks_stream()).await.ok()?;
    Some(client)
}

/// Time for several looks.
async fn several_looks() {
    tokio::time::sleep(EVERY * 6).await;
}

#[tokio::test]
async fn a_task_that_nobody_pulls_expires_and_frees_its_id() {
    let (server, client) = fleet().await;
    let _dispatchers = (Dispatcher::start(&server).await, Dispatcher::start(&server).await);
    let submitted = client.submit(expiring("q.late", Duration::from_millis(600))).await.unwrap();
    client.submit(task("q.patient")).await.unwrap();
    let ended = client.wait(&key("q.late"), Some(submitted.sequence), Some(Duration::from_secs(10))).await.unwrap();
    assert_eq!(ended.record.state, State::Expired);
    assert_eq!(ended.record.error.as_ref().unwrap().code, Code::Expired);
    assert_eq!(ended.record.submission, Some(submitted.submission));
    assert!(ended.record.task.is_some());
    eventually(|| async { Hand(&client).queued(&key("q.late")).await.is_none().then_some(()) }).await;
    assert!(Hand(&client).queued(&key("q.patient")).await.is_some(), "no deadline, no end");
    // The id is free, and a run of it replaces the record.
    Hand(&client).run("q.late", State::Succeeded).await;
}

#[tokio::test]
async fn a_task_that_was_handed_out_is_left_to_its_holder_for_two_leases() {
    let (server, client) = fleet().await;
    let stores = StoreSettings { ack_wait: HumanDuration::seconds(1), ..StoreSettings::default() };
    topology::ensure_queue(&client.js, &client.names, &stores, &queue("q")).await.unwrap();
    let _dispatcher = Dispatcher::start(&server).await;
    let submitted = client.submit(expiring("q.held", Duration::from_millis(500))).await.unwrap();
    Hand(&client).pull("q").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(record_of(&client, &key("q.held")).await.is_none(), "its start may not show yet");
    let ended = record_in(&client, &key("q.held"), State::Expired).await;
    assert_eq!(ended.sequence, submitted.sequence);
    // The next delivery finds the record and acks.
    assert_eq!(Hand(&client).queued(&key("q.held")).await, Some(submitted.sequence));
}

#[tokio::test]
async fn a_task_that_was_started_never_expires() {
    let (server, client) = fleet().await;
    Hand(&client).bind("q").await;
    let submitted = client.submit(expiring("q.runs", Duration::from_millis(500))).await.unwrap();
    Hand(&client).pull("q").await;
    let running = Hand(&client).record(&key("q.runs"), submitted.sequence, State::Running);
    Hand(&client).write(&running, 0).await;
    let _dispatcher = Dispatcher::start(&server).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    several_looks().await;
    assert_eq!(record_of(&client, &key("q.runs")).await.unwrap().state, State::Running);
}

#[tokio::test]
async fn a_message_of_no_queue_becomes_one_dead_letter() {
    let (server, client) = fleet().await;
    let mut headers = HeaderMap::new();
    headers.insert("X-Mine", "kept");
    headers.insert("Nats-Msg-Id", "theirs");
    let stored = client.js.publish("shoal.tasks.Bad!.x:1".into(), headers, "\u{0}raw".into()).await.unwrap();
    let _dispatchers = (Dispatcher::start(&server).await, Dispatcher::start(&server).await);
    let stream = client.names.tasks_stream();
    eventually(|| async { client.js.at(&stream, stored.sequence).await.unwrap().is_none().then_some(()) }).await;
    several_looks().await;
    let letters = client.js.page(&client.names.dead_stream(), "shoal.dead.>", 1, 10).await.unwrap().messages;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.subject, "shoal.dead.Bad!.x:1");
    assert_eq!(letter.payload.as_ref(), b"\x00raw");
    let sequence = stored.sequence.to_string();
    // What paged reads add of their own aside.
    let read =
        ["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"];
    for (name, _) in letter.headers.iter() {
        let name = name.to_string();
        assert!(!name.starts_with("Nats-") || read.contains(&name.as_str()), "{name}");
    }
    for (name, value) in [
        (header::REASON, Some("invalid_id")),
        (header::SUBJECT, Some("shoal.tasks.Bad!.x:1")),
        (header::SEQUENCE, Some(sequence.as_str())),
        (header::ATTEMPTS, Some("0")),
        (header::NATS_MSG_ID, None),
        ("X-Mine", Some("kept")),
    ] {
        assert_eq!(letter.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn an_unfinished_record_without_a_message_is_lost_and_others_are_untouched() {
    let (server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("q").await;
    let mut sequences = Vec::new();
    for (name, state) in [
        ("q.gone", State::Running),
        ("q.gone-retrying", State::Retrying),
        ("q.runs", State::Running),
        ("q.retries", State::Retrying),
    ] {
        let submitted = client.submit(task(name)).await.unwrap();
        hand.pull("q").await;
        hand.write(&hand.record(&key(name), submitted.sequence, state), 0).await;
        sequences.push(submitted.sequence);
    }
    let _dispatchers = (Dispatcher::start(&server).await, Dispatcher::start(&server).await);
    several_looks().await;
    assert_eq!(record_of(&client, &key("q.gone")).await.unwrap().state, State::Running, "its message is there");
    for sequence in &sequences[..2] {
        assert!(client.js.delete(&client.names.tasks_stream(), *sequence).await.unwrap());
    }
    let lost = record_in(&client, &key("q.gone"), State::Lost).await;
    assert_eq!(lost.error.as_ref().unwrap().code, Code::MessageLost);
    assert_eq!((lost.attempts[0].outcome, lost.attempts[0].number), (Outcome::Lost, None));
    let lost = record_in(&client, &key("q.gone-retrying"), State::Lost).await;
    assert_eq!((lost.attempts[0].outcome, lost.retry_at), (Outcome::Exited, None));
    several_looks().await;
    assert_eq!(record_of(&client, &key("q.runs")).await.unwrap().state, State::Running);
    assert_eq!(record_of(&client, &key("q.retries")).await.unwrap().state, State::Retrying);
}

#[tokio::test]
async fn a_lost_message_is_found_behind_more_records_than_one_turn_reads() {
    let (server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("q").await;
    let fillers = (0..3_500).map(|n| {
        let subject = client.names.record_subject(&key(&format!("q.filler-{n}")));
        client.js.publish(subject, async_nats::HeaderMap::new(), "{}".into())
    });
    for stored in futures_util::future::join_all(fillers).await {
        stored.unwrap();
    }
    let submitted = client.submit(task("q.gone")).await.unwrap();
    hand.pull("q").await;
    hand.write(&hand.record(&key("q.gone"), submitted.sequence, State::Running), 0).await;
    assert!(client.js.delete(&client.names.tasks_stream(), submitted.sequence).await.unwrap());
    let _dispatcher = Dispatcher::start(&server).await;
    let lost = record_in(&client, &key("q.gone"), State::Lost).await;
    assert_eq!(lost.error.as_ref().unwrap().code, Code::MessageLost);
}

/// Puts an agent's record, as a beat does.
async fn beat(client: &Client, id: &str) {
    let now = Timestamp::now();
    let agent = AgentRecord {
        id: id.parse().unwrap(),
        instance: "b1".into(),
        kind: AgentKind::Worker,
        hostname: "h".into(),
        address: None,
        port: None,
        version: "0".into(),
        status: AgentStatus::Ready,
        reason: None,
        queues: Vec::new(),
        labels: Default::default(),
        runtimes: Default::default(),
        slots: 1,
        slots_taken: None,
        running: Vec::new(),
        running_count: 0,
        free: None,
        registered_at: now,
        // A clock that is an hour ahead saves nobody.
        last_heartbeat: now.plus(Duration::from_secs(3600)),
        last_fetch: None,
        last_ack: None,
        more: Default::default(),
    };
    let mut value = serde_json::to_value(&agent).unwrap();
    value["from_a_newer_version"] = true.into();
    let payload = serde_json::to_vec(&value).unwrap();
    client.js.publish(client.names.agent_subject(&agent.id), HeaderMap::new(), payload.into()).await.unwrap();
}

async fn agent(client: &Client, id: &str) -> serde_json::Value {
    let subject = client.names.agent_subject(&id.parse().unwrap());
    let stream = format!("KV_{}", client.names.agents_bucket());
    let stored = client.js.last(&stream, &subject).await.unwrap().unwrap();
    serde_json::from_slice(&stored.payload).unwrap()
}

#[tokio::test]
async fn a_silent_agent_is_offline_after_three_beats_and_back_by_its_own() {
    let (server, client) = fleet().await;
    let _dispatchers = (Dispatcher::start(&server).await, Dispatcher::start(&server).await);
    beat(&client, "silent").await;
    let begun = std::time::Instant::now();
    eventually(|| async { (agent(&client, "silent").await["status"] == "offline").then_some(()) }).await;
    assert!(begun.elapsed() > BEAT * 3, "{:?}", begun.elapsed());
    let marked = agent(&client, "silent").await;
    assert!(marked["reason"].as_str().unwrap().contains("no heartbeat"), "{marked}");
    assert_eq!(marked["from_a_newer_version"], true);
    beat(&client, "silent").await;
    assert_eq!(agent(&client, "silent").await["status"], "ready");
    tokio::time::sleep(BEAT * 2).await;
    assert_eq!(agent(&client, "silent").await["status"], "ready");
}

#[tokio::test]
async fn an_observer_that_was_cut_off_judges_nobody() {
    let (mut server, client) = fleet().await;
    let dispatcher = Dispatcher::start(&server).await;
    beat(&client, "w-1").await;
    tokio::time::sleep(BEAT).await;
    server.kill();
    // Longer than it takes to be called silent.
    tokio::time::sleep(BEAT * 5).await;
    server.start_again();
    let back = eventually(|| async { try_client(&server.url()).await }).await;
    eventually(|| async { Some(dispatcher.get("/health/ready").await).filter(|(code, _)| *code == 200) }).await;
    // Its entry is old now, and whoever looked only at that would be wrong. Two looks, less than a window.
    tokio::time::sleep(BEAT * 2).await;
    assert_eq!(agent(&back, "w-1").await["status"], "ready");
    for _ in 0..10 {
        beat(&back, "w-1").await;
        tokio::time::sleep(BEAT / 2).await;
        assert_eq!(agent(&back, "w-1").await["status"], "ready");
    }
    // Having seen enough, it judges again.
    eventually(|| async { (agent(&back, "w-1").await["status"] == "offline").then_some(()) }).await;
}

#[tokio::test]
async fn ready_means_connected_with_the_stores_there() {
    let (mut server, _client) = fleet().await;
    let dispatcher = Dispatcher::start(&server).await;
    assert_eq!(dispatcher.get("/health/live").await.0, 200);
    assert_eq!(dispatcher.get("/health/ready").await.0, 200);
    server.kill();
    let down = || async { Some(dispatcher.get("/health/ready").await).filter(|(code, _)| *code == 503) };
    let (_, body) = eventually(down).await;
    assert!(body.contains("reason"), "{body}");
    assert_eq!(dispatcher.get("/health/live").await.0, 200);
    server.start_again();
    eventually(|| async { Some(dispatcher.get("/health/ready").await).filter(|(code, _)| *code == 200) }).await;
}

/// A function that is defined, with an instance by hand.
async fn function(client: &Client, min: u32) -> (shoal_dispatcher::client::Functions, schemas::FunctionName) {
    let caller = client.functions(None);
    let name: schemas::FunctionName = "f".parse().unwrap();
    let mut function = schemas::Function::new("a:1");
    (function.min, function.max) = (min, 3);
    caller.apply(&name, function).await.unwrap();
    (caller, name)
}

fn instance(index: u32, status: &str, spec: &str) -> schemas::Instance {
    serde_json::from_value(serde_json::json!({
        "function": "f", "index": index, "status": status, "id": "1", "worker": "w-1", "boot": "b", "start": "abc111",
        "revision": 1, "spec": spec, "created_at": Timestamp::now(),
    }))
    .unwrap()
}

/// What is wished for, by slot.
async fn wishes(client: &Client) -> Vec<(String, schemas::function::EnsureRequest)> {
    let (stream, filter) = (client.names.ensure_stream(), client.names.ensure_subjects());
    let page = client.js.page(&stream, &filter, 1, 100).await.unwrap();
    let read = |message: jetstream::StoredMessage| {
        (message.subject, serde_json::from_slice(&message.payload).expect("a wish"))
    };
    page.messages.into_iter().map(read).collect()
}

async fn purge_wishes(client: &Client) {
    let page = client.js.page(&client.names.ensure_stream(), &client.names.ensure_subjects(), 1, 100).await.unwrap();
    for message in page.messages {
        client.js.delete(&client.names.ensure_stream(), message.sequence).await.unwrap();
    }
}

#[tokio::test]
async fn instances_below_min_are_wished_for_again_and_again() {
    let (server, client) = fleet().await;
    let (caller, _) = function(&client, 2).await;
    purge_wishes(&client).await;
    let _dispatcher = Dispatcher::start(&server).await;
    let both = |wishes: &[(String, _)]| wishes.len() == 2;
    eventually(|| async { both(&wishes(&client).await).then_some(()) }).await;
    // As if it had come to nothing.
    purge_wishes(&client).await;
    eventually(|| async { both(&wishes(&client).await).then_some(()) }).await;

    let failed = instance(0, "failed", "0");
    let error = schemas::TaskError::new(Code::ImageNotFound, "none");
    let retry_at = Some(Timestamp::now().plus(Duration::from_secs(600)));
    let failed = schemas::Instance { id: None, start: None, error: Some(error), retry_at, ..failed };
    caller.put_instance(&failed, 0).await.unwrap().unwrap();
    purge_wishes(&client).await;
    eventually(|| async { (wishes(&client).await.len() == 1).then_some(()) }).await;
    several_looks().await;
    let left = wishes(&client).await;
    assert_eq!((left.len(), left[0].0.as_str()), (1, "shoal.ensure.default.f.1"), "not before `retry_at`");
}

#[tokio::test]
async fn instances_of_a_worker_that_is_gone_are_replaced_below_min_and_forgotten_above() {
    let (server, client) = fleet().await;
    let (caller, name) = function(&client, 1).await;
    let spec = caller.defined(&name).await.unwrap().function.spec();
    for (index, status) in [(0, "ready"), (1, "ready"), (2, "stopping")] {
        caller.put_instance(&instance(index, status, &spec), 0).await.unwrap().unwrap();
    }
    // The worker is there.
    let nats = client.js.client().clone();
    let mut asked = nats.subscribe(client.names.info_subject(&"w-1".parse().unwrap())).await.unwrap();
    nats.flush().await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = futures_util::StreamExt::next(&mut asked).await {
            nats.publish(request.reply.unwrap(), "{}".into()).await.unwrap();
        }
    });
    purge_wishes(&client).await;
    let _dispatcher = Dispatcher::start(&server).await;
    several_looks().await;
    assert!(wishes(&client).await.is_empty());
    assert_eq!(caller.instances(None).await.unwrap().len(), 3);
    // And gone.
    answering.abort();
    let wished = eventually(|| async { wishes(&client).await.pop() }).await;
    assert_eq!(wished.0, "shoal.ensure.default.f.0");
    assert_eq!(wished.1.gone, Some("abc111".parse().unwrap()));
    eventually(|| async { (caller.instances(None).await.unwrap().len() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn instances_of_a_deleted_function_are_told_to_stop_and_an_older_definition_is_replaced() {
    let (server, client) = fleet().await;
    let (caller, name) = function(&client, 0).await;
    let nats = client.js.client().clone();
    let mut asked = nats.subscribe(client.names.info_subject(&"w-1".parse().unwrap())).await.unwrap();
    nats.flush().await.unwrap();
    let _answering = tokio::spawn(async move {
        while let Some(request) = futures_util::StreamExt::next(&mut asked).await {
            nats.publish(request.reply.unwrap(), "{}".into()).await.unwrap();
        }
    });
    caller.put_instance(&instance(0, "ready", "older"), 0).await.unwrap().unwrap();
    let _dispatcher = Dispatcher::start(&server).await;
    let wished = eventually(|| async { wishes(&client).await.pop() }).await;
    assert_eq!((wished.0.as_str(), wished.1.gone), ("shoal.ensure.default.f.0", None));

    assert!(caller.delete(&name).await.unwrap());
    eventually(|| async {
        let (instance, _) = caller.instance(&name, 0).await.unwrap();
        (instance?.status == schemas::InstanceStatus::Stopping).then_some(())
    })
    .await;
}
