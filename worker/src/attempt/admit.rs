//! Whether a delivery may start, judged by the record. Pure.

use std::time::Duration;

use schemas::record::{Attempt, TaskRecord};
use schemas::task::{OnLost, Task};
use schemas::{Order, Outcome, State, Timestamp};

use crate::nats::store::Standing;

/// What a delivery is, beside its task.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Which run.
    pub sequence: u64,
    /// Whether it was handed over before and lost there, if no record says more.
    pub lost_before: bool,
    /// Start only if no record exists.
    pub once: bool,
    /// The present.
    pub now: Timestamp,
}

/// What to do with it.
#[derive(Clone, Debug)]
pub enum Admission {
    /// A newer run has the record: ack.
    Over,
    /// This run is finished: write what is missing of its dead letter and event, ack.
    Finished(Box<TaskRecord>),
    /// `once`, and a record exists: tell it, ack.
    Exists(Box<TaskRecord>),
    /// A retry that comes before its time: put off.
    Early(Duration),
    /// Ends without a start, as this state.
    End(State, Box<TaskRecord>),
    /// May start, going on from this record.
    Start(Box<TaskRecord>),
}

/// Decides where it is known how the standing record's run stands to this one. Their numbers alone do not tell it once
/// the store of the stream was set back.
pub fn admit_in_order(
    order: Order,
    standing: &Standing,
    facts: Facts,
    task: &Task,
    fresh: impl FnOnce() -> TaskRecord,
) -> Admission {
    match (order, &standing.record) {
        (Order::Later, _) => Admission::Over,
        (Order::Earlier, Some(record)) if facts.once => Admission::Exists(Box::new(record.clone())),
        (Order::Earlier, _) => admit(&Standing { record: None, ..*standing }, facts, task, fresh),
        (Order::Same | Order::Unclear, _) => admit(standing, facts, task, fresh),
    }
}

/// Decides by the numbers of the runs. `fresh`: a record of this run without attempts.
pub fn admit(standing: &Standing, facts: Facts, task: &Task, fresh: impl FnOnce() -> TaskRecord) -> Admission {
    let mut record;
    match &standing.record {
        Some(standing) if standing.sequence > facts.sequence => return Admission::Over,
        Some(standing) if standing.sequence == facts.sequence => {
            if standing.state.is_terminal() {
                return Admission::Finished(Box::new(standing.clone()));
            }
            record = standing.clone();
            for attempt in record.attempts.iter_mut().filter(|attempt| attempt.outcome == Outcome::Running) {
                // Its holder did not renew; the number goes back, for a loss spends nothing.
                attempt.outcome = Outcome::Lost;
                attempt.number = None;
            }
            record.retry_at = record.retry_at.filter(|_| record.state == State::Retrying);
            if record.cancel.is_some() {
                return Admission::End(State::Cancelled, Box::new(record));
            }
            if task.on_lost == OnLost::Fail && !record.attempts.is_empty() {
                return Admission::End(State::Lost, Box::new(record));
            }
            if let Some(wait) = record.retry_at.map(|due| due.since(facts.now)).filter(|wait| !wait.is_zero()) {
                return Admission::Early(wait);
            }
            record.retry_at = None;
            record.state = State::Running;
        }
        Some(standing) if facts.once => return Admission::Exists(Box::new(standing.clone())),
        Some(_) | None => {
            record = fresh();
            if facts.lost_before {
                // A start that left no trace but the server's count.
                record.attempts.push(Attempt::new(Outcome::Lost));
            }
        }
    }
    let started = record.attempts.iter().any(|attempt| attempt.start.is_some());
    if task.expires_at.is_some_and(|expires| expires <= facts.now) && !started {
        return Admission::End(State::Expired, Box::new(record));
    }
    Admission::Start(Box::new(record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::record::Cancel;
    use schemas::{StartId, TaskKey};

    const NOW: i64 = 1_000_000;

    fn fresh(sequence: u64, state: State) -> TaskRecord {
        let key: TaskKey = "q.a".parse().unwrap();
        TaskRecord::new(&key, sequence, state, Timestamp::from_millis(0))
    }

    fn started(sequence: u64, state: State, outcome: Outcome) -> TaskRecord {
        let attempt = Attempt {
            number: std::num::NonZeroU32::new(1),
            start: Some(StartId::new("s1").unwrap()),
            ..Attempt::new(outcome)
        };
        TaskRecord { attempts: vec![attempt], ..fresh(sequence, state) }
    }

    fn task(extra: &str) -> Task {
        Task::decode(format!(r#"{{"workload":{{"kind":"call","handler":"noop"}}{extra}}}"#).as_bytes()).unwrap()
    }

    fn decide(record: Option<TaskRecord>, count: u64, extra: &str, once: bool) -> Admission {
        let facts = Facts { sequence: 7, lost_before: count > 1, once, now: Timestamp::from_millis(NOW) };
        admit(&Standing { revision: 3, record }, facts, &task(extra), || fresh(7, State::Running))
    }

    #[test]
    fn a_newer_run_ends_this_one_and_a_finished_one_is_not_run_again() {
        assert!(matches!(decide(Some(fresh(8, State::Running)), 1, "", false), Admission::Over));
        assert!(matches!(decide(Some(fresh(7, State::Succeeded)), 2, "", false), Admission::Finished(_)));
    }

    #[test]
    fn an_older_run_does_not_stand_in_the_way_unless_once() {
        assert!(
            matches!(decide(Some(fresh(6, State::Failed)), 1, "", false), Admission::Start(r) if r.attempts.is_empty())
        );
        assert!(matches!(decide(Some(fresh(6, State::Failed)), 1, "", true), Admission::Exists(_)));
        assert!(matches!(decide(None, 1, "", true), Admission::Start(_)));
    }

    #[test]
    fn an_earlier_run_is_earlier_whatever_its_number() {
        let decide = |order, sequence, once| {
            let facts = Facts { sequence: 7, lost_before: false, once, now: Timestamp::from_millis(NOW) };
            let standing = Standing { revision: 3, record: Some(started(sequence, State::Succeeded, Outcome::Exited)) };
            admit_in_order(order, &standing, facts, &task(""), || fresh(7, State::Running))
        };
        for relic in [7, 8] {
            assert!(matches!(decide(Order::Earlier, relic, false), Admission::Start(r) if r.attempts.is_empty()));
            assert!(matches!(decide(Order::Earlier, relic, true), Admission::Exists(r) if r.sequence == relic));
        }
        assert!(matches!(decide(Order::Later, 6, false), Admission::Over));
        assert!(matches!(decide(Order::Same, 7, false), Admission::Finished(_)));
    }

    #[test]
    fn a_holder_that_did_not_renew_is_lost_and_spends_nothing() {
        let record = started(7, State::Running, Outcome::Running);
        let Admission::Start(record) = decide(Some(record), 2, "", false) else { panic!() };
        assert_eq!((record.attempts[0].outcome, record.attempts[0].number), (Outcome::Lost, None));
    }

    #[test]
    fn a_loss_without_a_trace_counts_once() {
        let Admission::Start(record) = decide(None, 5, "", false) else { panic!() };
        assert_eq!(record.attempts.len(), 1);
        assert_eq!(record.attempts[0].outcome, Outcome::Lost);
    }

    #[test]
    fn what_may_start_only_once_is_lost_with_its_holder() {
        let record = started(7, State::Running, Outcome::Running);
        let decided = decide(Some(record), 2, r#","on_lost":"fail""#, false);
        assert!(matches!(decided, Admission::End(State::Lost, _)));
        // Without a record it never started, for a claim goes before every start.
        assert!(matches!(decide(None, 2, r#","on_lost":"fail""#, false), Admission::Start(_)));
    }

    #[test]
    fn a_retry_before_its_time_is_put_off() {
        let due = |ms| TaskRecord {
            retry_at: Some(Timestamp::from_millis(NOW + ms)),
            ..started(7, State::Retrying, Outcome::Exited)
        };
        assert!(matches!(decide(Some(due(1500)), 2, "", false), Admission::Early(wait) if wait.as_millis() == 1500));
        assert!(matches!(decide(Some(due(0)), 2, "", false), Admission::Start(r) if r.attempts[0].number.is_some()));
    }

    #[test]
    fn a_cancel_flag_ends_it_before_the_next_start() {
        let cancel = Some(Cancel::new(Timestamp::from_millis(1), None));
        let record = TaskRecord { cancel, ..started(7, State::Running, Outcome::Running) };
        assert!(matches!(decide(Some(record), 2, "", false), Admission::End(State::Cancelled, _)));
    }

    #[test]
    fn only_what_never_started_expires() {
        let late = r#","expires_at":"1970-01-01T00:00:01Z""#;
        assert!(matches!(decide(None, 1, late, false), Admission::End(State::Expired, _)));
        let record = started(7, State::Retrying, Outcome::Exited);
        assert!(matches!(decide(Some(record), 2, late, false), Admission::Start(_)));
    }
}
