//! Ensure: one instance for however many ask, and nothing left where there can be none.

use futures_util::future::join_all;
use schemas::{Code, InstanceStatus, State};
use serde_json::{Value, json};

use super::{PATIENCE, World, code};
use crate::support::http_get;

#[tokio::test]
async fn an_ensure_makes_one_container_and_the_next_finds_it_without_asking_anybody() {
    let Some(world) = World::start().await else { return };
    let mut worker = world.worker("w").await;
    let name = world.define("echo", json!({})).await;
    let made = world.caller.ensure(&name, Some(PATIENCE)).await.expect("made");
    assert!(!made.reused);
    let instance = &made.instance;
    assert_eq!(
        (instance.status, instance.index, instance.worker.as_str()),
        (InstanceStatus::Ready, 0, world.engine.id("w").as_str())
    );
    let (ip, port) = (instance.ip_address.clone().expect("an address"), instance.port.expect("a port"));
    let (status, _) = http_get(&format!("{ip}:{port}"), "/health").await.expect("it is there");
    assert_eq!(status, 200);
    let containers = world.containers(&name).await;
    assert_eq!(containers.len(), 1, "{containers:#?}");
    assert_eq!(containers[0]["Id"].as_str(), instance.id.as_deref());
    assert_eq!(containers[0]["Names"][0].as_str().map(|name| name.trim_start_matches('/')), instance.name.as_deref());

    // Nobody is asked: it is found though no worker could answer.
    worker.freeze();
    let found = world.caller.ensure(&name, Some(PATIENCE)).await.expect("found");
    assert!(found.reused);
    assert_eq!(found.instance.id, instance.id);
    worker.thaw();
    worker.terminate();
    worker.wait().await;
}

#[tokio::test]
async fn a_hundred_callers_of_a_cold_function_get_one_container() {
    let Some(world) = World::start().await else { return };
    let _workers = (world.worker("v").await, world.worker("w").await);
    let name = world.define("crowd", json!({"max": 5, "env": {"SLOW_START_MS": "300"}})).await;
    let all = join_all((0..100).map(|_| world.caller.ensure(&name, Some(PATIENCE)))).await;
    let ids: std::collections::BTreeSet<_> =
        all.into_iter().map(|made| made.expect("each is answered").instance.id).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(world.containers(&name).await.len(), 1);
}

#[tokio::test]
async fn what_cannot_start_leaves_nothing_and_says_why() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let health = json!({"path": "/health", "start_timeout": "2s"});
    for (name, more, expected) in [
        ("missing", json!({"image": "shoal-test/there-is-none:1", "pull": "never"}), Code::ImageNotFound),
        ("refused", json!({"image": "127.0.0.1:1/nobody/answers:1"}), Code::ImagePullFailed),
        ("unwell", json!({"env": {"HEALTH": "never"}, "health": health}), Code::NotHealthy),
        ("deaf", json!({"env": {"START": "noport"}, "health": health}), Code::NotHealthy),
        ("exits", json!({"env": {"START": "exit"}, "health": health}), Code::InstanceExited),
        (
            "hungry",
            json!({"env": {"START": "oom"}, "limits": {"memory": "16Mi"}, "health": {"start_timeout": "20s"}}),
            Code::OutOfMemory,
        ),
        ("wordless", json!({"entrypoint": ["/there-is-none"]}), Code::CommandNotFound),
    ] {
        let name = world.define(name, more).await;
        // Of one that is killed before it has an address, the engine may tell only that it ended.
        let fits = |code| code == expected || (expected == Code::OutOfMemory && code == Code::InstanceExited);
        let of_ensure = code(world.caller.ensure(&name, Some(PATIENCE)).await);
        assert!(fits(of_ensure), "{name}: {of_ensure}");
        // Who calls hears the same.
        let of_call = code(world.call(&name, json!({})).await);
        assert!(fits(of_call), "{name}: {of_call}");
        world.no_container(&name).await;
        let records = world.records(&name).await;
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].status, records[0].id.as_deref()), (InstanceStatus::Failed, None));
        assert!(fits(records[0].error.as_ref().expect("it says why").code));
        assert!(records[0].failures >= 2 && records[0].retry_at.is_some(), "{:?}", records[0]);
    }
    // What it wrote before it ended is kept: as its output, or quoted where it was over before it had an address.
    crate::support::eventually("its last words", async || {
        let logs = world.fleet.messages("SHOAL_LOGS", "shoal.logs._functions.exits.>").await;
        let said: Vec<u8> = logs.iter().flat_map(|message| message.payload.to_vec()).collect();
        let said = String::from_utf8_lossy(&said).into_owned();
        if said.contains("told to exit") { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn an_instance_is_called_only_once_it_is_well() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("late", json!({"env": {"HEALTH": "late:1500"}})).await;
    let made = world.caller.ensure(&name, Some(PATIENCE)).await.expect("made").instance;
    let (ip, port) = (made.ip_address.expect("an address"), made.port.expect("a port"));
    // Its port was open all the while; the answer came when its health did.
    assert_eq!(http_get(&format!("{ip}:{port}"), "/health").await.expect("it is there").0, 200);
    let count: Value = world.answer(&name, json!({"do": "count"})).await;
    assert_eq!(count["count"], 1, "{count}");
}

#[tokio::test]
async fn destroy_removes_the_container_then_the_record_and_may_be_done_again() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let name = world.define("brief", json!({})).await;
    let made = world.caller.ensure(&name, Some(PATIENCE)).await.expect("made").instance;
    let gone = world.caller.destroy(&name, PATIENCE).await.expect("destroyed");
    assert_eq!(gone.len(), 1);
    assert!(world.containers(&name).await.is_empty(), "the record is removed last");
    assert!(world.records(&name).await.is_empty());
    assert!(world.caller.destroy(&name, PATIENCE).await.expect("nothing to do").is_empty());
    // By the container's id, cut as people do.
    let again = world.caller.ensure(&name, Some(PATIENCE)).await.expect("made again").instance;
    assert_ne!(again.id, made.id);
    let id = again.id.expect("an id");
    assert_eq!(world.caller.destroy_one(&id[..12], PATIENCE).await.expect("destroyed").len(), 1);
    world.no_container(&name).await;
}

#[tokio::test]
async fn a_function_that_nobody_defined_is_not_found_and_an_owners_is_for_its_owner() {
    let Some(world) = World::start().await else { return };
    let _worker = world.worker("w").await;
    let nobody = "nobody".parse().expect("a name");
    assert_eq!(code(world.caller.ensure(&nobody, None).await), Code::NotFound);
    assert_eq!(code(world.call(&nobody, json!({})).await), Code::NotFound);

    let mine = world.caller.clone().owned_by(Some("team-a".into()));
    let name = "mine".parse().expect("a name");
    mine.apply(&name, super::function(json!({"owner": "team-a"}))).await.expect("applied");
    let theirs = world.caller.clone().owned_by(Some("team-b".into()));
    for stranger in [&world.caller, &theirs] {
        assert_eq!(code(stranger.ensure(&name, None).await), Code::PermissionDenied);
    }
    assert_eq!(mine.ensure(&name, Some(PATIENCE)).await.expect("made").instance.owner.as_deref(), Some("team-a"));
    for stranger in [&world.caller, &theirs] {
        // Warm: it is the worker that refuses.
        assert_eq!(code(stranger.invoke(&name, &functions::Call::new("{}")).await), Code::PermissionDenied);
        assert_eq!(code(stranger.destroy(&name, PATIENCE).await), Code::PermissionDenied);
        assert_eq!(code(stranger.delete(&name).await), Code::PermissionDenied);
    }
    assert_eq!(mine.invoke(&name, &functions::Call::new("{}")).await.expect("called").status, 200);
}

#[tokio::test]
async fn what_a_worker_forbids_never_becomes_an_instance() {
    let Some(world) = World::start().await else { return };
    let _worker = world.engine.worker(&world.fleet, "w").env("SHOAL_ALLOWED_IMAGES", "only/this").start().await;
    let name = world.define("forbidden", json!({})).await;
    assert_eq!(code(world.caller.ensure(&name, Some(PATIENCE)).await), Code::PolicyForbidden);
    assert!(world.containers(&name).await.is_empty());
    // A job of the same fleet still runs.
    let record = world.fleet.run("default.a", &json!({"workload": {"kind": "call", "handler": "noop"}})).await;
    assert_eq!(record.state, State::Succeeded);
}
