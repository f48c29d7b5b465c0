//! Functions from the caller's side. The worker is played by raw writes, and where calls are answered by a plain
//! subscription.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;
use jetstream::StoredMessage;
use schemas::function::EnsureRequest;
use schemas::{AgentId, Code, Function, FunctionName, Instance, InstanceStatus, StartId, TaskError, Timestamp, header};
use shoal_dispatcher::client::{Call, CallError, Client, Functions};

use crate::support::{LONG, Server, eventually, fleet};

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

fn function(fields: serde_json::Value) -> Function {
    let mut value = serde_json::json!({"image": "shoal-test/function:1"});
    value.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    schemas::strict::function(&value).unwrap()
}

/// A fleet with the function `f` defined like this, and its caller.
async fn defined(fields: serde_json::Value) -> (Server, Client, Functions, Hand) {
    let (server, client) = fleet().await;
    let caller = client.functions(None);
    caller.apply(&name("f"), function(fields)).await.unwrap();
    let hand = Hand { caller: caller.clone(), worker: AgentId::new("w-1").unwrap() };
    (server, client, caller, hand)
}

/// A worker that holds instances of `f`, played by hand.
#[derive(Clone)]
struct Hand {
    caller: Functions,
    worker: AgentId,
}

impl Hand {
    /// A record as the worker would have it.
    async fn record(&self, index: u32, start: &str, status: InstanceStatus) -> Instance {
        let defined = self.caller.defined(&name("f")).await.unwrap();
        serde_json::from_value(serde_json::json!({
            "function": "f", "index": index, "status": status, "id": format!("{start:0<64}"), "name": format!("f-{start}"),
            "ip_address": "172.17.0.9", "port": 8080, "worker": self.worker, "boot": "b1", "start": start,
            "revision": defined.revision, "spec": defined.function.spec(), "owner": defined.function.owner,
            "created_at": Timestamp::now(),
        }))
        .unwrap()
    }

    async fn write(&self, instance: &Instance) -> u64 {
        let (_, revision) = self.caller.instance(&instance.function, instance.index).await.unwrap();
        self.caller.put_instance(instance, revision).await.unwrap().expect("nobody else writes")
    }

    async fn ready(&self, index: u32, start: &str) -> Instance {
        let instance = self.record(index, start, InstanceStatus::Ready).await;
        self.write(&instance).await;
        instance
    }

    async fn fails(&self, index: u32, code: Code) {
        let error = Some(TaskError::new(code, "said by the test"));
        let failed = self.record(index, "failed1", InstanceStatus::Failed).await;
        self.write(&Instance { id: None, start: None, error, failures: 1, ..failed }).await;
    }

    /// Every wish that is under way.
    async fn wishes(&self) -> Vec<StoredMessage> {
        let (js, names) = (self.caller.js(), self.caller.names());
        js.page(&names.ensure_stream(), &names.ensure_subjects(), 1, 100).await.unwrap().messages
    }

    /// Waits for the wish for one slot.
    async fn wish(&self, index: u32) -> (EnsureRequest, u64) {
        let found = eventually(|| async {
            let wishes = self.wishes().await;
            wishes.into_iter().find(|wish| wish.subject == format!("shoal.ensure.default.f.{index}"))
        })
        .await;
        (serde_json::from_slice(&found.payload).unwrap(), found.sequence)
    }

    /// Acks a wish.
    async fn settle(&self, sequence: u64) {
        self.caller.js().delete(&self.caller.names().ensure_stream(), sequence).await.unwrap();
    }

    /// Answers calls with `reply`, and counts them.
    async fn answers(&self, reply: impl Fn(&async_nats::Message) -> (HeaderMap, Bytes) + Send + 'static) -> Answering {
        let client = self.caller.js().client().clone();
        let mut calls = client.subscribe(self.caller.names().invoke_subject(&name("f"))).await.unwrap();
        client.flush().await.unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let task = tokio::spawn(async move {
            while let Some(call) = calls.next().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (headers, body) = reply(&call);
                client.publish_with_headers(call.reply.clone().unwrap(), headers, body).await.unwrap();
            }
        });
        Answering { count, task }
    }

    /// Answers for the worker as long as it is held.
    async fn lives(&self) -> Answering {
        let client = self.caller.js().client().clone();
        let mut asked = client.subscribe(self.caller.names().info_subject(&self.worker)).await.unwrap();
        client.flush().await.unwrap();
        let task = tokio::spawn(async move {
            while let Some(request) = asked.next().await {
                client.publish(request.reply.unwrap(), Bytes::from_static(b"{}")).await.unwrap();
            }
        });
        Answering { count: Arc::default(), task }
    }
}

struct Answering {
    count: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn ok(headers: &[(&'static str, &str)], body: &'static str) -> (HeaderMap, Bytes) {
    let mut map = HeaderMap::new();
    map.insert(header::STATUS, "200");
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    (map, Bytes::from_static(body.as_bytes()))
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, CallError>) -> Code {
    result.unwrap_err().to_task_error().code
}

#[tokio::test]
async fn a_definition_is_kept_as_applied_and_the_same_again_changes_nothing() {
    let (_server, client) = fleet().await;
    let caller = client.functions(None);
    let mut told = client.js.client().subscribe(client.names.function_event_subjects()).await.unwrap();
    assert!(caller.definition(&name("f")).await.unwrap().is_none());
    assert_eq!(code(caller.defined(&name("f")).await), Code::NotFound);

    let first = caller.apply(&name("f"), function(serde_json::json!({"max": 3}))).await.unwrap();
    assert!(first.changed && !first.rolls);
    assert_eq!(told.next().await.unwrap().subject.as_str(), "shoal.events.functions.f");
    let again = caller.apply(&name("f"), function(serde_json::json!({"max": 3}))).await.unwrap();
    assert_eq!((again.changed, again.defined.revision), (false, first.defined.revision));
    let wider = caller.apply(&name("f"), function(serde_json::json!({"max": 4}))).await.unwrap();
    assert!(wider.changed && !wider.rolls && wider.defined.revision > first.defined.revision);
    let other = caller.apply(&name("f"), function(serde_json::json!({"max": 4, "env": {"A": "1"}}))).await.unwrap();
    assert!(other.rolls);
    assert_eq!(caller.definitions().await.unwrap(), vec![other.defined]);
    let wrong = Function { max: 0, ..function(serde_json::json!({})) };
    assert_eq!(code(caller.apply(&name("f"), wrong).await), Code::InvalidArgument);

    assert!(caller.delete(&name("f")).await.unwrap());
    assert!(!caller.delete(&name("f")).await.unwrap());
    assert!(caller.definitions().await.unwrap().is_empty());
    let anew = caller.apply(&name("f"), function(serde_json::json!({}))).await.unwrap();
    assert!(anew.changed && !anew.rolls, "a deleted one is nobody's predecessor");
}

#[tokio::test]
async fn of_many_who_apply_at_once_each_change_is_whole() {
    let (_server, client) = fleet().await;
    let caller = client.functions(None);
    let applies = (1..=10).map(|max| {
        let caller = caller.clone();
        async move { caller.apply(&name("f"), function(serde_json::json!({"max": max}))).await.unwrap() }
    });
    let applied = futures_util::future::join_all(applies).await;
    let last = applied.iter().max_by_key(|applied| applied.defined.revision).unwrap();
    assert_eq!(caller.defined(&name("f")).await.unwrap(), last.defined);
    let mut revisions: Vec<u64> = applied.iter().map(|applied| applied.defined.revision).collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 10, "nobody's change was taken for another's");
}

#[tokio::test]
async fn what_belongs_to_an_owner_is_refused_to_all_others() {
    let (_server, client, _, _) = defined(serde_json::json!({"owner": "ann"})).await;
    let (ann, bob, nobody) =
        (client.functions(Some("ann".into())), client.functions(Some("bob".into())), client.functions(None));
    let hand = Hand { caller: ann.clone(), worker: AgentId::new("w-1").unwrap() };
    let held = hand.ready(0, "aaa111").await;
    for other in [&bob, &nobody] {
        let changed = function(serde_json::json!({"owner": "bob"}));
        assert_eq!(code(other.apply(&name("f"), changed).await), Code::PermissionDenied);
        assert_eq!(code(other.delete(&name("f")).await), Code::PermissionDenied);
        assert_eq!(code(other.ensure(&name("f"), None).await), Code::PermissionDenied);
        assert_eq!(code(other.invoke(&name("f"), &Call::default()).await), Code::PermissionDenied);
        assert_eq!(code(other.destroy(&name("f"), LONG).await), Code::PermissionDenied);
        assert_eq!(code(other.destroy_one("aaa111", LONG).await), Code::PermissionDenied);
    }
    assert_eq!(ann.ensure(&name("f"), None).await.unwrap().instance, held);
    assert!(ann.delete(&name("f")).await.unwrap());
    // Its instances are still hers.
    assert_eq!(code(bob.destroy(&name("f"), LONG).await), Code::PermissionDenied);
    assert_eq!(code(bob.destroy_one("aaa111", LONG).await), Code::PermissionDenied);
    assert_eq!(ann.destroy(&name("f"), LONG).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_takes_calls_is_found_in_the_bucket_and_nobody_is_asked() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({"max": 3})).await;
    let paused = hand.record(1, "ppp111", InstanceStatus::Paused).await;
    hand.write(&paused).await;
    let found = caller.ensure(&name("f"), None).await.unwrap();
    assert_eq!((found.instance.start, found.reused), (paused.start, true));
    let ready = hand.ready(2, "rrr111").await;
    assert_eq!(caller.ensure(&name("f"), None).await.unwrap().instance, ready, "one that is awake goes first");
    assert!(hand.wishes().await.is_empty());
}

#[tokio::test]
async fn a_hundred_who_ensure_a_cold_function_make_one_wish_and_get_one_instance() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({"max": 5})).await;
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let caller = caller.clone();
            tokio::spawn(async move { caller.ensure(&name("f"), Some(LONG)).await })
        })
        .collect();
    let (request, sequence) = hand.wish(0).await;
    assert_eq!(request, EnsureRequest::default());
    let made = hand.ready(0, "one111").await;
    for one in asking {
        let found = one.await.unwrap().unwrap();
        assert_eq!(found.instance, made);
    }
    let wishes = hand.wishes().await;
    assert_eq!((wishes.len(), wishes[0].sequence), (1, sequence));
}

#[tokio::test]
async fn whoever_wished_is_told_why_the_start_failed_and_the_next_wishes_again() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({})).await;
    let asking = tokio::spawn({
        let caller = caller.clone();
        async move { caller.ensure(&name("f"), Some(LONG)).await }
    });
    // Whoever has wished has looked and listens.
    let (_, sequence) = hand.wish(0).await;
    hand.fails(0, Code::NotHealthy).await;
    assert_eq!(code(asking.await.unwrap()), Code::NotHealthy);
    hand.settle(sequence).await;
    // The failure is of yesterday: it is no answer to who asks today.
    let again = tokio::spawn({
        let caller = caller.clone();
        async move { caller.ensure(&name("f"), Some(LONG)).await }
    });
    hand.wish(0).await;
    let made = hand.ready(0, "two222").await;
    assert_eq!(again.await.unwrap().unwrap().instance, made);
}

#[tokio::test]
async fn a_wish_that_came_to_nothing_is_made_again() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({})).await;
    let asking = tokio::spawn({
        let caller = caller.clone();
        async move { caller.ensure(&name("f"), Some(LONG)).await }
    });
    let (_, first) = hand.wish(0).await;
    // Acked by a worker that found nothing to do, as by one that read an older definition.
    hand.settle(first).await;
    let (_, second) = hand.wish(0).await;
    assert!(second > first);
    let made = hand.ready(0, "two222").await;
    assert_eq!(asking.await.unwrap().unwrap().instance, made);
}

#[tokio::test]
async fn who_waits_in_vain_is_told_so_in_time() {
    let (_server, _client, caller, _hand) = defined(serde_json::json!({"acquire_timeout": "200ms"})).await;
    assert_eq!(code(caller.ensure(&name("f"), None).await), Code::NoInstance);
    assert_eq!(code(caller.ensure(&name("f"), Some(Duration::from_millis(1))).await), Code::NoInstance);
    assert_eq!(code(caller.invoke(&name("f"), &Call::default()).await), Code::NoInstance);
    assert_eq!(code(caller.ensure(&name("g"), None).await), Code::NotFound);
    assert_eq!(code(caller.invoke(&name("g"), &Call::default()).await), Code::NotFound);
}

#[tokio::test]
async fn a_warm_call_is_answered_by_whoever_holds_an_instance() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({})).await;
    let answering = hand
        .answers(|call| {
            let headers = call.headers.as_ref().unwrap();
            let text = |name: &str| headers.get(name).map_or("-", |value| value.as_str());
            assert_eq!(text(header::CONTENT_TYPE), "text/plain");
            assert_eq!(text(header::REQUEST_ID), "r-1");
            let acquire: u64 = text(header::ACQUIRE_MS).parse().unwrap();
            assert!((1..=7_000).contains(&acquire), "{acquire}");
            assert!(text(header::TRACEPARENT).starts_with("00-"));
            assert_eq!(call.payload.as_ref(), b"hello");
            ok(&[(header::INSTANCE, "aaa111"), (header::WORKER, "w-1"), (header::CONTENT_TYPE, "text/html")], "<p>")
        })
        .await;
    let call = Call {
        body: "hello".into(),
        content_type: Some("text/plain".into()),
        request_id: Some("r-1".into()),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        acquire_timeout: Some(Duration::from_secs(7)),
    };
    let response = caller.invoke(&name("f"), &call).await.unwrap();
    assert_eq!((response.status, response.body.as_ref()), (200, b"<p>".as_ref()));
    assert_eq!(response.content_type.as_deref(), Some("text/html"));
    assert_eq!(response.instance, Some(StartId::new("aaa111").unwrap()));
    assert_eq!((response.worker, response.request_id.as_str()), (Some(hand.worker.clone()), "r-1"));
    assert_eq!(response.function_error, None);
    assert_eq!(answering.count.load(Ordering::SeqCst), 1);
    assert!(hand.wishes().await.is_empty());
}

#[tokio::test]
async fn an_owner_is_named_with_each_call() {
    let (_server, client, _, _) = defined(serde_json::json!({"owner": "ann"})).await;
    let ann = client.functions(Some("ann".into()));
    let hand = Hand { caller: ann.clone(), worker: AgentId::new("w-1").unwrap() };
    let _answering = hand
        .answers(|call| {
            assert_eq!(call.headers.as_ref().unwrap().get(header::OWNER).unwrap().as_str(), "ann");
            ok(&[], "")
        })
        .await;
    assert_eq!(ann.invoke(&name("f"), &Call::default()).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_functions_own_failure_is_a_response_and_the_platforms_is_an_error() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({})).await;
    let _answering = hand
        .answers(|call| match call.payload.as_ref() {
            b"status" => ok(&[(header::STATUS, "503"), (header::FUNCTION_ERROR, "status")], "no"),
            b"error" => {
                let error = TaskError::new(Code::ResponseTooLarge, "11 bytes, at most 10");
                let body = serde_json::to_vec(&error).unwrap().into();
                let mut headers = HeaderMap::new();
                headers.insert(header::ERROR, error.code.as_str());
                (headers, body)
            }
            _ => (HeaderMap::new(), Bytes::new()),
        })
        .await;
    let failed = caller.invoke(&name("f"), &Call::new("status")).await.unwrap();
    assert_eq!((failed.status, failed.function_error.as_deref()), (503, Some("status")));
    let error = caller.invoke(&name("f"), &Call::new("error")).await.unwrap_err().to_task_error();
    assert_eq!((error.code, error.message.as_str()), (Code::ResponseTooLarge, "11 bytes, at most 10"));
    assert_eq!(code(caller.invoke(&name("f"), &Call::new("neither")).await), Code::Internal);
}

#[tokio::test]
async fn a_response_too_large_for_a_message_is_fetched_and_deleted() {
    let (_server, client, caller, hand) = defined(serde_json::json!({})).await;
    let store = async_nats::jetstream::new(client.js.client().clone());
    let store = store.get_object_store(client.names.artifacts_bucket()).await.unwrap();
    let big = vec![7_u8; 3 << 20];
    let object = client.names.response_name(&name("f"), "r-9");
    store.put(object.as_str(), &mut big.as_slice()).await.unwrap();
    let told = object.clone();
    let _answering = hand.answers(move |_| ok(&[(header::OBJECT, &told)], "")).await;
    let response = caller.invoke(&name("f"), &Call::default()).await.unwrap();
    assert!(response.body == big, "{} bytes", response.body.len());
    assert!(store.info(&object).await.unwrap().deleted, "it was for its caller alone");
    // The object is gone now, and the answer names it still.
    assert_eq!(code(caller.invoke(&name("f"), &Call::default()).await), Code::ResponseLost);
}

#[tokio::test]
async fn a_body_that_fits_no_message_is_refused_before_it_is_sent() {
    let (_server, client, caller, hand) = defined(serde_json::json!({})).await;
    let answering = hand.answers(|_| ok(&[], "")).await;
    let most = client.js.max_payload();
    assert_eq!(code(caller.invoke(&name("f"), &Call::new(vec![0; most])).await), Code::TooLarge);
    assert_eq!(answering.count.load(Ordering::SeqCst), 0);
    caller.invoke(&name("f"), &Call::new(vec![0; most - (16 << 10)])).await.unwrap();
}

#[tokio::test]
async fn a_cold_call_has_an_instance_made_and_is_then_sent_once() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({})).await;
    let calling = tokio::spawn({
        let caller = caller.clone();
        async move { caller.invoke(&name("f"), &Call::new("x")).await }
    });
    let (request, _) = hand.wish(0).await;
    assert_eq!(request.gone, None);
    // As a worker does: first it takes calls, then it says so.
    let answering = hand.answers(|_| ok(&[], "warm")).await;
    hand.ready(0, "aaa111").await;
    assert_eq!(calling.await.unwrap().unwrap().body.as_ref(), b"warm");
    assert_eq!(answering.count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn instances_that_nobody_answers_for_are_named_in_the_wish() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({"max": 3})).await;
    // All of them were held by a worker that was killed.
    for (index, start) in [(0, "aaa111"), (1, "bbb111"), (2, "ccc111")] {
        hand.ready(index, start).await;
    }
    let calling = tokio::spawn({
        let caller = caller.clone();
        async move { caller.invoke(&name("f"), &Call::default()).await }
    });
    let (request, _) = hand.wish(0).await;
    assert_eq!(request.gone, Some(StartId::new("aaa111").unwrap()));
    let _answering = hand.answers(|_| ok(&[], "")).await;
    hand.ready(0, "ddd111").await;
    assert_eq!(calling.await.unwrap().unwrap().status, 200);
    assert_eq!(hand.wishes().await.len(), 1, "one new instance serves the call; the rest is not its business");
}

#[tokio::test]
async fn an_instance_that_comes_while_nobody_answers_is_asked_before_it_is_doubted() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({})).await;
    hand.ready(0, "aaa111").await;
    let calling = tokio::spawn({
        let caller = caller.clone();
        async move { caller.invoke(&name("f"), &Call::default()).await }
    });
    let (request, _) = hand.wish(0).await;
    assert_eq!(request.gone, Some(StartId::new("aaa111").unwrap()));
    // It was cut off for a moment: its worker looks, and writes the same record again.
    let _answering = hand.answers(|_| ok(&[], "back")).await;
    hand.ready(0, "aaa111").await;
    assert_eq!(calling.await.unwrap().unwrap().body.as_ref(), b"back");
}

#[tokio::test]
async fn destroy_marks_what_a_living_worker_holds_and_waits_until_it_is_gone() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({"max": 2})).await;
    let _lives = hand.lives().await;
    hand.ready(0, "aaa111").await;
    hand.ready(1, "bbb111").await;
    let destroying = tokio::spawn({
        let caller = caller.clone();
        async move { caller.destroy(&name("f"), LONG).await }
    });
    for index in 0..2 {
        let revision = eventually(|| async {
            let (instance, revision) = caller.instance(&name("f"), index).await.unwrap();
            (instance.unwrap().status == InstanceStatus::Stopping).then_some(revision)
        })
        .await;
        assert!(!destroying.is_finished());
        caller.remove_instance(&name("f"), index, revision).await.unwrap().unwrap();
    }
    assert_eq!(destroying.await.unwrap().unwrap().len(), 2);
    assert!(caller.destroy(&name("f"), LONG).await.unwrap().is_empty(), "once more is no error");
    assert!(caller.instances(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn destroy_tells_what_has_not_ended_in_time() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({})).await;
    let _lives = hand.lives().await;
    hand.ready(0, "aaa111").await;
    assert_eq!(code(caller.destroy(&name("f"), Duration::from_millis(100)).await), Code::TimedOut);
    let (instance, _) = caller.instance(&name("f"), 0).await.unwrap();
    assert_eq!(instance.unwrap().status, InstanceStatus::Stopping, "the mark stays");
}

#[tokio::test]
async fn what_nobody_holds_is_removed_at_once() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({"max": 4})).await;
    hand.ready(0, "aaa111").await;
    hand.fails(1, Code::ImageNotFound).await;
    let left = hand.record(2, "ccc111", InstanceStatus::Left).await;
    hand.write(&left).await;
    assert_eq!(caller.destroy(&name("f"), LONG).await.unwrap().len(), 3);
    assert!(caller.instances(Some(&name("f"))).await.unwrap().is_empty());
}

#[tokio::test]
async fn one_container_is_destroyed_by_its_id_name_or_start() {
    let (_server, _client, caller, hand) = defined(serde_json::json!({"max": 4})).await;
    for word in ["aaa111", "f-aaa111", "aaa111000000"] {
        hand.ready(0, "aaa111").await;
        hand.ready(1, "bbb111").await;
        let destroyed = caller.destroy_one(word, LONG).await.unwrap();
        assert_eq!(destroyed.len(), 1, "{word}");
        let left = caller.instances(None).await.unwrap();
        assert_eq!(left.iter().map(|known| known.instance.index).collect::<Vec<_>>(), [1], "{word}");
    }
    assert!(caller.destroy_one("zzz", LONG).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_hold_touches_its_instance_until_it_is_given_back_and_evict_removes_it() {
    let (_server, client, caller, hand) = defined(serde_json::json!({"idle_timeout": "300ms"})).await;
    let held = hand.ready(0, "aaa111").await;
    let subject = client.names.invoke_at_subject(&name("f"), &hand.worker);
    let mut touches = client.js.client().subscribe(subject).await.unwrap();
    let lease = caller.acquire(&name("f"), None).await.unwrap();
    assert_eq!(lease.instance, held);
    for _ in 0..3 {
        let touch = tokio::time::timeout(LONG, touches.next()).await.unwrap().unwrap();
        assert_eq!(touch.headers.unwrap().get(header::TOUCH).unwrap().as_str(), "aaa111");
    }
    let leases = shoal_dispatcher::client::Leases::default();
    let instance = leases.keep(lease);
    assert!(leases.release(&instance).is_some());
    assert!(leases.release(&instance).is_none(), "given back already");

    let lease = caller.acquire(&name("f"), None).await.unwrap();
    caller.evict(lease).await.unwrap();
    assert!(caller.instances(None).await.unwrap().is_empty());
}
