//! Processes: each end has its own reason (T10, DESIGN §5), limits hold, nothing is left behind.

use std::time::Duration;

use schemas::{Code, Outcome, State, TaskRecord};
use serde_json::{Value, json};

use crate::support::{Fleet, Program, With, eventually, noop, process, shell};

/// A fleet with one worker that runs several at once.
async fn fleet() -> (Fleet, Program) {
    let fleet = Fleet::start().await;
    let worker = fleet.worker("w").slots(8).start().await;
    (fleet, worker)
}

fn code(record: &TaskRecord) -> Code {
    assert_eq!(record.state, State::Failed, "{record:?}");
    let error = record.error.as_ref().expect("a failed task tells why");
    assert!(!error.message.is_empty());
    error.code
}

fn result(record: &TaskRecord) -> String {
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let bytes = record.result.as_ref().expect("a result").inline_bytes().expect("inline").expect("base64");
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn every_way_to_end_has_its_own_reason() {
    let (fleet, worker) = fleet().await;
    let script = fleet.folder().join("not-executable");
    std::fs::write(&script, "#!/bin/sh\n").expect("written");
    let script = script.display().to_string();
    // Task, code, exit code, signal, outcome.
    let table = [
        (shell("exit 3"), Code::ExitedNonZero, Some(3), None, Outcome::Exited),
        (shell("kill -SEGV $$"), Code::KilledBySignal, None, Some(11), Outcome::Exited),
        (shell("kill -KILL $$"), Code::KilledBySignal, None, Some(9), Outcome::Exited),
        (process(&["/no/such/program"]), Code::CommandNotFound, None, None, Outcome::FailedToStart),
        (process(&["no-such-program-anywhere"]), Code::CommandNotFound, None, None, Outcome::FailedToStart),
        (process(&[&script]), Code::CommandNotExecutable, None, None, Outcome::FailedToStart),
        (process(&["/tmp"]), Code::CommandNotExecutable, None, None, Outcome::FailedToStart),
        (shell("sleep 600").with("timeout", "1s"), Code::TimedOut, None, None, Outcome::TimedOut),
        (shell("sleep 600").with("idle_timeout", "1s"), Code::IdleTimedOut, None, None, Outcome::TimedOut),
    ];
    for (n, (task, ..)) in table.iter().enumerate() {
        fleet.publish(&format!("default.t-{n}"), task).await;
    }
    for (n, (task, wanted, exit_code, signal, outcome)) in table.into_iter().enumerate() {
        let key = format!("default.t-{n}");
        let record = fleet.ended(&key).await;
        assert_eq!(code(&record), wanted, "{task}: {record:?}");
        let [attempt] = &record.attempts[..] else { panic!("{task}: one attempt: {record:?}") };
        assert_eq!(attempt.outcome, outcome, "{task}");
        assert_eq!(attempt.number.map(u32::from), Some(1), "{task}");
        if exit_code.is_some() || signal.is_some() {
            assert_eq!((attempt.exit_code, attempt.signal), (exit_code, signal), "{task}");
        }
        assert_eq!(attempt.error.as_ref().map(|error| error.code), Some(wanted), "{task}");
        let letter = fleet.dead_letter(&key).await;
        assert_eq!(letter.headers.get("Shoal-Reason").expect("a reason").as_str(), wanted.as_str());
        assert_eq!(letter.payload.as_ref(), task.to_string().as_bytes());
        fleet.message_gone(&key).await;
    }
    assert!(crate::support::process_runs(worker.pid()));
}

#[tokio::test]
async fn a_program_missing_inside_a_shell_keeps_its_exit_code() {
    let (fleet, _worker) = fleet().await;
    let record = fleet.run("default.a", &shell("no-such-program-anywhere")).await;
    assert_eq!(record.attempts[0].exit_code, Some(127), "{record:?}");
    assert!(matches!(code(&record), Code::CommandNotFound | Code::ExitedNonZero), "{record:?}");
}

#[tokio::test]
async fn a_time_limit_kills_the_whole_tree() {
    let (fleet, _worker) = fleet().await;
    for (key, field) in [("default.run", "timeout"), ("default.idle", "idle_timeout")] {
        let job = fleet.job();
        let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; (sleep 600 &); sleep 600' & \
                      while :; do sleep 1; done";
        let task = job.script(script).with(field, "1s").with("stop_grace", "500ms");
        let record = fleet.run(key, &task).await;
        assert_eq!(record.attempts[0].outcome, Outcome::TimedOut, "{record:?}");
        // When the end is told, everything is gone.
        assert_eq!(job.processes(), [0; 0], "{field}");
    }
}

#[tokio::test]
async fn what_talks_is_not_idle() {
    let (fleet, _worker) = fleet().await;
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 0.3; echo $i; sleep 0.3; echo $i >&2; done";
    let record = fleet.run("default.a", &shell(script).with("idle_timeout", "2s")).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
}

#[tokio::test]
async fn a_task_not_started_in_time_expires() {
    let fleet = Fleet::start().await;
    let job = fleet.job();
    let task = job.script("").with("expires_at", "2020-01-01T00:00:00Z");
    fleet.publish("default.a", &task).await;
    let _worker = fleet.worker("w").start().await;
    let record = fleet.ended("default.a").await;
    assert_eq!(record.state, State::Expired);
    assert_eq!(record.error.expect("an error").code, Code::Expired);
    fleet.message_gone("default.a").await;
    assert_eq!(job.starts(), 0);
}

#[tokio::test]
async fn a_task_that_nobody_pulls_expires_by_the_dispatcher() {
    let fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let soon = schemas::Timestamp::now().plus(Duration::from_millis(500)).to_string();
    let sequence = fleet.publish("nobodys.a", &noop().with("expires_at", soon)).await;
    fleet.publish("nobodys.b", &noop()).await;
    let record = fleet.run_ended("nobodys.a", sequence).await;
    assert_eq!(record.state, State::Expired);
    fleet.message_gone("nobodys.a").await;
    assert!(fleet.message("nobodys.b").await.is_some());
    assert!(fleet.record("nobodys.b").await.is_none());
}

#[tokio::test]
async fn a_record_whose_message_is_gone_ends_as_lost() {
    let fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("sleep 600")).await;
    fleet.in_state("default.a", State::Running).await;
    worker.kill().await;
    // Deleted by hand, behind everybody's back.
    let stream = fleet.stream("SHOAL_TASKS").await;
    stream.delete_message(sequence).await.expect("deleted");
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Lost);
    assert_eq!(record.error.expect("an error").code, Code::MessageLost);
}

#[tokio::test]
async fn a_memory_limit_is_told_apart() {
    let (fleet, worker) = fleet().await;
    // `tail` keeps everything until the end of a stream without line ends.
    let task = shell("head -c 400000000 /dev/zero | tail > /dev/null").with("limits", json!({"memory": "64Mi"}));
    let record = fleet.run("default.a", &task).await;
    let agent = fleet.agent("w").await.expect("readable").expect("there");
    let can: &Vec<String> = &agent.runtimes["process"].capabilities;
    if can.iter().any(|word| word == "memory_limit") {
        assert_eq!(code(&record), Code::OutOfMemory, "{record:?}");
        assert!(record.attempts[0].oom);
    } else {
        assert!(matches!(code(&record), Code::LimitUnsupported | Code::OutOfMemory), "{can:?} {record:?}");
    }
    assert_eq!(fleet.run("default.b", &noop()).await.state, State::Succeeded);
    assert!(crate::support::process_runs(worker.pid()));
}

#[tokio::test]
async fn a_process_bomb_is_bounded_and_told_apart() {
    let (fleet, worker) = fleet().await;
    let job = fleet.job();
    let script = "i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done; wait";
    let task = job.script(script).with("limits", json!({"pids": 20})).with("timeout", "20s");
    let record = fleet.run("default.a", &task).await;
    let agent = fleet.agent("w").await.expect("readable").expect("there");
    let can: &Vec<String> = &agent.runtimes["process"].capabilities;
    if can.iter().any(|word| word == "pids_limit") {
        assert_eq!(code(&record), Code::TooManyProcesses, "{record:?}");
    } else {
        assert!(matches!(code(&record), Code::LimitUnsupported | Code::TooManyProcesses), "{can:?} {record:?}");
    }
    assert_eq!(job.processes(), [0; 0]);
    assert_eq!(fleet.run("default.b", &shell("true")).await.state, State::Succeeded);
    assert!(crate::support::process_runs(worker.pid()));
}

#[tokio::test]
async fn what_a_job_leaves_running_dies_with_it() {
    let (fleet, _worker) = fleet().await;
    let job = fleet.job();
    let script = "setsid sh -c 'trap \"\" TERM HUP; (sleep 600 &) ; sleep 600' > /dev/null 2>&1 & \
                  sleep 600 > /dev/null 2>&1 & exit 0";
    let record = fleet.run("default.a", &job.script(script)).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(job.processes(), [0; 0]);
}

#[tokio::test]
async fn a_job_gets_its_own_environment_and_nothing_of_the_worker() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").env("SECRET_OF_THE_WORKER", "s3cret").start().await;
    let mut task = shell("env > $SHOAL_RESULT_FILE");
    task["workload"]["env"] = json!({"MINE": "1"});
    let record = fleet.run("default.a", &task).await;
    let text = result(&record);
    let names: std::collections::BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(names["MINE"], "1");
    assert_eq!(names["SHOAL_TASK_ID"], "a");
    assert_eq!(names["SHOAL_TASK_QUEUE"], "default");
    assert_eq!(names["SHOAL_TASK_ATTEMPT"], "1");
    assert!(names.contains_key("PATH") && names.contains_key("HOME"));
    assert!(!text.contains("s3cret"));
    let known = [
        "PATH",
        "HOME",
        "LANG",
        "TZ",
        "MINE",
        "SHOAL_TASK_ID",
        "SHOAL_TASK_ATTEMPT",
        "SHOAL_TASK_QUEUE",
        "SHOAL_RESULT_FILE",
        "TRACEPARENT",
        // What the shell itself sets.
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    let others: Vec<_> = names.keys().filter(|name| !known.contains(name)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test]
async fn a_trace_context_reaches_the_job() {
    let (fleet, _worker) = fleet().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let task = shell("printf %s \"$TRACEPARENT\" > $SHOAL_RESULT_FILE").to_string();
    let publish = crate::support::Publish::new(fleet.subject("default.a"), task);
    let sequence = fleet.send(publish.header("traceparent", traceparent)).await.expect("accepted");
    let seen = result(&fleet.run_ended("default.a", sequence).await);
    // The trace is the submitter's; the span may be the worker's own.
    assert_eq!(seen.split('-').nth(1), traceparent.split('-').nth(1), "{seen}");
}

#[tokio::test]
async fn standard_input_is_given_and_closed() {
    let (fleet, _worker) = fleet().await;
    let large = "0123456789".repeat(30_000);
    for (n, input) in ["", "one line\nand another", &large].into_iter().enumerate() {
        let mut task = shell("wc -c > $SHOAL_RESULT_FILE");
        task["workload"]["stdin"] = Value::from(input);
        let record = fleet.run(&format!("default.t-{n}"), &task).await;
        assert_eq!(result(&record).trim(), input.len().to_string());
    }
    // Without any it is empty, and no terminal of the worker.
    let record = fleet.run("default.none", &shell("wc -c > $SHOAL_RESULT_FILE")).await;
    assert_eq!(result(&record).trim(), "0");
}

#[tokio::test]
async fn a_state_folder_may_be_named_from_where_the_worker_is_started() {
    let fleet = Fleet::start().await;
    let here = std::env::current_dir().expect("a current folder");
    let up: String = here.components().skip(1).map(|_| "../").collect();
    let relative = format!("{up}{}", fleet.folder().join("named").display().to_string().trim_start_matches('/'));
    let _worker = fleet.worker("w").env("SHOAL_STATE_DIR", &relative).start().await;
    let record = fleet.run("default.a", &shell("pwd > /dev/null")).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
}

#[tokio::test]
async fn a_job_has_a_work_folder_of_its_own_that_goes_with_it() {
    let (fleet, _worker) = fleet().await;
    let mut folders = Vec::new();
    for n in 0..2 {
        let script = "[ -z \"$(ls -A)\" ] && [ \"$PWD\" = \"$HOME\" ] && touch file && pwd > $SHOAL_RESULT_FILE";
        folders.push(result(&fleet.run(&format!("default.t-{n}"), &shell(script)).await).trim().to_owned());
    }
    assert_ne!(folders[0], folders[1]);
    for folder in folders {
        eventually(format!("{folder} is gone"), async || {
            if std::path::Path::new(&folder).exists() { Err("there".into()) } else { Ok(()) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_job_may_have_huge_pages_though_its_worker_has_none() {
    let (fleet, program) = fleet().await;
    let allowed = |status: &str| {
        let line = status.lines().find(|line| line.starts_with("THP_enabled:")).expect("a kernel since 5.0");
        line.split_whitespace().nth(1).map(str::to_owned)
    };
    let ours = allowed(&std::fs::read_to_string("/proc/self/status").unwrap());
    let workers = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    assert_eq!(allowed(&workers).as_deref(), Some("0"));
    let record = fleet.run("default.pages", &shell("cat /proc/self/status > $SHOAL_RESULT_FILE")).await;
    assert_eq!(allowed(&result(&record)), ours);
}
