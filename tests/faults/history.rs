//! What one round did and what a user can read after it: plain data, gathered elsewhere, judged by the checker.
//!
//! All times are milliseconds since the epoch by this machine's clock, whatever clock the fleet believes in.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{State, TaskRecord};

/// One round.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every submission, accepted or not.
    pub submissions: Vec<Submission>,
    /// Every revision of every record that the server stored, oldest first.
    pub revisions: Vec<Revision>,
    /// What attempts wrote down themselves, in the order of the file.
    pub effects: Vec<Effect>,
    /// Every dead letter.
    pub letters: Vec<Letter>,
    /// What is kept of the log of each start: (key, start id) → lines of stdout.
    pub logs: BTreeMap<(String, String), Log>,
    /// Artifacts that were fetched: (key, start id, path) → bytes, or why they cannot be read.
    pub artifacts: BTreeMap<(String, String, String), Result<Vec<u8>, String>>,
    /// Every cancel that was asked for.
    pub cancels: Vec<Cancel>,
    /// What the nemesis did to programs and servers.
    pub faults: Vec<Fault>,
    /// What still stood when all was over.
    pub rest: Rest,
}

/// One try to have a task run.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Random word that names this submission: in the task's environment, its effects, its result.
    pub nonce: String,
    /// `<queue>.<id>`.
    pub key: String,
    /// What it should do.
    pub plan: Plan,
    /// The body that was sent.
    pub body: Vec<u8>,
    /// What the server said in the end.
    pub answer: Answer,
    /// When it was first sent.
    pub sent_at: i64,
    /// When the answer came.
    pub answered_at: i64,
}

/// What a submitter was told in the end, all its tries taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Stored under this sequence.
    Accepted(u64),
    /// Not stored, for sure.
    Refused,
    /// Nobody answered; it may be stored or not.
    Unknown,
}

/// What a task of the load does, and how it may end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// What runs it.
    pub kind: Kind,
    /// Where every attempt goes well and nobody interferes, the end.
    pub end: State,
    /// Numbered attempts until that end.
    pub attempts: u32,
    /// `on_lost: fail`: at most one start, and `lost` is a right end.
    pub at_most_once: bool,
    /// A cancel is sent: `cancelled` is a right end.
    pub cancelled: bool,
    /// It has an `expires_at` that may come before its start: `expired` is a right end.
    pub expires: bool,
    /// Lines `1`, `2`, … that an attempt that goes well writes to stdout.
    pub lines: u32,
    /// It leaves an artifact `out.txt` that holds its nonce.
    pub artifact: bool,
    /// It writes to stdout whatever it likes besides.
    pub babbles: bool,
}

/// What runs a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The built-in `echo`, which answers the nonce and leaves no effects.
    Call,
    /// A shell on the worker.
    Process,
    /// A shell in a container.
    Container,
}

/// One stored revision of one record.
#[derive(Clone, Debug)]
pub struct Revision {
    /// `<queue>.<id>`.
    pub key: String,
    /// Its place in the bucket's stream.
    pub revision: u64,
    /// When the server stored it.
    pub at: i64,
    /// What it says.
    pub record: TaskRecord,
}

/// One line that an attempt appended to the file of effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Whose.
    pub nonce: String,
    /// Random word of this start, chosen by the job itself.
    pub start: String,
    /// `$SHOAL_TASK_ATTEMPT`.
    pub attempt: u32,
    /// Which moment.
    pub what: Moment,
    /// When.
    pub at: i64,
}

/// A moment in the life of one start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Its first act.
    Begin,
    /// It is still there.
    Alive,
    /// Its last act.
    End,
}

/// One dead letter.
#[derive(Clone, Debug)]
pub struct Letter {
    /// `<queue>.<id>`.
    pub key: String,
    /// Of which run.
    pub sequence: u64,
    /// Its reason.
    pub reason: String,
    /// The task's bytes.
    pub body: Vec<u8>,
}

/// What is kept of one start's stdout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Lines, in order.
    pub lines: Vec<String>,
    /// A line of the worker in `system` says that something was left out.
    pub cut: bool,
}

/// One cancel.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// Of which submission.
    pub nonce: String,
    /// When it was asked for.
    pub asked_at: i64,
    /// When it was confirmed; `None`: never.
    pub confirmed_at: Option<i64>,
    /// The task's `stop_grace`, in milliseconds.
    pub grace: i64,
}

/// One thing that the nemesis did.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// Its name in the list of faults.
    pub name: &'static str,
    /// From when.
    pub from: i64,
    /// Until when.
    pub until: i64,
    /// The worker that was killed for good by it, if one was: at `from`.
    pub killed: Option<String>,
    /// Two starts of one run may overlap while it lasts and for as long after it: the server forgot what it handed out, or
    /// nobody can stop a container.
    pub may_overlap: Option<i64>,
    /// A worker cannot be told anything while it lasts, and may run on what was cancelled until so long after it.
    pub silent: Option<i64>,
    /// The server does not answer everybody while it lasts and for so long after it, so that a cancel is confirmed late.
    pub away: Option<i64>,
}

/// What still stands when the load is over and the backlog drained, all workers but `workers` gone.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    /// Keys of messages in the tasks' stream.
    pub messages: Vec<String>,
    /// Labelled containers and networks at the engine.
    pub containers: Vec<String>,
    /// Processes that carry a mark of the load.
    pub processes: Vec<u32>,
    /// Folders of jobs below the workers' state folders.
    pub folders: Vec<String>,
    /// Workers that live.
    pub workers: BTreeSet<String>,
    /// What the registry says of each: (status, running tasks).
    pub registry: BTreeMap<String, (String, usize)>,
}
