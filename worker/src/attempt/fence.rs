//! The record as fence: every write of an attempt is a compare-and-set, and a write that is refused or not answered is
//! read back before anything else is done. JetStream's acks fence nothing; this does.

use std::time::Duration;

use bytes::Bytes;
use jetstream::{ApiError, MESSAGE_TOO_LARGE, PublishError};
use schemas::record::TaskRecord;
use schemas::task::OnLost;
use schemas::{Order, Outcome, StartId, State, TaskKey};

use crate::nats::store::{Standing, Store};

/// The right of one start to write its task's record.
pub struct Fence<'a> {
    store: &'a Store,
    key: TaskKey,
    start: StartId,
    /// Revision that the next write expects.
    revision: u64,
    /// What the record says, or will say with the next write.
    pub record: Box<TaskRecord>,
    /// Whether a write of this start is in the record.
    pub claimed: bool,
}

/// What became of a write.
#[derive(Debug)]
pub enum Written {
    /// It stands.
    Yes {
        /// Its revision.
        revision: u64,
        /// The record as it was written.
        body: Bytes,
    },
    /// Another start of this run is ahead, or the run is over: nothing of ours may be applied.
    Superseded,
    /// This run was ended by somebody else: a canceller, or another holder.
    Ended(Box<TaskRecord>),
    /// It was not done, and whoever asked no longer wants it.
    GaveUp,
}

/// Who is ahead of a start that lost its lease.
#[derive(Debug)]
pub enum Ahead {
    /// The record is ours still.
    Nobody,
    /// Another start of this run, or a newer run.
    AnotherStart,
    /// This run was ended by somebody else; its dead letter may be missing.
    AnEnd(Box<TaskRecord>),
}

/// Whether a delivery is claimed before it starts: whenever the server's word that it is the first is not enough.
pub(super) fn claim_is_due(unsure: bool, once: bool, count: u64, on_lost: OnLost) -> bool {
    unsure || once || count > 1 || on_lost == OnLost::Fail
}

/// What a look at the record says about our right to write.
#[derive(Debug, PartialEq)]
enum Right {
    /// Expect this revision and try again.
    Try(u64),
    /// Our own write stands already.
    Done(u64),
    /// Somebody else's.
    Superseded,
    /// Terminal, by somebody else.
    Ended,
}

/// Who is ahead of a start that wants to write `wanted`. Pure.
pub(super) fn ahead(wanted: &TaskRecord, start: &StartId, standing: Standing, order: Order) -> Ahead {
    match right(&standing, wanted, start, order) {
        Right::Try(_) | Right::Done(_) => Ahead::Nobody,
        Right::Superseded => Ahead::AnotherStart,
        Right::Ended => Ahead::AnEnd(Box::new(standing.record.expect("only a record is terminal"))),
    }
}

/// Judges what stands in the record against what `wanted` (a record whose last attempt is our start) would say.
/// `order`: how the run of what stands is to ours.
fn right(standing: &Standing, wanted: &TaskRecord, start: &StartId, order: Order) -> Right {
    let Some(record) = &standing.record else { return Right::Try(standing.revision) };
    match order {
        // Finished or not: the message of an older run is gone from the stream, else ours could not have been stored.
        Order::Earlier => return Right::Try(standing.revision),
        Order::Later => return Right::Superseded,
        Order::Same | Order::Unclear => {}
    }
    let ours = record.attempts.last().is_some_and(|attempt| attempt.start.as_ref() == Some(start));
    match (ours, record.state) {
        (true, state) if state == wanted.state && state != State::Running => Right::Done(standing.revision),
        (true, State::Running) if wanted.state == State::Running && record.cancel == wanted.cancel => {
            Right::Done(standing.revision)
        }
        (true, State::Running) => Right::Try(standing.revision),
        (_, state) if state.is_terminal() => Right::Ended,
        (_, _) => Right::Superseded,
    }
}

/// What a write that was refused, or whose answer stayed out, does next.
#[derive(Debug)]
pub(super) enum Next {
    /// It stands under this revision.
    Stands(u64),
    /// Write again, over this revision.
    Again(u64),
    /// Another start of this run is ahead, or a newer run.
    Superseded,
    /// This run was ended by somebody else.
    Ended(Box<TaskRecord>),
}

/// Decides that by what was read back, and takes over into `wanted` what others may write there. Pure.
pub(super) fn read_back(wanted: &mut TaskRecord, start: &StartId, standing: Standing, order: Order) -> Next {
    match right(&standing, wanted, start, order) {
        Right::Done(revision) => Next::Stands(revision),
        Right::Superseded => Next::Superseded,
        Right::Ended => Next::Ended(Box::new(standing.record.expect("only a record is terminal"))),
        Right::Try(revision) => {
            if let (Order::Same, Some(record)) = (order, standing.record) {
                // The only things others write into our record: a wish to stop it, and what a newer version knows of.
                wanted.cancel = record.cancel;
                wanted.more = record.more;
                name_reason(wanted);
            }
            Next::Again(revision)
        }
    }
}

/// A cancelled run says why, also where its holder learns the reason only now.
fn name_reason(record: &mut TaskRecord) {
    let reason = record.cancel.as_ref().and_then(|cancel| cancel.reason.clone());
    if let (State::Cancelled, Some(error), Some(reason)) = (record.state, &mut record.error, reason) {
        error.message = reason;
    }
}

impl<'a> Fence<'a> {
    /// A fence that has not written. `revision` is what the record had when it was read; 0 if it was not.
    pub fn new(store: &'a Store, key: &TaskKey, start: &StartId, revision: u64, record: Box<TaskRecord>) -> Self {
        Self { store, key: key.clone(), start: start.clone(), revision, record, claimed: false }
    }

    /// Writes `self.record`, as long as `wanted` says that it is still worth it.
    pub async fn write(&mut self, wanted: impl Fn() -> bool) -> Written {
        let mut pause = Duration::from_millis(20);
        loop {
            let error = match self.store.write(&self.key, self.revision, &self.record).await {
                Ok((revision, body)) => return self.stands(revision, body),
                Err(error) => error,
            };
            match &error {
                PublishError::Conflict { .. } | PublishError::Unknown { .. } => {
                    tracing::debug!(task = %self.key, %error, "record write refused or unanswered, reading back");
                    match Box::pin(self.look()).await {
                        Ok((standing, order)) => match read_back(&mut self.record, &self.start, standing, order) {
                            Next::Stands(revision) => {
                                let body = serde_json::to_vec(&self.record).expect("a record is plain data");
                                return self.stands(revision, body.into());
                            }
                            Next::Superseded => return Written::Superseded,
                            Next::Ended(record) => return Written::Ended(record),
                            Next::Again(revision) => {
                                let moved = self.revision != revision;
                                self.revision = revision;
                                if moved {
                                    continue;
                                }
                            }
                        },
                        // Ours always is; so another wrote over it, in a state of a newer version.
                        Err(ApiError::Unreadable { .. }) => return Written::Superseded,
                        Err(error) => tracing::warn!(task = %self.key, %error, "record not readable, trying again"),
                    }
                }
                PublishError::NotStored { .. } => {}
                PublishError::Unsendable { .. } | PublishError::Refused { err_code: MESSAGE_TOO_LARGE, .. }
                    if !self.is_bare() =>
                {
                    tracing::warn!(task = %self.key, %error, "record too large, shortened");
                    self.shorten();
                    continue;
                }
                PublishError::Locked | PublishError::Refused { .. } | PublishError::Unsendable { .. } => {
                    tracing::warn!(task = %self.key, %error, "record not written, trying again");
                }
            }
            if !wanted() {
                return Written::GaveUp;
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    fn stands(&mut self, revision: u64, body: Bytes) -> Written {
        self.revision = revision;
        self.claimed = true;
        Written::Yes { revision, body }
    }

    /// Reads the record, and how its run stands to ours.
    async fn look(&self) -> Result<(Standing, Order), ApiError> {
        let standing = self.store.read(&self.key).await?;
        let order = match &standing.record {
            Some(record) => {
                let (sequence, stored_at) = (self.record.sequence, self.record.submitted_at);
                self.store.order(record, &self.key, sequence, stored_at).await?
            }
            None => Order::Same,
        };
        Ok((standing, order))
    }

    /// Looks who is ahead of us in the record. `None`: it cannot be read now.
    pub async fn ahead(&self) -> Option<Ahead> {
        match self.look().await {
            Ok((standing, order)) => Some(ahead(&self.record, &self.start, standing, order)),
            Err(ApiError::Unreadable { .. }) => Some(Ahead::AnotherStart),
            Err(_) => None,
        }
    }

    /// Marks our own attempt, which is the last.
    pub fn attempt(&mut self) -> &mut schemas::Attempt {
        self.record.attempts.last_mut().expect("a fence is made with its own attempt in the record")
    }

    /// Bounds what grows with every attempt beside the attempts themselves.
    pub fn bound(&mut self) {
        const ARTIFACTS: usize = 2_000;
        const WARNINGS: usize = 64;
        self.record.artifacts.truncate(ARTIFACTS);
        self.record.warnings.truncate(WARNINGS);
    }

    fn is_bare(&self) -> bool {
        let record = &self.record;
        record.task.is_none() && record.artifacts.is_empty() && record.attempts.len() <= 1
    }

    /// Leaves out all that a record can do without; that it ended, and how, must be stored.
    fn shorten(&mut self) {
        let record = &mut self.record;
        record.task = None;
        record.artifacts.clear();
        let surplus = record.attempts.len().saturating_sub(1);
        record.attempts.drain(..surplus);
        record.warnings = vec!["shortened: task, artifacts and earlier attempts made it too large to store".into()];
    }

    /// Bounds the list of attempts, so that no number of retries makes a record too large to store.
    pub fn trim(&mut self) {
        const KEPT: usize = 64;
        let attempts = &mut self.record.attempts;
        if attempts.len() > KEPT {
            // Losses are what the poison guard counts; they go last.
            let surplus = attempts.len() - KEPT;
            let mut dropped = 0;
            attempts.retain(|attempt| {
                let drop = dropped < surplus && attempt.outcome != Outcome::Lost && attempt.outcome != Outcome::Running;
                dropped += usize::from(drop);
                !drop
            });
            let surplus = attempts.len().saturating_sub(KEPT);
            attempts.drain(..surplus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::record::{Attempt, Cancel};
    use schemas::{TaskKey, Timestamp};

    fn record(sequence: u64, state: State, start: &str) -> TaskRecord {
        let key: TaskKey = "q.a".parse().unwrap();
        let attempt = Attempt { start: Some(StartId::new(start).unwrap()), ..Attempt::new(Outcome::Running) };
        TaskRecord { attempts: vec![attempt], ..TaskRecord::new(&key, sequence, state, Timestamp::from_millis(0)) }
    }

    fn judge(found: Option<TaskRecord>, wanted: State) -> Right {
        let standing = Standing { revision: 9, record: found };
        let wanted = record(7, wanted, "mine");
        let order = standing.record.as_ref().map_or(Order::Same, |r| r.order_to(wanted.sequence, wanted.submitted_at));
        right(&standing, &wanted, &StartId::new("mine").unwrap(), order)
    }

    #[test]
    fn own_start_goes_on_and_own_end_stands() {
        assert_eq!(judge(Some(record(7, State::Running, "mine")), State::Succeeded), Right::Try(9));
        assert_eq!(judge(Some(record(7, State::Running, "mine")), State::Running), Right::Done(9));
        assert_eq!(judge(Some(record(7, State::Succeeded, "mine")), State::Succeeded), Right::Done(9));
        assert_eq!(judge(Some(record(7, State::Retrying, "mine")), State::Retrying), Right::Done(9));
    }

    #[test]
    fn another_start_of_this_run_supersedes_and_an_end_of_it_stands() {
        assert_eq!(judge(Some(record(7, State::Running, "other")), State::Succeeded), Right::Superseded);
        assert_eq!(judge(Some(record(7, State::Retrying, "other")), State::Running), Right::Superseded);
        assert_eq!(judge(Some(record(7, State::Succeeded, "other")), State::Succeeded), Right::Ended);
        assert_eq!(judge(Some(record(7, State::Cancelled, "mine")), State::Succeeded), Right::Ended);
    }

    #[test]
    fn an_older_run_is_written_over_and_a_newer_one_never() {
        assert_eq!(judge(Some(record(6, State::Failed, "other")), State::Succeeded), Right::Try(9));
        assert_eq!(judge(Some(record(8, State::Running, "other")), State::Succeeded), Right::Superseded);
        assert_eq!(judge(None, State::Succeeded), Right::Try(9), "a marker, or nothing");
    }

    #[test]
    fn a_cancel_flag_set_by_others_is_taken_over_not_lost() {
        let flagged = TaskRecord {
            cancel: Some(Cancel::new(Timestamp::from_millis(1), None)),
            ..record(7, State::Running, "mine")
        };
        assert_eq!(judge(Some(flagged), State::Running), Right::Try(9));
    }
}
