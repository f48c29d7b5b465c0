//! Headers of a stream's messages, without their bodies: an ephemeral consumer that lives for one scan.

use std::time::Duration;

use futures_util::StreamExt;
use jetstream::{ApiError, JetStream};
use serde::Deserialize;
use serde_json::{Value, json};

/// Messages asked for at once.
const BATCH: u64 = 1_000;
/// How long the server keeps the consumer of a scan that broke off.
const ORPHAN: Duration = Duration::from_secs(30);
/// How long one message may take to come.
const NEXT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Created {
    name: String,
}

/// One message of a scan.
pub struct Head<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its sequence.
    pub sequence: u64,
    /// Its headers.
    pub headers: Option<&'a async_nats::HeaderMap>,
}

/// Calls `each` for the messages on `filter` from sequence `from` on, in order, for about `most` of them. Returns whether
/// that was all. What was seen before an error was seen without a gap, so that the next scan may go on behind it.
pub async fn headers(
    js: &JetStream,
    stream: &str,
    filter: &str,
    from: u64,
    most: u64,
    mut each: impl FnMut(Head<'_>),
) -> Result<bool, ApiError> {
    let config = json!({
        "filter_subject": filter, "deliver_policy": "by_start_sequence", "opt_start_seq": from.max(1),
        "ack_policy": "none", "headers_only": true, "mem_storage": true, "num_replicas": 1,
        "inactive_threshold": u64::try_from(ORPHAN.as_nanos()).unwrap_or(u64::MAX),
    });
    let body = json!({ "stream_name": stream, "config": config });
    let Created { name } = js.api(&format!("CONSUMER.CREATE.{stream}"), &body).await?;
    let scanned = read(js, stream, &name, most, &mut each).await;
    // One that stays is deleted by the server.
    let _ = js.api::<Value>(&format!("CONSUMER.DELETE.{stream}.{name}"), &json!({})).await;
    scanned
}

async fn read(
    js: &JetStream,
    stream: &str,
    consumer: &str,
    most: u64,
    each: &mut impl FnMut(Head<'_>),
) -> Result<bool, ApiError> {
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
    let failed = |why: String| ApiError::Failed { subject: subject.clone(), why };
    let inbox = js.client().new_inbox();
    let mut replies = js.client().subscribe(inbox.clone()).await.map_err(|error| failed(error.to_string()))?;
    let mut seen = 0;
    while seen < most {
        let body = json!({ "batch": BATCH, "no_wait": true }).to_string();
        js.client()
            .publish_with_reply(subject.clone(), inbox.clone(), body.into())
            .await
            .map_err(|error| failed(error.to_string()))?;
        for _ in 0..BATCH {
            let reply = tokio::time::timeout(NEXT, replies.next())
                .await
                .map_err(|_| ApiError::TimedOut { subject: subject.clone() })?
                .ok_or_else(|| failed("the connection closed".into()))?;
            match reply.status.map(|status| status.as_u16()) {
                None => {}
                // Nothing left.
                Some(404 | 408) => return Ok(true),
                Some(503) => return Err(ApiError::NoResponders { subject }),
                Some(status) => return Err(failed(format!("{status} {}", reply.description.unwrap_or_default()))),
            }
            let place =
                reply.reply.as_deref().and_then(place).ok_or_else(|| failed("a message without a place".into()))?;
            seen += 1;
            if place.nth != seen {
                return Err(failed("a message was lost on the way".into()));
            }
            each(Head { subject: &reply.subject, sequence: place.sequence, headers: reply.headers.as_ref() });
            if place.pending == 0 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Where a delivered message stands, from its reply subject.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    sequence: u64,
    nth: u64,
    pending: u64,
}

/// `$JS.ACK.<stream>.<consumer>.<count>.<stream seq>.<consumer seq>.<time>.<pending>`, or the longer form with domain and
/// account before the stream and a random token at the end.
fn place(reply: &str) -> Option<Place> {
    let tokens: Vec<&str> = reply.split('.').collect();
    let base = match tokens.len() {
        9 => 4,
        11.. => 6,
        _ => return None,
    };
    let number = |i: usize| tokens.get(base + i)?.parse().ok();
    Some(Place { sequence: number(1)?, nth: number(2)?, pending: number(4)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_message_is_in_its_reply_subject() {
        let expected = Some(Place { sequence: 42, nth: 7, pending: 3 });
        assert_eq!(place("$JS.ACK.S.C.1.42.7.1700000000.3"), expected);
        assert_eq!(place("$JS.ACK._.HASH.S.C.1.42.7.1700000000.3"), expected);
        assert_eq!(place("$JS.ACK._.HASH.S.C.1.42.7.1700000000.3.rand"), expected);
        assert_eq!(place("_INBOX.x"), None);
    }
}
