//! Signals as something to read. Guard and shepherds block them all: none can end them but SIGKILL, and no handler
//! ever runs.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Blocks every signal that can be blocked.
pub(super) fn block_all() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

/// A file that is readable when one of `numbers` has come.
pub(super) fn follow(numbers: &[i32]) -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for number in numbers {
        set.add(Signal::try_from(*number)?);
    }
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Forgets what has come: whoever is woken looks for himself what happened. Of each of the few that are followed at most
/// one waits, so one read takes them all; what comes later makes the file readable again.
pub(super) fn drain(signals: &SignalFd) {
    let mut heard = [0_u8; 4 * size_of::<libc::signalfd_siginfo>()];
    let _ = nix::unistd::read(signals, &mut heard);
}
