//! Messages that are no task, and dead letters: kept with bytes and reason, replayed, and nothing else stops (item 10).

use schemas::{Code, State};
use serde_json::json;

use crate::support::{Client, Fleet, Publish, RawClient, With, eventually, noop, process_runs, shell};

/// The largest message that the stream takes, in bytes of body and headers.
async fn largest(fleet: &Client) -> usize {
    let stream = fleet.stream("SHOAL_TASKS").await;
    usize::try_from(stream.cached_info().config.max_message_size).expect("it is bounded")
}

#[tokio::test]
async fn what_is_no_task_becomes_a_dead_letter_with_its_bytes_and_the_queue_goes_on() {
    let mut fleet = Fleet::start().await;
    let worker = fleet.worker("w").slots(2).start().await;
    fleet.run("default.before", &noop()).await;
    let largest = largest(&fleet).await;
    let connections = fleet.nats().monitor("/varz").await["total_connections"].clone();

    let mut huge = br#"{"workload":{"kind":"call","handler":"noop","payload":""#.to_vec();
    huge.resize(largest, b'x');
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("binary", vec![0x00, 0xff, 0xfe, 0x80, b'\r', b'\n', 0x00]),
        ("not-json", b"{\"workload\":".to_vec()),
        ("not-an-object", b"[1,2,3]".to_vec()),
        ("no-workload", b"{}".to_vec()),
        ("unknown-workload", json!({"workload": {"kind": "quantum", "qubits": 3}}).to_string().into_bytes()),
        ("wrong-type", json!({"workload": {"kind": "process", "command": "date"}}).to_string().into_bytes()),
        ("no-command", json!({"workload": {"kind": "process", "command": []}}).to_string().into_bytes()),
        ("bad-duration", noop().with("timeout", "soon").to_string().into_bytes()),
        ("bad-rule", noop().with("on_lost", "fail").retried(2, "1s").to_string().into_bytes()),
        ("deep", [vec![b'['; 200_000], vec![b']'; 200_000]].concat()),
        ("largest", huge),
    ];
    for (id, body) in &table {
        let key = format!("default.{id}");
        let sequence = fleet.send(Publish::new(fleet.subject(&key), body.clone())).await.expect("accepted");
        let record = fleet.run_ended(&key, sequence).await;
        assert_eq!(record.state, State::Failed, "{id}: {record:?}");
        assert_eq!(record.error.as_ref().expect("an error").code, Code::InvalidTask, "{id}");
        let letter = fleet.dead_letter(&key).await;
        assert!(letter.payload.as_ref() == body.as_slice(), "{id}: the bytes as they came");
        assert_eq!(letter.headers.get("Shoal-Reason").expect("a reason").as_str(), "invalid_task");
        assert_eq!(letter.headers.get("Shoal-Sequence").expect("a sequence").as_str(), sequence.to_string());
        assert!(!letter.headers.get("Shoal-Message").expect("a message").as_str().is_empty());
        fleet.message_gone(&key).await;
        // The queue goes on, and the id is free.
        assert_eq!(fleet.run(&key, &noop()).await.state, State::Succeeded, "{id}");
        assert_eq!(fleet.dead(&key).await.len(), 1, "{id}");
    }
    // Nobody was disconnected: our client, the worker, and no new connection since.
    assert_eq!(fleet.disconnects(), 0);
    assert!(process_runs(worker.pid()));
    assert_eq!(fleet.nats().monitor("/varz").await["total_connections"], connections);
    assert_eq!(fleet.consumer("default").await.num_redelivered, 0);
}

#[tokio::test]
async fn a_message_on_a_subject_with_no_valid_id_becomes_a_dead_letter_without_a_record() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let long = "x".repeat(129);
    for id in ["a:b", "ü", "a@b", "a$b", "a%20", &long] {
        let subject = format!("shoal.tasks.default.{id}");
        let sequence = fleet.send(Publish::new(&subject, noop().to_string())).await.expect("accepted");
        let letter = eventually(format!("a dead letter of {id}"), async || {
            let letters = fleet.messages("SHOAL_DEAD", "shoal.dead.>").await;
            let of_this = |letter: &async_nats::jetstream::message::StreamMessage| {
                letter.headers.get("Shoal-Sequence").is_some_and(|s| s.as_str() == sequence.to_string())
            };
            letters.into_iter().find(of_this).ok_or_else(|| "none".into())
        })
        .await;
        assert_eq!(letter.payload.as_ref(), noop().to_string().as_bytes());
        assert_eq!(letter.headers.get("Shoal-Reason").expect("a reason").as_str(), "invalid_id");
        assert_eq!(letter.headers.get("Shoal-Subject").expect("a subject").as_str(), subject);
    }
    fleet.drained().await;
    let mut records = fleet.stream("KV_shoal_tasks").await;
    assert_eq!(records.info().await.expect("its state").state.messages, 0);
    assert_eq!(fleet.run("default.after", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn the_largest_task_runs_and_a_larger_one_is_refused_by_the_server() {
    let mut fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let largest = largest(&fleet).await;
    let info = fleet.nats.server_info();
    assert_eq!(largest, info.max_payload - 65_536);
    let task = |bytes: usize| {
        let mut task = r#"{"workload":{"kind":"call","handler":"noop","payload":""#.to_owned();
        let end = "\"}}";
        task.extend(std::iter::repeat_n('x', bytes - task.len() - end.len()));
        task + end
    };
    let sequence = fleet.send(Publish::new("shoal.tasks.default.large", task(largest))).await.expect("accepted");
    let record = fleet.run_ended("default.large", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert!(record.task.is_none(), "a task of more than 16 KiB is not kept in its record");
    assert_eq!(fleet.send(Publish::new("shoal.tasks.default.larger", task(largest + 1))).await, Err(10054));
    assert_eq!(fleet.disconnects(), 0);
    assert!(fleet.nats().monitor("/varz").await["slow_consumers"] == 0);
}

#[tokio::test]
async fn a_dead_letter_keeps_the_submitters_headers_but_the_servers() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let publish = Publish::new("shoal.tasks.default.a", shell("exit 1").to_string());
    let publish = publish.header("X-Mine", "kept").header("Nats-Msg-Id", "once-only");
    fleet.send(publish).await.expect("accepted");
    let letter = fleet.dead_letter("default.a").await;
    assert_eq!(letter.headers.get("X-Mine").expect("kept").as_str(), "kept");
    // The server's headers of the submission are not carried over: an id in the duplicate window would swallow a replay.
    for (name, values) in letter.headers.iter() {
        let carried = values.iter().any(|value| value.as_str() == "once-only");
        assert!(!carried, "{name}");
    }
}

#[tokio::test]
async fn a_dead_letter_is_listed_shown_and_replayed() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let publish = Publish::new("shoal.tasks.default.a", job.script("[ -e $D/fixed ]").to_string());
    let first = fleet.send(publish.header("Nats-Msg-Id", "mine").header("X-Mine", "kept")).await.expect("accepted");
    fleet.dead_letter("default.a").await;
    fleet.message_gone("default.a").await;

    let list = fleet.shoal(&["dead", "list", "-o", "json"]).await.ok().json();
    assert_eq!(list[0]["id"], "a");
    assert_eq!(list[0]["queue"], "default");
    assert_eq!(list[0]["reason"], "exited_non_zero");
    assert_eq!(list[0]["attempts"], 1);
    assert_eq!(list[0]["sequence"], first);
    let shown = fleet.shoal(&["dead", "show", "default.a"]).await.ok().stdout;
    assert!(shown.contains("exited_non_zero") && shown.contains("workload"), "{shown}");

    job.write("fixed", "");
    // Its message id is in the server's duplicate window still; the replay is not swallowed for that.
    fleet.shoal(&["dead", "replay", "default.a"]).await.ok();
    let record = fleet.record_where("default.a", "a later run", |r| r.sequence > first && r.state.is_terminal()).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(record.spent(), 1, "a replay begins anew");
    let list = fleet.shoal(&["dead", "list", "-o", "json"]).await.ok().json();
    assert_eq!(list, json!([]), "a replayed letter is gone");
}

#[tokio::test]
async fn dead_letters_are_replayed_by_reason_and_all_at_once() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    let jobs: Vec<_> = (0..3).map(|_| fleet.job()).collect();
    for (n, job) in jobs.iter().enumerate() {
        let fails = if n == 0 { "kill -9 $$" } else { "exit 1" };
        fleet.publish(&format!("default.t-{n}"), &job.script(&format!("[ -e $D/fixed ] || {fails}"))).await;
    }
    for n in 0..3 {
        let key = format!("default.t-{n}");
        fleet.dead_letter(&key).await;
        fleet.message_gone(&key).await;
    }
    jobs.iter().for_each(|job| job.write("fixed", ""));
    fleet.shoal(&["dead", "replay", "--reason", "killed_by_signal"]).await.ok();
    fleet.in_state("default.t-0", State::Succeeded).await;
    assert_eq!((jobs[0].starts(), jobs[1].starts(), jobs[2].starts()), (2, 1, 1));
    fleet.shoal(&["dead", "replay", "--all"]).await.ok();
    for n in [1, 2] {
        fleet.in_state(&format!("default.t-{n}"), State::Succeeded).await;
    }
    assert!(fleet.messages("SHOAL_DEAD", "shoal.dead.>").await.is_empty());
}

#[tokio::test]
async fn a_task_that_succeeds_in_the_end_leaves_no_dead_letter() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(8).start().await;
    let tasks: Vec<_> =
        (0..40).map(|n| (format!("default.t-{n}"), shell("[ $SHOAL_TASK_ATTEMPT = 3 ]").retried(3, "50ms"))).collect();
    let sequences = fleet.publish_all(&tasks).await;
    for ((key, _), sequence) in tasks.iter().zip(sequences) {
        assert_eq!(fleet.run_ended(key, sequence).await.state, State::Succeeded);
    }
    assert!(fleet.messages("SHOAL_DEAD", "shoal.dead.>").await.is_empty());
}

#[tokio::test]
async fn headers_as_large_as_they_may_be_leave_a_dead_letter_all_the_same() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(1).start().await;
    let publish = Publish::new("shoal.tasks.default.a", "no task").header("X-Large", &"x".repeat(65_300));
    let sequence = fleet.send(publish).await.expect("accepted");
    assert_eq!(fleet.run_ended("default.a", sequence).await.state, State::Failed);
    let letter = fleet.dead_letter("default.a").await;
    assert_eq!(letter.payload.as_ref(), b"no task");
    assert_eq!(letter.headers.get("Shoal-Reason").expect("a reason").as_str(), "invalid_task");
    fleet.message_gone("default.a").await;
    assert_eq!(fleet.run("default.after", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_task_that_looks_like_a_word_of_the_server_is_a_task() {
    let mut fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(1).start().await;
    let mut raw = RawClient::connect(&fleet.nats().address()).await;
    for (id, status) in [("a", "404 No Messages"), ("0", "503"), ("b", "100 Idle Heartbeat")] {
        let headers = format!("NATS/1.0 {status}\r\n\r\n");
        raw.publish_with_headers(
            &fleet.subject(&format!("default.{id}")),
            headers.as_bytes(),
            noop().to_string().as_bytes(),
        )
        .await;
        assert_eq!(fleet.ended(&format!("default.{id}")).await.state, State::Succeeded);
        // The record comes before the ack.
        fleet.message_gone(&format!("default.{id}")).await;
    }
}

#[tokio::test]
async fn headers_that_the_client_cannot_read_are_taken_out_and_the_worker_works_on() {
    let mut fleet = Fleet::builder().ack_wait("2s").start().await;
    let worker = fleet.worker("w").start().await;
    let mut raw = RawClient::connect(&fleet.nats().address()).await;
    for (id, block) in [("a", &b"NATS/1.0\r\nA:\xff\r\n\r\n"[..]), ("b", b"NATS/1.0\r\nno colon\r\n\r\n")] {
        raw.publish_with_headers(&fleet.subject(&format!("default.{id}")), block, b"{}").await;
        let record = fleet.ended(&format!("default.{id}")).await;
        assert_eq!(record.error.expect("an error").code, Code::InvalidTask);
        assert_eq!(fleet.dead_letter(&format!("default.{id}")).await.payload.as_ref(), b"{}");
        fleet.message_gone(&format!("default.{id}")).await;
    }
    assert_eq!(fleet.run("default.after", &noop()).await.state, State::Succeeded);
    assert!(process_runs(worker.pid()));
}

#[tokio::test]
async fn headers_that_break_the_client_end_one_worker_and_not_the_next() {
    let mut fleet = Fleet::builder().ack_wait("2s").start().await;
    let mut first = fleet.worker("first").start().await;
    let mut raw = RawClient::connect(&fleet.nats().address()).await;
    raw.publish_with_headers(&fleet.subject("default.a"), b"NATS/1.0\r\nA: b\rc\r\n\r\n", b"{}").await;
    // It says so and goes, rather than living on without work.
    assert_eq!(first.wait().await.code, 1);
    // The next one looks at what is handed out and not settled, and takes it out.
    let second = fleet.worker("second").start().await;
    assert_eq!(fleet.ended("default.a").await.state, State::Failed);
    fleet.message_gone("default.a").await;
    assert_eq!(fleet.run("default.after", &noop()).await.state, State::Succeeded);
    assert!(process_runs(second.pid()));
}

#[tokio::test]
async fn a_dispatcher_whose_client_breaks_says_so_and_goes() {
    let mut fleet = Fleet::start().await;
    let (mut dispatcher, _) = fleet.dispatcher(&[]).await;
    let mut raw = RawClient::connect(&fleet.nats().address()).await;
    raw.publish_with_headers(&fleet.subject("default.a"), b"NATS/1.0\r\nA: b\rc\r\n\r\n", b"{}").await;
    assert_eq!(
        dispatcher.wait().await.code,
        1,
        "a supervisor can start it again; a living one without a client could not"
    );
}
