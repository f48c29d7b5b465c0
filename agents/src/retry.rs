//! Tries again what may pass: a few times, with growing pauses of chance length, never beyond a deadline.
//!
//! The pause before try *n* + 1 has 70 to 100 % of `first` · 2ⁿ⁻¹: twenty jobs that fail together do not come back together,
//! and none has used up its tries before the other side has been restarted. What the other side asks for goes before it, if
//! that is longer.

use std::fmt::Display;
use std::time::Duration;

use rand::Rng;
use schemas::transcript::Event;
use tokio::time::Instant;

/// The shortest pause, as part of the longest.
const LEAST: f64 = 0.7;

/// How often, and how long apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all, the first included.
    pub tries: u32,
    /// Longest pause before the second try; doubled for each further one.
    pub first: Duration,
    /// No pause of ours is longer. What the other side asks for may be.
    pub longest: Duration,
    /// No pause ends later than this. Who would have to wait beyond it gives up at once.
    pub until: Option<Instant>,
}

impl Default for Retry {
    /// Three tries; about 1 s, then about 2 s between them, more than 2 s in all; no deadline.
    fn default() -> Self {
        Self { tries: 3, first: Duration::from_secs(1), longest: Duration::from_secs(30), until: None }
    }
}

/// Whether a failure is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// No.
    Never,
    /// Yes, after a pause of ours.
    Soon,
    /// Yes, but not before this: the other side asked for it.
    After(Duration),
}

impl From<bool> for Again {
    fn from(retryable: bool) -> Self {
        if retryable { Self::Soon } else { Self::Never }
    }
}

impl Retry {
    /// The same, but with nothing begun after `until`.
    pub fn until(self, until: Instant) -> Self {
        Self { until: Some(self.until.map_or(until, |mine| mine.min(until))), ..self }
    }

    /// The pause after try number `tried`, unless that was the last one.
    pub fn pause(&self, tried: u32, again: Again) -> Option<Duration> {
        let wished = match again {
            Again::Never => return None,
            Again::Soon => Duration::ZERO,
            Again::After(wished) => wished,
        };
        if tried >= self.tries {
            return None;
        }
        let most = self.first.saturating_mul(1 << tried.saturating_sub(1).min(20)).min(self.longest);
        let pause = most.mul_f64(rand::rng().random_range(LEAST..=1.0)).max(wished);
        match self.until {
            Some(until) if Instant::now().checked_add(pause).is_none_or(|then| then >= until) => None,
            _ => Some(pause),
        }
    }
}

/// Runs `work` until it succeeds, fails for good, or was tried often enough; then the last error. Each further try is
/// told before its pause.
///
/// Cancel safe as far as `work` is. (No `AsyncFnMut`: its futures are not seen to be `Send` with what they borrow. Who
/// needs mutable state in between writes the loop around [`Retry::pause`].)
pub async fn retried<T, E: Display, F: Future<Output = Result<T, E>>>(
    retry: &Retry,
    what: &str,
    again: impl Fn(&E) -> Again,
    mut tell: impl FnMut(Event),
    mut work: impl FnMut() -> F,
) -> Result<T, E> {
    let mut tried = 0;
    loop {
        tried += 1;
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(pause) = retry.pause(tried, again(&error)) else { return Err(error) };
        tell(Event::Retry {
            what: what.to_owned(),
            why: error.to_string(),
            after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        });
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tries(retry: Retry, again: Again) -> (u32, Vec<u64>, Duration) {
        let (mut tried, mut told, began) = (0, Vec::new(), Instant::now());
        let failed: Result<(), &str> = retried(
            &retry,
            "fetch",
            |_| again,
            |event| match event {
                Event::Retry { after_ms, .. } => told.push(after_ms),
                other => panic!("{other:?}"),
            },
            || {
                tried += 1;
                std::future::ready(Err("no route"))
            },
        )
        .await;
        assert_eq!(failed, Err("no route"));
        (tried, told, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_three_times_and_each_pause_is_told() {
        let (tried, told, took) = tries(Retry::default(), Again::Soon).await;
        assert_eq!((tried, told.len()), (3, 2));
        assert!((700..=1_000).contains(&told[0]) && (1_400..=2_000).contains(&told[1]), "{told:?}");
        assert!(took > Duration::from_secs(2), "a restart of the other side is outlived: {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_pass_is_tried_once() {
        assert_eq!(tries(Retry::default(), Again::Never).await, (1, Vec::new(), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_other_side_asks_for_is_waited_for() {
        let (tried, told, took) = tries(Retry::default(), Again::After(Duration::from_secs(60))).await;
        assert_eq!((tried, told), (3, vec![60_000, 60_000]));
        assert!(took >= Duration::from_secs(120));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline() {
        let retry = Retry::default().until(Instant::now() + Duration::from_secs(90));
        let (tried, told, took) = tries(retry, Again::After(Duration::from_secs(60))).await;
        assert_eq!((tried, told), (2, vec![60_000]));
        assert!(took < Duration::from_secs(90), "gave up at once: {took:?}");
        let retry = Retry { tries: u32::MAX, ..retry }.until(Instant::now() + Duration::from_secs(3600));
        assert!(tries(retry, Again::Soon).await.2 < Duration::from_secs(90), "the earlier deadline holds");
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_ends_it() {
        // Spawned: what is tried again lives in a worker's task, so it is `Send` with whatever it borrows.
        let done = tokio::spawn(async {
            let tried = std::sync::atomic::AtomicU32::new(0);
            let name = String::from("fetch");
            let line: &str = &name;
            let work = || async {
                let tried = tried.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                tokio::task::yield_now().await;
                if tried < 3 { Err("no route") } else { Ok((tried, line.len())) }
            };
            retried(&Retry::default(), line, |_: &&str| Again::Soon, |_| {}, work).await
        });
        assert_eq!(done.await.unwrap(), Ok((3, 5)));
    }
}
