//! Consumers of queues: made if missing, changed, paused. Deleted only to be made again where one has left messages
//! behind, because one with acks pending gives out again at once what it had given out.

use std::time::Duration;

use schemas::Timestamp;
use schemas::stores::ConsumerSpec;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{ApiError, CONSUMER_EXISTS, CONSUMER_NOT_FOUND, JetStream};

/// What the server says of a consumer.
#[derive(Clone, Debug, Deserialize)]
pub struct ConsumerState {
    /// Its name: the queue's.
    pub name: String,
    /// Its configuration as it stands.
    pub config: Map<String, Value>,
    /// What was handed out last.
    #[serde(default)]
    pub delivered: SequencePair,
    /// Everything up to here is settled.
    #[serde(default)]
    pub ack_floor: SequencePair,
    /// Handed out and not settled, retries waiting for their time included.
    #[serde(default)]
    pub num_ack_pending: u64,
    /// Of these, handed out more than once.
    #[serde(default)]
    pub num_redelivered: u64,
    /// Open pulls.
    #[serde(default)]
    pub num_waiting: u64,
    /// Never handed out yet.
    #[serde(default)]
    pub num_pending: u64,
    /// Whether delivery is halted.
    #[serde(default)]
    pub paused: bool,
}

/// A place in the consumer's and in the stream's counting.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SequencePair {
    /// Deliveries.
    pub consumer_seq: u64,
    /// Messages.
    pub stream_seq: u64,
}

impl ConsumerState {
    /// The lease of a delivery.
    pub fn ack_wait(&self) -> Duration {
        Duration::from_nanos(self.config.get("ack_wait").and_then(Value::as_u64).unwrap_or(30_000_000_000))
    }

    /// Most deliveries out at once.
    pub fn max_ack_pending(&self) -> u64 {
        self.config.get("max_ack_pending").and_then(Value::as_u64).unwrap_or(0)
    }

    /// Delivery is halted until then.
    pub fn paused_until(&self) -> Option<Timestamp> {
        self.config.get("pause_until")?.as_str()?.parse().ok()
    }
}

#[derive(Deserialize)]
struct List {
    total: u64,
    #[serde(default)]
    consumers: Vec<ConsumerState>,
}

impl JetStream {
    /// What the server says of a consumer; `None` if there is none.
    pub async fn consumer(&self, stream: &str, name: &str) -> Result<Option<ConsumerState>, ApiError> {
        match self.api(&format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
            Ok(state) => Ok(Some(state)),
            Err(error) if error.err_code() == Some(CONSUMER_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every consumer of a stream.
    pub async fn consumers(&self, stream: &str) -> Result<Vec<ConsumerState>, ApiError> {
        let mut all = Vec::new();
        loop {
            let verb = format!("CONSUMER.LIST.{stream}");
            let page: List = self.api(&verb, &json!({ "offset": all.len() })).await?;
            let last = page.consumers.is_empty();
            all.extend(page.consumers);
            if last || all.len() as u64 >= page.total {
                return Ok(all);
            }
        }
    }

    /// The consumer of `spec`, made if missing. One that exists is taken as it is: its settings are the queue's.
    pub async fn ensure_consumer(&self, stream: &str, spec: &ConsumerSpec) -> Result<ConsumerState, ApiError> {
        if let Some(state) = self.consumer(stream, &spec.name).await? {
            return Ok(state);
        }
        let verb = format!("CONSUMER.CREATE.{stream}.{}.{}", spec.name, spec.filter_subject);
        let body = json!({ "stream_name": stream, "config": spec, "action": "create" });
        match self.api(&verb, &body).await {
            Ok(state) => Ok(state),
            // Somebody else made it in between.
            Err(error) if error.err_code() == Some(CONSUMER_EXISTS) => {
                self.consumer(stream, &spec.name).await?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Changes settings of a consumer and leaves the rest as it stands.
    pub async fn update_consumer(
        &self,
        stream: &str,
        state: &ConsumerState,
        changes: &[(&str, Value)],
    ) -> Result<ConsumerState, ApiError> {
        let mut config = state.config.clone();
        for (name, value) in changes {
            config.insert((*name).to_owned(), value.clone());
        }
        let filter = config.get("filter_subject").and_then(Value::as_str).unwrap_or_default();
        let verb = format!("CONSUMER.CREATE.{stream}.{}.{filter}", state.name);
        self.api(&verb, &json!({ "stream_name": stream, "config": config, "action": "update" })).await
    }

    /// Deletes a consumer and makes it again with the same settings, from the first message on. All that it had handed out
    /// goes out once more. Whoever pulls meanwhile may make it again first; then theirs stays.
    pub async fn recreate_consumer(&self, stream: &str, state: &ConsumerState) -> Result<(), ApiError> {
        let mut config = state.config.clone();
        // What skips or gives up messages is what left some behind.
        config.retain(|name, _| !matches!(name.as_str(), "opt_start_seq" | "opt_start_time" | "backoff"));
        config.insert("deliver_policy".into(), "all".into());
        config.insert("max_deliver".into(), (-1).into());
        let filter = config.get("filter_subject").and_then(Value::as_str).unwrap_or_default();
        let create = format!("CONSUMER.CREATE.{stream}.{}.{filter}", state.name);
        let body = json!({ "stream_name": stream, "config": config, "action": "create" });
        match self.api::<Value>(&format!("CONSUMER.DELETE.{stream}.{}", state.name), &json!({})).await {
            Ok(_) => {}
            Err(error) if error.err_code() == Some(CONSUMER_NOT_FOUND) => {}
            Err(error) => return Err(error),
        }
        match self.api::<Value>(&create, &body).await {
            Ok(_) => Ok(()),
            Err(error) if error.err_code() == Some(CONSUMER_EXISTS) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Halts delivery until `until`. A moment just ahead is how to resume: a plain resume does not wake the pulls that
    /// wait (probed on 2.15.1).
    pub async fn pause_consumer(&self, stream: &str, name: &str, until: Timestamp) -> Result<(), ApiError> {
        let verb = format!("CONSUMER.PAUSE.{stream}.{name}");
        self.api::<Value>(&verb, &json!({ "pause_until": until })).await.map(|_| ())
    }
}
