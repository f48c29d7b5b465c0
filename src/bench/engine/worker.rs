//! The engine's worker, a process of its own: pull, record, event, ack; nothing else.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context};
use async_nats::{HeaderMap, Message};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use schemas::stores::RECORDS_KEPT;
use schemas::{Names, header};
use serde::{Deserialize, Serialize};

use super::{BoxError, HEAD, QUEUE};

/// What it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Where the server is.
    pub url: String,
    /// The first token of its stores.
    pub prefix: String,
}

/// A pull asks for so many. What `engine-limit` was fastest with.
const BATCH: usize = 200;
/// Jobs in hand at once: no fewer than are ever in flight.
const AT_ONCE: usize = 1_024;

/// Where its writes go.
struct Desk {
    js: Context,
    records: String,
    events: String,
    ttl: String,
}

/// Runs until it is told to stop. `ready` is called once it pulls.
pub async fn run(spec: Spec, ready: impl FnOnce()) -> Result<(), BoxError> {
    let names = Names::new(spec.prefix.parse()?);
    let client = async_nats::ConnectOptions::new().name("shoal bench engine").connect(&spec.url).await?;
    let js = jetstream::new(client);
    let consumer: PullConsumer = js.get_consumer_from_stream::<pull::Config, _, _>(QUEUE, names.tasks_stream()).await?;
    let any: schemas::TaskKey = format!("{QUEUE}.x").parse()?;
    let front = |subject: String| subject.strip_suffix('x').map(str::to_owned).expect("it ends with the id");
    let desk = Arc::new(Desk {
        js,
        records: front(names.record_subject(&any)),
        events: front(names.event_subject(&any)),
        ttl: RECORDS_KEPT.0.as_secs().to_string(),
    });
    let messages = consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .expires(Duration::from_secs(10))
        .heartbeat(Duration::from_secs(4))
        .messages()
        .await?;
    ready();
    let mut jobs = messages
        .map(|message| {
            let desk = desk.clone();
            async move { desk.job(message?.message).await }
        })
        .buffer_unordered(AT_ONCE);
    while let Some(done) = jobs.next().await {
        done?;
    }
    Err("the messages ended".into())
}

impl Desk {
    /// The whole job: its record, created and nothing else; the event; the ack, confirmed.
    async fn job(&self, task: Message) -> Result<(), BoxError> {
        let id = task.subject.rsplit('.').next().unwrap_or_default();
        let mut head = task.payload.get(..HEAD).ok_or("a task without its head")?;
        let _at = head.get_u64();
        let (bytes, same) = (head.get_u32() as usize, head.get_u8() == 1);
        let mut record = BytesMut::with_capacity(bytes);
        record.extend_from_slice(&task.payload[..task.payload.len().min(bytes)]);
        record.resize(bytes, b'r');
        let record = record.freeze();
        let mut headers = HeaderMap::new();
        if same {
            headers.insert(header::NATS_TTL, self.ttl.as_str());
        }
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        let message = PublishMessage::build().payload(record.clone()).headers(headers);
        let stored = self.js.send_publish(format!("{}{id}", self.records), message).await?.await?;
        let (client, event) = (self.js.client(), format!("{}{id}", self.events));
        if same {
            let mut headers = HeaderMap::new();
            headers.insert(header::REVISION, stored.sequence.to_string());
            client.publish_with_headers(event, headers, record).await?;
        } else {
            client.publish(event, record).await?;
        }
        let reply = task.reply.ok_or("a task that cannot be acked")?;
        client.request(reply, Bytes::new()).await?;
        Ok(())
    }
}
