//! Who has which workspace, for people and other programs to see: `shoal_slots/<worker>.<slot>`.
//!
//! A slot is on the disk of one worker, whose id one process holds at a time: that is the lock. The record tells of it,
//! is renewed while the job runs, and is forgotten by the server after [`schemas::stores::LEASES_KEPT`] when nobody does.

use std::time::Duration;

use async_nats::HeaderMap;
use schemas::agent_job::SlotLease;
use schemas::stores::LEASES_KEPT;

use crate::worker::Worker;

/// Renewed well before it would be forgotten.
const RENEW_EVERY: Duration = Duration::from_secs(LEASES_KEPT.as_secs() / 4);

/// Tells of a taken slot for as long as it is polled. Cancel safe; whoever drops it says so with [`free`].
pub async fn hold(worker: &Worker, slot: u32, lease: &SlotLease) -> std::convert::Infallible {
    loop {
        put(worker, slot, serde_json::to_vec(lease).expect("our own types are JSON")).await;
        tokio::time::sleep(RENEW_EVERY).await;
    }
}

/// The slot is free.
pub async fn free(worker: &Worker, slot: u32) {
    let subject = worker.config.names.slot_subject(&worker.id, slot);
    let mut headers = HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    if let Err(error) = worker.js.publish(subject, headers, bytes::Bytes::new()).await {
        tracing::debug!(slot, %error, "the lease of a workspace runs out by itself");
    }
}

async fn put(worker: &Worker, slot: u32, body: Vec<u8>) {
    let subject = worker.config.names.slot_subject(&worker.id, slot);
    if let Err(error) = worker.js.publish(subject, HeaderMap::new(), body.into()).await {
        tracing::debug!(slot, %error, "the lease of a workspace is not told");
    }
}
