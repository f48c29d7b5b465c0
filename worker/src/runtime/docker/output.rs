//! What a container writes, taken apart into two pipes that hold it back when nobody reads; and what it reads.

use std::pin::Pin;
use std::time::Duration;

use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_util::sync::CancellationToken;

use crate::runtime::Started;

/// Held of each stream while nobody reads.
const HELD: usize = 64 << 10;
/// How long the engine may keep a stream open after the end of the container.
const LATEST: Duration = Duration::from_secs(5);

/// The writing ends of both pipes; dropped, their readers see the end.
pub(super) struct Output {
    stdout: DuplexStream,
    stderr: DuplexStream,
}

/// How one connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// The engine closed it, or it broke.
    Over,
    /// The container is gone and the engine kept it open all the same.
    Cut,
}

/// Both pipes.
pub(super) fn pipes() -> (Started, Output) {
    let (stdout_end, stdout) = tokio::io::duplex(HELD);
    let (stderr_end, stderr) = tokio::io::duplex(HELD);
    let ran = Duration::ZERO;
    (
        Started { stdout: Box::new(stdout), stderr: Box::new(stderr), ran },
        Output { stdout: stdout_end, stderr: stderr_end },
    )
}

impl Output {
    /// Carries one connection to its end: the container's output out, `stdin` in. `gone` says that the container is.
    pub(super) async fn carry(
        &mut self,
        attached: AttachContainerResults,
        stdin: Option<String>,
        gone: &CancellationToken,
    ) -> Carried {
        let AttachContainerResults { mut output, mut input } = attached;
        let feeding = feed(&mut input, stdin);
        tokio::pin!(feeding);
        let mut fed = false;
        loop {
            let next = tokio::select! {
                biased;
                next = next(&mut output, gone) => next,
                () = &mut feeding, if !fed => {
                    fed = true;
                    continue;
                }
            };
            let piece = match next {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => {
                    tracing::debug!(%error, "a container's output broke");
                    return Carried::Over;
                }
                Ok(None) => return Carried::Over,
                Err(()) => return Carried::Cut,
            };
            // While it waits for a reader the container is fed all the same: it may need all its input before it ends.
            let writing = self.write(piece);
            tokio::pin!(writing);
            loop {
                tokio::select! {
                    biased;
                    () = &mut writing => break,
                    () = &mut feeding, if !fed => fed = true,
                }
            }
        }
    }

    pub(super) async fn write(&mut self, piece: LogOutput) {
        let (to, bytes) = match piece {
            LogOutput::StdErr { message } => (&mut self.stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => (&mut self.stdout, message),
            LogOutput::StdIn { .. } => return,
        };
        // Nobody reads any more; the container must be able to go on.
        let _ = to.write_all(&bytes).await;
    }
}

type Pieces = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;

/// The next piece; an error when the container is gone and none came for [`LATEST`]. Cancel safe.
async fn next(output: &mut Pieces, gone: &CancellationToken) -> Result<Option<Result<LogOutput, Error>>, ()> {
    let too_late = async {
        gone.cancelled().await;
        tokio::time::sleep(LATEST).await;
    };
    tokio::select! {
        biased;
        next = output.next() => Ok(next),
        () = too_late => Err(()),
    }
}

/// Writes all of it and says that there is no more.
async fn feed(input: &mut Pin<Box<dyn AsyncWrite + Send>>, stdin: Option<String>) {
    let Some(stdin) = stdin else { return };
    // A container need not read.
    if input.write_all(stdin.as_bytes()).await.is_ok() {
        let _ = input.shutdown().await;
    }
}
