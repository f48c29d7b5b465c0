//! A worker that stays up but takes nothing new: a wish from afar, to this boot alone.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemas::cancel::{CordonReply, CordonRequest};
use tokio::sync::watch;

use crate::worker::Worker;

/// Whether it is cordoned, and why. What runs goes on.
#[derive(Debug)]
pub struct Cordon {
    /// The reason as the registry tells it.
    wish: watch::Sender<Option<String>>,
    /// When it was last lifted.
    lifted: Mutex<Option<Instant>>,
}

impl Default for Cordon {
    fn default() -> Self {
        Self { wish: watch::Sender::new(None), lifted: Mutex::default() }
    }
}

impl Cordon {
    /// Why nothing may be taken, if so.
    pub fn reason(&self) -> Option<String> {
        self.wish.borrow().clone()
    }

    /// Whether nothing may be taken.
    pub fn is_on(&self) -> bool {
        self.wish.borrow().is_some()
    }

    /// Told with every change.
    pub fn changes(&self) -> watch::Receiver<Option<String>> {
        self.wish.subscribe()
    }

    /// Whether it was lifted so lately that no pull need have been answered since.
    pub fn lifted_within(&self, time: Duration) -> bool {
        self.lifted.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < time)
    }

    fn set(&self, wish: Option<String>) {
        if wish.is_none() && self.is_on() {
            *self.lifted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.wish.send_replace(wish);
    }
}

/// Does as it is asked. The registry hears of it at once.
pub fn obey(worker: &Worker, request: CordonRequest) -> CordonReply {
    let CordonRequest { cordon, reason } = request;
    let words = reason.filter(|reason| !reason.is_empty()).map_or(String::new(), |reason| format!(": {reason}"));
    worker.cordon.set(cordon.then(|| format!("cordoned{words}")));
    tracing::info!(cordoned = cordon, "cordon");
    worker.beat_soon.notify_one();
    CordonReply { cordoned: cordon, running: worker.running.count() as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cordon_that_was_on_is_lifted() {
        let cordon = Cordon::default();
        let minute = Duration::from_secs(60);
        cordon.set(None);
        assert!(!cordon.is_on() && !cordon.lifted_within(minute));
        cordon.set(Some("cordoned".into()));
        assert!(cordon.is_on() && !cordon.lifted_within(minute));
        cordon.set(None);
        assert!(!cordon.is_on() && cordon.lifted_within(minute) && !cordon.lifted_within(Duration::ZERO));
    }
}
