//! Sees when a model goes round in circles.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The same turn, or the same two in turn, so often in a row is a circle.
const ROUNDS: usize = 4;
/// Turns without any change and without anything new to see.
const IDLE: u32 = 12;

/// What was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Nothing.
    Fine,
    /// It goes round in circles for the first time: it is to be told so.
    Warn(&'static str),
    /// It was told, and does it again.
    Stuck(&'static str),
}

/// Remembers the last turns.
#[derive(Debug, Default)]
pub struct Watch {
    last: VecDeque<u64>,
    seen: std::collections::HashSet<u64>,
    idle: u32,
    warned: bool,
}

impl Watch {
    /// A turn: each call with its name, arguments and result; and whether anything was changed, run or asked by it.
    ///
    /// Durations differ from one run of a command to the next, so a result is taken without them: the caller leaves out
    /// what does not count.
    pub fn turn<'a>(&mut self, calls: impl Iterator<Item = (&'a str, &'a str, &'a str)>, changed: bool) -> Noticed {
        let mut hasher = DefaultHasher::new();
        for call in calls {
            call.hash(&mut hasher);
        }
        let turn = hasher.finish();
        self.last.push_back(turn);
        if self.last.len() > 2 * ROUNDS {
            self.last.pop_front();
        }
        let new = self.seen.insert(turn);
        self.idle = if changed || new { 0 } else { self.idle + 1 };
        let why = if self.repeats(1) {
            "the same calls with the same results, again and again"
        } else if self.repeats(2) {
            "the same two steps with the same results, in turn"
        } else if self.idle >= IDLE {
            "many turns without a change and without anything new"
        } else {
            return Noticed::Fine;
        };
        self.last.clear();
        self.idle = 0;
        if std::mem::replace(&mut self.warned, true) { Noticed::Stuck(why) } else { Noticed::Warn(why) }
    }

    /// Somebody said something new: what was done before may be right now.
    pub fn told(&mut self) {
        *self = Self::default();
    }

    /// Whether the last turns are `period` ones, [`ROUNDS`] times.
    fn repeats(&self, period: usize) -> bool {
        let last: Vec<u64> = self.last.iter().rev().copied().take(period * ROUNDS).collect();
        last.len() == period * ROUNDS && last.iter().skip(period).zip(&last).all(|(a, b)| a == b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(watch: &mut Watch, turns: &[(&str, &str)]) -> Vec<Noticed> {
        turns
            .iter()
            .map(|(arguments, result)| watch.turn([("read_file", *arguments, *result)].into_iter(), false))
            .collect()
    }

    #[test]
    fn the_same_four_times_is_warned_of_once_and_then_ended() {
        let mut watch = Watch::default();
        assert!(turns(&mut watch, &[("a", "1"); 3]).iter().all(|noticed| *noticed == Noticed::Fine));
        assert!(matches!(turns(&mut watch, &[("a", "1")])[..], [Noticed::Warn(_)]));
        assert!(turns(&mut watch, &[("a", "1"); 3]).iter().all(|noticed| *noticed == Noticed::Fine));
        assert!(matches!(turns(&mut watch, &[("a", "1")])[..], [Noticed::Stuck(_)]));
    }

    #[test]
    fn two_steps_in_turn_are_a_circle_too() {
        let mut watch = Watch::default();
        let noticed = turns(&mut watch, &[("a", "1"), ("b", "1")].repeat(4));
        assert!(matches!(noticed[7], Noticed::Warn(_)), "{noticed:?}");
        assert!(noticed[..7].iter().all(|noticed| *noticed == Noticed::Fine));
    }

    #[test]
    fn another_result_is_no_circle_and_people_s_words_begin_anew() {
        let mut watch = Watch::default();
        let results: Vec<String> = (0..50).map(|number| number.to_string()).collect();
        for result in &results {
            assert_eq!(turns(&mut watch, &[("a", result)]), [Noticed::Fine]);
        }
        turns(&mut watch, &[("a", "1"); 3]);
        watch.told();
        assert_eq!(turns(&mut watch, &[("a", "1"); 3]), [Noticed::Fine; 3]);
    }

    #[test]
    fn many_identical_reads_without_a_change_are_noticed_whatever_their_order() {
        let mut watch = Watch::default();
        let order = [0, 1, 2, 1, 0, 2, 2, 0, 1, 0, 2, 1, 1, 2, 0, 2, 1];
        let names = ["a", "b", "c"];
        let noticed: Vec<Noticed> = order.iter().flat_map(|at| turns(&mut watch, &[(names[*at], "1")])).collect();
        assert!(noticed.iter().any(|noticed| matches!(noticed, Noticed::Warn(_))), "{noticed:?}");
    }
}
