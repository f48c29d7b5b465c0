//! Fail points: places between two writes where a test may kill the program, to see that what is half done is
//! finished. Only with the feature `fail-points`; otherwise every call is nothing.

/// Kills this process, as SIGKILL would, if `SHOAL_FAIL_POINT` is `name`, or `name:n` at the n-th time.
#[cfg(feature = "fail-points")]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("SHOAL_FAIL_POINT").ok()?;
        let (name, left) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicU32::new(left.parse().unwrap_or(1))))
    });
    if let Some((wanted, left)) = wanted
        && wanted == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // The signal is on its way; nothing more may be written until it arrives.
        loop {
            std::thread::park();
        }
    }
}

/// Nothing, in every build that is not a test's.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
