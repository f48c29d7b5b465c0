//! The whole run with its commands in containers of a Docker engine. Whatever becomes of the job, nothing is left there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use schemas::transcript::JobPhase;
use schemas::{Code, Outcome, State};
use serde_json::{Value, json};

use super::{World, mends, report, succeeded};
use crate::support::repo::RIGHT;
use crate::support::{Engine, IMAGE, IMAGE_ENTRYPOINT, With, WorkerBuilder, engine, eventually};

const BRANCH: &str = "feature/task-t-add-do-not-subtract";

/// A worker whose agent jobs may have containers.
pub(super) fn builder<'a>(world: &'a World, engine: &Engine, name: &str) -> WorkerBuilder<'a> {
    world.builder(&engine.id(name)).runtimes("call,docker,agent").env("SHOAL_DOCKER_HOST", &engine.host())
}

/// The job's fields for a container of this image, with `more` over them.
fn contained(image: &str, more: Value) -> Value {
    let mut fields = json!({"runtime": {"kind": "docker", "image": image}});
    super::merge(&mut fields, more);
    fields
}

/// Nothing of any job on the engine, no mount of this fleet's folder, every slot free, and its files the worker's own.
pub(super) async fn nothing_left(world: &World, engine: &Engine) {
    engine.is_clean().await;
    let folder = world.fleet.folder().display().to_string();
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts can be read");
    assert!(!mounts.contains(&folder), "{mounts}");
    super::slots_are_free(world).await;
    let us = std::fs::metadata(world.fleet.folder()).expect("it is there").uid();
    for path in super::files_below(world.fleet.folder()) {
        let owner = path.symlink_metadata().expect("nothing runs here").uid();
        assert_eq!(owner, us, "{}", path.display());
    }
}

fn call(name: &str, arguments: Value) -> Value {
    json!({"name": name, "arguments": arguments})
}

#[tokio::test]
async fn commands_and_tests_run_in_containers_that_see_the_workspace_and_nothing_else() {
    let engine = engine!();
    // Seen from inside: whose it is, where it is, that there is no network, and not the worker's own files.
    let secret = "of-this-machine-alone";
    let look = "echo who=$(id -u) in=$PWD net=$(ls /sys/class/net | tr '\\n' ,) && cat /outside 2>&1; \
                cat $FOLDER/outside 2>&1; mkdir made && echo inside > made/by-command && echo x > $HOME/x && sh add.sh 2 3";
    let world = World::of(json!([
        {"calls": [call("run_command", json!({"command": look}))]},
        {"expect": "net=lo,\\s", "calls": [call("write_file", json!({"path": "add.sh", "content": RIGHT}))]},
        {"seen": "in=/shoal/tree\\b", "calls": [call("run_command", json!({"command": "sh add.sh 2 3"}))]},
        {"expect": "\\b5\\b", "seen": "No such file", "say": "It adds now."},
    ]))
    .await;
    std::fs::write(world.fleet.folder().join("outside"), secret).expect("written");
    let worker = builder(&world, &engine, "w").start().await;
    let folder = world.fleet.folder().display().to_string();
    let record = world.run("default.t", contained(IMAGE, json!({"env": {"FOLDER": folder}}))).await;
    succeeded(&record);
    world.model_is_content();
    assert_eq!(world.repo.file(BRANCH, "made/by-command").as_deref(), Some("inside\n"));
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    let tests = report(&record).tests.expect("they ran");
    assert_eq!((tests.exit_code, tests.counts.map(|counts| counts.passed)), (Some(0), Some(1)));
    let log = world.artifact("t", "job.log").await;
    let us = std::fs::metadata(world.fleet.folder()).expect("it is there").uid();
    assert!(log.contains(&format!("who={us} in=/shoal/tree")), "as the worker's own user: {log}");
    assert!(!log.contains(secret) && log.contains("ok 1 - adds"), "{log}");
    nothing_left(&world, &engine).await;
    drop(worker);
}

/// What the worker itself follows on this machine must be nothing that a command can replace by a link.
#[tokio::test]
async fn a_command_reaches_neither_the_workers_own_files_nor_the_place_of_the_workspace() {
    let engine = engine!();
    let try_it = "ls -A /shoal; ls /shoal/git /shoal/index /shoal/state.json; mv /shoal/tree /shoal/away; \
                  mv /shoal/home /shoal/away; rmdir /shoal/home; ln -s /etc /shoal/git; ln -s /etc/passwd /shoal/index; true";
    let world = World::of(json!([
        {"calls": [call("run_command", json!({"command": try_it}))]},
        {"seen": "busy", "calls": [call("write_file", json!({"path": "add.sh", "content": RIGHT}))]},
        {"say": "It adds now."},
    ]))
    .await;
    let passwd = std::fs::read("/etc/passwd").expect("it can be read");
    let worker = builder(&world, &engine, "w").start().await;
    let record = world.run("default.t", contained(IMAGE, json!({}))).await;
    succeeded(&record);
    world.model_is_content();
    let log = world.artifact("t", "job.log").await;
    for own in ["/shoal/git", "/shoal/index", "/shoal/state.json"] {
        assert!(log.contains(&format!("{own}: No such file")), "{log}");
    }
    assert_eq!(std::fs::read("/etc/passwd").expect("it can be read"), passwd);
    nothing_left(&world, &engine).await;
    drop(worker);
}

#[tokio::test]
async fn an_entrypoint_of_the_image_stands_in_front_of_no_command() {
    let engine = engine!();
    let world = World::of(mends()).await;
    let _worker = builder(&world, &engine, "w").start().await;
    succeeded(&world.run("default.t", contained(IMAGE_ENTRYPOINT, json!({}))).await);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    nothing_left(&world, &engine).await;
}

#[tokio::test]
async fn what_keeps_its_commands_from_running_is_told_before_any_turn_is_paid() {
    let engine = engine!();
    let world = World::of(mends()).await;
    let _worker = builder(&world, &engine, "w").start().await;
    for (image, more, code, word) in [
        (IMAGE, json!({"runtime": {"network": "host"}}), Code::PolicyForbidden, "host"),
        ("127.0.0.1:1/none:1", json!({}), Code::ImagePullFailed, "127.0.0.1:1/none:1"),
    ] {
        let record = world.run("default.t", contained(image, more)).await;
        assert_eq!(record.state, State::Failed, "{record:#?}");
        let error = record.error.as_ref().expect("an error");
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.message.contains(word), "{error:?}");
        let report = report(&record);
        let last = report.phases.last().expect("a phase");
        assert_eq!((last.phase, last.code, report.turns), (JobPhase::Branch, Some(code), 0), "{report:#?}");
    }
    assert!(world.model.requests().is_empty(), "the model was asked nothing");
    assert_eq!(world.repo.branches(), Vec::<String>::new());
    nothing_left(&world, &engine).await;
}

/// A registry that takes the request and never answers.
#[tokio::test]
async fn a_cancel_while_the_image_is_pulled_ends_the_job_at_once() {
    let engine = engine!();
    let world = World::of(mends()).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let image = format!("{}/none:1", silent.local_addr().expect("bound"));
    let _worker = builder(&world, &engine, "w").start().await;
    world.fleet.publish("default.t", &world.job(contained(&image, json!({})))).await;
    let (_held, _) = silent.accept().await.expect("somebody asks for the image");
    world.fleet.shoal(&["cancel", "t"]).await.ok();
    let record = world.fleet.ended("default.t").await;
    assert_eq!(record.state, State::Cancelled, "{record:#?}");
    let last = report(&record).phases.pop().expect("a phase");
    assert_eq!((last.phase, last.code), (JobPhase::Branch, Some(Code::Cancelled)));
    assert!(world.model.requests().is_empty());
    nothing_left(&world, &engine).await;
}

#[tokio::test]
async fn an_agent_program_runs_in_a_container() {
    let engine = engine!();
    let world = World::of(json!([])).await;
    let _worker = builder(&world, &engine, "w").start().await;
    let script = "cd \"$2\" && grep -q 'Add, do not subtract' \"$1\" && printf '%s' \"$RIGHT\" > add.sh && echo mended";
    let command = ["sh", "-c", script, "sh", "{prompt_file}", "{workspace}"];
    let implementer = json!({"kind": "command", "command": command});
    let more = json!({"implementer": implementer, "env": {"RIGHT": RIGHT}});
    let record = world.run("default.t", contained(IMAGE, more)).await;
    succeeded(&record);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    assert!(world.model.requests().is_empty());
    nothing_left(&world, &engine).await;
}

/// An agent of the Agent Client Protocol, as far as a shell script is one: it greets, opens a session, and mends the
/// fault when it is prompted.
const ACP: &str = r#"
while read -r line; do
    id=$(printf '%s\n' "$line" | sed -n 's/.*"id":\("[^"]*"\|[0-9]*\).*/\1/p')
    answer() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
    case $line in
        *'"method":"initialize"'*) answer '{"protocolVersion":1,"agentCapabilities":{}}';;
        *'"method":"session/new"'*) answer '{"sessionId":"s1"}';;
        *'"method":"session/prompt"'*)
            case $line in *'do not subtract'*) printf '%s' "$RIGHT" > add.sh;; esac
            echo 'a word on stderr' >&2
            answer '{"stopReason":"end_turn"}';;
    esac
done
"#;

#[tokio::test]
async fn an_agent_program_in_a_container_is_spoken_to_over_its_stdin() {
    let engine = engine!();
    let world = World::of(json!([])).await;
    let _worker = builder(&world, &engine, "w").start().await;
    let implementer = json!({"kind": "command", "protocol": "acp", "command": ["sh", "-c", ACP.replace('{', "{{").replace('}', "}}")]});
    let more = json!({"implementer": implementer, "env": {"RIGHT": RIGHT}});
    let record = world.run("default.t", contained(IMAGE, more)).await;
    succeeded(&record);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    assert!(world.artifact("t", "job.log").await.contains("a word on stderr"));
    nothing_left(&world, &engine).await;
}

fn hangs() -> Value {
    json!([
        {"calls": [call("run_command", json!({"command": "trap '' TERM; (setsid sleep 9876 &); touch begun; sleep 9876"}))]},
        {"repeat": {"say": "Done."}},
    ])
}

/// Waits until the command of the model runs.
async fn command_runs(world: &World, engine: &Engine) {
    engine.running("t").await;
    let slots = world.fleet.folder().to_owned();
    eventually("the command has begun", async || {
        let begun = super::files_below(&slots).into_iter().any(|path| path.ends_with(Path::new("tree/begun")));
        begun.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_cancel_leaves_no_container() {
    let engine = engine!();
    let world = World::of(hangs()).await;
    let _worker = builder(&world, &engine, "w").start().await;
    world.fleet.publish("default.t", &world.job(contained(IMAGE, json!({})))).await;
    command_runs(&world, &engine).await;
    world.fleet.shoal(&["cancel", "t"]).await.ok();
    let record = world.fleet.ended("default.t").await;
    assert_eq!(record.state, State::Cancelled, "{record:#?}");
    nothing_left(&world, &engine).await;
    assert_eq!(world.repo.branches(), Vec::<String>::new());
}

#[tokio::test]
async fn a_job_that_ends_while_a_command_starts_has_no_container_any_more() {
    let engine = engine!();
    // One short command after the other, none like another: most of the time one is being started.
    let echo = |n| json!({"calls": [call("run_command", json!({"command": format!("echo {n}")}))]});
    let world = World::of((0..1000).map(echo).collect()).await;
    let _worker = builder(&world, &engine, "w").start().await;
    let ids: Vec<String> = (0..8).map(|n| format!("t-{n}")).collect();
    for (n, id) in ids.iter().enumerate() {
        let job = world.job(contained(IMAGE, json!({}))).with("timeout", format!("{}ms", 3000 + 70 * n));
        world.fleet.publish(&format!("default.{id}"), &job).await;
    }
    let ended = ids.iter().map(async |id| {
        let record = world.fleet.ended(&format!("default.{id}")).await;
        assert_eq!(record.error.as_ref().map(|error| error.code), Some(Code::TimedOut), "{record:#?}");
        assert_eq!(engine.of_task(id).await, Vec::<Value>::new(), "{record:#?}");
    });
    futures_util::future::join_all(ended).await;
    nothing_left(&world, &engine).await;
}

#[tokio::test]
async fn a_deadline_leaves_no_container() {
    let engine = engine!();
    let world = World::of(json!([
        {"calls": [call("write_file", json!({"path": "add.sh", "content": RIGHT}))]},
        {"repeat": {"say": "Done."}},
    ]))
    .await;
    let _worker = builder(&world, &engine, "w").start().await;
    let playbook =
        json!({"name": "slow", "steps": [{"name": "test", "kind": "test", "command": "trap '' TERM; sleep 9876"}]});
    let mut job = world.job(contained(IMAGE, json!({"playbook": {"kind": "inline", "playbook": playbook}})));
    job["timeout"] = json!("5s");
    let record = world.fleet.run("default.t", &job).await;
    assert_eq!(record.error.map(|error| error.code), Some(Code::TimedOut));
    nothing_left(&world, &engine).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_in_a_command_leaves_no_container_and_another_goes_on() {
    let engine = engine!();
    let world = World::with(super::scripted::Scripted::conversations(json!([
        {"match": "earlier attempt", "turns": mends()},
        {"match": "", "turns": [
            {"calls": [call("write_file", json!({"path": "notes.txt", "content": "subtracts\n"}))]},
            hangs()[0].clone(),
        ]},
    ])))
    .await;
    let mut first = builder(&world, &engine, "first").start().await;
    world.fleet.publish("default.t", &world.job(contained(IMAGE, json!({"keep": {"every_turns": 1}})))).await;
    command_runs(&world, &engine).await;
    first.kill().await;
    // Before any other worker is there to clean up.
    engine.is_clean().await;
    let _second = builder(&world, &engine, "second").start().await;
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(record.attempts.iter().map(|it| it.outcome).collect::<Vec<_>>(), [Outcome::Lost, Outcome::Exited]);
    assert_eq!(report(&record).resumed_from, record.attempts[0].start);
    assert_eq!(world.repo.file(BRANCH, "notes.txt").as_deref(), Some("subtracts\n"));
    engine.is_clean().await;
}
