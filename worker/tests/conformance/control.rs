//! Stopping, halting, looking.

use std::time::{Duration, Instant};

use schemas::StartId;
use shoal_worker::runtime::{RuntimeError, Status};

use crate::world::{World, eventually, read_until, within};

async fn status(world: &World, start: &StartId) -> Option<Status> {
    let listed = within(world.runtime.list()).await.unwrap();
    listed.into_iter().find(|listed| listed.start == *start).map(|listed| listed.status)
}

pub async fn a_stop_is_kind_first_and_firm_after_its_grace(world: &World) {
    let kind = world.shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    let (start, started) = world.ready(kind).await;
    within(world.runtime.stop(&start, Duration::from_secs(30))).await.unwrap();
    let output = world.finish(&start, started).await;
    assert_eq!((output.stdout.as_str(), output.exit.code), ("bye\n", Some(7)));

    let deaf = world.shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let (start, started) = world.ready(deaf).await;
    let began = Instant::now();
    within(world.runtime.stop(&start, Duration::from_millis(300))).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    let exit = world.finish(&start, started).await.exit;
    assert_eq!((exit.signal, exit.oom), (Some(9), false));
}

pub async fn a_stop_without_grace_kills_at_once(world: &World) {
    let (start, started) =
        world.ready(world.shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")).await;
    within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    assert_eq!(world.finish(&start, started).await.exit.signal, Some(9));
}

pub async fn of_two_stops_the_shorter_grace_wins(world: &World) {
    let (start, started) = world.ready(world.shell("trap '' TERM; echo ready; while :; do sleep 0.05; done")).await;
    let (long, short) = tokio::join!(
        within(world.runtime.stop(&start, Duration::from_secs(50))),
        within(world.runtime.stop(&start, Duration::from_millis(200))),
    );
    long.unwrap();
    short.unwrap();
    assert_eq!(world.finish(&start, started).await.exit.signal, Some(9));
}

pub async fn what_is_paused_stands_still_and_goes_on(world: &World) {
    let (start, mut started) = world.ready(world.shell("echo ready; while :; do echo tick; sleep 0.02; done")).await;
    if !world.can("pause") {
        let refused = world.runtime.pause(&start).await;
        return assert!(matches!(refused, Err(RuntimeError::Unimplemented { .. })), "{refused:?}");
    }
    assert_eq!(status(world, &start).await, Some(Status::Running));
    for _ in 0..2 {
        // Twice is no error.
        within(world.runtime.pause(&start)).await.unwrap();
        assert_eq!(status(world, &start).await, Some(Status::Paused));
    }
    for _ in 0..2 {
        within(world.runtime.resume(&start)).await.unwrap();
        assert_eq!(status(world, &start).await, Some(Status::Running));
    }
    read_until(&mut started.stdout, "tick").await;
    let nobody = StartId::new("nobody").unwrap();
    assert!(matches!(world.runtime.pause(&nobody).await, Err(RuntimeError::NotFound { .. })));
    within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
}

pub async fn what_is_paused_still_ends_by_a_stop(world: &World) {
    if !world.can("pause") {
        return;
    }
    for grace in [Duration::ZERO, Duration::from_secs(1)] {
        let (start, started) = world.ready(world.shell("echo ready; sleep 1000")).await;
        within(world.runtime.pause(&start)).await.unwrap();
        within(world.runtime.stop(&start, grace)).await.unwrap();
        assert!(world.finish(&start, started).await.exit.signal.is_some(), "{grace:?}");
    }
}

pub async fn what_is_gone_already_is_gone(world: &World) {
    let job = world.shell("exit 0");
    let start = job.start.clone();
    world.run(job).await;
    for _ in 0..2 {
        within(world.runtime.stop(&start, Duration::from_secs(5))).await.unwrap();
    }
    for _ in 0..2 {
        within(world.runtime.remove(&start)).await.unwrap();
    }
    within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    assert_eq!(status(world, &start).await, None);
    assert!(matches!(world.runtime.stats(&start).await, Err(RuntimeError::NotFound { .. })));
    assert_eq!(world.left().await, Vec::<String>::new());
}

pub async fn every_status_is_a_word_of_ours(world: &World) {
    let (start, started) = world.ready(world.shell("echo ready; sleep 1000")).await;
    assert_eq!(status(world, &start).await, Some(Status::Running));
    within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    world.finish(&start, started).await;
    // What has ended is kept until it is removed, or listed no more.
    let ended = eventually(async || match status(world, &start).await {
        Some(Status::Running) => None,
        other => Some(other),
    });
    assert!(matches!(ended.await, None | Some(Status::Stopped)));
    within(world.runtime.remove(&start)).await.unwrap();
    assert_eq!(status(world, &start).await, None);
}
