//! The zoo: each end of a container has its own reason (DESIGN §5), and none leaves anything behind (C11).

use schemas::{Code, Outcome, State};
use serde_json::{Value, json};

use super::{code, nothing_left, result};
use crate::support::{
    Engine, Fleet, IMAGE, IMAGE_APP, IMAGE_ENTRYPOINT, IMAGE_STATIC, IMAGE_USER, Publish, With, container, engine,
    noop, process_runs, shell_in,
};

#[tokio::test]
async fn every_way_to_end_has_its_own_reason() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let worker = engine.worker(&fleet, "w").slots(4).start().await;
    let bad_digest = format!("{IMAGE}@sha256:1234");
    // The shell around it lives on for a moment, without a further process: what fails at once may be over before
    // anybody could see the bound that it ran into.
    let bomb = "(i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done); \
                i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done; exit 2";
    // Neither at the very start nor at the very end: an engine begins to watch for it late, and never tells of it where
    // the container is gone too soon.
    let hog = "sleep 2; head -c 400000000 /dev/zero | tail > /dev/null; code=$?; sleep 1; exit $code";
    // Task, code, exit code, signal, outcome.
    let table = [
        (shell_in("exit 3"), Code::ExitedNonZero, Some(3), None, Outcome::Exited),
        (shell_in("kill -SEGV $$").workload("init", true), Code::KilledBySignal, None, Some(11), Outcome::Exited),
        (container(IMAGE, &["/no/such/program"]), Code::CommandNotFound, None, None, Outcome::FailedToStart),
        (container(IMAGE, &["no-such-program"]), Code::CommandNotFound, None, None, Outcome::FailedToStart),
        (
            container(IMAGE_STATIC, &["x"]).workload("entrypoint", json!(["/nope"])),
            Code::CommandNotFound,
            None,
            None,
            Outcome::FailedToStart,
        ),
        (container(IMAGE, &["/etc/not-executable"]), Code::CommandNotExecutable, None, None, Outcome::FailedToStart),
        (container(IMAGE, &["/tmp"]), Code::CommandNotExecutable, None, None, Outcome::FailedToStart),
        (shell_in("true").workload("user", "ghost"), Code::UserNotFound, None, None, Outcome::FailedToStart),
        (container(&bad_digest, &["true"]), Code::InvalidImage, None, None, Outcome::FailedToStart),
        (
            container("shoal-test/nope:1", &["true"]).workload("pull", "never"),
            Code::ImageNotFound,
            None,
            None,
            Outcome::FailedToStart,
        ),
        (shell_in(hog).with("limits", json!({"memory": "32Mi"})), Code::OutOfMemory, None, None, Outcome::Exited),
        (shell_in(bomb).with("limits", json!({"pids": 20})), Code::TooManyProcesses, None, None, Outcome::Exited),
        (
            shell_in("sleep 600").with("timeout", "2s").with("stop_grace", "0s"),
            Code::TimedOut,
            None,
            None,
            Outcome::TimedOut,
        ),
        (
            shell_in("sleep 600").with("idle_timeout", "2s").with("stop_grace", "0s"),
            Code::IdleTimedOut,
            None,
            None,
            Outcome::TimedOut,
        ),
    ];
    for (n, (task, ..)) in table.iter().enumerate() {
        fleet.publish(&format!("default.t-{n}"), task).await;
    }
    for (n, (task, wanted, exit_code, signal, outcome)) in table.into_iter().enumerate() {
        let key = format!("default.t-{n}");
        let record = fleet.ended(&key).await;
        assert_eq!(code(&record), wanted, "{task}: {record:?}");
        let [attempt] = &record.attempts[..] else { panic!("{task}: one attempt: {record:?}") };
        assert_eq!(attempt.outcome, outcome, "{task}: {record:?}");
        assert_eq!(attempt.oom, wanted == Code::OutOfMemory, "{task}");
        if exit_code.is_some() || signal.is_some() {
            // Of a signal an engine tells only 128 and its number.
            let told = attempt.exit_code.filter(|code| signal.is_none_or(|signal| *code != 128 + signal));
            assert_eq!((told, attempt.signal), (exit_code, signal), "{task}");
        }
        let letter = fleet.dead_letter(&key).await;
        assert_eq!(letter.headers.get("Shoal-Reason").expect("a reason").as_str(), wanted.as_str());
        fleet.message_gone(&key).await;
    }
    // What cannot be a name at all is no task.
    assert_eq!(code(&fleet.run("default.name", &container("Not An Image", &[])).await), Code::InvalidTask);
    nothing_left(&engine, &fleet, "w").await;
    assert_eq!(fleet.run("default.next", &noop()).await.state, State::Succeeded);
    assert!(process_runs(worker.pid()));
}

#[tokio::test]
async fn a_program_missing_inside_a_shell_keeps_its_exit_code() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let record = fleet.run("default.a", &shell_in("no-such-program")).await;
    assert_eq!(record.attempts[0].exit_code, Some(127), "{record:?}");
    assert_eq!(record.attempts[0].outcome, Outcome::Exited);
    assert!(matches!(code(&record), Code::CommandNotFound | Code::ExitedNonZero), "{record:?}");
}

#[tokio::test]
async fn a_kill_from_outside_is_no_exit_no_stop_and_no_lack_of_memory() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let sequence = fleet.publish("default.a", &shell_in("sleep 600")).await;
    let id = engine.running("a").await["Id"].as_str().expect("an id").to_owned();
    engine.request("POST", &format!("/containers/{id}/kill"), Value::Null).await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(code(&record), Code::KilledBySignal, "{record:?}");
    let attempt = &record.attempts[0];
    assert_eq!((attempt.outcome, attempt.signal, attempt.oom), (Outcome::Exited, Some(9), false), "{record:?}");
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn a_retry_is_a_new_container_that_knows_its_number() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let job = fleet.job();
    let script = "[ ! -e /tmp/mine ] || exit 9; touch /tmp/mine; [ $SHOAL_TASK_ATTEMPT = 3 ]";
    let record = fleet.run("default.a", &job.contained(script).retried(3, "100ms")).await;
    assert_eq!((record.state, record.spent()), (State::Succeeded, 3), "{record:?}");
    assert_eq!(job.attempts(), [1, 2, 3]);
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn an_image_says_what_the_task_does_not() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let shell = |image: &str, script: &str| container(image, &["sh", "-c", script]);
    let table = [
        ("default.plain", shell(IMAGE, "pwd > $SHOAL_RESULT_FILE"), "/shoal"),
        ("default.app", shell(IMAGE_APP, "pwd > $SHOAL_RESULT_FILE"), "/app"),
        ("default.env", shell(IMAGE_APP, "echo $FROM_IMAGE > $SHOAL_RESULT_FILE"), "yes"),
        ("default.dir", shell(IMAGE_APP, "pwd > $SHOAL_RESULT_FILE").workload("working_dir", "/tmp"), "/tmp"),
        ("default.root", shell(IMAGE, "id -u > $SHOAL_RESULT_FILE"), "0"),
        ("default.user", shell(IMAGE_USER, "id -u > $SHOAL_RESULT_FILE"), "1000"),
        ("default.named", shell(IMAGE, "id -un > $SHOAL_RESULT_FILE").workload("user", "job"), "job"),
        ("default.number", shell(IMAGE, "id -u > $SHOAL_RESULT_FILE").workload("user", "4711"), "4711"),
        (
            "default.entry",
            container(IMAGE_ENTRYPOINT, &["-c", "echo in > $SHOAL_RESULT_FILE"]).workload("entrypoint", json!(["sh"])),
            "in",
        ),
    ];
    for (key, task, _) in &table {
        fleet.publish(key, task).await;
    }
    for (key, _, wanted) in &table {
        assert_eq!(result(&fleet.ended(key).await).trim(), *wanted, "{key}");
    }
    // The image's own command, and its own entrypoint with ours behind.
    let own = fleet.run("default.own", &json!({"workload": {"kind": "container", "image": IMAGE_ENTRYPOINT}})).await;
    assert_eq!(super::stored(&fleet, &own, schemas::names::LogSource::Stdout).await, b"entry point\n");
    let own = fleet.run("default.behind", &container(IMAGE_ENTRYPOINT, &["behind"])).await;
    assert_eq!(super::stored(&fleet, &own, schemas::names::LogSource::Stdout).await, b"entry behind\n");
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn a_job_gets_its_own_environment_and_nothing_of_the_worker() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").env("SECRET_OF_THE_WORKER", "s3cret").start().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let task = shell_in("env > $SHOAL_RESULT_FILE").workload("env", json!({"MINE": "1", "ODD": "a=b \"c\"\td"}));
    let publish = Publish::new(fleet.subject("default.a"), task.to_string()).header("traceparent", traceparent);
    let sequence = fleet.send(publish).await.expect("accepted");
    let text = result(&fleet.run_ended("default.a", sequence).await);
    let names: std::collections::BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!((names["MINE"], names["ODD"]), ("1", "a=b \"c\"\td"));
    assert_eq!((names["SHOAL_TASK_ID"], names["SHOAL_TASK_QUEUE"], names["SHOAL_TASK_ATTEMPT"]), ("a", "default", "1"));
    assert_eq!(names["TRACEPARENT"].split('-').nth(1), traceparent.split('-').nth(1), "{text}");
    assert!(names.contains_key("PATH") && !text.contains("s3cret"), "{text}");
    let ours = names.keys().filter(|name| name.starts_with("SHOAL_")).count();
    assert_eq!(ours, 4, "id, attempt, queue, result file: {text}");
}

#[tokio::test]
async fn standard_input_is_given_and_closed() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let large = "0123456789".repeat(30_000);
    let inputs = [Some(""), Some("one line\nand another"), Some(large.as_str()), None];
    for (n, input) in inputs.iter().enumerate() {
        let mut task = shell_in("wc -c > $SHOAL_RESULT_FILE");
        if let Some(input) = input {
            task = task.workload("stdin", *input);
        }
        fleet.publish(&format!("default.t-{n}"), &task).await;
    }
    for (n, input) in inputs.iter().enumerate() {
        let record = fleet.ended(&format!("default.t-{n}")).await;
        assert_eq!(result(&record).trim(), input.unwrap_or_default().len().to_string());
    }
}

#[tokio::test]
async fn what_it_used_is_in_the_record() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let script =
        "head -c 50000000 /dev/zero | tail -c 50000000 > /dev/null; timeout 2 sh -c 'while :; do :; done'; true";
    let record = fleet.run("default.a", &shell_in(script)).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let usage = record.attempts[0].usage.as_ref().expect("usage");
    assert!((1_900..20_000).contains(&usage.wall_ms), "{usage:?}");
    assert!(usage.cpu_ms.is_some_and(|cpu| (100..10_000).contains(&cpu)), "{usage:?}");
    assert!(usage.peak_memory_bytes.is_some_and(|peak| (1 << 20..=512 << 20).contains(&peak)), "{usage:?}");
}

/// Labels and name of the one container of a task.
async fn named(engine: &Engine, id: &str) -> (String, Value) {
    let container = engine.running(id).await;
    let name = container["Name"].as_str().expect("a name").trim_start_matches('/').to_owned();
    (name, container["Config"]["Labels"].clone())
}

#[tokio::test]
async fn names_are_sanitised_and_unique_and_labels_tell_whose_it_is() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(8).start().await;
    let long = "x".repeat(128);
    let ids = ["plain", "-", "_", "--", "-_-", "A", "a", &long];
    for id in ids {
        fleet.publish(&format!("default.{id}"), &shell_in("sleep 600").with("stop_grace", "0s")).await;
    }
    let mut names = std::collections::BTreeSet::new();
    for id in ids {
        let (name, labels) = named(&engine, id).await;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        assert!(name.len() <= 255 && name.chars().all(allowed), "{name}");
        assert!(name.starts_with(|c: char| c.is_ascii_alphanumeric()), "{name}");
        let key = format!("default.{id}");
        let record = fleet.in_state(&key, State::Running).await;
        let attempt = record.attempts.last().expect("an attempt");
        assert_eq!(labels["shoal.worker"], engine.id("w").as_str());
        assert_eq!(labels["shoal.instance"], attempt.instance.as_deref().expect("an instance"));
        assert_eq!(labels["shoal.start"], attempt.start.as_ref().expect("a start").as_str());
        assert_eq!((&labels["shoal.queue"], &labels["shoal.attempt"]), (&json!("default"), &json!("1")));
        assert_eq!((&labels["shoal.name"], &labels["shoal.kind"]), (&json!(key), &json!("task")));
        assert!(labels["shoal.fleet"].as_str().is_some_and(|fleet| !fleet.is_empty()), "{labels}");
        names.insert(name.to_lowercase());
    }
    assert_eq!(names.len(), ids.len(), "{names:?}");
    for id in ids {
        let key = format!("default.{id}");
        // An id that begins with a dash is an argument, and no flag.
        fleet.shoal(&["cancel", "--", &key]).await.ok();
    }
    nothing_left(&engine, &fleet, "w").await;
}
