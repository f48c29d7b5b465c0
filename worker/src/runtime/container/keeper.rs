//! The worker's end of the guard: there is always one, where one can be started.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::guard::{Guard, Target};
use super::labels::Owner;
use crate::runtime::process::GuardCommand;

/// After a guard that could not be started.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// After one that ended, so that one that always ends makes no storm.
const START_AGAIN: Duration = Duration::from_millis(100);

/// Holds the guard, and starts another where it ends.
pub(in crate::runtime) struct Keeper {
    command: GuardCommand,
    target: Target,
    owner: Owner,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    guard: Option<Arc<Guard>>,
    /// Until when mortal containers may live; kept for the next guard.
    until: Option<Instant>,
    /// What earlier guards did.
    kills: u64,
}

impl Keeper {
    /// Starts the first one. A worker without a guard works all the same; its capabilities tell.
    pub(in crate::runtime) async fn start(command: GuardCommand, target: Target, owner: Owner) -> Self {
        let keeper = Self { command, target, owner, held: Mutex::default() };
        keeper.start_guard().await;
        keeper
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // No code that holds it can panic half way.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start_guard(&self) -> Option<Arc<Guard>> {
        match Guard::start(&self.command, &self.target, &self.owner).await {
            Ok(guard) => {
                let guard = Arc::new(guard);
                let mut held = self.held();
                if let Some(until) = held.until {
                    guard.extend(until);
                }
                held.guard = Some(guard.clone());
                Some(guard)
            }
            Err(error) => {
                tracing::warn!(%error, "no guard of containers: they outlive a worker that is killed or frozen");
                None
            }
        }
    }

    /// Whether there is one now.
    pub(in crate::runtime) fn is_guarded(&self) -> bool {
        self.held().guard.is_some()
    }

    /// Mortal containers may live until then at least.
    pub(in crate::runtime) fn extend(&self, until: Instant) {
        let mut held = self.held();
        held.until = held.until.max(Some(until));
        if let Some(guard) = &held.guard {
            guard.extend(until);
        }
    }

    /// Whether that time is over: whoever is to be started now may not live.
    pub(in crate::runtime) fn has_lapsed(&self) -> bool {
        self.held().until.is_some_and(|until| until <= Instant::now())
    }

    /// How often guards began to kill what was not kept alive.
    pub(in crate::runtime) fn kills(&self) -> u64 {
        let held = self.held();
        held.kills + held.guard.as_ref().map_or(0, |guard| guard.kills())
    }

    /// Starts another one whenever it ends, until `stop`.
    pub(in crate::runtime) async fn keep(&self, stop: CancellationToken) {
        let keeping = async {
            loop {
                let guard = self.held().guard.clone();
                match guard {
                    Some(guard) => {
                        guard.gone().await;
                        tracing::warn!("the guard of the containers was killed; starting another");
                        let mut held = self.held();
                        held.kills += guard.kills();
                        held.guard = None;
                    }
                    None => tokio::time::sleep(TRY_AGAIN).await,
                }
                tokio::time::sleep(START_AGAIN).await;
                self.start_guard().await;
            }
        };
        stop.run_until_cancelled(keeping).await;
    }

    /// Leaves the guard to itself: it removes all of this life of the worker as soon as the engine lets it.
    pub(in crate::runtime) fn leave(&self) {
        drop(self.held().guard.take());
    }

    /// Lets the guard go, once nothing of this life of the worker is left. Nobody may keep it any more.
    pub(in crate::runtime) async fn end(&self) {
        let guard = self.held().guard.take();
        if let Some(guard) = guard.and_then(Arc::into_inner) {
            guard.end().await;
        }
    }
}
