//! JUnit files that a test run wrote into the workspace. The workspace may be hostile: no link is followed.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use ignore::WalkBuilder;
use nix::fcntl::OFlag;

use super::{Found, Summary, junit};

/// Most files that are read.
const FILES: usize = 500;
/// Most files that are looked at.
const LOOKED_AT: usize = 200_000;
/// Largest file.
const FILE_BYTES: u64 = 32 << 20;
/// File systems round the time of a change down, by as much as this.
const ROUNDED: Duration = Duration::from_secs(2);

/// What the files say that were written since `began`; nothing if there are none.
pub(super) fn read(tree: &Path, globs: &[String], began: SystemTime) -> Option<Summary> {
    let globs = set(globs)?;
    let mut found = Found::default();
    // Sorted: which names are among the first must not depend on the disk. Ignored by git they mostly are.
    let walk = WalkBuilder::new(tree)
        .standard_filters(false)
        .follow_links(false)
        .max_depth(Some(32))
        .filter_entry(|entry| entry.file_name() != ".git")
        .sort_by_file_name(std::ffi::OsStr::cmp)
        .build();
    let files = walk.take(LOOKED_AT).flatten().filter(|entry| {
        let below = entry.path().strip_prefix(tree).unwrap_or(entry.path());
        entry.file_type().is_some_and(|kind| kind.is_file()) && globs.is_match(below)
    });
    for file in files.take(FILES) {
        if let Some(bytes) = fresh(file.path(), began) {
            junit::read(&bytes, &mut found);
        }
    }
    found.finish()
}

fn set(globs: &[String]) -> Option<GlobSet> {
    if globs.is_empty() {
        return None;
    }
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob).literal_separator(true).build().ok()?);
    }
    set.build().ok()
}

/// All that a command started is gone by now, so nobody swaps folders for links while we look.
fn fresh(path: &Path, began: SystemTime) -> Option<Vec<u8>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let about = file.metadata().ok()?;
    let is_fresh = about.modified().is_ok_and(|changed| changed + ROUNDED >= began);
    if !about.is_file() || !is_fresh || about.len() > FILE_BYTES {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
