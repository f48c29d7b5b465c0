use std::time::{Duration, Instant};

use futures_util::StreamExt;
use schemas::cancel::{CancelReply, CancelRequest};
use schemas::{Code, Outcome, State, Timestamp};
use shoal_dispatcher::client::{CancelEnd, CancelOptions, Client, ClientError};

use crate::support::{Hand, LONG, fleet, key, task};

async fn cancel(client: &Client, text: &str) -> Result<(CancelEnd, schemas::TaskRecord), ClientError> {
    let options = CancelOptions { sequence: None, reason: Some("test".into()) };
    client.cancel(&key(text), options).await.map(|outcome| (outcome.end, outcome.record.record))
}

#[tokio::test]
async fn a_queued_task_is_cancelled_without_any_worker() {
    let (_server, client) = fleet().await;
    let submitted = client.submit(task("default.a")).await.unwrap();
    let (end, record) = cancel(&client, "default.a").await.unwrap();
    assert_eq!((end, record.state, record.sequence), (CancelEnd::Cancelled, State::Cancelled, submitted.sequence));
    assert_eq!(record.submission, Some(submitted.submission));
    assert_eq!(record.error.unwrap().code, Code::Cancelled);
    assert_eq!(record.cancel.unwrap().reason.as_deref(), Some("test"));
    let view = client.get(&key("default.a")).await.unwrap();
    assert!(view.queued.is_none() && view.record.unwrap().record.ended_at.is_some());
    client.submit(task("default.a")).await.expect("the id is free again");
}

#[tokio::test]
async fn a_task_never_handed_out_is_deleted_beside_its_consumer() {
    let (_server, client) = fleet().await;
    Hand(&client).bind("default").await;
    client.submit(task("default.a")).await.unwrap();
    assert_eq!(cancel(&client, "default.a").await.unwrap().0, CancelEnd::Cancelled);
    let queue = client.queue(&"default".parse().unwrap()).await.unwrap();
    assert_eq!((queue.waiting, queue.in_flight), (0, 0));
}

#[tokio::test]
async fn a_task_handed_out_without_a_record_keeps_its_message_for_the_next_delivery() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("default").await;
    let submitted = client.submit(task("default.a")).await.unwrap();
    let _held = hand.pull("default").await;
    assert_eq!(cancel(&client, "default.a").await.unwrap().0, CancelEnd::Cancelled);
    assert_eq!(hand.queued(&key("default.a")).await, Some(submitted.sequence));
    // Its holder finds out when it claims.
    let running = hand.record(&key("default.a"), submitted.sequence, State::Running);
    let claimed = shoal_dispatcher::client::record::write(&client.js, &client.names, &running, 0).await.unwrap();
    assert_eq!(claimed, shoal_dispatcher::client::record::Written::Refused);
}

#[tokio::test]
async fn a_retrying_task_is_cancelled_and_its_id_is_free() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("default").await;
    let submitted = client.submit(task("default.a")).await.unwrap();
    let delivery = hand.pull("default").await;
    hand.write(&hand.record(&key("default.a"), submitted.sequence, State::Retrying), 0).await;
    hand.settle(&delivery, "-NAK {\"delay\": 60000000000}").await;
    let (end, record) = cancel(&client, "default.a").await.unwrap();
    assert_eq!((end, record.state, record.retry_at), (CancelEnd::Cancelled, State::Cancelled, None));
    assert_eq!(hand.queued(&key("default.a")).await, None);
    client.submit(task("default.a")).await.unwrap();
}

#[tokio::test]
async fn a_running_task_is_stopped_by_its_holder() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("default").await;
    let key = key("default.a");
    let submitted = client.submit(task("default.a")).await.unwrap();
    let delivery = hand.pull("default").await;
    let mut requests = client.js.client().subscribe(client.names.cancel_subject(&key)).await.unwrap();
    let mut record = hand.record(&key, submitted.sequence, State::Running);
    hand.write(&record, 0).await;

    let cancelling = cancel(&client, "default.a");
    let holding = async {
        let request = requests.next().await.unwrap();
        let asked: CancelRequest = serde_json::from_slice(&request.payload).unwrap();
        assert_eq!(asked.sequence, submitted.sequence);
        let flagged = client.get(&key).await.unwrap().record.unwrap();
        assert!(flagged.record.cancel.is_some(), "the flag comes before the request");
        let reply = serde_json::to_vec(&CancelReply { stopping: true, ending: false }).unwrap();
        client.js.client().publish(request.reply.unwrap(), reply.into()).await.unwrap();
        record = flagged.record;
        record.state = State::Cancelled;
        record.attempts[0].outcome = Outcome::Cancelled;
        record.ended_at = Some(Timestamp::now());
        hand.write_and_tell(&record, flagged.revision).await;
        hand.settle(&delivery, "").await;
    };
    let begun = Instant::now();
    let (cancelled, ()) = tokio::time::timeout(LONG, async { tokio::join!(cancelling, holding) }).await.unwrap();
    let (end, record) = cancelled.unwrap();
    assert_eq!(
        (end, record.state, record.attempts[0].outcome),
        (CancelEnd::Cancelled, State::Cancelled, Outcome::Cancelled)
    );
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_run_that_ends_before_it_is_stopped_keeps_its_end() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    let submitted = client.submit(task("default.a")).await.unwrap();
    hand.write(&hand.record(&key, submitted.sequence, State::Running), 0).await;
    let mut requests = client.js.client().subscribe(client.names.cancel_subject(&key)).await.unwrap();
    let ending = async {
        requests.next().await.unwrap();
        let flagged = client.get(&key).await.unwrap().record.unwrap();
        let record = hand.record(&key, submitted.sequence, State::Succeeded);
        hand.write_and_tell(&record, flagged.revision).await;
    };
    let (cancelled, ()) = tokio::join!(cancel(&client, "default.a"), ending);
    let (end, record) = cancelled.unwrap();
    assert_eq!((end, record.state), (CancelEnd::EndedMeanwhile, State::Succeeded));
}

#[tokio::test]
async fn a_silent_holder_is_ended_by_the_canceller_after_the_grace() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    let submitted = client.submit(task("default.a")).await.unwrap();
    let mut record = hand.record(&key, submitted.sequence, State::Running);
    record.keep_task(br#"{"workload":{"kind":"call","handler":"noop"},"stop_grace":"500ms"}"#);
    hand.write(&record, 0).await;
    let begun = Instant::now();
    let (end, record) = cancel(&client, "default.a").await.unwrap();
    let took = begun.elapsed();
    assert_eq!(
        (end, record.state, record.attempts[0].outcome),
        (CancelEnd::Cancelled, State::Cancelled, Outcome::Cancelled)
    );
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn a_holder_that_says_that_it_is_too_late_is_waited_for_until_it_has_written_its_end() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    let submitted = client.submit(task("default.a")).await.unwrap();
    let mut record = hand.record(&key, submitted.sequence, State::Running);
    record.keep_task(br#"{"workload":{"kind":"call","handler":"noop"},"stop_grace":"0s"}"#);
    hand.write(&record, 0).await;
    let mut requests = client.js.client().subscribe(client.names.cancel_subject(&key)).await.unwrap();
    let begun = Instant::now();
    let ending = async {
        // For longer than anybody silent is waited for.
        while begun.elapsed() < Duration::from_secs(7) {
            let request = requests.next().await.unwrap();
            let reply = serde_json::to_vec(&CancelReply { stopping: false, ending: true }).unwrap();
            client.js.client().publish(request.reply.unwrap(), reply.into()).await.unwrap();
        }
        let flagged = client.get(&key).await.unwrap().record.unwrap();
        assert_eq!(flagged.record.state, State::Running, "nobody ended it over its holder's head");
        hand.write_and_tell(&hand.record(&key, submitted.sequence, State::Succeeded), flagged.revision).await;
    };
    let (cancelled, ()) =
        tokio::time::timeout(LONG, async { tokio::join!(cancel(&client, "default.a"), ending) }).await.unwrap();
    let (end, record) = cancelled.unwrap();
    assert_eq!((end, record.state), (CancelEnd::EndedMeanwhile, State::Succeeded));
}

#[tokio::test]
async fn a_holder_that_subscribes_late_is_asked_again() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    let submitted = client.submit(task("default.a")).await.unwrap();
    let written = hand.write(&hand.record(&key, submitted.sequence, State::Running), 0).await;
    let holding = async {
        // Not before the flag is there, which is after the first request found nobody or will.
        let mut seen = client.watch(&key, Some(submitted.sequence));
        let flagged = loop {
            let seen = seen.next().await.unwrap().unwrap();
            if seen.revision > written.revision {
                break seen;
            }
        };
        let mut requests = client.js.client().subscribe(client.names.cancel_subject(&key)).await.unwrap();
        requests.next().await.unwrap();
        let record = hand.record(&key, submitted.sequence, State::Cancelled);
        hand.write_and_tell(&record, flagged.revision).await;
    };
    let (cancelled, ()) = tokio::join!(cancel(&client, "default.a"), holding);
    assert_eq!(cancelled.unwrap().0, CancelEnd::Cancelled);
}

#[tokio::test]
async fn a_cancel_never_hits_a_later_run() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let first = hand.run("default.a", State::Succeeded).await;
    let second = client.submit(task("default.a")).await.unwrap();
    let options = CancelOptions { sequence: Some(first.record.sequence), reason: None };
    let outcome = client.cancel(&key("default.a"), options.clone()).await.unwrap();
    assert_eq!(outcome.end, CancelEnd::AlreadyEnded);
    assert_eq!(hand.queued(&key("default.a")).await, Some(second.sequence));
    hand.write(&hand.record(&key("default.a"), second.sequence, State::Running), first.revision).await;
    let error = client.cancel(&key("default.a"), options).await.unwrap_err();
    assert!(matches!(error, ClientError::RunOver { newer, .. } if newer == second.sequence), "{error:?}");
}

#[tokio::test]
async fn a_finished_task_says_so_and_one_nobody_knows_too() {
    let (_server, client) = fleet().await;
    Hand(&client).run("default.a", State::Failed).await;
    let (end, record) = cancel(&client, "default.a").await.unwrap();
    assert_eq!((end, record.state), (CancelEnd::AlreadyEnded, State::Failed));
    assert!(matches!(cancel(&client, "default.b").await, Err(ClientError::NotFound { .. })));
}

#[tokio::test]
async fn a_second_cancel_finishes_what_a_dead_canceller_left() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let submitted = client.submit(task("default.a")).await.unwrap();
    // It died between record and delete.
    hand.write(&hand.record(&key("default.a"), submitted.sequence, State::Cancelled), 0).await;
    assert_eq!(cancel(&client, "default.a").await.unwrap().0, CancelEnd::AlreadyEnded);
    assert_eq!(hand.queued(&key("default.a")).await, None);
}

#[tokio::test]
async fn a_cancel_writes_over_the_record_of_an_older_run() {
    let (_server, client) = fleet().await;
    let first = Hand(&client).run("default.a", State::Failed).await;
    let second = client.submit(task("default.a")).await.unwrap();
    let (end, record) = cancel(&client, "default.a").await.unwrap();
    assert_eq!((end, record.sequence), (CancelEnd::Cancelled, second.sequence));
    assert!(record.sequence > first.record.sequence);
}
