//! Decides each invariant over a history.
//!
//! | file | decides |
//! | --- | --- |
//! | `ends` | A: every accepted run has one end, one that its plan allows; nothing runs that nobody submitted |
//! | `effects` | B, J: one outcome is applied, it is that of a start that took place, and nothing goes on after the end |
//! | `letters` | C: a dead letter for each failure and for nothing else |
//! | `logs`, `artifacts` | D: what is kept is what was written |
//! | `cancels` | E: each cancel is confirmed in time and holds |
//! | `kills` | T: what a killed worker had goes on elsewhere |
//! | `rest` | F, G, H and what is left on the machine |
//!
//! It knows nothing of the code under test but its wire types, and it does not measure with the fleet's clocks: a
//! revision has the time at which the server stored it.

mod artifacts;
mod cancels;
mod effects;
mod ends;
mod figures;
mod kills;
mod letters;
mod logs;
mod rest;
mod runs;
#[cfg(test)]
mod tests;
mod violation;

pub use figures::{Figures, Samples, terminal};
#[cfg(test)]
pub use tests::good;
pub use violation::Violation;

use super::history::History;
use runs::Runs;

/// What is to be said of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What was promised and not held.
    pub violations: Vec<Violation>,
    /// What was counted and measured.
    pub figures: Figures,
}

/// Judges one round.
pub fn check(history: &History) -> Verdict {
    let runs = Runs::of(history);
    let invariants = [
        ends::check,
        effects::check,
        letters::check,
        logs::check,
        artifacts::check,
        cancels::check,
        kills::check,
        rest::check,
    ];
    let violations = invariants.iter().flat_map(|invariant| invariant(&runs)).collect();
    Verdict { violations, figures: figures::count(&runs) }
}
