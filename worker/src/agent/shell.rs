//! Where the commands of one agent job run: a runtime of this worker, one start a command, all in the job's workspace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agents::secret::Mask;
use agents::{Command, Conversation, Kept, Ran, ShellError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::agent_job::{JobContainer, JobRuntime};
use schemas::names::LogSource;
use schemas::record::Usage;
use schemas::task::{Container, Mount, Process, WORK_FOLDER};
use schemas::{Code, StartId, TaskError, TaskKey, Workload};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::logs::LogWriter;
use crate::runtime::{Bounds, Exit, Job, Runtime, RuntimeError, StartError, Started};
use crate::worker::new_start_id;

/// Between the polite signal and the kill of a command whose time is over.
const GRACE: Duration = Duration::from_secs(5);
/// For what a command wrote last to be read, once it is gone.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Read at once from a command's output.
const READ: usize = 16 << 10;

/// Runs the commands of one attempt.
pub struct JobShell {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<dyn Runtime>,
    key: TaskKey,
    attempt: u32,
    /// `tree`, `home` and `aside` are below it.
    slot: PathBuf,
    /// The same as commands see it.
    seen: PathBuf,
    root: PathBuf,
    aside: PathBuf,
    container: Option<Container>,
    /// What containers see of this machine beside the slot.
    binds: Vec<Mount>,
    env: BTreeMap<String, String>,
    limits: Bounds,
    alive_until: Box<dyn Fn() -> Option<Instant> + Send + Sync>,
    log: LogWriter,
    mask: Mask,
    used: Mutex<Usage>,
    /// What runs, to be stopped at the job's end.
    running: Mutex<Vec<StartId>>,
    /// One for each stream that is not at its end.
    followers: TaskTracker,
    /// What is not at its end by now is left.
    given_up: CancellationToken,
    closed: CancellationToken,
}

/// All that a shell needs to know.
pub struct Surroundings<'a> {
    /// Which runtime.
    pub runtime: Arc<dyn Runtime>,
    /// As the job asks.
    pub wish: &'a JobRuntime,
    /// Whose.
    pub key: TaskKey,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// The workspace's slot: `tree`, `home` and `aside` are below it.
    pub slot: PathBuf,
    /// What the workspace's own git borrows from: seen at this very path, not to be changed.
    pub objects: PathBuf,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// Of each command.
    pub limits: Bounds,
    /// Until when what starts now may live unless kept alive.
    pub alive_until: Box<dyn Fn() -> Option<Instant> + Send + Sync>,
    /// The job's log.
    pub log: LogWriter,
    /// Over all that commands write.
    pub mask: Mask,
}

impl JobShell {
    /// In these surroundings.
    pub fn new(surroundings: Surroundings<'_>) -> Self {
        let Surroundings { runtime, wish, key, attempt, slot, objects, env, limits, alive_until, log, mask } =
            surroundings;
        let (seen, container, binds) = match wish {
            JobRuntime::Process => (slot.clone(), None, Vec::new()),
            JobRuntime::Docker(wish) => {
                // Each by itself, never the slot: what a command may rename or replace by a link must be nothing that we
                // follow. A place where something is mounted can be neither.
                let bind = |source: &Path, target: String, read_only: bool| Mount {
                    source: source.display().to_string(),
                    target,
                    read_only,
                };
                let inside = |name: &str| bind(&slot.join(name), format!("{WORK_FOLDER}/{name}"), false);
                let objects = bind(&objects, objects.display().to_string(), true);
                (PathBuf::from(WORK_FOLDER), Some(container(wish)), vec![inside("tree"), inside("home"), objects])
            }
        };
        let home = seen.join("home").display().to_string();
        let mut all = BTreeMap::from([("HOME".to_owned(), home)]);
        if container.is_some() {
            // The workspace's files are the worker's, whoever the container runs as.
            let git = [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")];
            all.extend(git.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        all.extend(env);
        Self {
            inner: Arc::new(Inner {
                runtime,
                key,
                attempt,
                root: seen.join("tree"),
                aside: slot.join("aside"),
                slot,
                seen,
                container,
                binds,
                env: all,
                limits,
                alive_until,
                log,
                mask,
                used: Mutex::default(),
                running: Mutex::default(),
                followers: TaskTracker::new(),
                given_up: CancellationToken::new(),
                closed: CancellationToken::new(),
            }),
        }
    }

    /// Whether commands can be run at all, as far as that can be known before the first: what the worker's policy says of
    /// their container, and its image. Cancel safe.
    pub async fn prepare(&self) -> Result<(), TaskError> {
        // No command of the job is it: what it would be is not looked at.
        let job = self.inner.job(&Command::line("true", GRACE), None);
        self.inner.runtime.prepare(&job).await.map_err(|error| error.to_task_error())
    }

    /// What all commands used so far: times in sum, memory at its peak.
    pub fn used(&self) -> Usage {
        self.inner.used.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops what still runs, each within `grace`, and returns when all of it is gone. Nothing can be started after it.
    pub async fn close(&self, grace: Duration) {
        self.inner.closed.cancel();
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        futures_util::future::join_all(running.iter().map(|start| async move {
            if let Err(error) = self.inner.runtime.stop(start, grace).await {
                tracing::debug!(%start, %error, "a command of an agent job was not stopped");
            }
            self.inner.finish(start).await;
        }))
        .await;
    }

    /// Behind [`Self::close`]: waits until what the commands wrote last is in the log. Whether all of it is: a log that is
    /// far behind is not waited for, nor a stream that something holds open.
    pub async fn last_words(&self) -> bool {
        self.inner.followers.close();
        let all = tokio::time::timeout(LAST_WORDS, self.inner.followers.wait()).await.is_ok();
        self.inner.given_up.cancel();
        self.inner.followers.wait().await;
        all
    }
}

/// A named pipe, open at both ends, so that neither open waits for the other; the reader that nobody uses keeps it open
/// until the program has begun. Whatever stands there by then is not followed.
fn named_pipe(path: &Path) -> std::io::Result<pipe::Sender> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    // The slot is nobody else's; a container may have a user of its own.
    file.set_permissions(std::fs::Permissions::from_mode(0o666))?;
    pipe::Sender::from_file(file)
}

/// The container of a command, but for the command.
fn container(wish: &JobContainer) -> Container {
    let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
    Container {
        image: wish.image.clone(),
        network: wish.network.clone(),
        user: Some(wish.user.clone().unwrap_or_else(|| format!("{user}:{group}"))),
        init: false,
        ..Container::default()
    }
}

impl agents::Shell for JobShell {
    fn root(&self) -> &Path {
        &self.inner.root
    }

    fn sees(&self, name: &str) -> PathBuf {
        match self.inner.container {
            Some(_) => self.inner.seen.join(name),
            None => self.inner.aside.join(name),
        }
    }

    fn aside(&self) -> &Path {
        &self.inner.aside
    }

    fn run(&self, command: Command) -> BoxFuture<'_, Result<Ran, ShellError>> {
        async move {
            let (guard, start, started) = self.inner.start(&command, None).await?;
            let keep = command.keep;
            let mask = || self.inner.mask.stream();
            let out = self.inner.follow(started.stdout, LogSource::Stdout, keep, mask());
            let err = self.inner.follow(started.stderr, LogSource::Stderr, keep, mask());
            let ended = self.inner.clone().ended(start, command.timeout);
            let (ended, stdout, stderr) = tokio::join!(ended, out, err);
            guard.over();
            let (stdout, stderr) = (stdout.unwrap_or_default(), stderr.unwrap_or_default());
            ended.map(|ran| Ran { stdout, stderr, ..ran })
        }
        .boxed()
    }

    fn open(&self, command: Command) -> BoxFuture<'_, Result<Conversation, ShellError>> {
        async move {
            // Not to be guessed: commands of the job can write there.
            let name = format!("stdin-{}", new_start_id());
            let path = self.inner.aside.join(&name);
            let stdin = named_pipe(&path).map_err(|error| {
                let message = format!("no pipe for its stdin: {error}");
                ShellError::NotStarted(TaskError::new(Code::StartFailed, message))
            })?;
            let seen = agents::Shell::sees(self, &name);
            let (guard, start, started) = self.inner.start(&command, Some(&seen)).await?;
            let err = self.inner.follow(started.stderr, LogSource::Stderr, command.keep, self.inner.mask.stream());
            let inner = self.inner.clone();
            let end = async move {
                let (ended, stderr) = tokio::join!(inner.ended(start, command.timeout), err);
                let _ = std::fs::remove_file(&path);
                guard.over();
                ended.map(|ran| Ran { stderr: stderr.unwrap_or_default(), ..ran })
            };
            Ok(Conversation { stdin: Box::new(stdin), stdout: started.stdout, end: end.boxed() })
        }
        .boxed()
    }
}

impl Inner {
    /// Starts one command; `stdin` is a named pipe as commands see it.
    async fn start(
        self: &Arc<Self>,
        command: &Command,
        stdin: Option<&Path>,
    ) -> Result<(Stopping, StartId, Started), ShellError> {
        if self.closed.is_cancelled() {
            return Err(ShellError::NotStarted(TaskError::new(Code::Cancelled, "the job is being stopped")));
        }
        let job = self.job(command, stdin);
        let start = job.start.clone();
        self.running().push(start.clone());
        let guard = Stopping { inner: self.clone(), start: Some(start.clone()) };
        match self.runtime.start(job).await {
            Ok(started) => Ok((guard, start, started)),
            Err(error) => {
                guard.over();
                self.running().retain(|other| *other != start);
                Err(match error {
                    StartError::Unsure { .. } => ShellError::Lost(error.to_task_error()),
                    _ => ShellError::NotStarted(error.to_task_error()),
                })
            }
        }
    }

    /// One command for the runtime, under a start of its own.
    fn job(&self, command: &Command, stdin: Option<&Path>) -> Job {
        let mut argv = command.argv.clone();
        if let Some(stdin) = stdin {
            let reads = ["sh".to_owned(), "-c".to_owned(), r#"exec "$@" <"$0""#.to_owned()];
            argv = reads.into_iter().chain([stdin.display().to_string()]).chain(argv).collect();
        }
        let workdir = self.root.join(&command.folder);
        let workload = match &self.container {
            None => Workload::Process(Process { command: argv, env: BTreeMap::new(), stdin: None }),
            Some(container) => {
                let mut container = container.clone();
                // An entrypoint of the image would stand in front of every command.
                let mut words = argv.into_iter();
                (container.entrypoint, container.command) = (words.next().into_iter().collect(), words.collect());
                container.working_dir = Some(workdir.display().to_string());
                Workload::Container(container)
            }
        };
        // Of a container it is what lies at the work folder itself.
        let folder = if self.container.is_some() { self.aside.clone() } else { workdir };
        let result_file = self.slot.join("result");
        let surroundings = self.runtime.surroundings(&folder, &result_file);
        let mut env = surroundings.env;
        env.extend(self.env.clone());
        env.extend(command.env.clone());
        let own = [
            ("SHOAL_TASK_ID", self.key.id.to_string()),
            ("SHOAL_TASK_QUEUE", self.key.queue.to_string()),
            ("SHOAL_TASK_ATTEMPT", self.attempt.to_string()),
        ];
        env.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Job {
            start: new_start_id(),
            key: self.key.clone(),
            attempt: self.attempt,
            workload,
            env,
            folder,
            result_file,
            artifacts: Vec::new(),
            notes: self.log.notes(),
            limits: self.limits,
            alive_until: (self.alive_until)(),
            binds: self.binds.clone(),
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Vec<StartId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its end; stops it after `timeout`.
    async fn ended(self: Arc<Self>, start: StartId, timeout: Duration) -> Result<Ran, ShellError> {
        let began = Instant::now();
        let (exit, timed_out) = tokio::select! {
            exit = self.runtime.wait(&start) => (exit, false),
            () = tokio::time::sleep(timeout) => {
                if let Err(error) = self.runtime.stop(&start, GRACE).await {
                    tracing::warn!(%start, %error, "a command whose time is over was not stopped");
                }
                (self.runtime.wait(&start).await, true)
            }
        };
        self.finish(&start).await;
        let exit = exit.map_err(|error| match error {
            RuntimeError::Lost { .. } => ShellError::Lost(TaskError::new(Code::EngineLost, error.to_string())),
            error => ShellError::Lost(TaskError::new(Code::Internal, error.to_string())),
        })?;
        let Exit { code, signal, oom, usage, .. } = exit;
        self.add(&usage);
        Ok(Ran { exit_code: code, signal, oom, timed_out, wall: began.elapsed(), usage, ..Ran::default() })
    }

    /// Frees what the runtime keeps of it.
    async fn finish(&self, start: &StartId) {
        if let Err(error) = self.runtime.remove(start).await {
            tracing::debug!(%start, %error, "what the runtime keeps of a command is not removed");
        }
        self.running().retain(|other| other != start);
    }

    fn add(&self, usage: &Usage) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.wall_ms += usage.wall_ms;
        used.cpu_ms = match (used.cpu_ms, usage.cpu_ms) {
            (None, None) => None,
            (one, other) => Some(one.unwrap_or_default() + other.unwrap_or_default()),
        };
        used.peak_memory_bytes = used.peak_memory_bytes.max(usage.peak_memory_bytes);
    }

    /// Carries one stream to its end, also when nobody waits for its command any more: masked, into the log, and kept in
    /// part.
    fn follow(
        self: &Arc<Self>,
        from: Box<dyn AsyncRead + Send + Unpin>,
        source: LogSource,
        keep: usize,
        mask: agents::secret::MaskStream,
    ) -> JoinHandle<Kept> {
        let inner = self.clone();
        self.followers.spawn(async move {
            let carried = inner.carry(from, source, keep, mask);
            inner.given_up.run_until_cancelled(carried).await.unwrap_or_default()
        })
    }

    async fn carry(
        &self,
        mut from: Box<dyn AsyncRead + Send + Unpin>,
        source: LogSource,
        keep: usize,
        mut mask: agents::secret::MaskStream,
    ) -> Kept {
        let mut keeper = Keeping::new(keep);
        let mut buffer = vec![0; READ];
        loop {
            let read = match from.read(&mut buffer).await {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => {
                    tracing::debug!(%error, "output of a command unreadable");
                    break;
                }
            };
            let clean = mask.push(&buffer[..read]);
            keeper.take(&clean);
            self.log.write(source, clean.into()).await;
        }
        let clean = mask.finish();
        keeper.take(&clean);
        self.log.write(source, clean.into()).await;
        keeper.kept()
    }
}

/// Keeps the beginning and the end of a stream.
struct Keeping {
    half: usize,
    head: Vec<u8>,
    tail: std::collections::VecDeque<u8>,
    cut: u64,
}

impl Keeping {
    fn new(keep: usize) -> Self {
        Self { half: keep / 2, head: Vec::new(), tail: std::collections::VecDeque::new(), cut: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = self.half.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        let rest = &bytes[room..];
        // What does not fit anyhow need not pass through.
        let skipped = rest.len().saturating_sub(self.half);
        self.tail.extend(&rest[skipped..]);
        let over = self.tail.len().saturating_sub(self.half);
        self.tail.drain(..over);
        self.cut += (over + skipped) as u64;
    }

    fn kept(self) -> Kept {
        Kept { head: self.head, tail: self.tail.into(), cut: self.cut }
    }
}

/// A command that nobody waits for any more is stopped, also in the middle of its start.
struct Stopping {
    inner: Arc<Inner>,
    start: Option<StartId>,
}

impl Stopping {
    fn over(mut self) {
        self.start = None;
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        let Some(start) = self.start.take() else { return };
        // At the job's end its `close` does it, and waits for it.
        if self.inner.closed.is_cancelled() {
            return;
        }
        let inner = self.inner.clone();
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            handle.spawn(async move {
                let _ = inner.runtime.stop(&start, GRACE).await;
                inner.finish(&start).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_and_end_are_kept_and_what_is_between_is_counted() {
        for sizes in [vec![30], vec![1; 30], vec![9, 9, 12]] {
            let bytes: Vec<u8> = (0..30).collect();
            let mut keeping = Keeping::new(8);
            let mut at = 0;
            for size in sizes {
                keeping.take(&bytes[at..at + size]);
                at += size;
            }
            let kept = keeping.kept();
            assert_eq!((kept.head, kept.tail, kept.cut), (vec![0, 1, 2, 3], vec![26, 27, 28, 29], 22));
        }
        let mut keeping = Keeping::new(8);
        keeping.take(b"abcdef");
        assert_eq!(keeping.kept().text(), "abcdef");
    }
}
