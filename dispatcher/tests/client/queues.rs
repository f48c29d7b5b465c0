use std::time::{Duration, Instant};

use futures_util::StreamExt;
use schemas::{HumanDuration, QueueSettings, Timestamp};
use shoal_dispatcher::client::ClientError;

use crate::support::{Hand, LONG, eventually, fleet, queue, task};

#[tokio::test]
async fn every_queue_is_listed_whatever_makes_it_one() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("worked").await;
    for text in ["worked.a", "worked.b", "unheard.c"] {
        client.submit(task(text)).await.unwrap();
    }
    let _held = hand.pull("worked").await;
    let subject = client.names.queue_subject(&queue("planned"));
    client.js.publish(subject, async_nats::HeaderMap::new(), r#"{"cap":3}"#.into()).await.unwrap();
    let seen: Vec<_> = client.queues().await.unwrap();
    let seen: Vec<_> = seen.iter().map(|q| (q.name.as_str(), q.waiting, q.in_flight, q.cap, q.consumer)).collect();
    assert_eq!(seen, [("planned", 0, 0, Some(3), false), ("unheard", 1, 0, None, false), ("worked", 1, 1, None, true)]);
    let one = client.queue(&queue("unheard")).await.unwrap();
    assert_eq!((one.waiting, one.consumer), (1, false));
}

#[tokio::test]
async fn a_cap_is_kept_applied_and_announced() {
    let (_server, client) = fleet().await;
    let name = queue("default");
    let mut told = client.js.client().subscribe(client.names.queue_event_subject(&name)).await.unwrap();
    let hand = Hand(&client);
    client
        .set_queue(&name, |settings| {
            settings.cap = Some(2);
            settings.defaults.stop_grace = Some(HumanDuration::seconds(3));
        })
        .await
        .unwrap();
    let event: QueueSettings = serde_json::from_slice(&told.next().await.unwrap().payload).unwrap();
    assert_eq!(event, client.queue_settings(&name).await.unwrap().0);
    let view = client.queue(&name).await.unwrap();
    assert_eq!((view.cap, view.settings.cap), (Some(2), Some(2)));

    for i in 0..3 {
        client.submit(task(&format!("default.t{i}"))).await.unwrap();
    }
    let (_first, _second) = (hand.pull("default").await, hand.pull("default").await);
    // The third is given out as soon as the cap is gone.
    let (third, _) = tokio::join!(hand.pull("default"), async {
        eventually(async || (client.queue(&name).await.unwrap().pulls == 1).then_some(())).await;
        client.set_queue(&name, |settings| settings.cap = None).await.unwrap()
    });
    assert!(third.subject.ends_with(".t2"));
    assert_eq!(client.queue(&name).await.unwrap().cap, None);
    let error = client.set_queue(&name, |settings| settings.cap = Some(0)).await.unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)));
}

#[tokio::test]
async fn a_resume_wakes_the_pulls_that_wait() {
    let (_server, client) = fleet().await;
    let name = queue("default");
    let hand = Hand(&client);
    hand.bind("default").await;
    client.pause_queue(&name, None).await.unwrap();
    client.submit(task("default.a")).await.unwrap();
    let view = client.queue(&name).await.unwrap();
    assert!(view.paused_until.unwrap() > Timestamp::now().plus(Duration::from_secs(86_400 * 365)));
    let (delivery, resumed) = tokio::join!(
        async {
            let delivery = hand.pull("default").await;
            (delivery, Instant::now())
        },
        async {
            eventually(async || (client.queue(&name).await.unwrap().pulls == 1).then_some(())).await;
            client.resume_queue(&name).await.unwrap();
            Instant::now()
        }
    );
    assert!(delivery.1.duration_since(resumed) < Duration::from_secs(1));
    assert!(client.queue(&name).await.unwrap().paused_until.is_none());
    // And a change after it pauses nothing.
    client.set_queue(&name, |settings| settings.cap = Some(9)).await.unwrap();
    assert!(client.queue(&name).await.unwrap().paused_until.is_none());
}

#[tokio::test]
async fn a_pause_and_a_cap_survive_a_restart_of_the_server() {
    let (mut server, client) = fleet().await;
    let name = queue("made-by-the-pause");
    client.set_queue(&name, |settings| settings.cap = Some(4)).await.unwrap();
    let until = Timestamp::now().plus(Duration::from_secs(3_600));
    client.pause_queue(&name, Some(until)).await.unwrap();
    server.kill();
    server.start_again();
    let view = eventually(async || client.queue(&name).await.ok()).await;
    assert_eq!((view.paused_until, view.cap), (Some(until), Some(4)));
    let past = client.pause_queue(&name, Some(Timestamp::from_millis(0))).await;
    assert!(matches!(past, Err(ClientError::Invalid(_))));
}

#[tokio::test]
async fn two_who_set_different_things_both_prevail() {
    let (_server, client) = fleet().await;
    let name = queue("default");
    let (a, b) = tokio::time::timeout(LONG, async {
        tokio::join!(
            client.set_queue(&name, |settings| settings.cap = Some(5)),
            client.set_queue(&name, |settings| settings.defaults.idle_timeout = Some(HumanDuration::seconds(9)))
        )
    })
    .await
    .unwrap();
    a.unwrap();
    b.unwrap();
    let settings = client.queue_settings(&name).await.unwrap().0;
    assert_eq!((settings.cap, settings.defaults.idle_timeout), (Some(5), Some(HumanDuration::seconds(9))));
}
