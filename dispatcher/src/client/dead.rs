//! Dead letters: list, show, replay.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jetstream::StoredMessage;
use schemas::{Code, DeadLetter, QueueName, TaskKey, header};

use super::retry::go_on;
use super::submit::is_reserved;
use super::{Client, ClientError, Submission, Submitted};
use crate::fail_point::fail_point;

/// Which dead letters.
#[derive(Clone, Debug)]
pub struct DeadFilter {
    /// Of this queue.
    pub queue: Option<QueueName>,
    /// Given up for this reason.
    pub reason: Option<Code>,
    /// From this place on.
    pub from: u64,
    /// At most so many in one page.
    pub limit: usize,
}

impl Default for DeadFilter {
    fn default() -> Self {
        Self { queue: None, reason: None, from: 0, limit: 100 }
    }
}

/// One page, oldest first.
#[derive(Clone, Debug, Default)]
pub struct DeadListing {
    /// The letters, without bodies.
    pub letters: Vec<DeadLetter>,
    /// Where to go on.
    pub next: Option<u64>,
}

/// A dead letter with everything in it.
#[derive(Clone, Debug)]
pub struct DeadContent {
    /// What our headers say.
    pub letter: DeadLetter,
    /// All headers.
    pub headers: Vec<(String, String)>,
    /// The message as it came.
    pub body: Bytes,
}

/// What became of one letter.
#[derive(Debug)]
pub struct Replayed {
    /// Which.
    pub letter: DeadLetter,
    /// The new run, or why there is none. Then the letter is still there.
    pub result: Result<Submitted, ClientError>,
}

/// Messages asked for at a time.
const PAGE: usize = 500;
/// Looked at for one page, whatever is found.
const SCAN: usize = 100_000;

impl Client {
    /// One page of dead letters, oldest first. A page may be short, or empty, and yet not the last.
    pub async fn dead_letters(&self, filter: &DeadFilter) -> Result<DeadListing, ClientError> {
        let mut listing = DeadListing::default();
        let (mut from, mut looked_at) = (filter.from, 0);
        loop {
            let page = self.js.page(&self.names.dead_stream(), &self.dead_filter(filter), from, PAGE).await?;
            looked_at += page.messages.len();
            for message in page.messages {
                from = message.sequence + 1;
                let letter = self.letter(&message);
                if filter.reason.is_none_or(|reason| reason == letter.reason) {
                    listing.letters.push(letter);
                }
                if listing.letters.len() >= filter.limit.max(1) {
                    // Whether there are more is left to the next page.
                    listing.next = Some(from);
                    return Ok(listing);
                }
            }
            if !page.more {
                return Ok(listing);
            }
            if looked_at >= SCAN {
                listing.next = Some(from);
                return Ok(listing);
            }
        }
    }

    /// One dead letter by its place.
    pub async fn dead_letter(&self, dead_sequence: u64) -> Result<DeadContent, ClientError> {
        match self.js.at(&self.names.dead_stream(), dead_sequence).await? {
            Some(message) => Ok(self.content(&message)),
            None => Err(ClientError::NotFound { kind: "dead letter", name: dead_sequence.to_string() }),
        }
    }

    /// The newest dead letter of a task.
    pub async fn dead_letter_of(&self, key: &TaskKey) -> Result<Option<DeadContent>, ClientError> {
        let message = self.js.last(&self.names.dead_stream(), &self.names.dead_subject(key)).await?;
        Ok(message.map(|message| self.content(&message)))
    }

    /// Submits a given-up task again and then removes its dead letter. Done again after a crash it does not submit
    /// twice: the letter's place names the submission.
    pub async fn replay(&self, dead_sequence: u64) -> Result<Submitted, ClientError> {
        let DeadContent { letter, headers, body } = self.dead_letter(dead_sequence).await?;
        let key = match (letter.queue.parse(), letter.id.parse()) {
            (Ok(queue), Ok(id)) => TaskKey::new(queue, id),
            (Err(source), _) | (_, Err(source)) => {
                let own = headers.iter().find(|(name, _)| name == header::SUBJECT).map(|(_, subject)| subject.clone());
                let subject = own.unwrap_or_else(|| format!("{}.{}", letter.queue, letter.id));
                return Err(ClientError::NotReplayable { dead_sequence, subject, source });
            }
        };
        let submission = format!("dead.{dead_sequence}");
        let view = self.look(&key).await?;
        // The server forgets message ids after a while; the record remembers.
        let record = view.record.map(|recorded| recorded.record);
        let submitted = match record {
            Some(record) if record.submission.as_deref() == Some(&submission) => {
                Submitted { key, sequence: record.sequence, submission, existing: None }
            }
            record => {
                let mut headers = own_headers(headers);
                if let Some(record) = record.filter(|record| record.sequence == letter.sequence) {
                    go_on(&mut headers, &record, &body);
                }
                let task = Submission { key, payload: body, submission: Some(submission), once: false, headers };
                self.submit(task).await?
            }
        };
        fail_point("replay_after_submit");
        self.js.delete(&self.names.dead_stream(), dead_sequence).await?;
        Ok(submitted)
    }

    /// The same for all that match and were there when it began; `from` and `limit` do not count.
    pub async fn replay_all(&self, filter: &DeadFilter) -> Result<Vec<Replayed>, ClientError> {
        let Some(state) = self.js.stream_state(&self.names.dead_stream()).await? else { return Ok(Vec::new()) };
        let mut filter = DeadFilter { from: 0, limit: PAGE, ..filter.clone() };
        let mut replayed = Vec::new();
        loop {
            let page = self.dead_letters(&filter).await?;
            // Those that fail again come back behind the end.
            let letters = page.letters.into_iter().filter(|letter| letter.dead_sequence <= state.last_seq);
            let replays: Vec<_> = letters
                .map(|letter| async move {
                    let result = self.replay(letter.dead_sequence).await;
                    Replayed { letter, result }
                })
                .collect();
            replayed.extend(stream::iter(replays).buffered(IN_FLIGHT).collect::<Vec<_>>().await);
            match page.next {
                Some(next) if next <= state.last_seq => filter.from = next,
                _ => return Ok(replayed),
            }
        }
    }

    fn dead_filter(&self, filter: &DeadFilter) -> String {
        match &filter.queue {
            None => self.names.dead_subjects(),
            Some(queue) => self.names.dead_subject_raw(queue.as_str(), ">"),
        }
    }

    fn content(&self, message: &StoredMessage) -> DeadContent {
        let headers = message
            .headers
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.as_str().to_owned())));
        DeadContent { letter: self.letter(message), headers: headers.collect(), body: message.payload.clone() }
    }

    /// What the headers say. One that others put there without them is shown with what there is.
    pub(super) fn letter(&self, message: &StoredMessage) -> DeadLetter {
        let (queue, id) = self.names.dead_tokens(&message.subject).unwrap_or_default();
        let number = |name| message.header(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or_default();
        let Ok(reason) = message.header(header::REASON).unwrap_or_default().parse::<Code>();
        DeadLetter {
            dead_sequence: message.sequence,
            queue: queue.to_owned(),
            id: id.to_owned(),
            sequence: number(header::SEQUENCE),
            reason,
            message: message.header(header::MESSAGE).unwrap_or_default().to_owned(),
            attempts: u32::try_from(number(header::ATTEMPTS)).unwrap_or(u32::MAX),
            at: message.stored_at,
            bytes: message.payload.len() as u64,
        }
    }
}

/// Replays in flight at once.
const IN_FLIGHT: usize = 64;

/// The headers that the task had itself, without those that made it a dead letter.
pub(super) fn own_headers(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let letters = [header::REASON, header::MESSAGE, header::SEQUENCE, header::ATTEMPTS, header::SUBJECT];
    let ours = |name: &str| letters.iter().any(|letter| letter.eq_ignore_ascii_case(name)) || is_reserved(name);
    headers.into_iter().filter(|(name, _)| !ours(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replayed_task_keeps_only_its_own_headers() {
        let headers = [
            ("traceparent", "00-a-b-01"),
            ("Shoal-Reason", "timed_out"),
            ("Shoal-Sequence", "7"),
            ("Shoal-Once", "true"),
            ("Shoal-Submission", "s"),
            ("Nats-Msg-Id", "s"),
            ("X-Mine", "1"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let names: Vec<String> = own_headers(headers).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["traceparent", "X-Mine"]);
    }
}
