//! `shoal cancel` and `shoal retry` by a filter (O2, T7).

use schemas::{QueueName, State};
use serde_json::{Value, json};

use crate::support::{Fleet, With, noop, shell};

/// The lines of JSON that a command printed.
fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[tokio::test]
async fn a_backlog_is_cancelled_by_one_command_and_the_rest_is_left() {
    let fleet = Fleet::start().await;
    let labelled = |team: &str| noop().with("labels", json!({"team": team}));
    let mut tasks: Vec<_> = (0..1_500).map(|n| (format!("default.x{n}"), labelled("x"))).collect();
    tasks.extend((0..5).map(|n| (format!("default.y{n}"), labelled("y"))));
    tasks.extend((0..5).map(|n| (format!("other.x{n}"), labelled("x"))));
    fleet.publish_all(&tasks).await;
    let filter = ["--queue", "default", "--label", "team=x"];

    let rehearsed = fleet.shoal(&[&["cancel", "--dry-run"], &filter[..]].concat()).await.ok();
    assert_eq!(rehearsed.stdout.lines().count(), 1_500);
    assert!(rehearsed.stderr.contains("1500 would be cancelled; nothing was done"), "{}", rehearsed.stderr);
    assert!(fleet.record("default.x0").await.is_none());

    let done = fleet.shoal(&[&["cancel", "-o", "json", "--reason", "stale"], &filter[..]].concat()).await.ok();
    let done_lines = lines(&done.stdout);
    assert_eq!(done_lines.len(), 1_500);
    assert!(done_lines.iter().all(|line| line["result"] == "cancelled" && line["queue"] == "default"));
    assert!(done.stderr.contains("1500 cancelled"), "{}", done.stderr);
    let record = fleet.record("default.x7").await.expect("there");
    assert_eq!(record.state, State::Cancelled);
    assert_eq!(record.cancel.expect("kept").reason.as_deref(), Some("stale"));
    let mut left = fleet.stream("SHOAL_TASKS").await;
    assert_eq!(left.info().await.expect("info").state.messages, 10);
    // Again there is nothing to do.
    let again = fleet.shoal(&[&["cancel"], &filter[..]].concat()).await.ok();
    assert!(again.stdout.is_empty() && again.stderr.contains("0 cancelled"), "{again:?}");
    fleet.shoal(&["cancel", "--all"]).await.ok();
    assert_eq!(left.info().await.expect("info").state.messages, 0);
}

#[tokio::test]
async fn what_runs_and_what_waits_for_its_retry_is_cancelled_too() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    let job = fleet.job();
    fleet.publish("default.runs", &job.script("sleep 600")).await;
    fleet.publish("default.retries", &shell("exit 1").retried(2, "10m")).await;
    fleet.run("default.over", &noop()).await;
    fleet.in_state("default.runs", State::Running).await;
    fleet.in_state("default.retries", State::Retrying).await;
    let output = fleet.shoal(&["cancel", "--state", "retrying"]).await.ok();
    assert_eq!(output.stdout, "default.retries cancelled\n");
    let output = fleet.shoal(&["cancel", "--queue", "default", "--all"]).await.ok();
    assert_eq!(output.stdout, "default.runs cancelled\n");
    job.gone().await;
    assert_eq!(fleet.record("default.over").await.expect("there").state, State::Succeeded);
}

#[tokio::test]
async fn what_failed_for_one_reason_is_submitted_again_by_one_command() {
    let fleet = Fleet::start().await;
    let worker = fleet.worker("w").slots(8).start().await;
    let job = fleet.job();
    let mends = job.script("[ -e $D/open ]");
    for n in 0..10 {
        fleet.publish(&format!("default.f{n}"), &mends).await;
    }
    fleet.publish("default.missing", &json!({"workload": {"kind": "process", "command": ["no-such-program"]}})).await;
    fleet.publish("default.good", &noop()).await;
    fleet.drained().await;
    let listed = fleet.shoal(&["list", "--error-code", "exited_non_zero", "-o", "json"]).await.ok().json();
    assert_eq!(listed.as_array().expect("an array").len(), 10);
    let filter = ["--state", "failed", "--error-code", "exited_non_zero"];
    let rehearsed = fleet.shoal(&[&["retry", "--dry-run"], &filter[..]].concat()).await.ok();
    assert_eq!(rehearsed.stdout.lines().count(), 10, "{rehearsed:?}");
    job.open();
    let done = fleet.shoal(&[&["retry", "-o", "json"], &filter[..]].concat()).await.ok();
    let done_lines = lines(&done.stdout);
    assert_eq!(done_lines.len(), 10);
    assert!(done_lines.iter().all(|line| line["result"] == "submitted"), "{done:?}");
    for line in &done_lines {
        let key = format!("default.{}", line["id"].as_str().expect("an id"));
        let run = line["sequence"].as_u64().expect("a number");
        assert_eq!(fleet.run_ended(&key, run).await.state, State::Succeeded);
    }
    assert_eq!(fleet.record("default.missing").await.expect("there").state, State::Failed);
    // What succeeded is nobody's wish unless it is named.
    drop(worker);
    let all = fleet.shoal(&["retry", "--all", "--dry-run"]).await.ok();
    assert_eq!(all.stdout, "default.missing failed\n");
    let named = fleet.shoal(&["retry", "--state", "succeeded", "--dry-run"]).await.ok();
    assert_eq!(named.stdout.lines().count(), 11);
}

#[tokio::test]
async fn those_that_come_to_nothing_are_listed_and_the_others_done() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    // Larger than a record keeps, and without a dead letter it cannot be submitted again.
    let large = shell("exit 1").with("labels", json!({"filler": "x".repeat(20_000)}));
    fleet.run("default.large", &large).await;
    fleet.run("default.small", &shell("exit 1")).await;
    fleet.stream("SHOAL_DEAD").await.purge().await.expect("purged");
    let output = fleet.shoal(&["retry", "--all", "-o", "json"]).await.exit(1);
    let mut results: Vec<_> = lines(&output.stdout)
        .iter()
        .map(|line| (line["id"].as_str().expect("an id").to_owned(), line["result"].as_str().expect("text").to_owned()))
        .collect();
    results.sort();
    let expected = [("large", "error"), ("small", "submitted")].map(|(id, result)| (id.to_owned(), result.to_owned()));
    assert_eq!(results, expected, "{output:?}");
    assert!(output.stderr.contains("default.large") && output.stderr.contains("1 failed"), "{output:?}");
}

#[tokio::test]
async fn many_are_only_meant_where_that_is_said() {
    let fleet = Fleet::start().await;
    let queue: QueueName = "default".parse().expect("a queue");
    fleet.publish(&format!("{queue}.a"), &noop()).await;
    for args in [
        &["cancel"][..],
        &["cancel", "--dry-run"],
        &["cancel", "a", "--queue", "default"],
        &["cancel", "a", "--all"],
        &["cancel", "--state", "succeeded"],
        &["cancel", "--error-code", "timd_out"],
        &["retry"],
        &["retry", "--state", "queued"],
        &["retry", "a", "--all"],
    ] {
        let output = fleet.shoal(args).await.exit(2);
        assert!(output.stdout.is_empty(), "{args:?} {output:?}");
    }
    assert!(fleet.record("default.a").await.is_none());
    assert!(fleet.message("default.a").await.is_some());
}
