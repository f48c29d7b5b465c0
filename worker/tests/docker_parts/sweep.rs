//! What nobody owns goes, and nothing else.

use std::collections::HashMap;
use std::time::Duration;

use schemas::{AgentId, StartId};
use shoal_worker::runtime::docker::labels::{Owner, own_labels};
use shoal_worker::runtime::docker::sweep::{Swept, sweep};

use crate::support::{Engine, engine, random_word, task};

const HOUR: Duration = Duration::from_secs(3600);

/// Only the start `live` lives.
async fn swept(engine: &Engine, grace: Duration) -> Swept {
    sweep(&engine.docker, &engine.owner, &|start: &StartId| start.as_str() == "live", grace).await.unwrap()
}

#[tokio::test]
async fn only_what_no_start_owns_is_removed() {
    let engine = engine!();
    let (now, before) = (&engine.owner, engine.owner_of("before"));
    let neighbour = Owner { worker: AgentId::new("v").unwrap(), ..before.clone() };
    let stays = [
        engine.run(task(now, "live", true)).await,
        engine.run(own_labels(now, "holder")).await,
        engine.run(task(&neighbour, "live", true)).await,
        engine.network(task(&neighbour, "a", true)).await,
        engine.volume(own_labels(now, "cache")).await,
        engine.volume(own_labels(&neighbour, "cache")).await,
    ];
    let goes = [
        engine.run(task(now, "gone", true)).await,
        engine.run(task(&before, "live", false)).await,
        engine.run(own_labels(&before, "holder")).await,
        engine.network(task(now, "gone", true)).await,
        engine.network(own_labels(&before, "net")).await,
        engine.volume(task(&before, "gone", true)).await,
    ];
    // Some are paused, or have ended.
    engine.docker.pause_container(&goes[1]).await.unwrap();
    engine.docker.kill_container(&goes[2], None).await.unwrap();
    let expected = Swept { containers: 3, networks: 2, volumes: 1, refused: 0 };
    assert_eq!(swept(&engine, Duration::ZERO).await, expected);
    for id in &stays {
        assert!(engine.has(id).await, "{id} is gone");
    }
    for id in &goes {
        assert!(!engine.has(id).await, "{id} is there");
    }
    assert!(swept(&engine, Duration::ZERO).await.is_nothing());
}

#[tokio::test]
async fn another_fleet_is_never_touched() {
    let (engine, other) = (engine!(), engine!());
    let theirs = other.run(task(&other.owner_of("before"), "a", true)).await;
    let nobodys: HashMap<_, _> =
        [(shoal_worker::runtime::docker::labels::FLEET.into(), engine.owner.fleet.clone())].into();
    let nobodys = engine.run(nobodys).await;
    assert!(swept(&engine, Duration::ZERO).await.is_nothing());
    assert!(other.has(&theirs).await && engine.has(&nobodys).await);
}

#[tokio::test]
async fn a_strangers_container_is_not_ours_by_the_labels_of_its_image() {
    let engine = engine!();
    let before = engine.owner_of("before");
    let ours = engine.run(task(&before, "a", true)).await;
    let image = format!("shoal-worker-test/kept-{}", random_word());
    let commit = bollard::query_parameters::CommitContainerOptions {
        container: Some(ours.clone()),
        repo: Some(image.clone()),
        ..Default::default()
    };
    engine.docker.commit_container(commit, bollard::models::ContainerConfig::default()).await.unwrap();
    engine.forget(&image);
    let of_image = |labels| bollard::models::ContainerCreateBody {
        image: Some(image.clone()),
        cmd: Some(vec!["sleep".into(), "600".into()]),
        labels: Some(labels),
        ..Default::default()
    };
    let no_name = || None::<bollard::query_parameters::CreateContainerOptions>;
    let theirs = engine.docker.create_container(no_name(), of_image(HashMap::new())).await.unwrap().id;
    let also_ours = engine.docker.create_container(no_name(), of_image(task(&before, "b", true))).await.unwrap().id;
    assert_eq!(swept(&engine, Duration::ZERO).await.containers, 2);
    assert!(engine.has(&theirs).await);
    assert!(!engine.has(&ours).await && !engine.has(&also_ours).await);
}

#[tokio::test]
async fn the_newly_made_are_left_alone_for_a_while() {
    let engine = engine!();
    let new = engine.run(task(&engine.owner, "new", true)).await;
    let volume = engine.volume(task(&engine.owner, "new", true)).await;
    assert!(swept(&engine, HOUR).await.is_nothing());
    assert!(engine.has(&new).await && engine.has(&volume).await);
    // An earlier life makes nothing new.
    let old = engine.run(task(&engine.owner_of("before"), "new", true)).await;
    assert_eq!(swept(&engine, HOUR).await.containers, 1);
    assert!(!engine.has(&old).await);
}

#[tokio::test]
async fn sweeps_at_once_do_not_mind_each_other() {
    let engine = engine!();
    let before = engine.owner_of("before");
    for start in ["a", "b", "c"] {
        engine.run(task(&before, start, true)).await;
    }
    let (one, other) = futures_util::future::join(swept(&engine, HOUR), swept(&engine, HOUR)).await;
    assert!(one.containers + other.containers >= 3 && one.refused + other.refused == 0, "{one:?} {other:?}");
    assert!(swept(&engine, HOUR).await.is_nothing());
}
