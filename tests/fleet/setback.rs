//! The server's own store loses something: an older copy put back, a damaged block, an empty file. Nothing accepted is
//! lost in silence: it runs, or a record says that it is lost, and the loss is noted where everybody can read it.

use std::time::Duration;

use futures_util::StreamExt;
use schemas::loss::{self, LOSS, Loss};
use schemas::{Code, State, TaskRecord, Timestamp};
use serde_json::json;

use crate::support::{Fleet, Publish, With, eventually, noop, shell};

const TASKS: &str = "SHOAL_TASKS";
const RECORDS: &str = "KV_shoal_tasks";

/// What is noted on the stream of tasks.
async fn losses(fleet: &Fleet) -> Result<Vec<Loss>, String> {
    let mut stream = fleet.js.get_stream(TASKS).await.map_err(|e| e.to_string())?;
    let info = stream.info().await.map_err(|e| e.to_string())?;
    Ok(loss::read(info.config.metadata.get(LOSS)))
}

/// Waits until a loss of `stream` is noted.
async fn noted(fleet: &Fleet, stream: &str) -> Loss {
    eventually(format!("a note that {stream} lost something"), async || {
        let losses = losses(fleet).await?;
        losses.iter().find(|loss| loss.stream == stream).cloned().ok_or(format!("{losses:?}"))
    })
    .await
}

/// Waits until a dispatcher has seen all that was published before: what expires was stored a whole rhythm ago, in which
/// every duty has looked.
async fn seen_by_dispatcher(fleet: &Fleet) {
    let key = format!("nobodys.m-{}", crate::support::random_word());
    let soon = Timestamp::now().to_string();
    fleet.publish(&key, &noop().with("expires_at", soon)).await;
    fleet.in_state(&key, State::Expired).await;
}

fn code(record: &TaskRecord) -> Code {
    record.error.as_ref().unwrap_or_else(|| panic!("no error: {record:?}")).code
}

#[tokio::test]
async fn a_used_id_runs_again_although_its_record_names_a_later_run() {
    let mut fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let (job, once) = (fleet.job(), fleet.job());
    fleet.nats().back_up("old", &[TASKS]).await;
    fleet.reachable().await;
    // Each fills one number, so that `again` stands under a higher one than it will get, and `same` under the same.
    let same = fleet.run("default.same", &job.script("true")).await;
    for n in 0..5 {
        fleet.run(&format!("default.fill-{n}"), &noop()).await;
    }
    let again = fleet.run("default.again", &job.script("true")).await;
    fleet.run("default.once", &once.script("true")).await;
    assert_eq!(job.starts(), 2);

    fleet.nats().roll_back("old", &[TASKS]).await;
    fleet.reachable().await;
    let sequence = fleet.publish("default.same", &job.script("true")).await;
    assert_eq!(sequence, same.sequence, "the stream counts on from where the copy ended");
    let second =
        fleet.record_where("default.same", "of the new run", |record| record.submitted_at != same.submitted_at).await;
    let second = match second.state.is_terminal() {
        true => second,
        false => fleet.ended("default.same").await,
    };
    assert_eq!((second.state, second.attempts.len()), (State::Succeeded, 1), "{second:?}");

    // While it waits, everybody sees it wait, not the end of the other.
    let gate = fleet.job();
    let held = fleet.publish("default.gate", &gate.gated("true")).await;
    gate.started(1).await;
    let sequence = fleet.publish("default.again", &job.script("true")).await;
    assert!(held < sequence && sequence < again.sequence);
    let shown = fleet.shoal(&["get", "default.again", "-o", "json"]).await.ok().json();
    assert_eq!((shown["state"].as_str(), shown["sequence"].as_u64()), (Some("queued"), Some(sequence)));
    let refused = fleet.shoal(&["retry", "default.again"]).await.exit(1);
    assert!(refused.stderr.contains("queued"), "it is not over: {refused:?}");
    let mut wait = fleet.spawn(&["wait", "default.again"], "");
    gate.open();
    assert_eq!(wait.wait().await.code, 0);
    let record = fleet.run_ended("default.again", sequence).await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    assert_eq!(job.starts(), 4, "each run once");

    // `once` asks for no record, and there is one.
    fleet
        .send(Publish::new(fleet.subject("default.once"), once.script("true").to_string()).header("Shoal-Once", "true"))
        .await
        .expect("accepted");
    fleet.message_gone("default.once").await;
    assert_eq!(once.starts(), 1);
    fleet.drained().await;
}

#[tokio::test]
async fn a_failure_under_a_number_given_twice_has_a_dead_letter_of_its_own() {
    let mut fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.nats().back_up("old", &[TASKS]).await;
    fleet.reachable().await;
    let first = fleet.run("default.a", &shell("exit 3")).await;
    fleet.dead_letter("default.a").await;
    fleet.nats().roll_back("old", &[TASKS]).await;
    fleet.reachable().await;
    assert_eq!(fleet.publish("default.a", &shell("exit 4")).await, first.sequence);
    fleet.message_gone("default.a").await;
    let record = fleet.record("default.a").await.expect("there");
    assert_eq!((record.state, record.attempts[0].exit_code), (State::Failed, Some(4)), "{record:?}");
    assert_eq!(fleet.dead("default.a").await.len(), 2);
}

#[tokio::test]
async fn what_came_back_with_an_older_store_is_not_run_again() {
    let mut fleet = Fleet::start().await;
    let (first, second) = (fleet.job(), fleet.job());
    let sequence = fleet.publish("default.a", &first.script("true")).await;
    fleet.publish("default.b", &first.script("true")).await;
    fleet.nats().back_up("old", &[TASKS]).await;
    fleet.reachable().await;
    let _worker = fleet.worker("w").start().await;
    fleet.run_ended("default.a", sequence).await;
    fleet.ended("default.b").await;
    fleet.drained().await;
    // Older by more than clocks may differ, as ids that are used again are.
    tokio::time::sleep(schemas::order::CLOCK_DOUBT + Duration::from_millis(100)).await;
    let later = fleet.run("default.b", &second.script("true")).await;
    fleet.nats().roll_back("old", &[TASKS]).await;
    fleet.reachable().await;
    // Both messages are there again; one finds its own end, the other that a later run has its record.
    fleet.drained().await;
    assert_eq!((first.starts(), second.starts()), (2, 1));
    assert_eq!(fleet.record("default.b").await.expect("there").sequence, later.sequence);
}

#[tokio::test]
async fn a_holder_from_before_a_set_back_takes_nothing_from_the_new_run() {
    for filler in [0, 2] {
        let mut fleet = Fleet::start().await;
        let mut superseded = fleet.nats.subscribe("shoal.events.superseded.default.a").await.expect("subscribed");
        let _first = fleet.worker("first").start().await;
        fleet.nats().back_up("old", &[TASKS]).await;
        fleet.reachable().await;
        for n in 0..filler {
            fleet.run(&format!("default.fill-{n}"), &noop()).await;
        }
        let (old, new) = (fleet.job(), fleet.job());
        let lost = fleet.publish("default.a", &old.gated("true")).await;
        fleet.in_state("default.a", State::Running).await;
        old.started(1).await;
        fleet.nats().roll_back("old", &[TASKS]).await;
        fleet.reachable().await;
        let _second = fleet.worker("second").start().await;
        let sequence = fleet.publish("default.a", &new.gated("true")).await;
        assert_eq!(sequence + filler, lost);
        new.started(1).await;
        // It runs under its own record, and the end of the other neither replaces that nor acks its message.
        fleet
            .record_where("default.a", "of the new run", |record| {
                record.sequence == sequence
                    && !record.attempts.is_empty()
                    && record.attempts[0].worker.as_ref().is_some_and(|worker| worker.as_str() == "second")
            })
            .await;
        old.open();
        let event = crate::support::in_time("a superseded end", superseded.next()).await.expect("an event");
        let ended: TaskRecord = serde_json::from_slice(&event.payload).expect("a record");
        assert_eq!(ended.sequence, lost);
        assert!(fleet.message("default.a").await.is_some(), "still in the hands of the second");
        new.open();
        let record = fleet.run_ended("default.a", sequence).await;
        assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
        fleet.drained().await;
        assert_eq!((old.starts(), new.starts()), (1, 1));
    }
}

#[tokio::test]
async fn queued_tasks_that_went_with_the_store_are_marked_lost_and_the_loss_is_noted() {
    let mut fleet = Fleet::start().await;
    let (mut dispatcher, _) = fleet.dispatcher(&[]).await;
    let (_other, _) = fleet.dispatcher(&[]).await;
    fleet.nats().back_up("old", &[TASKS]).await;
    fleet.reachable().await;
    let task = noop().with("labels", json!({"n": "1"}));
    let sequence = fleet.publish("default.a", &task).await;
    fleet.publish("default.b", &task).await;
    seen_by_dispatcher(&fleet).await;
    let before = fleet.stream(TASKS).await.cached_info().state.last_sequence;
    fleet.nats().roll_back("old", &[TASKS]).await;
    fleet.reachable().await;
    // Submitted again before anybody noticed: the id is the new run's.
    let again = fleet.publish("default.b", &task).await;
    let record = fleet.in_state("default.a", State::Lost).await;
    assert_eq!((record.sequence, code(&record)), (sequence, Code::MessageLost));
    assert!(record.task.is_some(), "kept, for a retry");
    let loss = noted(&fleet, TASKS).await;
    assert!(loss.from >= before && loss.to <= again, "{loss:?}");
    dispatcher.logged("went back").await;

    // An upgrade keeps the note; whoever has read it takes it off, and it does not come back.
    fleet.shoal(&["admin", "apply", "--logs-kept", "4d"]).await.ok();
    assert_eq!(losses(&fleet).await.expect("readable").len(), 1);
    let told = fleet.shoal(&["admin", "clear-loss"]).await.ok();
    assert!(told.stdout.contains(TASKS), "{told:?}");
    assert_eq!(losses(&fleet).await, Ok(Vec::new()));
    dispatcher.kill().await;
    let (_third, _) = fleet.dispatcher(&[]).await;
    seen_by_dispatcher(&fleet).await;
    assert_eq!(losses(&fleet).await, Ok(Vec::new()));

    fleet.shoal(&["retry", "default.a"]).await.ok();
    let _worker = fleet.worker("w").start().await;
    fleet.in_state("default.a", State::Succeeded).await;
    let record = fleet.run_ended("default.b", again).await;
    assert_eq!(record.state, State::Succeeded);
}

#[tokio::test]
async fn a_dispatcher_started_after_the_fact_tells_it_from_the_records() {
    let mut fleet = Fleet::start().await;
    fleet.nats().back_up("old", &[TASKS]).await;
    fleet.reachable().await;
    let _worker = fleet.worker("w").start().await;
    for n in 0..3 {
        fleet.run(&format!("default.a-{n}"), &noop()).await;
    }
    let last = fleet.run("default.last", &noop()).await;
    fleet.nats().roll_back("old", &[TASKS]).await;
    fleet.reachable().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let loss = noted(&fleet, TASKS).await;
    assert_eq!((loss.from, loss.to), (last.sequence, 0), "{loss:?}");
}

#[tokio::test]
async fn a_stream_made_anew_is_told_and_work_goes_on() {
    let fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let first = fleet.run("default.a", &noop()).await;
    fleet.run("default.b", &noop()).await;
    let waiting = fleet.publish("nobodys.c", &noop()).await;
    seen_by_dispatcher(&fleet).await;
    fleet.js.delete_stream(TASKS).await.expect("deleted");
    fleet.shoal(&["admin", "apply"]).await.ok();
    let loss = noted(&fleet, TASKS).await;
    assert!(loss.what.contains("anew") && loss.from >= waiting, "{loss:?}");
    assert_eq!(code(&fleet.in_state("nobodys.c", State::Lost).await), Code::MessageLost);
    let sequence = fleet.publish("default.a", &noop()).await;
    assert!(sequence <= first.sequence + 1);
    let record = fleet
        .record_where("default.a", "of the new run", |record| {
            record.state.is_terminal() && record.submitted_at > first.submitted_at
        })
        .await;
    assert_eq!((record.state, record.sequence), (State::Succeeded, sequence));
}

#[tokio::test]
async fn records_put_back_cost_no_running_task_its_end() {
    let mut fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").slots(2).start().await;
    fleet.nats().back_up("old", &[RECORDS]).await;
    fleet.reachable().await;
    for n in 0..20 {
        fleet.run(&format!("default.fill-{n}"), &noop()).await;
    }
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("printf kept > $SHOAL_RESULT_FILE")).await;
    fleet.in_state("default.a", State::Running).await;
    seen_by_dispatcher(&fleet).await;
    // It has seen a revision that the bucket will not reach again.
    let mut wait = fleet.spawn(&["wait", "default.a"], "");
    eventually("the waiter listens", async || match fleet.nats().listeners("shoal.events.tasks.default.a").await {
        0 => Err("nobody".into()),
        _ => Ok(()),
    })
    .await;
    fleet.nats().roll_back("old", &[RECORDS]).await;
    fleet.reachable().await;
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!((record.state, job.starts()), (State::Succeeded, 1), "{record:?}");
    assert_eq!(wait.wait().await.code, 0);
    noted(&fleet, RECORDS).await;
    fleet.drained().await;
}

#[tokio::test]
async fn a_whole_store_put_back_runs_again_what_it_no_longer_knows_to_be_done() {
    let mut fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let (kept, gone) = (fleet.job(), fleet.job());
    for n in 0..5 {
        fleet.publish(&format!("default.kept-{n}"), &kept.script("true")).await;
    }
    fleet.nats().back_up("old", &[TASKS, RECORDS]).await;
    fleet.reachable().await;
    let _worker = fleet.worker("w").start().await;
    for n in 0..5 {
        fleet.ended(&format!("default.kept-{n}")).await;
        fleet.run(&format!("default.gone-{n}"), &gone.script("true")).await;
    }
    seen_by_dispatcher(&fleet).await;
    fleet.nats().roll_back("old", &[TASKS, RECORDS]).await;
    fleet.reachable().await;
    for n in 0..5 {
        assert_eq!(fleet.ended(&format!("default.kept-{n}")).await.state, State::Succeeded);
    }
    fleet.drained().await;
    assert_eq!((kept.starts(), gone.starts()), (10, 5));
    // Of what ended in between nobody knows any more; that there was something is said.
    for stream in [TASKS, RECORDS] {
        let loss = noted(&fleet, stream).await;
        assert!(loss.from >= loss.to + 5, "{loss:?}");
    }
    for n in 0..5 {
        assert!(fleet.record(&format!("default.gone-{n}")).await.is_none());
        fleet.run(&format!("default.gone-{n}"), &gone.script("true")).await;
    }
}

/// Some done, many queued, then a part of the newest block gone.
async fn damaged(left: fn(u64) -> u64) {
    let mut fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let mut worker = fleet.worker("w").start().await;
    let done = fleet.job();
    for n in 0..5 {
        fleet.run(&format!("default.done-{n}"), &done.script("true")).await;
    }
    fleet.drained().await;
    worker.terminate();
    worker.wait().await;
    let queued = fleet.job();
    let mut keys = Vec::new();
    for n in 0..40 {
        let key = format!("default.q-{n}");
        fleet.publish(&key, &queued.script("true")).await;
        keys.push(key);
    }
    seen_by_dispatcher(&fleet).await;
    fleet.nats().truncate_block(TASKS, left).await;
    fleet.reachable().await;
    let _worker = fleet.worker("w").start().await;
    let (mut ran, mut lost) = (0, 0);
    for key in &keys {
        let record = fleet.ended(key).await;
        match record.state {
            State::Succeeded => ran += 1,
            State::Lost => {
                assert_eq!(code(&record), Code::MessageLost, "{record:?}");
                lost += 1;
            }
            other => panic!("{other:?}: {record:?}"),
        }
    }
    assert!(lost > 0, "the store was damaged");
    assert_eq!(queued.starts(), ran, "each that is left runs once");
    noted(&fleet, TASKS).await;
    // What the damage brought back is judged by its record, and holds its id no longer.
    fleet.drained().await;
    assert_eq!(done.starts(), 5);
    // New work goes through, also under numbers that were given before.
    for key in ["default.done-0", "default.q-39"] {
        let sequence = fleet.publish(key, &noop()).await;
        fleet.message_gone(key).await;
        let record = fleet.record(key).await.expect("there");
        assert_eq!((record.state, record.sequence), (State::Succeeded, sequence), "{record:?}");
    }
}

#[tokio::test]
async fn a_truncated_block_loses_nothing_in_silence() {
    damaged(|length| length * 2 / 3).await;
}

#[tokio::test]
async fn a_block_of_no_length_loses_nothing_in_silence() {
    damaged(|_| 0).await;
}

#[tokio::test]
async fn a_consumer_that_forgot_everything_loses_and_doubles_nothing() {
    let mut fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").slots(2).start().await;
    let (done, running) = (fleet.job(), fleet.job());
    for n in 0..3 {
        fleet.run(&format!("default.done-{n}"), &done.script("true")).await;
    }
    let sequence = fleet.publish("default.a", &running.gated("true")).await;
    fleet.in_state("default.a", State::Running).await;
    fleet.publish("default.b", &running.gated("true")).await;
    fleet.in_state("default.b", State::Running).await;
    fleet.publish("default.c", &done.script("true")).await;
    fleet.nats().empty_consumer_state(TASKS, "default").await;
    fleet.reachable().await;
    running.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    for key in ["default.b", "default.c"] {
        assert_eq!(fleet.ended(key).await.state, State::Succeeded);
    }
    fleet.drained().await;
    assert_eq!((running.starts(), done.starts()), (2, 4));
}

#[tokio::test]
async fn what_a_limit_of_deliveries_gave_up_is_handed_out_all_the_same() {
    let fleet = Fleet::start().await;
    let (dispatcher, _) = fleet.dispatcher(&[]).await;
    let stream = fleet.stream(TASKS).await;
    let by_hand = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("default".into()),
        filter_subject: "shoal.tasks.default.*".into(),
        ack_wait: Duration::from_secs(6),
        max_deliver: 1,
        ..Default::default()
    };
    stream.create_consumer(by_hand).await.expect("created");
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("true")).await;
    fleet.in_state("default.a", State::Running).await;
    worker.kill().await;
    job.open();
    let _worker = fleet.worker("v").start().await;
    assert_eq!(fleet.ended("default.a").await.state, State::Succeeded);
    fleet.drained().await;
    dispatcher.logged("never handed out again").await;
}

#[tokio::test]
async fn what_is_handed_out_again_for_others_sake_goes_on_where_it_runs() {
    let fleet = Fleet::start().await;
    let stream = fleet.stream(TASKS).await;
    let by_hand = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("default".into()),
        filter_subject: "shoal.tasks.default.*".into(),
        ack_wait: Duration::from_secs(6),
        max_deliver: 1,
        ..Default::default()
    };
    stream.create_consumer(by_hand).await.expect("created");
    let (given_up, long) = (fleet.job(), fleet.job());
    let mut worker = fleet.worker("w").start().await;
    fleet.publish("default.given-up", &given_up.gated("true")).await;
    fleet.in_state("default.given-up", State::Running).await;
    worker.kill().await;
    given_up.open();
    let _worker = fleet.worker("v").slots(2).start().await;
    eventually("nothing out", async || match fleet.consumer("default").await.num_ack_pending {
        0 => Ok(()),
        out => Err(format!("{out}")),
    })
    .await;
    fleet.run("default.next", &noop()).await;
    // With its ack the floor passes the one that was given up. Behind one that is out it would stay where it was.
    fleet.message_gone("default.next").await;
    // The queue is not idle any more when a dispatcher comes.
    let sequence = fleet.publish("default.long", &long.gated("true").with("on_lost", "fail")).await;
    fleet.in_state("default.long", State::Running).await;
    let (dispatcher, _) = fleet.dispatcher(&[]).await;
    assert_eq!(fleet.ended("default.given-up").await.state, State::Succeeded);
    dispatcher.logged("out=1").await;
    long.open();
    let record = fleet.run_ended("default.long", sequence).await;
    assert_eq!((record.state, record.attempts.len(), long.starts()), (State::Succeeded, 1, 1), "{record:?}");
    fleet.drained().await;
}

#[tokio::test]
async fn restarts_and_frozen_dispatchers_are_no_loss() {
    let mut fleet = Fleet::start().await;
    let (steady, _) = fleet.dispatcher(&[]).await;
    let (frozen, _) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").slots(4).start().await;
    let job = fleet.job();
    fleet.publish("default.long", &job.gated("true")).await;
    fleet.in_state("default.long", State::Running).await;
    for n in 0..20 {
        fleet.publish(&format!("nobodys.q-{n}"), &noop()).await;
    }
    seen_by_dispatcher(&fleet).await;
    let mut keys = Vec::new();
    for round in 0..4 {
        frozen.freeze();
        for n in 0..30 {
            let key = format!("default.r{round}-{n}");
            fleet.publish(&key, &noop()).await;
            keys.push(key);
        }
        fleet.nats().kill();
        if round % 2 == 0 {
            frozen.thaw();
        }
        fleet.nats().restart().await;
        fleet.reachable().await;
        frozen.thaw();
    }
    for key in &keys {
        assert_eq!(fleet.ended(key).await.state, State::Succeeded);
    }
    seen_by_dispatcher(&fleet).await;
    assert_eq!(losses(&fleet).await, Ok(Vec::new()));
    job.open();
    assert_eq!(fleet.ended("default.long").await.state, State::Succeeded);
    for n in 0..20 {
        let key = format!("nobodys.q-{n}");
        assert!(fleet.record(&key).await.is_none() && fleet.message(&key).await.is_some());
    }
    for dispatcher in [steady, frozen] {
        assert!(!dispatcher.stderr().contains("ERROR"), "{}", dispatcher.stderr());
    }
}

#[tokio::test]
async fn artifacts_past_their_retention_go_with_their_chunks_and_orphans() {
    let fleet = Fleet::builder().env("SHOAL_ARTIFACTS_KEPT", "3s").start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let task = job.script("head -c 600000 /dev/zero > big").with("artifacts", json!(["big"]));
    let record = fleet.run("default.a", &task).await;
    assert_eq!(record.artifacts.len(), 1, "{record:?}");
    // What an upload leaves that broke off before its name was written.
    fleet.send(Publish::new("$O.shoal_artifacts.C.orphan", vec![0; 1_000])).await.expect("stored");
    eventually("nothing left of artifacts", async || {
        match fleet.stream("OBJ_shoal_artifacts").await.cached_info().state.messages {
            0 => Ok(()),
            left => Err(format!("{left} messages")),
        }
    })
    .await;
}
