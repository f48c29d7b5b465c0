//! Which of two runs of one id came first.
//!
//! A run is its message's stream sequence *and* the moment when the server stored it. Sequences alone decide as long as
//! the stream of tasks goes forward; where its store was set back, it counts on from an older number, and a record of a
//! run from before may name a higher one. Time alone never decides: leaders' clocks differ. Where the two disagree, only
//! the stream knows: a message that is in it now is the newest run of its id, for it holds one message a subject.

use std::time::Duration;

use crate::record::TaskRecord;
use crate::time::Timestamp;

/// How far the clocks of two leaders may be apart without anybody's mistaking a newer run for an older one. Whoever is
/// mistaken the other way runs a task twice, which is the lesser evil.
pub const CLOCK_DOUBT: Duration = Duration::from_secs(5);

/// How a record's run stands to another run of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is that run.
    Same,
    /// It came before.
    Earlier,
    /// It came after.
    Later,
    /// Sequence and time disagree: the record is [`Order::Earlier`] if that run's message is in the stream now, else
    /// [`Order::Later`].
    Unclear,
}

impl TaskRecord {
    /// How the run of this record stands to run `sequence`, stored at `submitted_at`.
    pub fn order_to(&self, sequence: u64, submitted_at: Timestamp) -> Order {
        use std::cmp::Ordering;
        match self.sequence.cmp(&sequence) {
            // A record may have been written by somebody who did not know the moment to the millisecond, but not earlier.
            Ordering::Equal if self.submitted_at >= submitted_at => Order::Same,
            Ordering::Less if self.submitted_at <= submitted_at => Order::Earlier,
            Ordering::Greater if self.submitted_at > submitted_at.plus(CLOCK_DOUBT) => Order::Later,
            Ordering::Less | Ordering::Equal | Ordering::Greater => Order::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::State;

    #[test]
    fn sequence_and_time_decide_together_or_not_at_all() {
        let key = "q.a".parse().unwrap();
        let at = |ms| Timestamp::from_millis(ms);
        let order = |sequence, ms| TaskRecord::new(&key, sequence, State::Running, at(ms)).order_to(7, at(10_000));
        assert_eq!(order(7, 10_000), Order::Same);
        assert_eq!(order(6, 10_000), Order::Earlier);
        assert_eq!(order(6, 0), Order::Earlier);
        assert_eq!(order(8, 15_001), Order::Later);
        // A store that was set back, or a leader whose clock is behind: the stream is asked.
        assert_eq!(order(8, 9_000), Order::Unclear);
        assert_eq!(order(8, 15_000), Order::Unclear, "within the doubt");
        assert_eq!(order(7, 9_999), Order::Unclear, "the same number once more");
        assert_eq!(order(6, 10_001), Order::Unclear);
    }
}
