//! Two fleets on one server (item 15).

use schemas::State;

use crate::support::{Fleet, Nats, echo, noop};

#[tokio::test]
async fn two_fleets_with_different_prefixes_do_not_see_each_other() {
    let nats = Nats::start().await;
    let red = Fleet::builder().prefix("red").on(&nats.url()).await;
    let blue = Fleet::builder().prefix("blue").on(&nats.url()).await;
    let (red_job, blue_job) = (red.job(), blue.job());
    // The same queue, the same ids, the same worker id: neither is the other's lock.
    red.publish("default.a", &red_job.script("")).await;
    blue.publish("default.a", &blue_job.script("")).await;

    let _red_worker = red.worker("w").start().await;
    assert_eq!(red.ended("default.a").await.state, State::Succeeded);
    // Blue has no worker yet: what is published there is nobody's, however long red works.
    for n in 0..5 {
        red.run(&format!("default.t-{n}"), &echo(n)).await;
    }
    assert_eq!((red_job.starts(), blue_job.starts()), (1, 0));
    assert!(blue.record("default.a").await.is_none());
    assert!(blue.agents().await.is_empty());
    assert_eq!(blue.shoal(&["list", "-o", "json"]).await.ok().json().as_array().expect("an array").len(), 1);
    assert_eq!(red.shoal(&["list", "-o", "json"]).await.ok().json().as_array().expect("an array").len(), 6);

    let _blue_worker = blue.worker("w").start().await;
    assert_eq!(blue.ended("default.a").await.state, State::Succeeded);
    assert_eq!((red_job.starts(), blue_job.starts()), (1, 1));
    assert_eq!(red.agents().await.len(), 1);
    // A cancel in one leaves the other's task alone.
    let waits = blue.job();
    blue.publish("default.same", &waits.gated("")).await;
    waits.started(1).await;
    assert_ne!(red.shoal(&["cancel", "default.same"]).await.code, 0);
    waits.open();
    assert_eq!(blue.ended("default.same").await.state, State::Succeeded);
}

#[tokio::test]
async fn a_fleet_lives_beside_foreign_streams() {
    let nats = Nats::start().await;
    let client = crate::support::Client::connect(&nats.url(), "shoal").await;
    let config = async_nats::jetstream::stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["orders.>".into()],
        ..Default::default()
    };
    client.js.create_stream(config).await.expect("made");
    let fleet = Fleet::builder().on(&nats.url()).await;
    let _worker = fleet.worker("w").start().await;
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
}
