//! A cancel in each phase leaves no process, no lock of a workspace and no stray branch.

use schemas::State;
use schemas::transcript::{Event, JobPhase};
use serde_json::json;

use super::outside::Rest;
use super::scripted::Scripted;
use super::{World, mends, until};
use crate::support::With;
use crate::support::repo::RIGHT;

const KEY: &str = "default.t";

/// Cancels once the job has begun this phase, and looks at what is left.
async fn cancelled_in(world: &World, phase: JobPhase) {
    let began = async || world.told("t").await.iter().any(|entry| entry.event == Event::PhaseBegan { phase });
    until("the phase has begun", began).await;
    world.fleet.shoal(&["cancel", "t"]).await.ok();
    let record = world.fleet.ended(KEY).await;
    assert_eq!(record.state, State::Cancelled, "{phase}: {record:#?}");
    // Each request but one that was broken off is a whole turn, and counted.
    let (asked, report) = (world.model.requests().len() as u32, super::report(&record));
    assert!(report.turns <= asked && report.turns + 1 >= asked, "{phase}: {} of {asked} turns", report.turns);
    assert_eq!(world.repo.branches(), Vec::<String>::new(), "{phase}");
    let (folder, hangs) = (world.fleet.folder().display().to_string(), hang(world));
    let nothing_runs = async || {
        let all = std::process::Command::new("ps").args(["-eo", "args"]).output().expect("ps runs");
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        !all.lines().any(|line| line.contains(&hangs) || (line.contains("git ") && line.contains(&folder)))
    };
    until("no process is left", nothing_runs).await;
    let free = async || {
        world.fleet.messages("KV_shoal_slots", "$KV.shoal_slots.>").await.iter().all(|it| it.payload.is_empty())
    };
    until("the workspace is given back", free).await;
    // The workspace works for the next one.
    let again = world.fleet.run("default.again", &world.job(json!({"title": "Once more"}))).await;
    assert_ne!(again.state, State::Cancelled);
    assert!(super::report(&again).phases.len() >= 5, "{again:#?}");
}

/// A command without an end that no other test has.
fn hang(world: &World) -> String {
    let folder = std::fs::metadata(world.fleet.folder()).expect("it is there");
    format!("sleep 9{:012}", std::os::unix::fs::MetadataExt::ino(&folder))
}

/// A model that mends the fault, and has nothing to add when it is asked once more.
async fn willing() -> World {
    World::of(json!([
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"repeat": {"say": "Done."}},
    ]))
    .await
}

/// Cancels in this phase, while git hangs there for once: at the first command whose words match this pattern.
async fn cancelled_at(phase: JobPhase, pattern: &str) {
    let world = willing().await;
    let bin = world.fleet.folder().join("bin");
    let reached = world.fleet.folder().join("reached");
    std::fs::create_dir(&bin).unwrap();
    let path = std::env::var("PATH").unwrap();
    let git = std::env::split_paths(&path).map(|folder| folder.join("git")).find(|it| it.exists()).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in {pattern}) [ -e {reached} ] || {{ touch {reached}; exec {hang}; }};; esac\nexec {git} \"$@\"\n",
        reached = reached.display(),
        hang = hang(&world),
        git = git.display(),
    );
    std::fs::write(bin.join("git"), script).unwrap();
    std::fs::set_permissions(bin.join("git"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let _worker = world.builder("w").env("PATH", &format!("{}:{path}", bin.display())).start().await;
    world.fleet.publish(KEY, &world.job(json!({"keep": {"remote": true}}))).await;
    until("git hangs", async || reached.exists()).await;
    cancelled_in(&world, phase).await;
}

#[tokio::test]
async fn a_cancel_while_it_takes_a_workspace_leaves_nothing() {
    let world = willing().await;
    // It waits for a slot of the pool.
    let pool = Rest::start(|asked, before| match (asked.method.as_str(), before) {
        ("POST", 0) => None,
        ("POST", _) => Some((201, "", json!({"slot": "s1", "lease_s": 60}))),
        _ => Some((204, "", json!(null))),
    })
    .await;
    let _worker = world.builder("w").env("REPO_POOL_URL", &pool.url).start().await;
    world.fleet.publish(KEY, &world.job(json!({}))).await;
    until("the pool is asked", async || !pool.asked().is_empty()).await;
    cancelled_in(&world, JobPhase::Slot).await;
}

#[tokio::test]
async fn a_cancel_while_the_workspace_is_brought_to_the_base_leaves_nothing() {
    cancelled_at(JobPhase::Rebase, "*read-tree*--reset*").await;
}

#[tokio::test]
async fn a_cancel_while_it_commits_leaves_nothing() {
    cancelled_at(JobPhase::Commit, "*commit-tree*").await;
}

#[tokio::test]
async fn a_cancel_while_it_reports_takes_the_branch_back() {
    cancelled_at(JobPhase::Report, "*'ls-remote -- '*refs/shoal/wip/*").await;
}

#[tokio::test]
async fn a_cancel_while_fetching_leaves_nothing() {
    // A remote that never answers: the fetch hangs in ssh.
    let world = World::of(mends()).await;
    let ssh = world.fleet.folder().join("ssh");
    std::fs::write(&ssh, format!("#!/bin/sh\nexec {}\n", hang(&world))).unwrap();
    std::fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let allowed = format!("{}/**,ssh://**", world.fleet.folder().display());
    let _worker = world
        .builder("w")
        .env("SHOAL_ALLOWED_REPOSITORIES", &allowed)
        .env("SHOAL_GIT_SSH_COMMAND", &ssh.display().to_string())
        .start()
        .await;
    world.fleet.publish(KEY, &world.job(json!({"repository": "ssh://git@127.0.0.1:1/a.git"}))).await;
    cancelled_in(&world, JobPhase::Fetch).await;
}

#[tokio::test]
async fn a_cancel_while_the_model_answers_leaves_nothing() {
    let world = World::with(Scripted::conversations(json!([
        {"match": "Once more", "turns": [{"repeat": {"say": "Done."}}]},
        {"match": "", "turns": [{"hang": true}]},
    ])))
    .await;
    let _worker = world.worker("w").await;
    world.fleet.publish(KEY, &world.job(json!({}))).await;
    until("the model was asked", async || !world.model.requests().is_empty()).await;
    cancelled_in(&world, JobPhase::Implement).await;
}

#[tokio::test]
async fn a_cancel_while_a_command_of_the_model_runs_leaves_nothing() {
    let world = World::with(Scripted::conversations(json!([
        {"match": "Once more", "turns": [{"repeat": {"say": "Done."}}]},
        {"match": "", "turns": [
            {"calls": [{"name": "run_command", "arguments": {"command": "$HANG & $HANG"}}]},
        ]},
    ])))
    .await;
    let _worker = world.worker("w").await;
    world.fleet.publish(KEY, &world.job(json!({"env": {"HANG": hang(&world)}}))).await;
    let called = async || world.told("t").await.iter().any(|entry| matches!(entry.event, Event::ToolCall { .. }));
    until("the command runs", called).await;
    cancelled_in(&world, JobPhase::Implement).await;
}

#[tokio::test]
async fn what_a_cancelled_command_says_at_last_is_in_the_log() {
    let says = "trap 'echo these are my last words; exit' TERM; echo up; while :; do sleep 0.05; done";
    let world = World::of(json!([{"calls": [{"name": "run_command", "arguments": {"command": says}}]}])).await;
    let _worker = world.worker("w").await;
    world.fleet.publish(KEY, &world.job(json!({})).with("stop_grace", "20s")).await;
    let logs = async || world.fleet.shoal(&["logs", "t"]).await.stdout;
    until("it is up", async || logs().await.contains("up")).await;
    world.fleet.shoal(&["cancel", "t"]).await.ok();
    assert_eq!(world.fleet.ended(KEY).await.state, State::Cancelled);
    for log in [logs().await, world.artifact("t", "job.log").await] {
        assert!(log.contains("these are my last words"), "{log}");
    }
}

#[tokio::test]
async fn a_cancel_while_the_tests_run_leaves_nothing() {
    let world = willing().await;
    let _worker = world.worker("w").await;
    let playbook = json!({"name": "slow", "steps": [{"name": "test", "kind": "test", "command": hang(&world)}]});
    world.fleet.publish(KEY, &world.job(json!({"playbook": {"kind": "inline", "playbook": playbook}}))).await;
    cancelled_in(&world, JobPhase::Test).await;
}

#[tokio::test]
async fn a_cancel_while_it_pushes_takes_the_branch_back() {
    let world = willing().await;
    // The branch is there, and the one who pushes is not told: the remote is slow to say so.
    let reached = world.fleet.folder().join("reached");
    world.repo.hook(
        "post-receive",
        &format!("[ -e {0} ] || {{ touch {0}; while [ -e {0} ]; do sleep 0.1; done; }}", reached.display()),
    );
    let _worker = world.worker("w").await;
    world.fleet.publish(KEY, &world.job(json!({}))).await;
    until("the branch is at the remote", async || reached.exists()).await;
    assert_eq!(world.repo.branches().len(), 1);
    world.fleet.shoal(&["cancel", "t"]).await.ok();
    let record = world.fleet.ended(KEY).await;
    assert_eq!(record.state, State::Cancelled, "{record:#?}");
    until("the branch is gone", async || world.repo.branches().is_empty()).await;
    std::fs::remove_file(reached).unwrap();
}

#[tokio::test]
async fn a_cancel_after_the_push_comes_too_late_and_the_branch_stays() {
    let world = willing().await;
    // What is left to do takes long: the pool does not answer when its slot is given back.
    let pool = Rest::start(|asked, _| match asked.method.as_str() {
        "POST" => Some((201, "", json!({"slot": "s1", "lease_s": 60}))),
        "DELETE" => None,
        _ => Some((204, "", json!(null))),
    })
    .await;
    let _worker = world.builder("w").env("REPO_POOL_URL", &pool.url).start().await;
    world.fleet.publish(KEY, &world.job(json!({}))).await;
    until("the slot is given back", async || pool.asked().iter().any(|asked| asked.method == "DELETE")).await;
    let cancel = world.fleet.shoal(&["cancel", "t"]).await;
    let record = world.fleet.ended(KEY).await;
    assert_eq!(record.state, State::Succeeded, "{cancel:?} {record:#?}");
    assert_eq!(world.repo.branches(), ["feature/task-t-add-do-not-subtract"]);
}
