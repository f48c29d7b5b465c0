//! Old and new binaries in one fleet. What a newer one leaves half way (played by a plain client, with fields and words of
//! tomorrow) is taken over by today's, ends right and loses nothing of it.

use std::time::Duration;

use async_nats::jetstream::{AckKind, consumer::pull, message::Message};
use futures_util::StreamExt;
use schemas::{State, TaskKey};
use serde_json::{Value, json};

use crate::support::{Fleet, Publish, With, curl, echo, eventually, noop, old_binary, shell};

/// What a newer version knows and this one does not.
fn tomorrow() -> Value {
    json!({"deep": [1, {"er": null}], "text": "ä"})
}

/// Hands a task out as a newer worker would get it. The queue has been made.
async fn taken(fleet: &Fleet, queue: &str) -> Message {
    let stream = fleet.stream(&fleet.names.tasks_stream()).await;
    let consumer = stream.get_consumer::<pull::Config>(queue).await.expect("the queue is made");
    let mut batch = consumer.fetch().max_messages(1).expires(Duration::from_secs(5)).messages().await.expect("a pull");
    batch.next().await.expect("a task waits").expect("it is handed out")
}

/// A record as a newer worker writes it: fields of tomorrow at every depth, and an attempt with an outcome of tomorrow.
async fn newer_record(fleet: &Fleet, key: &str, sequence: u64, state: &str) -> Value {
    let id: TaskKey = key.parse().expect("a key");
    let message = fleet.message(key).await.expect("its message is there");
    let task: Value = serde_json::from_slice(&message.payload).expect("a task");
    // A run is its sequence and the moment when it was stored.
    let stored_at = schemas::Timestamp::from_millis((message.time.unix_timestamp_nanos() / 1_000_000) as i64);
    let attempt = |outcome: &str| {
        json!({
            "start": format!("newer{}", outcome.replace('_', "")), "worker": "w-newer", "instance": "i9", "outcome": outcome,
            "phases": {"started": "2026-11-20T10:00:00.000Z", "tomorrow": tomorrow()},
            "usage": {"wall_ms": 5, "gpu_ms": 7}, "tomorrow": tomorrow(),
        })
    };
    let mut attempts = vec![attempt("moved_away")];
    if state == "running" {
        attempts.push(attempt("running"));
    }
    json!({
        "id": id.id, "queue": id.queue, "sequence": sequence, "state": state, "task": task, "attempts": attempts,
        "submitted_at": stored_at.to_string(), "tomorrow": tomorrow(),
    })
}

/// Writes it as a newer worker does.
async fn put(fleet: &Fleet, key: &str, record: &Value) {
    let subject = fleet.names.record_subject(&key.parse().expect("a key"));
    let state = record["state"].as_str().expect("a state");
    fleet.send(Publish::new(subject, record.to_string()).header("Shoal-State", state)).await.expect("it is stored");
}

async fn raw_record(fleet: &Fleet, key: &str) -> Value {
    let found = fleet.get(&fleet.names.records_bucket(), key).await.expect("readable");
    serde_json::from_slice(&found.expect("there is a record").1).expect("JSON")
}

/// The record still says what the newer version put there.
#[track_caller]
fn keeps_tomorrow(record: &Value) {
    assert_eq!(record["tomorrow"], tomorrow(), "{record:#}");
    let first = &record["attempts"][0];
    assert_eq!(first["outcome"], "moved_away", "{record:#}");
    assert_eq!((&first["tomorrow"], &first["phases"]["tomorrow"]), (&tomorrow(), &tomorrow()), "{record:#}");
    assert_eq!(first["usage"]["gpu_ms"], 7, "{record:#}");
}

async fn fleet_with_queue() -> Fleet {
    let fleet = Fleet::start().await;
    fleet.shoal(&["queues", "set", "default", "--cap", "100"]).await.ok();
    fleet
}

#[tokio::test]
async fn what_a_newer_worker_handed_back_is_retried_and_ended_with_all_that_it_wrote() {
    let fleet = fleet_with_queue().await;
    let task = shell("test \"$SHOAL_TASK_ATTEMPT\" = 2").retried(2, "100ms").with("tomorrow", tomorrow());
    let sequence = fleet.publish("default.a", &task).await;
    let message = taken(&fleet, "default").await;
    put(&fleet, "default.a", &newer_record(&fleet, "default.a", sequence, "retrying").await).await;
    message.ack_with(AckKind::Nak(None)).await.expect("the server is there");

    let _worker = fleet.worker("w").start().await;
    let ended = fleet.run_ended("default.a", sequence).await;
    // One that failed and one that did not, behind the one of tomorrow: claim, retry and end were written over it.
    assert_eq!((ended.state, ended.attempts.len()), (State::Succeeded, 3), "{ended:?}");
    let record = raw_record(&fleet, "default.a").await;
    keeps_tomorrow(&record);
    assert_eq!(record["task"]["tomorrow"], tomorrow(), "{record:#}");
    fleet.message_gone("default.a").await;

    let shown = fleet.shoal(&["get", "default.a", "-o", "json"]).await.ok().json();
    keeps_tomorrow(&shown);
    fleet.shoal(&["get", "default.a"]).await.ok();
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    keeps_tomorrow(&curl(&[&format!("{http}/api/tasks/default.a")]).await.status(200).json());
}

#[tokio::test]
async fn what_a_newer_worker_was_lost_with_is_claimed_over_and_keeps_all_that_it_wrote() {
    let fleet = fleet_with_queue().await;
    let sequence = fleet.publish("default.a", &noop()).await;
    let _message = taken(&fleet, "default").await;
    put(&fleet, "default.a", &newer_record(&fleet, "default.a", sequence, "running").await).await;

    let _worker = fleet.worker("w").start().await;
    let ended = fleet.run_ended("default.a", sequence).await;
    assert_eq!(ended.state, State::Succeeded);
    let record = raw_record(&fleet, "default.a").await;
    keeps_tomorrow(&record);
    let lost = &record["attempts"][1];
    assert_eq!((&lost["outcome"], &lost["tomorrow"]), (&json!("lost"), &tomorrow()), "{record:#}");
    assert_eq!(record["attempts"][2]["number"], 1, "{record:#}");
}

#[tokio::test]
async fn a_canceller_ends_what_a_newer_worker_runs_and_keeps_all_that_it_wrote() {
    let fleet = fleet_with_queue().await;
    for (key, state) in [("default.runs", "running"), ("default.waits", "retrying")] {
        let sequence = fleet.publish(key, &noop().with("stop_grace", "100ms")).await;
        let _message = taken(&fleet, "default").await;
        put(&fleet, key, &newer_record(&fleet, key, sequence, state).await).await;
        fleet.shoal(&["cancel", key, "--reason", "enough"]).await.ok();
        let record = raw_record(&fleet, key).await;
        assert_eq!(
            (&record["state"], &record["cancel"]["reason"]),
            (&json!("cancelled"), &json!("enough")),
            "{record:#}"
        );
        keeps_tomorrow(&record);
    }
    let record = raw_record(&fleet, "default.runs").await;
    let ended = &record["attempts"][1];
    assert_eq!((&ended["outcome"], &ended["phases"]["tomorrow"]), (&json!("cancelled"), &tomorrow()), "{record:#}");
}

#[tokio::test]
async fn what_a_newer_version_adds_to_a_running_task_stays_through_its_end() {
    let fleet = fleet_with_queue().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("")).await;
    job.started(1).await;
    fleet.in_state("default.a", State::Running).await;
    let mut record = raw_record(&fleet, "default.a").await;
    record["tomorrow"] = tomorrow();
    put(&fleet, "default.a", &record).await;
    job.open();
    assert_eq!(fleet.run_ended("default.a", sequence).await.state, State::Succeeded);
    assert_eq!(raw_record(&fleet, "default.a").await["tomorrow"], tomorrow());
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_dispatcher_ends_what_lost_its_message_and_keeps_all_that_a_newer_worker_wrote() {
    let fleet = fleet_with_queue().await;
    let sequence = fleet.publish("default.a", &noop()).await;
    put(&fleet, "default.a", &newer_record(&fleet, "default.a", sequence, "running").await).await;
    fleet.stream(&fleet.names.tasks_stream()).await.delete_message(sequence).await.expect("it is there");
    let _dispatcher = fleet.dispatcher(&[]).await;
    assert_eq!(fleet.run_ended("default.a", sequence).await.state, State::Lost);
    let record = raw_record(&fleet, "default.a").await;
    keeps_tomorrow(&record);
    assert_eq!(record["attempts"][1]["tomorrow"], tomorrow(), "{record:#}");
}

#[tokio::test]
async fn a_state_of_tomorrow_is_left_to_a_newer_worker_and_holds_up_nothing() {
    let fleet = fleet_with_queue().await;
    let sequence = fleet.publish("default.a", &noop()).await;
    let record = newer_record(&fleet, "default.a", sequence, "frozen_by_hand").await;
    put(&fleet, "default.a", &record).await;
    let message = taken(&fleet, "default").await;
    message.ack_with(AckKind::Nak(None)).await.expect("the server is there");
    // Room for one alone.
    let worker = fleet.worker("w").start().await;
    worker.logged("newer version").await;
    assert_eq!(fleet.run("default.b", &noop()).await.state, State::Succeeded);
    assert_eq!(raw_record(&fleet, "default.a").await, record, "not ours to write over");
    assert_eq!(fleet.message("default.a").await.map(|message| message.sequence), Some(sequence));
    let said = fleet.shoal(&["get", "default.a"]).await.exit(1);
    assert!(said.stderr.contains("newer version"), "{said:?}");
}

#[tokio::test]
async fn settings_of_a_newer_version_stay_through_every_change_of_todays() {
    let fleet = fleet_with_queue().await;
    let subject = fleet.names.queue_subject(&"default".parse().expect("a queue"));
    let newer = json!({
        "cap": 100, "on_disconnect": "ask_somebody", "tomorrow": tomorrow(),
        "defaults": {"timeout": "1m", "tomorrow": tomorrow(), "retry": {"max_attempts": 2, "tomorrow": tomorrow()}},
    });
    fleet.send(Publish::new(&subject, newer.to_string())).await.expect("stored");
    for change in [
        &["queues", "set", "default", "--cap", "7"][..],
        &["queues", "pause", "default"],
        &["queues", "resume", "default"],
    ] {
        fleet.shoal(change).await.ok();
        let found = fleet.get(&fleet.names.queues_bucket(), "default").await.expect("readable").expect("there");
        let set: Value = serde_json::from_slice(&found.1).expect("JSON");
        assert_eq!((&set["tomorrow"], &set["on_disconnect"]), (&tomorrow(), &json!("ask_somebody")), "{set:#}");
        assert_eq!(set["defaults"]["tomorrow"], tomorrow(), "{set:#}");
        assert_eq!(set["defaults"]["retry"]["tomorrow"], tomorrow(), "{set:#}");
        assert_eq!(set["cap"], 7, "{set:#}");
    }
    let shown = fleet.shoal(&["queues", "list", "-o", "json"]).await.ok().stdout;
    assert!(shown.contains("ask_somebody") && shown.contains("tomorrow"), "{shown}");
    // A worker takes from them what it knows: the retry is theirs.
    let _worker = fleet.worker("w").start().await;
    let ended = fleet.run("default.a", &shell("test \"$SHOAL_TASK_ATTEMPT\" = 2")).await;
    assert_eq!((ended.state, ended.attempts.len()), (State::Succeeded, 2), "{ended:?}");
}

#[tokio::test]
async fn a_newer_agent_is_listed_beaten_for_and_marked_offline_with_all_that_it_wrote() {
    let fleet = Fleet::builder().env("SHOAL_HEARTBEAT", "300ms").start().await;
    let (_dispatcher, http) = fleet.dispatcher(&[]).await;
    let now = schemas::Timestamp::now();
    for (id, kind) in [("x-newer", "external"), ("b-newer", "browser")] {
        let record = json!({
            "id": id, "instance": "i9", "kind": kind, "hostname": "h", "version": "9.0.0", "status": "dreaming",
            "runtimes": {"wasm": {"version": "1", "tomorrow": tomorrow()}}, "tomorrow": tomorrow(),
            "free": {"cpu_millis": 1, "memory_bytes": 2, "disk_bytes": 3, "gpus": 4},
            "registered_at": now, "last_heartbeat": now,
        });
        let subject = fleet.names.agent_subject(&id.parse().expect("an id"));
        fleet.send(Publish::new(subject, record.to_string())).await.expect("stored");
    }
    let keeps = |agent: &Value| {
        assert_eq!((&agent["tomorrow"], &agent["free"]["gpus"]), (&tomorrow(), &json!(4)), "{agent:#}");
        assert_eq!(agent["runtimes"]["wasm"]["tomorrow"], tomorrow(), "{agent:#}");
    };
    let listed = fleet.shoal(&["agents", "list", "-o", "json"]).await.ok().stdout;
    for word in ["browser", "x-newer", "b-newer"] {
        assert!(listed.contains(word), "{listed}");
    }
    let beaten = curl(&["-X", "POST", &format!("{http}/api/agents/x-newer/heartbeat")]).await.status(200).json();
    keeps(&beaten);
    for id in ["x-newer", "b-newer"] {
        let marked = eventually(format!("{id} is marked offline"), async || {
            let found = fleet.get(&fleet.names.agents_bucket(), id).await?.ok_or("gone")?;
            let agent: Value = serde_json::from_slice(&found.1).map_err(|error| error.to_string())?;
            if agent["status"] == "offline" { Ok(agent) } else { Err(agent.to_string()) }
        })
        .await;
        keeps(&marked);
        keeps(&curl(&[&format!("{http}/api/agents/{id}")]).await.status(200).json());
    }
}

/// With `SHOAL_OLD_BINARY` it is two builds that share the work; without, the test of the test.
#[tokio::test]
async fn two_builds_share_a_load_of_workers_and_dispatchers() {
    let fleet = Fleet::start().await;
    let old = old_binary();
    let (_old_dispatcher, _) = fleet.dispatcher_of(&old, &[]).await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let mut leaves = fleet.worker("old").binary(&old).slots(4).start().await;
    let _stays = fleet.worker("new").slots(4).start().await;
    let tasks: Vec<(String, Value)> = (0..120)
        .map(|n| {
            let task = match n % 4 {
                0 => noop(),
                1 => echo(n),
                2 => shell("sleep 0.2"),
                _ => shell("test \"$SHOAL_TASK_ATTEMPT\" = 2").retried(2, "50ms"),
            };
            (format!("default.t{n}"), task.with("tomorrow", tomorrow()))
        })
        .collect();
    let sequences = fleet.publish_all(&tasks).await;
    // In the middle of it the old one is told to go.
    fleet.ended("default.t20").await;
    leaves.terminate();
    leaves.wait().await.exit(0);
    for ((key, _), sequence) in tasks.iter().zip(sequences) {
        let ended = fleet.run_ended(key, sequence).await;
        assert_eq!(ended.state, State::Succeeded, "{ended:?}");
        assert_eq!(raw_record(&fleet, key).await["task"]["tomorrow"], tomorrow());
    }
    fleet.drained().await;
}
