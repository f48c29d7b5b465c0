//! What `docs/inspecting.md` says that the `nats` CLI shows, read the way that program reads it: with JetStream's own calls.

use std::collections::BTreeSet;

use async_nats::jetstream::stream::{DiscardPolicy, RetentionPolicy};
use futures_util::TryStreamExt;
use schemas::{AgentStatus, State};
use serde_json::{Value, json};

use crate::support::{Fleet, eventually, noop};

#[tokio::test]
async fn every_store_is_there_under_its_plain_name() {
    let fleet = Fleet::start().await;
    let mut names: Vec<String> = fleet.js.stream_names().try_collect().await.expect("names of streams");
    names.sort();
    let expected = [
        "KV_shoal_agents",
        "KV_shoal_functions",
        "KV_shoal_instances",
        "KV_shoal_playbooks",
        "KV_shoal_queues",
        "KV_shoal_slots",
        "KV_shoal_tasks",
        "OBJ_shoal_artifacts",
        "OBJ_shoal_artifacts_14d",
        "OBJ_shoal_artifacts_30d",
        "SHOAL_AGENTS",
        "SHOAL_DEAD",
        "SHOAL_ENSURE",
        "SHOAL_LOGS",
        "SHOAL_TASKS",
    ];
    assert_eq!(names, expected);

    for name in ["SHOAL_TASKS", "SHOAL_ENSURE"] {
        let config = fleet.stream(name).await.cached_info().config.clone();
        assert_eq!(config.retention, RetentionPolicy::WorkQueue, "{name}");
        assert_eq!((config.max_messages_per_subject, config.discard), (1, DiscardPolicy::New), "{name}");
    }
    for name in ["SHOAL_LOGS", "SHOAL_DEAD", "SHOAL_AGENTS"] {
        assert_eq!(fleet.stream(name).await.cached_info().config.retention, RetentionPolicy::Limits, "{name}");
    }
    for bucket in [
        "shoal_tasks",
        "shoal_agents",
        "shoal_queues",
        "shoal_functions",
        "shoal_instances",
        "shoal_slots",
        "shoal_playbooks",
    ] {
        let store = fleet.js.get_key_value(bucket).await.unwrap_or_else(|e| panic!("bucket {bucket}: {e}"));
        assert_eq!(store.stream.cached_info().config.max_messages_per_subject, 1, "{bucket}");
    }
    fleet.js.get_object_store("shoal_artifacts").await.expect("the object store");
}

#[tokio::test]
async fn a_queued_task_is_found_by_its_id_alone() {
    let fleet = Fleet::start().await;
    let sequence = fleet.publish("reports.order-42", &noop()).await;
    let tasks = fleet.stream("SHOAL_TASKS").await;
    // As `nats stream get SHOAL_TASKS --last-for 'shoal.tasks.*.order-42'` asks.
    let message = tasks.get_last_raw_message_by_subject("shoal.tasks.*.order-42").await.expect("the message");
    assert_eq!((message.sequence, message.subject.as_str()), (sequence, "shoal.tasks.reports.order-42"));
    assert_eq!(serde_json::from_slice::<Value>(&message.payload).expect("JSON"), noop());
    // As `nats stream subjects SHOAL_TASKS` asks.
    let subjects: Vec<(String, usize)> =
        tasks.info_with_subjects("shoal.tasks.>").await.expect("subjects").try_collect().await.expect("all of them");
    assert_eq!(subjects, [("shoal.tasks.reports.order-42".to_owned(), 1)]);
    assert!(fleet.record("reports.order-42").await.is_none(), "what waits has no record");
}

#[tokio::test]
async fn a_queue_is_a_consumer_that_counts_what_waits_and_what_is_out() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(1).start().await;
    let job = fleet.job();
    fleet.publish("default.out", &job.gated("")).await;
    job.started(1).await;
    for id in ["a", "b"] {
        fleet.publish(&format!("default.{id}"), &noop()).await;
    }
    eventually("one out, two waiting", async || {
        let consumer = fleet.consumer("default").await;
        match (consumer.num_ack_pending, consumer.num_pending) {
            (1, 2) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    fleet.shoal(&["queues", "pause", "default", "--for", "1h"]).await.ok();
    assert!(fleet.consumer("default").await.paused);
    let settings = fleet.get("shoal_queues", "default").await.expect("readable").expect("an entry").1;
    let settings: Value = serde_json::from_slice(&settings).expect("JSON");
    assert!(settings["paused_until"].is_string(), "{settings}");
    job.open();
}

#[tokio::test]
async fn a_worker_is_drained_by_a_plain_request() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").start().await;
    fleet.agent_is("w", AgentStatus::Ready).await;
    assert_eq!(fleet.agents().await, BTreeSet::from(["w".to_owned()]));
    let body = json!({"grace": "1m"}).to_string();
    let answer = fleet.nats.request("shoal.control.w.drain", body.into()).await.expect("the worker answers");
    assert_eq!(serde_json::from_slice::<Value>(&answer.payload).expect("JSON"), json!({"running": 0}));
    fleet.agent_is("w", AgentStatus::Offline).await;
    assert_eq!(worker.wait().await.code, 0);
}

#[tokio::test]
async fn a_log_is_a_piece_of_output_under_the_start_that_the_record_names() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let record = fleet.run("default.talker", &crate::support::shell("echo one; echo two >&2")).await;
    assert_eq!(record.state, State::Succeeded);
    let start = record.attempts[0].start.as_ref().expect("a start id").to_string();
    for (source, text) in [("stdout", "one\n"), ("stderr", "two\n")] {
        let pieces = fleet.messages("SHOAL_LOGS", &format!("shoal.logs.default.talker.{start}.{source}")).await;
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.payload.to_vec()).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), text, "{source}");
    }
}
