//! Storing one message, plainly or by compare-and-set.

use async_nats::HeaderMap;
use async_nats::client::{Request, RequestErrorKind};
use bytes::Bytes;
use schemas::header;
use serde::Deserialize;

use crate::{
    CALL_TIMEOUT, DUPLICATE_UNDECIDED, Failure, JetStream, SUBJECT_LOCKED, WRONG_LAST_SEQUENCE,
    WRONG_LAST_SEQUENCE_UNDECIDED,
};

/// The server stored it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the stream; of a KV entry, its revision.
    pub sequence: u64,
    /// It was stored before, under the same message id.
    pub duplicate: bool,
}

/// Why a publish was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Compare-and-set: another write came first, or is under way.
    #[error("another write came first ({err_code})")]
    Conflict {
        /// 10071, or 10164 for one not yet decided.
        err_code: u32,
    },
    /// The subject holds its one message.
    #[error("the subject is taken")]
    Locked,
    /// Refused for good.
    #[error("{description} ({err_code})")]
    Refused {
        /// JetStream's own code.
        err_code: u32,
        /// JetStream's own words.
        description: String,
    },
    /// Certainly not stored; the same message may be sent again.
    #[error("not stored: {why}")]
    NotStored {
        /// Why.
        why: String,
    },
    /// No answer: stored or not. The same message with the same message id may be sent again.
    #[error("no answer: stored or not is unknown: {why}")]
    Unknown {
        /// Why.
        why: String,
    },
    /// The client refuses to send it: too large, or not a subject.
    #[error("cannot be sent: {why}")]
    Unsendable {
        /// Why.
        why: String,
    },
}

#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Failure>,
}

impl JetStream {
    /// Stores one message and waits for the server's word.
    pub async fn publish(&self, subject: String, headers: HeaderMap, payload: Bytes) -> Result<Stored, PublishError> {
        let mut request = Request::new().payload(payload).timeout(Some(CALL_TIMEOUT));
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        let reply = self.client().send_request(subject, request).await.map_err(|error| {
            let why = error.to_string();
            match error.kind() {
                RequestErrorKind::NoResponders => PublishError::NotStored { why },
                RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                    PublishError::Unsendable { why }
                }
                _ => PublishError::Unknown { why },
            }
        })?;
        let ack: PubAck = serde_json::from_slice(&reply.payload)
            .map_err(|error| PublishError::Unknown { why: format!("unreadable acknowledgement: {error}") })?;
        match ack.error {
            None => Ok(Stored { sequence: ack.seq, duplicate: ack.duplicate }),
            Some(Failure { err_code, description }) => Err(match err_code {
                WRONG_LAST_SEQUENCE | WRONG_LAST_SEQUENCE_UNDECIDED => PublishError::Conflict { err_code },
                SUBJECT_LOCKED => PublishError::Locked,
                DUPLICATE_UNDECIDED => PublishError::NotStored { why: description },
                // 10008 system temporarily unavailable, 10009 peer remapped, 10013 and 10074 no leader or quorum.
                10008 | 10009 | 10013 | 10074 => PublishError::NotStored { why: description },
                _ => PublishError::Refused { err_code, description },
            }),
        }
    }

    /// Stores a message only if the newest on its subject has sequence `expected` (0: there is none).
    pub async fn compare_and_set(
        &self,
        subject: String,
        expected: u64,
        mut headers: HeaderMap,
        payload: Bytes,
    ) -> Result<u64, PublishError> {
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        self.publish(subject, headers, payload).await.map(|stored| stored.sequence)
    }
}
