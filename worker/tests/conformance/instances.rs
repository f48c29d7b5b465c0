//! What every runtime that keeps instances does, written against the trait alone. A test program says where it runs with
//! `instances_cases!`, which makes a test of each case.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::task::{Container, PullPolicy};
use schemas::{Bytes, Code, Cpu, FunctionName, Limit, StartId};
use serde_json::{Value, json};
use shoal_worker::logs::Notes;
use shoal_worker::runtime::instances::{ADDRESS_TRIES, Found, Instances, Launch, Launched};
use shoal_worker::runtime::{Bounds, Exit, Runtime, RuntimeError, StartError, Status};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One engine, and workers on it that are this test's alone.
pub trait Place {
    /// The next boot of the worker called so.
    fn boot(&self, worker: &str) -> impl Future<Output = Arc<dyn Runtime>>;

    /// The function of `tests/function/function.rs`, as an image's name.
    fn image(&self) -> String;

    /// Every container of this test's workers, by the engine's own word.
    fn containers(&self) -> impl Future<Output = Vec<String>>;

    /// The end of every boot; once more is no harm.
    fn close(&self) -> impl Future<Output = ()>;
}

/// A test of each case; `$place` is an async function that gives a [`Place`], or `None` where there is none.
macro_rules! instances_cases {
    ($place:path) => {
        $crate::conformance::instances::instances_cases! { $place;
            a_launched_instance_answers_at_its_address
            the_next_boot_finds_it_and_no_other_worker_does
            it_outlives_the_end_of_its_worker
            a_launch_that_fails_leaves_nothing_and_says_why
            a_launch_that_nobody_waits_for_leaves_nothing
            without_an_address_the_launch_is_undone
            what_is_gone_can_be_destroyed_again
            a_destroyed_instance_is_asked_first
            a_halted_instance_stands_still_and_goes_on
            what_has_ended_cannot_go_on
            an_instance_tells_what_it_uses
            an_end_is_told_as_it_was
            what_it_writes_is_heard_from_the_first_line
            the_next_boot_hears_it_from_then_on
            many_at_once_have_an_address_each
        }
    };
    ($place:path; $($case:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            if let Some(place) = $place().await {
                $crate::conformance::instances::$case(&place).await;
                $crate::conformance::instances::Place::close(&place).await;
            }
        })*
    };
}
pub(crate) use instances_cases;

/// No test waits longer; in time means in far less.
const TOO_LONG: Duration = Duration::from_secs(60);
const WORKER: &str = "w";

fn word() -> String {
    format!("{:016x}", rand::random::<u64>())
}

fn wish(place: &impl Place) -> Launch {
    Launch {
        start: StartId::new(word()).unwrap(),
        function: FunctionName::new("f-1_x").unwrap(),
        index: 3,
        spec: "spec-of-it".to_owned(),
        container: Container {
            pull: Some(PullPolicy::Never),
            network: Some("bridge".to_owned()),
            ..Container::new(place.image())
        },
        env: Vec::new(),
        limits: Bounds {
            cpu: Limit::At(Cpu { millis: 1_000 }),
            memory: Limit::At(Bytes::mebi(64)),
            pids: Limit::At(64),
        },
        notes: Notes::nowhere(),
    }
}

fn with_env(wish: Launch, env: &[(&str, &str)]) -> Launch {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Launch { env, ..wish }
}

fn with_container(mut wish: Launch, change: impl FnOnce(&mut Container)) -> Launch {
    change(&mut wish.container);
    wish
}

async fn launched(instances: &dyn Instances, wish: Launch) -> Launched {
    within(instances.launch(wish)).await.unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move { tokio::time::timeout(TOO_LONG, future).await.unwrap_or_else(|_| panic!("{caller}: not in time")) }
}

#[track_caller]
fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let began = Instant::now();
        while !is_so().await {
            assert!(began.elapsed() < TOO_LONG, "{caller}: not in time: {what}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

/// One call, on a connection of its own; `None` where no whole answer comes.
async fn try_call(address: IpAddr, body: &Value) -> Option<Value> {
    let mut stream = TcpStream::connect((address, 8080)).await.ok()?;
    let body = body.to_string();
    let request = format!("POST /invoke HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str(body).ok()
}

/// The first that is answered, of one that runs: its port may open a moment after its start.
async fn call(address: IpAddr, body: Value) -> Value {
    let mut answer = None;
    eventually(&format!("an answer of {address} to {body}"), async || {
        answer = try_call(address, &body).await;
        answer.is_some()
    })
    .await;
    answer.unwrap()
}

async fn found(instances: &dyn Instances) -> Vec<Found> {
    within(instances.instances()).await.unwrap()
}

fn refused(error: StartError) -> (Code, String) {
    let error = error.to_task_error();
    (error.code, error.message)
}

pub async fn a_launched_instance_answers_at_its_address(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().expect("a runtime that keeps instances");
    let wish = with_env(wish(place), &[("PORT", "8080"), ("UNUSED", "a = b")]);
    let start = wish.start.clone();
    let made = launched(instances, wish).await;
    assert_eq!(call(made.address, json!({"do": "echo", "x": 1})).await, json!({"do": "echo", "x": 1}));
    let expected = Found {
        id: made.id.clone(),
        name: made.name.clone(),
        function: FunctionName::new("f-1_x").unwrap(),
        index: 3,
        start: start.clone(),
        spec: "spec-of-it".to_owned(),
        status: Status::Running,
        address: Some(made.address),
    };
    assert_eq!(found(instances).await, [expected]);
    assert_eq!(made.name, format!("shoal-f-1_x-3-{start}"));
    within(instances.destroy(&made.id, Duration::from_secs(5))).await.unwrap();
    assert_eq!(found(instances).await, []);
    assert_eq!(place.containers().await, [""; 0]);
}

pub async fn the_next_boot_finds_it_and_no_other_worker_does(place: &impl Place) {
    let first = place.boot(WORKER).await;
    let made = launched(first.instances().unwrap(), wish(place)).await;
    let (next, other) = (place.boot(WORKER).await, place.boot("other").await);
    let seen = found(next.instances().unwrap()).await;
    assert_eq!(seen.len(), 1);
    assert_eq!((&seen[0].id, seen[0].address), (&made.id, Some(made.address)));
    assert_eq!(found(other.instances().unwrap()).await, []);
    let by_other = within(other.instances().unwrap().destroy(&made.id, Duration::ZERO)).await;
    assert!(matches!(by_other, Err(RuntimeError::NotFound { .. })), "{by_other:?}");
    call(made.address, json!({})).await;
    within(next.instances().unwrap().destroy(&made.id, Duration::ZERO)).await.unwrap();
    assert_eq!(place.containers().await, [""; 0]);
}

pub async fn it_outlives_the_end_of_its_worker(place: &impl Place) {
    let first = place.boot(WORKER).await;
    let made = launched(first.instances().unwrap(), wish(place)).await;
    let before = call(made.address, json!({"do": "count"})).await;
    within(first.close()).await;
    let refused = first.instances().unwrap().launch(wish(place)).await;
    assert!(refused.is_err(), "nothing starts in what is closed");
    drop(first);
    // Its sweep leaves instances to whoever has their records.
    let next = place.boot(WORKER).await;
    let after = call(made.address, json!({"do": "count"})).await;
    assert_eq!((&before["count"], &after["count"], &before["hostname"]), (&json!(1), &json!(2), &after["hostname"]));
    within(next.instances().unwrap().destroy(&made.id, Duration::ZERO)).await.unwrap();
    within(next.close()).await;
    assert_eq!(place.containers().await, [""; 0]);
}

pub async fn a_launch_that_fails_leaves_nothing_and_says_why(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let image = |name: &str| with_container(wish(place), |container| container.image = name.to_owned());
    for (wish, expected) in [
        (image("shoal-test/there-is-none:1"), Code::ImageNotFound),
        (image("shoal-test/NO:1"), Code::InvalidImage),
        (with_container(wish(place), |it| it.entrypoint = words(&["/no/such/program"])), Code::CommandNotFound),
        (with_container(wish(place), |it| it.user = Some("nobody-here".to_owned())), Code::UserNotFound),
        (with_container(wish(place), |it| it.network = Some("host".to_owned())), Code::PolicyForbidden),
        (with_container(wish(place), |it| it.network = Some("unheard-of".to_owned())), Code::PolicyForbidden),
        (with_container(wish(place), |it| it.privileged = true), Code::PolicyForbidden),
    ] {
        let error = within(instances.launch(wish)).await.expect_err("it cannot be launched");
        let (code, message) = refused(error);
        assert_eq!(code, expected, "{message}");
        assert_eq!(place.containers().await, [""; 0], "{message}");
    }
    // One that ends at once may have been told of before: then its end tells.
    for (env, code, exit) in [("exit", Code::InstanceExited, Some(3)), ("oom", Code::OutOfMemory, None)] {
        match within(instances.launch(with_env(wish(place), &[("START", env)]))).await {
            Err(error) => {
                let (told, message) = refused(error);
                assert_eq!(told, code, "{message}");
            }
            Ok(made) => {
                let ended = within(instances.ended(&made.id)).await.unwrap();
                assert!(exit.is_none_or(|exit| ended.code == Some(exit)), "{ended:?}");
                assert_eq!(ended.oom, code == Code::OutOfMemory, "{ended:?}");
                within(instances.destroy(&made.id, Duration::ZERO)).await.unwrap();
            }
        }
        assert_eq!(place.containers().await, [""; 0]);
    }
}

pub async fn a_launch_that_nobody_waits_for_leaves_nothing(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    // It never has an address, so the launch lasts long enough to be given up in its middle.
    let lasting = || with_container(wish(place), |container| container.network = Some("none".to_owned()));
    let launching = tokio::spawn({
        let (runtime, wish) = (runtime.clone(), lasting());
        async move { runtime.instances().unwrap().launch(wish).await.map(drop) }
    });
    eventually("a container", async || !place.containers().await.is_empty()).await;
    launching.abort();
    eventually("nothing left", async || place.containers().await.is_empty()).await;
    // The same at any other moment.
    for step in 0..8 {
        let launch = runtime.instances().unwrap().launch(wish(place));
        let _ = tokio::time::timeout(Duration::from_millis(step * 30), launch).await.is_ok_and(|made| {
            assert!(made.is_ok(), "{made:?}");
            true
        });
        let kept: Vec<_> = found(runtime.instances().unwrap()).await;
        for made in kept.iter().filter(|made| made.status == Status::Running) {
            within(runtime.instances().unwrap().destroy(&made.id, Duration::ZERO)).await.unwrap();
        }
        eventually("nothing left", async || place.containers().await.is_empty()).await;
    }
    // The end of the runtime is the end of a launch, too.
    let launching = tokio::spawn({
        let (runtime, wish) = (runtime.clone(), lasting());
        async move { runtime.instances().unwrap().launch(wish).await.map(drop) }
    });
    eventually("a container", async || !place.containers().await.is_empty()).await;
    within(runtime.close()).await;
    assert!(within(launching).await.unwrap().is_err());
    assert_eq!(place.containers().await, [""; 0]);
}

pub async fn without_an_address_the_launch_is_undone(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let wish = with_container(wish(place), |container| container.network = Some("none".to_owned()));
    let began = Instant::now();
    let error = within(runtime.instances().unwrap().launch(wish)).await.expect_err("there is no address");
    let (code, message) = refused(error);
    assert_eq!(code, Code::IpUnavailable, "{message}");
    assert!(message.contains(&format!("after {ADDRESS_TRIES} looks")), "{message}");
    // 100 ms, doubling, five times.
    assert!(began.elapsed() >= Duration::from_millis(100 + 200 + 400 + 800 + 1600), "{:?}", began.elapsed());
    assert_eq!(place.containers().await, [""; 0]);
}

pub async fn what_is_gone_can_be_destroyed_again(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    let made = launched(instances, wish(place)).await;
    let (one, other) = tokio::join!(
        instances.destroy(&made.id, Duration::from_secs(5)),
        instances.destroy(&made.id, Duration::from_secs(5))
    );
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    within(instances.destroy(&made.id, Duration::from_secs(5))).await.unwrap();
    assert!(matches!(within(instances.ended(&made.id)).await, Err(RuntimeError::NotFound { .. })));
    assert!(matches!(within(instances.instance_stats(&made.id)).await, Err(RuntimeError::NotFound { .. })));
    assert!(matches!(within(instances.halt_instance(&made.id, true)).await, Err(RuntimeError::NotFound { .. })));
    assert!(within(instances.output(&made.id)).await.is_err());
}

pub async fn a_destroyed_instance_is_asked_first(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    for halted in [false, true] {
        let made = launched(instances, wish(place)).await;
        call(made.address, json!({})).await;
        let mut output = within(instances.output(&made.id)).await.unwrap();
        if halted {
            within(instances.halt_instance(&made.id, true)).await.unwrap();
        }
        let began = Instant::now();
        within(instances.destroy(&made.id, Duration::from_secs(30))).await.unwrap();
        // The function ends with 0 at its TERM; killed, it would have lasted the whole grace.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let mut all = String::new();
        within(output.stdout.read_to_string(&mut all)).await.unwrap();
        assert_eq!(place.containers().await, [""; 0]);
    }
}

pub async fn a_halted_instance_stands_still_and_goes_on(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    let made = launched(instances, wish(place)).await;
    call(made.address, json!({})).await;
    for _ in 0..2 {
        within(instances.halt_instance(&made.id, true)).await.unwrap();
    }
    assert_eq!(found(instances).await[0].status, Status::Paused);
    // The kernel takes the connection; nobody answers.
    let mut calling = tokio::spawn(async move { try_call(made.address, &json!({"do": "count"})).await });
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut calling).await.is_err());
    for _ in 0..2 {
        within(instances.halt_instance(&made.id, false)).await.unwrap();
    }
    let answer = within(calling).await.unwrap().expect("it goes on where it stood");
    assert_eq!(answer["count"], 2);
    let seen = found(instances).await;
    assert_eq!((&seen[0].status, seen[0].address), (&Status::Running, Some(made.address)));
    within(instances.destroy(&made.id, Duration::ZERO)).await.unwrap();
}

pub async fn what_has_ended_cannot_go_on(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    let made = launched(instances, wish(place)).await;
    call(made.address, json!({})).await;
    // Once: its address may be another's as soon as it has ended.
    assert_eq!(try_call(made.address, &json!({"do": "crash"})).await, None);
    eventually("the crash", async || found(instances).await[0].status == Status::Stopped).await;
    assert_eq!(found(instances).await[0].address, None);
    for halted in [true, false] {
        let done = within(instances.halt_instance(&made.id, halted)).await;
        assert!(matches!(done, Err(RuntimeError::Engine { .. })), "{done:?}");
    }
    within(instances.destroy(&made.id, Duration::from_secs(5))).await.unwrap();
    assert_eq!(place.containers().await, [""; 0]);
}

pub async fn an_instance_tells_what_it_uses(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    let made = launched(instances, wish(place)).await;
    call(made.address, json!({})).await;
    let first = within(instances.instance_stats(&made.id)).await.unwrap();
    assert!(first.peak_memory_bytes.is_some_and(|bytes| (1..=64 << 20).contains(&bytes)), "{first:?}");
    assert!(first.cpu_ms.is_some(), "{first:?}");
    // So does the next boot.
    let next = place.boot(WORKER).await;
    let later = within(next.instances().unwrap().instance_stats(&made.id)).await.unwrap();
    assert!(later.wall_ms >= first.wall_ms && later.cpu_ms >= first.cpu_ms, "{first:?} {later:?}");
    within(instances.destroy(&made.id, Duration::ZERO)).await.unwrap();
}

pub async fn an_end_is_told_as_it_was(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    for (body, is_it) in [
        (json!({"do": "crash"}), (|exit| exit.code == Some(1) && !exit.oom) as fn(&Exit) -> bool),
        (json!({"do": "oom"}), |exit| exit.oom),
    ] {
        let made = launched(instances, wish(place)).await;
        let ending = tokio::spawn({
            let (runtime, id) = (runtime.clone(), made.id.clone());
            async move { runtime.instances().unwrap().ended(&id).await }
        });
        call(made.address, json!({})).await;
        assert!(!ending.is_finished());
        assert_eq!(try_call(made.address, &body).await, None);
        let exit = within(ending).await.unwrap().unwrap();
        assert!(is_it(&exit), "{body}: {exit:?}");
        // Whoever comes late hears the same, from any boot.
        let next = place.boot(WORKER).await;
        let late = within(next.instances().unwrap().ended(&made.id)).await.unwrap();
        assert_eq!((late.code, late.oom), (exit.code, exit.oom), "{body}");
        within(instances.destroy(&made.id, Duration::ZERO)).await.unwrap();
    }
}

pub async fn what_it_writes_is_heard_from_the_first_line(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    let made = launched(instances, wish(place)).await;
    call(made.address, json!({"do": "log", "text": "before", "error": "aside"})).await;
    let output = within(instances.output(&made.id)).await.unwrap();
    let (mut stdout, mut stderr) = (BufReader::new(output.stdout).lines(), BufReader::new(output.stderr).lines());
    assert_eq!(within(stdout.next_line()).await.unwrap().as_deref(), Some("listening on 8080"));
    assert_eq!(within(stdout.next_line()).await.unwrap().as_deref(), Some("before"));
    assert_eq!(within(stderr.next_line()).await.unwrap().as_deref(), Some("aside"));
    call(made.address, json!({"do": "log", "text": "after"})).await;
    assert_eq!(within(stdout.next_line()).await.unwrap().as_deref(), Some("after"));
    assert_eq!(try_call(made.address, &json!({"do": "crash"})).await, None);
    assert_eq!(within(stdout.next_line()).await.unwrap(), None, "the end of it is the end of its output");
    within(instances.destroy(&made.id, Duration::ZERO)).await.unwrap();
}

pub async fn the_next_boot_hears_it_from_then_on(place: &impl Place) {
    let first = place.boot(WORKER).await;
    let made = launched(first.instances().unwrap(), wish(place)).await;
    // Nobody ever listens to it, and still it does not stand still at a full pipe.
    let line = "x".repeat(50_000);
    for _ in 0..8 {
        call(made.address, json!({"do": "log", "text": line})).await;
    }
    within(first.close()).await;
    call(made.address, json!({"do": "log", "text": "unheard"})).await;
    let next = place.boot(WORKER).await;
    let output = within(next.instances().unwrap().output(&made.id)).await.unwrap();
    let mut stdout = BufReader::new(output.stdout).lines();
    call(made.address, json!({"do": "log", "text": "heard"})).await;
    loop {
        let line = within(stdout.next_line()).await.unwrap().expect("it has not ended");
        // An engine may have kept the last of what nobody heard.
        if line == "heard" {
            break;
        }
    }
    within(next.instances().unwrap().destroy(&made.id, Duration::from_secs(5))).await.unwrap();
    assert_eq!(within(stdout.next_line()).await.unwrap(), None);
}

pub async fn many_at_once_have_an_address_each(place: &impl Place) {
    let runtime = place.boot(WORKER).await;
    let instances = runtime.instances().unwrap();
    let launches = (0..8).map(|index| launched(instances, Launch { index, ..wish(place) }));
    let made = futures_util::future::join_all(launches).await;
    let mut addresses: Vec<_> = made.iter().map(|made| made.address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
    for made in &made {
        call(made.address, json!({})).await;
    }
    let ends = made.iter().map(|made| instances.destroy(&made.id, Duration::from_secs(5)));
    for end in within(futures_util::future::join_all(ends)).await {
        end.unwrap();
    }
    assert_eq!(place.containers().await, [""; 0]);
}
