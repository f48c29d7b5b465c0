//! The dice of a round: one printed seed, and a stream of numbers for each purpose, so that one more throw of the load
//! changes nothing of what the nemesis does.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Numbers for one purpose.
pub struct Dice(StdRng);

impl Dice {
    /// The numbers that `seed` gives for `purpose`.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a: the same in every build, which the hasher of std does not promise.
        let hash = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(StdRng::seed_from_u64(seed ^ hash))
    }

    /// From `low` to below `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..high)
    }

    /// A pause between two lengths.
    pub fn pause(&mut self, low_ms: u64, high_ms: u64) -> Duration {
        Duration::from_millis(self.between(low_ms, high_ms.max(low_ms + 1)))
    }

    /// Once in so many throws.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.between(0, n) == 0
    }

    /// One of them.
    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.0.random_range(0..of.len())]
    }

    /// All of them in any order.
    pub fn shuffled<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        let mut all = of.to_vec();
        for i in (1..all.len()).rev() {
            all.swap(i, self.0.random_range(0..=i));
        }
        all
    }

    /// A word nobody else has in this round.
    pub fn word(&mut self) -> String {
        format!("{:016x}", self.0.random::<u64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_each_purpose_its_own() {
        let throw = |seed, purpose| (0..8).map(|_| Dice::new(seed, purpose).between(0, 1_000)).collect::<Vec<_>>();
        let mut one = Dice::new(7, "load");
        let mut same = Dice::new(7, "load");
        assert_eq!(one.word(), same.word());
        assert_eq!(throw(7, "load"), throw(7, "load"));
        assert_ne!(throw(7, "load"), throw(7, "nemesis"));
        assert_ne!(throw(7, "load"), throw(8, "load"));
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut shuffled = Dice::new(1, "x").shuffled(&[1, 2, 3, 4, 5, 6, 7, 8]);
        shuffled.sort_unstable();
        assert_eq!(shuffled, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
