//! Submitting with nothing but a NATS client; the id as a lock.

use async_nats::jetstream::kv::Operation;
use futures_util::StreamExt;
use schemas::{Outcome, State};

use crate::support::{Fleet, Publish, RawClient, With, echo, eventually, in_time, noop, process, shell};

#[tokio::test]
async fn a_publish_by_hand_runs_and_its_record_is_read_with_a_plain_get() {
    let mut fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let task = process(&["sh", "-c", "printf hi > $SHOAL_RESULT_FILE"]).to_string();
    RawClient::connect(&fleet.nats().address()).await.publish("shoal.tasks.default.by-hand", task.as_bytes()).await;

    // A plain KV get: bucket and key as the design names them, nothing of ours in between.
    let store =
        eventually("the bucket", async || fleet.js.get_key_value("shoal_tasks").await.map_err(|e| e.to_string())).await;
    let record = eventually("a terminal record", async || {
        let bytes = store.get("default.by-hand").await.map_err(|e| e.to_string())?.ok_or("none")?;
        let record: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        if record["ended_at"].is_string() { Ok(record) } else { Err(record.to_string()) }
    })
    .await;
    assert_eq!(record["id"], "by-hand");
    assert_eq!(record["queue"], "default");
    assert_eq!(record["state"], "succeeded");
    assert_eq!(record["result"]["inline"], "aGk=");
    assert_eq!(record["attempts"][0]["worker"], "w");
    assert_eq!(record["attempts"][0]["number"], 1);
    assert_eq!(record["attempts"][0]["exit_code"], 0);
    assert_eq!(record["task"]["workload"]["kind"], "process");
    fleet.message_gone("default.by-hand").await;
}

#[tokio::test]
async fn a_python_client_submits_waits_and_reads() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".tools/venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `scripts/setup tests`", python.display());
    let mut command = std::process::Command::new(python);
    command.arg(root.join("tests/python/raw_client.py")).arg(fleet.url());
    let output = crate::support::Program::spawn("python", fleet.folder(), command, std::process::Stdio::null())
        .wait()
        .await
        .ok();
    let said = output.json();
    assert_eq!(said["result"], "from python");
    assert_eq!(said["refused"], 10077);
    // And what it saw is what is there.
    let record = fleet.record("default.python-1").await.expect("a record");
    assert_eq!(record.state, State::Succeeded);
    assert_eq!(said["sequence"], record.sequence);
}

#[tokio::test]
async fn a_worker_makes_what_is_missing_by_itself() {
    let fleet = Fleet::builder().bare().start().await;
    let _worker = fleet.worker("w").start().await;
    assert_eq!(fleet.run("default.first", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_queued_id_is_a_lock() {
    let fleet = Fleet::start().await;
    fleet.publish("default.a", &noop()).await;
    assert_eq!(fleet.try_publish("default.a", &noop()).await, Err(10077));
    let _worker = fleet.worker("w").start().await;
    assert_eq!(fleet.ended("default.a").await.state, State::Succeeded);
}

#[tokio::test]
async fn a_running_id_is_a_lock() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    job.started(1).await;
    assert_eq!(fleet.try_publish("default.a", &noop()).await, Err(10077));
    job.open();
    assert_eq!(fleet.ended("default.a").await.state, State::Succeeded);
    assert_eq!(job.starts(), 1);
}

#[tokio::test]
async fn a_finished_id_runs_again_under_a_new_sequence() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let first = fleet.run("default.a", &echo("one")).await;
    fleet.message_gone("default.a").await;
    let second = fleet.run("default.a", &echo("two")).await;
    assert!(second.sequence > first.sequence);
    assert_eq!(second.attempts.len(), 1, "a new run begins with no attempts: {second:?}");
    let bytes = second.result.expect("a result").inline_bytes().expect("inline").expect("base64");
    assert_eq!(bytes, b"\"two\"");
}

#[tokio::test]
async fn with_once_a_finished_id_does_not_run_again() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let (once, again) = (fleet.job(), fleet.job());
    let send =
        |task: String| fleet.send(Publish::new(fleet.subject("default.a"), task).header(schemas::header::ONCE, "true"));
    let first = send(once.script("").to_string()).await.expect("accepted");
    let record = fleet.run_ended("default.a", first).await;
    assert_eq!((record.state, once.starts()), (State::Succeeded, 1));
    fleet.message_gone("default.a").await;

    let second = send(again.script("").to_string()).await.expect("accepted");
    assert!(second > first);
    fleet.message_gone("default.a").await;
    // One worker with one slot: what is published later ends later.
    fleet.run("default.later", &noop()).await;
    assert_eq!(again.starts(), 0);
    let kept = fleet.record("default.a").await.expect("a record");
    assert_eq!((kept.sequence, kept.state), (first, State::Succeeded));
    assert!(fleet.dead("default.a").await.is_empty());
}

#[tokio::test]
async fn the_same_id_in_two_queues_is_two_tasks() {
    let fleet = Fleet::start().await;
    let (one, two) = (fleet.publish("one.a", &echo(1)).await, fleet.publish("two.a", &echo(2)).await);
    let _worker = fleet.worker("w").queues("one,two").start().await;
    for (key, sequence, result) in [("one.a", one, "1"), ("two.a", two, "2")] {
        let record = fleet.run_ended(key, sequence).await;
        let bytes = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
        assert_eq!(bytes, result.as_bytes());
    }
}

#[tokio::test]
async fn the_submitters_own_id_is_kept_in_the_record() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let publish = Publish::new(fleet.subject("default.a"), noop().to_string());
    let publish = publish.header(schemas::header::SUBMISSION, "mine-7").header("Nats-Msg-Id", "mine-7");
    let sequence = fleet.send(publish).await.expect("accepted");
    assert_eq!(fleet.run_ended("default.a", sequence).await.submission.as_deref(), Some("mine-7"));
}

#[tokio::test]
async fn fields_of_a_newer_version_run_and_are_passed_on() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let task = noop().with("from_the_future", 7);
    let record = fleet.run("default.a", &task).await;
    assert_eq!(record.state, State::Succeeded);
    assert!(record.task.expect("kept").get().contains("from_the_future"));
}

#[tokio::test]
async fn an_event_is_told_after_its_record_can_be_read() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    for n in 0..20 {
        let key = format!("default.e-{n}");
        let mut events = fleet.nats.subscribe(format!("shoal.events.tasks.{key}")).await.expect("subscribed");
        fleet.nats.flush().await.expect("the server has the subscription");
        fleet.publish(&key, &noop()).await;
        loop {
            let event = in_time("an event of the end", events.next()).await.expect("the subscription lives");
            let told: schemas::TaskRecord = serde_json::from_slice(&event.payload).expect("an event is a record");
            // Read at once: what is told has been stored.
            let (revision, stored) = fleet.try_record(&key).await.expect("readable").expect("stored before it is told");
            let header = event.headers.as_ref().and_then(|h| h.get(schemas::header::REVISION)).expect("Shoal-Revision");
            let header: u64 = header.as_str().parse().expect("a number");
            assert!(revision >= header);
            if told.state.is_terminal() {
                assert_eq!((revision, stored.state), (header, told.state));
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_record_tells_attempts_phases_and_use() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let record = fleet.run("default.a", &shell("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; sleep 0.3")).await;
    let [attempt] = &record.attempts[..] else { panic!("one attempt: {record:?}") };
    assert_eq!(attempt.outcome, Outcome::Exited);
    assert_eq!(attempt.exit_code, Some(0));
    assert!(attempt.start.is_some() && attempt.instance.is_some());
    let (started, ended) = (attempt.phases.started.expect("started"), attempt.phases.ended.expect("ended"));
    assert!(record.submitted_at <= started, "{record:?}");
    assert!(ended.since(started).as_millis() >= 300, "{record:?}");
    assert!(record.ended_at.expect("ended_at") >= ended);
    let usage = attempt.usage.as_ref().expect("usage of a process is known");
    assert!(usage.wall_ms >= 300, "{usage:?}");
    assert!(usage.cpu_ms.is_some_and(|cpu| cpu > 0), "{usage:?}");
    assert!(usage.peak_memory_bytes.is_some_and(|peak| peak > 100_000), "{usage:?}");
}

#[tokio::test]
async fn finished_records_stay_as_kv_entries_and_nothing_else_does() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(8).start().await;
    let tasks: Vec<_> = (0..50).map(|n| (format!("default.t-{n}"), noop())).collect();
    fleet.publish_all(&tasks).await;
    fleet.drained().await;
    let store = fleet.js.get_key_value("shoal_tasks").await.expect("the bucket");
    for (key, _) in &tasks {
        let entry = store.entry(key).await.expect("readable").expect("there");
        assert_eq!(entry.operation, Operation::Put);
    }
    assert_eq!(store.keys().await.expect("keys").count().await, 50);
    let consumer = fleet.consumer("default").await;
    assert_eq!((consumer.num_ack_pending, consumer.num_pending), (0, 0));
}
