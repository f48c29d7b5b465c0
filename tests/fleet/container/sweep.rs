//! The sweep (C10): what is ours and nobody's any more goes; what is another worker's or a stranger's stays.

use serde_json::{Value, json};

use crate::support::{Engine, Fleet, With, engine, eventually, shell_in};

async fn gone(engine: &Engine, object: &str) {
    eventually(format!("{object} is swept"), async || match engine.has(object).await {
        false => Ok(()),
        true => Err("it is there".into()),
    })
    .await;
}

/// A network and a volume with these labels; what they are called to the engine.
async fn belongings(engine: &Engine, name: &str, labels: &Value) -> [String; 2] {
    // Without a driver of its own a network takes one of the engine's few address pools.
    let network = json!({"Name": name, "Labels": labels, "Driver": "null", "CheckDuplicate": true});
    let network = match engine.try_request("POST", "/networks/create", network.to_string().as_bytes()).await {
        Ok(made) => made,
        Err(_) => {
            let network = json!({"Name": name, "Labels": labels, "Internal": true});
            engine.request("POST", "/networks/create", network).await
        }
    };
    engine.request("POST", "/volumes/create", json!({"Name": name, "Labels": labels})).await;
    [format!("networks/{}", network["Id"].as_str().expect("an id")), format!("volumes/{name}")]
}

/// Runs a container of this worker and returns the labels it has.
async fn labels_of(engine: &Engine, fleet: &Fleet, queue: &str) -> Value {
    fleet.publish(&format!("{queue}.probe"), &shell_in("sleep 600").with("stop_grace", "0s")).await;
    let labels = engine.running("probe").await["Config"]["Labels"].clone();
    fleet.shoal(&["cancel", &format!("{queue}.probe")]).await.ok();
    engine.is_clean().await;
    labels
}

#[tokio::test]
async fn a_boot_sweeps_what_an_earlier_boot_left_and_nothing_else() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let mut first = engine.worker(&fleet, "w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.contained("[ $(wc -l < $D/starts) != 1 ] || sleep 600")).await;
    job.started(1).await;
    let running = engine.running("a").await;
    let labels = running["Config"]["Labels"].clone();
    let left = format!("containers/{}", running["Id"].as_str().expect("an id"));
    first.kill_with_children().await;
    assert!(engine.has(&left).await, "nobody else takes care of it");

    let name = engine.id("left");
    let [network, volume] = belongings(&engine, &name, &labels).await;
    let with = |field: &str, value: &str| {
        let mut labels = labels.clone();
        labels[field] = value.into();
        labels
    };
    // Another worker's; the same worker's of another fleet; a stranger's that only sounds like ours.
    let others = engine.run(&engine.id("others"), with("shoal.worker", &engine.id("other"))).await;
    let fleets = engine.run(&engine.id("fleets"), with("shoal.fleet", "another-fleet")).await;
    let strange = json!({"shoal.task": "a", "shoal.name": "default.a", "shoal": "worker", "worker": engine.id("w")});
    let strangers = engine.run(&engine.id("shoal-default-a"), strange).await;
    let [others_network, others_volume] =
        belongings(&engine, &engine.id("net"), &with("shoal.worker", &engine.id("other"))).await;

    let _second = engine.worker(&fleet, "w").env("SHOAL_SWEEP_EVERY", "1s").start().await;
    for object in [&left, &network, &volume] {
        gone(&engine, object).await;
    }
    assert_eq!(fleet.ended("default.a").await.state, schemas::State::Succeeded);
    // After each job and on the timer as well.
    fleet.run("default.b", &shell_in("sleep 2.5")).await;
    let stay = [
        format!("containers/{others}"),
        format!("containers/{fleets}"),
        format!("containers/{strangers}"),
        others_network,
        others_volume,
    ];
    for object in &stay {
        assert!(engine.has(object).await, "{object} is not ours");
    }
    for object in &stay {
        engine.remove(object).await;
    }
}

#[tokio::test]
async fn two_workers_on_one_engine_sweep_only_their_own() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let start = |name: &'static str| engine.worker(&fleet, name).queues(name).slots(4).env("SHOAL_SWEEP_EVERY", "1s");
    let _one = start("one").start().await;
    let mut two = start("two").start().await;
    let job = fleet.job();
    fleet.publish("two.long", &job.gated_contained("")).await;
    job.started(1).await;
    let long = engine.running("long").await["Id"].as_str().expect("an id").to_owned();
    // Jobs of the one come and go, its timer beats, and the other even dies.
    for n in 0..3 {
        fleet.run(&format!("one.t-{n}"), &shell_in("sleep 0.6")).await;
        assert!(engine.has(&format!("containers/{long}")).await);
    }
    two.kill_with_children().await;
    fleet.run("one.after", &shell_in("sleep 1.5")).await;
    assert!(engine.has(&format!("containers/{long}")).await, "only its own worker sweeps it");
    job.open();
    let _two = start("two").start().await;
    gone(&engine, &format!("containers/{long}")).await;
    assert_eq!(fleet.ended("two.long").await.state, schemas::State::Succeeded);
    engine.is_clean().await;
}

#[tokio::test]
async fn what_was_just_made_has_a_grace() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(2).env("SHOAL_SWEEP_EVERY", "1s").start().await;
    let mut labels = labels_of(&engine, &fleet, "default").await;
    // As a container looks between its creation and its entry in the worker's books.
    labels["shoal.start"] = "zzzzzz".into();
    let young = engine.run(&engine.id("young"), labels).await;
    fleet.run("default.a", &shell_in("sleep 2")).await;
    let young = format!("containers/{young}");
    assert!(engine.has(&young).await, "swept within seconds of its creation");
    // And no longer: nothing that lives owns it.
    gone(&engine, &young).await;
}
