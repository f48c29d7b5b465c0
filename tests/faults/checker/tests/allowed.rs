//! What may happen beside the good history, and must not be found.

use schemas::StartId;
use schemas::record::Artifact;

use super::change::{Change, answer, effect, end, log, submission};
use super::good::{KILLED, SERVER};
use crate::history::{Answer, Cancel, Fault, Log, Moment, Revision, Submission};

/// What is changed, and the change.
pub fn all() -> Vec<(&'static str, Change)> {
    vec![
        ("what was never answered is stored after all", |h| answer(h, "n-call", Answer::Unknown)),
        ("a record does not keep its task", |h| {
            h.revisions.iter_mut().for_each(|revision| revision.record.task = None);
            h.revisions.iter_mut().filter(|r| r.key == "q.call-unknown").for_each(|revision| {
                revision.record.submission = Some("n-call-unknown".into());
            });
        }),
        ("the same submission is told of by two who sent it", |h| {
            let again = submission(h, "n-call").clone();
            h.submissions.push(again);
        }),
        ("one who sent it again was refused", |h| {
            let again = Submission { answer: Answer::Refused, ..submission(h, "n-call").clone() };
            h.submissions.push(again);
        }),
        ("a log is cut, and says so", |h| {
            *log(h, "q.process", "process1") = Log { lines: vec!["1".into(), "3".into()], cut: true };
            log(h, "q.container", "container1").lines.pop();
            log(h, "q.container", "container1").cut = true;
        }),
        ("a log could not be stored, and the record says so", |h| {
            log(h, "q.process", "process1").lines.pop();
            end(h, "q.process").record.warnings.push("2 bytes of log could not be stored".into());
        }),
        ("an artifact could not be kept, and the record says so", |h| {
            let record = &mut end(h, "q.process").record;
            record.artifacts.clear();
            record.warnings.push("artifact `out.txt` not kept: no room".into());
        }),
        ("the artifact of a start that was stopped is a part", |h| {
            let part = end(h, "q.process").record.artifacts[0].clone();
            let start = StartId::new("cancelled1").unwrap();
            let object = ("q.cancelled".to_owned(), start.to_string(), part.path.clone());
            h.artifacts.insert(object, Ok(b"n-process".to_vec()));
            end(h, "q.cancelled").record.artifacts.push(Artifact { start, ..part });
        }),
        ("something is there for a moment after the end", |h| {
            let at = end(h, "q.process").at + 1_000;
            effect(h, "n-process", "s-process1", Moment::Alive, at);
        }),
        ("a cancel takes all the time that it has", |h| {
            h.cancels[0].confirmed_at = Some(h.cancels[0].asked_at + 8_000);
        }),
        ("a cancel of what was never stored", |h| {
            let cancel = Cancel { nonce: "n-never".into(), ..h.cancels[1].clone() };
            h.cancels.push(cancel);
        }),
        ("a wish to cancel is written into the record of what was killed", |h| {
            let of_run = |r: &Revision| r.key == "q.call-killed" && r.record.sequence == 12;
            let claim = h.revisions.iter().position(of_run).expect("it was claimed");
            let flagged = Revision { at: KILLED + 3_000, ..h.revisions[claim].clone() };
            h.revisions.insert(claim + 1, flagged);
        }),
        ("two faults excuse together what none does alone", |h| {
            h.faults[1].may_overlap = None;
            let first = Fault { until: SERVER + 200, may_overlap: Some(0), ..h.faults[1].clone() };
            let second = Fault { from: SERVER + 200, may_overlap: Some(2_000), ..first.clone() };
            h.faults.extend([second, first]);
        }),
    ]
}
