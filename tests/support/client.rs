//! A plain NATS client: publishes, KV gets, stream reads. It knows Shoal's names and wire types and nothing more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, consumer, kv};
use async_nats::{ConnectOptions, Event, HeaderMap};
use futures_util::StreamExt;
use futures_util::stream::{self};
use schemas::{AgentRecord, AgentStatus, Names, State, TaskRecord};
use serde_json::Value;

use super::eventually;

/// One connection, and the names of one fleet.
pub struct Client {
    /// The connection.
    pub nats: async_nats::Client,
    /// JetStream over it.
    pub js: jetstream::Context,
    /// The fleet's names.
    pub names: Names,
    disconnects: Arc<AtomicUsize>,
}

/// One publish that wants an ack.
pub struct Publish {
    subject: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Publish {
    /// Bytes on a subject.
    pub fn new(subject: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { subject: subject.into(), headers: HeaderMap::new(), body: body.into() }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl Client {
    /// Connects to a server without credentials.
    pub async fn connect(url: &str, prefix: &str) -> Self {
        Self::connect_with(ConnectOptions::new(), url, prefix).await
    }

    /// Connects with credentials or certificates.
    pub async fn connect_with(options: ConnectOptions, url: &str, prefix: &str) -> Self {
        let disconnects = Arc::new(AtomicUsize::new(0));
        let counter = disconnects.clone();
        let options = options
            .name("test")
            .request_timeout(Some(Duration::from_secs(5)))
            .reconnect_delay_callback(|_| Duration::from_millis(50))
            .event_callback(move |event| {
                if matches!(event, Event::Disconnected) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                std::future::ready(())
            });
        let servers: Vec<&str> = url.split(',').collect();
        let nats = options.connect(servers).await.unwrap_or_else(|e| panic!("connect to {url}: {e}"));
        let js = jetstream::new(nats.clone());
        let names = Names::new(prefix.parse().expect("a prefix"));
        Self { nats, js, names, disconnects }
    }

    /// How often this connection was lost.
    pub fn disconnects(&self) -> usize {
        self.disconnects.load(Ordering::Relaxed)
    }

    /// Waits until the server answers on this connection, as after its restart.
    #[track_caller]
    pub fn reachable(&self) -> impl Future<Output = ()> {
        eventually("the server answers", async || self.js.query_account().await.map(|_| ()).map_err(|e| e.to_string()))
    }

    /// The subject of one task.
    pub fn subject(&self, key: &str) -> String {
        format!("{}.tasks.{key}", self.names.prefix())
    }

    /// Publishes and waits for the ack: the sequence, or the code of the server's refusal.
    pub async fn send(&self, publish: Publish) -> Result<u64, u64> {
        let Publish { subject, headers, body } = publish;
        // Empty headers would be sent as some bytes of header, which count towards the largest message.
        let answer = match headers.is_empty() {
            true => self.nats.request(subject.clone(), body.into()).await,
            false => self.nats.request_with_headers(subject.clone(), headers, body.into()).await,
        };
        let answer = answer.unwrap_or_else(|e| panic!("no answer to a publish on {subject}: {e}"));
        let answer: Value = serde_json::from_slice(&answer.payload).expect("a publish ack is JSON");
        match answer["error"]["err_code"].as_u64() {
            Some(code) => Err(code),
            None => Ok(answer["seq"].as_u64().expect("a publish ack has a sequence")),
        }
    }

    /// Publishes a task under `<queue>.<id>`.
    pub async fn try_publish(&self, key: &str, task: &Value) -> Result<u64, u64> {
        self.send(Publish::new(self.subject(key), task.to_string())).await
    }

    /// The same where a refusal is wrong.
    #[track_caller]
    pub fn publish<'a>(&'a self, key: &'a str, task: &'a Value) -> impl Future<Output = u64> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.try_publish(key, task).await;
            answer.unwrap_or_else(|code| panic!("{caller}: the server refused {key} with {code}"))
        }
    }

    /// Publishes many at once and returns their sequences.
    pub async fn publish_all(&self, tasks: &[(String, Value)]) -> Vec<u64> {
        stream::iter(tasks).map(|(key, task)| self.publish(key, task)).buffered(256).collect().await
    }

    /// Revision and bytes of a record, by a plain KV get.
    pub async fn get(&self, bucket: &str, key: &str) -> Result<Option<(u64, Vec<u8>)>, String> {
        let store = self.js.get_key_value(bucket).await.map_err(|e| format!("bucket {bucket}: {e}"))?;
        let entry = store.entry(key).await.map_err(|e| format!("key {key}: {e}"))?;
        let value = entry.filter(|entry| entry.operation == kv::Operation::Put);
        Ok(value.map(|entry| (entry.revision, entry.value.to_vec())))
    }

    /// Revision and record of a task.
    pub async fn try_record(&self, key: &str) -> Result<Option<(u64, TaskRecord)>, String> {
        let found = self.get(&self.names.records_bucket(), key).await?;
        found.map(|(revision, bytes)| Ok((revision, decode(&bytes)?))).transpose()
    }

    /// The record of a task, if there is one.
    #[track_caller]
    pub fn record<'a>(&'a self, key: &'a str) -> impl Future<Output = Option<TaskRecord>> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let found = self.try_record(key).await.unwrap_or_else(|e| panic!("{caller}: record {key}: {e}"));
            found.map(|(_, record)| record)
        }
    }

    /// Waits until the record of `key` is as `wanted` says.
    #[track_caller]
    pub fn record_where<'a>(
        &'a self,
        key: &'a str,
        what: impl Into<String> + 'a,
        wanted: impl Fn(&TaskRecord) -> bool + 'a,
    ) -> impl Future<Output = TaskRecord> + 'a {
        let what = format!("record of {key}: {}", what.into());
        let probe = async move || match self.try_record(key).await? {
            Some((_, record)) if wanted(&record) => Ok(record),
            seen => Err(describe(seen)),
        };
        // Called here and not in an async block, so that a failure names the caller.
        eventually(what, probe)
    }

    /// Waits for a record in this state.
    #[track_caller]
    pub fn in_state<'a>(&'a self, key: &'a str, state: State) -> impl Future<Output = TaskRecord> + 'a {
        self.record_where(key, state.as_str(), move |record| record.state == state)
    }

    /// Waits for the end of whatever run of `key` there is.
    #[track_caller]
    pub fn ended<'a>(&'a self, key: &'a str) -> impl Future<Output = TaskRecord> + 'a {
        self.record_where(key, "terminal", |record| record.state.is_terminal())
    }

    /// Waits for the end of the run with this sequence.
    #[track_caller]
    pub fn run_ended<'a>(&'a self, key: &'a str, sequence: u64) -> impl Future<Output = TaskRecord> + 'a {
        let what = format!("terminal with sequence {sequence}");
        self.record_where(key, what, move |record| record.state.is_terminal() && record.sequence == sequence)
    }

    /// Publishes a task and waits for its end.
    #[track_caller]
    pub fn run<'a>(&'a self, key: &'a str, task: &'a Value) -> impl Future<Output = TaskRecord> + 'a {
        let (publish, caller) = (self.publish(key, task), std::panic::Location::caller());
        async move {
            let sequence = publish.await;
            let what = format!("end of {key}, published at {caller}");
            eventually(what, async || match self.try_record(key).await? {
                Some((_, record)) if record.state.is_terminal() && record.sequence == sequence => Ok(record),
                seen => Err(describe(seen)),
            })
            .await
        }
    }

    /// A stream by its name.
    pub async fn stream(&self, name: &str) -> Stream {
        self.js.get_stream(name).await.unwrap_or_else(|e| panic!("stream {name}: {e}"))
    }

    /// Every message of a stream whose subject fits `filter`, in order.
    pub async fn messages(&self, stream: &str, filter: &str) -> Vec<StreamMessage> {
        let stream = self.stream(stream).await;
        let (mut found, mut next) = (Vec::new(), 1);
        loop {
            match stream.get_first_raw_message_by_subject(filter, next).await {
                Ok(message) => {
                    next = message.sequence + 1;
                    found.push(message);
                }
                Err(e) if matches!(e.kind(), LastRawMessageErrorKind::NoMessageFound) => return found,
                Err(e) => panic!("reading {filter}: {e}"),
            }
        }
    }

    /// The dead letters of one task.
    pub async fn dead(&self, key: &str) -> Vec<StreamMessage> {
        let subject = format!("{}.dead.{key}", self.names.prefix());
        self.messages(&self.names.dead_stream(), &subject).await
    }

    /// Waits for the first dead letter of one task.
    #[track_caller]
    pub fn dead_letter<'a>(&'a self, key: &'a str) -> impl Future<Output = StreamMessage> + 'a {
        let what = format!("a dead letter of {key}");
        let probe = async move || self.dead(key).await.into_iter().next().ok_or_else(|| "none".to_owned());
        eventually(what, probe)
    }

    /// The queued or running message of a task.
    pub async fn message(&self, key: &str) -> Option<StreamMessage> {
        let subject = self.subject(key);
        match self.stream(&self.names.tasks_stream()).await.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Some(message),
            Err(e) if matches!(e.kind(), LastRawMessageErrorKind::NoMessageFound) => None,
            Err(e) => panic!("reading {subject}: {e}"),
        }
    }

    /// Waits until the message of a task is out of the stream: acked, terminated or deleted.
    #[track_caller]
    pub fn message_gone<'a>(&'a self, key: &'a str) -> impl Future<Output = ()> + 'a {
        let what = format!("the message of {key} gone");
        let probe = async move || match self.message(key).await {
            None => Ok(()),
            Some(message) => Err(format!("sequence {} is there", message.sequence)),
        };
        eventually(what, probe)
    }

    /// Waits until nothing at all is queued or running.
    pub async fn drained(&self) {
        let name = self.names.tasks_stream();
        eventually("no task left in the stream", async || {
            let mut stream = self.js.get_stream(&name).await.map_err(|e| e.to_string())?;
            match stream.info().await.map_err(|e| e.to_string())?.state.messages {
                0 => Ok(()),
                left => Err(format!("{left} left")),
            }
        })
        .await;
    }

    /// The consumer of one queue, once a worker has made it.
    pub async fn consumer(&self, queue: &str) -> consumer::Info {
        let stream = self.stream(&self.names.tasks_stream()).await;
        eventually(format!("a consumer of {queue}"), async || {
            let consumer = stream.get_consumer::<pull::Config>(queue).await.map_err(|e| e.to_string())?;
            Ok(consumer.cached_info().clone())
        })
        .await
    }

    /// One agent's record.
    pub async fn agent(&self, id: &str) -> Result<Option<AgentRecord>, String> {
        let found = self.get(&self.names.agents_bucket(), id).await?;
        found.map(|(_, bytes)| decode(&bytes)).transpose()
    }

    /// The ids of all agents in the registry.
    pub async fn agents(&self) -> BTreeSet<String> {
        let store = self.js.get_key_value(self.names.agents_bucket()).await.expect("the registry is there");
        let keys = store.keys().await.expect("its keys can be read");
        keys.map(|key| key.expect("a key")).collect().await
    }

    /// Waits until the registry says so of an agent.
    #[track_caller]
    pub fn agent_where<'a>(
        &'a self,
        id: &'a str,
        what: impl Into<String> + 'a,
        wanted: impl Fn(&AgentRecord) -> bool + 'a,
    ) -> impl Future<Output = AgentRecord> + 'a {
        let what = format!("agent {id}: {}", what.into());
        let probe = async move || match self.agent(id).await? {
            Some(agent) if wanted(&agent) => Ok(agent),
            seen => Err(format!("{seen:?}")),
        };
        eventually(what, probe)
    }

    /// Waits until the registry says that an agent has this status.
    #[track_caller]
    pub fn agent_is<'a>(&'a self, id: &'a str, status: AgentStatus) -> impl Future<Output = AgentRecord> + 'a {
        self.agent_where(id, status.to_string(), move |agent| agent.status == status)
    }
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("{e} in {}", String::from_utf8_lossy(bytes)))
}

fn describe(seen: Option<(u64, TaskRecord)>) -> String {
    match seen {
        Some((_, record)) => serde_json::to_string(&record).expect("a record is JSON"),
        None => "no record".into(),
    }
}
