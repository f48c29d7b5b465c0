//! What a worker writes: task records by compare-and-set, their events, dead letters.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use jetstream::{ApiError, JetStream, PublishError};
use schemas::order::CLOCK_DOUBT;
use schemas::record::TaskRecord;
use schemas::{HumanDuration, Names, Order, TaskKey, Timestamp, header};

/// Room for most records, so that writing one down does not grow it again and again.
const USUAL_BYTES: usize = 1024;

/// Records and dead letters of one fleet.
#[derive(Clone, Debug)]
pub struct Store {
    js: JetStream,
    names: Names,
    records_stream: String,
    dead_stream: String,
    ttl: String,
}

/// A record as it stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What the next compare-and-set must expect; 0 where nothing ever was.
    pub revision: u64,
    /// The record; `None` where there is none, or only a marker.
    pub record: Option<TaskRecord>,
}

/// A dead letter to be written.
#[derive(Clone, Debug)]
pub struct Letter<'a> {
    /// Queue and id tokens, valid or not.
    pub tokens: (&'a str, &'a str),
    /// Where the task came from.
    pub subject: &'a str,
    /// Stream sequence of the task.
    pub sequence: u64,
    /// When that was stored.
    pub stored_at: Timestamp,
    /// Attempts spent.
    pub attempts: u32,
    /// Why.
    pub error: &'a schemas::TaskError,
    /// The task's own headers.
    pub headers: &'a HeaderMap,
    /// The task as it came.
    pub payload: &'a Bytes,
}

/// Whether these bytes are a record by their looks, if not by our types.
fn is_some_record(payload: &[u8]) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_slice(payload).ok();
    value.is_some_and(|value| value["sequence"].is_u64() && value["state"].is_string())
}

/// Text made fit for a header: one line, bounded.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1024).collect()
}

fn own_headers(letter: &Letter<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::REASON, letter.error.code.as_str());
    headers.insert(header::MESSAGE, line(&letter.error.message));
    headers.insert(header::SEQUENCE, letter.sequence.to_string());
    headers.insert(header::ATTEMPTS, letter.attempts.to_string());
    headers.insert(header::SUBJECT, line(letter.subject));
    headers
}

impl Store {
    /// Writes under `names`; terminal records stay for `kept`.
    pub fn new(js: JetStream, names: Names, kept: HumanDuration) -> Self {
        Self {
            records_stream: names.records_stream(),
            dead_stream: names.dead_stream(),
            // Whole seconds, at least one: what the server takes.
            ttl: kept.0.as_secs().max(1).to_string(),
            js,
            names,
        }
    }

    /// The record, read from the leader.
    pub async fn read(&self, key: &TaskKey) -> Result<Standing, ApiError> {
        let Some(message) = self.js.last(&self.records_stream, &self.names.record_subject(key)).await? else {
            return Ok(Standing { revision: 0, record: None });
        };
        let record = match serde_json::from_slice(&message.payload) {
            _ if message.is_marker() => None,
            Ok(record) => Some(record),
            // Of a newer version, perhaps finished: not ours to write over. What is no record at all is.
            Err(source) if is_some_record(&message.payload) => {
                let subject = self.names.record_subject(key);
                return Err(ApiError::Unreadable { subject, source });
            }
            Err(_) => None,
        };
        Ok(Standing { revision: message.sequence, record })
    }

    /// Whether the message of this very run is in the stream now, as its leader says.
    pub async fn holds(&self, key: &TaskKey, sequence: u64, stored_at: Timestamp) -> Result<bool, ApiError> {
        let message = self.js.at(&self.names.tasks_stream(), sequence).await?;
        Ok(message
            .is_some_and(|message| message.stored_at == stored_at && message.subject == self.names.task_subject(key)))
    }

    /// How a record's run stands to run `sequence`, stored at `stored_at`; where numbers and times disagree, the stream
    /// is asked. Never [`Order::Unclear`].
    pub async fn order(
        &self,
        record: &TaskRecord,
        key: &TaskKey,
        sequence: u64,
        stored_at: Timestamp,
    ) -> Result<Order, ApiError> {
        let order = record.order_to(sequence, stored_at);
        if order != Order::Unclear {
            return Ok(order);
        }
        if !self.holds(key, sequence, stored_at).await? {
            return Ok(Order::Later);
        }
        if record.sequence >= sequence {
            // One message a subject: nothing but a stream that went back explains the higher number.
            tracing::warn!(
                task = %key, sequence, record_sequence = record.sequence, record_state = record.state.as_str(),
                "a relic: the record is of a run from before the stream of tasks was set back; written over"
            );
        }
        Ok(Order::Earlier)
    }

    /// Writes if the newest revision is `expected`.
    pub async fn write(&self, key: &TaskKey, expected: u64, record: &TaskRecord) -> Result<(u64, Bytes), PublishError> {
        let mut headers = HeaderMap::new();
        if record.state.is_terminal() {
            headers.insert(header::NATS_TTL, self.ttl.as_str());
        } else {
            headers.insert(header::STATE, record.state.as_str());
        }
        let mut body = Vec::with_capacity(USUAL_BYTES);
        serde_json::to_writer(&mut body, record).expect("a record is plain data");
        let body = Bytes::from(body);
        let subject = self.names.record_subject(key);
        let revision = self.js.compare_and_set(subject, expected, headers, body.clone()).await?;
        Ok((revision, body))
    }

    /// Tells whoever waits. Not stored: the record is the truth, this is the wake-up.
    pub async fn tell(&self, key: &TaskKey, revision: u64, body: Bytes) {
        let mut headers = HeaderMap::new();
        headers.insert(header::REVISION, revision.to_string());
        let subject = self.names.event_subject(key);
        if let Err(error) = self.js.client().publish_with_headers(subject, headers, body).await {
            tracing::debug!(task = %key, %error, "event not sent");
        }
    }

    /// Tells that an end was not applied, because another start of the task is ahead.
    pub async fn tell_superseded(&self, key: &TaskKey, body: Bytes) {
        if let Err(error) = self.js.client().publish(self.names.superseded_subject(key), body).await {
            tracing::debug!(task = %key, %error, "event not sent");
        }
    }

    /// Whether the newest dead letter on these tokens is of this very run.
    pub async fn has_letter(
        &self,
        tokens: (&str, &str),
        (sequence, stored_at): (u64, Timestamp),
    ) -> Result<bool, ApiError> {
        let subject = self.names.dead_subject_raw(tokens.0, tokens.1);
        let newest = self.js.last(&self.dead_stream, &subject).await?;
        Ok(newest.is_some_and(|letter| {
            // One that was written long before the task was stored is of a run from before the stream was set back.
            let after = letter.stored_at.plus(CLOCK_DOUBT) >= stored_at;
            after && letter.header(header::SEQUENCE) == Some(&sequence.to_string())
        }))
    }

    /// Writes a dead letter, again and again until it is stored or `give_up` says so. `false`: given up.
    pub async fn bury(&self, letter: &Letter<'_>, give_up: impl Fn() -> bool) -> bool {
        let mut headers = HeaderMap::new();
        let own = own_headers(letter);
        for (name, values) in letter.headers.iter() {
            let text: &str = name.as_ref();
            // The server's are not the task's, and ours are not for a task to set.
            if !text.to_ascii_lowercase().starts_with("nats-") && own.get(name.clone()).is_none() {
                values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
            }
        }
        for (name, values) in own.iter() {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        // A repeat within the server's window stores nothing new.
        let ((queue, id), at) = (letter.tokens, letter.stored_at.as_millis());
        headers.insert(header::NATS_MSG_ID, format!("dead.{queue}.{id}.{}.{at}", letter.sequence));
        let subject = self.names.dead_subject_raw(letter.tokens.0, letter.tokens.1);
        let mut pause = Duration::from_millis(50);
        let mut bare = false;
        loop {
            match self.js.publish(subject.clone(), headers.clone(), letter.payload.clone()).await {
                Ok(_) => return true,
                Err(error @ (PublishError::Refused { .. } | PublishError::Unsendable { .. })) if !bare => {
                    // The task's own headers and ours may be too much together; the bytes matter more.
                    tracing::warn!(subject, %error, "dead letter refused, trying without the task's own headers");
                    bare = true;
                    headers = own_headers(letter);
                    continue;
                }
                Err(error) if give_up() => {
                    tracing::warn!(subject, %error, "dead letter not written; the next delivery writes it");
                    return false;
                }
                Err(error) => tracing::warn!(subject, %error, "dead letter not written, trying again"),
            }
            tokio::time::sleep(pause).await;
            // It may have been stored all the same. No message id does this: a letter carries none of the server's headers.
            if let Ok(true) = self.has_letter(letter.tokens, (letter.sequence, letter.stored_at)).await {
                return true;
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }
}
