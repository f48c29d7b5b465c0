//! The clock that worker and guards share, and the word by which the worker keeps its jobs alive.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes mapped: one page is the least there is.
const PAGE: usize = 4096;
/// The words in use.
const WORDS: usize = 2;

/// Nanoseconds of `CLOCK_MONOTONIC`, the same in every process of the machine.
pub(in crate::runtime) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer; this clock exists everywhere, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `instant` on that clock.
pub(in crate::runtime) fn instant_ns(instant: Instant) -> u64 {
    let now = Instant::now();
    match instant.checked_duration_since(now) {
        Some(ahead) => now_ns().saturating_add(nanos(ahead)),
        None => now_ns().saturating_sub(nanos(now.saturating_duration_since(instant))),
    }
}

/// A duration as nanoseconds; more than 584 years is for ever.
pub(in crate::runtime) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Until when running jobs may live: one word in memory that worker, guard and shepherds share. Keeping a thousand
/// jobs alive is one store, and a worker that is frozen cannot make it. A second word goes the other way.
pub(in crate::runtime) struct Lease {
    words: NonNull<[AtomicU64; WORDS]>,
}

// SAFETY: the words are only touched as atomics, and the mapping lives as long as the value.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

impl Lease {
    /// A new one, and the file by which another process maps the same.
    pub(in crate::runtime) fn create() -> io::Result<(Self, OwnedFd)> {
        let file = memfd(c"shoal-lease")?;
        // SAFETY: plain call on an open file.
        if unsafe { libc::ftruncate(file.as_raw_fd(), PAGE as libc::off_t) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((Self::map(&file)?, file))
    }

    /// The one behind `file`.
    pub(in crate::runtime) fn map(file: &OwnedFd) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(|words| Self { words }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: mapped, aligned to a page, never unmapped before the value is dropped.
        unsafe { self.words.as_ref() }
    }

    /// Jobs may live until then at least.
    pub(in crate::runtime) fn extend(&self, until_ns: u64) {
        self.words()[0].fetch_max(until_ns, Ordering::Relaxed);
    }

    /// Until when jobs may live.
    pub(in crate::runtime) fn until_ns(&self) -> u64 {
        self.words()[0].load(Ordering::Relaxed)
    }
}

/// For a guard that kills for all jobs at once and is asked later whether it did.
impl Lease {
    /// It has been past, and is acted upon now.
    pub(in crate::runtime) fn tell_end(&self) {
        self.words()[1].fetch_add(1, Ordering::SeqCst);
    }

    /// How often that was told.
    pub(in crate::runtime) fn ends(&self) -> u64 {
        self.words()[1].load(Ordering::SeqCst)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, of this size, and nobody else holds the address.
        unsafe { libc::munmap(self.words.as_ptr().cast(), PAGE) };
    }
}

/// A file that lives in memory only.
pub(in crate::runtime) fn memfd(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` ends with a zero byte.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_lease_see_its_latest_word() {
        let (lease, file) = Lease::create().unwrap();
        let other = Lease::map(&file).unwrap();
        lease.extend(7);
        lease.extend(5);
        assert_eq!(other.until_ns(), 7);
        other.tell_end();
        assert_eq!((lease.ends(), lease.until_ns()), (1, 7));
    }

    #[test]
    fn an_instant_is_as_far_away_on_the_shared_clock() {
        let ahead = instant_ns(Instant::now() + Duration::from_secs(60));
        let distance = Duration::from_nanos(ahead - now_ns());
        assert!((Duration::from_secs(59)..=Duration::from_secs(60)).contains(&distance), "{distance:?}");
    }
}
