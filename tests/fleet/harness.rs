//! The tests' own parts do what the tests lean on.

use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::ConnectOptions;

use schemas::State;

use crate::support::{
    Client, Job, Ledger, Nats, Operator, Program, Proxy, Publish, RawClient, eventually, http_get, marked_processes,
    process_runs, random_word,
};

async fn stream(client: &Client) {
    let config = async_nats::jetstream::stream::Config {
        name: "PROBE".into(),
        subjects: vec!["probe.>".into()],
        max_messages_per_subject: 1,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        discard_new_per_subject: true,
        ..Default::default()
    };
    client.js.create_stream(config).await.unwrap();
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_its_messages() {
    let mut nats = Nats::start().await;
    let client = Client::connect(&nats.url(), "shoal").await;
    stream(&client).await;
    assert_eq!(client.send(Publish::new("probe.a", "one")).await, Ok(1));
    let before = nats.url();
    nats.kill();
    assert!(tokio::net::TcpStream::connect(nats.address()).await.is_err());
    nats.restart().await;
    assert_eq!(nats.url(), before);
    client.reachable().await;
    assert_eq!(client.disconnects(), 1);
    assert_eq!(client.send(Publish::new("probe.a", "two")).await, Err(10077));
    assert_eq!(client.messages("PROBE", "probe.a").await[0].payload, "one");
    nats.terminate().await;
    nats.restart().await;
    assert!(nats.monitor("/varz").await["jetstream"].is_object());
}

#[tokio::test]
async fn a_server_dies_with_the_thread_of_its_test() {
    let (folder, address) = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let nats = runtime.block_on(Nats::start());
        let (folder, address) = (nats.folder().to_owned(), nats.address());
        // Forgotten, as by a test that was killed.
        std::mem::forget(nats);
        (folder, address)
    })
    .join()
    .unwrap();
    eventually("the server is gone", async || match tokio::net::TcpStream::connect(&address).await {
        Err(_) => Ok(()),
        Ok(_) => Err("it listens".into()),
    })
    .await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_publish_by_hand_is_stored() {
    let nats = Nats::start().await;
    let client = Client::connect(&nats.url(), "shoal").await;
    stream(&client).await;
    RawClient::connect(&nats.address()).await.publish("probe.by-hand", b"\x00\xff").await;
    let stored = eventually("the message", async || {
        client.messages("PROBE", "probe.>").await.pop().ok_or_else(|| "none".to_owned())
    })
    .await;
    assert_eq!(stored.payload.as_ref(), b"\x00\xff");
}

#[tokio::test]
async fn a_cut_proxy_parts_a_client_and_a_restored_one_lets_it_back() {
    let nats = Nats::start().await;
    let proxy = Proxy::start(nats.address()).await;
    let client = Client::connect(&proxy.url(), "shoal").await;
    stream(&client).await;
    let direct = Client::connect(&nats.url(), "shoal").await;
    proxy.cut();
    eventually("the client is cut off", async || match client.disconnects() {
        0 => Err("connected".into()),
        _ => Ok(()),
    })
    .await;
    assert_eq!(direct.send(Publish::new("probe.a", "")).await, Ok(1));
    assert_eq!(direct.disconnects(), 0);
    proxy.restore();
    assert_eq!(client.send(Publish::new("probe.b", "")).await, Ok(2));
}

#[tokio::test]
async fn a_server_in_operator_mode_lets_in_only_who_has_credentials() {
    let operator = Operator::new();
    let nats = Nats::with("nats", |_| operator.settings.clone()).await;
    assert!(ConnectOptions::new().connect(nats.url()).await.is_err());
    let options = ConnectOptions::with_credentials(&operator.credentials).unwrap();
    let client = Client::connect_with(options, &nats.url(), "shoal").await;
    stream(&client).await;
    assert_eq!(client.send(Publish::new("probe.a", "")).await, Ok(1));
}

#[tokio::test]
async fn marks_find_a_process_that_has_left_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let job = Job::new(folder.path());
    let mark = random_word();
    let mut command = Command::new("sh");
    command.args(["-c", "setsid sleep 600 & wait"]).env("MARK", &mark);
    let mut program = Program::spawn("marked", folder.path(), command, Stdio::null());
    let found = eventually("three processes or two", async || match marked_processes(&mark) {
        found if found.len() >= 2 => Ok(found),
        found => Err(format!("{found:?}")),
    })
    .await;
    assert!(found.contains(&program.pid()));
    assert!(job.processes().is_empty());
    program.kill().await;
    assert!(!process_runs(program.pid()));
    for pid in marked_processes(&mark) {
        crate::support::signal(pid, libc::SIGKILL);
    }
}

#[tokio::test]
async fn an_ended_program_tells_its_code_and_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo 'ready worker=w-1 http=http://[::1]:1'; read line; echo \"$line\" >&2; exit 7"]);
    let mut program = Program::spawn("words", folder.path(), command, Stdio::piped());
    assert_eq!(program.ready().await["worker"], "w-1");
    assert!(program.try_wait().is_none() || program.wait().await.code == 7);
    let output = program.wait().await;
    assert_eq!(output.code, 7);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "last seen: still 1")]
async fn waiting_for_ever_names_what_was_seen_last() {
    let _: () = eventually("something", async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err("still 1".into())
    })
    .await;
}

#[tokio::test]
async fn http_answers_are_read_whole() {
    let nats = Nats::start().await;
    let state = nats.monitor("/healthz").await;
    assert_eq!(state["status"], "ok");
    assert!(http_get("127.0.0.1:1", "/").await.is_err());
}

fn record(key: &str, sequence: u64, state: schemas::State) -> bytes::Bytes {
    let key = key.parse().expect("a key");
    let record = schemas::TaskRecord::new(&key, sequence, state, schemas::Timestamp::now());
    serde_json::to_vec(&record).expect("JSON").into()
}

async fn bucket(client: &Client) -> async_nats::jetstream::kv::Store {
    let config = async_nats::jetstream::kv::Config {
        bucket: client.names.records_bucket(),
        history: 1,
        storage: async_nats::jetstream::stream::StorageType::File,
        ..Default::default()
    };
    client.js.create_key_value(config).await.unwrap()
}

#[tokio::test]
async fn a_ledger_sees_what_is_overwritten_and_goes_on_after_a_restart() {
    let mut nats = Nats::start().await;
    let client = Client::connect(&nats.url(), "shoal").await;
    let store = bucket(&client).await;
    let ledger = Ledger::watch(&client).await;
    for n in 0..100 {
        let state = if n == 99 { State::Succeeded } else { State::Running };
        store.put("default.a", record("default.a", 7, state)).await.unwrap();
    }
    ledger.caught_up(&client).await;
    assert_eq!(ledger.states("default.a", 7).len(), 100);
    assert_eq!(ledger.one_end("default.a", 7), State::Succeeded);
    assert!(ledger.states("default.a", 8).is_empty());

    nats.kill();
    nats.restart().await;
    client.reachable().await;
    store.put("default.b", record("default.b", 8, State::Failed)).await.unwrap();
    ledger.caught_up(&client).await;
    assert_eq!(ledger.one_end("default.b", 8), State::Failed);
    // The same end a second time is a second end.
    store.put("default.b", record("default.b", 8, State::Failed)).await.unwrap();
    ledger.caught_up(&client).await;
    let twice = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ledger.one_end("default.b", 8)));
    assert!(twice.is_err());
}

#[tokio::test]
async fn records_are_waited_for_and_what_was_seen_is_told() {
    let nats = Nats::start().await;
    let client = Client::connect(&nats.url(), "shoal").await;
    let store = bucket(&client).await;
    assert!(client.record("default.a").await.is_none());
    let (waited, ()) = tokio::join!(client.run_ended("default.a", 2), async {
        store.put("default.a", record("default.a", 1, State::Succeeded)).await.unwrap();
        store.put("default.a", record("default.a", 2, State::Running)).await.unwrap();
        store.put("default.a", record("default.a", 2, State::Cancelled)).await.unwrap();
    });
    assert_eq!(waited.state, State::Cancelled);
    // A deleted record is none.
    store.delete("default.a").await.unwrap();
    assert!(client.record("default.a").await.is_none());
}

#[tokio::test]
async fn a_listener_is_seen_from_outside() {
    let nats = Nats::start().await;
    let client = Client::connect(&nats.url(), "shoal").await;
    assert_eq!(nats.listeners("some.subject").await, 0);
    let _listening = client.nats.subscribe("some.*").await.unwrap();
    eventually("one listener", async || match nats.listeners("some.subject").await {
        1 => Ok(()),
        listeners => Err(format!("{listeners}")),
    })
    .await;
    assert_eq!(nats.listeners("other.subject").await, 0);
}
