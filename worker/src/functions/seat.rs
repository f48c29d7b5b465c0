//! One instance that this worker holds: its container, its record, its use.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use functions::{CallError, Caller};
use schemas::{FunctionName, Instance, InstanceStatus, StartId, Timestamp};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::runtime::instances::Instances;
use crate::runtime::{Runtime, RuntimeError};

/// How often a record is written over the writes of others.
const TRIES: usize = 20;
/// `last_used` is written no more often than this.
const TOUCH_EVERY: Duration = Duration::from_secs(5);

/// An instance.
pub struct Seat {
    /// Whose.
    pub function: FunctionName,
    /// Which slot.
    pub index: u32,
    /// Its start.
    pub start: StartId,
    /// The container's id.
    pub id: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it runs.
    pub runtime: Arc<dyn Runtime>,
    /// Calls go to it. Changed under its pool's lock.
    pub takes: AtomicBool,
    /// Calls under way. Changed under its pool's lock.
    pub busy: AtomicU32,
    /// A call ended.
    pub calmer: Notify,
    /// Somebody doubts that it is well.
    pub doubted: Notify,
    /// Somebody wants it to look at its definition, or its record, again.
    pub news: Notify,
    /// Its container ended.
    pub ended: CancellationToken,
    /// Last call, in milliseconds since 1970.
    used: AtomicI64,
    /// The same, as its record has it.
    told_used: AtomicI64,
    is_paused: Mutex<bool>,
    record: Mutex<Kept>,
}

/// The record as this worker last knew it.
struct Kept {
    instance: Instance,
    revision: u64,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It is ours, and as it says.
    Ours(InstanceStatus),
    /// The slot is another's, or nobody's, by now.
    Lost,
}

impl Seat {
    /// The instance that `record` tells of, written at `revision`.
    pub fn new(
        record: Instance,
        revision: u64,
        start: StartId,
        address: SocketAddr,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let used = record.last_used.unwrap_or(record.created_at).as_millis();
        Self {
            function: record.function.clone(),
            index: record.index,
            start,
            id: record.id.clone().unwrap_or_default(),
            address,
            runtime,
            takes: AtomicBool::new(true),
            busy: AtomicU32::new(0),
            calmer: Notify::new(),
            doubted: Notify::new(),
            news: Notify::new(),
            ended: CancellationToken::new(),
            used: AtomicI64::new(used),
            told_used: AtomicI64::new(used),
            is_paused: Mutex::new(record.status == InstanceStatus::Paused),
            record: Mutex::new(Kept { instance: record, revision }),
        }
    }

    /// Where it is kept; only runtimes that keep instances are ever given one.
    pub fn instances(&self) -> Result<&dyn Instances, RuntimeError> {
        let runtime = self.runtime.name();
        self.runtime.instances().ok_or(RuntimeError::Unimplemented { runtime, what: "keep instances" })
    }

    /// When it was last called.
    pub fn last_used(&self) -> Timestamp {
        Timestamp::from_millis(self.used.load(Ordering::Relaxed))
    }

    /// It is called. Whether its record should be told.
    pub fn touch(&self, now: Timestamp, idle_timeout: Duration) -> bool {
        let now = now.as_millis();
        self.used.fetch_max(now, Ordering::Relaxed);
        let every = TOUCH_EVERY.min(idle_timeout / 10).as_millis() as i64;
        let told = self.told_used.load(Ordering::Relaxed);
        // Of many calls at once, one tells.
        now - told >= every && self.told_used.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether no call is under way.
    pub fn is_calm(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// Completes once no call is under way. Cancel safe.
    pub async fn calm(&self) {
        loop {
            let calmer = self.calmer.notified();
            tokio::pin!(calmer);
            // Listens from here on, so that the last end is not missed.
            calmer.as_mut().enable();
            if self.is_calm() {
                return;
            }
            calmer.await;
        }
    }

    /// Lets it go on if it was halted. Whether it was.
    pub async fn wake(&self) -> Result<bool, RuntimeError> {
        let mut paused = self.is_paused.lock().await;
        if !*paused {
            return Ok(false);
        }
        self.instances()?.halt_instance(&self.id, false).await?;
        *paused = false;
        Ok(true)
    }

    /// Halts it, unless a call is under way or came meanwhile. Whether it is halted now.
    pub async fn pause(&self) -> Result<bool, RuntimeError> {
        let mut paused = self.is_paused.lock().await;
        if *paused || !self.is_calm() {
            return Ok(*paused);
        }
        self.instances()?.halt_instance(&self.id, true).await?;
        *paused = true;
        Ok(true)
    }

    /// Whether it is halted.
    pub async fn is_paused(&self) -> bool {
        *self.is_paused.lock().await
    }

    /// Writes its record anew, if it is still this instance's.
    pub async fn rewrite(&self, caller: &Caller, change: impl Fn(&mut Instance)) -> Result<Standing, CallError> {
        let mut kept = self.record.lock().await;
        for _ in 0..TRIES {
            let mut next = kept.instance.clone();
            next.last_used = Some(self.last_used());
            change(&mut next);
            if next == kept.instance {
                return Ok(Standing::Ours(next.status));
            }
            if let Some(revision) = caller.put_instance(&next, kept.revision).await? {
                let status = next.status;
                *kept = Kept { instance: next, revision };
                return Ok(Standing::Ours(status));
            }
            match caller.instance(&self.function, self.index).await? {
                (Some(instance), revision) if instance.start.as_ref() == Some(&self.start) => {
                    let status = instance.status;
                    *kept = Kept { instance, revision };
                    // A wish to stop is not written over by anything less.
                    if status == InstanceStatus::Stopping {
                        return Ok(Standing::Ours(status));
                    }
                }
                _ => return Ok(Standing::Lost),
            }
        }
        Ok(Standing::Ours(kept.instance.status))
    }

    /// Reads how its record stands.
    pub async fn standing(&self, caller: &Caller) -> Result<Standing, CallError> {
        let mut kept = self.record.lock().await;
        match caller.instance(&self.function, self.index).await? {
            (Some(instance), revision) if instance.start.as_ref() == Some(&self.start) => {
                let status = instance.status;
                *kept = Kept { instance, revision };
                Ok(Standing::Ours(status))
            }
            _ => Ok(Standing::Lost),
        }
    }

    /// Removes its record, or writes instead why there is no container any more; unless the slot is another's by now.
    pub async fn give_up(&self, caller: &Caller, instead: Option<Instance>) -> Result<(), CallError> {
        let mut kept = self.record.lock().await;
        for _ in 0..TRIES {
            let written = match &instead {
                None => caller.remove_instance(&self.function, self.index, kept.revision).await?,
                Some(failed) => caller.put_instance(failed, kept.revision).await?,
            };
            if written.is_some() {
                return Ok(());
            }
            match caller.instance(&self.function, self.index).await? {
                (Some(instance), revision) if instance.start.as_ref() == Some(&self.start) => {
                    *kept = Kept { instance, revision };
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Its record as it is known here.
    pub async fn record(&self) -> Instance {
        self.record.lock().await.instance.clone()
    }
}
