//! A nats-server of one test, and a worker played by hand.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;
use jetstream::{ConnectSettings, Ensure};
use schemas::stores::StoreSettings;
use schemas::{AgentId, Attempt, Names, Outcome, QueueName, StartId, State, TaskKey, TaskRecord, Timestamp, header};
use shoal_dispatcher::client::{Client, Recorded, Submission, record};
use shoal_dispatcher::topology;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop"}}"#;

/// Nothing here takes longer, unless it hangs.
pub const LONG: Duration = Duration::from_secs(20);

fn program() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    std::env::var_os("SHOAL_NATS_SERVER")
        .map(PathBuf::from)
        .or_else(|| built.exists().then_some(built))
        .unwrap_or_else(|| "nats-server".into())
}

pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Server {
    pub async fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = spawn(folder.path(), "-1", more);
        let ports = folder.path().join(format!("nats-server_{}.ports", child.id()));
        let port = eventually(|| async {
            let text = std::fs::read_to_string(&ports).ok()?;
            let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
            ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
        })
        .await;
        Self { child, folder, port }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A URL of the same server for one connection, `away` in each direction.
    pub async fn far_url(&self, away: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let port = self.port;
        tokio::spawn(async move {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::join!(carry(near_in, far_out, away), carry(far_in, near_out, away));
        });
        url
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, on the same port and store.
    pub fn start_again(&mut self) {
        self.child = spawn(self.folder.path(), &self.port.to_string(), &["-js"]);
    }

    pub async fn client(&self) -> Client {
        client_of(&self.url()).await
    }
}

pub async fn client_of(url: &str) -> Client {
    let settings = ConnectSettings { url: Some(url.to_owned()), ..ConnectSettings::default() };
    Client::new(settings.connect("test").await.unwrap(), Names::default())
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Carries bytes from one socket to another; each arrives `away` later than it came, whatever is under way besides.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, away: Duration) {
    let (send, mut receive) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let taking = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            send.send((Instant::now() + away, buffer[..length].to_vec())).unwrap();
        }
    };
    let giving = async move {
        while let Some((due, bytes)) = receive.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&bytes).await.unwrap();
        }
    };
    tokio::join!(taking, giving);
}

fn spawn(folder: &Path, port: &str, more: &[&str]) -> Child {
    let mut command = Command::new(program());
    command
        .args(["-a", "127.0.0.1", "-p", port, "-sd"])
        .arg(folder.join("store"))
        .arg("--ports_file_dir")
        .arg(folder)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// Asks until there is an answer.
pub async fn eventually<T, F: Future<Output = Option<T>>>(ask: impl Fn() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, asking).await.expect("it did not come true")
}

/// A server with a fleet's stores, and a client of it.
pub async fn fleet() -> (Server, Client) {
    let server = Server::start(&["-js"]).await;
    let client = server.client().await;
    topology::ensure(&client.js, &client.names, &StoreSettings::default(), Ensure::Upgrade).await.unwrap();
    (server, client)
}

/// Times on the wire have milliseconds: what follows this is later than what went before.
pub async fn next_millisecond() {
    let now = Timestamp::now();
    eventually(async || (Timestamp::now() > now).then_some(())).await;
}

/// The middle one of several measurements: one of them may fall into a pause of a busy machine.
pub fn median(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took[took.len() / 2]
}

pub fn key(text: &str) -> TaskKey {
    text.parse().unwrap()
}

pub fn queue(text: &str) -> QueueName {
    text.parse().unwrap()
}

pub fn task(text: &str) -> Submission {
    let TaskKey { queue, id } = key(text);
    Submission::checked(queue, Some(id), NOOP).unwrap()
}

/// A worker played by hand: raw pulls, raw writes.
pub struct Hand<'a>(pub &'a Client);

impl Hand<'_> {
    /// Makes the queue's consumer, as a worker does that starts.
    pub async fn bind(&self, name: &str) {
        let Client { js, names, .. } = self.0;
        topology::ensure_queue(js, names, &StoreSettings::default(), &queue(name)).await.unwrap();
    }

    /// Takes one delivery.
    pub async fn pull(&self, name: &str) -> async_nats::Message {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{name}", self.0.names.tasks_stream());
        let body = serde_json::json!({ "batch": 1, "expires": 10_000_000_000_u64 });
        // An inbox of its own: a delivery bears the task's subject, which the shared inbox could not place.
        let client = self.0.js.client();
        let inbox = client.new_inbox();
        let mut replies = client.subscribe(inbox.clone()).await.unwrap();
        client.publish_with_reply(subject, inbox, body.to_string().into()).await.unwrap();
        let message = tokio::time::timeout(LONG, replies.next()).await.unwrap().unwrap();
        assert_eq!(message.status, None, "{:?}", message.description);
        message
    }

    pub async fn settle(&self, delivery: &async_nats::Message, word: &'static str) {
        self.0.js.request(delivery.reply.as_ref().unwrap(), Bytes::from_static(word.as_bytes())).await.unwrap();
    }

    /// A record as a worker would have it, with one attempt.
    pub fn record(&self, key: &TaskKey, sequence: u64, state: State) -> TaskRecord {
        let mut record = TaskRecord::new(key, sequence, state, Timestamp::now());
        record.keep_task(NOOP.as_bytes());
        record.attempts.push(Attempt {
            number: std::num::NonZeroU32::new(1),
            start: Some(StartId::new("k3v9x2").unwrap()),
            worker: Some(AgentId::new("w-1").unwrap()),
            instance: Some("b1".into()),
            outcome: if state == State::Running { Outcome::Running } else { Outcome::Exited },
            exit_code: None,
            signal: None,
            oom: false,
            error: None,
            phases: schemas::record::Phases { started: Some(Timestamp::now()), ..Default::default() },
            usage: None,
            agent: None,
            more: Default::default(),
        });
        record.retry_at = (state == State::Retrying).then(|| Timestamp::now().plus(Duration::from_secs(60)));
        record.ended_at = state.is_terminal().then(Timestamp::now);
        record
    }

    /// Writes a record over `expected` without telling anybody.
    pub async fn write(&self, record: &TaskRecord, expected: u64) -> Recorded {
        let written = record::write(&self.0.js, &self.0.names, record, expected).await.unwrap();
        let record::Written::Stored(revision) = written else { panic!("refused") };
        Recorded { record: record.clone(), revision, written_at: Timestamp::now() }
    }

    pub async fn write_and_tell(&self, record: &TaskRecord, expected: u64) -> Recorded {
        let written = self.write(record, expected).await;
        record::tell(&self.0.js, &self.0.names, record, written.revision).await;
        written
    }

    /// A whole life: submitted, handed out, ended, acked.
    pub async fn run(&self, text: &str, state: State) -> Recorded {
        let key = key(text);
        self.bind(key.queue.as_str()).await;
        let submitted = self.0.submit(task(text)).await.unwrap();
        let delivery = self.pull(key.queue.as_str()).await;
        let over = self.0.look(&key).await.unwrap().revision;
        let mut record = self.record(&key, submitted.sequence, state);
        record.submission = Some(submitted.submission);
        let written = self.write_and_tell(&record, over).await;
        self.settle(&delivery, "").await;
        written
    }

    /// One chunk of log.
    pub async fn log(&self, key: &TaskKey, source: schemas::names::LogSource, text: &str) -> u64 {
        let subject = self.0.names.log_subject(key, &StartId::new("k3v9x2").unwrap(), source);
        self.0.js.publish(subject, HeaderMap::new(), Bytes::copy_from_slice(text.as_bytes())).await.unwrap().sequence
    }

    /// A dead letter, and its place.
    pub async fn bury(&self, subject: String, reason: &str, sequence: u64) -> u64 {
        let mut headers = HeaderMap::new();
        headers.insert(header::REASON, reason);
        headers.insert(header::SEQUENCE, sequence.to_string());
        headers.insert(header::ATTEMPTS, "1");
        headers.insert(header::ONCE, "true");
        headers.insert("X-Mine", "kept");
        self.0.js.publish(subject, headers, Bytes::from_static(NOOP.as_bytes())).await.unwrap().sequence
    }

    pub async fn queued(&self, key: &TaskKey) -> Option<u64> {
        self.0.look(key).await.unwrap().queued.map(|queued| queued.sequence)
    }
}
