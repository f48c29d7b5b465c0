//! The jobs a worker has, from the wish to start one until it is removed, and the task that attends each.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemas::StartId;
use schemas::record::Usage;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::{Exit, Listed, Status};
use super::handle::Shepherd;
use super::plan::CgroupPlan;
use super::wire::{Ended, FromShepherd, ToShepherd, Used};
use crate::runtime::clock;

/// Wishes that may wait for one job, while it is being started.
const WAITING_WISHES: usize = 16;

/// What somebody wants of a running job.
pub(super) enum Wish {
    /// End it.
    Stop(Duration),
    /// Halt it.
    Pause,
    /// Let it go on.
    Resume,
    /// Tell what it uses.
    Stats(oneshot::Sender<Usage>),
}

/// One job as everybody sees it.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) wishes: mpsc::Sender<Wish>,
    /// Its end; closed without one where it did not start.
    pub(super) exit: watch::Receiver<Option<Exit>>,
    /// Whether it was halted last, or let go on.
    pub(super) paused: Arc<AtomicBool>,
}

impl Known {
    fn status(&self) -> Status {
        if self.exit.borrow().is_some() {
            Status::Stopped
        } else if self.paused.load(Ordering::Relaxed) {
            Status::Paused
        } else {
            Status::Running
        }
    }
}

/// All jobs by their start.
#[derive(Default)]
pub(super) struct Jobs {
    all: Mutex<HashMap<StartId, Known>>,
}

/// One job as its attendant sees it. Forgotten when dropped before [`Registered::started`].
pub(super) struct Registered {
    jobs: Arc<Jobs>,
    start: StartId,
    started: bool,
    wishes: mpsc::Receiver<Wish>,
    exit: watch::Sender<Option<Exit>>,
}

impl Jobs {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<StartId, Known>> {
        // No code that holds it can panic half way.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the job known, so that it can be stopped while it starts; `None` if the start id is taken.
    pub(super) fn register(self: &Arc<Self>, start: &StartId) -> Option<Registered> {
        let (wishes, wishes_heard) = mpsc::channel(WAITING_WISHES);
        let (exit_told, exit) = watch::channel(None);
        match self.all().entry(start.clone()) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(place) => place.insert(Known { wishes, exit, paused: Arc::default() }),
        };
        let jobs = Arc::clone(self);
        Some(Registered { jobs, start: start.clone(), started: false, wishes: wishes_heard, exit: exit_told })
    }

    /// The job, if it is known.
    pub(super) fn get(&self, start: &StartId) -> Option<Known> {
        self.all().get(start).cloned()
    }

    /// Every job that is known.
    pub(super) fn list(&self) -> Vec<Listed> {
        let all = self.all();
        all.iter().map(|(start, job)| Listed { start: start.clone(), status: job.status() }).collect()
    }

    /// Forgets a job.
    pub(super) fn remove(&self, start: &StartId) {
        self.all().remove(start);
    }
}

impl Registered {
    /// It runs now.
    pub(super) fn started(&mut self) {
        self.started = true;
    }

    /// It ran, and is over already.
    pub(super) fn ended(mut self, ended: Ended) {
        self.started = true;
        self.exit.send_replace(Some(exit(ended)));
    }

    /// Passes wishes on and waits for the end; hands back the shepherd if it can run another job.
    pub(super) async fn attend(mut self, shepherd: Shepherd, cgroup: Option<CgroupPlan>) -> Option<Shepherd> {
        let began = Instant::now();
        let mut asked: VecDeque<oneshot::Sender<Usage>> = VecDeque::new();
        let mut wishes_open = true;
        let ended = loop {
            tokio::select! {
                heard = shepherd.hear() => match heard {
                    Ok(Some(FromShepherd::Ended(ended))) => break Some(ended),
                    Ok(Some(FromShepherd::Stats(used))) => {
                        if let Some(answer) = asked.pop_front() {
                            let _ = answer.send(usage(used));
                        }
                    }
                    Ok(Some(FromShepherd::Started | FromShepherd::Failed { .. })) => {}
                    Ok(None) => break None,
                    Err(error) => {
                        tracing::warn!(start = %self.start, %error, "lost touch with a shepherd");
                        break None;
                    }
                },
                wish = self.wishes.recv(), if wishes_open => {
                    let message = match wish {
                        None => { wishes_open = false; continue }
                        Some(Wish::Stop(grace)) => ToShepherd::Stop { grace_ns: clock::nanos(grace) },
                        Some(Wish::Pause) => ToShepherd::Pause,
                        Some(Wish::Resume) => ToShepherd::Resume,
                        Some(Wish::Stats(answer)) => { asked.push_back(answer); ToShepherd::Stats }
                    };
                    // A shepherd that is gone is heard of above.
                    let _ = shepherd.tell(&message, &[]).await;
                }
            }
        };
        let (exit, shepherd) = match ended {
            Some(ended) => (exit(ended), Some(shepherd)),
            None => {
                tracing::warn!(start = %self.start, "the shepherd of a job was killed, and the job with it");
                shepherd.settle().await;
                remove(cgroup).await;
                let usage = Usage { wall_ms: began.elapsed().as_millis() as u64, ..Usage::default() };
                (Exit { signal: Some(libc::SIGKILL), usage, ..Exit::default() }, None)
            }
        };
        let usage = exit.usage.clone();
        self.exit.send_replace(Some(exit));
        for answer in asked {
            let _ = answer.send(usage.clone());
        }
        shepherd
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.started {
            self.jobs.remove(&self.start);
        }
    }
}

/// Removes the control groups of a job whose shepherd did not live to do it.
pub(super) async fn remove(cgroup: Option<CgroupPlan>) {
    if let Some(plan) = cgroup {
        let _ = tokio::task::spawn_blocking(move || plan.remove()).await;
    }
}

fn exit(ended: Ended) -> Exit {
    Exit {
        code: ended.code,
        signal: ended.signal,
        oom: ended.oom,
        pids_exceeded: ended.pids_exceeded,
        not_kept_alive: ended.not_kept_alive,
        usage: usage(ended.used),
    }
}

fn usage(used: Used) -> Usage {
    Usage {
        wall_ms: used.wall_ns / 1_000_000,
        cpu_ms: Some(used.cpu_us / 1_000),
        peak_memory_bytes: Some(used.peak_memory),
        ..Usage::default()
    }
}
