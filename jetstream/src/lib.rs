//! The JetStream calls Shoal makes, each answered with the server's own verdict: stored, refused with which code, or
//! unknown. A leaf between `schemas` and the two programs; decisions live with them.
//!
//! The client crate's own wrappers hide the error codes that the protocol turns on (10071, 10077, 10158, 10164), so the
//! requests are spoken here directly.

mod account;
mod clock;
mod connect;
mod consumer;
mod publish;
mod read;
mod stream;

pub use account::{Account, Limits};
pub use connect::{ConnectError, ConnectSettings, Connection, Link};
pub use consumer::ConsumerState;
pub use publish::{PublishError, Stored};
pub use read::{Page, StoredMessage, UnreadMessage};
pub use stream::{Copies, Copy, Difference, Ensure, Ensured, Plan, StreamInfo, StreamLook, StreamState, Subjects};

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::Statistics;
use async_nats::client::{Request, RequestErrorKind};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No such stream.
pub const STREAM_NOT_FOUND: u32 = 10059;
/// No such consumer.
pub const CONSUMER_NOT_FOUND: u32 = 10014;
/// A consumer of this name exists with another configuration.
pub const CONSUMER_EXISTS: u32 = 10148;
/// A stream of this name exists with another configuration.
pub const STREAM_NAME_IN_USE: u32 = 10058;
/// No message under this sequence or subject.
pub const MESSAGE_NOT_FOUND: u32 = 10037;
/// Delete: no message under this sequence.
pub const MESSAGE_GONE: u32 = 10057;
/// Compare-and-set: the last sequence is another one.
pub const WRONG_LAST_SEQUENCE: u32 = 10071;
/// Compare-and-set: another write of this subject is under way, undecided.
pub const WRONG_LAST_SEQUENCE_UNDECIDED: u32 = 10164;
/// The subject holds its one message: the id is locked.
pub const SUBJECT_LOCKED: u32 = 10077;
/// A publish with the same message id is under way, undecided.
pub const DUPLICATE_UNDECIDED: u32 = 10158;
/// The message is larger than the stream takes.
pub const MESSAGE_TOO_LARGE: u32 = 10054;

/// How long one call to the server may take before its outcome counts as unknown.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a JetStream API call gave no answer of its own kind.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server said no.
    #[error("{description} ({err_code})")]
    Refused {
        /// JetStream's own code.
        err_code: u32,
        /// JetStream's own words.
        description: String,
    },
    /// Nobody answers: JetStream is off, its leader is being elected, or the permission is missing.
    #[error("no JetStream answers on `{subject}`")]
    NoResponders {
        /// What was asked.
        subject: String,
    },
    /// No answer in time; whether it was done is unknown.
    #[error("no answer on `{subject}` in time")]
    TimedOut {
        /// What was asked.
        subject: String,
    },
    /// The connection, or the request itself, is broken.
    #[error("request on `{subject}` failed: {why}")]
    Failed {
        /// What was asked.
        subject: String,
        /// The client's words.
        why: String,
    },
    /// The answer is not what the API promises.
    #[error("unreadable answer on `{subject}`")]
    Unreadable {
        /// What was asked.
        subject: String,
        /// Where it differs.
        source: serde_json::Error,
    },
}

impl ApiError {
    /// The server's code, if it said no.
    pub fn err_code(&self) -> Option<u32> {
        match self {
            Self::Refused { err_code, .. } => Some(*err_code),
            _ => None,
        }
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoResponders { .. } | Self::TimedOut { .. } | Self::Failed { .. } => true,
            // 10008 system temporarily unavailable, 10023 insufficient resources.
            Self::Refused { err_code, .. } => matches!(err_code, 10008 | 10023),
            Self::Unreadable { .. } => false,
        }
    }
}

/// JetStream over one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JetStream {
    client: async_nats::Client,
    clock: Arc<clock::Clock>,
    connects: Arc<Statistics>,
    max_payload: Arc<Mutex<Option<(Instant, usize)>>>,
}

/// How long the largest payload is believed: to ask the client for it is to copy all that the server said of itself.
const BELIEVED: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Envelope {
    error: Option<Failure>,
}

impl JetStream {
    /// Speaks over `client`.
    pub fn new(client: async_nats::Client) -> Self {
        let connects = client.statistics();
        Self { client, clock: Arc::default(), connects, max_payload: Arc::default() }
    }

    /// How often the connection was made; counted before anything is read from the new one.
    pub fn connects(&self) -> u64 {
        self.connects.connects.load(Ordering::Relaxed)
    }

    /// Largest message that the server takes, in bytes, headers included.
    pub fn max_payload(&self) -> usize {
        let mut believed = self.max_payload.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match *believed {
            Some((asked, bytes)) if asked.elapsed() < BELIEVED => bytes,
            _ => believed.insert((Instant::now(), self.client.server_info().max_payload)).1,
        }
    }

    /// The connection below.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// One request, one reply, on the client's shared inbox.
    pub async fn request(&self, subject: &str, payload: Bytes) -> Result<async_nats::Message, ApiError> {
        self.request_within(subject, payload, CALL_TIMEOUT).await
    }

    /// The same with its own time limit.
    pub async fn request_within(
        &self,
        subject: &str,
        payload: Bytes,
        within: Duration,
    ) -> Result<async_nats::Message, ApiError> {
        let request = Request::new().payload(payload).timeout(Some(within));
        self.client.send_request(subject.to_owned(), request).await.map_err(|error| {
            let subject = subject.to_owned();
            match error.kind() {
                RequestErrorKind::NoResponders => ApiError::NoResponders { subject },
                RequestErrorKind::TimedOut => ApiError::TimedOut { subject },
                _ => ApiError::Failed { subject, why: error.to_string() },
            }
        })
    }

    /// A call of the JetStream API: `verb` without `$JS.API.`.
    pub async fn api<A: DeserializeOwned>(&self, verb: &str, body: &impl Serialize) -> Result<A, ApiError> {
        let subject = format!("$JS.API.{verb}");
        let body = serde_json::to_vec(body).expect("our own request types always serialize");
        let reply = self.request(&subject, body.into()).await?;
        let unreadable = |source| ApiError::Unreadable { subject: subject.clone(), source };
        let envelope: Envelope = serde_json::from_slice(&reply.payload).map_err(unreadable)?;
        if let Some(Failure { err_code, description }) = envelope.error {
            return Err(ApiError::Refused { err_code, description });
        }
        serde_json::from_slice(&reply.payload).map_err(unreadable)
    }
}
