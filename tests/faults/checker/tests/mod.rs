//! The checker is tried with histories that are forged: each is the good one with one thing changed.

mod allowed;
mod change;
mod forgeries;
mod good;

use std::collections::BTreeSet;

use super::{Violation, check};
use crate::history::Revision;
use change::Change;
use forgeries::Forgery;

pub use good::good;

#[test]
fn a_good_history_passes() {
    assert_eq!(found_in(|_| ()), Vec::<String>::new());
}

#[test]
fn each_forgery_is_rejected_for_what_it_is() {
    let mut wrong = Vec::new();
    for Forgery { breaks, how, at, change } in forgeries::all() {
        let found = found_in(change);
        let right = matches!(found.as_slice(), [one] if one.starts_with(&format!("{breaks}: ")) && one.contains(at));
        if !right {
            wrong.push(format!("{how}: {breaks} with {at:?} expected, found {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_violation_has_a_forgery() {
    let forged: BTreeSet<&str> = forgeries::all().iter().map(|forgery| forgery.breaks).collect();
    let known: BTreeSet<&str> = Violation::NAMES.iter().copied().collect();
    assert_eq!(known.len(), Violation::NAMES.len());
    assert_eq!(forged, known);
}

#[test]
fn what_is_allowed_passes() {
    for (how, change) in allowed::all() {
        let found = found_in(change);
        assert!(found.is_empty(), "{how}: {found:#?}");
    }
}

/// What the checker says of the good history with one thing changed.
fn found_in(change: Change) -> Vec<String> {
    let mut history = good();
    change(&mut history);
    check(&history).violations.iter().map(|violation| format!("{}: {violation}", violation.name())).collect()
}

#[test]
fn the_figures_of_a_good_history_are_counted_by_hand() {
    let figures = check(&good()).figures;
    assert_eq!([figures.accepted, figures.refused, figures.unknown_stored, figures.unknown_not_stored], [18, 1, 1, 1]);
    let ended = [("succeeded", 14), ("failed", 1), ("cancelled", 1), ("lost", 2), ("expired", 1)];
    let ended = ended.map(|(state, count)| (state.to_owned(), count));
    assert_eq!(figures.ended, ended.into());
    assert_eq!([figures.never_ended, figures.lost_attempts, figures.starts, figures.superseded_ends], [0, 5, 20, 1]);
    assert_eq!((figures.overlaps, figures.overlap_ms.max()), (1, Some(1_000)));
    let restarts = &figures.kill_to_restart_ms;
    assert_eq!((restarts.count(), restarts.percentile(50), restarts.max()), (2, Some(12_000), Some(14_100)));
    assert_eq!((figures.cancel_confirmed_ms.count(), figures.cancel_confirmed_ms.max()), (1, Some(400)));
    assert_eq!((figures.slowest_answer_ms, figures.containers_left), (2, 0));
}

#[test]
fn what_never_ended_is_counted_with_and_without_a_record() {
    let mut history = good();
    history.revisions.retain(|revision| revision.key != "q.call" && !is_end(revision, "q.process"));
    let figures = check(&history).figures;
    assert_eq!((figures.never_ended, figures.ended["succeeded"]), (2, 12));
}

fn is_end(revision: &Revision, key: &str) -> bool {
    revision.key == key && revision.record.state.is_terminal()
}
