//! One handing-over of a task by JetStream, and how it is settled.

use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use jetstream::{ApiError, JetStream};
use schemas::Timestamp;

/// One handing-over of a task.
#[derive(Debug)]
pub struct Delivery {
    /// Subject the task was published to.
    pub subject: Subject,
    /// The task as it came.
    pub payload: Bytes,
    /// Its headers.
    pub headers: HeaderMap,
    /// Where it is renewed and settled.
    pub reply: Subject,
    /// Stream sequence of the task: which run of the id.
    pub sequence: u64,
    /// How often it was handed over, this time included. For display and for `is this the first`, no more.
    pub count: u64,
    /// When the server stored the task.
    pub stored_at: Timestamp,
    /// Index of the queue among the worker's.
    pub queue: usize,
    /// When it reached us.
    pub received: Instant,
    /// The connection it came over.
    pub epoch: u64,
}

/// What the server is told at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Ack,
    /// Again, after this.
    Nak(Duration),
    /// Never again, because.
    Term(String),
}

/// What a reply subject of JetStream's tells of its delivery.
#[derive(Debug)]
pub struct Origin<'a> {
    /// The stream.
    pub stream: &'a str,
    /// Sequence in the stream.
    pub sequence: u64,
    count: u64,
    nanos: u64,
}

/// Reads a reply subject; `None` if it is none of JetStream's.
pub fn origin(reply: &str) -> Option<Origin<'_>> {
    let tokens: Vec<&str> = reply.split('.').collect();
    // `$JS.ACK.<stream>.<consumer>.<count>.<stream seq>.<consumer seq>.<time>.<pending>`, or with domain and account
    // behind `ACK` and perhaps a token at the end (v2).
    let at = match tokens.len() {
        9 => 4,
        11.. => 6,
        _ => return None,
    };
    let number = |at: usize| tokens.get(at)?.parse::<u64>().ok();
    Some(Origin { stream: tokens[at - 2], count: number(at)?, sequence: number(at + 1)?, nanos: number(at + 3)? })
}

impl Delivery {
    /// Reads a delivery; `None` if its reply subject is none of JetStream's.
    pub fn read(message: Message, queue: usize, epoch: u64) -> Option<Self> {
        let reply = message.reply?;
        let Origin { count, sequence, nanos, .. } = origin(&reply)?;
        Some(Self {
            count,
            sequence,
            stored_at: Timestamp::from_millis(i64::try_from(nanos / 1_000_000).ok()?),
            subject: message.subject,
            payload: message.payload,
            headers: message.headers.unwrap_or_default(),
            reply,
            queue,
            received: Instant::now(),
            epoch,
        })
    }

    /// Which run of its id it is: the number alone tells it only as long as the stream goes forward.
    pub fn run(&self) -> (u64, Timestamp) {
        (self.sequence, self.stored_at)
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }
}

/// Tells the server and waits for its word, on the shared inbox. The word proves only that the server heard it.
pub async fn tell(js: &JetStream, reply: &Subject, verdict: &Verdict) -> Result<(), ApiError> {
    let body = match verdict {
        Verdict::Ack => Bytes::new(),
        Verdict::Nak(after) if after.is_zero() => Bytes::from_static(b"-NAK"),
        Verdict::Nak(after) => format!("-NAK {{\"delay\": {}}}", after.as_nanos()).into(),
        Verdict::Term(reason) => format!("+TERM {reason}").into(),
    };
    js.request(reply, body).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(reply: &str) -> Message {
        Message {
            subject: "shoal.tasks.default.a".into(),
            reply: Some(reply.into()),
            payload: Bytes::new(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn both_forms_of_reply_subject_are_read() {
        for reply in [
            "$JS.ACK.SHOAL_TASKS.default.3.17.21.1700000000123000000.5",
            "$JS.ACK._.hash.SHOAL_TASKS.default.3.17.21.1700000000123000000.5",
            "$JS.ACK.hub.hash.SHOAL_TASKS.default.3.17.21.1700000000123000000.5.random",
        ] {
            let delivery = Delivery::read(message(reply), 0, 1).unwrap();
            assert_eq!((delivery.count, delivery.sequence), (3, 17), "{reply}");
            assert_eq!(delivery.stored_at.as_millis(), 1_700_000_000_123);
        }
        assert!(Delivery::read(message("_INBOX.a.b"), 0, 1).is_none());
    }
}
