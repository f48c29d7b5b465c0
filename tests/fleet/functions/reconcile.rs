//! What dispatchers do for functions: keep `min` warm, replace what is gone or older, forget what nobody holds.

use schemas::InstanceStatus;
use serde_json::json;

use super::World;
use crate::support::eventually;

#[tokio::test]
async fn min_is_kept_warm_without_any_call_and_made_again_when_it_is_removed() {
    let Some(world) = World::start().await else { return };
    let (_dispatcher, _) = world.fleet.dispatcher(&[]).await;
    // Defined before there is anybody to make it.
    let name = world.define("warm", json!({"min": 2, "max": 3, "idle_timeout": "1s"})).await;
    let _worker = world.worker("w").await;
    let ready = |n| move |it: &[schemas::Instance]| it.iter().filter(|it| it.takes_calls()).count() == n;
    let first = world.records_where(&name, "two instances", ready(2)).await;
    let destroyed = world.caller.destroy(&name, super::PATIENCE).await.expect("gone");
    assert_eq!(destroyed.len(), 2);
    let second = world.records_where(&name, "two new ones", ready(2)).await;
    assert!(second.iter().all(|new| first.iter().all(|old| old.start != new.start)));
    assert_eq!(world.containers(&name).await.len(), 2);
}

#[tokio::test]
async fn what_a_killed_worker_kept_warm_is_made_elsewhere_and_what_it_had_beside_is_forgotten() {
    let Some(world) = World::start().await else { return };
    let (_dispatcher, _) = world.fleet.dispatcher(&[]).await;
    let mut first = world.worker("w1").await;
    let kept = world.define("kept", json!({"min": 1, "idle_timeout": "10m"})).await;
    let spare = world.define("spare", json!({"idle_timeout": "10m"})).await;
    let before = world.records_where(&kept, "an instance", |it| it.iter().any(|it| it.takes_calls())).await;
    world.caller.ensure(&spare, Some(super::PATIENCE)).await.expect("an instance");
    let _second = world.worker("w2").await;
    first.kill().await;
    let after = world
        .records_where(&kept, "one on the other worker", |it| {
            it.iter().any(|it| it.takes_calls() && it.worker.as_str() == world.engine.id("w2"))
        })
        .await;
    assert_ne!(after[0].start, before[0].start);
    world.records_where(&spare, "no record", |it| it.is_empty()).await;
    // Its next boot removes the containers that no record names.
    let _again = world.worker("w1").await;
    eventually("only the new container", async || {
        let (kept, spare) = (world.containers(&kept).await.len(), world.containers(&spare).await.len());
        if (kept, spare) == (1, 0) { Ok(()) } else { Err(format!("{kept} and {spare}")) }
    })
    .await;
}

#[tokio::test]
async fn a_changed_definition_rolls_its_instances_without_a_gap() {
    let Some(world) = World::start().await else { return };
    let (_dispatcher, _) = world.fleet.dispatcher(&[]).await;
    let _worker = world.worker("w").await;
    let name = world.define("rolls", json!({"min": 1, "env": {"V": "1"}})).await;
    let before = world.records_where(&name, "an instance", |it| it.iter().any(|it| it.takes_calls())).await;
    let calling = async {
        // Until the new one is there, and none of them fails.
        loop {
            let response = world.call(&name, json!({"still": "here"})).await.expect("answered");
            assert_eq!(response.status, 200);
            if response.instance != before[0].start {
                return;
            }
        }
    };
    let changing = async {
        world.define("rolls", json!({"min": 1, "env": {"V": "2"}})).await;
        world
            .records_where(&name, "another start", |it| it.first().is_some_and(|it| it.start != before[0].start))
            .await;
    };
    tokio::join!(calling, changing);
    eventually("one container", async || match world.containers(&name).await.len() {
        1 => Ok(()),
        many => Err(many.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_deleted_function_leaves_nothing_even_if_nobody_heard_of_it() {
    let Some(world) = World::start().await else { return };
    let mut worker = world.worker("w").await;
    let name = world.define("gone", json!({"max": 2})).await;
    world.caller.ensure(&name, Some(super::PATIENCE)).await.expect("an instance");
    // Deleted while its worker is stopped and no dispatcher runs.
    worker.terminate();
    worker.wait().await;
    world.records_where(&name, "left", |it| it.first().is_some_and(|it| it.status == InstanceStatus::Left)).await;
    assert!(world.caller.delete(&name).await.expect("deleted"));
    let (_dispatcher, _) = world.fleet.dispatcher(&[]).await;
    world.records_where(&name, "no record", |it| it.is_empty()).await;
    let _again = world.worker("w").await;
    world.no_container(&name).await;
}

#[tokio::test]
async fn a_start_that_fails_is_tried_again_until_it_goes_well() {
    let Some(world) = World::start().await else { return };
    let (_dispatcher, _) = world.fleet.dispatcher(&[]).await;
    let _worker = world.worker("w").await;
    let broken = json!({"min": 1, "env": {"START": "exit"}});
    let name = world.define("mended", broken).await;
    let failed =
        world.records_where(&name, "a failure, twice", |it| it.first().is_some_and(|it| it.failures >= 2)).await;
    assert_eq!(failed[0].status, InstanceStatus::Failed);
    assert!(failed[0].error.is_some() && failed[0].retry_at.is_some());
    world.define("mended", json!({"min": 1})).await;
    world.records_where(&name, "well", |it| it.iter().any(|it| it.takes_calls())).await;
}
