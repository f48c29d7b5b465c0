//! The clock of this worker against the server's: what a worker writes down (`retry_at`, heartbeats), others judge by.

use std::sync::Arc;
use std::time::Duration;

use jetstream::{Connection, JetStream};
use schemas::HumanDuration;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::worker::Worker;

/// How often the clock is compared with the server's.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// Compares clocks now and then, and after each reconnect: the server behind it may be another one.
pub async fn keep(worker: Arc<Worker>, connection: Connection, stop: CancellationToken) {
    let mut link = connection.link.clone();
    link.mark_unchanged();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CLOCK_EVERY.mul_f64(rand::random_range(0.9..1.1))) => {}
            changed = link.changed() => {
                if changed.is_err() { return }
                if !link.borrow_and_update().connected { continue }
            }
        }
        heed(&worker.js, &worker.config).await;
    }
}

/// Asks the server which time it is, and says so if ours is another.
pub async fn heed(js: &JetStream, config: &Config) {
    match js.set_clock(&config.names.tasks_stream()).await {
        Ok(apart) if apart > Duration::from_secs(1) => {
            let apart = HumanDuration(apart);
            tracing::warn!(%apart, "this machine's clock is not the server's, which is gone by; correct it (NTP)");
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "the server does not tell the time now"),
    }
}
