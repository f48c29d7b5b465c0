//! What a workload may not go beyond.

use std::time::{Duration, Instant};

use schemas::{Bytes, Cpu, Limit};

use crate::world::{World, within};

pub async fn memory_beyond_the_limit_is_told_as_such(world: &World) {
    // Not at once: an engine begins to listen for the kernel's kill when it has started it. And not as the last thing: it
    // may never hear of it where the container is gone too soon.
    let hog = match world.runs_containers() {
        true => "cd /shoal; until [ -e go ]; do sleep 0.05; done; tail /dev/zero; code=$?; sleep 1; exit $code",
        false => "until [ -e go ]; do sleep 0.05; done; exec tail /dev/zero",
    };
    let mut job = world.shell(hog);
    job.limits.memory = Limit::At(Bytes::mebi(16));
    if !world.can("memory_limit") {
        let refused = within(world.runtime.start(job)).await.err().expect("refused");
        return assert_eq!(refused.to_task_error().code, schemas::Code::LimitUnsupported);
    }
    let (start, go) = (job.start.clone(), job.folder.join("go"));
    let started = within(world.runtime.start(job)).await.unwrap();
    std::fs::write(go, "").unwrap();
    let exit = world.finish(&start, started).await.exit;
    assert_eq!((exit.signal, exit.oom), (Some(9), true));
    // What ends so soon an engine may not have looked at.
    assert!(exit.usage.peak_memory_bytes.is_none_or(|bytes| bytes <= 17 << 20), "{exit:?}");
}

pub async fn a_bound_of_processes_that_is_run_into_is_told(world: &World) {
    let mut job = world.shell("sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait'; sleep 1; exit 1");
    job.limits.pids = Limit::At(8);
    if !world.can("pids_limit") {
        let refused = within(world.runtime.start(job)).await.err().expect("refused");
        return assert_eq!(refused.to_task_error().code, schemas::Code::LimitUnsupported);
    }
    let exit = world.run(job).await.exit;
    assert_ne!(exit.code, Some(0));
    assert!(exit.pids_exceeded, "{exit:?}");
}

pub async fn a_bound_of_cpu_is_in_force(world: &World) {
    // A tenth of a CPU: whatever it does within its time, it has had no more than about that.
    let mut job = world.shell("echo ready; while :; do :; done");
    job.limits.cpu = Limit::At(Cpu { millis: 100 });
    if !world.can("cpu_limit") {
        let refused = within(world.runtime.start(job)).await.err().expect("refused");
        return assert_eq!(refused.to_task_error().code, schemas::Code::LimitUnsupported);
    }
    let (start, started) = world.ready(job).await;
    let began = Instant::now();
    let first = world.runtime.stats(&start).await.unwrap().cpu_ms.unwrap_or_default();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (second, took) = (world.runtime.stats(&start).await.unwrap().cpu_ms.unwrap(), began.elapsed());
    within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    world.finish(&start, started).await;
    // Whole periods may fall in at both ends.
    assert!(u128::from(second - first) < took.as_millis() / 4, "{first} to {second} in {took:?}");
}

pub async fn what_is_not_kept_alive_is_killed_and_told(world: &World) {
    assert!(world.can("keep_alive"), "every runtime here does");
    let mut job = world.shell("echo ready; sleep 1000");
    job.alive_until = Some(Instant::now() + Duration::from_secs(20));
    let (start, started) = world.ready(job).await;
    // From here on it is kept alive no longer than this.
    let mut mortal = world.shell("echo ready; sleep 1000");
    mortal.alive_until = None;
    let (immortal, immortals) = world.ready(mortal).await;
    let until = Instant::now() + Duration::from_secs(20);
    world.runtime.keep_alive(until);
    let exit = world.finish(&start, started).await.exit;
    assert!(
        exit.not_kept_alive && exit.signal == Some(9) && Instant::now() >= until - Duration::from_secs(1),
        "{exit:?}"
    );
    within(world.runtime.stop(&immortal, Duration::ZERO)).await.unwrap();
    let exit = world.finish(&immortal, immortals).await.exit;
    assert!(!exit.not_kept_alive, "it needs nobody");
}
