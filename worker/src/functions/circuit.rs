//! The circuit of one function on one worker: whether calls are sent at all. Pure; the caller brings the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is looked back on.
const WINDOW: Duration = Duration::from_secs(30);
/// Most calls looked back on.
const CALLS: usize = 20;
/// Fewer failures than this never open it.
const LEAST: usize = 5;
/// How long it stays open before one call is let through.
const OPEN: Duration = Duration::from_secs(5);

/// Counts what became of the last calls.
#[derive(Debug, Default)]
pub struct Circuit {
    /// When each of the last calls ended, and whether the platform failed it.
    ended: VecDeque<(Instant, bool)>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    /// Nothing is sent before this.
    Open(Instant),
    /// One call was let through at this moment, and decides.
    Probing(Instant),
}

impl Circuit {
    /// Whether a call may be sent now; else how long to wait. Of an open one's callers exactly one gets through.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed => Ok(()),
            State::Open(until) if now < until => Err(until - now),
            // A probe that never came back must not keep it shut for ever.
            State::Probing(since) if now < since + WINDOW => Err(OPEN.min(since + WINDOW - now)),
            State::Open(_) | State::Probing(_) => {
                self.state = State::Probing(now);
                Ok(())
            }
        }
    }

    /// A call ended: the platform failed it, or it reached the function and came back, whatever it brought.
    pub fn ended(&mut self, failed: bool, now: Instant) {
        match (&self.state, failed) {
            (State::Probing(_), false) => {
                self.ended.clear();
                self.state = State::Closed;
            }
            (State::Probing(_), true) => self.state = State::Open(now + OPEN),
            // Sent before it opened; the probe decides.
            (State::Open(_), _) => {}
            (State::Closed, failed) => {
                self.ended.push_back((now, failed));
                while self.ended.len() > CALLS || self.ended.front().is_some_and(|(at, _)| now > *at + WINDOW) {
                    self.ended.pop_front();
                }
                let failures = self.ended.iter().filter(|(_, failed)| *failed).count();
                if failures >= LEAST && failures * 2 >= self.ended.len() {
                    self.ended.clear();
                    self.state = State::Open(now + OPEN);
                }
            }
        }
    }

    /// A call that was let through was not sent after all.
    pub fn not_sent(&mut self, now: Instant) {
        if matches!(self.state, State::Probing(_)) {
            self.state = State::Open(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(outcomes: &[bool], now: Instant) -> Circuit {
        let mut circuit = Circuit::default();
        outcomes.iter().for_each(|failed| circuit.ended(*failed, now));
        circuit
    }

    #[test]
    fn half_of_the_last_calls_and_at_least_five_open_it() {
        let now = Instant::now();
        assert!(fed(&[true; 4], now).admit(now).is_ok());
        assert!(fed(&[true; 5], now).admit(now).is_err());
        // Six good ones before five bad ones: less than half.
        assert!(fed(&[false, false, false, false, false, false, true, true, true, true, true], now).admit(now).is_ok());
        assert!(fed(&[false, true, false, true, false, true, false, true, false, true], now).admit(now).is_err());
    }

    #[test]
    fn a_success_makes_up_for_failures_and_old_ones_are_forgotten() {
        let now = Instant::now();
        let mut circuit = fed(&[true; 4], now);
        circuit.ended(true, now + WINDOW + Duration::from_secs(1));
        assert!(circuit.admit(now + WINDOW + Duration::from_secs(1)).is_ok(), "four of five are too old");
        let mut busy = fed(&[true, true, true, true], now);
        (0..CALLS).for_each(|_| busy.ended(false, now));
        busy.ended(true, now);
        assert!(busy.admit(now).is_ok(), "pushed out by newer ones");
    }

    #[test]
    fn half_open_lets_exactly_one_through_and_it_decides() {
        let now = Instant::now();
        let mut circuit = fed(&[true; 5], now);
        assert_eq!(circuit.admit(now), Err(OPEN));
        let later = now + OPEN;
        assert!(circuit.admit(later).is_ok());
        assert!(circuit.admit(later).is_err(), "the probe is under way");
        circuit.ended(true, later);
        assert_eq!(circuit.admit(later), Err(OPEN));
        let again = later + OPEN;
        assert!(circuit.admit(again).is_ok());
        circuit.ended(false, again);
        assert!(circuit.admit(again).is_ok() && circuit.admit(again).is_ok(), "closed");
        // Nothing of before counts any more.
        (0..4).for_each(|_| circuit.ended(true, again));
        assert!(circuit.admit(again).is_ok());
    }

    #[test]
    fn a_probe_that_was_not_sent_leaves_the_next_one_its_turn() {
        let now = Instant::now();
        let mut circuit = fed(&[true; 5], now);
        let later = now + OPEN;
        assert!(circuit.admit(later).is_ok());
        circuit.not_sent(later);
        assert!(circuit.admit(later).is_ok());
        assert!(circuit.admit(later + WINDOW).is_ok(), "nor does one that never came back");
    }
}
