//! The present by the server's clock. Ours may be an hour off, or jump; what one program writes down, another judges by.

use std::sync::RwLock;
use std::time::{Duration, Instant};

use schemas::Timestamp;

use crate::{ApiError, JetStream};

/// Clocks that are no further apart count as one: half of it may be the way of the answer.
const TOLERANCE: Duration = Duration::from_secs(1);

/// When the server said which time it is.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    server: Timestamp,
    heard: Instant,
}

/// Our own clock, as long as it agrees with the server's last word; else what the server would say now.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    anchor: RwLock<Option<Anchor>>,
}

impl Clock {
    fn now(&self) -> Timestamp {
        let anchor = *self.anchor.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        judge(Timestamp::now(), anchor.map(|anchor| anchor.server.plus(anchor.heard.elapsed())))
    }

    fn set(&self, anchor: Anchor) {
        *self.anchor.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(anchor);
    }
}

fn apart(ours: Timestamp, theirs: Timestamp) -> Duration {
    ours.since(theirs).max(theirs.since(ours))
}

fn judge(ours: Timestamp, theirs: Option<Timestamp>) -> Timestamp {
    theirs.filter(|theirs| apart(ours, *theirs) > TOLERANCE).unwrap_or(ours)
}

/// The server's present, where it said `ts` somewhere within the last `took`, which a busy server makes long: our own as
/// far as that agrees, else the nearest that it may be.
fn present(ours: Timestamp, ts: Timestamp, took: Duration) -> Timestamp {
    ours.clamp(ts, ts.plus(took))
}

impl JetStream {
    /// The present: by our own clock, or by the server's where [`JetStream::set_clock`] found them more than a second
    /// apart.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Asks the leader of `stream` which time it is. Returns how far our own clock is from it; nothing changes where the
    /// server does not tell.
    pub async fn set_clock(&self, stream: &str) -> Result<Duration, ApiError> {
        let asked = Instant::now();
        let Some(ts) = self.stream_info(stream).await?.and_then(|info| info.ts) else { return Ok(Duration::ZERO) };
        let server = present(Timestamp::now(), ts, asked.elapsed());
        self.clock.set(Anchor { server, heard: Instant::now() });
        Ok(apart(Timestamp::now(), server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_clock_counts_while_it_agrees() {
        let at = |ms: i64| Timestamp::from_millis(1_000_000_000_000 + ms);
        assert_eq!(judge(at(0), None), at(0));
        assert_eq!(judge(at(0), Some(at(900))), at(0));
        assert_eq!(judge(at(900), Some(at(0))), at(900));
        assert_eq!(judge(at(3_600_000), Some(at(0))), at(0));
        assert_eq!(judge(at(0), Some(at(3_600_000))), at(3_600_000));
    }

    #[test]
    fn an_answer_that_took_long_makes_no_good_clock_wrong() {
        let at = |ms: i64| Timestamp::from_millis(1_000_000_000_000 + ms);
        let took = Duration::from_secs(8);
        // Said just before it came, right after the question, or in between.
        for ts in [0, -8_000, -3_000, 500, -8_500] {
            let server = present(at(0), at(ts), took);
            assert_eq!(judge(at(0), Some(server)), at(0), "{ts}");
        }
        assert_eq!(present(at(3_600_000), at(0), took), at(8_000));
        assert_eq!(present(at(0), at(3_600_000), took), at(3_600_000));
    }
}
