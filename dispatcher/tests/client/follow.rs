use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use schemas::State;
use schemas::names::LogSource;
use shoal_dispatcher::client::{ClientError, LogChunk, LogCursor, LogOptions};

use crate::support::{Hand, LONG, fleet, key, median, next_millisecond, task};

#[tokio::test]
async fn a_waiter_knows_of_the_end_within_50_ms() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let mut took = Vec::new();
    for i in 0..9 {
        let text = format!("default.t{i}");
        let submitted = client.submit(task(&text)).await.unwrap();
        let mut watched = client.watch(&key(&text), Some(submitted.sequence));
        let running = hand.record(&key(&text), submitted.sequence, State::Running);
        let running = hand.write_and_tell(&running, 0).await;
        assert_eq!(watched.next().await.unwrap().unwrap().revision, running.revision);
        let record = hand.record(&key(&text), submitted.sequence, State::Succeeded);
        let waiting = async { (watched.next().await.unwrap().unwrap(), Instant::now()) };
        let ending = async {
            hand.write_and_tell(&record, running.revision).await;
            Instant::now()
        };
        let ((seen, known), told) = tokio::join!(waiting, ending);
        assert_eq!(seen.record.state, State::Succeeded);
        took.push(known.saturating_duration_since(told));
        assert!(watched.next().await.is_none(), "nothing comes after the end");
    }
    assert!(median(took) < Duration::from_millis(50));
}

#[tokio::test]
async fn what_has_ended_is_not_waited_for() {
    let (_server, client) = fleet().await;
    let ended = Hand(&client).run("default.a", State::Failed).await;
    let waited = client.wait(&key("default.a"), None, Some(LONG)).await.unwrap();
    assert_eq!((waited.revision, waited.record.state), (ended.revision, State::Failed));
    let error = client.wait(&key("default.b"), None, Some(LONG)).await.unwrap_err();
    assert!(matches!(error, ClientError::NotFound { .. }));
}

#[tokio::test]
async fn an_older_run_does_not_end_a_wait() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let first = hand.run("default.a", State::Failed).await;
    let second = client.submit(task("default.a")).await.unwrap();
    let mut watched = client.watch(&key("default.a"), None);
    // The end of the first run, told again by somebody who found it finished.
    shoal_dispatcher::client::record::tell(&client.js, &client.names, &first.record, first.revision).await;
    let ended = hand.record(&key("default.a"), second.sequence, State::Succeeded);
    let (seen, _) = tokio::join!(watched.next(), hand.write_and_tell(&ended, first.revision));
    assert_eq!(seen.unwrap().unwrap().record.sequence, second.sequence);
}

#[tokio::test]
async fn a_watch_never_goes_backwards() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let submitted = client.submit(task("default.a")).await.unwrap();
    let running = hand.record(&key("default.a"), submitted.sequence, State::Running);
    let first = hand.write(&running, 0).await;
    let mut watched = client.watch(&key("default.a"), None);
    assert_eq!(watched.next().await.unwrap().unwrap().revision, first.revision);
    let retrying = hand.record(&key("default.a"), submitted.sequence, State::Retrying);
    let second = hand.write_and_tell(&retrying, first.revision).await;
    // Told late: it is older than what was seen.
    shoal_dispatcher::client::record::tell(&client.js, &client.names, &running, first.revision).await;
    let lost = hand.record(&key("default.a"), submitted.sequence, State::Lost);
    let third = hand.write_and_tell(&lost, second.revision).await;
    let rest: Vec<_> = watched.map_ok(|seen| seen.revision).try_collect().await.unwrap();
    assert_eq!(rest, [second.revision, third.revision]);
}

#[tokio::test]
async fn a_waiter_misses_nothing_over_a_server_restart() {
    let (mut server, client) = fleet().await;
    let submitted = client.submit(task("default.a")).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait(&key("default.a"), Some(submitted.sequence), Some(LONG)).await }
    });
    // Somebody else ends it, and its event is lost: nobody is told.
    let other = server.client().await;
    server.kill();
    let mut link = client.connection.link.clone();
    link.wait_for(|link| !link.connected).await.unwrap();
    server.start_again();
    let hand = Hand(&other);
    let written = hand.write(&hand.record(&key("default.a"), submitted.sequence, State::Succeeded), 0).await;
    assert_eq!(waiting.await.unwrap().unwrap().revision, written.revision);
}

#[tokio::test]
async fn a_wait_has_an_end() {
    let (_server, client) = fleet().await;
    client.submit(task("default.a")).await.unwrap();
    let error = client.wait(&key("default.a"), None, Some(Duration::from_millis(30))).await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }));
}

#[tokio::test]
async fn a_task_deleted_by_hand_is_not_waited_for_for_ever() {
    let (_server, client) = fleet().await;
    let submitted = client.submit(task("default.a")).await.unwrap();
    client.js.delete("SHOAL_TASKS", submitted.sequence).await.unwrap();
    let error = client.wait(&key("default.a"), Some(submitted.sequence), Some(LONG)).await.unwrap_err();
    assert!(matches!(error, ClientError::Gone { .. }), "{error:?}");
}

fn text(chunks: &[LogChunk]) -> String {
    chunks.iter().map(|chunk| String::from_utf8_lossy(&chunk.bytes).into_owned()).collect()
}

#[tokio::test]
async fn a_log_is_read_in_order_and_from_any_point() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    client.submit(task("default.a")).await.unwrap();
    let mut places = Vec::new();
    for i in 0..5 {
        let source = if i % 2 == 0 { LogSource::Stdout } else { LogSource::Stderr };
        places.push(hand.log(&key, source, &format!("line {i}\n")).await);
        hand.log(&crate::support::key("default.b"), source, "of another\n").await;
    }
    let read = async |options| client.logs(&key, options).try_collect::<Vec<LogChunk>>().await.unwrap();
    let all = read(LogOptions::default()).await;
    assert_eq!(text(&all), "line 0\nline 1\nline 2\nline 3\nline 4\n");
    assert_eq!(all.iter().map(|chunk| chunk.sequence).collect::<Vec<_>>(), places);
    let rest = read(LogOptions { from: LogCursor(all[1].sequence), ..LogOptions::default() }).await;
    assert_eq!(text(&rest), "line 2\nline 3\nline 4\n");
    let errors = read(LogOptions { sources: vec![LogSource::Stderr], ..LogOptions::default() }).await;
    assert_eq!(text(&errors), "line 1\nline 3\n");
    let last = read(LogOptions { tail: Some(2), ..LogOptions::default() }).await;
    assert_eq!(text(&last), "line 3\nline 4\n");
    let start = Some(schemas::StartId::new("other").unwrap());
    assert_eq!(read(LogOptions { start, ..LogOptions::default() }).await, []);
}

#[tokio::test]
async fn the_log_of_an_earlier_run_is_left_out_unless_asked_for() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    hand.log(&key, LogSource::Stdout, "old\n").await;
    next_millisecond().await;
    client.submit(task("default.a")).await.unwrap();
    hand.log(&key, LogSource::Stdout, "new\n").await;
    let read = async |all_runs| {
        let options = LogOptions { all_runs, ..LogOptions::default() };
        text(&client.logs(&key, options).try_collect::<Vec<_>>().await.unwrap())
    };
    assert_eq!(read(false).await, "new\n");
    assert_eq!(read(true).await, "old\nnew\n");
}

#[tokio::test]
async fn a_followed_log_ends_with_its_task_and_misses_no_line() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    let submitted = client.submit(task("default.a")).await.unwrap();
    hand.log(&key, LogSource::Stdout, "before\n").await;
    let mut log = client.logs(&key, LogOptions { follow: true, ..LogOptions::default() });
    assert_eq!(&log.next().await.unwrap().unwrap().bytes[..], b"before\n");
    // At the live edge now.
    assert!(log.next().now_or_never().is_none());
    let writing = async {
        for i in 0..300 {
            hand.log(&key, LogSource::Stdout, &format!("{i}\n")).await;
        }
        hand.write_and_tell(&hand.record(&key, submitted.sequence, State::Succeeded), 0).await;
    };
    let reading = async { log.try_collect::<Vec<_>>().await.unwrap() };
    let (chunks, ()) = tokio::time::timeout(LONG, async { tokio::join!(reading, writing) }).await.unwrap();
    assert_eq!(text(&chunks), (0..300).map(|i| format!("{i}\n")).collect::<String>());
}

#[tokio::test]
async fn a_followed_line_comes_at_once() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let key = key("default.a");
    client.submit(task("default.a")).await.unwrap();
    let mut log = client.logs(&key, LogOptions { follow: true, ..LogOptions::default() });
    let mut took = Vec::new();
    for i in 0..21 {
        let reading = async {
            log.next().await.unwrap().unwrap();
            Instant::now()
        };
        let writing = async {
            hand.log(&key, LogSource::Stdout, &format!("{i}\n")).await;
            Instant::now()
        };
        let (read, written) = tokio::time::timeout(LONG, async { tokio::join!(reading, writing) }).await.unwrap();
        took.push(read.saturating_duration_since(written));
    }
    assert!(median(took) < Duration::from_millis(50));
}

#[tokio::test]
async fn a_followed_log_survives_a_server_restart() {
    let (mut server, client) = fleet().await;
    let key = key("default.a");
    let submitted = client.submit(task("default.a")).await.unwrap();
    let following = tokio::spawn({
        let (client, key) = (client.clone(), key.clone());
        async move {
            let options = LogOptions { follow: true, ..LogOptions::default() };
            client.logs(&key, options).try_collect::<Vec<_>>().await
        }
    });
    let other = server.client().await;
    let hand = Hand(&other);
    hand.log(&key, LogSource::Stdout, "before\n").await;
    server.kill();
    let mut link = client.connection.link.clone();
    link.wait_for(|link| !link.connected).await.unwrap();
    server.start_again();
    other.connection.connected().await;
    hand.log(&key, LogSource::Stdout, "after\n").await;
    hand.write_and_tell(&hand.record(&key, submitted.sequence, State::Succeeded), 0).await;
    let chunks = tokio::time::timeout(LONG * 2, following).await.unwrap().unwrap().unwrap();
    assert_eq!(text(&chunks), "before\nafter\n");
}
