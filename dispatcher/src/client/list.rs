//! Many tasks, newest change first, in pages.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use jetstream::StoredMessage;
use schemas::{Code, QueueName, TaskKey, Timestamp};
use serde::Deserialize;

use super::find::replaced;
use super::{Client, ClientError, Recorded, Status};

/// Which tasks.
#[derive(Clone, Debug)]
pub struct ListFilter {
    /// Of this queue.
    pub queue: Option<QueueName>,
    /// In one of these states; empty for any.
    pub states: Vec<Status>,
    /// With these labels; without a value, any value will do.
    pub labels: Vec<(String, Option<String>)>,
    /// Given up with, or kept waiting by, one of these codes; empty for any.
    pub codes: Vec<Code>,
    /// Submitted at or after this moment.
    pub since: Option<Timestamp>,
    /// At most so many in one page.
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<ListCursor>,
    /// Look at no more than so many for one page, whatever is found.
    pub scan: usize,
}

impl Default for ListFilter {
    fn default() -> Self {
        Self {
            queue: None,
            states: Vec::new(),
            labels: Vec::new(),
            codes: Vec::new(),
            since: None,
            limit: 100,
            cursor: None,
            scan: 100_000,
        }
    }
}

/// Where a page ended. Its text form is opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListCursor {
    /// Messages below this sequence were not looked at.
    tasks_below: u64,
    /// Records below this revision were not looked at.
    records_below: u64,
    /// Records from this revision on were written after the listing began.
    records_top: u64,
}

/// One task.
#[derive(Clone, Debug)]
pub struct ListItem {
    /// Queue and id.
    pub key: TaskKey,
    /// Which run.
    pub sequence: u64,
    /// Where it stands.
    pub status: Status,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// Its record, unless it is queued.
    pub record: Option<Recorded>,
}

/// One page.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Newest change first.
    pub tasks: Vec<ListItem>,
    /// Where to go on. A page may be short, or empty, and yet not the last.
    pub next: Option<ListCursor>,
}

impl std::fmt::Display for ListCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.tasks_below, self.records_below, self.records_top)
    }
}

impl std::str::FromStr for ListCursor {
    type Err = ClientError;
    fn from_str(text: &str) -> Result<Self, ClientError> {
        let shown: String = text.chars().take(64).collect();
        let numbers: Result<Vec<u64>, _> = text.split('-').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[tasks_below, records_below, records_top]) => Ok(Self { tasks_below, records_below, records_top }),
            _ => Err(ClientError::Invalid(format!("`{shown}` is no cursor of a listing"))),
        }
    }
}

/// Messages asked for at a time.
const PAGE: usize = 1_000;
/// Sequences looked back over at a time: grows where they are sparse.
const WINDOW: std::ops::RangeInclusive<u64> = 256..=65_536;

impl Client {
    /// One page of tasks, newest change first: queued ones by when they were stored, others by when their record was
    /// last written. A task that changes while you page may come twice, or be missed if it changes after the page that
    /// would have shown it had not been reached; its newer state is on top of a new listing. An id that is queued again
    /// is two runs and may be listed as two.
    pub async fn list(&self, filter: &ListFilter) -> Result<Listing, ClientError> {
        let cursor = match filter.cursor {
            Some(cursor) => cursor,
            None => {
                let (tasks, records) = (self.names.tasks_stream(), self.names.records_stream());
                // Records first: what is written after that is new to this listing.
                let records_top = self.top(records).await?;
                ListCursor { tasks_below: self.top(tasks).await?, records_below: records_top, records_top }
            }
        };
        let queue = filter.queue.as_ref().map_or("*", QueueName::as_str);
        // What is not over has a message; then there is no need to look through all that is.
        let live = !filter.states.is_empty() && filter.states.iter().all(|status| !status.is_terminal());
        let since = filter.since;
        let mut tasks = Backwards {
            stream: self.names.tasks_stream(),
            subjects: replaced(&self.names.tasks_subjects(), queue, "*"),
            below: cursor.tasks_below,
            since,
            window: *WINDOW.start(),
            read: Vec::new(),
            records_of: Some(HashMap::new()),
            looked_at: 0,
        };
        let mut records = Backwards {
            stream: self.names.records_stream(),
            subjects: replaced(&self.record_subjects(), queue, "*"),
            below: if live { 0 } else { cursor.records_below },
            since,
            window: *WINDOW.start(),
            read: Vec::new(),
            records_of: None,
            looked_at: 0,
        };
        let mut page = Vec::new();
        while page.len() < filter.limit.max(1) && tasks.looked_at + records.looked_at < filter.scan.max(PAGE) {
            tasks.fill(self).await?;
            records.fill(self).await?;
            let task_first = match (tasks.read.last(), records.read.last()) {
                (None, None) => break,
                (task, record) => task.map(|task| task.stored_at) > record.map(|record| record.stored_at),
            };
            let item = if task_first {
                let message = tasks.read.pop().expect("it was there a moment ago");
                let record = tasks.records_of.as_mut().and_then(|of| of.remove(&message.sequence));
                // A record from before this listing has its own place in it.
                let elsewhere = |record: &Recorded| !live && record.revision < cursor.records_top;
                if record.as_ref().is_some_and(elsewhere) { None } else { self.item(&message, record)? }
            } else {
                let message = records.read.pop().expect("it was there a moment ago");
                let record = Recorded::read(&message).unwrap_or_else(|error| {
                    tracing::warn!(subject = message.subject, %error, "left out of the listing");
                    None
                });
                match record {
                    Some(record) => self.item(&message, Some(record))?,
                    None => None,
                }
            };
            page.extend(item.filter(|(item, task)| filter.takes(item, task)).map(|(item, _)| item));
        }
        let (tasks_below, records_below) = (tasks.bound(), records.bound());
        let next =
            (tasks_below > 1 || records_below > 1).then_some(ListCursor { tasks_below, records_below, ..cursor });
        Ok(Listing { tasks: page, next })
    }

    async fn top(&self, stream: String) -> Result<u64, ClientError> {
        match self.js.stream_state(&stream).await? {
            Some(state) => Ok(state.last_seq + 1),
            None => Err(ClientError::NotFound { kind: "store", name: stream }),
        }
    }

    /// A line of the listing, and the task's JSON. Messages on malformed subjects are no tasks.
    fn item(
        &self,
        message: &StoredMessage,
        record: Option<Recorded>,
    ) -> Result<Option<(ListItem, Bytes)>, ClientError> {
        let Some(key) = self.task_key(&message.subject) else { return Ok(None) };
        Ok(Some(match record {
            Some(recorded) => {
                let record = &recorded.record;
                let task = record.task.as_ref().map(|task| Bytes::copy_from_slice(task.get().as_bytes()));
                let item = ListItem {
                    key,
                    sequence: record.sequence,
                    status: Status::Recorded(record.state),
                    submitted_at: record.submitted_at,
                    record: Some(recorded),
                };
                (item, task.unwrap_or_default())
            }
            None => {
                let item = ListItem {
                    key,
                    sequence: message.sequence,
                    status: Status::Queued,
                    submitted_at: message.stored_at,
                    record: None,
                };
                (item, message.payload.clone())
            }
        }))
    }
}

#[derive(Deserialize)]
struct Labels {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl ListFilter {
    fn takes(&self, item: &ListItem, task: &[u8]) -> bool {
        let of_state = self.states.is_empty() || self.states.contains(&item.status);
        let of_time = self.since.is_none_or(|since| item.submitted_at >= since);
        of_state && of_time && self.has_code(item) && (self.labels.is_empty() || has_labels(task, &self.labels))
    }

    fn has_code(&self, item: &ListItem) -> bool {
        let record = item.record.as_ref().map(|recorded| &recorded.record);
        let error = record.and_then(|record| record.error.as_ref()).map(|error| error.code);
        let waiting = record.and_then(|record| record.waiting.as_ref()).map(|waiting| waiting.code);
        self.codes.is_empty() || error.into_iter().chain(waiting).any(|code| self.codes.contains(&code))
    }
}

/// Whether a task has all of `wanted`. One that is no JSON has no labels.
fn has_labels(task: &[u8], wanted: &[(String, Option<String>)]) -> bool {
    let Ok(Labels { labels }) = serde_json::from_slice(task) else { return false };
    wanted.iter().all(|(name, value)| match (labels.get(name), value) {
        (Some(has), Some(value)) => has == value,
        (has, None) => has.is_some(),
        (None, Some(_)) => false,
    })
}

/// A stream read from its end to its beginning. The server pages only forwards, so this goes back window by window.
struct Backwards {
    stream: String,
    subjects: String,
    /// What is below was not read yet.
    below: u64,
    /// What was stored before does not matter.
    since: Option<Timestamp>,
    window: u64,
    /// Read and not used, oldest first.
    read: Vec<StoredMessage>,
    /// Of messages in the stream of tasks: the records of their runs.
    records_of: Option<HashMap<u64, Recorded>>,
    looked_at: usize,
}

impl Backwards {
    /// Reads on until there is something, or nothing more.
    async fn fill(&mut self, client: &Client) -> Result<(), ClientError> {
        while self.read.is_empty() && self.below > 1 {
            let low = self.below.saturating_sub(self.window).max(1);
            let mut from = low;
            while from < self.below {
                let most = usize::try_from(self.below - from).unwrap_or(PAGE).min(PAGE);
                let page = client.js.page(&self.stream, &self.subjects, from, most).await?;
                let Some(last) = page.messages.last() else { break };
                from = last.sequence + 1;
                self.read.extend(page.messages.into_iter().filter(|message| message.sequence < self.below));
                if !page.more {
                    break;
                }
            }
            self.below = low;
            self.looked_at += self.read.len();
            let found = self.read.len() as u64;
            let window = if found * 4 < self.window { self.window * 4 } else { self.window };
            self.window = window.clamp(*WINDOW.start(), *WINDOW.end());
            if let Some(since) = self.since {
                let found = self.read.len();
                self.read.retain(|message| message.stored_at >= since);
                if self.read.len() < found {
                    // They are in the order of time.
                    self.below = 0;
                }
            }
            self.read_records(client).await?;
        }
        Ok(())
    }

    async fn read_records(&mut self, client: &Client) -> Result<(), ClientError> {
        let Some(records_of) = &mut self.records_of else { return Ok(()) };
        for messages in self.read.chunks(PAGE) {
            let runs: HashMap<TaskKey, (u64, Timestamp)> = messages
                .iter()
                .filter_map(|message| Some((client.task_key(&message.subject)?, (message.sequence, message.stored_at))))
                .collect();
            let subjects: Vec<String> = runs.keys().map(|key| client.names.record_subject(key)).collect();
            for message in client.js.newest(&client.names.records_stream(), &subjects).await? {
                // One that cannot be read leaves its task in the listing as queued; `get` tells more.
                if let Ok(Some(recorded)) = Recorded::read(&message)
                    && let Some((sequence, stored_at)) = runs.get(&recorded.record.key())
                    && recorded.record.sequence >= *sequence
                    // Else it is left from before the stream was set back.
                    && recorded.record.submitted_at >= *stored_at
                {
                    records_of.insert(*sequence, recorded);
                }
            }
        }
        Ok(())
    }

    /// What is below was not used yet.
    fn bound(&self) -> u64 {
        self.read.last().map_or(self.below, |message| message.sequence + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_what_it_prints() {
        let cursor = ListCursor { tasks_below: 1, records_below: 22, records_top: 333 };
        assert_eq!(cursor.to_string().parse::<ListCursor>().unwrap(), cursor);
        for bad in ["", "1-2", "1-2-x", "1-2-3-4", "-1-2-3"] {
            assert!(bad.parse::<ListCursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn all_labels_must_fit() {
        let task = br#"{"workload":{"kind":"call","handler":"noop"},"labels":{"team":"a","env":"test"}}"#;
        let wanted = |labels: &[(&str, Option<&str>)]| {
            let labels: Vec<_> = labels.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect();
            has_labels(task, &labels)
        };
        assert!(wanted(&[("team", Some("a")), ("env", None)]));
        assert!(!wanted(&[("team", Some("b"))]));
        assert!(!wanted(&[("team", Some("a")), ("size", None)]));
        assert!(!has_labels(b"no JSON", &[("team".into(), None)]));
    }
}
