use schemas::{Code, State};
use shoal_dispatcher::client::{ClientError, DeadFilter};

use crate::support::{Hand, NOOP, fleet, key};

#[tokio::test]
async fn dead_letters_are_listed_by_queue_and_reason_in_pages() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    for i in 0..5 {
        let reason = if i % 2 == 0 { "timed_out" } else { "invalid_task" };
        hand.bury(client.names.dead_subject(&key(&format!("default.t{i}"))), reason, i).await;
    }
    hand.bury(client.names.dead_subject(&key("other.t9")), "timed_out", 9).await;
    let ids = async |filter: DeadFilter| {
        let page = client.dead_letters(&filter).await.unwrap();
        (page.letters.into_iter().map(|letter| letter.id).collect::<Vec<_>>().join(" "), page.next)
    };
    assert_eq!(ids(DeadFilter::default()).await, ("t0 t1 t2 t3 t4 t9".into(), None));
    let filter =
        DeadFilter { queue: Some("default".parse().unwrap()), reason: Some(Code::TimedOut), ..DeadFilter::default() };
    assert_eq!(ids(filter.clone()).await.0, "t0 t2 t4");
    let (first, next) = ids(DeadFilter { limit: 2, ..filter.clone() }).await;
    assert_eq!(first, "t0 t2");
    assert_eq!(ids(DeadFilter { from: next.unwrap(), ..filter }).await.0, "t4");
}

#[tokio::test]
async fn a_dead_letter_is_shown_whole() {
    let (_server, client) = fleet().await;
    let place = Hand(&client).bury(client.names.dead_subject(&key("default.a")), "timed_out", 17).await;
    let dead = client.dead_letter(place).await.unwrap();
    assert_eq!((dead.letter.reason, dead.letter.sequence, dead.letter.attempts), (Code::TimedOut, 17, 1));
    assert_eq!(&dead.body[..], NOOP.as_bytes());
    assert!(dead.headers.contains(&("X-Mine".into(), "kept".into())));
    assert!(matches!(client.dead_letter(place + 1).await, Err(ClientError::NotFound { .. })));
}

#[tokio::test]
async fn a_replayed_letter_is_a_new_run_and_leaves_the_dead() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let failed = hand.run("default.a", State::Failed).await;
    let place = hand.bury(client.names.dead_subject(&key("default.a")), "timed_out", failed.record.sequence).await;
    let submitted = client.replay(place).await.unwrap();
    assert!(submitted.sequence > failed.record.sequence);
    let message = client.js.at("SHOAL_TASKS", submitted.sequence).await.unwrap().unwrap();
    assert_eq!((message.header("X-Mine"), message.header("Shoal-Reason")), (Some("kept"), None));
    assert_eq!(message.header("Shoal-Once"), None, "the record of its failure would keep it from starting");
    assert!(client.dead_letter_of(&key("default.a")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_replay_done_again_after_a_crash_is_no_second_run() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bind("default").await;
    let place = hand.bury(client.names.dead_subject(&key("default.a")), "timed_out", 1).await;
    // It died after the submit: as a replay would have left it.
    let task = shoal_dispatcher::client::Submission {
        submission: Some(format!("dead.{place}")),
        ..crate::support::task("default.a")
    };
    let first = client.submit(task).await.unwrap();
    let delivery = hand.pull("default").await;
    let mut record = hand.record(&key("default.a"), first.sequence, State::Succeeded);
    record.submission = Some(first.submission);
    hand.write(&record, 0).await;
    hand.settle(&delivery, "").await;
    assert_eq!(client.replay(place).await.unwrap().sequence, first.sequence);
    assert_eq!(hand.queued(&key("default.a")).await, None);
    assert!(client.dead_letters(&DeadFilter::default()).await.unwrap().letters.is_empty());
}

#[tokio::test]
async fn all_of_a_reason_are_replayed_and_what_cannot_be_stays() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    for i in 0..3 {
        hand.bury(client.names.dead_subject(&key(&format!("default.t{i}"))), "timed_out", i).await;
    }
    hand.bury(client.names.dead_subject(&key("default.other")), "out_of_memory", 8).await;
    let bad = hand.bury(client.names.dead_subject_raw("Default", "a:b"), "timed_out", 9).await;
    let filter = DeadFilter { reason: Some(Code::TimedOut), ..DeadFilter::default() };
    let replayed = client.replay_all(&filter).await.unwrap();
    assert_eq!(replayed.len(), 4);
    for replay in replayed {
        match replay.result {
            Ok(_) => assert!(replay.letter.id.starts_with('t')),
            Err(ClientError::NotReplayable { dead_sequence, subject, .. }) => {
                assert_eq!((dead_sequence, subject.as_str()), (bad, "Default.a:b"));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let left = client.dead_letters(&DeadFilter::default()).await.unwrap().letters;
    assert_eq!(left.iter().map(|letter| letter.id.as_str()).collect::<Vec<_>>(), ["other", "a:b"]);
}
