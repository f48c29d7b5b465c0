//! The output of what outlives its worker: a file that its shim appends to, followed while somebody listens. What has been
//! read takes no room any more: the file keeps its length, and the disk gets the blocks back.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio_util::sync::CancellationToken;

/// Held of a stream while nobody reads.
pub(super) const HELD: usize = 64 << 10;
/// Read at once.
const PIECE: usize = 64 << 10;
/// Of what it wrote at last, for an error.
const LAST_WORDS: u64 = 400;
/// How long the shim may take to hand on the last of what was written.
const LATEST: Duration = Duration::from_millis(200);

/// One file, from some place on.
pub(super) struct Tail {
    file: File,
    at: u64,
    changes: AsyncFd<Changes>,
}

/// Tells of every write to one file.
struct Changes(Inotify);

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Tail {
    /// From its beginning, or from now on.
    pub(super) fn open(path: &str, from_start: bool) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
        // SAFETY: the descriptor is the value's own, and open as long as that lives.
        let changes = unsafe { AsyncFd::register(Changes(inotify)) }?;
        let mut tail = Self { file, at: 0, changes };
        if !from_start {
            let end = tail.file.metadata()?.len();
            tail.free(end);
        }
        Ok(tail)
    }

    /// Everything up to `end` has been read.
    fn free(&mut self, end: u64) {
        let (from, size) = (self.at as libc::off_t, (end - self.at) as libc::off_t);
        self.at = end;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // A file system without holes keeps it all.
        if size > 0
            && let Err(error) = fallocate(&self.file, flags, from, size)
        {
            tracing::trace!(%error, "what was read of a log stays");
        }
    }

    /// Hands on all that comes, until `gone` is told and all is read. Who listens no more ends it.
    pub(super) async fn follow(mut self, mut to: DuplexStream, gone: &CancellationToken) {
        let mut bytes = vec![0; PIECE];
        let mut is_last = false;
        loop {
            match self.file.read_at(&mut bytes, self.at) {
                Ok(0) if is_last => return,
                Ok(0) => {}
                Ok(read) => {
                    if to.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                    self.free(self.at + read as u64);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "an instance's output cannot be read");
                    return;
                }
            }
            tokio::select! {
                () = self.changed() => {}
                () = gone.cancelled() => {
                    // Its shim hands on what it has; then there is no more.
                    let _ = tokio::time::timeout(LATEST, self.changed()).await;
                    is_last = true;
                }
            }
        }
    }

    /// Completes after a write that was not told of yet. Cancel safe.
    async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.changes.readable().await else { return std::future::pending().await };
            match self.changes.get_ref().0.read_events() {
                Ok(_) => return,
                Err(_) => ready.clear_ready(),
            }
        }
    }
}

/// The end of what a file holds, in one line.
pub(super) fn last_words(path: &str) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(end.saturating_sub(LAST_WORDS)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn what_is_appended_is_heard_and_takes_no_room_once_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log").to_str().unwrap().to_owned();
        let mut writer = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let first = "x".repeat(1 << 20);
        write!(writer, "{first}").unwrap();
        let (end, mut start) = tokio::io::duplex(HELD);
        let gone = CancellationToken::new();
        let tail = Tail::open(&path, true).unwrap();
        let hearing = async {
            let mut all = vec![0; first.len()];
            start.read_exact(&mut all).await.unwrap();
            write!(writer, "more").unwrap();
            let mut more = [0; 4];
            start.read_exact(&mut more).await.unwrap();
            gone.cancel();
            let mut rest = Vec::new();
            start.read_to_end(&mut rest).await.unwrap();
            (more, rest)
        };
        let ((), (more, rest)) = tokio::join!(tail.follow(end, &gone), hearing);
        assert_eq!((&more[..], &rest[..]), (&b"more"[..], &b""[..]));
        let about = std::fs::metadata(&path).unwrap();
        assert_eq!(about.len(), (1 << 20) + 4, "who appends finds the same end");
        use std::os::unix::fs::MetadataExt;
        assert!(about.blocks() * 512 < 1 << 19, "{} blocks", about.blocks());
    }

    #[tokio::test]
    async fn from_now_on_is_without_what_was_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log").to_str().unwrap().to_owned();
        std::fs::write(&path, "before").unwrap();
        let (end, mut start) = tokio::io::duplex(HELD);
        let (tail, gone) = (Tail::open(&path, false).unwrap(), CancellationToken::new());
        let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        write!(writer, "after").unwrap();
        gone.cancel();
        let mut heard = String::new();
        let ((), read) = tokio::join!(tail.follow(end, &gone), start.read_to_string(&mut heard));
        read.unwrap();
        assert_eq!(heard, "after");
    }
}
