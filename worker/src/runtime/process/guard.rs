//! The guard: a small single-threaded process beside the worker that makes shepherds and outlives the worker by as
//! long as it takes to kill what it left.
//!
//! Its only children are shepherds. Any other child is what a shepherd that was killed left behind, and is killed.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use libc::pid_t;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::wire::{self, ToGuard};
use super::{shepherd, signals, tree};
use crate::runtime::clock::{self, Lease};

/// How long shepherds may take to clean up by themselves once the worker is gone.
const PATIENCE_NS: u64 = 5_000_000_000;
/// Between two rounds of killing.
const KILL_AGAIN_MS: u16 = 10;

/// The guard's whole life. To be called first of all in `main` when the first argument is
/// [`GUARD_ARGUMENT`](super::GUARD_ARGUMENT): before any thread, runtime or logging exists.
pub fn guard_main() -> ExitCode {
    match Guard::begin().and_then(Guard::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("shoal: the guard of the process runtime ends: {e}");
            ExitCode::FAILURE
        }
    }
}

struct Guard {
    control: OwnedFd,
    lease: Lease,
    signals: SignalFd,
    /// Shepherds by their number.
    shepherds: HashMap<u64, pid_t>,
    /// Whom to tell that nothing of this shepherd is left: by closing the file.
    settling: Vec<(u64, OwnedFd)>,
    /// There were strays when last looked for.
    strays: bool,
    /// Kept open until nothing is left: who waits for that sees it by a lock on it.
    _lock: Option<OwnedFd>,
}

impl Guard {
    fn begin() -> io::Result<Self> {
        signals::block_all()?;
        // SAFETY: no memory is involved. A session of its own keeps away what is sent to the worker's whole group.
        unsafe {
            libc::setsid();
            if libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::prctl(libc::PR_SET_NAME, c"shoal-guard".as_ptr());
            close_all_from(3);
        }
        let control = take_stdin()?;
        std::env::set_current_dir("/")?;
        let (hello, mut files) = wire::receive::<ToGuard>(&control)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (ToGuard::Hello, Some(file)) = (hello, files.first()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let lease = Lease::map(file)?;
        let lock = (files.len() > 1).then(|| files.swap_remove(1));
        wire::send(&control, &wire::READY, &[])?;
        let signals = signals::follow(&[libc::SIGCHLD])?;
        Ok(Self {
            control,
            lease,
            signals,
            shepherds: HashMap::new(),
            settling: Vec::new(),
            strays: false,
            _lock: lock,
        })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let strays = self.reap();
            let mut fds = [
                PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            let timeout = if strays { PollTimeout::from(KILL_AGAIN_MS) } else { PollTimeout::NONE };
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let [asked, signalled] = fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
            if signalled {
                signals::drain(&self.signals);
            }
            if asked {
                match wire::receive::<ToGuard>(&self.control) {
                    Ok(Some((message, files))) => self.obey(message, files)?,
                    Ok(None) | Err(_) => return self.end(),
                }
            }
        }
    }

    fn obey(&mut self, message: ToGuard, mut files: Vec<OwnedFd>) -> io::Result<()> {
        match (message, files.pop()) {
            (ToGuard::Shepherd { id }, Some(socket)) => self.make_shepherd(id, socket),
            (ToGuard::Settle { id }, Some(file)) => {
                self.settling.push((id, file));
                Ok(())
            }
            (ToGuard::Hello | ToGuard::Shepherd { .. } | ToGuard::Settle { .. }, _) => Ok(()),
        }
    }

    /// The worker sees a failure by the end of the socket.
    fn make_shepherd(&mut self, id: u64, socket: OwnedFd) -> io::Result<()> {
        // SAFETY: plain call.
        let guard = unsafe { libc::getpid() };
        // SAFETY: there is no other thread, so the copy is a whole process.
        match unsafe { libc::fork() } {
            -1 => eprintln!("shoal: the guard could not make a shepherd: {}", io::Error::last_os_error()),
            0 => {
                let ended = self.be_shepherd(guard, socket);
                if let Err(e) = &ended {
                    eprintln!("shoal: a shepherd of the process runtime ends: {e}");
                }
                // SAFETY: nothing here needs an orderly end.
                unsafe { libc::_exit(i32::from(ended.is_err())) }
            }
            pid => {
                self.shepherds.insert(id, pid);
            }
        }
        Ok(())
    }

    fn be_shepherd(&self, guard: pid_t, socket: OwnedFd) -> io::Result<()> {
        // SAFETY: descriptor 3 is the guard's control socket or unused; either must not stay open here: the worker
        // learns of the guard's end, and a shepherd of the worker's, by the closing of the last copy. The owners of
        // the closed ones live in the guard; here their values are never dropped, as this process leaves by `_exit`.
        let socket = unsafe {
            if socket.as_raw_fd() != 3 && libc::dup3(socket.as_raw_fd(), 3, libc::O_CLOEXEC) < 0 {
                return Err(io::Error::last_os_error());
            }
            std::mem::forget(socket);
            close_all_from(4);
            libc::prctl(libc::PR_SET_NAME, c"shoal-shepherd".as_ptr());
            // Its jobs, one after the other, are in no other job's session.
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(3))
        };
        shepherd::run(&socket, guard, &self.lease)
    }

    /// Takes in what has ended and kills strays. True if there still are some.
    fn reap(&mut self) -> bool {
        let mut reaped = false;
        loop {
            // SAFETY: a null pointer says that the status is of no interest.
            match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
                0 | -1 => break,
                pid => {
                    reaped = true;
                    self.shepherds.retain(|_, shepherd| *shepherd != pid);
                }
            }
        }
        if !reaped && self.settling.is_empty() && !self.strays {
            return false;
        }
        let strays = self.find_strays();
        self.strays = !strays.is_empty();
        if self.strays {
            tree::kill(strays);
        } else {
            let shepherds = &self.shepherds;
            self.settling.retain(|(id, _)| shepherds.contains_key(id));
        }
        self.strays
    }

    fn find_strays(&self) -> Vec<pid_t> {
        // SAFETY: plain call.
        let mut children = tree::children(unsafe { libc::getpid() });
        children.retain(|pid| !self.shepherds.values().any(|shepherd| shepherd == pid));
        children
    }

    /// The worker is gone: waits until every shepherd has killed its job, then leaves.
    fn end(mut self) -> io::Result<()> {
        let patience_ends = clock::now_ns() + PATIENCE_NS;
        loop {
            self.reap();
            let strays = self.find_strays();
            if strays.is_empty() && self.shepherds.is_empty() {
                return Ok(());
            }
            tree::kill(strays);
            if clock::now_ns() > patience_ends {
                for shepherd in self.shepherds.values() {
                    tree::signal(*shepherd, libc::SIGKILL);
                }
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let timeout = if self.shepherds.is_empty() { KILL_AGAIN_MS } else { 100 };
            let _ = poll(&mut fds, PollTimeout::from(timeout));
            signals::drain(&self.signals);
        }
    }
}

/// Moves the control socket away from stdin, and puts `/dev/null` in the place of stdin and stdout.
fn take_stdin() -> io::Result<OwnedFd> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for fd in [0, 1] {
        // SAFETY: both descriptors are open; stdin and stdout are nobody's.
        if unsafe { libc::dup2(nothing.as_raw_fd(), fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(control)
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// Nobody may use, or later close, one of them.
unsafe fn close_all_from(first: u32) {
    // SAFETY: as promised. Kernels before 5.9 have no such call; then one by one.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) < 0 {
            for fd in first as i32..4096 {
                libc::close(fd);
            }
        }
    }
}
