//! What worker, guard and shepherds say to each other: JSON in packets, with open files attached.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::plan::CgroupPlan;
use crate::runtime::clock::memfd;

/// Longest packet, several times that of a usual job; what is longer travels in a memory file. Far below the default
/// send buffer of 208 KiB, and little enough to be received on the stack.
const LONGEST_PACKET: usize = 8 << 10;
/// Stands for a message that is in the attached memory file.
const ELSEWHERE: &[u8] = b"@";
/// Most files attached to one packet: stdin, stdout, stderr and a memory file.
const MOST_FILES: usize = 4;

/// Worker to guard.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToGuard {
    /// First of all, with the file of the lease. Answered by [`READY`].
    Hello,
    /// Make a shepherd, with its end of a socket.
    Shepherd {
        /// Counts up.
        id: u64,
    },
    /// That shepherd is lost: close the attached file once all that it left behind is gone.
    Settle {
        /// As in `Shepherd`.
        id: u64,
    },
}

/// Guard to worker, once.
pub(super) const READY: &str = "ready";

/// Worker to shepherd.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToShepherd {
    /// Start a job, with stdin (if any), stdout and stderr. Only to an idle one.
    Run(Box<Run>),
    /// End it; a stop that comes too late is ignored, as are the others.
    Stop {
        /// From the polite signal to the kill.
        grace_ns: u64,
    },
    /// Halt it.
    Pause,
    /// Let it go on.
    Resume,
    /// Tell what it uses.
    Stats,
}

/// One job, with every decision taken.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Run {
    /// Where the program may be, in order.
    pub(super) candidates: Vec<String>,
    /// Its arguments, its name first.
    pub(super) argv: Vec<String>,
    /// The environment as `NAME=value`.
    pub(super) env: Vec<String>,
    /// Working directory.
    pub(super) folder: String,
    /// Whether a file for stdin is attached; else it is empty.
    pub(super) stdin: bool,
    /// Dead-man's switch on the monotonic clock.
    pub(super) alive_until_ns: Option<u64>,
    /// Bound by `RLIMIT_AS`.
    pub(super) address_space: Option<u64>,
    /// Bound by `RLIMIT_NPROC`.
    pub(super) processes: Option<u64>,
    /// Forbid setuid programs: we could not kill them.
    pub(super) no_new_privileges: bool,
    /// Its control groups, if it has bounds that need them.
    pub(super) cgroup: Option<CgroupPlan>,
}

/// Shepherd to worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromShepherd {
    /// It runs, and has for a moment; never told of a job that is over sooner.
    Started,
    /// It does not, and nothing is left of it.
    Failed {
        /// Where it went wrong.
        step: Step,
        /// What the system said.
        errno: i32,
        /// About what, in a few words.
        what: String,
    },
    /// It and all that it started are gone.
    Ended(Ended),
    /// Answer to `Stats`.
    Stats(Used),
}

/// The steps of a start that can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// Reading the request, making the process.
    Prepare,
    /// Making or entering the control group.
    Cgroup,
    /// Setting an rlimit.
    Rlimit,
    /// Entering the work folder.
    Folder,
    /// No candidate exists.
    Find,
    /// A candidate exists but did not execute.
    Execute,
}

/// The end of a job.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Exit code of the main process.
    pub(super) code: Option<i32>,
    /// Or the signal that ended it.
    pub(super) signal: Option<i32>,
    /// See `Exit`.
    pub(super) oom: bool,
    /// See `Exit`.
    pub(super) pids_exceeded: bool,
    /// See `Exit`.
    pub(super) not_kept_alive: bool,
    /// What all of it used.
    pub(super) used: Used,
}

/// What a job used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Used {
    /// Since its start.
    pub(super) wall_ns: u64,
    /// User and system.
    pub(super) cpu_us: u64,
    /// Largest so far.
    pub(super) peak_memory: u64,
}

/// Two connected ends that keep packets apart. Both close on exec.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A message as it travels; made once, so that a send that would block can be tried again.
pub(super) struct Packet {
    bytes: Vec<u8>,
    body: Option<OwnedFd>,
}

impl Packet {
    /// Encodes `message`.
    pub(super) fn new(message: &impl Serialize) -> io::Result<Self> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() <= LONGEST_PACKET {
            return Ok(Self { bytes, body: None });
        }
        let mut file = std::fs::File::from(memfd(c"shoal-message")?);
        file.write_all(&bytes)?;
        file.rewind()?;
        Ok(Self { bytes: ELSEWHERE.to_vec(), body: Some(file.into()) })
    }

    /// Sends it with `files`. Never raises SIGPIPE.
    pub(super) fn send(&self, socket: impl AsFd, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let attached = files.iter().copied().chain(self.body.iter().map(AsFd::as_fd));
        let fds: Vec<RawFd> = attached.map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[] } else { &rights[..] };
        let bytes = [IoSlice::new(&self.bytes)];
        sendmsg::<()>(socket.as_fd().as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}

/// Encodes and sends.
pub(super) fn send(socket: impl AsFd, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    Packet::new(message)?.send(socket, files)
}

/// Receives one message and the files attached to it; `None` once the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = [0_u8; LONGEST_PACKET];
    let mut control = nix::cmsg_space!([RawFd; MOST_FILES]);
    let mut files = Vec::new();
    let length = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags) {
            // Closed with words of ours unread.
            Err(Errno::ECONNRESET) => return Ok(None),
            received => received?,
        };
        for attached in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = attached {
                // SAFETY: the kernel has just opened them for us, and nobody else knows them.
                files.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    if length == 0 {
        return Ok(None);
    }
    let message = &buffer[..length];
    if message == ELSEWHERE {
        let body = files.pop().ok_or(io::ErrorKind::InvalidData)?;
        let mut message = Vec::new();
        std::fs::File::from(body).read_to_end(&mut message)?;
        return Ok(Some((serde_json::from_slice(&message)?, files)));
    }
    Ok(Some((serde_json::from_slice(message)?, files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_any_size_arrives_with_its_files() {
        let (here, there) = pair().unwrap();
        for size in [1, LONGEST_PACKET, 3 << 20] {
            let text = "x".repeat(size);
            let file = memfd(c"attached").unwrap();
            send(&here, &text, &[file.as_fd()]).unwrap();
            let (read, files) = receive::<String>(&there).unwrap().unwrap();
            assert_eq!((read == text, files.len()), (true, 1));
        }
        drop(here);
        assert!(receive::<String>(&there).unwrap().is_none());
    }
}
