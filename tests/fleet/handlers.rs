//! `call` workloads: built-in handlers, and any NATS service (T26).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use schemas::{Code, State};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Fleet, With, echo, eventually};

/// A service in another program, in whatever language: answers a subject.
async fn service(
    client: &Client,
    subject: &str,
    answer: impl AsyncFn(Vec<u8>) -> (HeaderMap, Vec<u8>) + 'static,
) -> AbortOnDrop {
    let mut requests = client.queue_subscribe(subject.to_owned(), "handlers".into()).await.expect("subscribed");
    client.flush().await.expect("the server has the subscription");
    let client = client.clone();
    AbortOnDrop(tokio::task::spawn_local(async move {
        let answer = Arc::new(answer);
        while let Some(request) = requests.next().await {
            let (client, answer) = (client.clone(), answer.clone());
            tokio::task::spawn_local(async move {
                let reply = request.reply.expect("a request");
                let (headers, body) = answer(request.payload.to_vec()).await;
                client.publish_with_headers(reply, headers, body.into()).await.expect("published");
            });
        }
    }))
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn call(handler: &str, payload: Value) -> Value {
    json!({"workload": {"kind": "call", "handler": handler, "payload": payload}})
}

async fn locally<T>(test: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn a_nats_service_handles_a_call() {
    locally(async {
        let fleet = Fleet::start().await;
        let _worker = fleet.worker("w").runtimes("call").start().await;
        let _greeter = service(&fleet.nats, "shoal.handlers.greet", async |payload| {
            let payload: Value = serde_json::from_slice(&payload).expect("the payload is JSON");
            (HeaderMap::new(), format!("hello {}", payload["name"].as_str().expect("a name")).into_bytes())
        })
        .await;
        let record = fleet.run("default.a", &call("greet", json!({"name": "you"}))).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
        let bytes = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
        assert_eq!(bytes, b"hello you");
    })
    .await;
}

#[tokio::test]
async fn an_error_of_a_service_fails_the_task_with_its_words() {
    locally(async {
        let fleet = Fleet::start().await;
        let _worker = fleet.worker("w").runtimes("call").start().await;
        let _service = service(&fleet.nats, "shoal.handlers.refuse", async |_| {
            let mut headers = HeaderMap::new();
            headers.insert(schemas::header::NATS_SERVICE_ERROR, "no such account");
            headers.insert(schemas::header::NATS_SERVICE_ERROR_CODE, "404");
            (headers, Vec::new())
        })
        .await;
        let record = fleet.run("default.a", &call("refuse", Value::Null)).await;
        assert_eq!(record.state, State::Failed);
        let error = record.error.expect("an error");
        assert_eq!(error.code, Code::HandlerFailed);
        assert!(error.message.contains("no such account"), "{}", error.message);
        fleet.message_gone("default.a").await;
        assert_eq!(fleet.dead("default.a").await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_handler_that_nobody_answers_for_is_named_and_may_be_retried() {
    locally(async {
        let fleet = Fleet::start().await;
        let _worker = fleet.worker("w").runtimes("call").start().await;
        let record = fleet.run("default.a", &call("nobody", Value::Null)).await;
        assert_eq!(record.state, State::Failed);
        let error = record.error.expect("an error");
        assert_eq!(error.code, Code::NoHandler);
        assert!(error.retryable);

        // A service that comes up later answers the next attempt.
        fleet.publish("default.b", &call("late", Value::Null).retried(50, "200ms")).await;
        fleet.in_state("default.b", State::Retrying).await;
        let _service = service(&fleet.nats, "shoal.handlers.late", async |_| (HeaderMap::new(), b"now".to_vec())).await;
        assert_eq!(fleet.ended("default.b").await.state, State::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn a_service_that_takes_longer_than_the_lease_is_asked_once() {
    locally(async {
        let fleet = Fleet::builder().ack_wait("3s").start().await;
        let _worker = fleet.worker("w").runtimes("call").start().await;
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let _slow = service(&fleet.nats, "shoal.handlers.slow", async move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_secs(7)).await;
            (HeaderMap::new(), b"done".to_vec())
        })
        .await;
        let record = fleet.run("default.a", &call("slow", Value::Null)).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
        assert_eq!((asked.load(Ordering::Relaxed), record.attempts.len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn echo_answers_its_payload() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").runtimes("call").start().await;
    let record = fleet.run("default.a", &echo(json!({"a": [1, null, "ü"]}))).await;
    let bytes = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
    assert_eq!(serde_json::from_slice::<Value>(&bytes).expect("JSON"), json!({"a": [1, null, "ü"]}));
}

#[tokio::test]
async fn two_hundred_slots_run_two_hundred_at_once_beside_a_worker_with_one() {
    locally(async {
        let fleet = Fleet::builder().ack_wait("15s").start().await;
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counter, peak) = (now.clone(), most.clone());
        let _service = service(&fleet.nats, "shoal.handlers.crowd", async move |_| {
            let running = counter.fetch_add(1, Ordering::Relaxed) + 1;
            peak.fetch_max(running, Ordering::Relaxed);
            // The first two hundred wait for each other: only a fleet with room for them all gets on.
            eventually("two hundred at once", async || match peak.load(Ordering::Relaxed) {
                peak if peak >= 200 => Ok(()),
                peak => Err(format!("{peak}")),
            })
            .await;
            counter.fetch_sub(1, Ordering::Relaxed);
            (HeaderMap::new(), Vec::new())
        })
        .await;
        let _wide = fleet.worker("wide").runtimes("call").slots(200).start().await;
        let _narrow = fleet.worker("narrow").runtimes("call").slots(1).start().await;
        let tasks: Vec<_> = (0..600).map(|n| (format!("default.t-{n}"), call("crowd", Value::Null))).collect();
        let sequences = fleet.publish_all(&tasks).await;
        for ((key, _), sequence) in tasks.iter().zip(sequences) {
            let record = fleet.run_ended(key, sequence).await;
            assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
        }
        let most = most.load(Ordering::Relaxed);
        assert!((200..=201).contains(&most), "{most} at once with 201 slots");
        assert_eq!(now.load(Ordering::Relaxed), 0);
    })
    .await;
}
