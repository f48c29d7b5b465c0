//! Pulling with credits of our own: one inbox a worker, pulls that ask for no more than the free slots.
//!
//! The client crate's pull streams prefetch, hang on heartbeats and lose single pulls; the protocol below is a publish
//! and a few status replies, so it is spoken here. A pull lives no longer than a third of the ack wait: a frozen worker
//! stops being served. Every open pull says something within [`HEARTBEAT`], so silence means that it is gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::{Message, StatusCode, Subscriber};
use jetstream::{ApiError, JetStream};
use serde_json::json;

/// The server's sign of life on an open pull.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Longest life of a pull.
const LONGEST: Duration = Duration::from_secs(5);
/// Life of a look. The server's own `no_wait` is no use: under a reached cap it is never answered (probed on 2.15.1).
const LOOK: Duration = Duration::from_millis(2);
/// What a pull's last word may be late.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often pulls that are over are dropped.
const SWEEP: Duration = Duration::from_secs(1);
/// More than this in one pull helps no throughput (measured: 500 is the best batch) and makes bursts unfair.
const LARGEST: usize = 500;

/// Pulls of one worker.
pub struct Pulls {
    js: JetStream,
    stream: String,
    inbox: String,
    queues: Vec<Queue>,
    next: u64,
    /// When pulls that are over were last dropped.
    swept: Instant,
    /// When anything at all came.
    heard: Instant,
}

struct Queue {
    consumer: String,
    expires: Duration,
    heartbeat: Duration,
    /// What open pulls may still bring.
    credits: usize,
    open: HashMap<u64, Pull>,
    /// When we last heard of a pull of this queue, or asked.
    heard: Instant,
    /// When the newest pull was sent.
    asked: Option<Instant>,
    /// No pull before this: the server just refused one.
    not_before: Option<Instant>,
}

impl Queue {
    /// Drops pulls that can bring nothing any more. Whether they leave nothing open though something was still owed: their
    /// last word is lost, or it comes too late to be known (we were frozen), and whoever waits for it must not.
    fn drop_overdue(&mut self) -> bool {
        let longest = self.expires + PATIENCE;
        self.open.retain(|_, pull| pull.at.elapsed() <= longest);
        let owed = self.credits > 0;
        self.credits = self.credits.min(self.open.values().map(|pull| pull.asked).sum());
        owed && self.credits == 0
    }
}

/// One open pull.
struct Pull {
    asked: usize,
    at: Instant,
    /// It stays open for what may come; a look does not.
    waits: bool,
}

/// What came in.
#[derive(Debug)]
pub enum Arrival {
    /// A message, of this queue.
    Message(usize, Message),
    /// A pull ended or said that it lives: the server serves this queue.
    Served(usize),
    /// A look found nothing more.
    Empty(usize),
    /// A pull was refused; the queue is asked again a little later.
    Refused(usize, String),
    /// The queue's consumer, or the whole stream, is not there.
    Missing(usize),
}

impl Pulls {
    /// Opens the inbox. `consumers` are name and ack wait of each queue.
    pub async fn open(
        js: &JetStream,
        stream: String,
        consumers: impl IntoIterator<Item = (String, Duration)>,
    ) -> Result<(Self, Subscriber), ApiError> {
        let (inbox, subscriber) = open_inbox(js).await?;
        let queues = consumers.into_iter().map(|(consumer, ack_wait)| {
            // Rounded up to what the server takes: a heartbeat is at most half the life of a pull.
            let expires = (ack_wait / 3).min(LONGEST).max(Duration::from_millis(200));
            Queue {
                consumer,
                expires,
                heartbeat: HEARTBEAT.min(expires / 2),
                credits: 0,
                open: HashMap::new(),
                heard: Instant::now(),
                asked: None,
                not_before: None,
            }
        });
        Ok((
            Self {
                js: js.clone(),
                stream,
                inbox,
                queues: queues.collect(),
                next: 0,
                swept: Instant::now(),
                heard: Instant::now(),
            },
            subscriber,
        ))
    }

    /// Another inbox, with no pull open: what comes to the old one comes to nobody.
    pub async fn reopen(&mut self) -> Result<Subscriber, ApiError> {
        let (inbox, subscriber) = open_inbox(&self.js).await?;
        self.inbox = inbox;
        self.forget_all();
        Ok(subscriber)
    }

    /// Whether not even a heartbeat came lately, of any queue: it is the way to the server that is silent, and what was
    /// handed out meanwhile may come with its lease long over.
    pub fn is_silent(&self) -> bool {
        let heartbeats = self.queues.iter().map(|queue| queue.heartbeat).min().unwrap_or(HEARTBEAT);
        self.heard.elapsed() >= heartbeats * 2
    }

    /// What the open pulls of a queue may still bring.
    pub fn credits(&self, queue: usize) -> usize {
        self.queues[queue].credits
    }

    /// Asks for up to `count`. A pull that waits stays open for what may come; a look takes what is there.
    pub async fn ask(&mut self, queue: usize, count: usize, waits: bool) {
        let number = self.next;
        self.next += 1;
        let this = &mut self.queues[queue];
        let now = Instant::now();
        let count = count.min(LARGEST);
        if count == 0 || this.not_before.is_some_and(|moment| now < moment) {
            return;
        }
        let body = if waits {
            json!({
                "batch": count,
                "expires": this.expires.as_nanos() as u64,
                "idle_heartbeat": this.heartbeat.as_nanos() as u64,
            })
        } else {
            json!({ "batch": count, "expires": LOOK.as_nanos() as u64 })
        };
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, this.consumer);
        let reply = format!("{}.{queue}.{number}", self.inbox);
        if self.js.client().publish_with_reply(subject, reply, body.to_string().into()).await.is_ok() {
            this.not_before = None;
            this.credits += count;
            this.open.insert(number, Pull { asked: count, at: now, waits });
            this.heard = now;
            this.asked = Some(now);
        }
    }

    /// Makes sense of one message of the inbox. `queue_of` finds the queue of a task's subject.
    pub fn arrived(&mut self, message: Message, queue_of: impl Fn(&str) -> Option<usize>) -> Option<Arrival> {
        self.heard = Instant::now();
        // A task may bear a status line of its own; only what comes to our inbox is the server's word.
        let status = message.status.filter(|_| message.subject.starts_with(self.inbox.as_str()));
        let Some(status) = status else {
            let queue = queue_of(&message.subject)?;
            let this = &mut self.queues[queue];
            this.heard = Instant::now();
            this.credits = this.credits.saturating_sub(1);
            return Some(Arrival::Message(queue, message));
        };
        let mut tokens = message.subject.rsplit('.');
        let number: u64 = tokens.next()?.parse().ok()?;
        let queue: usize = tokens.next()?.parse().ok()?;
        let this = self.queues.get_mut(queue)?;
        this.heard = Instant::now();
        if status == StatusCode::IDLE_HEARTBEAT {
            return Some(Arrival::Served(queue));
        }
        // Every other status ends the pull. What it did not bring is told, or it brought nothing at all.
        let Some(Pull { asked, waits, .. }) = this.open.remove(&number) else {
            // Given up before, with all that it owed.
            return Some(Arrival::Served(queue));
        };
        let pending = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
        let pending = pending.and_then(|pending| pending.as_str().parse().ok());
        let description = message.description.unwrap_or_default();
        match status.as_u16() {
            404 | 408 => {
                this.credits = this.credits.saturating_sub(pending.unwrap_or(asked));
                self.forget_when_idle(queue);
                Some(if waits { Arrival::Served(queue) } else { Arrival::Empty(queue) })
            }
            503 => {
                self.forget(queue);
                self.hold_off(queue);
                Some(Arrival::Missing(queue))
            }
            _ => {
                let gone = description.contains("Consumer Deleted") || description.contains("Consumer is push");
                match pending {
                    Some(pending) => this.credits = this.credits.saturating_sub(pending),
                    // A pull refused as a whole, or we cannot know: start over with nothing open.
                    None if description.contains("Exceeded") => this.credits = this.credits.saturating_sub(asked),
                    None => self.forget(queue),
                }
                self.hold_off(queue);
                Some(if gone { Arrival::Missing(queue) } else { Arrival::Refused(queue, description) })
            }
        }
    }

    /// Pulls that were served in full end without a word; once nothing is owed their numbers mean nothing.
    fn forget_when_idle(&mut self, queue: usize) {
        let this = &mut self.queues[queue];
        if this.credits == 0 {
            this.open.clear();
        }
    }

    fn hold_off(&mut self, queue: usize) {
        let pause = Duration::from_millis(rand::random_range(200..=500));
        self.queues[queue].not_before = Some(Instant::now() + pause);
    }

    /// Treats every open pull of a queue as gone.
    pub fn forget(&mut self, queue: usize) {
        let this = &mut self.queues[queue];
        this.credits = 0;
        this.open.clear();
    }

    /// After a reconnect: the server dropped what had nobody to go to.
    pub fn forget_all(&mut self) {
        (0..self.queues.len()).for_each(|queue| self.forget(queue));
    }

    /// Forgets pulls that are silent for too long. Returns when to look again, and whether one was forgotten.
    pub fn watch(&mut self) -> (Instant, bool) {
        let now = Instant::now();
        let mut next = now + Duration::from_secs(3600);
        let mut forgotten = false;
        // Asked after every message; so thorough a look once in a while is enough.
        let thorough = self.swept.elapsed() >= SWEEP;
        if thorough {
            self.swept = now;
        }
        for queue in 0..self.queues.len() {
            let this = &mut self.queues[queue];
            // A pull that was served in full ends without a word, and one whose leader is gone without any; by now none of
            // these can bring anything.
            if thorough && this.drop_overdue() {
                self.forget(queue);
                forgotten = true;
                continue;
            }
            let this = &mut self.queues[queue];
            if this.credits > 0 {
                // Two missed heartbeats and some, as the protocol has it.
                let due = this.heard + this.heartbeat * 3;
                if due <= now {
                    self.forget(queue);
                    forgotten = true;
                } else {
                    next = next.min(due);
                }
            }
            if let Some(moment) = self.queues[queue].not_before {
                next = next.min(moment.max(now + Duration::from_millis(1)));
                if moment <= now {
                    self.queues[queue].not_before = None;
                }
            }
        }
        (next, forgotten)
    }

    /// Whether a message that arrives now was handed out so long ago that its lease may be over: we were frozen.
    pub fn is_stale(&self, queue: usize) -> bool {
        let this = &self.queues[queue];
        // Every delivery answers a pull, and no pull lives longer than this.
        this.asked.is_none_or(|asked| asked.elapsed() > this.expires + PATIENCE)
    }
}

async fn open_inbox(js: &JetStream) -> Result<(String, Subscriber), ApiError> {
    let inbox = js.client().new_inbox();
    let subject = format!("{inbox}.*.*");
    let subscribed = js.client().subscribe(subject.clone()).await;
    let subscriber = subscribed.map_err(|error| ApiError::Failed { subject, why: error.to_string() })?;
    Ok((inbox, subscriber))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_whose_last_word_is_overdue_is_told_as_forgotten_and_only_if_it_owed_something() {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).expect("it runs for longer");
        let queue = |credits, ages: &[u64]| Queue {
            consumer: "q".into(),
            expires: Duration::from_secs(1),
            heartbeat: Duration::from_millis(500),
            credits,
            open: ages.iter().map(|age| (*age, Pull { asked: 2, at: ago(*age), waits: false })).collect(),
            heard: Instant::now(),
            asked: None,
            not_before: None,
        };
        // A look that was under way when the process was frozen: nobody else would ever end it.
        let mut frozen = queue(2, &[60]);
        assert!(frozen.drop_overdue());
        assert!(frozen.open.is_empty() && frozen.credits == 0);
        // Served in full, which ends without a word.
        assert!(!queue(0, &[60]).drop_overdue());
        // Another is still open.
        let mut both = queue(4, &[60, 0]);
        assert!(!both.drop_overdue());
        assert_eq!((both.open.len(), both.credits), (1, 2));
    }
}
