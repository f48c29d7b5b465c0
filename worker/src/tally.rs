//! What a worker has run since it began, counted for `nats micro stats`. Only counts: what happened to a task is in its
//! record.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemas::State;
use schemas::agent::Tally as Counts;

/// Counters of one boot.
#[derive(Debug, Default)]
pub struct Tally {
    started: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    cancelled: AtomicU64,
    lost: AtomicU64,
    ended: AtomicU64,
    took_us: AtomicU64,
}

impl Tally {
    /// An attempt starts.
    pub fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt ended, and its record says so.
    pub fn end(&self, state: State, took: Duration) {
        let counter = match state {
            State::Succeeded => &self.succeeded,
            State::Failed => &self.failed,
            State::Retrying => &self.retried,
            State::Cancelled => &self.cancelled,
            State::Lost => &self.lost,
            // No attempt ends so.
            State::Running | State::Expired => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.took_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// An attempt is somebody else's by now.
    pub fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            started: read(&self.started),
            succeeded: read(&self.succeeded),
            failed: read(&self.failed),
            retried: read(&self.retried),
            cancelled: read(&self.cancelled),
            lost: read(&self.lost),
            average_ms: read(&self.took_us).checked_div(read(&self.ended)).unwrap_or_default() as f64 / 1_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_counted_once_and_the_average_is_of_those() {
        let tally = Tally::default();
        assert_eq!(tally.counts(), Counts::default());
        for state in [State::Succeeded, State::Failed, State::Retrying, State::Cancelled] {
            tally.start();
            tally.end(state, Duration::from_millis(10));
        }
        tally.start();
        tally.lose();
        let counts = tally.counts();
        assert_eq!((counts.started, counts.succeeded, counts.failed), (5, 1, 1));
        assert_eq!((counts.retried, counts.cancelled, counts.lost), (1, 1, 1));
        assert_eq!(counts.average_ms, 10.0);
    }
}
