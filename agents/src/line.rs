//! The line to people, and to whoever keeps the work.

use futures_util::future::BoxFuture;
use schemas::transcript::Event;
use serde::{Deserialize, Serialize};

use crate::budget::Used;

/// Where a job tells what happens, and hears what people say.
pub trait Line: Send + Sync {
    /// Tells one thing. Never waits for the server; nothing told is lost while the worker lives. Texts are masked on
    /// the way.
    fn tell(&self, event: Event);

    /// Asks people and waits for an answer. Cancel safe.
    fn ask<'a>(&'a self, question: &'a str) -> BoxFuture<'a, Result<String, Unanswered>>;

    /// What people have said since this was last asked.
    fn heard(&self) -> Vec<String>;
}

/// Nobody answered in time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("nobody answered within {}", schemas::HumanDuration(*.0))]
pub struct Unanswered(pub std::time::Duration);

/// Keeps work in progress, so that a next attempt goes on from it.
pub trait Keeper: Send + Sync {
    /// A turn ended. Whether anything is kept now is the keeper's decision. A failure is told on the line, and is none
    /// of the job.
    fn turn<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, ()>;
}

/// How far an implementer has come, over all attempts. Kept as JSON beside the patch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What was used so far.
    pub used: Used,
    /// What was done so far, for the implementer of a next attempt to read. Bounded by whoever writes it.
    pub summary: String,
}
