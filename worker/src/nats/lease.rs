//! Leases: every delivery that a worker holds is renewed at a third of the ack wait, and given up in time.
//!
//! The clock of a lease starts when the last *confirmed* renewal was sent. A beat renews all with plain messages, then
//! makes one confirmed round trip per queue; its answer confirms all that went before it on the same connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use jetstream::JetStream;
use schemas::record::TaskRecord;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::held::{Held, Note};
use crate::nats::delivery::Delivery;

/// Whether a delivery is still ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Ours.
    Held,
    /// Not renewed in time, but its queue says that the workload goes on: claim again before anything else.
    Lapsed,
    /// No longer ours: stop.
    Lost,
}

/// All leases of one worker.
#[derive(Debug)]
pub struct Leases {
    js: JetStream,
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    next: AtomicU64,
    /// The loop must look again: what came is due before all it knew.
    added: Notify,
    shortest: Shortest,
    /// Tells the dead-man's switch of the runtimes how long what runs may live.
    kept_until: watch::Sender<Option<Instant>>,
}

/// The shortest ack wait since nothing was held, in milliseconds.
#[derive(Debug, Default)]
struct Shortest(AtomicU64);

impl Shortest {
    /// Takes a new one in; whether it is the shortest by now. `anew`: nothing else is held.
    fn swap_min(&self, ack_wait: Duration, anew: bool) -> bool {
        let ms = ack_wait.as_millis() as u64;
        if anew {
            self.0.store(ms, Ordering::Relaxed);
            return true;
        }
        self.0.fetch_min(ms, Ordering::Relaxed) > ms
    }
}

/// One delivery that is held. Small, for every task has one.
#[derive(Debug)]
struct Entry {
    queue: usize,
    ack_wait: Duration,
    /// Whether a lapsed lease lets the workload go on.
    goes_on: bool,
    hold: AtomicU8,
    changed: Notify,
    newest: Mutex<Newest>,
}

/// What changes with every delivery and renewal of an entry.
#[derive(Debug)]
struct Newest {
    reply: Subject,
    /// When the last confirmed renewal was sent.
    renewed: Instant,
    /// Tells the next boot of this worker.
    note: Option<Note>,
}

impl Newest {
    /// What is written down names its newest delivery.
    fn follow(&mut self) {
        if let Some(note) = &mut self.note {
            note.follow(&self.reply);
        }
    }
}

impl Entry {
    const HOLDS: [Hold; 3] = [Hold::Held, Hold::Lapsed, Hold::Lost];

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn hold(&self) -> Hold {
        Self::HOLDS[usize::from(self.hold.load(Ordering::Acquire))]
    }

    fn is_held(&self) -> bool {
        self.hold() == Hold::Held
    }

    fn set(&self, hold: Hold) {
        self.hold.store(hold as u8, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Returns once it is no longer held. Cancel safe.
    async fn given_up(&self) -> Hold {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no news is missed.
            changed.as_mut().enable();
            let hold = self.hold();
            if hold != Hold::Held {
                return hold;
            }
            changed.await;
        }
    }

    /// When it is over unless it is renewed.
    fn due(&self) -> Instant {
        self.newest().renewed + self.ack_wait - margin(self.ack_wait)
    }

    /// When the workload must be gone unless this is renewed; `None` if it may go on without.
    fn until(&self) -> Option<Instant> {
        (!self.goes_on).then(|| self.due())
    }
}

/// One lease; ends when dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<Leases>,
    number: u64,
    entry: Arc<Entry>,
}

/// How long before the ack wait is over a workload must be stopping, so that it is gone before somebody else starts it.
pub fn margin(ack_wait: Duration) -> Duration {
    (ack_wait / 3).min(Duration::from_secs(2))
}

impl Leases {
    /// No leases yet.
    pub fn new(js: JetStream) -> Arc<Self> {
        Arc::new(Self {
            js,
            entries: Mutex::default(),
            next: AtomicU64::new(0),
            added: Notify::new(),
            shortest: Shortest::default(),
            kept_until: watch::Sender::new(None),
        })
    }

    /// How long everything now held may live, renewed with every confirmed beat.
    pub fn kept_until(&self) -> watch::Receiver<Option<Instant>> {
        self.kept_until.subscribe()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Holds a delivery that just came.
    pub fn hold(self: &Arc<Self>, delivery: &Delivery, ack_wait: Duration, goes_on: bool) -> Lease {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let newest = Newest { reply: delivery.reply.clone(), renewed: delivery.received, note: None };
        let entry = Arc::new(Entry {
            queue: delivery.queue,
            ack_wait,
            goes_on,
            hold: AtomicU8::new(Hold::Held as u8),
            changed: Notify::new(),
            newest: Mutex::new(newest),
        });
        let lease = Lease { leases: self.clone(), number, entry: entry.clone() };
        let sooner = {
            let mut entries = self.entries();
            let shortest = self.shortest.swap_min(ack_wait, entries.is_empty());
            entries.insert(number, entry);
            shortest
        };
        if sooner {
            self.added.notify_one();
        }
        lease
    }

    /// Whether the lease with this number is ours at this very moment, whenever the loop last looked.
    pub fn is_held(&self, number: u64) -> bool {
        self.entries().get(&number).is_some_and(|entry| entry.is_held() && Instant::now() < entry.due())
    }

    /// Renews until `stop`. One loop a worker.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut last_beat = Instant::now();
        loop {
            let shortest = self.entries().values().map(|entry| entry.ack_wait).min();
            let Some(shortest) = shortest else {
                tokio::select! {
                    () = self.added.notified() => { last_beat = Instant::now(); continue }
                    () = stop.cancelled() => return,
                }
            };
            let deadline = self.give_up_overdue();
            let wake = (last_beat + shortest / 3).min(deadline);
            tokio::select! {
                () = tokio::time::sleep_until(wake.into()) => {}
                // A shorter lease came.
                () = self.added.notified() => continue,
                () = stop.cancelled() => return,
            }
            // First the overdue: after a freeze a renewal would prolong what is somebody else's by now.
            self.give_up_overdue();
            if last_beat.elapsed() >= shortest / 3 {
                last_beat = Instant::now();
                let beat = self.beat(shortest / 3);
                tokio::pin!(beat);
                loop {
                    let deadline = self.give_up_overdue();
                    tokio::select! {
                        () = &mut beat => break,
                        // Others run out while this one waits for its answer.
                        () = tokio::time::sleep_until(deadline.into()) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Marks what was not renewed in time. Returns when the next one is due.
    fn give_up_overdue(&self) -> Instant {
        let now = Instant::now();
        let mut next = now + Duration::from_secs(3600);
        for entry in self.entries().values().filter(|entry| entry.is_held()) {
            let due = entry.due();
            if due <= now {
                entry.set(if entry.goes_on { Hold::Lapsed } else { Hold::Lost });
            } else {
                next = next.min(due);
            }
        }
        next
    }

    /// Renews all once; an answer later than `within` is none.
    async fn beat(&self, within: Duration) {
        // Per queue all that is held; the last one of each carries the confirmed round trip.
        let mut queues: HashMap<usize, Vec<(u64, Subject)>> = HashMap::new();
        for (number, entry) in self.entries().iter().filter(|(_, entry)| entry.is_held()) {
            queues.entry(entry.queue).or_default().push((*number, entry.newest().reply.clone()));
        }
        let beats = queues.into_values().map(|mut held| async move {
            let sent = Instant::now();
            let numbers: Vec<u64> = held.iter().map(|(number, _)| *number).collect();
            let (_, last) = held.pop()?;
            let renewed = async {
                for (_, reply) in held {
                    self.js.client().publish(reply, Bytes::from_static(b"+WPI")).await.ok()?;
                }
                self.js.request(&last, Bytes::from_static(b"+WPI")).await.ok()
            };
            // Also over the publishes: a client without a connection takes no more than fits its channel.
            tokio::time::timeout(within, renewed).await.ok()??;
            Some((sent, numbers))
        });
        let confirmed = futures_util::future::join_all(beats).await;
        let entries = self.entries();
        let mut until: Option<Instant> = None;
        for (sent, numbers) in confirmed.into_iter().flatten() {
            for number in numbers {
                if let Some(entry) = entries.get(&number) {
                    {
                        let mut newest = entry.newest();
                        newest.renewed = newest.renewed.max(sent);
                    }
                    // Only what is confirmed and held: what is lost ends by itself and must not take the others with it.
                    if entry.is_held()
                        && let Some(ends) = entry.until()
                    {
                        until = Some(until.map_or(ends, |earliest| earliest.min(ends)));
                    }
                }
            }
        }
        if until.is_some() {
            self.kept_until.send_replace(until);
        }
    }
}

impl Lease {
    /// Whether it is still ours.
    pub fn state(&self) -> Hold {
        self.entry.hold()
    }

    /// Returns when it is no longer simply ours. Cancel safe.
    pub async fn changed(&self) -> Hold {
        self.entry.given_up().await
    }

    /// A lapsed lease that was claimed again: ours from now on.
    pub fn reclaimed(&self) {
        self.entry.newest().renewed = Instant::now();
        self.entry.set(Hold::Held);
    }

    /// Writes down for the next boot that the last start of `record` holds it, until this is dropped.
    pub fn note(&self, held: &Held, record: &TaskRecord, kind: &str) {
        if self.entry.newest().note.is_some() {
            return;
        }
        // Not in the way of the beat: it writes a file.
        let note = held.note(record, kind, &self.reply());
        let mut newest = self.entry.newest();
        newest.note = note;
        newest.follow();
    }

    /// Its number, by which a later delivery finds it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where to settle.
    pub fn reply(&self) -> Subject {
        self.entry.newest().reply.clone()
    }

    /// When the workload must be gone unless the lease is renewed; `None` if it may go on without.
    pub fn until(&self) -> Option<Instant> {
        self.entry.until()
    }
}

/// Lets the lease with this number follow a newer delivery of the same task.
pub fn adopt(leases: &Leases, number: u64, delivery: &Delivery) {
    let entry = leases.entries().get(&number).cloned();
    if let Some(entry) = entry {
        let mut newest = entry.newest();
        newest.reply = delivery.reply.clone();
        newest.renewed = delivery.received;
        newest.follow();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let ended = self.leases.entries().remove(&self.number);
        // Its note goes with it, out of the way of the others.
        drop(ended);
    }
}
