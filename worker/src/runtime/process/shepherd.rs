//! A shepherd: one process that runs one job after the other, and only ever one at a time. Being a subreaper, its
//! descendants are exactly what its job has left: none of them is another job's, and none can slip away.
//!
//! ```text
//! Idle --Run--> Running --main ends--> Killing --nothing left--> Idle
//!                  +--Stop--> Stopping --grace over--^   +--------^ (all ended within the grace)
//!                  +--worker gone, guard gone, not kept alive--^
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use libc::pid_t;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::spawn::{Refusal, Spawner};
use super::wire::{self, Ended, FromShepherd, Run, Step, ToShepherd, Used};
use super::{signals, tree};
use crate::runtime::clock::{self, Lease};

/// Who ends sooner is told of once instead of twice. Nobody needs to know earlier: the output waits in the pipes, and a
/// stop waits for the word.
const MOMENT_NS: u64 = 20_000_000;
/// Between two rounds of killing. A round is also tried whenever a child ends.
const KILL_AGAIN_NS: u64 = 10_000_000;

/// Runs jobs until the worker or the guard is gone. The last job is gone when it returns.
pub(super) fn run(socket: &OwnedFd, guard: pid_t, lease: &Lease) -> io::Result<()> {
    let signals = signals::follow(&[libc::SIGCHLD, libc::SIGTERM])?;
    // The guard's end is told by SIGTERM, which is blocked and so only wakes us.
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
    let spawner = Spawner::new()?;
    let shepherd = Shepherd { socket, guard, lease, signals, spawner };
    while let Some(request) = shepherd.next_job()? {
        shepherd.run(request)?;
    }
    Ok(())
}

struct Shepherd<'a> {
    socket: &'a OwnedFd,
    guard: pid_t,
    lease: &'a Lease,
    signals: SignalFd,
    spawner: Spawner,
}

/// A job with its files.
struct Request {
    run: Box<Run>,
    files: Vec<OwnedFd>,
}

impl Shepherd<'_> {
    /// The next job; `None` when there will be none.
    fn next_job(&self) -> io::Result<Option<Request>> {
        loop {
            if self.orphaned() {
                return Ok(None);
            }
            if !self.poll(true, None)? {
                continue;
            }
            match wire::receive::<ToShepherd>(self.socket)? {
                None => return Ok(None),
                Some((ToShepherd::Run(run), files)) => return Ok(Some(Request { run, files })),
                // Meant for the job before, which was over already.
                Some((ToShepherd::Stop { .. } | ToShepherd::Pause | ToShepherd::Resume | ToShepherd::Stats, _)) => {}
            }
        }
    }

    fn run(&self, request: Request) -> io::Result<()> {
        let Request { run, files } = request;
        let began_ns = clock::now_ns();
        let main = match self.start(&run, &files) {
            Ok(main) => main,
            Err(Refusal { step, errno, what }) => {
                drop(files);
                return self.tell(&FromShepherd::Failed { step, errno, what });
            }
        };
        // Readers see the end of the output only when nobody holds the pipes any more.
        drop(files);
        let job = Running::new(main, began_ns);
        let ended = job.attend(self, &run)?;
        self.tell(&FromShepherd::Ended(ended))
    }

    fn start(&self, run: &Run, files: &[OwnedFd]) -> Result<pid_t, Refusal> {
        let incomplete = || Refusal::new(Step::Prepare, "receive the output pipes", &io::ErrorKind::InvalidData.into());
        // Descriptor 0 of guard and shepherds is /dev/null.
        let nothing = io::stdin();
        let stdio = match (run.stdin, files) {
            (true, [stdin, stdout, stderr]) => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            (false, [stdout, stderr]) => [nothing.as_fd(), stdout.as_fd(), stderr.as_fd()],
            (true | false, _) => return Err(incomplete()),
        };
        if lease_ends(self.lease, run).is_some_and(|until| until <= clock::now_ns()) {
            // The worker was frozen half way; somebody else may run it by now.
            let late = io::Error::from_raw_os_error(libc::ETIME);
            return Err(Refusal::new(Step::Prepare, "start it while it may live", &late));
        }
        let Some(plan) = &run.cgroup else { return self.spawner.spawn(run, stdio, &[]) };
        let groups = plan.make().map_err(|(what, error)| Refusal::new(Step::Cgroup, what, &error))?;
        let started = self.spawner.spawn(run, stdio, &groups);
        drop(groups);
        started.inspect_err(|_| plan.remove())
    }

    /// Waits for an ended child, until `until_ns`, and where `hear` is set for the worker's word; true if there is one.
    fn poll(&self, hear: bool, until_ns: Option<u64>) -> io::Result<bool> {
        // Nobody asks a closed socket twice: it would be readable for ever.
        let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let mut fds = [signals, PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds[..if hear { 2 } else { 1 }], timeout(until_ns)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let [signalled, heard] = fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if signalled {
            signals::drain(&self.signals);
        }
        Ok(heard && hear)
    }

    /// Whether the guard is gone.
    fn orphaned(&self) -> bool {
        // SAFETY: plain call.
        unsafe { libc::getppid() != self.guard }
    }

    /// A worker that is gone hears nothing; that is noticed where messages are read.
    fn tell(&self, message: &FromShepherd) -> io::Result<()> {
        match wire::send(self.socket, message, &[]) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
            told => told,
        }
    }
}

/// Until `until_ns`, rounded up so that it is over when `poll` returns.
fn timeout(until_ns: Option<u64>) -> PollTimeout {
    let Some(until_ns) = until_ns else { return PollTimeout::NONE };
    let millis = until_ns.saturating_sub(clock::now_ns()).div_ceil(1_000_000);
    i32::try_from(millis).ok().and_then(|millis| PollTimeout::try_from(millis).ok()).unwrap_or(PollTimeout::MAX)
}

/// A job from its start to the end of the last process.
struct Running {
    main: pid_t,
    main_ended: bool,
    began_ns: u64,
    doing: Doing,
    worker_gone: bool,
    paused: bool,
    choked: bool,
}

/// What the shepherd does about it.
#[derive(Clone, Copy, PartialEq)]
enum Doing {
    /// It may run.
    Running,
    /// Asked to end by itself until then.
    Stopping { until_ns: u64 },
    /// Being killed; the next round is due then.
    Killing { again_ns: u64 },
}

impl Running {
    fn new(main: pid_t, began_ns: u64) -> Self {
        let doing = Doing::Running;
        Self { main, main_ended: false, began_ns, doing, worker_gone: false, paused: false, choked: false }
    }

    /// Watches the job until nothing of it is left.
    fn attend(mut self, shepherd: &Shepherd<'_>, run: &Run) -> io::Result<Ended> {
        let mut ended = Ended::default();
        let mut tell_ns = Some(self.began_ns + MOMENT_NS);
        loop {
            if self.reap(&mut ended) {
                break;
            }
            self.decide(shepherd, run, &mut ended);
            if tell_ns.is_some_and(|due| due <= clock::now_ns()) {
                shepherd.tell(&FromShepherd::Started)?;
                tell_ns = None;
            }
            let lease_ns = lease_ends(shepherd.lease, run);
            let until_ns = match self.doing {
                Doing::Running => lease_ns,
                Doing::Stopping { until_ns } => Some(lease_ns.map_or(until_ns, |lease| lease.min(until_ns))),
                Doing::Killing { again_ns } => Some(again_ns),
            };
            let until_ns = until_ns.into_iter().chain(tell_ns).min();
            if shepherd.poll(!self.worker_gone, until_ns)? {
                self.obey(shepherd, run, &mut ended)?;
            }
        }
        ended.used.wall_ns = clock::now_ns().saturating_sub(self.began_ns);
        if let Some(plan) = &run.cgroup {
            ended.oom = plan.oom_killed();
            ended.pids_exceeded |= !self.choked && plan.pids_refused();
            ended.used.peak_memory = plan.peak_memory().unwrap_or(ended.used.peak_memory);
            ended.used.cpu_us = plan.cpu_us().unwrap_or(ended.used.cpu_us);
            plan.remove();
        }
        Ok(ended)
    }

    /// Moves on by clock and circumstances, and kills where it is time.
    fn decide(&mut self, shepherd: &Shepherd<'_>, run: &Run, ended: &mut Ended) {
        let now_ns = clock::now_ns();
        if self.doing == Doing::Running || matches!(self.doing, Doing::Stopping { .. }) {
            let overdue = lease_ends(shepherd.lease, run).is_some_and(|until| until <= now_ns);
            ended.not_kept_alive |= overdue && !self.main_ended;
            let kill = match self.doing {
                Doing::Running => overdue || self.main_ended || self.worker_gone || shepherd.orphaned(),
                Doing::Stopping { until_ns } => {
                    overdue || until_ns <= now_ns || self.worker_gone || shepherd.orphaned()
                }
                Doing::Killing { .. } => false,
            };
            if kill {
                self.doing = Doing::Killing { again_ns: now_ns };
            }
        }
        if let Doing::Killing { again_ns } = self.doing
            && again_ns <= now_ns
        {
            if !self.main_ended {
                tree::signal_group(self.main, libc::SIGKILL);
            }
            if let Some(plan) = &run.cgroup {
                // What is refused from here on is our doing.
                ended.pids_exceeded |= !self.choked && plan.pids_refused();
                self.choked = true;
                plan.choke();
            }
            tree::kill(own_children());
            self.doing = Doing::Killing { again_ns: clock::now_ns() + KILL_AGAIN_NS };
        }
    }

    /// Does what the worker asks.
    fn obey(&mut self, shepherd: &Shepherd<'_>, run: &Run, ended: &mut Ended) -> io::Result<()> {
        match wire::receive::<ToShepherd>(shepherd.socket) {
            Ok(None) | Err(_) => self.worker_gone = true,
            Ok(Some((ToShepherd::Stop { grace_ns }, _))) => self.stop(grace_ns),
            Ok(Some((ToShepherd::Pause, _))) => {
                self.paused = true;
                self.signal_all(libc::SIGSTOP);
            }
            Ok(Some((ToShepherd::Resume, _))) => {
                self.paused = false;
                self.signal_all(libc::SIGCONT);
            }
            Ok(Some((ToShepherd::Stats, _))) => return shepherd.tell(&FromShepherd::Stats(self.stats(run, ended))),
            // One at a time: the worker never asks for that. Its files are closed here, which it sees.
            Ok(Some((ToShepherd::Run(_), _))) => {}
        }
        Ok(())
    }

    fn stop(&mut self, grace_ns: u64) {
        let until_ns = clock::now_ns().saturating_add(grace_ns);
        match self.doing {
            Doing::Running => {
                self.doing = Doing::Stopping { until_ns };
                if grace_ns > 0 {
                    self.signal_all(libc::SIGTERM);
                    if self.paused {
                        self.signal_all(libc::SIGCONT);
                    }
                }
            }
            // The shorter grace wins.
            Doing::Stopping { until_ns: before } => self.doing = Doing::Stopping { until_ns: before.min(until_ns) },
            Doing::Killing { .. } => {}
        }
    }

    /// Signals the group of the main process at once, and those that have left it one by one.
    fn signal_all(&self, signal: i32) {
        if !self.main_ended {
            tree::signal_group(self.main, signal);
        }
        for pid in tree::with_descendants(own_children()) {
            if tree::stat(pid).is_some_and(|stat| self.main_ended || stat.group != self.main) {
                tree::signal(pid, signal);
            }
        }
    }

    /// Takes in what has ended; true when nothing is left.
    fn reap(&mut self, ended: &mut Ended) -> bool {
        loop {
            let mut status = 0;
            // SAFETY: both are valid places for the answers; zeroes are a valid `rusage`.
            let (pid, used) = unsafe {
                let mut used: libc::rusage = std::mem::zeroed();
                if !self.main_ended && self.main_is_over() && self.doing == Doing::Running {
                    // While its number is still its own, and before a crowd of them can fork on.
                    tree::signal_group(self.main, libc::SIGKILL);
                }
                (libc::wait4(-1, &mut status, libc::WNOHANG, &mut used), used)
            };
            match pid {
                0 => return false,
                -1 if Errno::last() == Errno::EINTR => continue,
                // No child at all.
                -1 => return true,
                _ => {}
            }
            let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
            ended.used.cpu_us += micros(used.ru_utime) + micros(used.ru_stime);
            ended.used.peak_memory = ended.used.peak_memory.max((used.ru_maxrss as u64) << 10);
            if pid == self.main {
                self.main_ended = true;
                if libc::WIFSIGNALED(status) {
                    ended.signal = Some(libc::WTERMSIG(status));
                } else {
                    ended.code = Some(libc::WEXITSTATUS(status));
                }
            }
            if let Doing::Killing { again_ns } = &mut self.doing {
                // Its children are ours now.
                *again_ns = 0;
            }
        }
    }

    /// Whether the main process has ended, without taking it in.
    fn main_is_over(&self) -> bool {
        // SAFETY: `info` is a valid place for the answer, and zeroes are a valid one.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.main as libc::id_t, &mut info, options) == 0 && info.si_pid() == self.main
        }
    }

    /// What has ended so far and what runs now, together.
    fn stats(&self, run: &Run, ended: &Ended) -> Used {
        let mut used = ended.used;
        used.wall_ns = clock::now_ns().saturating_sub(self.began_ns);
        let mut resident = 0;
        // SAFETY: plain call.
        let ticks_a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
        for pid in tree::with_descendants(own_children()) {
            used.cpu_us += tree::stat(pid).map_or(0, |stat| stat.ticks * 1_000_000 / ticks_a_second);
            resident += tree::peak_memory(pid);
        }
        used.peak_memory = used.peak_memory.max(resident);
        if let Some(plan) = &run.cgroup {
            used.peak_memory = plan.peak_memory().unwrap_or(used.peak_memory);
            used.cpu_us = plan.cpu_us().unwrap_or(used.cpu_us);
        }
        used
    }
}

/// When the dead-man's switch goes off, as far as is known now.
fn lease_ends(lease: &Lease, run: &Run) -> Option<u64> {
    run.alive_until_ns.map(|until| until.max(lease.until_ns()))
}

fn own_children() -> Vec<pid_t> {
    // SAFETY: plain call.
    tree::children(unsafe { libc::getpid() })
}
