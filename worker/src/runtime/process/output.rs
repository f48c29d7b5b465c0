//! The output of a job: a pipe that is watched only once somebody has to wait for it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

/// Most that is read at once before it is watched.
const FIRST: usize = 4 << 10;

/// A pipe: our end of it, and the job's.
pub(super) fn output() -> io::Result<(Output, OwnedFd)> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((Output::Unwatched(Some(ours)), theirs))
}

/// Our end. What a short job wrote is all there when it is looked at, and then no reactor needs to know of it.
pub(super) enum Output {
    /// Never empty so far; `None` only within one call.
    Unwatched(Option<OwnedFd>),
    /// By tokio's reactor.
    Watched(pipe::Receiver),
}

impl AsyncRead for Output {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Self::Unwatched(ours) = &mut *self {
            let Some(file) = ours else { return Poll::Ready(Ok(())) };
            let room = buffer.remaining().min(FIRST);
            match nix::unistd::read(&*file, buffer.initialize_unfilled_to(room)) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            if let Some(file) = ours.take() {
                *self = Self::Watched(pipe::Receiver::from_owned_fd_unchecked(file)?);
            }
        }
        match &mut *self {
            Self::Watched(watched) => {
                ready!(Pin::new(watched).poll_read(cx, buffer))?;
                Poll::Ready(Ok(()))
            }
            Self::Unwatched(_) => Poll::Ready(Ok(())),
        }
    }
}
