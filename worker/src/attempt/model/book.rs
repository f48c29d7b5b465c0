//! Asks the code. Records are the code's own; each distinct one is kept once and has a number. Each question is asked
//! once, for the same question has the same answer.

use std::collections::HashMap;
use std::num::NonZeroU32;

use bytes::Bytes;
use dispatcher::client::cancelling::{Move, decide, ended_for_the_holder};
use dispatcher::client::{Queued, Recorded, TaskView};
use schemas::record::Cancel;
use schemas::task::{OnLost, Policy};
use schemas::{AgentId, Code, Order, Outcome, StartId, State, Task, TaskError, TaskKey, TaskRecord, Timestamp};

use super::world::Base;
use super::{Ending, Scenario};
use crate::attempt::admit::{Admission, Facts, admit_in_order};
use crate::attempt::ending::{conclude, end_without_start, ending_error, verdict};
use crate::attempt::fence::{Ahead, Next, ahead, read_back};
use crate::attempt::phase::{End, Event, Phase, Why};
use crate::attempt::runner::{begun, next_number};
use crate::nats::delivery::Verdict;
use crate::nats::store::Standing;
use crate::poison::condemned;
use crate::settle::{Settlement, outcome, settle};

/// A distinct record by its number; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rec(pub u16);

impl Rec {
    pub const NONE: Self = Self(0);
}

/// What admission comes to.
#[derive(Clone, Copy, Debug)]
pub enum Judged {
    Start(Rec),
    /// Ends without a start, as this record.
    End(Rec),
    Finished,
    /// Nothing is written: a newer run has the record, or `once` found one.
    Over,
    Early,
}

/// What a refused write does next.
#[derive(Clone, Copy, Debug)]
pub enum Reread {
    Stands,
    Again(Rec),
    Superseded,
    Ended,
}

/// What a canceller does next.
#[derive(Clone, Copy, Debug)]
pub enum Decided {
    Over,
    End(Rec),
    Flag(Rec),
    Stop,
    /// Another run, or nothing to be found.
    Nothing,
}

/// Why an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Itself(Ending),
    Cancelled,
    Drained,
}

/// What is known of a record at a glance.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    pub state: State,
    pub run: u8,
    /// Start ids in it.
    pub starts: u64,
    /// Start id of its last attempt; 0 for none.
    pub last: u8,
    /// An attempt that was lost or handed back bears a number, or two bear the same.
    pub misnumbered: bool,
}

pub struct Book {
    key: TaskKey,
    task: Task,
    policy: Policy,
    lost_limit: usize,
    records: Vec<(TaskRecord, Glance)>,
    numbers: HashMap<Vec<u8>, Rec>,
    judged: HashMap<u64, Judged>,
    begun: HashMap<u64, Rec>,
    reread: HashMap<u64, Reread>,
    concluded: HashMap<u64, Rec>,
    decided: HashMap<u64, Decided>,
    for_holder: HashMap<Rec, Rec>,
}

/// The present never moves; what must differ by time differs by name.
fn now() -> Timestamp {
    Timestamp::from_millis(1_000_000)
}

/// Revisions as the code sees them.
const NEWEST: u64 = 9;

fn start_id(start: u8) -> StartId {
    StartId::new(format!("s{start}")).expect("a start id")
}

fn worker_id(worker: usize) -> AgentId {
    AgentId::new(format!("w{worker}")).expect("an agent id")
}

impl Book {
    pub fn new(scenario: &Scenario) -> Self {
        let on_lost = if scenario.on_lost == OnLost::Fail { r#","on_lost":"fail""# } else { "" };
        let (max, retry) = (scenario.max_attempts, scenario.max_attempts > 1);
        let retry = if retry { format!(r#","retry":{{"max_attempts":{max}}}"#) } else { String::new() };
        let task = format!(r#"{{"workload":{{"kind":"call","handler":"noop"}}{on_lost}{retry}}}"#);
        let task = Task::decode(task.as_bytes()).expect("a task");
        let key: TaskKey = "q.a".parse().expect("a key");
        let nothing = TaskRecord::new(&key, 0, State::Running, now());
        let glance = glance(&nothing);
        Self {
            policy: task.policy(&Default::default()),
            key,
            task,
            lost_limit: scenario.lost_limit,
            records: vec![(nothing, glance)],
            numbers: HashMap::new(),
            judged: HashMap::new(),
            begun: HashMap::new(),
            reread: HashMap::new(),
            concluded: HashMap::new(),
            decided: HashMap::new(),
            for_holder: HashMap::new(),
        }
    }

    pub fn glance(&self, rec: Rec) -> Glance {
        self.records[usize::from(rec.0)].1
    }

    pub fn show(&self, rec: Rec) -> String {
        if rec == Rec::NONE {
            "none".into()
        } else {
            format!("{} of run {}", self.glance(rec).state, self.glance(rec).run)
        }
    }

    fn record(&self, rec: Rec) -> TaskRecord {
        self.records[usize::from(rec.0)].0.clone()
    }

    fn number(&mut self, mut record: TaskRecord) -> Rec {
        // Names of starts that are over are compared with nothing, and without a poison guard no names of workers are.
        let over = record.attempts.len().saturating_sub(1);
        for attempt in &mut record.attempts[..over] {
            attempt.start = attempt.start.as_ref().map(|_| start_id(0));
        }
        if self.lost_limit == 0 {
            record
                .attempts
                .iter_mut()
                .for_each(|attempt| attempt.worker = attempt.worker.as_ref().map(|_| worker_id(0)));
        }
        // What stands is what would be read back.
        let bytes = serde_json::to_vec(&record).expect("a record is plain data");
        if let Some(rec) = self.numbers.get(&bytes) {
            return *rec;
        }
        let record: TaskRecord = serde_json::from_slice(&bytes).expect("a record reads back");
        let rec = Rec(u16::try_from(self.records.len()).expect("few records"));
        let glance = glance(&record);
        self.records.push((record, glance));
        self.numbers.insert(bytes, rec);
        rec
    }

    fn standing(&self, rec: Rec) -> Standing {
        let record = (rec != Rec::NONE).then(|| self.record(rec));
        Standing { revision: if record.is_some() { NEWEST } else { 0 }, record }
    }

    fn fresh(&self, run: u8, state: State) -> TaskRecord {
        // Stored far apart from each other, so that numbers and times agree on which came first.
        TaskRecord::new(&self.key, u64::from(run), state, Timestamp::from_millis(i64::from(run) * 60_000))
    }

    /// Whether a delivery may start. `dead`: the workers that are gone, one bit each.
    pub fn judge(&mut self, standing: Rec, run: u8, again: bool, once: bool, early: bool, dead: u8) -> Judged {
        let flags = u64::from(again) | u64::from(once) << 1 | u64::from(early) << 2;
        let question = u64::from(standing.0) | u64::from(run) << 16 | flags << 24 | u64::from(dead) << 32;
        if let Some(judged) = self.judged.get(&question) {
            return *judged;
        }
        let (early_is, late_is) = (Timestamp::from_millis(0), now().plus(std::time::Duration::from_secs(3_600)));
        let now = if early { early_is } else { late_is };
        let facts = Facts { sequence: u64::from(run), lost_before: again, once, now };
        let fresh = self.fresh(run, State::Running);
        let order = self.order(&fresh, standing);
        let judged = match admit_in_order(order, &self.standing(standing), facts, &self.task, || fresh.clone()) {
            Admission::Over | Admission::Exists(_) => Judged::Over,
            Admission::Finished(_) => Judged::Finished,
            Admission::Early(_) => Judged::Early,
            Admission::End(state, record) => self.unstarted(*record, state, ending_error(state)),
            Admission::Start(record) => {
                let gone = |(id, _): (&AgentId, &str)| (0..8).any(|at| dead & (1 << at) != 0 && *id == worker_id(at));
                if condemned(self.lost_limit, &record.attempts, gone) {
                    let error = TaskError::new(Code::LostTooOften, "");
                    self.unstarted(*record, State::Failed, Some(error))
                } else {
                    Judged::Start(self.number(*record))
                }
            }
        };
        self.judged.insert(question, judged);
        judged
    }

    fn unstarted(&mut self, mut record: TaskRecord, state: State, error: Option<TaskError>) -> Judged {
        end_without_start(&mut record, state, error, now());
        Judged::End(self.number(record))
    }

    /// The record with one more attempt that begins.
    pub fn begin(&mut self, rec: Rec, worker: usize, start: u8) -> Rec {
        let question = u64::from(rec.0) | (worker as u64) << 16 | u64::from(start) << 24;
        if let Some(begun) = self.begun.get(&question) {
            return *begun;
        }
        let mut record = self.record(rec);
        let number = next_number(&record.attempts);
        record.attempts.push(begun(number, &start_id(start), (&worker_id(worker), "i"), now()));
        let rec = self.number(record);
        self.begun.insert(question, rec);
        rec
    }

    /// A write of `wanted` was refused or not answered: what now.
    pub fn reread(&mut self, wanted: Rec, start: u8, standing: Rec) -> Reread {
        let question = u64::from(wanted.0) | u64::from(start) << 16 | u64::from(standing.0) << 32;
        if let Some(reread) = self.reread.get(&question) {
            return *reread;
        }
        let mut record = self.record(wanted);
        let order = self.order(&record, standing);
        let reread = match read_back(&mut record, &start_id(start), self.standing(standing), order) {
            Next::Stands(_) => Reread::Stands,
            Next::Superseded => Reread::Superseded,
            Next::Ended(_) => Reread::Ended,
            Next::Again(revision) => {
                assert_eq!(revision, self.standing(standing).revision, "over what stands");
                Reread::Again(self.number(record))
            }
        };
        self.reread.insert(question, reread);
        reread
    }

    /// Who is ahead of a start whose lease is lost.
    pub fn ahead(&self, wanted: Rec, start: u8, standing: Rec) -> Ahead {
        let wanted = self.record(wanted);
        let order = self.order(&wanted, standing);
        ahead(&wanted, &start_id(start), self.standing(standing), order)
    }

    /// How the run of what stands is to that of `wanted`.
    fn order(&self, wanted: &TaskRecord, standing: Rec) -> Order {
        let standing = self.standing(standing).record;
        standing.map_or(Order::Same, |record| record.order_to(wanted.sequence, wanted.submitted_at))
    }

    pub fn is_flagged(&self, rec: Rec) -> bool {
        self.records[usize::from(rec.0)].0.cancel.is_some()
    }

    /// The record of an attempt that ended.
    pub fn conclude(&mut self, wanted: Rec, on_lost: OnLost, ends: Ends) -> Rec {
        let question = u64::from(wanted.0) | (ends_key(ends)) << 16;
        if let Some(rec) = self.concluded.get(&question) {
            return *rec;
        }
        let running = Phase::Preparing.next(Event::Started);
        let phase = match ends {
            Ends::Itself(ending) => running.next(Event::Ended(end(ending))),
            Ends::Cancelled => running.next(Event::Stop(Why::Cancelled)).next(Event::Ended(End::Succeeded)),
            Ends::Drained => running.next(Event::Stop(Why::Drained)).next(Event::Ended(end(Ending::Badly))),
        };
        let Phase::Over(end) = phase else { panic!("it ended") };
        let mut record = self.record(wanted);
        let attempt = record.attempts.last_mut().expect("its own attempt");
        let number = attempt.number.unwrap_or(NonZeroU32::MIN);
        attempt.outcome = outcome(&end);
        let settlement = settle(&end, number, &self.policy, on_lost, 1.0);
        assert_ne!(settlement, Settlement::Leave);
        conclude(&mut record, &settlement, now());
        let rec = self.number(record);
        self.concluded.insert(question, rec);
        rec
    }

    /// Whether the server is told to hand it out again.
    pub fn comes_again(&self, rec: Rec) -> bool {
        matches!(verdict(&self.records[usize::from(rec.0)].0, Default::default()), Verdict::Nak(_))
    }

    /// What a canceller of `run` does about what it saw.
    pub fn decide(&mut self, message: u8, standing: Rec, run: u8) -> Decided {
        let question = u64::from(message) | u64::from(run) << 8 | u64::from(standing.0) << 16;
        if let Some(decided) = self.decided.get(&question) {
            return *decided;
        }
        let view = self.view(message, standing);
        let cancel = Cancel::new(now(), None);
        let decided = match decide(&view, u64::from(run), &cancel) {
            Ok(Move::Over(_)) => Decided::Over,
            Ok(Move::End { record, revision }) => {
                assert_eq!(revision, view.revision);
                Decided::End(self.number(*record))
            }
            Ok(Move::Flag { record, revision }) => {
                assert_eq!(revision, view.revision);
                Decided::Flag(self.number(*record))
            }
            Ok(Move::Stop(_)) => Decided::Stop,
            Err(_) => Decided::Nothing,
        };
        self.decided.insert(question, decided);
        decided
    }

    /// The newest run that a canceller can see; 0 for none.
    pub fn newest(&self, message: u8, standing: Rec) -> u8 {
        self.view(message, standing).sequence().map_or(0, |sequence| sequence as u8)
    }

    fn view(&self, message: u8, standing: Rec) -> TaskView {
        let Standing { revision, record } = self.standing(standing);
        let record = record.map(|record| Recorded { record, revision, written_at: now() });
        let queued = (message > 0).then(|| Queued {
            sequence: u64::from(message),
            submitted_at: Timestamp::from_millis(0),
            task: Bytes::new(),
            submission: None,
        });
        TaskView { key: self.key.clone(), record, revision, queued }
    }

    pub fn for_the_holder(&mut self, rec: Rec) -> Rec {
        if let Some(ended) = self.for_holder.get(&rec) {
            return *ended;
        }
        let mut record = ended_for_the_holder(self.record(rec));
        // The one moment that is read from a clock.
        record.ended_at = Some(now());
        record.attempts.iter_mut().for_each(|attempt| attempt.phases.ended = attempt.phases.ended.map(|_| now()));
        let ended = self.number(record);
        self.for_holder.insert(rec, ended);
        ended
    }

    /// The same record, its losses numbered as if they had spent something.
    pub fn misnumber(&mut self, rec: Rec) -> Rec {
        let mut record = self.record(rec);
        for (attempt, number) in record.attempts.iter_mut().zip(1..) {
            attempt.number = NonZeroU32::new(number);
        }
        self.number(record)
    }
}

fn end(ending: Ending) -> End {
    match ending {
        Ending::Well => End::Succeeded,
        Ending::Badly => End::Failed { error: TaskError::new(Code::ExitedNonZero, ""), exit_code: Some(1) },
        Ending::Hopeless => End::failed(TaskError::new(Code::CommandNotFound, "")),
    }
}

fn ends_key(ends: Ends) -> u64 {
    match ends {
        Ends::Itself(ending) => ending as u64,
        Ends::Cancelled => 8,
        Ends::Drained => 9,
    }
}

fn glance(record: &TaskRecord) -> Glance {
    let number = |start: &StartId| start.as_str()[1..].parse::<u8>().expect("one of ours");
    let starts = record.attempts.iter().filter_map(|attempt| attempt.start.as_ref());
    let mut numbers: Vec<u32> = record.attempts.iter().filter_map(|attempt| Some(attempt.number?.get())).collect();
    let numbered = numbers.len();
    numbers.dedup();
    let spends = |outcome| match outcome {
        Outcome::Lost | Outcome::HandedBack => false,
        Outcome::Running | Outcome::Exited | Outcome::FailedToStart | Outcome::TimedOut | Outcome::Cancelled => true,
        Outcome::Newer(_) => unreachable!("only this version takes part"),
    };
    Glance {
        state: record.state,
        run: record.sequence as u8,
        starts: starts.map(|start| 1 << number(start)).fold(0, |all, one| all | one),
        last: record.attempts.last().and_then(|attempt| attempt.start.as_ref()).map_or(0, number),
        misnumbered: numbers.len() != numbered
            || record.attempts.iter().any(|attempt| attempt.number.is_some() && !spends(attempt.outcome)),
    }
}

impl Base {
    /// What stands after a write of one's own, or a read.
    pub fn of(rec: Rec) -> Self {
        if rec == Rec::NONE { Self::Nothing } else { Self::Newest }
    }
}
