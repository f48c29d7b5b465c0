//! What all parts of one worker share. Each piece of state has one owner; this only holds them together.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use jetstream::JetStream;
use schemas::{AgentId, AgentRecord, QueueName, QueueSettings, StartId, TaskKey, Timestamp};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::agent::Agents;
use crate::config::Config;
use crate::cordon::Cordon;
use crate::folder::Folders;
use crate::handlers::Handlers;
use crate::held::Held;
use crate::nats::lease::Leases;
use crate::nats::store::Store;
use crate::placement::Looks;
use crate::runtime::Runtime;
use crate::slots::Slots;
use crate::tally::Tally;

/// One worker.
pub struct Worker {
    /// Its settings.
    pub config: Config,
    /// Its id.
    pub id: AgentId,
    /// This boot.
    pub instance: String,
    /// The server.
    pub js: JetStream,
    /// Records and dead letters.
    pub store: Store,
    /// What it holds.
    pub leases: Arc<Leases>,
    /// The same on disk, for its next boot.
    pub held: Held,
    /// Where its workloads run.
    pub folders: Folders,
    /// Room.
    pub slots: Slots,
    /// Functions of this program.
    pub handlers: Handlers,
    /// By name, only those it allows.
    pub runtimes: BTreeMap<&'static str, Arc<dyn Runtime>>,
    /// What it has for agent jobs, if it runs them.
    pub agents: Option<Agents>,
    /// Whether `call` workloads are allowed.
    pub calls: bool,
    /// In the order of `config.queues`.
    pub queues: Vec<Queue>,
    /// What runs.
    pub running: Running,
    /// Why it may fetch nothing now, if so.
    pub blocked: watch::Sender<Option<String>>,
    /// Whether somebody wants it to fetch nothing.
    pub cordon: Cordon,
    /// What it knows of who else runs what.
    pub looks: Looks,
    /// A beat is due before its time: something of the record has changed.
    pub beat_soon: Notify,
    /// What it gave back unstarted.
    pub given_back: GivenBack,
    /// When the server last did what.
    pub pulse: Pulse,
    /// What it has run.
    pub tally: Tally,
    /// What it said of itself at its last beat.
    pub said: watch::Sender<Option<AgentRecord>>,
    /// Attempts stop and are handed back.
    pub stop_attempts: CancellationToken,
    /// The same, at once, without grace.
    pub stop_now: CancellationToken,
}

/// One queue of a worker.
pub struct Queue {
    /// Its name, which is also its consumer's.
    pub name: QueueName,
    ack_wait_ms: AtomicU64,
    /// Its settings as last heard.
    settings: RwLock<Arc<QueueSettings>>,
}

impl Queue {
    /// A queue whose consumer gives leases of `ack_wait`.
    pub fn new(name: QueueName, ack_wait: Duration, settings: QueueSettings) -> Self {
        let queue = Self { name, ack_wait_ms: AtomicU64::new(0), settings: RwLock::new(Arc::new(settings)) };
        queue.set_ack_wait(ack_wait);
        queue
    }

    /// The lease of its deliveries.
    pub fn ack_wait(&self) -> Duration {
        Duration::from_millis(self.ack_wait_ms.load(Ordering::Relaxed))
    }

    /// Its consumer was made again.
    pub fn set_ack_wait(&self, ack_wait: Duration) {
        self.ack_wait_ms.store(ack_wait.as_millis() as u64, Ordering::Relaxed);
    }

    /// Its settings now.
    pub fn settings(&self) -> Arc<QueueSettings> {
        self.settings.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// They were changed.
    pub fn set_settings(&self, settings: QueueSettings) {
        *self.settings.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(settings);
    }
}

/// When the server last answered what; milliseconds since the epoch, 0 for never.
#[derive(Debug, Default)]
pub struct Pulse {
    fetch: AtomicI64,
    ack: AtomicI64,
}

impl Pulse {
    /// A pull was answered.
    pub fn fetched(&self, now: Timestamp) {
        self.fetch.store(now.as_millis(), Ordering::Relaxed);
    }

    /// An ack was confirmed.
    pub fn acked(&self, now: Timestamp) {
        self.ack.store(now.as_millis(), Ordering::Relaxed);
    }

    /// When a pull was last answered.
    pub fn last_fetch(&self) -> Option<Timestamp> {
        Some(self.fetch.load(Ordering::Relaxed)).filter(|ms| *ms != 0).map(Timestamp::from_millis)
    }

    /// When an ack was last confirmed.
    pub fn last_ack(&self) -> Option<Timestamp> {
        Some(self.ack.load(Ordering::Relaxed)).filter(|ms| *ms != 0).map(Timestamp::from_millis)
    }
}

/// One run: its message's sequence and when that was stored.
type Run = (u64, Timestamp);

/// Which runs are in this worker's hands, each with its task and the number of its lease.
#[derive(Debug, Default)]
pub struct Running {
    runs: Mutex<HashMap<Run, (TaskKey, u64)>>,
}

/// One run in this worker's hands, until dropped.
pub struct Entered<'a> {
    running: &'a Running,
    run: Run,
}

impl Running {
    fn runs(&self) -> MutexGuard<'_, HashMap<Run, (TaskKey, u64)>> {
        self.runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes a run in hand; the lease of the one that has it already is the error.
    pub fn enter(&self, key: &TaskKey, run: Run, lease: u64) -> Result<Entered<'_>, u64> {
        match self.runs().entry(run) {
            std::collections::hash_map::Entry::Occupied(held) => Err(held.get().1),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert((key.clone(), lease));
                Ok(Entered { running: self, run })
            }
        }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.runs().len()
    }

    /// The lease of a run in this worker's hands.
    pub fn lease(&self, key: &TaskKey, sequence: u64) -> Option<u64> {
        let runs = self.runs();
        runs.iter().find(|((number, _), (own, _))| own == key && *number == sequence).map(|(_, (_, lease))| *lease)
    }

    /// Some of them by name.
    pub fn names(&self, most: usize) -> Vec<String> {
        self.runs().values().take(most).map(|(key, _)| key.to_string()).collect()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.running.runs().remove(&self.run);
    }
}

/// Runs that this worker lately gave back unstarted, because they came when no slot was free. Their next delivery is no
/// sign that somebody was lost with them.
#[derive(Debug, Default)]
pub struct GivenBack {
    sequences: Mutex<VecDeque<u64>>,
}

impl GivenBack {
    /// More than can be under way at once between a worker and its pulls.
    const KEPT: usize = 4096;

    /// Keeps one in mind.
    pub fn add(&self, sequence: u64) {
        let mut sequences = self.sequences.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if sequences.len() == Self::KEPT {
            sequences.pop_front();
        }
        sequences.push_back(sequence);
    }

    /// Whether it is kept in mind.
    pub fn contains(&self, sequence: u64) -> bool {
        self.sequences.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&sequence)
    }
}

/// A new random id for one start.
pub fn new_start_id() -> StartId {
    let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let id: String = (0..12).map(|_| char::from(letters[rand::random_range(0..letters.len())])).collect();
    StartId::new(id).expect("drawn from the allowed characters")
}
