//! How many attempts fit. A slot is taken when a delivery arrives and freed on drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Room for attempts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    total: usize,
    free: AtomicUsize,
    freed: Notify,
}

/// Room for one attempt.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
}

impl Slots {
    /// Room for `total` attempts.
    pub fn new(total: usize) -> Self {
        Self { shared: Arc::new(Shared { total, free: AtomicUsize::new(total), freed: Notify::new() }) }
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.shared.total
    }

    /// How many are free now.
    pub fn free(&self) -> usize {
        self.shared.free.load(Ordering::Acquire)
    }

    /// How many are taken now.
    pub fn taken(&self) -> usize {
        self.total().saturating_sub(self.free())
    }

    /// Takes one, if one is free.
    pub fn take(&self) -> Option<Slot> {
        self.shared
            .free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(1))
            .ok()
            .map(|_| Slot { shared: self.shared.clone() })
    }

    /// Returns once a slot was freed since the last call. Cancel safe.
    pub async fn freed(&self) {
        self.shared.freed.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.free.fetch_add(1, Ordering::AcqRel);
        self.shared.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_is_free_again_when_dropped() {
        let slots = Slots::new(1);
        let slot = slots.take().unwrap();
        assert!(slots.take().is_none());
        drop(slot);
        slots.freed().await;
        assert_eq!(slots.free(), 1);
    }
}
