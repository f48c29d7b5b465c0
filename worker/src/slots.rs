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
    /// With fewer free than this nobody is woken.
    wanted: AtomicUsize,
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
        let (free, wanted) = (AtomicUsize::new(total), AtomicUsize::new(1));
        Self { shared: Arc::new(Shared { total, free, wanted, freed: Notify::new() }) }
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

    /// Returns once a slot was freed since the last call and at least `wanted` are free: with short tasks a wake-up for
    /// each would cost more than the task. Cancel safe.
    pub async fn freed(&self, wanted: usize) {
        // A slot freed before this is told of below, one freed after it by its drop.
        let before = self.shared.wanted.swap(wanted, Ordering::SeqCst);
        if wanted < before && self.shared.free.load(Ordering::SeqCst) >= wanted {
            self.shared.freed.notify_one();
        }
        self.shared.freed.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let free = self.shared.free.fetch_add(1, Ordering::SeqCst) + 1;
        if free >= self.shared.wanted.load(Ordering::SeqCst) {
            self.shared.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_slot_is_free_again_when_dropped() {
        let slots = Slots::new(1);
        let slot = slots.take().unwrap();
        assert!(slots.take().is_none());
        drop(slot);
        slots.freed(1).await;
        assert_eq!(slots.free(), 1);
    }

    #[tokio::test]
    async fn who_wants_many_is_not_woken_for_one_and_who_wants_fewer_later_is_told_at_once() {
        let slots = Slots::new(4);
        let mut taken: Vec<_> = (0..4).filter_map(|_| slots.take()).collect();
        taken.pop();
        slots.freed(1).await;
        taken.pop();
        let woken = |wanted| slots.freed(wanted).now_or_never().is_some();
        assert!(woken(2), "the second made it two");
        assert!(!woken(4));
        taken.pop();
        assert!(!woken(4), "three are free");
        assert!(woken(3), "three will do now");
        taken.pop();
        assert!(woken(4));
    }
}
