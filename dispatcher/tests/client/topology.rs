use jetstream::{Ensure, Ensured};
use schemas::stores::StoreSettings;
use schemas::{Bytes, HumanDuration};
use shoal_dispatcher::topology::{self, TopologyError};

use crate::support::{Server, fleet, queue};

#[tokio::test]
async fn what_exists_is_left_as_it_is() {
    let (_server, client) = fleet().await;
    let settings = StoreSettings::default();
    for how in [Ensure::Create, Ensure::Upgrade] {
        for (stream, ensured) in topology::ensure(&client.js, &client.names, &settings, how).await.unwrap() {
            assert_eq!(ensured, Ensured::Unchanged(Vec::new()), "{stream}");
        }
    }
}

#[tokio::test]
async fn a_bound_is_raised_and_never_lowered() {
    let (_server, client) = fleet().await;
    let logs = |done: Vec<(String, Ensured)>| {
        done.into_iter().find(|(stream, _)| *stream == client.names.logs_stream()).unwrap().1
    };
    let more = StoreSettings { logs_kept: HumanDuration::seconds(8 * 86_400), ..StoreSettings::default() };
    let done = topology::ensure(&client.js, &client.names, &more, Ensure::Upgrade).await.unwrap();
    assert_eq!(logs(done), Ensured::Updated(vec!["max_age".into()]));
    let less = StoreSettings { logs_bytes: Bytes(1 << 20), ..StoreSettings::default() };
    let done = topology::ensure(&client.js, &client.names, &less, Ensure::Upgrade).await.unwrap();
    assert_eq!(logs(done), Ensured::Unchanged(vec!["max_age".into(), "max_bytes".into()]));
}

#[tokio::test]
async fn a_store_too_large_for_the_server_names_the_setting_to_lower() {
    let server = Server::start(&["-js"]).await;
    let client = server.client().await;
    let settings = StoreSettings { logs_bytes: Bytes(1 << 60), ..StoreSettings::default() };
    let error = topology::ensure(&client.js, &client.names, &settings, Ensure::Create).await.unwrap_err();
    assert!(matches!(error, TopologyError::TooLarge { setting: Some("logs_bytes"), .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("logs_bytes"));
}

#[tokio::test]
async fn more_replicas_than_servers_are_named() {
    let server = Server::start(&["-js"]).await;
    let client = server.client().await;
    let settings = StoreSettings { replicas: 3, ..StoreSettings::default() };
    let error = topology::ensure(&client.js, &client.names, &settings, Ensure::Create).await.unwrap_err();
    assert!(matches!(error, TopologyError::Replicas { replicas: 3, .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_told_apart() {
    let server = Server::start(&[]).await;
    let client = server.client().await;
    let error = topology::ensure(&client.js, &client.names, &StoreSettings::default(), Ensure::Create).await;
    assert!(matches!(error, Err(TopologyError::NoJetStream { .. })), "{error:?}");
}

#[tokio::test]
async fn a_consumer_is_made_with_the_cap_and_the_pause_that_are_set() {
    let (_server, client) = fleet().await;
    let name = queue("later");
    let settings = r#"{"cap":7,"paused_until":"2099-01-01T00:00:00Z"}"#;
    let subject = client.names.queue_subject(&name);
    client.js.publish(subject, async_nats::HeaderMap::new(), settings.into()).await.unwrap();
    let stores = StoreSettings { ack_wait: HumanDuration::seconds(3), ..StoreSettings::default() };
    let state = topology::ensure_queue(&client.js, &client.names, &stores, &name).await.unwrap();
    assert_eq!((state.max_ack_pending(), state.ack_wait().as_secs(), state.paused), (7, 3, true));
    let again = topology::ensure_queue(&client.js, &client.names, &StoreSettings::default(), &name).await.unwrap();
    assert_eq!(again.ack_wait().as_secs(), 3, "one that exists is taken as it is");
}
