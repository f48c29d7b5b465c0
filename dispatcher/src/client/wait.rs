//! Waiting for a task: subscribe, read, then listen, and read again now and then. Never a consumer per waiter.
//!
//! An event may be lost with a connection, or be told before a cluster has carried our interest to the writer's server.
//! So whoever waits reads again a second after each connect and every 15 s.

use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use jetstream::Link;
use schemas::{Order, TaskKey, TaskRecord, Timestamp, header};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Client, ClientError, Recorded, TaskView};

/// The first read again, after a connect.
const READ_AGAIN_FIRST: Duration = Duration::from_secs(1);
/// Those after it.
const READ_AGAIN: Duration = Duration::from_secs(15);
/// After a read that failed for a passing reason.
const READ_AFTER_FAILURE: Duration = Duration::from_millis(500);

impl Client {
    /// Waits for the terminal record of run `sequence` (of the newest run, if absent), or of a later one.
    pub async fn wait(
        &self,
        key: &TaskKey,
        sequence: Option<u64>,
        timeout: Option<Duration>,
    ) -> Result<Recorded, ClientError> {
        let mut watched = Watch::new(self, key, sequence);
        let end = async {
            loop {
                match watched.next().await? {
                    Some(recorded) if recorded.record.state.is_terminal() => return Ok(recorded),
                    Some(_) => {}
                    None => return Err(ClientError::Closed),
                }
            }
        };
        match timeout {
            None => end.await,
            Some(after) => tokio::time::timeout(after, end)
                .await
                .unwrap_or_else(|_| Err(ClientError::TimedOut { what: format!("task {key}"), after })),
        }
    }

    /// Every revision of the record that is seen, from the present one on, never backwards; those between two may be
    /// skipped. Ends after the terminal one.
    pub fn watch(&self, key: &TaskKey, sequence: Option<u64>) -> BoxStream<'static, Result<Recorded, ClientError>> {
        let watched = Watch::new(self, key, sequence);
        stream::try_unfold(watched, |mut watched| async move {
            Ok(watched.next().await?.map(|recorded| (recorded, watched)))
        })
        .into_stream()
        .boxed()
    }
}

/// One task's record, followed.
pub(super) struct Watch {
    client: Client,
    key: TaskKey,
    /// Which run; the newest at the first read, if it was not said.
    sequence: Option<u64>,
    /// When that run was submitted, once its message was seen.
    submitted_at: Option<Timestamp>,
    ears: Option<Ears>,
    /// Newest revision told.
    seen: u64,
    /// The last read found nothing of this run.
    missed: bool,
    over: bool,
}

impl Watch {
    pub(super) fn new(client: &Client, key: &TaskKey, sequence: Option<u64>) -> Self {
        Self {
            client: client.clone(),
            key: key.clone(),
            sequence,
            submitted_at: None,
            ears: None,
            seen: 0,
            missed: false,
            over: false,
        }
    }

    /// The next newer revision; `None` after the terminal one. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Recorded>, ClientError> {
        if self.over {
            return Ok(None);
        }
        loop {
            let ears = match &mut self.ears {
                Some(ears) => ears,
                none => none.insert(Ears::open(&self.client, &self.key).await?),
            };
            let (recorded, read) = match ears.next(&self.client, &self.key).await? {
                News::Event(recorded) => (recorded, false),
                News::Read(view) => {
                    let Some(sequence) = self.sequence.or_else(|| view.sequence()) else {
                        return Err(ClientError::NotFound { kind: "task", name: self.key.to_string() });
                    };
                    self.sequence = Some(sequence);
                    let queued = view.queued.as_ref().filter(|queued| queued.sequence == sequence);
                    self.submitted_at = queued.map(|queued| queued.submitted_at).or(self.submitted_at);
                    let recorded = view.recorded().filter(|recorded| self.is_due(&recorded.record)).cloned();
                    match recorded {
                        Some(recorded) => {
                            self.missed = false;
                            (recorded, true)
                        }
                        None if queued.is_some() => {
                            self.missed = false;
                            continue;
                        }
                        // Twice, because a leader that has just changed may not have everything yet.
                        None if self.missed => return Err(ClientError::Gone { key: self.key.clone(), sequence }),
                        None => {
                            self.missed = true;
                            continue;
                        }
                    }
                }
            };
            // An older revision is old news, unless it is the end as the leader has it: then the bucket was set back.
            let stale = recorded.revision <= self.seen
                && (recorded.revision == self.seen || !read || !recorded.record.state.is_terminal());
            if stale || !self.is_due(&recorded.record) {
                continue;
            }
            self.seen = recorded.revision;
            self.over = recorded.record.state.is_terminal();
            return Ok(Some(recorded));
        }
    }

    /// Whether a record is of the run that is waited for, or of a later one.
    fn is_due(&self, record: &TaskRecord) -> bool {
        let Some(sequence) = self.sequence else { return false };
        match self.submitted_at.map(|submitted_at| record.order_to(sequence, submitted_at)) {
            None => record.sequence >= sequence,
            Some(Order::Same | Order::Later) => true,
            Some(Order::Earlier) => false,
            // Submitted within a moment of ours, or by a leader whose clock is behind; a relic was submitted long before.
            Some(Order::Unclear) => record.sequence > sequence && self.submitted_at <= Some(record.submitted_at),
        }
    }
}

enum News {
    /// Somebody told a record after writing it.
    Event(Recorded),
    /// We read it.
    Read(TaskView),
}

/// A subscription of one task's events, and when to read again.
struct Ears {
    events: Subscriber,
    link: watch::Receiver<Link>,
    read_at: Instant,
    read_next: Duration,
}

impl Ears {
    async fn open(client: &Client, key: &TaskKey) -> Result<Self, ClientError> {
        // The subscription goes out before the first read on the same connection, so nothing falls between the two.
        let subject = client.names.event_subject(key);
        let events = client.js.client().subscribe(subject).await.map_err(|_| ClientError::Closed)?;
        let mut link = client.connection.link.clone();
        link.mark_unchanged();
        Ok(Self { events, link, read_at: Instant::now(), read_next: READ_AGAIN_FIRST })
    }

    /// Cancel safe: a read that is dropped half way is done again.
    async fn next(&mut self, client: &Client, key: &TaskKey) -> Result<News, ClientError> {
        loop {
            if Instant::now() >= self.read_at {
                match client.while_linked(client.look(key)).await {
                    Some(Ok(view)) => {
                        self.read_at = Instant::now() + std::mem::replace(&mut self.read_next, READ_AGAIN);
                        return Ok(News::Read(view));
                    }
                    // The next connect is news of its own.
                    None => continue,
                    Some(Err(error)) if error.is_transient() => {
                        tracing::debug!(task = %key, %error, "reading again in a moment");
                        self.read_at = Instant::now() + READ_AFTER_FAILURE;
                    }
                    Some(Err(error)) => return Err(error),
                }
            }
            tokio::select! {
                event = self.events.next() => match event.as_ref().map(told) {
                    Some(Some(recorded)) => return Ok(News::Event(recorded)),
                    // No event of ours; it may still be a hint.
                    Some(None) => self.read_at = Instant::now(),
                    None => return Err(ClientError::Closed),
                },
                changed = self.link.changed() => {
                    changed.map_err(|_| ClientError::Closed)?;
                    if self.link.borrow_and_update().connected {
                        self.read_at = Instant::now();
                        self.read_next = READ_AGAIN_FIRST;
                    }
                }
                () = tokio::time::sleep_until(self.read_at) => {}
            }
        }
    }
}

/// The record in an event.
fn told(event: &Message) -> Option<Recorded> {
    let revision = event.headers.as_ref()?.get(header::REVISION)?.as_str().parse().ok()?;
    let record: TaskRecord = serde_json::from_slice(&event.payload).ok()?;
    // Told right after it was written.
    Some(Recorded { record, revision, written_at: Timestamp::now() })
}
