//! How a history is changed in one place.

use crate::history::{Answer, Effect, History, Log, Moment, Revision, Submission};

/// Changes one thing.
pub type Change = fn(&mut History);

/// Every revision of one run.
pub fn of<'h>(history: &'h mut History, key: &str, sequence: u64) -> impl Iterator<Item = &'h mut Revision> {
    history.revisions.iter_mut().filter(move |revision| revision.key == key && revision.record.sequence == sequence)
}

/// The first terminal revision of a key.
pub fn end<'h>(history: &'h mut History, key: &str) -> &'h mut Revision {
    let mut ends = history.revisions.iter_mut().filter(|r| r.key == key && r.record.state.is_terminal());
    ends.next().expect("it ended")
}

/// Takes the terminal revisions of a key away.
pub fn drop_end(history: &mut History, key: &str) {
    history.revisions.retain(|revision| revision.key != key || !revision.record.state.is_terminal());
}

/// One submission.
pub fn submission<'h>(history: &'h mut History, nonce: &str) -> &'h mut Submission {
    history.submissions.iter_mut().find(|submission| submission.nonce == nonce).expect("it was submitted")
}

/// Changes what its submitter was told.
pub fn answer(history: &mut History, nonce: &str, answer: Answer) {
    submission(history, nonce).answer = answer;
}

/// A start writes another line.
pub fn effect(history: &mut History, nonce: &str, start: &str, what: Moment, at: i64) {
    history.effects.push(Effect { nonce: nonce.into(), start: start.into(), attempt: 1, what, at });
}

/// The log of one start.
pub fn log<'h>(history: &'h mut History, key: &str, start: &str) -> &'h mut Log {
    history.logs.get_mut(&(key.to_owned(), start.to_owned())).expect("it has a log")
}

/// Names the artifact of a start of `q.process`.
pub fn object(start: &str) -> (String, String, String) {
    ("q.process".to_owned(), start.to_owned(), "out.txt".to_owned())
}

/// Changes what the registry says.
pub fn status(history: &mut History, worker: &str, status: &str, running: usize) {
    history.rest.registry.insert(worker.into(), (status.into(), running));
}
