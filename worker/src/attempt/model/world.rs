//! What the server and the programs hold at one moment, small enough to be kept by the million.

use super::book::Rec;

/// Most workers at once.
pub const WORKERS: usize = 4;
/// Runs of the id.
pub const RUNS: usize = 2;

/// A revision, as far as it matters: what is not the newest never will be again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// There was nothing.
    Nothing,
    /// What stands now.
    Newest,
    /// What stood once.
    Stale,
}

/// How a delivery stands with the server and with its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    Held,
    /// The server hands the message out again; the holder does not know.
    Lapsed,
    /// The holder knows that it may be.
    Lost,
}

/// Where a worker is with its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Idle,
    Dead,
    /// A delivery is in hand, nothing decided.
    Pulled,
    /// About to write the claim.
    Claiming,
    /// The workload runs.
    Running,
    /// About to write the end of an attempt.
    Ending,
    /// About to write the end of a run that does not start.
    EndingUnstarted,
    /// Behind the record: the next step of `AFTER_RECORD`.
    Following(u8),
    /// About to write what is missing behind an end that was found.
    Repairing,
    /// About to look who is ahead.
    Leaving,
    /// About to tell the server.
    Settling,
}

/// What the server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Done,
    Again,
}

/// One worker with room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub at: At,
    /// Which run it holds; 0 for none.
    pub run: u8,
    /// Handed over more than once.
    pub again: bool,
    pub lease: Lease,
    /// The connection that the delivery came over still stands.
    pub linked: bool,
    /// Its start id; 0 for none.
    pub start: u8,
    /// What it writes next, over `base`.
    pub wanted: Rec,
    pub base: Base,
    pub claimed: bool,
    pub word: Word,
}

/// Where a canceller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canceling {
    Unasked,
    LookAtMessage,
    LookAtRecord,
    /// About to write an end, or the flag.
    Write,
    Flag,
    /// Waits for the holder.
    Waiting,
    /// About to write the end for a silent holder.
    WriteForHolder,
    /// About to ask whether the message may go.
    MayDelete,
    Delete,
    Over,
}

/// Somebody who cancels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canceller {
    pub at: Canceling,
    /// The run it means; 0 until it looked.
    pub run: u8,
    /// The message it saw; 0 for none.
    pub seen: u8,
    pub wanted: Rec,
    pub base: Base,
    /// It waited for the holder as long as it does.
    pub late: bool,
    /// What it ended waited for its retry.
    pub retrying: bool,
}

/// The message of the newest run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub there: bool,
    /// It may be handed out.
    pub waiting: bool,
    /// How often it was, as far as the server knows; 2 for more.
    pub count: u8,
    /// Whether this run was ever handed out, as far as the server knows.
    pub delivered: bool,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub lapses: u8,
    pub forgets: u8,
    pub crashes: u8,
    pub drains: u8,
    /// Writes that are stored and not answered.
    pub unanswered: u8,
}

/// What nobody in the world knows, for the laws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Terminal records, by run.
    pub ends: [u8; RUNS],
    /// The last of them says `failed`.
    pub failed: [bool; RUNS],
    pub starts: [u8; RUNS],
    pub letters: [u8; RUNS],
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// The newest run that was accepted.
    pub run: u8,
    pub message: Message,
    pub record: Rec,
    pub holders: [Holder; WORKERS],
    pub canceller: Canceller,
    pub left: Left,
    pub told: Told,
}

impl Holder {
    pub const IDLE: Self = Self {
        at: At::Idle,
        run: 0,
        again: false,
        lease: Lease::Held,
        linked: true,
        start: 0,
        wanted: Rec::NONE,
        base: Base::Nothing,
        claimed: false,
        word: Word::Done,
    };
    pub const DEAD: Self = Self { at: At::Dead, ..Self::IDLE };

    pub fn is_out(&self) -> bool {
        !matches!(self.at, At::Idle | At::Dead)
    }

    /// Whether the server counts this delivery as its holder's.
    pub fn keeps(&self, run: u8) -> bool {
        self.is_out() && self.run == run && self.lease == Lease::Held && self.linked
    }

    fn key(&self) -> u64 {
        let at = match self.at {
            At::Idle => 0,
            At::Dead => 1,
            At::Pulled => 2,
            At::Claiming => 3,
            At::Running => 4,
            At::Ending => 5,
            At::EndingUnstarted => 6,
            At::Repairing => 7,
            At::Leaving => 8,
            At::Settling => 9,
            At::Following(step) => 10 + u64::from(step),
        };
        at | u64::from(self.run) << 8
            | u64::from(self.again) << 12
            | (self.lease as u64) << 13
            | u64::from(self.linked) << 15
            | u64::from(self.start) << 16
            | u64::from(self.wanted.0) << 24
            | (self.base as u64) << 40
            | u64::from(self.claimed) << 42
            | (self.word as u64) << 43
    }
}

impl World {
    /// One message, stored a moment ago, and `workers` that are idle.
    pub fn new(workers: usize, cancel: bool, left: Left) -> Self {
        let mut holders = [Holder::DEAD; WORKERS];
        holders[..workers].fill(Holder::IDLE);
        let at = if cancel { Canceling::LookAtMessage } else { Canceling::Unasked };
        Self {
            run: 1,
            message: Message { there: true, waiting: true, count: 0, delivered: false },
            record: Rec::NONE,
            holders,
            canceller: Canceller {
                at,
                run: 0,
                seen: 0,
                wanted: Rec::NONE,
                base: Base::Nothing,
                late: false,
                retrying: false,
            },
            left,
            told: Told::default(),
        }
    }

    /// Where the newest revision is one's base, it is so no longer.
    pub fn replaced(&mut self) {
        for holder in &mut self.holders {
            if holder.base == Base::Newest {
                holder.base = Base::Stale;
            }
        }
        if self.canceller.base == Base::Newest {
            self.canceller.base = Base::Stale;
        }
    }

    /// What a read gives as revision.
    pub fn base(&self) -> Base {
        if self.record == Rec::NONE { Base::Nothing } else { Base::Newest }
    }

    /// Whether a write over `base` is taken.
    pub fn takes(&self, base: Base) -> bool {
        base == self.base()
    }

    /// The whole as 64 bits; two worlds in a billion share one.
    pub fn hash(&self) -> u64 {
        let (message, left, told, canceller) = (&self.message, &self.left, &self.told, &self.canceller);
        let mut hash = Mix(u64::from(self.run));
        hash.add(
            u64::from(message.there)
                | u64::from(message.waiting) << 1
                | u64::from(message.delivered) << 2
                | u64::from(message.count) << 3
                | u64::from(self.record.0) << 8
                | u64::from(left.lapses) << 24
                | u64::from(left.forgets) << 28
                | u64::from(left.crashes) << 32
                | u64::from(left.drains) << 36
                | u64::from(left.unanswered) << 40,
        );
        hash.add(
            u64::from(canceller.run)
                | u64::from(canceller.seen) << 2
                | u64::from(canceller.wanted.0) << 8
                | (canceller.base as u64) << 24
                | u64::from(canceller.late) << 26
                | u64::from(canceller.retrying) << 27
                | (canceller.at as u64) << 28,
        );
        let mut facts = 0;
        for run in 0..RUNS {
            let of_run = u64::from(told.ends[run])
                | u64::from(told.failed[run]) << 4
                | u64::from(told.starts[run]) << 5
                | u64::from(told.letters[run]) << 12;
            facts |= of_run << (16 * run);
        }
        hash.add(facts);
        for holder in &self.holders {
            hash.add(holder.key());
        }
        hash.0
    }
}

struct Mix(u64);

impl Mix {
    fn add(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31);
    }
}
