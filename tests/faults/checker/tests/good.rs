//! A history of a round in which all went as promised, with trouble of every kind in it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use schemas::record::{Artifact, Attempt, Phases, TaskResult};
use schemas::{AgentId, Code, Outcome, StartId, State, TaskError, TaskKey, TaskRecord, Timestamp};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::history::{
    Answer, Cancel, Effect, Fault, History, Kind, Letter, Log, Moment, Plan, Rest, Revision, Submission,
};

/// When the round began.
pub const BEGAN: i64 = 1_800_000_000_000;
/// When `w3` was killed.
pub const KILLED: i64 = BEGAN + 20_000;
/// When the server was killed.
pub const SERVER: i64 = BEGAN + 60_000;
/// For how long the server was away, and for how long after that starts may overlap.
pub const AWAY: i64 = 1_000;

/// A plan of `kind` that succeeds at once; three lines and an artifact if it is no call.
fn plain(kind: Kind) -> Plan {
    let job = kind != Kind::Call;
    Plan {
        kind,
        end: State::Succeeded,
        attempts: 1,
        at_most_once: false,
        cancelled: false,
        expires: false,
        lines: if job { 3 } else { 0 },
        artifact: job,
        babbles: false,
    }
}

/// One run while it is told; its id is also its nonce's second half.
struct Run<'g> {
    history: &'g mut History,
    nonce: String,
    plan: Plan,
    record: TaskRecord,
    now: i64,
}

impl<'g> Run<'g> {
    /// Submits `q.<id>` as `n-<name>` under `sequence`, `after` ms into the round.
    fn new(history: &'g mut History, id: &str, name: &str, sequence: u64, after: i64, plan: Plan) -> Self {
        let (key, nonce): (TaskKey, String) = (format!("q.{id}").parse().unwrap(), format!("n-{name}"));
        let workload = match plan.kind {
            Kind::Call => json!({"kind": "call", "handler": "echo", "payload": nonce}),
            Kind::Process => json!({"kind": "process", "command": ["sh"], "env": {"NONCE": nonce}}),
            Kind::Container => json!({"kind": "container", "image": "i", "env": {"NONCE": nonce}}),
        };
        let body = json!({ "workload": workload }).to_string().into_bytes();
        let now = BEGAN + after;
        let mut record = TaskRecord::new(&key, sequence, State::Running, Timestamp::from_millis(now));
        record.keep_task(&body);
        history.submissions.push(Submission {
            nonce: nonce.clone(),
            key: key.to_string(),
            plan,
            body,
            answer: Answer::Accepted(sequence),
            sent_at: now,
            answered_at: now + 2,
        });
        Self { history, nonce, plan, record, now: now + 10 }
    }

    fn key(&self) -> String {
        self.record.key().to_string()
    }

    fn answer(self, answer: Answer) -> Self {
        self.history.submissions.last_mut().expect("it was submitted").answer = answer;
        self
    }

    fn at(mut self, now: i64) -> Self {
        self.now = now;
        self
    }

    fn store(&mut self) {
        let (key, at, record) = (self.key(), self.now, self.record.clone());
        self.history.revisions.push(Revision { key, revision: 0, at, record });
    }

    /// The job `s-<start>` writes `what` down.
    fn effect(&mut self, start: &str, what: Moment) {
        if self.plan.kind != Kind::Call {
            let attempt = self.record.attempts.last().and_then(|attempt| attempt.number).map_or(1, u32::from);
            let (nonce, start, at) = (self.nonce.clone(), format!("s-{start}"), self.now);
            self.history.effects.push(Effect { nonce, start, attempt, what, at });
        }
    }

    /// A worker starts it as `start` and writes that into the record.
    fn begins(mut self, worker: &str, start: &str) -> Self {
        self.now += 100;
        self.record.state = State::Running;
        self.record.retry_at = None;
        self.record.attempts.push(Attempt {
            number: NonZeroU32::new(self.record.spent() + 1),
            start: Some(StartId::new(start).unwrap()),
            worker: Some(AgentId::new(worker).unwrap()),
            phases: Phases { started: Some(Timestamp::from_millis(self.now)), ..Phases::default() },
            ..Attempt::new(Outcome::Running)
        });
        self.store();
        self.now += 5;
        self.effect(start, Moment::Begin);
        self.now += 500;
        self.effect(start, Moment::Alive);
        self.logs(start, 1)
    }

    /// So many lines of `start` are kept.
    fn logs(self, start: &str, lines: u32) -> Self {
        if self.plan.lines > 0 {
            let log = Log { lines: (1..=lines).map(|line| line.to_string()).collect(), cut: false };
            self.history.logs.insert((self.key(), start.to_owned()), log);
        }
        self
    }

    fn attempt(&mut self) -> &mut Attempt {
        self.record.attempts.last_mut().expect("it has begun")
    }

    fn finish(&mut self, state: State, error: Option<TaskError>) {
        self.now += 50;
        self.record.state = state;
        self.record.error = error.filter(|_| state.is_terminal());
        self.record.ended_at = Some(Timestamp::from_millis(self.now)).filter(|_| state.is_terminal());
        self.store();
    }

    /// The job `start` comes to its end, and that is applied.
    fn succeeds(mut self, start: &str) -> Self {
        self.now += 500;
        self.effect(start, Moment::End);
        let job = self.plan.kind != Kind::Call;
        let result = if job { format!("{}:s-{start}", self.nonce) } else { format!("\"{}\"", self.nonce) };
        self.record.result = Some(TaskResult::inline(result.as_bytes()));
        self.attempt().outcome = Outcome::Exited;
        if self.plan.artifact {
            let bytes = self.nonce.clone().into_bytes();
            let digest = format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(&bytes)));
            let (path, of) = ("out.txt".to_owned(), StartId::new(start).unwrap());
            self.record.artifacts.push(Artifact {
                path: path.clone(),
                start: of,
                bytes: bytes.len() as u64,
                digest,
                bucket: None,
                more: Default::default(),
            });
            self.history.artifacts.insert((self.key(), start.to_owned(), path), Ok(bytes));
        }
        let lines = self.plan.lines;
        self.finish(State::Succeeded, None);
        self.logs(start, lines)
    }

    /// The attempt fails; where it was the last there is a dead letter.
    fn fails(mut self, state: State) -> Self {
        self.now += 200;
        let error = TaskError::new(Code::ExitedNonZero, "exit code 1");
        self.attempt().outcome = Outcome::Exited;
        self.attempt().error = Some(error.clone());
        self.finish(state, Some(error));
        if state == State::Failed {
            let (key, sequence, reason) = (self.key(), self.record.sequence, "exited_non_zero".to_owned());
            let body = self.history.submissions.last().expect("it was submitted").body.clone();
            self.history.letters.push(Letter { key, sequence, reason, body });
        }
        self
    }

    /// The attempt does not end by itself; nothing is written before somebody else goes on.
    fn vanishes(mut self) -> Self {
        self.attempt().outcome = Outcome::Lost;
        self.attempt().number = None;
        self
    }

    /// Ends without a further start.
    fn ends(mut self, state: State, code: Code) -> Self {
        self.finish(state, Some(TaskError::new(code, "why")));
        self
    }

    /// Somebody asks for its end, and is answered at once if so.
    fn cancel(self, confirmed_after: Option<i64>) -> Self {
        let (nonce, asked_at) = (self.nonce.clone(), self.now);
        let confirmed_at = confirmed_after.map(|after| asked_at + after);
        self.history.cancels.push(Cancel { nonce, asked_at, confirmed_at, grace: 2_000 });
        self
    }
}

/// Three workers, of which one is killed and one leaves; a server that is killed; each kind of task at least twice.
pub fn good() -> History {
    let mut history = History::default();
    let h = &mut history;
    let (call, process, container) = (plain(Kind::Call), plain(Kind::Process), plain(Kind::Container));

    Run::new(h, "call", "call", 10, 0, call).begins("w1", "call1").succeeds("call1");
    Run::new(h, "call-unknown", "call-unknown", 11, 0, call)
        .answer(Answer::Unknown)
        .begins("w2", "call2")
        .succeeds("call2");
    Run::new(h, "call-killed", "call-killed", 12, 19_000, call)
        .begins("w3", "call3")
        .vanishes()
        .at(KILLED + 14_000)
        .begins("w1", "call4")
        .succeeds("call4");
    let once = Plan { at_most_once: true, ..call };
    Run::new(h, "call-once", "call-once", 13, 0, once).begins("w1", "call5").succeeds("call5");

    Run::new(h, "process", "process", 20, 0, process).begins("w1", "process1").succeeds("process1");
    let retried = Plan { attempts: 2, ..process };
    Run::new(h, "retried", "retried", 21, 0, retried)
        .begins("w1", "retried1")
        .fails(State::Retrying)
        .begins("w2", "retried2")
        .succeeds("retried2");
    let failing = Plan { end: State::Failed, attempts: 2, artifact: false, ..process };
    Run::new(h, "failed", "failed", 22, 0, failing)
        .begins("w2", "failed1")
        .fails(State::Retrying)
        .begins("w1", "failed2")
        .fails(State::Failed);
    let cancelled = Plan { cancelled: true, ..process };
    let mut run = Run::new(h, "cancelled", "cancelled", 23, 0, cancelled).begins("w1", "cancelled1").cancel(Some(400));
    run.now += 200;
    run.attempt().outcome = Outcome::Cancelled;
    run.ends(State::Cancelled, Code::Cancelled);
    // A cancel that comes when all is over finds nothing to stop.
    Run::new(h, "late", "late", 24, 0, cancelled).begins("w2", "late1").succeeds("late1").cancel(None);
    let once = Plan { at_most_once: true, ..process };
    Run::new(h, "once", "once", 25, 0, once).begins("w2", "once1").succeeds("once1");
    Run::new(h, "once-lost", "once-lost", 26, 19_000, once)
        .begins("w3", "once2")
        .vanishes()
        .at(KILLED + 14_500)
        .ends(State::Lost, Code::WorkerLost);
    let mut run = Run::new(h, "handed-back", "handed-back", 27, 0, process).begins("w4", "handed1").vanishes();
    run.attempt().outcome = Outcome::HandedBack;
    run.finish(State::Retrying, None);
    run.begins("w1", "handed2").succeeds("handed2");
    let expiring = Plan { expires: true, ..process };
    Run::new(h, "expired", "expired", 28, 0, expiring).ends(State::Expired, Code::Expired);
    // An id that is used twice; its first run was killed before it had written its record.
    let mut run = Run::new(h, "again", "again-1", 29, 18_900, process);
    run.effect("again0", Moment::Begin);
    run.logs("again0", 2).at(KILLED + 13_000).begins("w1", "again1").succeeds("again1");
    Run::new(h, "again", "again-2", 30, 50_000, process).begins("w2", "again2").succeeds("again2");

    Run::new(h, "container", "container", 40, 0, container).begins("w2", "container1").succeeds("container1");
    Run::new(h, "killed", "killed", 41, 19_000, container)
        .begins("w3", "killed1")
        .vanishes()
        .at(KILLED + 11_900)
        .begins("w2", "killed2")
        .succeeds("killed2");
    let once = Plan { at_most_once: true, ..container };
    let mut run = Run::new(h, "engine", "engine", 42, 0, once).begins("w1", "engine1").vanishes();
    run.now += 1_000;
    run.ends(State::Lost, Code::EngineLost);
    overlapping(h, container);

    let refused = Run::new(h, "process", "refused", 0, 100, process);
    refused.answer(Answer::Refused);
    let unknown = Run::new(h, "never", "never", 0, SERVER - BEGAN, process);
    unknown.answer(Answer::Unknown);

    h.faults = vec![
        Fault { name: "worker_killed", from: KILLED, until: KILLED, killed: Some("w3".into()), ..Fault::default() },
        Fault {
            name: "server_killed",
            from: SERVER,
            until: SERVER + AWAY,
            may_overlap: Some(AWAY),
            ..Fault::default()
        },
        Fault { name: "worker_churn", from: BEGAN, until: BEGAN + 1_000, ..Fault::default() },
    ];
    let registry = [("w1", "ready", 0), ("w2", "ready", 0), ("w3", "offline", 4), ("w4", "offline", 0)];
    h.rest = Rest {
        workers: ["w1", "w2"].map(str::to_owned).into(),
        registry: BTreeMap::from(registry.map(|(id, status, count)| (id.to_owned(), (status.to_owned(), count)))),
        ..Rest::default()
    };
    h.revisions.sort_by_key(|revision| revision.at);
    for (at, revision) in h.revisions.iter_mut().enumerate() {
        revision.revision = at as u64 + 1;
    }
    history
}

/// The server forgets, when it is killed, that it handed this run out. Its first start comes to its end as well, and even
/// after the end that is applied.
fn overlapping(history: &mut History, container: Plan) {
    let run = Run::new(history, "overlap", "overlap", 43, SERVER - BEGAN - 600, container).begins("w1", "overlap1");
    let mut run = run.vanishes().at(SERVER + 50).begins("w2", "overlap2").succeeds("overlap2");
    run.now = SERVER + AWAY + 700;
    run.effect("overlap1", Moment::End);
}
