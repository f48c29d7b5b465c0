//! What follows the end of an attempt, or of a run that never started: the record, and after it everything else.

use std::time::{Duration, Instant};

use bytes::Bytes;
use schemas::record::{TaskRecord, Waiting};
use schemas::transcript::WrittenReport;
use schemas::{Code, State, TaskError, TaskKey, Timestamp};

use crate::attempt::fence::{Ahead, Fence, Written};
use crate::attempt::phase::{Event, Phase};
use crate::attempt::runner::{Plan, Runner};
use crate::attempt::workload::{self, Done};
use crate::nats::delivery::{Verdict, tell};
use crate::nats::lease::Hold;
use crate::nats::store::Letter;
use crate::placement::Others;
use crate::settle::{Settlement, outcome, settle};
use crate::worker::new_start_id;
use crate::{fail, placement};

impl Runner<'_> {
    /// The workload is gone: decide, record, tell, and say how to settle.
    pub(super) async fn ended(
        &mut self,
        plan: &Plan,
        fence: &mut Fence<'_>,
        phase: Phase,
        mut done: Done,
    ) -> Option<Verdict> {
        let Phase::Over(end) = phase.next(Event::Ended(done.end)) else {
            unreachable!("an ended attempt is over");
        };
        let settlement = settle(&end, plan.number, &plan.policy, plan.task.on_lost, rand::random());
        // What it says of itself it may have said before somebody stopped it.
        let broken = done.agent.as_mut().and_then(|report| report.phases.last_mut());
        if let Some(broken) = broken.filter(|phase| phase.ended.is_none() || phase.code.is_some()) {
            broken.code = settlement.code();
            broken.ended = broken.ended.filter(|_| broken.code.is_some());
        }
        let now = self.worker.js.now();
        let waited = self.delivery.received.elapsed().as_millis() as i64;
        let pulled = Timestamp::from_millis(now.as_millis() - waited);
        let usage = workload::usage(done.exit.as_ref());
        {
            let attempt = fence.attempt();
            attempt.outcome = outcome(&end);
            attempt.phases.started = done.started.or(attempt.phases.started);
            attempt.phases.ended = done.exit.as_ref().map(|_| now);
            // Of a call both are the same moment, and a no-op's record is to be small.
            attempt.phases.pulled = done.exit.as_ref().map(|_| pulled);
            attempt.usage = usage;
            attempt.agent = done.agent.as_deref().map(WrittenReport::new);
            if let Some(exit) = &done.exit {
                attempt.exit_code = exit.code;
                attempt.signal = exit.signal;
                attempt.oom = exit.oom;
            }
        }
        fence.record.artifacts.extend(done.artifacts);
        fence.record.warnings.extend(done.warnings);
        fence.bound();
        if settlement == Settlement::Leave {
            self.worker.tally.lose();
            return Box::pin(self.leave(plan, fence)).await;
        }
        if settlement == Settlement::Succeed {
            fence.record.result = done.result;
        }
        let ran = fence.attempt().phases.started.map_or(Duration::ZERO, |at| now.since(at));
        let mut after = conclude(&mut fence.record, &settlement, now);
        if let Settlement::PutOff(error) = &settlement {
            after = Box::pin(self.put_off(&mut fence.record, error)).await;
        }
        let state = fence.record.state;
        let point = match &settlement {
            Settlement::Retry { .. } => "after_retry_record",
            Settlement::HandBack(_) | Settlement::PutOff(_) => "after_handback_record",
            Settlement::Succeed
            | Settlement::Fail(_)
            | Settlement::Cancel
            | Settlement::Lose(_)
            | Settlement::Leave => "after_end_record",
        };
        fence.trim();
        fail::point("before_end_record");
        // An end is worth recording for as long as this worker lives: the fence keeps it from being applied twice.
        let stop_now = &self.worker.stop_now;
        let (revision, body) = match fence.write(|| !stop_now.is_cancelled()).await {
            Written::Yes { revision, body } => (revision, body),
            Written::Superseded => {
                self.worker.tally.lose();
                Box::pin(self.superseded(plan, fence)).await;
                return None;
            }
            Written::Ended(record) => {
                self.worker.tally.lose();
                Box::pin(self.superseded(plan, fence)).await;
                let revision = 0;
                return Box::pin(self.repair(&plan.key, revision, &record)).await;
            }
            Written::GaveUp => return None,
        };
        self.worker.tally.end(state, ran);
        fail::point(point);
        self.follow(&plan.key, revision, body, &fence.record, after).await
    }

    /// What follows a record that stands. `None`: it was not all done; the next delivery does the rest.
    async fn follow(
        &self,
        key: &TaskKey,
        revision: u64,
        body: Bytes,
        record: &TaskRecord,
        after: Duration,
    ) -> Option<Verdict> {
        for step in AFTER_RECORD {
            match (step, record.state, &record.error) {
                (Step::Letter, State::Failed, Some(error)) => {
                    if !Box::pin(self.bury((key.queue.as_str(), key.id.as_str()), record.spent(), error)).await {
                        return None;
                    }
                    fail::point("after_dead_letter");
                }
                (Step::Letter, _, _) => {}
                (Step::Event, _, _) => {
                    self.worker.store.tell(key, revision, body.clone()).await;
                    fail::point("after_event");
                }
            }
        }
        Some(verdict(record, after))
    }

    /// Notes in the record why the task cannot start here, and for how long it is put off.
    async fn put_off(&self, record: &mut TaskRecord, hindrance: &TaskError) -> Duration {
        let need = &self.need;
        let others = placement::others(self.worker, &record.queue, need).await;
        let (now, worker) = (self.worker.js.now(), self.worker.id.clone());
        let since = record.waiting.as_ref().map_or(now, |waiting| waiting.since);
        let more = record.waiting.take().map(|waiting| waiting.more).unwrap_or_default();
        let (code, message) = if others != Others::Nobody || hindrance.code != Code::RuntimeNotAllowed {
            (hindrance.code, hindrance.message.clone())
        } else {
            let message = format!("no worker of the queue `{}` runs {need} now", record.queue);
            (Code::NoWorker, format!("{message}; {}", hindrance.message))
        };
        let after = placement::pause(now.since(since), others);
        record.waiting = Some(Waiting { code, message, worker, since, more });
        record.retry_at = Some(now.plus(after));
        after
    }

    /// Puts a task off that was handed to us and cannot start here: record, event, nak.
    pub(super) async fn end_put_off(
        &mut self,
        key: &TaskKey,
        revision: u64,
        mut record: Box<TaskRecord>,
        hindrance: &TaskError,
    ) -> Option<Verdict> {
        record.state = State::Retrying;
        let after = self.put_off(&mut record, hindrance).await;
        tracing::debug!(task = %key, code = %hindrance.code, ?after, "put off: it cannot start here");
        // No start of the workload; the id only makes the fence tell our write from another's.
        let start = new_start_id();
        let mut fence = Fence::new(&self.worker.store, key, &start, revision, record);
        let lease = &self.lease;
        match fence.write(|| lease.state() == Hold::Held).await {
            Written::Yes { revision, body } => {
                self.worker.store.tell(key, revision, body).await;
                Some(Verdict::Nak(after))
            }
            Written::Ended(record) => self.repair(key, 0, &record).await,
            Written::Superseded | Written::GaveUp => None,
        }
    }

    /// The right to this run is lost. Nothing is written; if somebody else is ahead, that is told.
    pub(super) async fn leave(&self, plan: &Plan, fence: &Fence<'_>) -> Option<Verdict> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline && !self.worker.stop_now.is_cancelled() {
            match fence.ahead().await {
                Some(Ahead::AnotherStart) => {
                    self.superseded(plan, fence).await;
                    return None;
                }
                // Its end stands, so an ack takes nothing from anybody; but whoever wrote it may have died before the rest.
                Some(Ahead::AnEnd(record)) => {
                    self.superseded(plan, fence).await;
                    return Box::pin(self.repair(&plan.key, 0, &record)).await;
                }
                Some(Ahead::Nobody) => break,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
        tracing::warn!(task = %plan.key, start = %plan.start, "lease lost; left to be delivered again");
        None
    }

    /// Says that an end of ours is not applied.
    pub(super) async fn superseded(&self, plan: &Plan, fence: &Fence<'_>) {
        tracing::warn!(task = %plan.key, start = %plan.start, "superseded: another start or end of this run stands");
        let body = serde_json::to_vec(&fence.record).expect("a record is plain data");
        self.worker.store.tell_superseded(&plan.key, body.into()).await;
    }

    /// Ends a run that does not start: record, dead letter where it failed, event.
    pub(super) async fn end_unstarted(
        &mut self,
        key: &TaskKey,
        revision: u64,
        mut record: Box<TaskRecord>,
        state: State,
        error: Option<TaskError>,
    ) -> Option<Verdict> {
        end_without_start(&mut record, state, error, self.worker.js.now());
        // A start id of its own makes the fence tell our write from another's; it is no start of the workload.
        let start = new_start_id();
        let mut fence = Fence::new(&self.worker.store, key, &start, revision, record);
        fail::point("before_end_record");
        let lease = &self.lease;
        match fence.write(|| lease.state() == Hold::Held).await {
            Written::Yes { revision, body } => {
                fail::point("after_end_record");
                self.follow(key, revision, body, &fence.record, Duration::ZERO).await
            }
            Written::Ended(record) => self.repair(key, 0, &record).await,
            // Somebody runs it, or will: the next delivery judges again.
            Written::Superseded | Written::GaveUp => None,
        }
    }

    /// This run is finished: write what may be missing behind its record.
    pub(super) async fn repair(&self, key: &TaskKey, revision: u64, record: &TaskRecord) -> Option<Verdict> {
        if let (State::Failed, Some(error)) = (record.state, &record.error) {
            let tokens = (key.queue.as_str(), key.id.as_str());
            let there = self.worker.store.has_letter(tokens, (record.sequence, record.submitted_at)).await;
            match there {
                Ok(true) => {}
                Ok(false) if self.bury(tokens, record.spent(), error).await => {}
                Ok(false) | Err(_) => return None,
            }
        }
        if revision > 0 {
            self.tell_record(key, revision, record).await;
        }
        Some(Verdict::Ack)
    }

    pub(super) async fn tell_record(&self, key: &TaskKey, revision: u64, record: &TaskRecord) {
        let body = serde_json::to_vec(record).expect("a record is plain data");
        self.worker.store.tell(key, revision, body.into()).await;
    }

    pub(super) async fn bury(&self, tokens: (&str, &str), attempts: u32, error: &TaskError) -> bool {
        let letter = Letter {
            tokens,
            subject: &self.delivery.subject,
            sequence: self.delivery.sequence,
            stored_at: self.delivery.stored_at,
            attempts,
            error,
            headers: &self.delivery.headers,
            payload: &self.delivery.payload,
        };
        self.worker.store.bury(&letter, || self.lease.state() != Hold::Held).await
    }

    /// Whether an ack of ours could hit another task: the connection was another one when we got this, and if the server
    /// came back with an older store, the sequence may have been given anew. Acks are matched by sequence alone.
    async fn hits_another(&self) -> bool {
        let (sequence, stored_at) = self.delivery.run();
        match self.worker.js.at(&self.worker.config.names.tasks_stream(), sequence).await {
            Ok(Some(message)) => message.stored_at != stored_at || message.subject != *self.delivery.subject,
            // Nothing there, or nobody to ask: the ack meets nothing, or the next delivery finds the record.
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Tells the server. What it does not hear costs one more delivery, which finds the record.
    pub(super) async fn tell(&self, verdict: Verdict) {
        let reply = self.lease.reply();
        let js = &self.worker.js;
        let connects = js.connects();
        let same = connects == self.delivery.epoch;
        if !may_tell(&verdict, same, self.lease.state()) || (!same && Box::pin(self.hits_another()).await) {
            return;
        }
        for _ in 0..2 {
            match tell(js, &reply, &verdict).await {
                Ok(()) => return self.worker.pulse.acked(js.now()),
                Err(error) => tracing::debug!(%reply, ?verdict, %error, "settlement not confirmed"),
            }
            if matches!(verdict, Verdict::Nak(_)) || self.worker.stop_now.is_cancelled() {
                return;
            }
        }
    }
}

/// What follows a record that stands, in this order. The settlement comes after all of it.
pub(super) const AFTER_RECORD: [Step; 2] = [Step::Letter, Step::Event];

/// One thing that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The dead letter, if it failed.
    Letter,
    /// The event.
    Event,
}

/// Writes down what becomes of a run whose attempt, the last in its record, has ended, and says after which pause it is
/// to be delivered again, if it is. Pure.
pub(super) fn conclude(record: &mut TaskRecord, settlement: &Settlement, now: Timestamp) -> Duration {
    let attempt = record.attempts.last_mut().expect("the attempt that ended is in its record");
    let mut pause = Duration::ZERO;
    record.state = match settlement {
        Settlement::Succeed => State::Succeeded,
        Settlement::Retry { after, error } => {
            attempt.error = Some(error.clone());
            record.retry_at = Some(now.plus(*after));
            pause = *after;
            State::Retrying
        }
        Settlement::Fail(error) => {
            attempt.error = Some(error.clone());
            record.error = Some(error.clone());
            State::Failed
        }
        Settlement::Cancel => {
            let reason = record.cancel.as_ref().and_then(|cancel| cancel.reason.clone());
            let message = reason.unwrap_or_else(|| "cancelled on request".into());
            record.error = Some(TaskError::new(Code::Cancelled, message));
            State::Cancelled
        }
        Settlement::HandBack(error) => {
            attempt.number = None;
            attempt.error = error.clone();
            record.retry_at = Some(now);
            State::Retrying
        }
        Settlement::PutOff(_) => {
            // It was never begun, so nothing of it stays but the reason.
            record.attempts.pop();
            State::Retrying
        }
        Settlement::Lose(error) => {
            attempt.number = None;
            record.error = Some(error.clone());
            State::Lost
        }
        // Nothing of it is written.
        Settlement::Leave => record.state,
    };
    record.ended_at = record.state.is_terminal().then_some(now);
    pause
}

/// Writes down the end of a run that does not start.
pub(super) fn end_without_start(record: &mut TaskRecord, state: State, error: Option<TaskError>, now: Timestamp) {
    record.state = state;
    record.retry_at = None;
    record.error = error;
    record.ended_at = Some(now);
}

/// What the server is told behind a record that stands. `after`: the pause before the next delivery.
pub(super) fn verdict(record: &TaskRecord, after: Duration) -> Verdict {
    match record.state {
        State::Succeeded | State::Cancelled | State::Lost | State::Expired => Verdict::Ack,
        State::Failed => Verdict::Term(record.error.as_ref().map_or_else(String::new, |error| error.code.to_string())),
        State::Retrying | State::Running => Verdict::Nak(after),
    }
}

/// Whether a verdict may be told. A nak is matched by sequence alone: behind a dropped connection or a lost lease it
/// would hit whoever holds the task now.
pub(super) fn may_tell(verdict: &Verdict, same_connection: bool, hold: Hold) -> bool {
    match verdict {
        Verdict::Ack | Verdict::Term(_) => true,
        Verdict::Nak(_) => same_connection && hold == Hold::Held,
    }
}

/// The error of a run that ends without a start.
pub(super) fn ending_error(state: State) -> Option<TaskError> {
    match state {
        State::Cancelled => Some(TaskError::new(Code::Cancelled, "cancelled on request")),
        State::Expired => Some(TaskError::new(Code::Expired, "not started before its `expires_at`")),
        State::Lost => {
            let message = "a worker was lost with it, and it asks to be started at most once";
            Some(TaskError::new(Code::WorkerLost, message))
        }
        State::Running | State::Retrying | State::Succeeded | State::Failed => None,
    }
}
