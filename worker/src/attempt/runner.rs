//! Drives one attempt: admission, claim, workload, end, settlement. Record first, then everything else, always. What watches
//! over a workload that goes on is in [`super::watch`].

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use jetstream::ApiError;
use schemas::need::Need;
use schemas::record::{Attempt, Phases, TaskRecord};
use schemas::task::Policy;
use schemas::{AgentId, Code, Order, Outcome, StartId, State, Task, TaskError, TaskKey, Timestamp, Workload, header};
use tokio::sync::watch;

use crate::attempt::admit::{Admission, Facts, admit_in_order};
use crate::attempt::ending::ending_error;
use crate::attempt::fence::{Fence, Written, claim_is_due};
use crate::attempt::holder;
use crate::attempt::phase::{Event, Phase, Why};
use crate::attempt::watch::Underway;
use crate::attempt::workload::{self, Work};
use crate::logs::Activity;
use crate::nats::delivery::{Delivery, Verdict};
use crate::nats::lease::{Hold, Lease, adopt};
use crate::nats::store::Standing;
use crate::slots::Slot;
use crate::worker::{Worker, new_start_id};
use crate::{fail, placement, poison};

/// Runs one delivery to its settlement. `unsure`: the server may have forgotten who it gave what, so that even a first
/// delivery needs a claim.
pub async fn run(worker: Arc<Worker>, delivery: Delivery, slot: Slot, unsure: bool) {
    fail::point("after_pull");
    let queue = &worker.queues[delivery.queue];
    let goes_on = queue.settings().on_disconnect == schemas::queue::OnDisconnect::Continue;
    let lease = worker.leases.hold(&delivery, queue.ack_wait(), goes_on);
    let mut runner = Runner { worker: &worker, delivery, lease, need: Need::default(), unsure };
    let verdict = runner.run().await;
    // What is left needs no room: the next task may come while the server hears of this one.
    drop(slot);
    if let Some(verdict) = verdict {
        runner.tell(verdict).await;
        fail::point("after_settle");
    }
}

/// One delivery in this worker's hands. What follows its end is in [`super::ending`].
pub(super) struct Runner<'a> {
    pub(super) worker: &'a Arc<Worker>,
    pub(super) delivery: Delivery,
    pub(super) lease: Lease,
    /// What its workload needs, once it is read.
    pub(super) need: Need,
    unsure: bool,
}

/// What an attempt needs to know of its task.
pub(super) struct Plan {
    pub(super) key: TaskKey,
    pub(super) task: Arc<Task>,
    pub(super) policy: Policy,
    pub(super) start: StartId,
    pub(super) number: NonZeroU32,
}

impl<'a> Runner<'a> {
    async fn run(&mut self) -> Option<Verdict> {
        let tokens = self.worker.config.names.task_tokens(&self.delivery.subject);
        let Some((queue, id)) = tokens.map(|(queue, id)| (queue.to_owned(), id.to_owned())) else {
            tracing::warn!(subject = %self.delivery.subject, "message on a subject that is no task's");
            return Some(Verdict::Nak(Duration::from_secs(60)));
        };
        let key = match format!("{queue}.{id}").parse::<TaskKey>() {
            Ok(key) => key,
            Err(error) => {
                let error = TaskError::new(Code::InvalidId, error.to_string());
                return Box::pin(self.bury((&queue, &id), 0, &error))
                    .await
                    .then(|| Verdict::Term(error.code.to_string()));
            }
        };
        let worker = self.worker.clone();
        let _entered = match worker.running.enter(&key, self.delivery.run(), self.lease.number()) {
            Ok(entered) => entered,
            Err(holder) => {
                // The server forgot that it gave us this run; we go on with it.
                tracing::info!(task = %key, "handed to us again while we run it");
                adopt(&worker.leases, holder, &self.delivery);
                return None;
            }
        };
        match Task::decode(&self.delivery.payload) {
            Ok(task) => self.admitted(key, Arc::new(task)).await,
            Err(error) => {
                let error = TaskError::new(Code::InvalidTask, error.to_string());
                let record = Box::new(self.fresh(&key, State::Failed));
                Box::pin(self.end_unstarted(&key, 0, record, State::Failed, Some(error))).await
            }
        }
    }

    /// A record of this run without attempts.
    fn fresh(&self, key: &TaskKey, state: State) -> TaskRecord {
        let mut record = TaskRecord::new(key, self.delivery.sequence, state, self.delivery.stored_at);
        record.submission = self.delivery.header(header::SUBMISSION).map(|id| id.chars().take(128).collect());
        record.keep_task(&self.delivery.payload);
        record
    }

    /// Judges by the record where that is due, claims where a claim is due, and runs.
    async fn admitted(&mut self, key: TaskKey, task: Arc<Task>) -> Option<Verdict> {
        let once = self.delivery.header(header::ONCE).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        self.need = Need::of(&task.workload);
        let hindrance = placement::hindrance(self.worker, &task.workload);
        // What an agent job does is seen outside, so nobody else may be at it.
        let is_seen = matches!(task.workload, Workload::Agent(_));
        let claim_first =
            claim_is_due(self.unsure, once, self.delivery.count, task.on_lost) || hindrance.is_some() || is_seen;
        let (mut standing, mut order) = (Standing { revision: 0, record: None }, Order::Same);
        loop {
            if claim_first {
                (standing, order) = match Box::pin(self.read(&key)).await {
                    Ok(read) => read,
                    Err(verdict) => return verdict,
                };
                if order == Order::Same
                    && let Some(record) = &standing.record
                    && Box::pin(holder::still_holds(self.worker, record)).await
                {
                    tracing::info!(task = %key, "handed to us while its holder has it; left to it");
                    return None;
                }
            }
            let now = self.worker.js.now();
            let facts = Facts { sequence: self.delivery.sequence, lost_before: self.lost_before(now), once, now };
            let mut record = match admit_in_order(order, &standing, facts, &task, || self.fresh(&key, State::Running)) {
                Admission::Start(record) => record,
                Admission::Over => return Some(Verdict::Ack),
                Admission::Finished(record) => {
                    return Box::pin(self.repair(&key, standing.revision, &record)).await;
                }
                Admission::Exists(record) => {
                    tracing::info!(task = %key, "not run: asked for once, and a record exists");
                    self.tell_record(&key, standing.revision, &record).await;
                    return Some(Verdict::Ack);
                }
                Admission::Early(wait) => return Some(Verdict::Nak(wait)),
                Admission::End(state, record) => {
                    let error = ending_error(state);
                    return Box::pin(self.end_unstarted(&key, standing.revision, record, state, error)).await;
                }
            };
            if let Some(hindrance) = &hindrance {
                return Box::pin(self.end_put_off(&key, standing.revision, record, hindrance)).await;
            }
            record.waiting = None;
            if Box::pin(poison::lost_too_often(self.worker, &record.attempts)).await {
                let message = format!("{} workers were lost with this task", self.worker.config.lost_limit);
                let error = TaskError::new(Code::LostTooOften, message);
                return Box::pin(self.end_unstarted(&key, standing.revision, record, State::Failed, Some(error))).await;
            }
            let start = new_start_id();
            let plan = Plan {
                policy: task.policy(&self.worker.queues[self.delivery.queue].settings().defaults),
                number: next_number(&record.attempts),
                key: key.clone(),
                task: task.clone(),
                start,
            };
            record.attempts.push(begun(
                plan.number,
                &plan.start,
                (&self.worker.id, &self.worker.instance),
                self.worker.js.now(),
            ));
            let mut fence = Fence::new(&self.worker.store, &key, &plan.start, standing.revision, record);
            if claim_first {
                fail::point("before_claim");
                fence.trim();
                match fence.write(|| self.lease.state() == Hold::Held).await {
                    Written::Yes { revision, body } => {
                        self.note(&fence);
                        self.worker.store.tell(&key, revision, body).await;
                    }
                    // Somebody wrote in between: judge again by what stands now.
                    Written::Superseded | Written::Ended(_) => continue,
                    Written::GaveUp => return None,
                }
                fail::point("after_claim");
            }
            // Boxed, so that what carries it is small: a future is moved whole each time one takes it in hand.
            return Box::pin(self.attempt(&plan, fence)).await;
        }
    }

    /// Whether an earlier holder was lost with this run, if no record says more. A second delivery alone does not say so:
    /// what was given back unstarted comes again too, but then no lease can have ended before an ack wait had passed.
    fn lost_before(&self, now: Timestamp) -> bool {
        let ack_wait = self.worker.queues[self.delivery.queue].ack_wait();
        self.delivery.count > 1
            && now.since(self.delivery.stored_at) >= ack_wait.mul_f64(0.9)
            && !self.worker.given_back.contains(self.delivery.sequence)
    }

    /// The record and how its run stands to ours, as long as the delivery is ours; else what the server is told.
    async fn read(&self, key: &TaskKey) -> Result<(Standing, Order), Option<Verdict>> {
        let (store, (sequence, stored_at)) = (&self.worker.store, self.delivery.run());
        let mut pause = Duration::from_millis(50);
        loop {
            let read = async {
                let standing = store.read(key).await?;
                let order = match &standing.record {
                    Some(record) => store.order(record, key, sequence, stored_at).await?,
                    None => Order::Same,
                };
                Ok::<_, ApiError>((standing, order))
            };
            match read.await {
                Ok(read) => return Ok(read),
                Err(ApiError::Unreadable { source, .. }) => {
                    tracing::warn!(task = %key, error = %source, "its record is of a newer version; left to a worker of that");
                    return Err(Some(Verdict::Nak(NOT_OURS)));
                }
                Err(error) => tracing::warn!(task = %key, %error, "record not readable, trying again"),
            }
            if self.lease.state() != Hold::Held {
                return Err(None);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Runs the workload, and ends the attempt.
    async fn attempt(&mut self, plan: &Plan, mut fence: Fence<'a>) -> Option<Verdict> {
        let worker = self.worker;
        worker.tally.start();
        let activity = Activity::default();
        let exited = Arc::new(AtomicBool::new(false));
        let stopped_for = Arc::new(OnceLock::new());
        let work = Work {
            key: plan.key.clone(),
            start: plan.start.clone(),
            number: plan.number.get(),
            task: plan.task.clone(),
            traceparent: self.delivery.header(header::TRACEPARENT).map(str::to_owned),
            alive_until: self.lease.until(),
            submitted_at: self.delivery.stored_at,
            earlier: earlier(&fence.record.attempts),
            resumes: resumed(self.delivery.header(header::RESUMES)),
            activity: activity.clone(),
            exited: exited.clone(),
            stopped_for: stopped_for.clone(),
        };
        let (stop, stopping) = watch::channel(None);
        let running = workload::run(worker, work, stopping);
        tokio::pin!(running);
        let mut phase = Phase::Preparing.next(Event::Started);
        let began = Instant::now();
        // Many a call answers at once; what watches over a run is for those that do not.
        let first = match fence.claimed {
            true => Poll::Pending,
            false => std::future::poll_fn(|context| Poll::Ready(running.as_mut().poll(context))).await,
        };
        let done = match first {
            Poll::Ready(done) => done,
            Poll::Pending => {
                let underway = Underway { running, stop, activity, exited, stopped_for };
                let watched = Box::pin(self.watch_over(plan, fence, phase, underway)).await;
                (fence, phase) = (watched.0, watched.1);
                watched.2
            }
        };
        tracing::debug!(task = %plan.key, start = %plan.start, ran = ?began.elapsed(), "workload gone");
        // The dead-man's switch fired while nobody could stop it: the lease is not ours.
        if done.exit.as_ref().is_some_and(|exit| exit.not_kept_alive) {
            phase = phase.next(Event::Stop(Why::LeaseLost));
        }
        self.ended(plan, &mut fence, phase, done).await
    }

    /// The record says `running` for this start: so that the next boot of this worker knows, should we be killed.
    pub(super) fn note(&self, fence: &Fence<'_>) {
        self.lease.note(&self.worker.held, &fence.record, self.need.kind);
    }
}

/// The number of the next attempt: lost and handed-back ones have none, so their number comes again.
pub(super) fn next_number(attempts: &[Attempt]) -> NonZeroU32 {
    let spent = attempts.iter().filter_map(|attempt| attempt.number).max();
    spent.map_or(NonZeroU32::MIN, |spent| spent.saturating_add(1))
}

/// The starts that a task was told to go on from; what is none is left out.
fn resumed(told: Option<&str>) -> Vec<StartId> {
    told.into_iter().flat_map(|told| told.split(',')).filter_map(|start| StartId::new(start.trim()).ok()).collect()
}

/// The starts before the last attempt.
fn earlier(attempts: &[Attempt]) -> Vec<StartId> {
    attempts.split_last().into_iter().flat_map(|(_, earlier)| earlier).filter_map(|it| it.start.clone()).collect()
}

/// An attempt that begins, as its record shows it.
pub(super) fn begun(number: NonZeroU32, start: &StartId, holder: (&AgentId, &str), now: Timestamp) -> Attempt {
    Attempt {
        number: Some(number),
        start: Some(start.clone()),
        worker: Some(holder.0.clone()),
        instance: Some(holder.1.to_owned()),
        phases: Phases { started: Some(now), ..Phases::default() },
        ..Attempt::new(Outcome::Running)
    }
}

/// A task whose record this version cannot read is handed out again after this.
const NOT_OURS: Duration = Duration::from_secs(15);
