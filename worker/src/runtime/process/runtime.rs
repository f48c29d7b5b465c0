//! The runtime as the worker sees it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::agent::RuntimeInfo;
use schemas::record::Usage;
use schemas::{StartId, Workload};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::{Exit, Job, Listed, Runtime, RuntimeError, StartError, Started, Surroundings};
use super::cgroups::{Cgroups, Held};
use super::handle::{Guard, Shepherd};
use super::jobs::{self, Jobs, Known, Wish};
use super::output::output;
use super::wire::{FromShepherd, Run, Step, ToShepherd};
use super::{ProcessConfig, ProcessRuntimeError};
use crate::runtime::clock::{self, Lease, memfd};

const NAME: &str = "process";
/// Shepherds kept for the next jobs however long there are none; each costs some hundred KiB.
const MOST_IDLE: usize = 16;
/// As long as jobs come and go, more are kept: to make one costs as much as a short job.
const MOST_RESTING: usize = 256;
/// So long without a job, and a shepherd is one too many.
const REST: Duration = Duration::from_secs(2);
/// Where programs are looked for when a job has no `PATH`, as `execvp` does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Runs processes. Everything that it started is killed when it is dropped, or when its program ends in any way.
pub struct ProcessRuntime {
    config: ProcessConfig,
    jobs: Arc<Jobs>,
    pool: Arc<Pool>,
    cgroups: Cgroups,
    lease: Lease,
    lease_file: OwnedFd,
    not_root: bool,
    restart: tokio::sync::Mutex<()>,
    attendants: TaskTracker,
    closed: CancellationToken,
}

/// The guard and the shepherds that wait for jobs.
struct Pool {
    inner: Mutex<PoolInner>,
    /// More rest than are kept for long.
    crowded: Notify,
}

struct PoolInner {
    guard: Option<Arc<Guard>>,
    /// The one that had a job last is at the end, and gets the next.
    idle: VecDeque<(Shepherd, Instant)>,
}

impl ProcessRuntime {
    /// Starts the guard, sweeps what dead workers left in control groups, and claims its own.
    pub async fn new(config: ProcessConfig) -> Result<Self, ProcessRuntimeError> {
        let (lease, lease_file) = Lease::create().map_err(ProcessRuntimeError::Lease)?;
        let guard = Guard::start(&config, &lease_file).await?;
        let name = config.cgroups.then(|| config.name.clone());
        let claim = move || name.map_or_else(Cgroups::none, |name| Cgroups::claim(&name));
        let cgroups = tokio::task::spawn_blocking(claim).await.unwrap_or_else(|_| Cgroups::none());
        let inner = PoolInner { guard: Some(Arc::new(guard)), idle: VecDeque::new() };
        let pool = Arc::new(Pool { inner: Mutex::new(inner), crowded: Notify::new() });
        let (attendants, closed) = (TaskTracker::new(), CancellationToken::new());
        attendants.spawn({
            let (pool, closed) = (Arc::clone(&pool), closed.clone());
            async move { closed.run_until_cancelled(pool.thin_out()).await }
        });
        Ok(Self {
            config,
            jobs: Arc::default(),
            pool,
            cgroups,
            lease,
            lease_file,
            not_root: !nix::unistd::geteuid().is_root(),
            restart: tokio::sync::Mutex::default(),
            attendants,
            closed,
        })
    }

    async fn end_all(&self) {
        self.closed.cancel();
        self.attendants.close();
        self.attendants.wait().await;
        let guard = {
            let mut pool = self.pool.lock();
            pool.idle.clear();
            pool.guard.take()
        };
        if let Some(guard) = guard.and_then(Arc::into_inner) {
            guard.end().await;
        }
        self.cgroups.remove();
    }

    async fn begin(&self, job: Job) -> Result<Started, StartError> {
        let Workload::Process(process) = &job.workload else {
            return Err(StartError::WrongKind { runtime: NAME, kind: job.workload.kind() });
        };
        let held = self.cgroups.hold(&job.start, &job.limits)?;
        let Some(mut registered) = self.jobs.register(&job.start) else {
            let what = format!("the start id {} is in use", job.start);
            return Err(StartError::Failed { what, source: None });
        };
        let run = self.run(&job, &process.command, held, process.stdin.is_some())?;
        let failed = |what: &str| {
            let what = format!("could not {what}");
            move |source| StartError::Failed { what, source: Some(source) }
        };
        let stdin = process.stdin.as_deref().map(input).transpose().map_err(failed("make a file for stdin"))?;
        let (stdout, stdout_end) = output().map_err(failed("make a pipe for stdout"))?;
        let (stderr, stderr_end) = output().map_err(failed("make a pipe for stderr"))?;
        let shepherd = self.shepherd().await?;

        // From here on a dropped future drops the shepherd's socket, and the shepherd kills what it started.
        let mut files: Vec<_> = stdin.iter().map(AsFd::as_fd).collect();
        files.extend([stdout_end.as_fd(), stderr_end.as_fd()]);
        let cgroup = run.cgroup.clone();
        let request = ToShepherd::Run(Box::new(run));
        shepherd.tell(&request, &files).await.map_err(failed("reach the shepherd of the job"))?;
        drop((stdin, stdout_end, stderr_end));
        let began = Instant::now();
        let started = || Started { stdout: Box::new(stdout), stderr: Box::new(stderr), ran: began.elapsed() };
        match shepherd.hear().await {
            Ok(Some(FromShepherd::Started)) => {}
            Ok(Some(FromShepherd::Ended(ended))) => {
                registered.ended(ended);
                self.pool.put(shepherd);
                return Ok(started());
            }
            Ok(Some(FromShepherd::Failed { step, errno, what })) => {
                self.pool.put(shepherd);
                return Err(start_error(&job, &process.command, step, errno, &what));
            }
            answer => {
                shepherd.settle().await;
                jobs::remove(cgroup).await;
                // A job that is over soon is told of only at its end: this one may have run.
                let why = answer.err().map_or_else(String::new, |error| format!(": {error}"));
                return Err(StartError::Unsure { runtime: NAME, why: format!("its shepherd was killed{why}") });
            }
        }
        registered.started();
        let (pool, closed) = (Arc::clone(&self.pool), self.closed.clone());
        self.attendants.spawn(async move {
            let attend = registered.attend(shepherd, cgroup);
            if let Some(Some(shepherd)) = closed.run_until_cancelled(attend).await {
                pool.put(shepherd);
            }
        });
        Ok(started())
    }

    /// The job with every decision taken.
    fn run(&self, job: &Job, command: &[String], held: Held, stdin: bool) -> Result<Run, StartError> {
        let Some(program) = command.first() else {
            return Err(StartError::CommandNotFound { program: String::new() });
        };
        let Some(folder) = job.folder.to_str() else {
            let what = format!("the work folder {} is no UTF-8", job.folder.display());
            return Err(StartError::Failed { what, source: None });
        };
        let path = job.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        Ok(Run {
            candidates: candidates(program, path),
            argv: command.to_vec(),
            env: job.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            folder: folder.to_owned(),
            stdin,
            alive_until_ns: job.alive_until.map(clock::instant_ns),
            address_space: held.address_space,
            processes: held.processes,
            no_new_privileges: self.not_root && !self.config.allow_setuid,
            cgroup: held.cgroup,
        })
    }

    /// An idle shepherd, or a new one; starts a guard where the last was killed.
    async fn shepherd(&self) -> Result<Shepherd, StartError> {
        if self.closed.is_cancelled() {
            return Err(StartError::Failed { what: "the process runtime is closed".to_owned(), source: None });
        }
        if let Some(taken) = self.pool.take() {
            return taken.map_err(|source| no_shepherd(source.into()));
        }
        let _one_at_a_time = self.restart.lock().await;
        if let Some(taken) = self.pool.take() {
            return taken.map_err(|source| no_shepherd(source.into()));
        }
        tracing::warn!("the guard of the process runtime was killed; starting another");
        let guard = Guard::start(&self.config, &self.lease_file).await.map_err(|e| no_shepherd(e.into()))?;
        let guard = Arc::new(guard);
        let shepherd = guard.shepherd().map_err(|source| no_shepherd(source.into()));
        self.pool.lock().guard = Some(guard);
        shepherd
    }

    fn known(&self, start: &StartId) -> Result<Known, RuntimeError> {
        self.jobs.get(start).ok_or_else(|| RuntimeError::NotFound { start: start.clone() })
    }

    /// Passes a wish on; what has ended has none to hear it.
    async fn wish(&self, start: &StartId, wish: Wish) -> Result<(), RuntimeError> {
        let _ = self.known(start)?.wishes.send(wish).await;
        Ok(())
    }

    async fn halt(&self, start: &StartId, paused: bool) -> Result<(), RuntimeError> {
        self.known(start)?.paused.store(paused, Ordering::Relaxed);
        self.wish(start, if paused { Wish::Pause } else { Wish::Resume }).await
    }

    async fn ended(&self, start: &StartId) -> Result<Exit, RuntimeError> {
        let mut exit = self.known(start)?.exit;
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        ended.ok_or_else(|| RuntimeError::NotFound { start: start.clone() })
    }

    async fn end(&self, start: &StartId, grace: Duration) -> Result<(), RuntimeError> {
        match self.wish(start, Wish::Stop(grace)).await {
            Err(RuntimeError::NotFound { .. }) => return Ok(()),
            wished => wished?,
        }
        match self.ended(start).await {
            Ok(_) | Err(RuntimeError::NotFound { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> RuntimeInfo {
        let mut capabilities = vec!["keep_alive".to_owned(), "pause".to_owned(), "stats".to_owned()];
        capabilities.extend(self.cgroups.capabilities());
        capabilities.sort();
        RuntimeInfo { capabilities, ..RuntimeInfo::default() }
    }

    fn surroundings(&self, folder: &Path, result_file: &Path) -> Surroundings {
        let env = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("HOME", folder.display().to_string()),
            ("LANG", "C.UTF-8".to_owned()),
            ("TZ", "UTC".to_owned()),
        ];
        Surroundings {
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            result_file: result_file.display().to_string(),
        }
    }

    fn prepare<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<(), StartError>> {
        let held = self.cgroups.hold(&job.start, &job.limits);
        std::future::ready(held.map(|_| ())).boxed()
    }

    fn start(&self, job: Job) -> BoxFuture<'_, Result<Started, StartError>> {
        self.begin(job).boxed()
    }

    fn wait<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        self.ended(start).boxed()
    }

    fn stop<'a>(&'a self, start: &'a StartId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.end(start, grace).boxed()
    }

    fn stats<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<Usage, RuntimeError>> {
        async move {
            let (answer, answered) = oneshot::channel();
            self.wish(start, Wish::Stats(answer)).await?;
            match answered.await {
                Ok(usage) => Ok(usage),
                // It ended meanwhile, or long ago.
                Err(_) => Ok(self.ended(start).await?.usage),
            }
        }
        .boxed()
    }

    fn pause<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.halt(start, true).boxed()
    }

    fn resume<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.halt(start, false).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>> {
        std::future::ready(Ok(self.jobs.list())).boxed()
    }

    /// What still runs is killed first.
    fn remove<'a>(&'a self, start: &'a StartId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            self.end(start, Duration::ZERO).await?;
            self.jobs.remove(start);
            Ok(())
        }
        .boxed()
    }

    fn keep_alive(&self, until: Instant) {
        self.lease.extend(clock::instant_ns(until));
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.end_all().boxed()
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        // The attendants let go of their shepherds, and these kill.
        self.closed.cancel();
        self.cgroups.remove();
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, PoolInner> {
        // No code that holds it can panic half way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shepherd, new if none is idle; `None` without a guard.
    fn take(&self) -> Option<io::Result<Shepherd>> {
        let mut pool = self.lock();
        let guard = pool.guard.clone()?;
        if !guard.is_alive() {
            // Its shepherds follow it.
            pool.idle.clear();
            pool.guard = None;
            return None;
        }
        while let Some((shepherd, _)) = pool.idle.pop_back() {
            if shepherd.is_alive() {
                return Some(Ok(shepherd));
            }
        }
        drop(pool);
        Some(guard.shepherd())
    }

    fn put(&self, shepherd: Shepherd) {
        let mut pool = self.lock();
        if pool.idle.len() < MOST_RESTING {
            pool.idle.push_back((shepherd, Instant::now()));
        }
        if pool.idle.len() > MOST_IDLE {
            self.crowded.notify_one();
        }
    }

    /// Lets those go that have been too many for a while. Never ends.
    async fn thin_out(&self) {
        loop {
            self.crowded.notified().await;
            tokio::time::sleep(REST).await;
            let mut pool = self.lock();
            while pool.idle.len() > MOST_IDLE && pool.idle.front().is_some_and(|(_, since)| since.elapsed() >= REST) {
                pool.idle.pop_front();
            }
            if pool.idle.len() > MOST_IDLE {
                self.crowded.notify_one();
            }
        }
    }
}

fn no_shepherd(source: Box<dyn std::error::Error + Send + Sync>) -> StartError {
    StartError::Failed {
        what: "could not make a shepherd for the job".to_owned(),
        source: Some(io::Error::other(source)),
    }
}

/// Where `program` may be, in the order in which a shell would look.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    // An empty part means the working directory.
    let within = |folder: &str| format!("{}/{program}", if folder.is_empty() { "." } else { folder });
    path.split(':').map(within).collect()
}

/// A file in memory to read `content` from. Unlike a pipe it needs nobody to write while the job reads.
fn input(content: &str) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd(c"shoal-stdin")?);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

fn start_error(job: &Job, command: &[String], step: Step, errno: i32, what: &str) -> StartError {
    let source = io::Error::from_raw_os_error(errno);
    let program = command.first().cloned().unwrap_or_default();
    let failed = |what: String, source| StartError::Failed { what, source: Some(source) };
    match step {
        Step::Find => StartError::CommandNotFound { program },
        // The machine's trouble, not the program's.
        Step::Execute
            if matches!(
                errno,
                libc::ENOMEM | libc::EAGAIN | libc::ENFILE | libc::EMFILE | libc::EIO | libc::ETXTBSY
            ) =>
        {
            failed(format!("could not execute `{program}`"), source)
        }
        Step::Execute => StartError::CommandNotExecutable { program, source },
        Step::Folder => failed(format!("could not enter the work folder {}", job.folder.display()), source),
        Step::Rlimit => failed("could not set an rlimit".to_owned(), source),
        Step::Prepare if what.is_empty() => failed("could not prepare the process".to_owned(), source),
        Step::Prepare => failed(format!("could not {what}"), source),
        Step::Cgroup if matches!(errno, libc::EACCES | libc::EPERM | libc::EROFS) => {
            let limits = &job.limits;
            let bounds = [("cpu", limits.cpu.bound().is_some()), ("memory", limits.memory.bound().is_some())];
            let limit = bounds.iter().find(|(_, bound)| *bound).map_or("pids", |(limit, _)| limit);
            StartError::LimitUnsupported { limit, why: format!("the control group refuses the job: {what} {source}") }
        }
        Step::Cgroup => failed(format!("could not hold the limits by a control group {what}"), source),
    }
}
