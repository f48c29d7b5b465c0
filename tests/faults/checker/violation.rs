//! What can be wrong with a history, each with enough words to find it by hand.

use schemas::State;

/// A run as one finds it: `nats kv get shoal_tasks KEY`, and the nonce in the file of effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Of {
    /// `<queue>.<id>`.
    pub key: String,
    /// Which run of it.
    pub sequence: u64,
    /// Whose.
    pub nonce: String,
}

impl std::fmt::Display for Of {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, sequence, nonce } = self;
        write!(f, "{key} run {sequence} (nonce {nonce})")
    }
}

/// What a run can leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// A revision of a record.
    Record,
    /// A dead letter.
    Letter,
    /// A line in the file of effects.
    Effect,
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Record => "a record",
            Self::Letter => "a dead letter",
            Self::Effect => "an effect",
        })
    }
}

macro_rules! violations {
    ($($(#[doc = $doc:literal])+ $invariant:literal $name:ident { $($field:ident: $type:ty),+ } $words:literal;)+) => {
        /// One promise that was not held.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Violation {
            $($(#[doc = $doc])+ $name {
                $(#[doc = concat!("See the words: `", stringify!($field), "`.")] $field: $type,)+
            },)+
        }

        impl Violation {
            /// The name of each.
            pub const NAMES: &[&str] = &[$(stringify!($name),)+];

            /// Its name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)+
                }
            }

            /// Which invariant it breaks.
            pub fn invariant(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $invariant,)+
                }
            }
        }

        impl std::fmt::Display for Violation {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$name { $($field),+ } => write!(f, $words),)+
                }
            }
        }
    };
}

violations! {
    /// Accepted and never heard of again.
    "A" NoRecord { of: Of } "{of}: accepted, and no record was ever written";
    /// The record of an accepted sequence is about another's task.
    "A" WrongTask { of: Of, found: String } "{of}: accepted, but the record of this run holds the task of {found}";
    /// One submission, several runs.
    "A" StoredTwice { nonce: String, key: String, sequences: Vec<u64> }
        "{key} (nonce {nonce}): one submission is several runs: {sequences:?}";
    /// Not over when all was over.
    "A" NoEnd { of: Of, state: State } "{of}: no terminal record, the last says {state}";
    /// Ended twice.
    "A" TwoEnds { of: Of, states: Vec<State> } "{of}: more than one terminal record: {states:?}";
    /// Went on after its end.
    "A" WroteAfterEnd { of: Of, revision: u64, state: State }
        "{of}: revision {revision} says {state} after the terminal one";
    /// A run whose submitter was told that there is none.
    "A" RefusedRan { key: String, nonce: String, trace: Trace } "{key} (nonce {nonce}): refused for sure, but left {trace}";
    /// It ran, though it has no record and nobody knows whether it was stored.
    "A" NothingButTraces { key: String, nonce: String, trace: Trace }
        "{key} (nonce {nonce}): never answered, has no record, but left {trace}";
    /// A trace of something that nobody submitted.
    "A" Unsubmitted { what: String, trace: Trace } "{what}: {trace} of what nobody submitted";
    /// A trace that is older than what it is a trace of: a clock that lies, or a word that is not random.
    "A" BeforeSent { of: Of, ms: i64 } "{of}: its first trace is {ms} ms older than its submission";
    /// An older run wrote over a newer one.
    "A" OutOfOrder { of: Of, revision: u64, after: u64 } "{of}: revision {revision} was written after those of run {after}";

    /// Neither the planned end nor one that trouble may cause.
    "A" WrongEnd { of: Of, end: State, planned: State, why: String } "{of}: ended as {end}, planned was {planned}: {why}";
    /// Cancelled by nobody.
    "A" CancelledUnasked { of: Of } "{of}: ended as cancelled, and nobody had asked for that";
    /// Given up though it may start again.
    "A" LostUnasked { of: Of, why: String } "{of}: ended as lost, which its plan does not allow: {why}";
    /// Expired without a deadline.
    "A" ExpiredUnasked { of: Of } "{of}: ended as expired, and it has no `expires_at`";
    /// Condemned as a killer of workers.
    "A" Condemned { of: Of } "{of}: failed as lost_too_often, but no task of this load kills workers";
    /// More or fewer attempts than planned.
    "A" WrongAttempts { of: Of, found: usize, planned: u32 } "{of}: {found} numbered attempts, planned were {planned}";
    /// A loss that spent an attempt.
    "A" NumberedLoss { of: Of, revision: u64 } "{of}: a lost or handed-back attempt has a number in revision {revision}";

    /// The result is not that of one of its starts.
    "B" WrongResult { of: Of, found: String } "{of}: succeeded with the result {found}";
    /// The result is of a start that did not take place.
    "B" ResultOfNoStart { of: Of, start: String } "{of}: its result is of start {start}, which did not begin and end";
    /// The job was told another number than is recorded.
    "B" WrongNumber { of: Of, told: u32, recorded: u32 }
        "{of}: its applied start was told that it is attempt {told}, recorded is {recorded}";
    /// Two starts at once.
    "B" Overlap { key: String, nonce: String, first: String, second: String, at: i64, ms: i64 }
        "{key} (nonce {nonce}): starts {first} and {second} were both there from {at} on for {ms} ms, without an excuse";
    /// Something went on after the end.
    "B" EffectAfterEnd { of: Of, start: String, ms: i64 } "{of}: start {start} was still there {ms} ms after the terminal record";
    /// Something went on beside the next run.
    "B" EffectInLaterRun { of: Of, start: String, ms: i64, later: u64 }
        "{of}: start {start} was still there {ms} ms after run {later} of the same id had begun";

    /// A failure without a dead letter.
    "C" NoLetter { of: Of } "{of}: failed without a dead letter";
    /// A failure with several.
    "C" TwoLetters { of: Of, count: usize } "{of}: {count} dead letters for one failure";
    /// A dead letter that does not say what was sent, or why it failed.
    "C" WrongLetter { of: Of, what: String } "{of}: its dead letter has another {what}";
    /// A dead letter without a failure.
    "C" UnfoundedLetter { of: Of, state: State } "{of}: a dead letter, but its record says {state}";

    /// The log of an applied start that does not go to its end.
    "D" LogCut { of: Of, start: String, found: usize, written: u32 }
        "{of}: log of the applied start {start} has {found} of {written} lines, and no word that it was cut";
    /// A line that is missing in between.
    "D" LogGap { key: String, start: String, before: u32, line: u32 }
        "{key} start {start}: its log goes from line {before} to line {line}";
    /// A line that comes twice or late.
    "D" LogRepeats { key: String, start: String, before: u32, line: u32 }
        "{key} start {start}: its log has line {line} behind line {before}";
    /// A line that this job did not write.
    "D" LogForeign { key: String, start: String, line: String } "{key} start {start}: its log has the line {line:?}";
    /// A promised artifact that the record does not name.
    "D" NoArtifact { of: Of } "{of}: succeeded, and its record does not name out.txt of the applied start";
    /// An artifact with other bytes than were written.
    "D" WrongArtifact { of: Of, path: String, bytes: usize } "{of}: artifact {path} ({bytes} bytes) is not what was written";
    /// An artifact that is not what its record says.
    "D" WrongDigest { of: Of, path: String, recorded: String, found: String }
        "{of}: artifact {path} is recorded as {recorded}, but is {found}";
    /// A named artifact that nobody can read.
    "D" UnreadableArtifact { of: Of, path: String, start: String, why: String }
        "{of}: artifact {path} of start {start} is in its record and cannot be read: {why}";

    /// A cancel that was never confirmed.
    "E" Unconfirmed { of: Of } "{of}: its cancel was never confirmed";
    /// A cancel that was confirmed too late.
    "E" ConfirmedLate { of: Of, ms: i64, grace: i64 } "{of}: its cancel was confirmed after {ms} ms, with a grace of {grace} ms";
    /// A cancel that did not hold.
    "E" EffectAfterCancel { of: Of, start: String, ms: i64 }
        "{of}: start {start} was still there {ms} ms after its cancel had been confirmed";

    /// A living worker that the registry does not call ready.
    "F" NotReady { worker: String, status: String } "{worker}: lives, and the registry says {status}";
    /// A dead worker that the registry does not call offline.
    "F" NotOffline { worker: String, status: String } "{worker}: is gone, and the registry says {status}";
    /// Something runs where nothing runs.
    "G" StillRunning { worker: String, count: usize } "{worker}: the registry says that it runs {count} tasks, and all are over";
    /// The backlog did not drain.
    "H" MessageLeft { key: String } "{key}: its message is still in the stream";

    /// Twice begun.
    "J" BegunTwice { of: Of, begins: usize } "{of}: to be started at most once, begun {begins} times";
    /// Twice claimed.
    "J" ClaimedTwice { of: Of, starts: usize } "{of}: to be started at most once, {starts} starts in its record";

    /// A container or network without an owner.
    "C'" ContainerLeft { name: String } "{name}: a container or network that is left";
    /// A process without an owner.
    "C'" ProcessLeft { pid: u32 } "process {pid} is left";
    /// A folder without an owner.
    "C'" FolderLeft { path: String } "{path}: a folder that is left";

    /// What a killed worker had and nobody took.
    "T" NotRestarted { of: Of, worker: String } "{of}: was running on {worker} when that was killed; nobody began or ended it";
}
