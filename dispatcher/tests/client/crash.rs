//! A client killed between two of its writes: with `--features fail-points`. The client that dies is this very program,
//! started again for one of its tests.

use schemas::State;
use shoal_dispatcher::client::{CancelEnd, CancelOptions, DeadFilter};

use crate::support::{Hand, Server, fleet, key, task};

/// Runs the test `name` in a process of its own, which is to die at `point`.
fn dies(server: &Server, name: &str, point: &str) {
    let program = std::env::current_exe().unwrap();
    let status = std::process::Command::new(program)
        .args(["--exact", name, "--ignored"])
        .env("SHOAL_FAIL_POINT", point)
        .env("NATS_URL", server.url())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), None, "it died of a signal");
}

#[tokio::test]
#[ignore = "dies; the tests below start it"]
async fn canceller() {
    let client = crate::support::client_of(&std::env::var("NATS_URL").unwrap()).await;
    client.cancel(&key("default.a"), CancelOptions::default()).await.unwrap();
}

#[tokio::test]
#[ignore = "dies; the tests below start it"]
async fn replayer() {
    let client = crate::support::client_of(&std::env::var("NATS_URL").unwrap()).await;
    client.replay_all(&DeadFilter::default()).await.unwrap();
}

#[tokio::test]
async fn a_canceller_killed_after_its_record_or_its_delete_has_cancelled() {
    for point in ["cancel_after_record", "cancel_after_delete"] {
        let (server, client) = fleet().await;
        let submitted = client.submit(task("default.a")).await.unwrap();
        dies(&server, "crash::canceller", point);
        let outcome = client.cancel(&key("default.a"), CancelOptions::default()).await.unwrap();
        assert_eq!((outcome.end, outcome.record.record.state), (CancelEnd::AlreadyEnded, State::Cancelled), "{point}");
        assert_eq!(outcome.record.record.sequence, submitted.sequence);
        client.submit(task("default.a")).await.expect("the id is free again");
    }
}

#[tokio::test]
async fn a_canceller_killed_after_its_flag_leaves_the_flag() {
    let (server, client) = fleet().await;
    let hand = Hand(&client);
    let submitted = client.submit(task("default.a")).await.unwrap();
    hand.write(&hand.record(&key("default.a"), submitted.sequence, State::Running), 0).await;
    dies(&server, "crash::canceller", "cancel_after_flag");
    let view = client.get(&key("default.a")).await.unwrap();
    let record = &view.current().unwrap().record;
    assert!(record.state == State::Running && record.cancel.is_some());
}

#[tokio::test]
async fn a_replayer_killed_after_its_submit_submits_once() {
    let (server, client) = fleet().await;
    let hand = Hand(&client);
    hand.bury(client.names.dead_subject(&key("default.a")), "timed_out", 1).await;
    dies(&server, "crash::replayer", "replay_after_submit");
    let first = hand.queued(&key("default.a")).await.unwrap();
    let again = client.replay_all(&DeadFilter::default()).await.unwrap();
    assert_eq!(again[0].result.as_ref().unwrap().sequence, first);
    assert!(client.dead_letters(&DeadFilter::default()).await.unwrap().letters.is_empty());
}
