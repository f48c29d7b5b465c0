//! The checker is tried with histories that are forged: each is the good one with one thing changed.

mod forgeries;
mod good;

use std::collections::BTreeSet;

use super::{Violation, check};

pub use good::good;

#[test]
fn a_good_history_passes() {
    let violations = check(&good()).violations;
    let words: Vec<String> = violations.iter().map(|v| format!("{}: {v}", v.name())).collect();
    assert!(words.is_empty(), "{words:#?}");
}

#[test]
fn each_forgery_is_rejected_for_what_it_is() {
    for forgery in forgeries::all() {
        let mut history = good();
        (forgery.change)(&mut history);
        let violations = check(&history).violations;
        let words: Vec<String> = violations.iter().map(|v| format!("{}: {v}", v.name())).collect();
        let names: Vec<&str> = violations.iter().map(Violation::name).collect();
        assert_eq!(names, [forgery.breaks], "{}: {words:#?}", forgery.how);
        assert!(words[0].contains(forgery.at), "{} is not found by {:?}", forgery.at, words[0]);
    }
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
    for (how, change) in forgeries::allowed() {
        let mut history = good();
        change(&mut history);
        let violations = check(&history).violations;
        let words: Vec<String> = violations.iter().map(|v| format!("{}: {v}", v.name())).collect();
        assert!(words.is_empty(), "{how}: {words:#?}");
    }
}
