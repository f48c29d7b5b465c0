//! Waiting for what must come: ask again and again until a deadline, then say what was seen last.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than anything takes on a busy machine, shorter than anyone's patience.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks `probe` until it answers `Ok`; panics with what it saw last when the deadline has passed.
#[track_caller]
pub fn eventually<T>(
    what: impl Into<String>,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let what = what.into();
    async move {
        let deadline = Instant::now() + DEADLINE;
        let mut pause = Duration::from_millis(5);
        let mut seen = String::from("nothing");
        loop {
            match tokio::time::timeout_at(deadline, probe()).await {
                Ok(Ok(value)) => return value,
                Ok(Err(now)) => seen = now,
                Err(_) => seen.push_str(" (and then no answer)"),
            }
            assert!(Instant::now() < deadline, "{caller}: waited {DEADLINE:?} for: {what}\n  last seen: {seen}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// Awaits `future`; panics when the deadline has passed.
#[track_caller]
pub fn in_time<T>(what: impl Into<String>, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let what = what.into();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{caller}: waited {DEADLINE:?} for: {what}"),
        }
    }
}
