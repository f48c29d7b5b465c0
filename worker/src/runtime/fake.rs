//! A runtime for tests: nothing runs, and whoever holds it decides when and how each workload ends.
//!
//! ```ignore
//! let runtime = FakeRuntime::new();
//! tokio::spawn(attempt(Arc::clone(&runtime)));
//! let job = runtime.next_started().await;
//! runtime.print(&job.start, Stream::Stdout, b"hello\n").await;
//! runtime.end(&job.start, Exit { code: Some(0), ..Exit::default() });
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::StartId;
use schemas::agent::RuntimeInfo;
use schemas::record::Usage;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Exit, Job, Listed, Runtime, RuntimeError, StartError, Started, Status, Surroundings};

/// Room in each output pipe, that of a real one.
const PIPE: usize = 64 << 10;

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What was done to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Stopped with this grace.
    Stop(StartId, Duration),
    /// Paused.
    Pause(StartId),
    /// Resumed.
    Resume(StartId),
    /// Removed.
    Remove(StartId),
}

/// See the module.
pub struct FakeRuntime {
    state: Mutex<State>,
    started: tokio::sync::Mutex<mpsc::UnboundedReceiver<Job>>,
    /// Unbounded: a test reads what it starts.
    tell_started: mpsc::UnboundedSender<Job>,
}

#[derive(Default)]
struct State {
    workloads: HashMap<StartId, Workload>,
    failures: VecDeque<StartError>,
    held_starts: VecDeque<oneshot::Receiver<()>>,
    done: Vec<Done>,
    deaf: bool,
    kept_alive: Option<Instant>,
}

struct Workload {
    exit: watch::Sender<Option<Exit>>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
}

impl FakeRuntime {
    /// One that starts everything.
    pub fn new() -> Arc<Self> {
        let (tell_started, started) = mpsc::unbounded_channel();
        Arc::new(Self { state: Mutex::default(), started: tokio::sync::Mutex::new(started), tell_started })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next start fails like this.
    pub fn fail_next_start(&self, error: StartError) {
        self.state().failures.push_back(error);
    }

    /// The next start takes until the sender is used or dropped.
    pub fn hold_next_start(&self) -> oneshot::Sender<()> {
        let (release, held) = oneshot::channel();
        self.state().held_starts.push_back(held);
        release
    }

    /// From now on a stop is only recorded: the workload ends by [`Self::end`] alone.
    pub fn be_deaf(&self) {
        self.state().deaf = true;
    }

    /// The next workload that has started, in order.
    pub async fn next_started(&self) -> Job {
        self.started.lock().await.recv().await.unwrap()
    }

    /// The workload writes; waits while its pipe is full.
    pub async fn print(&self, start: &StartId, stream: Stream, bytes: &[u8]) {
        let take = |state: &mut State| {
            let workload = state.workloads.get_mut(start).unwrap();
            match stream {
                Stream::Stdout => workload.stdout.take(),
                Stream::Stderr => workload.stderr.take(),
            }
        };
        let mut pipe = take(&mut self.state()).expect("it has ended, or somebody else prints");
        let written = pipe.write_all(bytes).await;
        if let Some(workload) = self.state().workloads.get_mut(start)
            && workload.exit.borrow().is_none()
        {
            match stream {
                Stream::Stdout => workload.stdout = Some(pipe),
                Stream::Stderr => workload.stderr = Some(pipe),
            }
        }
        // Nobody reads: as a process that ignores SIGPIPE.
        drop(written);
    }

    /// The workload ends; the first end counts.
    pub fn end(&self, start: &StartId, exit: Exit) {
        if let Some(workload) = self.state().workloads.get_mut(start) {
            workload.end(exit);
        }
    }

    /// What was done so far, in order.
    pub fn done(&self) -> Vec<Done> {
        self.state().done.clone()
    }

    /// The stops so far, in order.
    pub fn stops(&self) -> Vec<(StartId, Duration)> {
        let stop = |done: &Done| match done {
            Done::Stop(start, grace) => Some((start.clone(), *grace)),
            Done::Pause(_) | Done::Resume(_) | Done::Remove(_) => None,
        };
        self.state().done.iter().filter_map(stop).collect()
    }

    /// Until when workloads are kept alive.
    pub fn kept_alive(&self) -> Option<Instant> {
        self.state().kept_alive
    }

    async fn exit(&self, start: &StartId) -> Result<Exit, RuntimeError> {
        let not_found = || RuntimeError::NotFound { start: start.clone() };
        let mut exit = self.state().workloads.get(start).ok_or_else(not_found)?.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map_err(|_| not_found())?;
        ended.clone().ok_or_else(not_found)
    }
}

impl Workload {
    fn end(&mut self, exit: Exit) {
        (self.stdout, self.stderr) = (None, None);
        self.exit.send_if_modified(|now| now.is_none() && now.replace(exit).is_none());
    }
}

impl Runtime for FakeRuntime {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> RuntimeInfo {
        RuntimeInfo::default()
    }

    fn surroundings(&self, _: &Path, result_file: &Path) -> Surroundings {
        Surroundings { env: BTreeMap::new(), result_file: result_file.display().to_string() }
    }

    fn start(&self, job: Job) -> BoxFuture<'_, Result<Started, StartError>> {
        async move {
            let held = self.state().held_starts.pop_front();
            if let Some(held) = held {
                let _ = held.await;
            }
            if let Some(error) = self.state().failures.pop_front() {
                return Err(error);
            }
            let (stdout, stdout_end) = duplex(PIPE);
            let (stderr, stderr_end) = duplex(PIPE);
            let exit = watch::Sender::new(None);
            let workload = Workload { exit, stdout: Some(stdout_end), stderr: Some(stderr_end) };
            self.state().workloads.insert(job.start.clone(), workload);
            self.tell_started.send(job).unwrap();
            Ok(Started { stdout: Box::new(stdout), stderr: Box::new(stderr), ran: Duration::ZERO })
        }
        .boxed()
    }

    fn wait<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        self.exit(start).boxed()
    }

    fn stop<'a>(&'a self, start: &'a StartId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            {
                let mut state = self.state();
                state.done.push(Done::Stop(start.clone(), grace));
                let deaf = state.deaf;
                match state.workloads.get_mut(start) {
                    None => return Ok(()),
                    Some(_) if deaf => {}
                    Some(workload) => {
                        let signal = if grace.is_zero() { libc::SIGKILL } else { libc::SIGTERM };
                        workload.end(Exit { signal: Some(signal), ..Exit::default() });
                    }
                }
            }
            let _ = self.exit(start).await;
            Ok(())
        }
        .boxed()
    }

    fn stats<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Usage, RuntimeError>> {
        let known = self.state().workloads.contains_key(start);
        let usage = known.then(Usage::default).ok_or_else(|| RuntimeError::NotFound { start: start.clone() });
        std::future::ready(usage).boxed()
    }

    fn pause<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.state().done.push(Done::Pause(start.clone()));
        std::future::ready(Ok(())).boxed()
    }

    fn resume<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.state().done.push(Done::Resume(start.clone()));
        std::future::ready(Ok(())).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>> {
        let held = |start: &StartId| Listed { start: start.clone(), status: Status::Running };
        std::future::ready(Ok(self.state().workloads.keys().map(held).collect())).boxed()
    }

    fn remove<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let mut state = self.state();
        state.done.push(Done::Remove(start.clone()));
        state.workloads.remove(start);
        std::future::ready(Ok(())).boxed()
    }

    fn keep_alive(&self, until: Instant) {
        let mut state = self.state();
        state.kept_alive = state.kept_alive.max(Some(until));
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Notes;
    use crate::runtime::Bounds;
    use schemas::Limit;
    use tokio::io::AsyncReadExt;

    fn job(start: &str) -> Job {
        Job {
            start: start.parse().unwrap(),
            key: "default.t".parse().unwrap(),
            workload: serde_json::from_str(r#"{"kind":"process","command":["true"]}"#).unwrap(),
            attempt: 1,
            env: BTreeMap::new(),
            folder: "/".into(),
            result_file: "/dev/null".into(),
            artifacts: Vec::new(),
            notes: Notes::nowhere(),
            limits: Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited },
            alive_until: None,
            binds: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_workload_says_and_ends_what_the_test_wants() {
        let runtime = FakeRuntime::new();
        let mut started = runtime.start(job("s1")).await.unwrap();
        let start = runtime.next_started().await.start;
        runtime.print(&start, Stream::Stderr, b"oops").await;
        runtime.end(&start, Exit { code: Some(3), ..Exit::default() });
        runtime.end(&start, Exit::default());
        let mut said = String::new();
        started.stderr.read_to_string(&mut said).await.unwrap();
        assert_eq!((said.as_str(), runtime.wait(&start).await.unwrap().code), ("oops", Some(3)));
    }

    #[tokio::test]
    async fn stops_are_recorded_and_end_what_is_not_deaf() {
        let runtime = FakeRuntime::new();
        let _started = runtime.start(job("s1")).await.unwrap();
        let start: StartId = "s1".parse().unwrap();
        runtime.stop(&start, Duration::from_secs(1)).await.unwrap();
        assert_eq!(runtime.wait(&start).await.unwrap().signal, Some(libc::SIGTERM));
        assert_eq!(runtime.stops(), [(start, Duration::from_secs(1))]);

        runtime.be_deaf();
        let _started = runtime.start(job("s2")).await.unwrap();
        let start: StartId = "s2".parse().unwrap();
        assert!(runtime.stop(&start, Duration::ZERO).now_or_never().is_none());
    }

    #[tokio::test]
    async fn starts_fail_and_wait_as_told() {
        let runtime = FakeRuntime::new();
        runtime.fail_next_start(StartError::CommandNotFound { program: "x".to_owned() });
        assert!(runtime.start(job("s1")).await.is_err());
        let release = runtime.hold_next_start();
        let mut start = runtime.start(job("s2"));
        assert!((&mut start).now_or_never().is_none());
        drop(release);
        assert!(start.await.is_ok());
    }
}
