//! The programs of `examples/`, run for real: handlers in a Rust program of one's own and as a NATS service in Python (T26).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use schemas::{AgentStatus, Code, Outcome, State};
use serde_json::{Value, json};

use crate::support::{Fleet, Program, With, eventually, shell};

fn call(handler: &str, payload: Value) -> Value {
    json!({"workload": {"kind": "call", "handler": handler, "payload": payload}})
}

#[track_caller]
fn answer(record: &schemas::TaskRecord) -> Vec<u8> {
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    record.result.as_ref().expect("a result").inline_bytes().expect("inline").expect("base64")
}

/// The Python service, once it answers.
async fn charger(fleet: &Fleet) -> Program {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".tools/venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `scripts/setup tests`", python.display());
    let mut command = Command::new(python);
    command.arg(root.join("examples/handler_service.py")).arg(fleet.url());
    let mut program = Program::spawn("charge", fleet.folder(), command, Stdio::null());
    program.ready().await;
    program
}

/// Waits until the service has an order in hand.
async fn charges(service: &Program, order: u32, attempt: u32) {
    let line = format!("charging order={order} attempt={attempt}\n");
    eventually(format!("`{}`", line.trim()), async || match service.stdout() {
        said if said.contains(&line) => Ok(()),
        said => Err(said),
    })
    .await;
}

#[tokio::test]
async fn a_python_service_answers_refuses_and_is_asked_again() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").runtimes("call").slots(4).start().await;
    let mut service = charger(&fleet).await;

    let record = fleet.run("default.good", &call("charge", json!({"order": 42}))).await;
    let said: Value = serde_json::from_slice(&answer(&record)).expect("JSON");
    assert_eq!(said, json!({"charged": 42, "receipt": "default.good"}));

    // An error of 4xx is final, whatever the task's retries.
    let record = fleet.run("default.bad", &call("charge", json!({})).retried(5, "10ms")).await;
    assert_eq!((record.state, record.attempts.len()), (State::Failed, 1), "{record:?}");
    let error = record.error.expect("an error");
    assert_eq!((error.code, error.retryable), (Code::HandlerFailed, false));
    assert!(error.message.contains("payload has no `order`"), "{}", error.message);
    assert_eq!(fleet.dead("default.bad").await.len(), 1);

    let busy = call("charge", json!({"order": 7, "bank_is_busy_for": 2}));
    let record = fleet.run("default.busy", &busy.retried(3, "50ms")).await;
    assert_eq!((record.spent(), record.attempts.len()), (3, 3), "{record:?}");
    let first = record.attempts[0].error.as_ref().expect("an error");
    assert!(first.retryable && first.message.contains("the bank is busy"), "{first:?}");
    answer(&record);
    charges(&service, 7, 3).await;

    service.terminate();
    assert_eq!(service.wait().await.code, 0);
}

#[tokio::test]
async fn a_python_service_killed_in_mid_call_fails_the_attempt_by_its_timeout_and_another_answers() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").runtimes("call").start().await;
    let mut first = charger(&fleet).await;
    let task = call("charge", json!({"order": 1, "seconds": 1})).with("timeout", "3s");
    let task = task.with("stop_grace", "100ms").retried(2, "10ms");
    let sequence = fleet.publish("default.a", &task).await;
    charges(&first, 1, 1).await;
    first.kill().await;
    let second = charger(&fleet).await;
    let record = fleet.run_ended("default.a", sequence).await;
    answer(&record);
    let outcomes: Vec<_> = record.attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Outcome::TimedOut, Outcome::Exited], "{record:?}");
    charges(&second, 1, 2).await;
}

/// The embedding program. Cargo is asked for it, as with a filter on tests it builds no examples, and an old one would
/// tell nothing; where all tests were built it is there already.
fn embed(fleet: &Fleet) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // As the tests are built, so that nothing is built twice.
    cargo.args(["build", "--offline", "--workspace", "--example", "embed", "--message-format", "json"]);
    if cfg!(feature = "fail-points") {
        cargo.args(["--features", "fail-points"]);
    }
    // What the runner of tests tells a test would make it another build.
    let told =
        |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "NEXTEST"].iter().any(|p| name.starts_with(p));
    let names = std::env::vars().map(|(name, _)| name).filter(|name| told(name));
    for name in names {
        cargo.env_remove(name);
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs = messages.filter(|message| message["target"]["name"] == "embed");
    let program = programs.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next();

    let mut command = Command::new(program.expect("cargo names what it built"));
    let surroundings = fleet.command();
    command.env_clear().envs(surroundings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("NATS_URL", fleet.url()).env("TMPDIR", fleet.folder());
    command
}

#[tokio::test]
async fn an_embedding_program_is_a_worker_with_its_own_handlers() {
    let fleet = Fleet::start().await;
    // It was there before the worker.
    let waiting = fleet.publish("default.early", &call("greet", json!({"name": "Ada"}))).await;
    let mut program = Program::spawn("embed", fleet.folder(), embed(&fleet), Stdio::null());
    let id = program.ready().await.remove("worker").expect("ready names the worker");
    assert_eq!(answer(&fleet.run_ended("default.early", waiting).await), b"Hello, Ada!");
    fleet.agent_is(&id, AgentStatus::Ready).await;

    let record = fleet.run("default.bad", &call("greet", json!({})).retried(3, "10ms")).await;
    assert_eq!((record.state, record.attempts.len()), (State::Failed, 1), "{record:?}");
    let error = record.error.expect("an error");
    assert_eq!((error.code, error.message.as_str()), (Code::HandlerFailed, "payload has no `name`"));
    assert_eq!(fleet.dead("default.bad").await.len(), 1);

    // It runs nothing but calls.
    fleet.publish("default.process", &shell("true")).await;
    fleet.record_where("default.process", "waits for a worker", |record| record.waiting.is_some()).await;

    // Many at once, each with its own answer.
    let tasks: Vec<_> =
        (0..200).map(|n| (format!("default.t-{n}"), call("greet", json!({"name": n.to_string()})))).collect();
    let sequences = fleet.publish_all(&tasks).await;
    for (n, ((key, _), sequence)) in tasks.iter().zip(sequences).enumerate() {
        let record = fleet.run_ended(key, sequence).await;
        assert_eq!(answer(&record), format!("Hello, {n}!").into_bytes());
        assert_eq!(record.attempts.len(), 1);
    }
    program.interrupt();
    assert_eq!(program.wait().await.code, 0);
    assert_eq!(fleet.agent(&id).await.expect("readable").expect("there").status, AgentStatus::Offline);
}

#[tokio::test]
async fn a_killed_embedding_program_gives_its_calls_to_the_next() {
    let fleet = Fleet::start().await;
    // It makes the consumer, with the short ack wait of tests.
    let mut before = fleet.worker("before").start().await;
    before.terminate();
    before.wait().await;
    let mut first = Program::spawn("embed", fleet.folder(), embed(&fleet), Stdio::null());
    first.ready().await;
    let tasks: Vec<_> = (0..300).map(|n| (format!("default.t-{n}"), call("greet", json!({"name": "you"})))).collect();
    let sequences = fleet.publish_all(&tasks[..150]).await;
    let rest = fleet.publish_all(&tasks[150..]);
    let (rest, ()) = tokio::join!(rest, first.kill());
    let mut second = Program::spawn("embed", fleet.folder(), embed(&fleet), Stdio::null());
    second.ready().await;
    for ((key, _), sequence) in tasks.iter().zip(sequences.into_iter().chain(rest)) {
        assert_eq!(answer(&fleet.run_ended(key, sequence).await), b"Hello, you!", "{key}");
    }
    fleet.drained().await;
}
