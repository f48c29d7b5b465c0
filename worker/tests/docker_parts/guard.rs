//! Containers do not outlive their worker, nor the time it was given.

use std::process::Stdio;
use std::time::{Duration, Instant};

use schemas::AgentId;
use shoal_worker::GuardCommand;
use shoal_worker::runtime::docker::guard::{Guard, Target};
use shoal_worker::runtime::docker::labels::{Owner, own_labels};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Engine, engine, eventually, random_word, task};

async fn guard(engine: &Engine) -> Guard {
    Guard::start(&GuardCommand::this_program(), &Target::Docker(engine.host.clone()), &engine.owner).await.unwrap()
}

/// Not a zombie either.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: no memory is involved; the process is a child of ours that nobody has waited for.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// A worker with a guard, in a process of its own that is killed with this test; and the guard's process.
async fn worker(engine: &Engine, kept_alive: Option<Duration>) -> (Child, u32) {
    let owner = &engine.owner;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["guard::a_worker_to_be_killed", "--exact", "--nocapture", "--test-threads=1"]);
    command.env("WORKER_HOST", &engine.host).env("WORKER_FLEET", &owner.fleet).env("WORKER_INSTANCE", &owner.instance);
    command.env("WORKER_KEPT_ALIVE_MS", kept_alive.unwrap_or_default().as_millis().to_string());
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next_line().await.unwrap().expect("the worker says who its guard is");
        if let Some((_, pid)) = line.split_once("guard ") {
            return (child, pid.trim().parse().unwrap());
        }
    }
}

/// Only with an environment as of [`worker`].
#[tokio::test]
async fn a_worker_to_be_killed() {
    let set = |name: &str| std::env::var(name).ok();
    let (Some(host), Some(fleet), Some(instance)) = (set("WORKER_HOST"), set("WORKER_FLEET"), set("WORKER_INSTANCE"))
    else {
        return;
    };
    let owner = Owner { fleet, worker: AgentId::new("w").unwrap(), instance };
    let guard = Guard::start(&GuardCommand::this_program(), &Target::Docker(host.clone()), &owner).await.unwrap();
    let kept_alive: u64 = set("WORKER_KEPT_ALIVE_MS").and_then(|ms| ms.parse().ok()).unwrap_or(0);
    println!("guard {}", guard.pid().unwrap());
    loop {
        if kept_alive > 0 {
            guard.extend(Instant::now() + Duration::from_millis(kept_alive));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_worker_that_is_killed_takes_its_containers_along() {
    let engine = engine!();
    let neighbour = Owner { worker: AgentId::new("v").unwrap(), ..engine.owner.clone() };
    let stranger = engine.run(task(&neighbour, "a", true)).await;
    let earlier = engine.run(task(&engine.owner_of("before"), "a", true)).await;
    let (mut worker, guard) = worker(&engine, None).await;
    let ours = [
        engine.run(task(&engine.owner, "a", true)).await,
        engine.run(task(&engine.owner, "b", false)).await,
        engine.run(own_labels(&engine.owner, "holder")).await,
        engine.volume(task(&engine.owner, "a", true)).await,
    ];
    engine.docker.pause_container(&ours[1]).await.unwrap();
    // What a whole control group is sent on its end does not end the guard before its work.
    signal(guard, libc::SIGTERM);
    worker.kill().await.unwrap();
    for id in &ours {
        eventually("what the worker left is removed", async || !engine.has(id).await).await;
    }
    // One that a request under way still made.
    let late = engine.create(task(&engine.owner, "late", true)).await;
    eventually("the late one is removed", async || !engine.has(&late).await).await;
    eventually("the guard leaves", async || !is_alive(guard)).await;
    assert!(engine.runs(&stranger).await);
    assert!(engine.runs(&earlier).await, "the sweep of the next worker does that");
}

#[tokio::test]
async fn a_frozen_worker_keeps_nothing_alive() {
    let engine = engine!();
    let (mut worker, guard) = worker(&engine, Some(Duration::from_secs(3))).await;
    let mortal = engine.run(task(&engine.owner, "a", true)).await;
    let immortal = engine.run(task(&engine.owner, "b", false)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(engine.runs(&mortal).await, "kept alive beyond its first time");
    signal(worker.id().unwrap(), libc::SIGSTOP);
    eventually("the mortal one is killed", async || !engine.runs(&mortal).await).await;
    assert!(engine.runs(&immortal).await && is_alive(guard));
    worker.kill().await.unwrap();
    eventually("the guard leaves", async || !is_alive(guard)).await;
    assert!(!engine.has(&immortal).await);
}

#[tokio::test]
async fn the_end_of_a_lease_kills_what_is_mortal_and_tells() {
    let engine = engine!();
    let guard = guard(&engine).await;
    let mortal = engine.run(task(&engine.owner, "a", true)).await;
    let paused = engine.run(task(&engine.owner, "b", true)).await;
    let immortal = engine.run(task(&engine.owner, "c", false)).await;
    let neighbour = Owner { worker: AgentId::new("v").unwrap(), ..engine.owner.clone() };
    let stranger = engine.run(task(&neighbour, "a", true)).await;
    engine.docker.pause_container(&paused).await.unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    guard.extend(until);
    guard.extend(until - Duration::from_secs(1));
    eventually("the mortal one is killed", async || !engine.runs(&mortal).await).await;
    assert!(Instant::now() >= until);
    eventually("the paused one is killed", async || !engine.runs(&paused).await).await;
    assert!(guard.kills() > 0);
    assert!(engine.runs(&immortal).await && engine.runs(&stranger).await);
    // Renewed, it lets live again.
    guard.extend(Instant::now() + Duration::from_secs(3600));
    let kills = guard.kills();
    let next = engine.run(task(&engine.owner, "d", true)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(engine.runs(&next).await);
    assert_eq!(guard.kills(), kills);
    guard.end().await;
    for id in [&mortal, &paused, &immortal, &next] {
        assert!(!engine.has(id).await, "nothing of this life is left by an orderly end");
    }
    assert!(engine.runs(&stranger).await);
}

#[tokio::test]
async fn without_a_lease_nothing_is_killed_and_a_dead_guard_is_noticed() {
    let engine = engine!();
    let guard = guard(&engine).await;
    let mortal = engine.run(task(&engine.owner, "a", true)).await;
    let pid = guard.pid().unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(2), guard.gone()).await.is_err());
    assert!(engine.runs(&mortal).await && guard.kills() == 0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 10 << 10, "{kilobytes} kB");
    signal(pid, libc::SIGKILL);
    tokio::time::timeout(Duration::from_secs(10), guard.gone()).await.expect("noticed");
    assert!(engine.runs(&mortal).await);
}

#[tokio::test]
async fn a_guard_waits_for_an_engine_that_is_down() {
    let engine = engine!();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(random_word());
    let host = format!("unix://{}", socket.display());
    let guard =
        Guard::start(&GuardCommand::this_program(), &Target::Docker(host.clone()), &engine.owner).await.unwrap();
    let left = engine.run(task(&engine.owner, "a", true)).await;
    let pid = guard.pid().unwrap();
    drop(guard);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(is_alive(pid) && engine.runs(&left).await);
    // The engine is back, at that address.
    std::os::unix::fs::symlink(engine.host.strip_prefix("unix://").unwrap(), &socket).unwrap();
    eventually("what was left is removed", async || !engine.has(&left).await).await;
    eventually("the guard leaves", async || !is_alive(pid)).await;
}

#[tokio::test]
async fn a_guard_does_not_wait_for_an_engine_that_is_gone_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let host = format!("unix://{}", folder.path().join("socket").display());
    let owner = Owner { fleet: random_word(), worker: AgentId::new("w").unwrap(), instance: "now".into() };
    let guard = Guard::start(&GuardCommand::this_program(), &Target::Docker(host.clone()), &owner).await.unwrap();
    let pid = guard.pid().unwrap();
    drop((guard, folder));
    eventually("the guard leaves", async || !is_alive(pid)).await;
}
