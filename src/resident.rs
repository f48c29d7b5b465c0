//! What a role keeps in memory. Reading arguments, connecting and setting up touch most of this program's code and tables,
//! once: two thirds of what an idle role has resident. They are let go when that is done.

use std::time::Duration;

/// A role that was ready for so long does what it will go on doing.
const SETTLED: Duration = Duration::from_secs(5);

/// Keeps huge pages from this process: where the system gives them to everybody, an allocator that touches a little of
/// each of its regions would hold twice as much. What it starts inherits that; guards, from which jobs come, undo it.
pub fn keep_pages_small(small: bool) {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_thp_disable(small);
    #[cfg(not(target_os = "linux"))]
    let _ = small;
}

/// Lets go of what only starting needed, a moment after the role is ready. What is still wanted comes back from
/// the page cache, at a few hundred cheap faults. Cancel safe.
pub async fn settle() {
    tokio::time::sleep(SETTLED).await;
    let mappings = let_go();
    tracing::debug!(mappings, "what only starting needed let go");
}

/// Drops the pages of this program's code and constants; the number of mappings that this was done for.
#[cfg(target_os = "linux")]
fn let_go() -> usize {
    use std::ptr::NonNull;

    use nix::sys::mman::{MmapAdvise, madvise};

    let own = std::env::current_exe().ok();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let constant = maps.lines().filter_map(|line| constant(line, own.as_deref()?.to_str()?));
    let drop = |(start, length): (usize, usize)| {
        let start = NonNull::new(start as *mut std::ffi::c_void)?;
        // SAFETY: the pages are a private mapping of a file, and nothing in this process ever wrote to them, so what comes
        // back at the next touch is what was there.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }.ok()
    };
    constant.filter_map(drop).count()
}

#[cfg(not(target_os = "linux"))]
fn let_go() -> usize {
    0
}

/// Start and length of a mapping of `own` that was never written: `start-end rights offset device inode path`. That is
/// code, and what begins the file: headers, constants, tables. Data that the loader relocates is read-only as well once it
/// is done, but neither executable nor first.
#[cfg(target_os = "linux")]
fn constant(line: &str, own: &str) -> Option<(usize, usize)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let (rights, offset) = (fields.next()?, fields.next()?);
    let is_constant = rights == "r-xp" || (rights == "r--p" && offset == "00000000");
    if !is_constant || fields.nth(2)?.trim() != own {
        return None;
    }
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_is_let_go() {
        let own = "/usr/bin/shoal";
        let line = |rights, offset, path| {
            constant(&format!("55dd2e5cc000-55dd2f75f000 {rights} {offset} fe:00 10051593    {path}"), own)
        };
        let all = Some((0x55dd_2e5c_c000, 0x0119_3000));
        assert_eq!(line("r-xp", "004d0000", own), all);
        assert_eq!(line("r--p", "00000000", own), all);
        assert_eq!(line("r--p", "01664000", own), None, "relocated");
        for (rights, path) in [("rw-p", own), ("rwxp", own), ("r-xs", own), ("r-xp", "/lib/libc.so.6")] {
            assert_eq!(line(rights, "00000000", path), None, "{rights} {path}");
        }
        assert_eq!(constant("7ffe-7fff r-xp 0 00:00 0", own), None);
    }

    #[test]
    fn a_program_runs_on_without_what_it_let_go() {
        assert!(let_go() >= 2);
        assert_eq!(format!("{:?}", serde_json::json!({"still": ["here", 1.5]})["still"][1].as_f64()), "Some(1.5)");
    }
}
