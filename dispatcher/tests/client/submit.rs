use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use schemas::State;
use shoal_dispatcher::client::{Submission, SubmitError, SubmitOptions};

use crate::support::{Hand, NOOP, Server, client_of, fleet, key, queue, task};

#[tokio::test]
async fn an_accepted_task_waits_under_its_sequence() {
    let (_server, client) = fleet().await;
    let submitted = client.submit(task("default.a")).await.unwrap();
    let view = client.get(&key("default.a")).await.unwrap();
    let queued = view.queued.as_ref().unwrap();
    assert_eq!((queued.sequence, &queued.task[..]), (submitted.sequence, NOOP.as_bytes()));
    assert_eq!(queued.submission.as_deref(), Some(submitted.submission.as_str()));
    assert_eq!(view.status().unwrap().as_str(), "queued");
}

#[tokio::test]
async fn a_locked_id_names_its_holder() {
    let (_server, client) = fleet().await;
    let first = client.submit(task("default.a")).await.unwrap();
    let SubmitError::Locked { holder, .. } = client.submit(task("default.a")).await.unwrap_err() else { panic!() };
    let holder = holder.unwrap();
    assert_eq!((holder.sequence, holder.status.as_str(), holder.worker), (first.sequence, "queued", None));

    let hand = Hand(&client);
    hand.write(&hand.record(&key("default.a"), first.sequence, State::Running), 0).await;
    let error = client.submit(task("default.a")).await.unwrap_err();
    assert!(error.to_string().contains("running on w-1 since"), "{error}");
    assert!(error.hint().unwrap().contains("shoal cancel default.a"));
}

#[tokio::test]
async fn the_same_submission_again_is_the_same_run() {
    let (_server, client) = fleet().await;
    let mine = || Submission { submission: Some("mine".into()), ..task("default.a") };
    let first = client.submit(mine()).await.unwrap();
    // Within the server's duplicate window, then as one would find it when that is forgotten.
    assert_eq!(client.submit(mine()).await.unwrap().sequence, first.sequence);
    assert_eq!(client.js.stream_state("SHOAL_TASKS").await.unwrap().unwrap().messages, 1);
}

#[tokio::test]
async fn a_lock_that_is_our_own_message_id_means_accepted() {
    let (mut server, client) = fleet().await;
    // Stored by somebody who left no message id, with our submission: what a forgotten window looks like.
    let mut headers = HeaderMap::new();
    headers.insert("Shoal-Submission", "mine");
    let stored = client.js.publish("shoal.tasks.default.a".into(), headers, NOOP.into()).await.unwrap();
    let mine = Submission { submission: Some("mine".into()), ..task("default.a") };
    assert_eq!(client.submit(mine.clone()).await.unwrap().sequence, stored.sequence);
    server.kill();
    server.start_again();
    assert_eq!(client.submit(mine).await.unwrap().sequence, stored.sequence);
}

#[tokio::test]
async fn a_server_that_is_away_for_a_moment_is_waited_for() {
    let (mut server, client) = fleet().await;
    server.kill();
    let submitting = tokio::spawn({
        let client = client.clone();
        async move { client.submit(task("default.a")).await }
    });
    let mut link = client.connection.link.clone();
    link.wait_for(|link| !link.connected).await.unwrap();
    server.start_again();
    let submitted = submitting.await.unwrap().unwrap();
    assert_eq!(Hand(&client).queued(&key("default.a")).await, Some(submitted.sequence));
}

#[tokio::test]
async fn once_starts_nothing_where_a_record_exists() {
    let (_server, client) = fleet().await;
    let once = || Submission { once: true, ..task("default.a") };
    let first = client.submit(once()).await.unwrap();
    assert!(first.existing.is_none());
    let message = client.js.at("SHOAL_TASKS", first.sequence).await.unwrap().unwrap();
    assert_eq!(message.header("Shoal-Once"), Some("true"));

    let hand = Hand(&client);
    let mut record = hand.record(&key("default.a"), first.sequence, State::Succeeded);
    record.submission = Some(first.submission.clone());
    hand.write(&record, 0).await;
    client.js.delete("SHOAL_TASKS", first.sequence).await.unwrap();
    let second = client.submit(once()).await.unwrap();
    assert_eq!(second.existing.unwrap().state, State::Succeeded);
    assert_eq!(hand.queued(&key("default.a")).await, None, "nothing was published");
    let again = client.submit(Submission { submission: Some(first.submission), ..once() }).await.unwrap();
    assert!(again.existing.is_none(), "our own is no other");
}

#[tokio::test]
async fn a_thousand_tasks_are_not_a_thousand_round_trips() {
    let (server, _client) = fleet().await;
    // A server 10 ms away: one by one this would take 20 s at least.
    let far = client_of(&server.far_url(Duration::from_millis(10)).await).await;
    let tasks: Vec<_> = (0..1_000).map(|i| task(&format!("bulk.t{i:04}"))).collect();
    let begun = Instant::now();
    let results = far.submit_many(tasks, &SubmitOptions::default()).await;
    let took = begun.elapsed();
    for (i, result) in results.into_iter().enumerate() {
        let submitted = result.unwrap();
        assert_eq!(submitted.key, key(&format!("bulk.t{i:04}")), "results are in the order of the tasks");
    }
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn one_bad_task_of_many_harms_no_other() {
    let (_server, client) = fleet().await;
    let large = Submission::new(queue("default"), None, vec![b' '; 1 << 20]);
    let tasks = vec![task("default.a"), large, task("default.a"), task("default.b")];
    let results = client.submit_many(tasks, &SubmitOptions::default()).await;
    assert!(results[0].is_ok() && results[3].is_ok());
    assert!(matches!(results[1], Err(SubmitError::TooLarge { bytes, most, .. }) if bytes > most), "{:?}", results[1]);
    assert!(matches!(results[2], Err(SubmitError::Locked { .. })));
}

#[tokio::test]
async fn a_fleet_that_is_not_set_up_is_told_at_once() {
    let server = Server::start(&["-js"]).await;
    let error = server.client().await.submit(task("default.a")).await.unwrap_err();
    assert!(matches!(error, SubmitError::NotSetUp { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("shoal admin apply"));
}

#[tokio::test]
async fn a_finished_task_is_retried_under_its_id() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let failed = hand.run("default.a", State::Failed).await;
    let again = client.retry(&key("default.a")).await.unwrap();
    assert!(again.sequence > failed.record.sequence);
    let view = client.get(&key("default.a")).await.unwrap();
    assert_eq!((view.status().unwrap().as_str(), &view.queued.unwrap().task[..]), ("queued", NOOP.as_bytes()));
    let error = client.retry(&key("default.a")).await.unwrap_err();
    assert!(error.to_string().contains("queued"), "{error}");
}

#[tokio::test]
async fn a_retry_takes_the_task_from_its_dead_letter_where_the_record_keeps_none() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    let mut record = hand.record(&key, 5, State::Failed);
    record.task = None;
    hand.write(&record, 0).await;
    assert!(client.retry(&key).await.unwrap_err().to_string().contains("larger than a record keeps"));
    hand.bury(client.names.dead_subject(&key), "timed_out", 5).await;
    let again = client.retry(&key).await.unwrap();
    let message = client.js.at("SHOAL_TASKS", again.sequence).await.unwrap().unwrap();
    assert_eq!(&message.payload[..], NOOP.as_bytes());
    assert_eq!((message.header("X-Mine"), message.header("Shoal-Reason")), (Some("kept"), None));
}
