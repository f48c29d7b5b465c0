//! `shoal up`: a whole fleet in one process, its server as child, nothing left behind (O1).

use schemas::{AgentRecord, AgentStatus, State};

use crate::support::{Client, Fleet, Program, eventually, http_get, marked_processes, noop, process_runs, random_word};

/// `up` on free ports, whatever it starts known by a mark in its environment.
async fn up(home: &Fleet, mark: &str, workers: &str) -> (Program, String, String) {
    let store = home.folder().join("store").display().to_string();
    let args = ["up", "--workers", workers, "--nats-port", "0", "--http", "127.0.0.1:0", "--store", &store];
    let mut command = home.command();
    command.args(args).env("MARK", mark).env_remove("SHOAL_NATS_URL").env("SHOAL_DRAIN_GRACE", "2s");
    let mut program = Program::spawn("up", home.folder(), command, std::process::Stdio::null());
    let mut ready = program.ready().await;
    (program, ready.remove("nats").expect("nats="), ready.remove("http").expect("http="))
}

/// Somewhere to run commands from, with a server that `up` does not use.
async fn home() -> Fleet {
    Fleet::builder().bare().start().await
}

fn none_left(mark: &str) -> Result<(), String> {
    match marked_processes(mark) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    }
}

#[tokio::test]
async fn up_is_a_whole_fleet_and_stops_as_one() {
    let (home, mark) = (home().await, random_word());
    let (mut up, url, http) = up(&home, &mark, "2").await;
    assert_eq!(http_get(&http, "/health/ready").await.expect("it answers").0, 200);
    let client = Client::connect(&url, "shoal").await;
    // Ready means: every worker is ready in the registry.
    let agents = client.agents().await;
    assert_eq!(agents.len(), 2, "{agents:?}");
    for id in &agents {
        let agent: AgentRecord = client.agent(id).await.expect("readable").expect("there");
        assert_eq!(agent.status, AgentStatus::Ready);
        assert!(agent.runtimes.contains_key("process"), "`up` runs processes without a word: {agent:?}");
    }
    assert_eq!(client.run("default.a", &noop()).await.state, State::Succeeded);
    let output = home.shoal(&["--nats-url", &url, "run", "--", "sh", "-c", "echo from up; exit 6"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (6, "from up\n"), "{output:?}");

    up.terminate();
    assert_eq!(up.wait().await.code, 0);
    eventually("nothing left of it", async || none_left(&mark)).await;
}

#[tokio::test]
async fn a_killed_up_leaves_no_process_behind() {
    let (home, mark) = (home().await, random_word());
    let (mut up, url, _) = up(&home, &mark, "1").await;
    let client = Client::connect(&url, "shoal").await;
    let job = home.job();
    client.publish("default.a", &job.script("setsid sleep 600 & sleep 600")).await;
    client.in_state("default.a", State::Running).await;
    assert!(marked_processes(&mark).len() >= 2, "up and its server");
    up.kill().await;
    eventually("nothing left of it", async || none_left(&mark)).await;
    job.gone().await;
}

#[tokio::test]
async fn what_a_stopped_up_kept_is_there_when_it_comes_again() {
    let (home, mark) = (home().await, random_word());
    let (mut first, url, _) = up(&home, &mark, "1").await;
    let client = Client::connect(&url, "shoal").await;
    let sequence = client.run("default.kept", &noop()).await.sequence;
    client.publish("nobodys.waits", &noop()).await;
    first.interrupt();
    assert_eq!(first.wait().await.code, 0);
    let (second, url, _) = up(&home, &mark, "1").await;
    let client = Client::connect(&url, "shoal").await;
    assert_eq!(client.record("default.kept").await.expect("kept").sequence, sequence);
    assert!(client.message("nobodys.waits").await.is_some());
    assert!(process_runs(second.pid()));
}

#[tokio::test]
async fn a_server_too_old_is_refused_with_both_versions() {
    let home = home().await;
    // A server that greets as an old one does.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let old = tokio::spawn(async move {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let info = r#"{"server_id":"A","server_name":"A","version":"2.9.25","proto":1,"go":"go1.20","host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"jetstream":true,"client_id":1}"#;
            let _ = stream.get_mut().write_all(format!("INFO {info}\r\n").as_bytes()).await;
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                if line.starts_with("PING") {
                    let _ = stream.get_mut().write_all(b"PONG\r\n").await;
                }
                line.clear();
            }
        }
    });
    let url = format!("nats://127.0.0.1:{port}");
    for args in [&["worker"][..], &["admin", "apply"], &["dispatcher", "--http", "127.0.0.1:0"]] {
        let args = [&["--nats-url", &url], args].concat();
        let output = home.shoal(&args).await;
        assert_ne!(output.code, 0, "{args:?}");
        assert!(output.stderr.contains("2.9.25") && output.stderr.contains("2.12"), "{args:?}: {output:?}");
    }
    old.abort();
}
