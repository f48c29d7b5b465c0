//! A cancel: write first, then delete or tell the holder; where the holder stays silent, end it ourselves.

use std::time::Duration;

use bytes::Bytes;
use schemas::cancel::{CancelReply, CancelRequest};
use schemas::record::Cancel;
use schemas::task::DEFAULT_STOP_GRACE;
use schemas::{Code, Outcome, State, Task, TaskError, TaskKey, TaskRecord, Timestamp};
use tokio::time::Instant;

use super::record::{self, Written};
use super::wait::Watch;
use super::{Client, ClientError, Recorded, TaskView};
use crate::fail_point::fail_point;

/// How to cancel.
#[derive(Clone, Debug, Default)]
pub struct CancelOptions {
    /// Which run; the newest if absent. A later run is never hit.
    pub sequence: Option<u64>,
    /// By whom or why, for the record.
    pub reason: Option<String>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelEnd {
    /// It is cancelled, and this call did it.
    Cancelled,
    /// It had ended before we asked.
    AlreadyEnded,
    /// It ended by itself before it could be stopped.
    EndedMeanwhile,
}

/// The end of the run that was to be cancelled.
#[derive(Clone, Debug)]
pub struct CancelOutcome {
    /// Whether it was us.
    pub end: CancelEnd,
    /// The terminal record.
    pub record: Recorded,
}

/// What a holder gets beyond the stop grace before its task is ended for it: a cancel is confirmed within 5 s beyond it.
const BEYOND_GRACE: Duration = Duration::from_millis(4_500);
/// The holder is asked so often while nobody answers.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What to do about a run, from what was read. Pure.
#[derive(Debug)]
pub enum Move {
    /// It is over.
    Over(Box<Recorded>),
    /// Write `cancelled` over this revision; the run has no record or waits for its retry.
    End {
        /// The end.
        record: Box<TaskRecord>,
        /// What it is written over.
        revision: u64,
    },
    /// Write the flag over this revision.
    Flag {
        /// The record with the flag.
        record: Box<TaskRecord>,
        /// What it is written over.
        revision: u64,
    },
    /// It is flagged; its holder is to stop it.
    Stop(Box<Recorded>),
}

impl Client {
    /// Cancels one run of a task and waits for its terminal record: at most stop grace + 5 s, or as long as a holder says
    /// that it is too late and its own end is about to be written. Not cancel safe: dropped
    /// half way, a flag stays and the holder stops the run all the same.
    pub async fn cancel(&self, key: &TaskKey, options: CancelOptions) -> Result<CancelOutcome, ClientError> {
        let mut run = options.sequence;
        // Set once we have written something about this run.
        let mut acted = false;
        let mut deadline = None;
        loop {
            let view = self.look(key).await?;
            let Some(sequence) = run.or_else(|| view.sequence()) else {
                return Err(ClientError::NotFound { kind: "task", name: key.to_string() });
            };
            run = Some(sequence);
            let cancel = Cancel::new(Timestamp::now(), options.reason.clone());
            match decide(&view, sequence, &cancel)? {
                Move::Over(record) => {
                    self.tidy(key, &record.record).await?;
                    let end = match (acted, record.record.state) {
                        (false, _) => CancelEnd::AlreadyEnded,
                        (true, State::Cancelled) => CancelEnd::Cancelled,
                        (true, _) => CancelEnd::EndedMeanwhile,
                    };
                    return Ok(CancelOutcome { end, record: *record });
                }
                Move::End { record, revision } => {
                    let retrying = view.current().is_some_and(|current| current.record.state == State::Retrying);
                    if let Some(record) = self.put(&record, revision).await? {
                        fail_point("cancel_after_record");
                        record::tell(&self.js, &self.names, &record.record, record.revision).await;
                        self.delete_message(key, sequence, retrying).await?;
                        fail_point("cancel_after_delete");
                        return Ok(CancelOutcome { end: CancelEnd::Cancelled, record });
                    }
                }
                Move::Flag { record, revision } => {
                    if let Some(flagged) = self.put(&record, revision).await? {
                        fail_point("cancel_after_flag");
                        acted = true;
                        record::tell(&self.js, &self.names, &flagged.record, flagged.revision).await;
                    }
                }
                Move::Stop(running) => {
                    // Flagged by another canceller it is as much ours: we see to its end.
                    acted = true;
                    let until = match &mut deadline {
                        Some(deadline) => deadline,
                        none => none.insert(Instant::now() + self.stop_grace(&view).await? + BEYOND_GRACE),
                    };
                    if self.stop(key, sequence, running.revision, until).await? {
                        continue;
                    }
                    // Silence. Read once more: what is written over is the newest revision, or nothing is.
                    let view = self.look(key).await?;
                    if let Move::Stop(running) = decide(&view, sequence, &cancel)? {
                        let record = ended_for_the_holder(running.record);
                        if let Some(record) = self.put(&record, running.revision).await? {
                            fail_point("cancel_after_record");
                            record::tell(&self.js, &self.names, &record.record, record.revision).await;
                            return Ok(CancelOutcome { end: CancelEnd::Cancelled, record });
                        }
                    }
                }
            }
        }
    }

    /// Writes a record; `None` if something else came first.
    async fn put(&self, record: &TaskRecord, over: u64) -> Result<Option<Recorded>, ClientError> {
        Ok(match record::write(&self.js, &self.names, record, over).await? {
            Written::Stored(revision) => {
                Some(Recorded { record: record.clone(), revision, written_at: Timestamp::now() })
            }
            Written::Refused => None,
        })
    }

    /// Deletes the message of a run whose record is `cancelled`, if no worker can be at it: it was never handed out, or
    /// waits for its retry. Else the next delivery finds the record and acks. Whoever got it in between is fenced by the
    /// record.
    async fn delete_message(&self, key: &TaskKey, sequence: u64, retrying: bool) -> Result<(), ClientError> {
        let stream = self.names.tasks_stream();
        let consumer = self.js.consumer(&stream, key.queue.as_str()).await?;
        let delivered = consumer.map_or(0, |consumer| consumer.delivered.stream_seq);
        if may_delete(delivered, sequence, retrying) {
            self.js.delete(&stream, sequence).await?;
        }
        Ok(())
    }

    /// Finishes what a canceller that died between record and delete left behind.
    async fn tidy(&self, key: &TaskKey, record: &TaskRecord) -> Result<(), ClientError> {
        if record.state == State::Cancelled {
            self.delete_message(key, record.sequence, false).await?;
        }
        Ok(())
    }

    /// The stop grace of a running task: its own, its queue's, the fleet's.
    async fn stop_grace(&self, view: &TaskView) -> Result<Duration, ClientError> {
        let (settings, _) = self.queue_settings(&view.key.queue).await?;
        let kept = view.current().and_then(|current| current.record.task.as_ref()).map(|task| task.get().as_bytes());
        let bytes = kept.or(view.queued.as_ref().map(|queued| &queued.task[..])).unwrap_or_default();
        Ok(match Task::decode(bytes) {
            Ok(task) => task.policy(&settings.defaults).stop_grace,
            Err(_) => settings.defaults.stop_grace.unwrap_or(DEFAULT_STOP_GRACE).0,
        })
    }

    /// Asks the holder until it answers, and waits for a newer record. `false`: there was none until `until`, which is
    /// put off for as long as the holder says that it is too late, and is about to write an end of its own.
    async fn stop(&self, key: &TaskKey, sequence: u64, seen: u64, until: &mut Instant) -> Result<bool, ClientError> {
        let subject = self.names.cancel_subject(key);
        let request: Bytes =
            serde_json::to_vec(&CancelRequest { sequence }).expect("our own types always serialize").into();
        // Nobody there, no answer, or somebody who runs another start of it: the holder may be about to subscribe, or to
        // come back.
        let ask = async |pause| {
            tokio::time::sleep(pause).await;
            let asked = Instant::now();
            let reply = self.js.request_within(&subject, request.clone(), ASK_EVERY).await.ok();
            let reply = reply.and_then(|reply| serde_json::from_slice::<CancelReply>(&reply.payload).ok());
            (reply, ASK_EVERY.saturating_sub(asked.elapsed()))
        };
        let mut watched = Watch::new(self, key, Some(sequence));
        let changed = async {
            loop {
                match watched.next().await? {
                    Some(recorded) if recorded.revision > seen => return Ok(true),
                    Some(_) => {}
                    None => return Ok(true),
                }
            }
        };
        tokio::pin!(changed);
        let mut asking = Box::pin(ask(Duration::ZERO));
        let mut is_stopping = false;
        loop {
            tokio::select! {
                changed = &mut changed => return changed,
                (reply, pause) = &mut asking, if !is_stopping => {
                    is_stopping = reply.as_ref().is_some_and(|reply| reply.stopping);
                    if is_stopping {
                        tracing::debug!(task = %key, sequence, "the holder is stopping it");
                    }
                    if reply.is_some_and(|reply| reply.ending) {
                        *until = (*until).max(Instant::now() + BEYOND_GRACE);
                    }
                    asking.set(ask(pause));
                }
                () = tokio::time::sleep_until(*until) => return Ok(false),
            }
        }
    }
}

/// Whether no worker can be at a run that was cancelled: it was never handed out, or waits for its retry. Pure.
pub fn may_delete(delivered: u64, sequence: u64, retrying: bool) -> bool {
    delivered < sequence || retrying
}

/// Decides about one run of a task. Pure.
pub fn decide(view: &TaskView, sequence: u64, cancel: &Cancel) -> Result<Move, ClientError> {
    let recorded = view.recorded();
    if let Some(newer) = view.sequence().filter(|newer| *newer > sequence)
        && recorded.is_none_or(|recorded| recorded.record.sequence != sequence)
    {
        return Err(ClientError::RunOver { key: view.key.clone(), sequence, newer });
    }
    if let Some(recorded) = recorded.filter(|recorded| recorded.record.sequence == sequence) {
        let record = &recorded.record;
        let revision = recorded.revision;
        return Ok(match record.state {
            State::Succeeded | State::Failed | State::Cancelled | State::Lost | State::Expired => {
                Move::Over(Box::new(recorded.clone()))
            }
            State::Retrying => {
                let mut record = cancelled(record.clone(), cancel, "cancelled while it waited for its next attempt");
                record.retry_at = None;
                Move::End { record: Box::new(record), revision }
            }
            State::Running if record.cancel.is_some() => Move::Stop(Box::new(recorded.clone())),
            State::Running => {
                let record = TaskRecord { cancel: Some(cancel.clone()), ..record.clone() };
                Move::Flag { record: Box::new(record), revision }
            }
        });
    }
    // No record of this run; one of an older run, and a marker, is written over at its revision. An older run that is
    // unfinished has lost its message to this one: nothing can end it any more.
    let Some(queued) = view.queued.as_ref().filter(|queued| queued.sequence == sequence) else {
        return Err(ClientError::Gone { key: view.key.clone(), sequence });
    };
    let mut record = TaskRecord::new(&view.key, sequence, State::Cancelled, queued.submitted_at);
    record.submission.clone_from(&queued.submission);
    record.keep_task(&queued.task);
    let record = cancelled(record, cancel, "cancelled before it started");
    Ok(Move::End { record: Box::new(record), revision: view.revision })
}

fn cancelled(record: TaskRecord, cancel: &Cancel, message: &str) -> TaskRecord {
    TaskRecord {
        state: State::Cancelled,
        cancel: record.cancel.clone().or_else(|| Some(cancel.clone())),
        error: Some(TaskError::new(Code::Cancelled, message)),
        ended_at: Some(cancel.at),
        ..record
    }
}

/// The end of a run whose holder did not end it.
pub fn ended_for_the_holder(mut record: TaskRecord) -> TaskRecord {
    let now = Timestamp::now();
    for attempt in record.attempts.iter_mut().filter(|attempt| attempt.outcome == Outcome::Running) {
        attempt.outcome = Outcome::Cancelled;
        attempt.phases.ended = Some(now);
    }
    let cancel = record.cancel.clone().unwrap_or(Cancel::new(now, None));
    let record = cancelled(record, &cancel, "cancelled; its worker did not confirm the end in time");
    TaskRecord { ended_at: Some(now), ..record }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Queued;

    fn view(recorded: Option<(u64, State)>, queued: Option<u64>) -> TaskView {
        let key: TaskKey = "q.a".parse().unwrap();
        let now = Timestamp::now();
        let record = recorded.map(|(sequence, state)| Recorded {
            record: TaskRecord::new(&key, sequence, state, now),
            revision: 9,
            written_at: now,
        });
        let queued = queued.map(|sequence| Queued {
            sequence,
            submitted_at: now,
            task: Bytes::from_static(b"{}"),
            submission: Some("s".into()),
        });
        TaskView { key, revision: record.as_ref().map_or(7, |recorded| recorded.revision), record, queued }
    }

    fn name(view: &TaskView, sequence: u64) -> String {
        match decide(view, sequence, &Cancel::new(Timestamp::now(), None)) {
            Ok(Move::Over(_)) => "over".into(),
            Ok(Move::End { record, revision }) => {
                assert_eq!((record.state, record.sequence), (State::Cancelled, sequence));
                assert!(record.ended_at.is_some() && record.retry_at.is_none());
                format!("end {revision}")
            }
            Ok(Move::Flag { record, revision }) => {
                assert_eq!(record.state, State::Running);
                format!("flag {revision}")
            }
            Ok(Move::Stop(_)) => "stop".into(),
            Err(ClientError::RunOver { newer, .. }) => format!("over by {newer}"),
            Err(ClientError::Gone { .. }) => "gone".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_cancel_decides_by_the_record_of_its_run_alone() {
        let failed = Some((3, State::Failed));
        for (recorded, queued, sequence, expected) in [
            (None, Some(4), 4, "end 7"),
            (failed, Some(4), 4, "end 9"),
            (Some((4, State::Retrying)), Some(4), 4, "end 9"),
            (Some((4, State::Running)), Some(4), 4, "flag 9"),
            (Some((4, State::Succeeded)), None, 4, "over"),
            (Some((4, State::Succeeded)), Some(5), 4, "over"),
            (None, Some(5), 4, "over by 5"),
            (Some((5, State::Running)), Some(5), 4, "over by 5"),
            (None, None, 4, "gone"),
            (failed, None, 4, "gone"),
        ] {
            assert_eq!(name(&view(recorded, queued), sequence), expected, "{recorded:?} {queued:?}");
        }
    }

    #[test]
    fn a_flagged_run_is_only_stopped() {
        let mut view = view(Some((4, State::Running)), Some(4));
        view.record.as_mut().unwrap().record.cancel = Some(Cancel::new(Timestamp::now(), None));
        assert_eq!(name(&view, 4), "stop");
    }
}
