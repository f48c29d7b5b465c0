//! The tools of these tests themselves: the registry serves what an engine takes, and an own engine leaves nothing.

use serde_json::{Value, json};

use crate::support::{Engine, Fault, OwnEngine, Registry, engine, eventually, marked_processes};

async fn pull(engine: &Engine, image: &str) -> String {
    let path = format!("/images/create?fromImage={image}");
    let (status, body) =
        crate::support::unix_http(engine.socket(), "POST", &path, b"").await.expect("the engine answers");
    format!("{status} {}", String::from_utf8_lossy(&body))
}

#[tokio::test]
async fn the_engine_pulls_from_the_registry_and_runs_what_it_got() {
    let engine = engine!();
    let registry = Registry::start().await;
    let image = registry.push(&engine, "one", 1000);
    let said = pull(&engine, &image).await;
    assert!(said.contains("Pull complete"), "{said}");
    assert_eq!(registry.asked(&registry.layer("one")), 1);
    let labels = json!({"shoal.worker": engine.id("w")});
    let body = json!({"Image": image, "Cmd": ["sh", "-c", "exit 7"], "Labels": labels});
    let made = engine.request("POST", "/containers/create", body).await;
    let id = made["Id"].as_str().expect("an id");
    engine.request("POST", &format!("/containers/{id}/start"), Value::Null).await;
    let end = engine.request("POST", &format!("/containers/{id}/wait"), Value::Null).await;
    assert_eq!(end["StatusCode"], 7, "{end}");
    engine.remove(&format!("containers/{id}")).await;
    engine.is_clean().await;
}

#[tokio::test]
async fn what_goes_wrong_with_a_pull_is_said_by_the_engine() {
    let engine = engine!();
    let registry = Registry::start().await;
    let said = pull(&engine, &registry.image("missing")).await;
    assert!(said.contains("manifest unknown"), "{said}");

    let image = registry.push(&engine, "corrupt", 1000);
    registry.fails(&registry.layer("corrupt"), Fault::Corrupt, 1);
    let said = pull(&engine, &image).await;
    assert!(said.contains("verification failed"), "{said}");

    let image = registry.push(&engine, "refused", 1000);
    registry.fails("/v2/refused/manifests", Fault::Status(500), 100);
    let said = pull(&engine, &image).await;
    assert!(said.contains("500"), "{said}");

    // The engine itself tries a cut download again.
    let image = registry.push(&engine, "cut", 1000);
    registry.fails(&registry.layer("cut"), Fault::Cut, 1);
    let said = pull(&engine, &image).await;
    assert!(said.contains("Pull complete") && registry.asked(&registry.layer("cut")) == 2, "{said}");
}

#[tokio::test]
async fn an_engine_of_its_own_is_frozen_killed_and_restarted_and_leaves_nothing() {
    let Some(mut own) = OwnEngine::start().await else { return };
    let folder = own.socket().parent().expect("its folder").display().to_string();
    let id = own.run("x1", json!({})).await;
    own.freeze();
    let ping = tokio::time::timeout(std::time::Duration::from_millis(300), own.try_request("GET", "/_ping", &[])).await;
    assert!(ping.is_err(), "{ping:?}");
    own.thaw();
    assert!(own.has(&format!("containers/{id}")).await);
    own.kill().await;
    assert!(own.try_request("GET", "/_ping", &[]).await.is_err());
    own.restart().await;
    assert!(own.has(&format!("containers/{id}")).await);
    own.stop().await;
    own.restart().await;
    own.remove(&format!("containers/{id}")).await;
    drop(own);
    eventually("no process and no folder of it", async || {
        let left = (marked_processes(&folder), std::path::Path::new(&folder).exists());
        if left == (Vec::new(), false) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let mounts = std::fs::read_to_string("/proc/mounts").expect("readable");
    assert!(!mounts.contains(&folder), "{mounts}");
}
