//! The guard of containers: a small process beside the worker. Containers live on below the engine whatever becomes of
//! their worker; this one sees to it that they do not.
//!
//! ```text
//! worker --socket-- guard --grip-- engine
//!    +---lease (memory)---^
//! ```
//!
//! It kills what is mortal once the lease is past, as of a worker that is frozen or has lost its server, and removes all
//! of this life of the worker once its socket ends, which the kernel sees to in whatever way the worker dies. What it
//! does to which engine is a [`Grip`] of that engine's runtime.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use schemas::AgentId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::process::{Child, Command};

use super::labels::Owner;
use crate::runtime::clock::{self, Lease};
use crate::runtime::process::{GUARD_ARGUMENT, GuardCommand};

/// The first argument by which the program is asked to be a guard of containers.
pub const CONTAINER_GUARD_ARGUMENT: &str = "__container_guard";

/// How long a guard may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How late the end of a lease may be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two looks for what is mortal after the end of a lease: something may have been on its way.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same once nothing was found for a while.
const LOOK_SELDOM: Duration = Duration::from_secs(30);
/// The worker is gone and nothing was found: a request of its may still be under way inside the engine.
const LINGER: Duration = Duration::from_secs(5);
/// An engine that is down when the worker dies is waited for; after this the next worker's sweep is as good.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// For one answer; the removal of a container that does not die takes an engine some ten seconds.
pub(in crate::runtime) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

const READY: &[u8] = b"ready\n";
const BYE: &[u8] = b"bye\n";

/// The engine that a guard is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Target {
    /// A Docker engine at `unix://…` or `tcp://…`.
    Docker(String),
    /// A containerd.
    #[cfg(feature = "containerd")]
    Containerd(crate::runtime::containerd::Place),
}

impl Target {
    fn grip(self, owner: Owner) -> io::Result<Box<dyn Grip>> {
        match self {
            Self::Docker(host) => crate::runtime::docker::grip::grip(&host, owner),
            #[cfg(feature = "containerd")]
            Self::Containerd(place) => Ok(crate::runtime::containerd::grip::grip(place, owner)),
        }
    }
}

/// What a guard can do to one life of a worker on its engine. It waits where it must: a guard has nothing else to do.
pub(in crate::runtime) trait Grip {
    /// Those that run, or may, and are to die when nobody keeps them alive.
    fn mortal(&self) -> io::Result<Vec<String>>;

    /// Kills these; what fails is found again.
    fn kill(&self, ids: &[String]);

    /// Removes everything of this life; the number of what was there.
    fn remove_all(&self) -> io::Result<usize>;

    /// Not only does the engine not answer, but the place where it would come back is gone.
    fn is_gone_for_good(&self) -> bool;
}

/// The worker's end of a running guard. When it is dropped, the guard removes everything of this life of the worker.
pub struct Guard {
    socket: tokio::net::UnixStream,
    child: Child,
    lease: Lease,
}

impl Guard {
    /// Starts one for the containers of `owner` on this engine, and waits until it is ready. It kills nothing for its lease before the first [`Guard::extend`].
    pub async fn start(command: &GuardCommand, target: &Target, owner: &Owner) -> io::Result<Self> {
        let (lease, file) = Lease::create()?;
        let (here, there) = UnixStream::pair()?;
        here.set_nonblocking(true)?;
        let args = command.args.iter().map(|argument| match argument.to_str() {
            Some(GUARD_ARGUMENT) => OsString::from(CONTAINER_GUARD_ARGUMENT),
            _ => argument.clone(),
        });
        let child = Command::new(&command.program)
            .arg0("shoal-container-guard")
            .args(args)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "LD_LIBRARY_PATH"))
            .stdin(Stdio::from(OwnedFd::from(there)))
            // It says nothing on its stdout: that is the memory it shares with us.
            .stdout(Stdio::from(file))
            .spawn()?;
        let mut guard = Self { socket: tokio::net::UnixStream::from_std(here)?, child, lease };
        let hello = Hello {
            target: target.clone(),
            fleet: owner.fleet.clone(),
            worker: owner.worker.clone(),
            instance: owner.instance.clone(),
        };
        let mut line = serde_json::to_vec(&hello)?;
        line.push(b'\n');
        let ready = async {
            guard.socket.write_all(&line).await?;
            let mut answer = [0; READY.len()];
            guard.socket.read_exact(&mut answer).await.map(|_| answer == READY)
        };
        match tokio::time::timeout(READY_WITHIN, ready).await {
            Ok(Ok(true)) => Ok(guard),
            Ok(Ok(false)) => Err(io::ErrorKind::InvalidData.into()),
            Ok(Err(_)) => Err(io::Error::other("it ended at once; does the program call `container_guard_main`?")),
            Err(_) => Err(io::Error::other("it does not answer; does the program call `container_guard_main`?")),
        }
    }

    /// Mortal containers may live until then at least.
    pub fn extend(&self, until: Instant) {
        self.lease.extend(clock::instant_ns(until));
    }

    /// How often it began to kill what was not kept alive. A container that was killed while this grew was killed by it.
    pub fn kills(&self) -> u64 {
        self.lease.ends()
    }

    /// Completes when it is gone; another must then be started, and its lease be told. Cancel safe.
    pub async fn gone(&self) {
        loop {
            // It says nothing after its first word: what can be read is its end.
            let ended = match self.socket.ready(Interest::READABLE).await {
                Ok(_) => self.socket.try_read(&mut [0; 16]),
                Err(error) => Err(error),
            };
            match ended {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Lets it go once nothing of this life of the worker is left on the engine. Bounded: an engine that is down is left
    /// to the guard alone.
    pub async fn end(self) {
        let Self { mut socket, mut child, lease } = self;
        // A guard that is gone hears nothing and need not.
        let _ = socket.write_all(BYE).await;
        drop(socket);
        if let Ok(Err(error)) = tokio::time::timeout(ANSWER_WITHIN, child.wait()).await {
            tracing::warn!(%error, "could not wait for the guard of the containers");
        }
        drop(lease);
    }
}

#[derive(Serialize, Deserialize)]
struct Hello {
    target: Target,
    fleet: String,
    worker: AgentId,
    instance: String,
}

/// The guard's whole life. To be called first of all in `main` when the first argument is
/// [`CONTAINER_GUARD_ARGUMENT`]: before any thread, runtime or logging exists.
pub fn container_guard_main() -> ExitCode {
    match Watch::begin().and_then(Watch::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal: the guard of the containers ends: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Watch {
    socket: BufReader<UnixStream>,
    lease: Lease,
    worker: AgentId,
    grip: Box<dyn Grip>,
}

impl Watch {
    fn begin() -> io::Result<Self> {
        // SAFETY: no memory is involved. A session of its own keeps away what is sent to the worker's whole group; what
        // is sent to a whole control group must not end it before the worker.
        unsafe {
            libc::setsid();
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
                libc::signal(signal, libc::SIG_IGN);
            }
            libc::prctl(libc::PR_SET_NAME, c"shoal-c-guard".as_ptr());
            // Threads are few and short: no arena of their own each.
            #[cfg(target_env = "gnu")]
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        std::env::set_current_dir("/")?;
        let memory = io::stdout().as_fd().try_clone_to_owned()?;
        let lease = Lease::map(&memory)?;
        drop(memory);
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let nothing = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        for fd in [0, 1] {
            // SAFETY: both descriptors are open; stdin and stdout are nobody's.
            if unsafe { libc::dup2(nothing.as_raw_fd(), fd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let mut socket = BufReader::new(socket);
        let mut line = String::new();
        socket.read_line(&mut line)?;
        let hello: Hello = serde_json::from_str(&line)?;
        let worker = hello.worker.clone();
        let owner = Owner { fleet: hello.fleet, worker: hello.worker, instance: hello.instance };
        let grip = hello.target.grip(owner)?;
        socket.get_mut().write_all(READY)?;
        Ok(Self { socket, lease, worker, grip })
    }

    fn run(mut self) -> io::Result<()> {
        // Of which end of a lease all is done that can be, and when it is looked for more.
        let (mut ended_at, mut pause, mut next_look) = (0, LOOK_AGAIN, Instant::now());
        loop {
            if let Some(orderly) = self.worker_ends()? {
                return self.clean_up(orderly);
            }
            let until = self.lease.until_ns();
            if until == 0 || until > clock::now_ns() {
                continue;
            }
            if ended_at != until {
                (ended_at, pause, next_look) = (until, LOOK_AGAIN, Instant::now());
            }
            if next_look > Instant::now() {
                continue;
            }
            match self.kill_mortal() {
                Ok(0) => pause = (pause * 2).min(LOOK_SELDOM),
                Ok(_) => pause = LOOK_AGAIN,
                Err(error) => {
                    pause = LOOK_AGAIN;
                    eprintln!("shoal: the guard of the containers cannot kill what is not kept alive yet: {error}");
                }
            }
            next_look = Instant::now() + pause;
        }
    }

    /// Waits a little for the worker's end: whether it is an orderly one.
    fn worker_ends(&mut self) -> io::Result<Option<bool>> {
        let mut fds = [PollFd::new(self.socket.get_ref().as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut word = String::new();
        // A socket that is reset is as ended as one that is closed.
        let _ = self.socket.read_line(&mut word);
        Ok(Some(word.as_bytes() == BYE))
    }

    /// The number of those that still ran.
    fn kill_mortal(&self) -> io::Result<usize> {
        let ids = self.grip.mortal()?;
        // Kept alive again while the engine answered: what it named may have begun since.
        if self.lease.until_ns() > clock::now_ns() {
            return Ok(0);
        }
        if !ids.is_empty() {
            // Told first: who sees a container die must find that it was us.
            self.lease.tell_end();
            let (count, worker) = (ids.len(), &self.worker);
            eprintln!(
                "shoal: worker {worker} did not renew its lease in time; killing {count} containers of its tasks"
            );
            self.grip.kill(&ids);
        }
        Ok(ids.len())
    }

    /// Removes everything of this life of the worker, until there is nothing more.
    fn clean_up(&self, orderly: bool) -> io::Result<()> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(100);
        let mut is_empty_since: Option<Instant> = None;
        loop {
            match self.grip.remove_all() {
                Ok(0) if orderly => return Ok(()),
                Ok(0) => {
                    let since = *is_empty_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= LINGER {
                        return Ok(());
                    }
                }
                Ok(_) => is_empty_since = None,
                Err(error) => {
                    is_empty_since = None;
                    if began.elapsed() > PATIENCE || self.grip.is_gone_for_good() {
                        return Err(error);
                    }
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
            std::thread::sleep(pause);
        }
    }
}
