//! The protocol of one task id, checked against this code: a world without a server in which every decision is taken by
//! the functions that take it in the programs.
//!
//! Change this first when the order of things is to change. [`world`] is what the server and the programs hold, [`book`]
//! asks the code, [`holder`] and [`canceller`] are the moves, [`law`] what must never be, [`explore`] tries every order
//! of the moves within small bounds, and long random ones with more workers.
//!
//! What the code does between two decisions is one move here: one read, one write, or one word to the server.

mod book;
mod canceller;
mod explore;
mod holder;
mod law;
mod server;
mod world;

use schemas::task::OnLost;

/// A setting in which the protocol is tried.
#[derive(Clone, Debug)]
struct Scenario {
    /// How attempts may end by themselves.
    ends: &'static [Ending],
    on_lost: OnLost,
    max_attempts: u32,
    /// Losses that condemn a task.
    lost_limit: usize,
    /// Whether somebody cancels.
    cancel: bool,
    /// Whether the id is used again once it is free; with the header `once`, if so.
    again: Option<Once>,
    workers: usize,
    left: world::Left,
    /// Also what only makes the number of states larger: early retries, leases that a worker sees end.
    thorough: bool,
}

/// Whether the second use of the id asks for `once`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Once {
    No,
    Yes,
}

/// How an attempt ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Well,
    /// In a way that another attempt may mend.
    Badly,
    /// In a way that none does.
    Hopeless,
}

/// A wrong decision or order, to prove that the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    LetterBeforeRecord,
    AckBeforeRecord,
    NoClaimForOnLostFail,
    SupersededWriteApplied,
    WriteOverAnEnd,
    WriteOverANewerRun,
    CancellerDeletesFirst,
    NakAfterALostLease,
    LossSpendsANumber,
    FirstDeliveryIgnoresOnce,
    NothingBehindAnEndFound,
    NothingBehindAnEndAhead,
}
