//! Watches over a workload under way: its limits, its lease, its claim in mid-run, and whoever wants it stopped. Made only
//! for what does not end at its first poll, for it is most of what an attempt costs.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use schemas::cancel::{CancelReply, CancelRequest};
use schemas::{Code, TaskError, TaskKey, Workload};
use tokio::sync::watch;

use crate::attempt::fence::{Fence, Written};
use crate::attempt::phase::{Event, Phase, Why};
use crate::attempt::runner::{Plan, Runner};
use crate::attempt::workload::{self, Done};
use crate::fail;
use crate::logs::Activity;
use crate::nats::lease::Hold;

type Writing<'a> = Pin<Box<dyn Future<Output = (Fence<'a>, Written)> + Send + 'a>>;

/// A workload under way, and what reaches it.
pub(super) struct Underway<R> {
    pub(super) running: R,
    pub(super) stop: watch::Sender<Option<Duration>>,
    pub(super) activity: Activity,
    pub(super) exited: Arc<AtomicBool>,
    pub(super) stopped_for: Arc<OnceLock<Why>>,
}

impl<'a> Runner<'a> {
    /// Watches over the workload until it is gone: its limits, its lease, its claim, and who wants it stopped.
    pub(super) async fn watch_over(
        &mut self,
        plan: &Plan,
        fence: Fence<'a>,
        mut phase: Phase,
        underway: Underway<Pin<&mut (impl Future<Output = Done> + Send)>>,
    ) -> (Fence<'a>, Phase, Done) {
        let worker = self.worker;
        let Underway { mut running, stop, activity, exited, stopped_for } = underway;
        let timeout = workload::limit(plan.policy.timeout);
        let silence = plan.policy.idle_timeout.map(|limit| limit.0);
        let claim_due = tokio::time::sleep(worker.config.claim_after);
        let too_long = sleep_or_never(timeout);
        let silent = activity.silent_for(silence);
        tokio::pin!(claim_due, too_long, silent);
        let mut cancels = None;
        let mut fence = Some(fence);
        let mut writing: Option<Writing<'a>> = None;
        let mut lease_watched = true;
        let mut drained = false;
        let is_pushed = matches!(plan.task.workload, Workload::Agent(_));
        if fence.as_ref().is_some_and(|fence| fence.claimed) {
            cancels = self.listen(&plan.key).await;
        }

        let done = loop {
            let claimed = fence.as_ref().is_none_or(|fence| fence.claimed);
            // Looked at again in each arm, for it may change while this waits.
            let is_gone = || exited.load(Ordering::Acquire);
            // What an agent job has pushed is seen outside: it is done, however long putting away may take.
            let may_cancel = || !(is_pushed && is_gone());
            let event = tokio::select! {
                biased;
                done = &mut running => break done,
                (back, written) = async { writing.as_mut().expect("guarded").await }, if writing.is_some() => {
                    writing = None;
                    let event = self.claimed(&plan.key, &back, written).await;
                    if back.claimed && cancels.is_none() {
                        cancels = self.listen(&plan.key).await;
                    }
                    let flagged = back.record.cancel.is_some();
                    fence = Some(back);
                    match event {
                        Some(event) => event,
                        None if flagged && may_cancel() => Event::Stop(Why::Cancelled),
                        None => { lease_watched = true; continue }
                    }
                }
                () = &mut claim_due, if !claimed && writing.is_none() => {
                    writing = fence.take().map(|fence| claim(fence, &worker.stop_now));
                    continue;
                }
                hold = self.lease.changed(), if lease_watched => {
                    // Told once; a lapsed lease is watched again after the claim.
                    lease_watched = false;
                    match hold {
                        Hold::Lost => Event::Stop(Why::LeaseLost),
                        Hold::Lapsed | Hold::Held => {
                            if let Some(fence) = fence.take() {
                                writing = Some(claim(fence, &worker.stop_now));
                            }
                            continue;
                        }
                    }
                }
                () = &mut too_long => {
                    too_long.as_mut().reset(tokio::time::Instant::now() + FOREVER);
                    if is_gone() {
                        continue;
                    }
                    let limit = schemas::HumanDuration(timeout.unwrap_or_default());
                    Event::Stop(Why::TimedOut(TaskError::new(Code::TimedOut, format!("ran longer than {limit}"))))
                }
                () = &mut silent, if silence.is_some() => {
                    silent.set(activity.silent_for(None));
                    if is_gone() {
                        continue;
                    }
                    let limit = schemas::HumanDuration(silence.unwrap_or_default());
                    let message = format!("wrote nothing for longer than {limit}");
                    Event::Stop(Why::TimedOut(TaskError::new(Code::IdleTimedOut, message)))
                }
                // Also one that is stopped already: its grace may be longer than ours.
                () = worker.stop_attempts.cancelled(), if !drained => {
                    drained = true;
                    if is_gone() {
                        // What it did is done; only storing it is left.
                        continue;
                    }
                    Event::Stop(Why::Drained)
                }
                () = worker.stop_now.cancelled(), if !is_stopping_at_once(&stop) => {
                    stop.send_replace(Some(Duration::ZERO));
                    if is_gone() {
                        continue;
                    }
                    Event::Stop(Why::Drained)
                }
                () = cancelled(&mut cancels, self.delivery.sequence, may_cancel, worker.js.client()),
                    if may_stop(&phase) => Event::Stop(Why::Cancelled),
            };
            phase = phase.next(event);
            if let Phase::Stopping(why) = &phase {
                let grace = match why {
                    Why::TimedOut(_) | Why::Cancelled if !drained => plan.policy.stop_grace,
                    Why::TimedOut(_) | Why::Cancelled | Why::Drained => {
                        plan.policy.stop_grace.min(crate::drain::kill_grace(worker.config.drain_grace))
                    }
                    // Somebody else may start it any moment.
                    Why::LeaseLost | Why::Superseded => Duration::ZERO,
                    // Ends of a run, never wishes to end one.
                    Why::Unstarted(_) | Why::EngineLost(_) => Duration::ZERO,
                };
                let _ = stopped_for.set(why.clone());
                let grace = stop.borrow().map_or(grace, |earlier| earlier.min(grace));
                stop.send_replace(Some(grace));
            }
        };
        let fence = match (fence, writing) {
            (Some(fence), _) => fence,
            (None, Some(writing)) => {
                let (fence, written) = writing.await;
                if let Some(event) = self.claimed(&plan.key, &fence, written).await {
                    phase = phase.next(event);
                }
                fence
            }
            (None, None) => unreachable!("a fence is either here or being written"),
        };
        (fence, phase, done)
    }

    /// After a claim in mid-run: what it means for the run.
    async fn claimed(&mut self, key: &TaskKey, fence: &Fence<'_>, written: Written) -> Option<Event> {
        match written {
            Written::Yes { revision, body } => {
                self.note(fence);
                fail::point("after_claim");
                if self.lease.state() == Hold::Lapsed {
                    self.lease.reclaimed();
                }
                self.worker.store.tell(key, revision, body).await;
                debug_assert!(fence.claimed);
                None
            }
            Written::Superseded | Written::Ended(_) => Some(Event::Stop(Why::Superseded)),
            Written::GaveUp => Some(Event::Stop(Why::LeaseLost)),
        }
    }

    /// Listens for cancels of this task while it runs.
    async fn listen(&self, key: &TaskKey) -> Option<async_nats::Subscriber> {
        let subject = self.worker.config.names.cancel_subject(key);
        match self.worker.js.client().subscribe(subject).await {
            Ok(subscriber) => Some(subscriber),
            Err(error) => {
                // The flag in the record still works.
                tracing::warn!(task = %key, %error, "cannot listen for cancels");
                None
            }
        }
    }
}

/// Longer than any attempt; a timer that is never due.
const FOREVER: Duration = Duration::from_secs(10 * 366 * 86_400);

fn sleep_or_never(limit: Option<Duration>) -> tokio::time::Sleep {
    tokio::time::sleep(limit.unwrap_or(FOREVER).min(FOREVER))
}

fn may_stop(phase: &Phase) -> bool {
    matches!(phase, Phase::Preparing | Phase::Running)
}

fn is_stopping_at_once(stop: &watch::Sender<Option<Duration>>) -> bool {
    *stop.borrow() == Some(Duration::ZERO)
}

/// Writes the record as `running` beside the workload.
fn claim<'a>(mut fence: Fence<'a>, stop_now: &'a tokio_util::sync::CancellationToken) -> Writing<'a> {
    Box::pin(async move {
        fail::point("before_claim");
        fence.trim();
        let written = fence.write(|| !stop_now.is_cancelled()).await;
        (fence, written)
    })
}

/// Completes when somebody asks to stop this very run while that may be; answers every request. Cancel safe.
async fn cancelled(
    subscriber: &mut Option<async_nats::Subscriber>,
    sequence: u64,
    may_stop: impl Fn() -> bool,
    client: &async_nats::Client,
) {
    let Some(subscriber) = subscriber else { return std::future::pending().await };
    loop {
        let Some(message) = subscriber.next().await else { return std::future::pending().await };
        let request: Option<CancelRequest> = serde_json::from_slice(&message.payload).ok();
        let is_asked = request.is_some_and(|request| request.sequence == sequence);
        let stopping = is_asked && may_stop();
        if let Some(reply) = message.reply {
            let body = serde_json::to_vec(&CancelReply { stopping, ending: is_asked && !stopping })
                .expect("a reply is plain data");
            if let Err(error) = client.publish(reply, body.into()).await {
                tracing::debug!(%error, "cancel not answered");
            }
        }
        if stopping {
            return;
        }
    }
}
