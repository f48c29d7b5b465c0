//! The pool: never more than `max`, fair to who waits, down to `min` when idle.

use futures_util::future::join_all;
use schemas::{Code, InstanceStatus};
use serde_json::{Value, json};

use super::{PATIENCE, World, code};

#[tokio::test]
async fn waiting_calls_bring_further_instances_up_to_max_and_no_more() {
    let Some(world) = World::start().await else { return };
    let _workers = (world.worker("v").await, world.worker("w").await);
    let name = world.define("wide", json!({"max": 3})).await;
    let calls = (0..24).map(|_| world.call(&name, json!({"do": "sleep", "ms": 300})));
    let (answers, most) = tokio::join!(join_all(calls), async {
        let mut most = 0;
        for _ in 0..40 {
            most = most.max(world.containers(&name).await.len());
            if most == 3 {
                break;
            }
        }
        most
    });
    answers.into_iter().for_each(|answer| assert_eq!(answer.expect("answered").status, 200));
    assert!(most <= 3, "{most}");
    let records = world.records(&name).await;
    assert!((2..=3).contains(&records.len()), "{records:#?}");
    assert_eq!(world.containers(&name).await.len(), records.len());
}

#[tokio::test]
async fn one_instance_takes_as_many_calls_at_once_as_it_says() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("shared", json!({"concurrency": 8, "acquire_timeout": "2s"})).await;
    world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    // Eight fill it for longer than the ninth waits.
    let long = (0..8).map(|_| world.call(&name, json!({"do": "sleep", "ms": 6_000})));
    let ninth = async {
        let is_full = async || world.call(&name, json!({"do": "count"})).await.is_err();
        while !is_full().await {}
    };
    let (answers, ()) = tokio::join!(join_all(long), ninth);
    answers.into_iter().for_each(|answer| assert_eq!(answer.expect("answered").status, 200));
    assert_eq!(world.containers(&name).await.len(), 1);
}

#[tokio::test]
async fn who_waits_longer_than_the_limit_is_told_so() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("narrow", json!({"acquire_timeout": "500ms"})).await;
    world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    let long = world.call(&name, json!({"do": "sleep", "ms": 4_000}));
    let refused = async {
        loop {
            match world.call(&name, json!({"do": "count"})).await {
                Ok(_) => {}
                refused => return code(refused),
            }
        }
    };
    let (answer, refused) = tokio::join!(long, refused);
    assert_eq!((answer.expect("answered").status, refused), (200, Code::NoInstance));
}

#[tokio::test]
async fn an_idle_function_scales_to_zero_and_starts_again_with_a_call() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("rare", json!({"idle_timeout": "1s"})).await;
    world.answer(&name, json!({})).await;
    world.records_where(&name, "no instance", <[_]>::is_empty).await;
    world.no_container(&name).await;
    assert_eq!(world.answer(&name, json!({"again": true})).await, json!({"again": true}));
}

#[tokio::test]
async fn an_instance_in_use_is_never_idle_and_one_on_lease_neither() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("busy", json!({"idle_timeout": "1s"})).await;
    let answer = world.call(&name, json!({"do": "sleep", "ms": 3_500})).await.expect("answered");
    assert_eq!(answer.status, 200);
    let lease = world.caller.acquire(&name, Some(PATIENCE)).await.expect("leased");
    let start = lease.instance.start.clone();
    for _ in 0..30 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let records = world.records(&name).await;
        assert!(records.iter().any(|it| it.start == start && it.takes_calls()), "{records:#?}");
    }
    drop(lease);
    world.records_where(&name, "no instance", <[_]>::is_empty).await;
    let lease = world.caller.acquire(&name, Some(PATIENCE)).await.expect("leased again");
    world.caller.evict(lease).await.expect("evicted");
    assert!(world.records(&name).await.is_empty() && world.containers(&name).await.is_empty());
}

#[tokio::test]
async fn min_is_kept_warm_through_idleness_and_death() {
    let Some(world) = World::start().await else { return };
    let _dispatcher = world.fleet.dispatcher(&[]).await;
    let _worker = world.worker("w").await;
    let name = world.define("warm", json!({"min": 2, "max": 3, "idle_timeout": "1s"})).await;
    let ready = |all: &[schemas::Instance]| all.iter().filter(|it| it.status == InstanceStatus::Ready).count() == 2;
    let first = world.records_where(&name, "two are ready", ready).await;
    let id = first[0].id.clone().expect("an id");
    world.engine.remove(&format!("containers/{id}")).await;
    let again = |all: &[schemas::Instance]| ready(all) && all.iter().all(|it| it.id.as_deref() != Some(id.as_str()));
    world.records_where(&name, "two are ready again", again).await;
    // Nobody calls for longer than the idle timeout.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(ready(&world.records(&name).await));
}

#[tokio::test]
async fn a_changed_definition_replaces_instances_without_a_call_lost() {
    let Some(world) = World::start().await else { return };
    let _dispatcher = world.fleet.dispatcher(&[]).await;
    let _workers = (world.worker("v").await, world.worker("w").await);
    let name = world.define("rolls", json!({"min": 1, "env": {"COLOUR": "blue"}})).await;
    let before = world.caller.ensure(&name, Some(PATIENCE)).await.expect("made").instance;
    let stop = tokio_util::sync::CancellationToken::new();
    let calling = async {
        let mut calls = 0;
        while !stop.is_cancelled() {
            let answer: Value = world.answer(&name, json!({"call": calls})).await;
            assert_eq!(answer, json!({"call": calls}));
            calls += 1;
        }
        calls
    };
    let changing = async {
        world.define("rolls", json!({"min": 1, "env": {"COLOUR": "green"}})).await;
        let is_new = |all: &[schemas::Instance]| {
            all.len() == 1 && all[0].status == InstanceStatus::Ready && all[0].id != before.id
        };
        let after = world.records_where(&name, "another instance", is_new).await;
        assert_ne!(after[0].spec, before.spec);
        stop.cancel();
    };
    let (calls, ()) = tokio::join!(calling, changing);
    assert!(calls > 0);
    let only_one = async || match world.containers(&name).await.len() {
        1 => Ok(()),
        count => Err(format!("{count} containers")),
    };
    crate::support::eventually("the old container is gone", only_one).await;
}

#[tokio::test]
async fn a_deleted_function_takes_its_instances_with_it() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("gone", json!({})).await;
    world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    assert!(world.caller.delete(&name).await.expect("deleted"));
    world.records_where(&name, "no record", <[_]>::is_empty).await;
    world.no_container(&name).await;
    assert_eq!(code(world.call(&name, json!({})).await), Code::NotFound);
}

#[tokio::test]
async fn a_function_that_is_deleted_and_defined_again_lives() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("twice", json!({})).await;
    world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    assert!(world.caller.delete(&name).await.expect("deleted"));
    world.records_where(&name, "no record", <[_]>::is_empty).await;
    world.define("twice", json!({})).await;
    for call in 1..=20 {
        assert_eq!(world.answer(&name, json!({"do": "count"})).await["count"], call, "one instance, all the while");
    }
}

#[tokio::test]
async fn a_busy_function_rolls_however_long_its_start_takes() {
    let Some(world) = World::start().await else { return };
    let _dispatcher = world.fleet.dispatcher(&[]).await;
    let _worker = world.worker("w").await;
    // Its use is written every second, and a start takes three.
    let definition = |colour: &str| json!({"concurrency": 4, "idle_timeout": "10s", "env": {"COLOUR": colour, "SLOW_START_MS": "3000"}});
    let name = world.define("slow-roll", definition("blue")).await;
    let before = world.caller.ensure(&name, Some(PATIENCE)).await.expect("made").instance;
    let stop = tokio_util::sync::CancellationToken::new();
    let calling = async {
        while !stop.is_cancelled() {
            assert_eq!(world.answer(&name, json!({"on": true})).await, json!({"on": true}));
        }
    };
    let changing = async {
        world.define("slow-roll", definition("green")).await;
        let is_new = |all: &[schemas::Instance]| all.len() == 1 && all[0].takes_calls() && all[0].spec != before.spec;
        world.records_where(&name, "the new one", is_new).await;
        stop.cancel();
    };
    tokio::join!(calling, changing);
}
