//! A slot of the repository pool: taken before a job begins, renewed while it runs, given back at its end.

use std::time::Duration;

use agents::retry::{Again, Retry};
use reqwest::{Method, StatusCode};
use schemas::transcript::Event;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::rest::{Failure, Rest};

/// Asked again after this where none is free and the pool does not say when.
const FULL: Duration = Duration::from_secs(5);
/// Asked again not sooner.
const SOONEST: Duration = Duration::from_millis(200);
/// Longest wait for a free slot.
const PATIENCE: Duration = Duration::from_secs(300);
/// Tries where the pool is down.
const TRIES: u32 = 5;
/// For giving back.
const GIVING_BACK: Duration = Duration::from_secs(2);

/// One that is ours.
#[derive(Clone, Debug)]
pub struct PoolSlot {
    id: String,
    lease: Duration,
}

/// What the pool answers.
#[derive(Deserialize)]
struct Granted {
    slot: String,
    lease_s: u64,
}

impl PoolSlot {
    /// Waits while none is free, for at most half of what is left of `retry`'s time.
    pub(super) async fn take(
        pool: &Rest,
        wish: &Value,
        retry: Retry,
        mut tell: impl FnMut(Event),
    ) -> Result<Self, Failure> {
        let retry = Retry { tries: TRIES, ..retry };
        let now = Instant::now();
        let half = retry.until.map_or(PATIENCE, |until| until.saturating_duration_since(now) / 2);
        let until = now + half.min(PATIENCE);
        let mut failed = 0;
        loop {
            let request = pool.request(Method::POST, &["slots"]).json(wish);
            let failure = match pool.ask::<Granted>(request).await {
                Ok(granted) if granted.slot.is_empty() || granted.lease_s == 0 => {
                    return Err(pool.nonsense("a slot needs an id and a lease of some seconds"));
                }
                Ok(granted) => return Ok(Self { id: granted.slot, lease: Duration::from_secs(granted.lease_s) }),
                Err(failure) => failure,
            };
            let full = [Some(StatusCode::CONFLICT), Some(StatusCode::TOO_MANY_REQUESTS)].contains(&failure.status());
            let pause = if full {
                let wished = match failure.again() {
                    Again::After(wished) => wished,
                    Again::Soon | Again::Never => FULL,
                };
                Some(wished.max(SOONEST)).filter(|pause| Instant::now() + *pause < until)
            } else {
                failed += 1;
                retry.pause(failed, failure.again())
            };
            let Some(pause) = pause else { return Err(failure) };
            tell(Event::Retry {
                what: "slot".to_owned(),
                why: failure.to_string(),
                after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            });
            tokio::time::sleep(pause).await;
        }
    }
}

impl super::Services {
    /// Renews it for as long as it is polled. The job goes on without: its workspace is this worker's own.
    pub async fn renew(&self, slot: &PoolSlot, mut warn: impl FnMut(String)) -> std::convert::Infallible {
        let Some(pool) = &self.pool else { std::future::pending().await };
        let mut told = false;
        loop {
            tokio::time::sleep(slot.lease / 3).await;
            let Err(failure) = pool.send(pool.request(Method::PUT, &["slots", &slot.id])).await else { continue };
            if !std::mem::replace(&mut told, true) {
                warn(format!("the slot `{}` is not renewed: {failure}", slot.id));
            }
            if failure.again() == Again::Never {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Gives it back; what fails is a warning, for it runs out by itself.
    pub async fn give_back(&self, slot: &PoolSlot) -> Option<String> {
        let pool = self.pool.as_ref()?;
        let request = pool.request(Method::DELETE, &["slots", &slot.id]).timeout(GIVING_BACK);
        match pool.send(request).await {
            Ok(_) => None,
            // It ran out, or was given back already.
            Err(failure) if matches!(failure.status(), Some(StatusCode::NOT_FOUND | StatusCode::GONE)) => None,
            Err(failure) => {
                Some(format!("the slot `{}` is not given back, and runs out by itself: {failure}", slot.id))
            }
        }
    }
}
