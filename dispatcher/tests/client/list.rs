use schemas::State;
use shoal_dispatcher::client::{ListFilter, ListItem, Status, Submission};

use crate::support::{Hand, fleet, key, next_millisecond, queue, task};

fn ids(tasks: &[ListItem]) -> Vec<String> {
    tasks.iter().map(|task| format!("{}:{}", task.key.id, task.status)).collect()
}

#[tokio::test]
async fn pages_give_every_task_once_newest_change_first() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    for i in 0..30 {
        hand.run(&format!("default.done{i:02}"), State::Succeeded).await;
    }
    next_millisecond().await;
    for i in 0..10 {
        client.submit(task(&format!("default.wait{i:02}"))).await.unwrap();
    }
    let mut filter = ListFilter { limit: 7, ..ListFilter::default() };
    let mut all = Vec::new();
    loop {
        let page = client.list(&filter).await.unwrap();
        assert!(page.tasks.len() <= 7);
        all.extend(ids(&page.tasks));
        // As text, as a command line would carry it.
        let Some(next) = page.next else { break };
        filter.cursor = Some(next.to_string().parse().unwrap());
    }
    let waiting = (0..10).rev().map(|i| format!("wait{i:02}:queued"));
    let done = (0..30).rev().map(|i| format!("done{i:02}:succeeded"));
    assert_eq!(all, waiting.chain(done).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_listing_is_filtered_by_queue_state_label_and_time() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    hand.run("default.a", State::Succeeded).await;
    next_millisecond().await;
    let failed = hand.run("default.b", State::Failed).await;
    hand.run("other.c", State::Failed).await;
    next_millisecond().await;
    let labelled = r#"{"workload":{"kind":"call","handler":"noop"},"labels":{"team":"x"}}"#;
    let labelled = Submission::checked(queue("other"), Some("d".parse().unwrap()), labelled).unwrap();
    client.submit(labelled).await.unwrap();
    let list = async |filter: ListFilter| ids(&client.list(&filter).await.unwrap().tasks);
    let any = ListFilter::default;
    assert_eq!(list(any()).await, ["d:queued", "c:failed", "b:failed", "a:succeeded"]);
    assert_eq!(list(ListFilter { queue: Some(queue("other")), ..any() }).await, ["d:queued", "c:failed"]);
    let states = vec![Status::Recorded(State::Failed)];
    assert_eq!(list(ListFilter { states, ..any() }).await, ["c:failed", "b:failed"]);
    assert_eq!(list(ListFilter { states: vec![Status::Queued], ..any() }).await, ["d:queued"]);
    let labels = vec![("team".to_owned(), Some("x".to_owned()))];
    assert_eq!(list(ListFilter { labels, ..any() }).await, ["d:queued"]);
    let since = Some(failed.record.submitted_at);
    assert_eq!(list(ListFilter { since, ..any() }).await, ["d:queued", "c:failed", "b:failed"]);
}

#[tokio::test]
async fn a_running_task_is_listed_once_with_its_record() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let submitted = client.submit(task("default.a")).await.unwrap();
    hand.write(&hand.record(&key("default.a"), submitted.sequence, State::Running), 0).await;
    for states in [vec![], vec![Status::Recorded(State::Running)]] {
        let page = client.list(&ListFilter { states, ..ListFilter::default() }).await.unwrap();
        assert_eq!(ids(&page.tasks), ["a:running"]);
        assert!(page.tasks[0].record.is_some());
    }
}

#[tokio::test]
async fn a_task_that_ends_between_two_pages_is_not_missed() {
    let (_server, client) = fleet().await;
    let hand = Hand(&client);
    let old = client.submit(task("default.old")).await.unwrap();
    client.submit(task("default.new")).await.unwrap();
    let first = client.list(&ListFilter { limit: 1, ..ListFilter::default() }).await.unwrap();
    assert_eq!(ids(&first.tasks), ["new:queued"]);
    hand.write(&hand.record(&key("default.old"), old.sequence, State::Running), 0).await;
    let filter = ListFilter { limit: 1, cursor: first.next, ..ListFilter::default() };
    assert_eq!(ids(&client.list(&filter).await.unwrap().tasks), ["old:running"]);
}

#[tokio::test]
async fn sparse_streams_are_listed_whole() {
    let (_server, client) = fleet().await;
    // One key overwritten thousands of times leaves thousands of gaps.
    let hand = Hand(&client);
    hand.write(&hand.record(&key("default.a"), 1, State::Succeeded), 0).await;
    let subject = client.names.record_subject(&key("default.busy"));
    for _ in 0..3_000 {
        client.js.client().publish(subject.clone(), "x".into()).await.unwrap();
    }
    client.js.client().flush().await.unwrap();
    hand.write(&hand.record(&key("default.b"), 2, State::Succeeded), 0).await;
    assert_eq!(ids(&client.list(&ListFilter::default()).await.unwrap().tasks), ["b:succeeded", "a:succeeded"]);
}
