//! Workers, dispatchers and engines come and go; instances are taken up again or replaced, none is orphaned.

use schemas::{Code, InstanceStatus};
use serde_json::{Value, json};

use super::{PATIENCE, World, code};
use crate::support::eventually;

#[tokio::test]
async fn a_worker_told_to_stop_leaves_its_instances_and_its_next_boot_takes_them_up() {
    let Some(world) = World::start().await else { return };
    let mut worker = world.worker("w").await;
    let name = world.define("stays", json!({})).await;
    let before: Value = world.answer(&name, json!({"do": "count"})).await;
    worker.terminate();
    worker.wait().await;
    let left = world.records(&name).await;
    assert_eq!((left.len(), left[0].status), (1, InstanceStatus::Left));
    assert_eq!(world.containers(&name).await[0]["State"], "running");

    let _again = world.worker("w").await;
    world.records_where(&name, "ready again", |all| all[0].status == InstanceStatus::Ready).await;
    let after = world.answer(&name, json!({"do": "count"})).await;
    assert_eq!((&after["hostname"], &after["count"]), (&before["hostname"], &json!(2)), "the same container");
}

#[tokio::test]
async fn a_killed_workers_instance_is_taken_up_by_its_next_boot() {
    let Some(world) = World::start().await else { return };
    let mut worker = world.worker("w").await;
    let name = world.define("adopted", json!({})).await;
    let before = world.answer(&name, json!({"do": "count"})).await;
    worker.kill_with_children().await;
    let again = world.worker("w").await;
    world
        .records_where(&name, "held by the new boot", |all| {
            all[0].status == InstanceStatus::Ready && all[0].boot != before["boot"]
        })
        .await;
    let after = world.answer(&name, json!({"do": "count"})).await;
    assert_eq!(after["hostname"], before["hostname"], "the same container");
    drop(again);
}

#[tokio::test]
async fn a_killed_workers_function_is_called_elsewhere_and_its_return_removes_what_it_left() {
    let Some(world) = World::start().await else { return };
    let mut first = world.worker("v").await;
    let name = world.define("moves", json!({})).await;
    let before = world.answer(&name, json!({"do": "count"})).await;
    let _second = world.worker("w").await;
    first.kill_with_children().await;
    // The record still says `ready`; nobody answers for it, and the caller finds out.
    let after = world.answer(&name, json!({"do": "count"})).await;
    assert_ne!(after["hostname"], before["hostname"]);
    let records = world.records(&name).await;
    assert_eq!((records.len(), records[0].worker.as_str()), (1, world.engine.id("w").as_str()));
    let _again = world.worker("v").await;
    eventually("one container is left", async || match world.containers(&name).await.as_slice() {
        [one] if one["Id"].as_str() == records[0].id.as_deref() => Ok(()),
        all => Err(format!("{all:#?}")),
    })
    .await;
}

#[tokio::test]
async fn a_frozen_workers_instances_are_replaced_and_it_gives_way_when_it_thaws() {
    let Some(world) = World::start().await else { return };
    let mut first = world.worker("v").await;
    let name = world.define("frozen", json!({"acquire_timeout": "3s", "request_timeout": "1s"})).await;
    world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    world.answer(&name, json!({"do": "count"})).await;
    first.freeze();
    // Its connection is still open, so nobody can know: the call is lost, and said to be.
    assert_eq!(code(world.call(&name, json!({"do": "count"})).await), Code::ResponseLost);
    first.thaw();
    assert_eq!(world.answer(&name, json!({"still": 1})).await, json!({"still": 1}));
    first.kill().await;
}

#[tokio::test]
async fn an_instance_whose_container_is_killed_is_replaced_with_the_next_call() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("killed", json!({})).await;
    let made = world.caller.ensure(&name, Some(PATIENCE)).await.expect("made").instance;
    let id = made.id.expect("an id");
    world.engine.request("POST", &format!("/containers/{id}/kill"), Value::Null).await;
    world.records_where(&name, "failed", |all| all[0].status == InstanceStatus::Failed).await;
    let error = world.records(&name).await[0].error.clone().expect("it says why");
    assert_eq!(error.code, Code::InstanceExited, "{error:?}");
    assert_eq!(world.answer(&name, json!({"again": 1})).await, json!({"again": 1}));
    assert_eq!(world.containers(&name).await.len(), 1, "nothing of the dead one is left");
}

#[tokio::test]
async fn a_dispatcher_killed_during_an_ensure_changes_nothing() {
    let Some(world) = World::start().await else { return };
    let (mut dispatcher, _) = world.fleet.dispatcher(&[]).await;
    let _worker = world.worker("w").await;
    let name = world.define("calm", json!({"min": 1, "env": {"SLOW_START_MS": "1500"}})).await;
    dispatcher.kill().await;
    assert!(world.caller.ensure(&name, Some(PATIENCE)).await.is_ok());
    assert_eq!(world.containers(&name).await.len(), 1);
}

#[tokio::test]
async fn functions_kept_warm_are_back_soon_after_one_of_two_workers_is_killed() {
    let Some(world) = World::start().await else { return };
    let _dispatcher = world.fleet.dispatcher(&[]).await;
    let mut first = world.worker("v").await;
    let _second = world.worker("w").await;
    // As many as a busy machine can start in the patience of a test; more by hand.
    let functions: usize = std::env::var("SHOAL_TEST_FUNCTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let names: Vec<_> = (0..functions).map(|n| format!("warm-{n}")).collect();
    for name in &names {
        world.define(name, json!({"min": 1})).await;
    }
    let ready_on = async |fits: &dyn Fn(&str) -> bool| {
        let all = world.caller.instances(None).await.expect("readable");
        all.iter().filter(|it| it.instance.status == InstanceStatus::Ready && fits(it.instance.worker.as_str())).count()
    };
    eventually("all are warm", async || match ready_on(&|_| true).await {
        count if count == functions => Ok(()),
        count => Err(format!("{count} are")),
    })
    .await;
    first.kill_with_children().await;
    let second = world.engine.id("w");
    eventually("all are warm on the other worker", async || match ready_on(&|worker| worker == second).await {
        count if count == functions => Ok(()),
        count => Err(format!("{count} are")),
    })
    .await;
}

#[tokio::test]
async fn no_call_is_lost_while_a_worker_is_told_to_stop_under_load() {
    let Some(world) = World::start().await else { return };
    let mut first = world.worker("v").await;
    let name = world.define("handed-over", json!({"concurrency": 8})).await;
    world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    let _second = world.worker("w").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let lanes = (0..8).map(|lane| {
        let (world, name, stop) = (&world, &name, &stop);
        async move {
            let mut call = 0;
            while !stop.is_cancelled() {
                let body = json!({"lane": lane, "call": call});
                assert_eq!(world.answer(name, body.clone()).await, body);
                call += 1;
            }
            call
        }
    });
    let leaving = async {
        first.terminate();
        first.wait().await;
        let second = world.engine.id("w");
        let is_there = |all: &[schemas::Instance]| {
            all.iter().any(|it| it.status == InstanceStatus::Ready && it.worker.as_str() == second)
        };
        world.records_where(&name, "an instance on the other worker", is_there).await;
        stop.cancel();
    };
    let (calls, ()) = tokio::join!(futures_util::future::join_all(lanes), leaving);
    assert!(calls.iter().all(|calls| *calls > 0), "{calls:?}");
}
