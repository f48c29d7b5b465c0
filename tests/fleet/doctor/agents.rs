//! The registry against reality, and queues.

use std::time::Duration;

use async_nats::jetstream::consumer::{PriorityPolicy, pull};
use async_nats::service::ServiceExt;
use futures_util::StreamExt;
use schemas::{AgentRecord, AgentStatus, Timestamp};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{codes, examine, examine_with, find, found, message};
use crate::support::{Fleet, Publish, eventually, freeze, noop, signal};

/// A worker that beats once and then not again for as long as a test lasts.
const ONCE: (&str, &str) = ("SHOAL_HEARTBEAT", "1h");
/// So doctor takes its silence for what it is.
const PATIENT: [&str; 2] = ["--heartbeat", "1h"];

/// Writes an agent's record over.
async fn forge(fleet: &Fleet, id: &str, change: impl FnOnce(&mut AgentRecord)) {
    let mut record = fleet.agent_where(id, "registered", |_| true).await;
    change(&mut record);
    let store = fleet.js.get_key_value("shoal_agents").await.expect("the registry");
    store.put(record.id.as_str(), serde_json::to_vec(&record).expect("JSON").into()).await.expect("stored");
}

#[tokio::test]
async fn a_frozen_worker_gives_no_answer_and_then_is_silent() {
    let fleet = Fleet::start().await;
    let worker = fleet.worker("w").start().await;
    freeze(worker.pid());
    // As long as its last beat is young.
    let report = examine(&fleet, &PATIENT).await;
    let finding = find(&report, "agent_no_answer").unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&finding["about"], &finding["severity"]), (&json!("agent w"), &json!("warning")));
    let finding = found(&fleet, "agent_silent", "agent w", &[]).await;
    assert!(message(&finding).starts_with("it says `ready` and has not beaten for"), "{finding}");
    signal(worker.pid(), libc::SIGCONT);
    eventually("all is well again", async || match codes(&examine(&fleet, &[]).await)[..] {
        [("no_dispatcher", _)] => Ok(()),
        ref others => Err(format!("{others:?}")),
    })
    .await;
}

#[tokio::test]
async fn an_agent_whose_clock_is_off_is_told_by_its_beat() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").env(ONCE.0, ONCE.1).start().await;
    assert!(find(&examine(&fleet, &PATIENT).await, "agent_clock_off").is_none());
    let hour = Duration::from_secs(3600);
    forge(&fleet, "w", |record| record.last_heartbeat = Timestamp::now().plus(hour)).await;
    let report = examine(&fleet, &PATIENT).await;
    let finding = find(&report, "agent_clock_off").expect("it");
    assert!(
        message(finding).starts_with("its clock is 1h") || message(finding).starts_with("its clock is 59m"),
        "{finding}"
    );
    assert!(message(finding).contains("ahead of"), "{finding}");
    let back = Timestamp::from_millis(Timestamp::now().as_millis() - 3_600_000);
    forge(&fleet, "w", |record| {
        // One that nobody can ask.
        record.id = "external".parse().expect("an id");
        record.kind = schemas::AgentKind::External;
        record.last_heartbeat = back;
    })
    .await;
    let report = examine(&fleet, &PATIENT).await;
    assert!(codes(&report).contains(&("agent_clock_off", "agent external")), "{report}");
    assert!(report["findings"].to_string().contains("behind the server's"), "{report}");
}

/// A way to the server on which the server's clock is years behind.
async fn through_another_time(address: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("nats://{}", listener.local_addr().expect("its address"));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&address).await.expect("the server");
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 20];
                while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                    let stamp = b"\"ts\":\"20";
                    // As long as it was, so that the lengths of messages stay right.
                    for at in 0..read.saturating_sub(stamp.len() + 2) {
                        if buffer[at..].starts_with(stamp) {
                            buffer[at + stamp.len()..at + stamp.len() + 2].copy_from_slice(b"20");
                        }
                    }
                    if to_client.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn a_clock_that_differs_from_the_servers_is_told() {
    let mut fleet = Fleet::start().await;
    let url = through_another_time(fleet.nats().address()).await;
    let report = examine_with(&fleet, &[], &[("SHOAL_NATS_URL", &url)]).await;
    let finding = find(&report, "clock_off").unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&finding["severity"], &finding["about"]), (&json!("error"), &json!("this machine")));
    assert!(message(finding).contains("ahead of the server's"), "{finding}");
    assert!(find(&examine(&fleet, &[]).await, "clock_off").is_none());
}

#[tokio::test]
async fn a_worker_that_beats_but_takes_nothing_is_told_with_its_reason() {
    let fleet = Fleet::start().await;
    let socket = fleet.folder().join("engine.sock");
    // It is there, and nobody listens.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
    let nowhere = format!("unix://{}", socket.display());
    let _worker = fleet.worker("w").runtimes("docker").env("SHOAL_DOCKER_HOST", &nowhere).spawn();
    let finding = found(&fleet, "agent_not_fetching", "agent w", &[]).await;
    assert!(message(&finding).contains("the runtime `docker` is down"), "{finding}");
}

#[tokio::test]
async fn who_answers_though_the_registry_says_otherwise_is_told() {
    let fleet = Fleet::start().await;
    let _offline = fleet.worker("offline").env(ONCE.0, ONCE.1).start().await;
    let _missing = fleet.worker("missing").env(ONCE.0, ONCE.1).start().await;
    fleet.agent_is("missing", AgentStatus::Ready).await;
    fleet.agent_is("offline", AgentStatus::Ready).await;
    forge(&fleet, "offline", |record| record.status = AgentStatus::Offline).await;
    let store = fleet.js.get_key_value("shoal_agents").await.expect("the registry");
    store.purge("missing").await.expect("purged");
    let report = examine(&fleet, &PATIENT).await;
    assert_eq!(find(&report, "offline_agent_answers").expect("it")["about"], "agent offline");
    assert_eq!(find(&report, "agent_not_registered").expect("it")["about"], "agent missing");
}

#[tokio::test]
async fn two_workers_of_one_id_are_told() {
    let fleet = Fleet::start().await;
    let elsewhere = |name: &str| fleet.folder().join(name).display().to_string();
    let _one = fleet.worker("w").env("SHOAL_STATE_DIR", &elsewhere("one")).start().await;
    let _two = fleet.worker("w").env("SHOAL_STATE_DIR", &elsewhere("two")).start().await;
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "agent_id_twice").unwrap_or_else(|| panic!("{report}"));
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["evidence"]["instances"].as_array().expect("instances").len(), 2);
}

/// Answers for a worker that is none, as `record` says.
async fn pretends(fleet: &Fleet, record: Value) -> impl Sized + use<> {
    let id = record["id"].as_str().expect("an id").to_owned();
    let store = fleet.js.get_key_value("shoal_agents").await.expect("the registry");
    store.put(&id, record.to_string().into()).await.expect("stored");
    let service = fleet.nats.service_builder();
    let metadata = [("worker", id.as_str()), ("instance", "i1"), ("queues", "default")];
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let service = service.metadata(metadata).start("shoal-worker", "0.1.0").await.expect("a service");
    let mut info = service.endpoint(format!("shoal.control.{id}.info")).await.expect("an endpoint");
    let answering = tokio::spawn(async move {
        while let Some(request) = info.next().await {
            let _ = request.respond(Ok(record.to_string().into())).await;
        }
    });
    (service, answering)
}

#[tokio::test]
async fn slots_that_are_taken_by_nothing_are_told() {
    let fleet = Fleet::start().await;
    let now = Timestamp::now().to_string();
    let record = |id: &str, taken: u32| {
        json!({
            "id": id, "instance": "i1", "kind": "worker", "hostname": "h", "version": "0.1.0", "status": "ready",
            "queues": ["default"], "slots": 4, "slots_taken": taken, "running_count": 0,
            "registered_at": now, "last_heartbeat": now, "last_fetch": now,
        })
    };
    let _leaks = pretends(&fleet, record("leaks", 3)).await;
    let _fine = pretends(&fleet, record("fine", 0)).await;
    let report = examine(&fleet, &PATIENT).await;
    let finding = find(&report, "slots_leaked").unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&finding["about"], &finding["severity"]), (&json!("agent leaks"), &json!("error")));
    let evidence = &finding["evidence"];
    assert_eq!((&evidence["taken"], &evidence["running"], &evidence["leaked"]), (&json!(3), &json!(0), &json!(3)));
    assert_eq!(codes(&report).iter().filter(|(code, _)| *code == "slots_leaked").count(), 1, "{report}");
}

#[tokio::test]
async fn a_queue_that_could_hand_out_and_does_not_is_stuck() {
    let fleet = Fleet::start().await;
    // Its consumer gives to pulls of a group only beyond a threshold: it waits, and so do they.
    let config = pull::Config {
        durable_name: Some("default".into()),
        filter_subject: "shoal.tasks.default.*".into(),
        priority_policy: PriorityPolicy::Overflow,
        priority_groups: vec!["a".into()],
        max_waiting: 16_384,
        max_ack_pending: 100_000,
        ..Default::default()
    };
    fleet.stream("SHOAL_TASKS").await.create_consumer(config).await.expect("a consumer");
    fleet.publish("default.a", &noop()).await;
    let inbox = fleet.nats.new_inbox();
    let _open = fleet.nats.subscribe(inbox.clone()).await.expect("an inbox");
    let body = json!({"batch": 1, "expires": 120_000_000_000_u64, "group": "a", "min_pending": 1_000});
    let next = "$JS.API.CONSUMER.MSG.NEXT.SHOAL_TASKS.default";
    fleet.nats.publish_with_reply(next, inbox, body.to_string().into()).await.expect("sent");
    let finding = found(&fleet, "queue_stuck", "queue default", &[]).await;
    assert_eq!(finding["severity"], "error");
    assert_eq!((&finding["evidence"]["waiting"], &finding["evidence"]["pulls"]), (&json!(1), &json!(1)));
    let report = examine(&fleet, &[]).await;
    let drifted = find(&report, "queue_drifted").expect("it");
    assert!(drifted["evidence"].get("priority_groups").is_some(), "{drifted}");

    // A pause is somebody's wish.
    fleet.shoal(&["queues", "pause", "default"]).await.ok();
    assert!(find(&examine(&fleet, &[]).await, "queue_stuck").is_none());
}

#[tokio::test]
async fn tasks_that_nobody_serves_and_subjects_that_no_queue_has_are_told() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").queues("served").start().await;
    fleet.publish("unserved.a", &noop()).await;
    fleet.send(Publish::new(fleet.subject("No-Queue.a"), noop().to_string())).await.expect("stored");
    let report = examine(&fleet, &[]).await;
    assert_eq!(find(&report, "queue_without_worker").expect("it")["about"], "queue unserved");
    let strange = find(&report, "unroutable_messages").expect("it");
    assert_eq!(strange["evidence"]["subjects"], json!(["shoal.tasks.No-Queue.a"]));

    // A queue whose worker has gone.
    worker.terminate();
    worker.wait().await;
    fleet.publish("served.a", &noop()).await;
    let finding = found(&fleet, "queue_without_worker", "queue served", &[]).await;
    assert!(finding["next"].as_str().expect("text").contains("shoal worker --queues served"), "{finding}");
}

#[tokio::test]
async fn a_queue_whose_consumer_was_changed_by_hand_is_told() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.shoal(&["queues", "set", "default", "--cap", "7"]).await.ok();
    assert_eq!(codes(&examine(&fleet, &[]).await), [("no_dispatcher", "fleet shoal")]);
    let mut config = fleet.consumer("default").await.config;
    config.max_ack_pending = 9;
    let pull =
        async_nats::jetstream::consumer::FromConsumer::try_from_consumer_config(config).expect("a pull consumer");
    let pull: pull::Config = pull;
    fleet.stream("SHOAL_TASKS").await.create_consumer(pull).await.expect("updated");
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "queue_drifted").expect("it");
    assert_eq!(finding["evidence"]["max_ack_pending"], json!({"is": 9, "wanted": 7}));
    assert!(finding["next"].as_str().expect("text").contains("shoal queues set default --cap 7"), "{finding}");
}
