//! The worker's ends: of the guard, and of a shepherd.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use super::wire::{self, FromShepherd, Packet, ToGuard, ToShepherd};
use super::{ProcessConfig, ProcessRuntimeError};

/// How long a guard may take to say that it is ready. Only a loaded machine needs more than milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running guard. It ends, and kills everything, when this is dropped.
pub(super) struct Guard {
    socket: Socket,
    child: Child,
    next_id: AtomicU64,
}

impl Guard {
    /// Starts one and waits until it is ready.
    pub(super) async fn start(config: &ProcessConfig, lease: &OwnedFd) -> Result<Self, ProcessRuntimeError> {
        let command = &config.guard;
        let error = |source| ProcessRuntimeError::Guard { program: command.program.clone(), source };
        let ready = async {
            let (here, there) = wire::pair()?;
            let child = Command::new(&command.program)
                .arg0("shoal-guard")
                .args(&command.args)
                .env_clear()
                .envs(std::env::vars_os().filter(|(name, _)| name == "LD_LIBRARY_PATH"))
                .stdin(Stdio::from(there))
                .stdout(Stdio::null())
                .spawn()?;
            let socket = Socket::new(here)?;
            let files: Vec<_> = [Some(lease), config.lock.as_deref()].into_iter().flatten().map(AsFd::as_fd).collect();
            socket.send(&Packet::new(&ToGuard::Hello)?, &files).await?;
            match socket.receive::<String>().await? {
                Some(word) if word == wire::READY => {}
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => return Err(io::Error::other("it ended at once; does the program call `guard_main`?")),
            }
            Ok(Self { socket, child, next_id: AtomicU64::new(0) })
        };
        match tokio::time::timeout(READY_WITHIN, ready).await {
            Ok(guard) => guard.map_err(error),
            Err(_) => Err(error(io::Error::other("it does not answer; does the program call `guard_main`?"))),
        }
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        self.socket.is_open()
    }

    /// A new shepherd. Cheap and without a wait: it comes up while its first message is under way.
    pub(super) fn shepherd(self: &Arc<Self>) -> io::Result<Shepherd> {
        let (here, there) = wire::pair()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        wire::send(&self.socket.inner, &ToGuard::Shepherd { id }, &[there.as_fd()])?;
        Ok(Shepherd { socket: Socket::new(here)?, guard: Arc::clone(self), id })
    }

    /// Waits until it is gone, and with it everything that it guards.
    pub(super) async fn end(self) {
        let Self { socket, mut child, .. } = self;
        drop(socket);
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, "could not wait for the guard of the process runtime");
        }
    }
}

/// One shepherd. It kills its job and ends when this is dropped.
pub(super) struct Shepherd {
    socket: Socket,
    guard: Arc<Guard>,
    id: u64,
}

impl Shepherd {
    /// Whether it can take a job.
    pub(super) fn is_alive(&self) -> bool {
        self.socket.is_open()
    }

    /// Tells it something. Cancel safe: told whole or not at all.
    pub(super) async fn tell(&self, message: &ToShepherd, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket.send(&Packet::new(message)?, files).await
    }

    /// What it says next; `None` once it is gone. Cancel safe.
    pub(super) async fn hear(&self) -> io::Result<Option<FromShepherd>> {
        self.socket.receive().await
    }

    /// Ends it, and waits until nothing is left of it and of its job.
    pub(super) async fn settle(self) {
        let Self { socket, guard, id } = self;
        // Should it be alive after all, this ends it.
        drop(socket);
        let settled = async {
            let (here, there) = wire::pair()?;
            let packet = Packet::new(&ToGuard::Settle { id })?;
            guard.socket.send(&packet, &[there.as_fd()]).await?;
            drop(there);
            Socket::new(here)?.receive::<()>().await
        };
        // A guard that is gone too has nothing to tell.
        if let Err(error) = settled.await {
            tracing::debug!(%error, "the guard does not settle");
        }
    }
}

/// A packet socket under tokio's eyes: its datagram socket fits, as both are read and written packet by packet.
struct Socket {
    inner: UnixDatagram,
}

impl Socket {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let inner = std::os::unix::net::UnixDatagram::from(fd);
        inner.set_nonblocking(true)?;
        Ok(Self { inner: UnixDatagram::from_std(inner)? })
    }

    async fn send(&self, packet: &Packet, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.inner.async_io(Interest::WRITABLE, || packet.send(&self.inner, files)).await
    }

    async fn receive<T: serde::de::DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let received = self.inner.async_io(Interest::READABLE, || wire::receive(&self.inner)).await;
        Ok(received?.map(|(message, _)| message))
    }

    fn is_open(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let peeked = recv(self.inner.as_raw_fd(), &mut [0], flags);
        matches!(peeked, Err(Errno::EAGAIN | Errno::EINTR) | Ok(1..))
    }
}
