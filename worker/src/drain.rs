//! The end of a worker: nothing new is pulled, what runs ends by itself or is handed back, all within the grace.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::worker::Worker;

/// How a worker is told to end. The first signal drains, the second stops now.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Pull nothing more, finish or hand back within the drain grace, leave.
    pub drain: CancellationToken,
    /// Stop what runs at once and hand it back.
    pub now: CancellationToken,
}

/// The last part of the drain grace, in which what still runs is stopped: signal, this long, kill.
pub fn kill_grace(drain_grace: Duration) -> Duration {
    (drain_grace / 4).min(Duration::from_secs(5))
}

/// Lets attempts end by themselves, then stops them. Returns when none is left.
pub async fn drain(worker: &Worker, attempts: &TaskTracker, mut grace: Duration, stop: &Stop) {
    attempts.close();
    let now = &stop.now;
    let by_themselves = |grace: Duration| tokio::time::sleep(grace.saturating_sub(kill_grace(grace)));
    // Asked for from afar it may be long; a signal on this machine asks for our own grace.
    let shortened = async {
        stop.drain.cancelled().await;
        by_themselves(worker.config.drain_grace).await;
    };
    tokio::select! {
        () = attempts.wait() => return,
        () = by_themselves(grace) => {}
        () = shortened, if grace > worker.config.drain_grace => grace = worker.config.drain_grace,
        () = now.cancelled() => {}
    }
    worker.stop_attempts.cancel();
    // Bounded: each workload is killed after its own grace, and what cannot be recorded is given up after this.
    let recorded = kill_grace(grace) + Duration::from_secs(10);
    tokio::select! {
        () = attempts.wait() => return,
        () = now.cancelled() => {}
        () = tokio::time::sleep(recorded) => tracing::warn!("attempts did not end in the drain grace"),
    }
    worker.stop_now.cancel();
    if tokio::time::timeout(Duration::from_secs(10), attempts.wait()).await.is_err() {
        tracing::error!(left = attempts.len(), "attempts left behind; their leases end by themselves");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kill_fits_into_the_grace() {
        assert_eq!(kill_grace(Duration::from_secs(25)), Duration::from_secs(5));
        assert_eq!(kill_grace(Duration::from_secs(4)), Duration::from_secs(1));
        assert_eq!(kill_grace(Duration::ZERO), Duration::ZERO);
    }
}
