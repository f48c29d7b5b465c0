//! What can be wrong with a history: one change each to the good one.

use std::num::NonZeroU32;

use schemas::record::{Attempt, TaskResult};
use schemas::{AgentId, Code, Outcome, StartId, State};

use super::change::{Change, answer, drop_end, effect, end, log, object, of, status, submission};
use super::good::{BEGAN, KILLED, SERVER};
use crate::history::{Answer, Letter, Log, Moment, Revision};

/// One of them.
pub struct Forgery {
    /// Name of the violation.
    pub breaks: &'static str,
    /// What is changed.
    pub how: &'static str,
    /// Words that must be in the violation.
    pub at: &'static str,
    /// The change.
    pub change: Change,
}

/// All of them.
pub fn all() -> Vec<Forgery> {
    let mut all = Vec::new();
    let mut add = |breaks, how, at, change| all.push(Forgery { breaks, how, at, change });
    ends(&mut add);
    allowed_ends(&mut add);
    effects(&mut add);
    letters(&mut add);
    logs(&mut add);
    artifacts(&mut add);
    cancels(&mut add);
    once(&mut add);
    rest(&mut add);
    all
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &'static str, &'static str, Change);

fn ends(add: Add) {
    add("NoRecord", "an accepted run has no record", "q.call run 10", |h| {
        h.revisions.retain(|revision| revision.key != "q.call");
    });
    add("NoRecord", "an accepted run has no record, but a dead letter", "q.failed run 22", |h| {
        h.revisions.retain(|revision| revision.key != "q.failed");
    });
    add("WrongTask", "the record is about what nobody sent", "stranger", |h| {
        for revision in of(h, "q.process", 20) {
            revision.record.keep_task(br#"{"workload":{"kind":"process","command":[],"env":{"NONCE":"stranger"}}}"#);
        }
    });
    add("StoredTwice", "the same call runs again as another run", "[10, 90]", |h| {
        let again: Vec<Revision> = of(h, "q.call", 10).map(|revision| revision.clone()).collect();
        for mut revision in again {
            revision.at += 30_000;
            revision.record.sequence = 90;
            h.revisions.push(revision);
        }
    });
    add("NoEnd", "the last revision is missing", "says running", |h| drop_end(h, "q.call"));
    add("NoEnd", "it waits for its next attempt for ever", "says retrying", |h| {
        let end = end(h, "q.handed-back");
        end.record.state = State::Retrying;
    });
    add("TwoEnds", "the end is written twice", "q.call run 10", |h| {
        let end = end(h, "q.call").clone();
        h.revisions.push(end);
    });
    add("TwoEnds", "another end is written over it", "[Succeeded, Cancelled]", |h| {
        let mut end = end(h, "q.process").clone();
        end.record.state = State::Cancelled;
        h.revisions.push(end);
    });
    add("WroteAfterEnd", "a late claim writes over the end", "q.process run 20", |h| {
        let claim = of(h, "q.process", 20).next().expect("it was claimed").clone();
        h.revisions.push(claim);
    });
    add("RefusedRan", "what was refused has a record", "left a record", |h| answer(h, "n-call", Answer::Refused));
    add("RefusedRan", "what was refused has a dead letter", "left a dead letter", |h| {
        let (key, body) = ("q.process".to_owned(), submission(h, "n-refused").body.clone());
        h.letters.push(Letter { key, sequence: 91, reason: "exited_non_zero".into(), body });
    });
    add("RefusedRan", "what was refused began", "n-refused", |h| effect(h, "n-refused", "s-x", Moment::Begin, BEGAN));
    add("NothingButTraces", "what has no record began", "n-never", |h| {
        effect(h, "n-never", "s-x", Moment::Begin, SERVER);
    });
    add("NothingButTraces", "what has no record has a dead letter", "left a dead letter", |h| {
        let (key, body) = ("q.never".to_owned(), submission(h, "n-never").body.clone());
        h.letters.push(Letter { key, sequence: 91, reason: "exited_non_zero".into(), body });
    });
    add("Unsubmitted", "a record of what nobody sent", "q.call run 10", |h| {
        h.submissions.retain(|submission| submission.nonce != "n-call");
    });
    add("Unsubmitted", "an effect of what nobody sent", "stranger: an effect", |h| {
        effect(h, "stranger", "s-x", Moment::Begin, BEGAN);
    });
    add("Unsubmitted", "a dead letter of what nobody sent", "q.stranger: a dead letter", |h| {
        h.letters.push(Letter { key: "q.stranger".into(), sequence: 91, reason: String::new(), body: Vec::new() });
    });
    add("OutOfOrder", "the end of the first run comes after the second's", "q.again run 29", |h| {
        let at = h.revisions.iter().rposition(|r| r.key == "q.again" && r.record.sequence == 29).expect("it ended");
        let end = h.revisions.remove(at);
        h.revisions.push(end);
    });
}

fn allowed_ends(add: Add) {
    add("BeforeSent", "it has a record before it was sent", "q.call run 10", |h| {
        submission(h, "n-call").sent_at += 1_200;
    });
    add("BeforeSent", "it began before it was sent", "q.process run 20", |h| {
        effect(h, "n-process", "s-process1", Moment::Begin, BEGAN - 2_000);
    });
    add("WrongEnd", "a failure where success was planned", "planned was succeeded", |h| {
        submission(h, "n-failed").plan.end = State::Succeeded;
    });
    add("CancelledUnasked", "nobody asked for the cancel", "q.cancelled run 23", |h| {
        h.cancels.retain(|cancel| cancel.nonce != "n-cancelled");
    });
    add("LostUnasked", "a task that may start again is given up", "worker_lost", |h| {
        submission(h, "n-once-lost").plan.at_most_once = false;
    });
    add("LostUnasked", "its message was lost", "message_lost", |h| {
        end(h, "q.once-lost").record.error.as_mut().expect("it says why").code = Code::MessageLost;
    });
    add("LostUnasked", "a process does not need the engine", "engine_lost", |h| {
        end(h, "q.once-lost").record.error.as_mut().expect("it says why").code = Code::EngineLost;
    });
    add("ExpiredUnasked", "it has no deadline", "q.expired run 28", |h| {
        submission(h, "n-expired").plan.expires = false
    });
    add("Condemned", "it is said to kill workers", "q.failed run 22", |h| {
        end(h, "q.failed").record.error.as_mut().expect("it says why").code = Code::LostTooOften;
        h.letters[0].reason = "lost_too_often".into();
    });
    add("WrongAttempts", "an attempt is missing", "q.failed run 22", |h| {
        end(h, "q.failed").record.attempts.remove(0);
    });
    add("WrongAttempts", "there should have been a third", "planned were 3", |h| {
        submission(h, "n-failed").plan.attempts = 3;
    });
    add("NumberedLoss", "a loss spent an attempt", "q.once-lost run 26", |h| {
        end(h, "q.once-lost").record.attempts[0].number = NonZeroU32::new(1);
    });
    add("NumberedLoss", "a hand-back spent an attempt", "q.handed-back run 27", |h| {
        let back = of(h, "q.handed-back", 27).find(|revision| revision.record.state == State::Retrying);
        back.expect("it was handed back").record.attempts[0].number = NonZeroU32::new(1);
    });
}

fn effects(add: Add) {
    add("WrongResult", "no result", "with the result nothing", |h| end(h, "q.process").record.result = None);
    add("WrongResult", "the result of another task", "n-retried:s-process1", |h| {
        end(h, "q.process").record.result = Some(TaskResult::inline(b"n-retried:s-process1"));
    });
    add("WrongResult", "a call that answers something else", "n-other", |h| {
        end(h, "q.call").record.result = Some(TaskResult::inline(b"\"n-other\""));
    });
    add("ResultOfNoStart", "the result of a start that never was", "s-phantom", |h| {
        end(h, "q.process").record.result = Some(TaskResult::inline(b"n-process:s-phantom"));
    });
    add("ResultOfNoStart", "the applied start did not come to its end", "s-process1", |h| {
        h.effects.retain(|effect| effect.nonce != "n-process" || effect.what != Moment::End);
    });
    add("ResultOfNoStart", "the applied start did not begin", "s-process1", |h| {
        h.effects.retain(|effect| effect.nonce != "n-process" || effect.what != Moment::Begin);
    });
    add("ResultOfNoStart", "the result of the start that was lost", "s-killed1", |h| {
        end(h, "q.killed").record.result = Some(TaskResult::inline(b"n-killed:s-killed1"));
    });
    add("WrongNumber", "the job was told another number", "attempt 7, recorded is 1", |h| {
        h.effects.iter_mut().filter(|effect| effect.nonce == "n-process").for_each(|effect| effect.attempt = 7);
    });
    add("WrongNumber", "the failed attempt's result is applied", "attempt 1, recorded is 2", |h| {
        end(h, "q.retried").record.result = Some(TaskResult::inline(b"n-retried:s-retried1"));
        let last = h.effects.iter_mut().find(|effect| effect.start == "s-retried1" && effect.what == Moment::Alive);
        last.expect("it was alive").what = Moment::End;
    });
    add("Overlap", "no fault excuses two starts at once", "s-overlap1 and s-overlap2", |h| {
        // Short enough not to go on after the end.
        h.effects.retain(|effect| effect.start != "s-overlap1" || effect.what != Moment::End);
        effect(h, "n-overlap", "s-overlap1", Moment::End, SERVER + 400);
        h.faults[1].may_overlap = None;
    });
    add("Overlap", "the excuse came too late", "s-overlap1 and s-overlap2", |h| h.faults[1].from += 500);
    add("Overlap", "the start that was lost goes on beside the next", "s-killed1 and s-killed2", |h| {
        effect(h, "n-killed", "s-killed1", Moment::Alive, KILLED + 12_400);
    });
    add("EffectAfterEnd", "it goes on after its end", "q.process run 20", |h| {
        let at = end(h, "q.process").at + 1_001;
        effect(h, "n-process", "s-process1", Moment::Alive, at);
    });
    add("EffectAfterEnd", "a lost start comes back after the end", "still there 60000 ms after the terminal", |h| {
        let at = end(h, "q.once-lost").at + 60_000;
        effect(h, "n-once-lost", "s-once2", Moment::Alive, at);
    });
    add("EffectInLaterRun", "the first run is there when the second has begun", "after run 30 of the same id", |h| {
        let next = of(h, "q.again", 30).next().expect("it was claimed").at;
        // So soon before that it is not yet too late for an end alone.
        end(h, "q.again").at = next - 10;
        let late = next + 300;
        effect(h, "n-again-1", "s-again1", Moment::Alive, late);
    });
}

fn letters(add: Add) {
    add("NoLetter", "a failure without a letter", "q.failed run 22", |h| h.letters.clear());
    add("TwoLetters", "a failure with two letters", "2 dead letters", |h| {
        let letter = h.letters[0].clone();
        h.letters.push(letter);
    });
    add("WrongLetter", "a letter with other bytes", "another body", |h| h.letters[0].body.push(b' '));
    add("WrongLetter", "a letter with another reason", "timed_out, not exited_non_zero", |h| {
        h.letters[0].reason = "timed_out".into();
    });
    add("UnfoundedLetter", "a letter of a success", "q.process run 20", |h| {
        let (key, body) = ("q.process".to_owned(), submission(h, "n-process").body.clone());
        h.letters.push(Letter { key, sequence: 20, reason: "exited_non_zero".into(), body });
    });
    add("UnfoundedLetter", "a letter of what may be lost", "says lost", |h| {
        let (key, body) = ("q.once-lost".to_owned(), submission(h, "n-once-lost").body.clone());
        h.letters.push(Letter { key, sequence: 26, reason: "worker_lost".into(), body });
    });
}

fn logs(add: Add) {
    add("LogCut", "the last line is missing", "2 of 3 lines", |h| {
        log(h, "q.process", "process1").lines.pop();
    });
    add("LogCut", "there is no log", "0 of 3 lines", |h| {
        h.logs.retain(|(_, start), _| start != "process1");
    });
    add("LogGap", "a line in between is missing", "from line 1 to line 3", |h| {
        log(h, "q.process", "process1").lines.remove(1);
    });
    add("LogGap", "the log of a lost start begins late", "from line 0 to line 2", |h| {
        log(h, "q.killed", "killed1").lines = vec!["2".into()];
    });
    add("LogRepeats", "a line comes twice", "line 3 behind line 3", |h| {
        log(h, "q.process", "process1").lines.push("3".into());
    });
    add("LogRepeats", "a batch comes twice, also where something was left out", "line 1 behind line 2", |h| {
        *log(h, "q.again", "again0") = Log { lines: ["1", "2", "1", "2"].map(str::to_owned).into(), cut: true };
    });
    add("LogForeign", "a line of another", "\"n-x\"", |h| log(h, "q.process", "process1").lines.push("n-x".into()));
    add("LogForeign", "more lines than it writes", "\"4\"", |h| log(h, "q.process", "process1").lines.push("4".into()));
}

fn artifacts(add: Add) {
    add("NoArtifact", "the record does not name it", "q.process run 20", |h| {
        end(h, "q.process").record.artifacts.clear()
    });
    add("NoArtifact", "the record names one of another start", "q.process run 20", |h| {
        end(h, "q.process").record.artifacts[0].start = StartId::new("other").unwrap();
        let bytes = h.artifacts[&object("process1")].clone();
        h.artifacts.insert(object("other"), bytes);
    });
    add("WrongArtifact", "it holds another's bytes", "q.process run 20", |h| {
        let other = end(h, "q.again").record.artifacts[0].clone();
        end(h, "q.process").record.artifacts[0] =
            schemas::record::Artifact { start: StartId::new("process1").unwrap(), ..other };
        let bytes = h.artifacts[&("q.again".to_owned(), "again1".to_owned(), "out.txt".to_owned())].clone();
        h.artifacts.insert(object("process1"), bytes);
    });
    add("WrongDigest", "its bytes changed", "SHA-256=", |h| {
        h.artifacts.insert(object("process1"), Ok(b"n-pr0cess".to_vec()));
    });
    add("WrongDigest", "it was cut", "3 bytes", |h| {
        h.artifacts.insert(object("process1"), Ok(b"n-p".to_vec()));
    });
    add("UnreadableArtifact", "it cannot be read", "chunk missing", |h| {
        h.artifacts.insert(object("process1"), Err("chunk missing".into()));
    });
    add("UnreadableArtifact", "it is not there", "no such object", |h| {
        h.artifacts.remove(&object("process1"));
    });
}

fn cancels(add: Add) {
    add("Unconfirmed", "nobody was told of the end", "q.cancelled run 23", |h| h.cancels[0].confirmed_at = None);
    add("Unconfirmed", "it ended by itself, much later", "q.late run 24", |h| {
        h.cancels[1].asked_at -= 60_000;
    });
    add("ConfirmedLate", "confirmed a moment too late", "after 8001 ms", |h| {
        h.cancels[0].confirmed_at = Some(h.cancels[0].asked_at + 8_001);
    });
    add("EffectAfterCancel", "confirmed before it was true", "q.cancelled run 23", |h| {
        // The end comes 3 s later than it was told.
        end(h, "q.cancelled").at += 3_000;
        let at = h.cancels[0].confirmed_at.expect("it was") + 1_500;
        effect(h, "n-cancelled", "s-cancelled1", Moment::Alive, at);
    });
}

fn once(add: Add) {
    add("BegunTwice", "begun again after the loss", "begun 2 times", |h| {
        effect(h, "n-once-lost", "s-second", Moment::Begin, KILLED + 14_000);
    });
    add("BegunTwice", "one start begins twice", "begun 2 times", |h| {
        let at = end(h, "q.once").at - 200;
        effect(h, "n-once", "s-once1", Moment::Begin, at);
    });
    add("ClaimedTwice", "claimed again after the loss", "2 starts in its record", |h| {
        let first = Attempt {
            start: Some(StartId::new("first").unwrap()),
            worker: Some(AgentId::new("w4").unwrap()),
            ..Attempt::new(Outcome::Lost)
        };
        for revision in of(h, "q.call-once", 13) {
            revision.record.attempts.insert(0, first.clone());
        }
    });
    add("NotRestarted", "nobody went on after the kill", "q.call-killed run 12", |h| {
        h.revisions.retain(|revision| revision.key != "q.call-killed" || revision.at < KILLED);
    });
}

fn rest(add: Add) {
    add("NotReady", "a living worker is not ready", "w1", |h| status(h, "w1", "starting", 0));
    add("NotReady", "a living worker is unknown", "w2", |h| {
        h.rest.registry.remove("w2");
    });
    add("NotOffline", "a dead worker is called ready", "w3", |h| status(h, "w3", "ready", 0));
    add("StillRunning", "a worker believes that it runs something", "2 tasks", |h| status(h, "w1", "ready", 2));
    add("MessageLeft", "the backlog is not empty", "q.call", |h| h.rest.messages.push("q.call".into()));
    add("ContainerLeft", "a container is left", "shoal-x", |h| h.rest.containers.push("shoal-x".into()));
    add("ProcessLeft", "a process is left", "4711", |h| h.rest.processes.push(4711));
    add("FolderLeft", "a folder is left", "/tmp/x", |h| h.rest.folders.push("/tmp/x".into()));
}
