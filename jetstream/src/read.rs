//! Reading stored messages: from the leader, or many at a time.

use async_nats::{HeaderMap, StatusCode};
use base64::Engine;
use bytes::Bytes;
use futures_util::StreamExt;
use schemas::{Timestamp, header};
use serde::Deserialize;
use serde_json::json;

use crate::{ApiError, CALL_TIMEOUT, JetStream, MESSAGE_GONE, MESSAGE_NOT_FOUND};

/// One message as a stream holds it.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// Its subject.
    pub subject: String,
    /// Its place in the stream; of a KV entry, its revision.
    pub sequence: u64,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub payload: Bytes,
}

impl StoredMessage {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// Whether it only marks that a KV entry was deleted or expired.
    pub fn is_marker(&self) -> bool {
        self.headers.get(header::KV_OPERATION).is_some() || self.headers.get(header::NATS_MARKER_REASON).is_some()
    }
}

/// One message with its header block as it lies in the stream. The client crate ends the connection over a block that it
/// cannot read (probed on 0.51), so what may be broken is fetched like this.
#[derive(Clone, Debug)]
pub struct UnreadMessage {
    /// Its subject.
    pub subject: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// `NATS/1.0` and what follows; empty without headers.
    pub header_block: Vec<u8>,
    /// Its body.
    pub payload: Bytes,
}

impl UnreadMessage {
    /// Whether the client can read it, by the client's own rules.
    pub fn is_readable(&self) -> bool {
        if self.header_block.is_empty() {
            return true;
        }
        let Ok(block) = std::str::from_utf8(&self.header_block) else { return false };
        let mut lines = block.lines();
        let Some(status) = lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) else { return false };
        let status = status.trim().split(' ').next().unwrap_or_default();
        if !status.is_empty() && status.parse::<StatusCode>().is_err() {
            return false;
        }
        lines.filter(|line| !line.is_empty() && !line.starts_with(char::is_whitespace)).all(|line| {
            line.split_once(':').is_some_and(|(name, value)| {
                name.parse::<async_nats::HeaderName>().is_ok() && value.parse::<async_nats::HeaderValue>().is_ok()
            })
        })
    }
}

/// Part of a stream.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In stream order.
    pub messages: Vec<StoredMessage>,
    /// Whether more match behind the last one.
    pub more: bool,
    /// How many of them, as the answering replica counts.
    pub left: u64,
}

#[derive(Deserialize)]
struct GetReply {
    message: RawMessage,
}

#[derive(Deserialize)]
struct RawMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: Timestamp,
}

#[derive(Deserialize)]
struct Done {
    #[serde(default)]
    success: bool,
}

fn decode(text: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
}

/// The header block of a stored message: a version line, then `Name: value` lines.
fn parse_headers(block: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(block).split("\r\n").skip(1) {
        if let Some((name, value)) = line.split_once(':')
            && let (Ok(name), Ok(value)) =
                (name.parse::<async_nats::HeaderName>(), value.trim().parse::<async_nats::HeaderValue>())
        {
            headers.append(name, value);
        }
    }
    headers
}

impl JetStream {
    /// The newest message on `subject` (wildcards allowed), read from the stream's leader.
    pub async fn last(&self, stream: &str, subject: &str) -> Result<Option<StoredMessage>, ApiError> {
        self.message(stream, &json!({ "last_by_subj": subject })).await
    }

    /// The message with this sequence, read from the stream's leader.
    pub async fn at(&self, stream: &str, sequence: u64) -> Result<Option<StoredMessage>, ApiError> {
        self.message(stream, &json!({ "seq": sequence })).await
    }

    /// The first message from sequence `from` on that matches `filter`, its headers unread.
    pub async fn next_unread(&self, stream: &str, filter: &str, from: u64) -> Result<Option<UnreadMessage>, ApiError> {
        self.unread(stream, &json!({ "seq": from.max(1), "next_by_subj": filter })).await
    }

    async fn message(&self, stream: &str, which: &serde_json::Value) -> Result<Option<StoredMessage>, ApiError> {
        Ok(self.unread(stream, which).await?.map(|message| StoredMessage {
            subject: message.subject,
            sequence: message.sequence,
            stored_at: message.stored_at,
            headers: parse_headers(&message.header_block),
            payload: message.payload,
        }))
    }

    async fn unread(&self, stream: &str, which: &serde_json::Value) -> Result<Option<UnreadMessage>, ApiError> {
        match self.api::<GetReply>(&format!("STREAM.MSG.GET.{stream}"), which).await {
            Ok(GetReply { message }) => Ok(Some(UnreadMessage {
                subject: message.subject,
                sequence: message.seq,
                stored_at: message.time,
                header_block: decode(&message.hdrs),
                payload: decode(&message.data).into(),
            })),
            Err(error) if error.err_code() == Some(MESSAGE_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Up to `most` messages from sequence `from` on that match `filter`, by direct reads: any replica, no consumer.
    pub async fn page(&self, stream: &str, filter: &str, from: u64, most: usize) -> Result<Page, ApiError> {
        // The server bounds a reply by bytes too; 8 MB keeps a page of large messages to a moment.
        self.direct(stream, &json!({ "seq": from.max(1), "next_by_subj": filter, "batch": most, "max_bytes": 8 << 20 }))
            .await
    }

    /// Up to `most` messages stored at `at` or later that match `filter`, by direct reads.
    pub async fn page_since(&self, stream: &str, filter: &str, at: Timestamp, most: usize) -> Result<Page, ApiError> {
        let body = json!({ "start_time": at, "next_by_subj": filter, "batch": most, "max_bytes": 8 << 20 });
        self.direct(stream, &body).await
    }

    /// How many messages from sequence `from` on match `filter`. Reads only the first of them.
    pub async fn count_from(&self, stream: &str, filter: &str, from: u64) -> Result<u64, ApiError> {
        let page = self.page(stream, filter, from, 1).await?;
        Ok(page.messages.len() as u64 + page.left)
    }

    /// The newest message of each subject that matches one of `subjects` (wildcards allowed), by direct reads: any
    /// replica, no consumer. The server answers no more than 1,024 at once and refuses what would be more.
    pub async fn newest(&self, stream: &str, subjects: &[String]) -> Result<Vec<StoredMessage>, ApiError> {
        if subjects.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.direct(stream, &json!({ "multi_last": subjects })).await?.messages)
    }

    async fn direct(&self, stream: &str, body: &serde_json::Value) -> Result<Page, ApiError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let failed = |why: String| ApiError::Failed { subject: subject.clone(), why };
        let inbox = self.client().new_inbox();
        let mut replies = self.client().subscribe(inbox.clone()).await.map_err(|error| failed(error.to_string()))?;
        self.client()
            .publish_with_reply(subject.clone(), inbox, body.to_string().into())
            .await
            .map_err(|error| failed(error.to_string()))?;
        let mut page = Page::default();
        loop {
            let reply = tokio::time::timeout(CALL_TIMEOUT, replies.next())
                .await
                .map_err(|_| ApiError::TimedOut { subject: subject.clone() })?
                .ok_or_else(|| failed("the connection closed".into()))?;
            let headers = reply.headers.unwrap_or_default();
            let number = |name: &str| headers.get(name).and_then(|value| value.as_str().parse::<u64>().ok());
            match reply.status {
                None => {
                    let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
                    let stored_at = headers.get("Nats-Time-Stamp").and_then(|time| time.as_str().parse().ok());
                    page.messages.push(StoredMessage {
                        subject: text("Nats-Subject").unwrap_or_default(),
                        sequence: number("Nats-Sequence").unwrap_or_default(),
                        stored_at: stored_at.unwrap_or(Timestamp::from_millis(0)),
                        payload: reply.payload,
                        headers,
                    });
                }
                // End of batch.
                Some(status) if status.as_u16() == 204 => {
                    page.left = number("Nats-Num-Pending").unwrap_or_default();
                    page.more = page.left > 0;
                    return Ok(page);
                }
                Some(StatusCode::NOT_FOUND) => return Ok(page),
                Some(StatusCode::NO_RESPONDERS) => return Err(ApiError::NoResponders { subject }),
                Some(status) => {
                    return Err(failed(format!("{status} {}", reply.description.unwrap_or_default())));
                }
            }
        }
    }

    /// Deletes the message with this sequence. `false`: it was gone already.
    pub async fn delete(&self, stream: &str, sequence: u64) -> Result<bool, ApiError> {
        // Overwriting the bytes on disk is not asked for: a task is no secret.
        let body = json!({ "seq": sequence, "no_erase": true });
        match self.api::<Done>(&format!("STREAM.MSG.DELETE.{stream}"), &body).await {
            Ok(done) => Ok(done.success),
            Err(error) if matches!(error.err_code(), Some(MESSAGE_GONE | MESSAGE_NOT_FOUND)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_the_client_cannot_read_is_known_before_it_does() {
        let message = |block: &[u8]| UnreadMessage {
            subject: "a".into(),
            sequence: 1,
            stored_at: Timestamp::from_millis(0),
            header_block: block.to_vec(),
            payload: Bytes::new(),
        };
        for good in
            [&b""[..], b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 404 No\r\n\r\n", "NATS/1.0\r\nA: ü\r\n\r\n".as_bytes()]
        {
            assert!(message(good).is_readable(), "{good:?}");
        }
        for bad in [
            &b"NATS/1.0\r\nA:\xff\r\n\r\n"[..],
            b"NATS/1.0\r\nA: b\rc\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\nA B: c\r\n\r\n",
            b"NATS/1.0 x\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
        ] {
            assert!(!message(bad).is_readable(), "{bad:?}");
        }
    }

    #[test]
    fn a_stored_header_block_reads_back() {
        let headers = parse_headers(b"NATS/1.0\r\nShoal-Reason: timed_out\r\nA: b:c\r\n\r\n");
        assert_eq!(headers.get("Shoal-Reason").unwrap().as_str(), "timed_out");
        assert_eq!(headers.get("A").unwrap().as_str(), "b:c");
    }
}
