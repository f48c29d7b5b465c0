//! The change: what differs between a commit and a work tree, path by path.
//!
//! Never `git add .`: the paths are listed first (what the repository ignores is none of them), looked at, and only then
//! read, into an index and objects of the slot's own. Commits that an agent made count by their content. Nothing else may
//! work in the tree meanwhile: the job's commands have ended.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use schemas::transcript::ChangeReport;

use super::repo::Repo;
use super::{Commit, GitError};
use crate::secret::Found;

/// What a change may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all its files.
    pub all_bytes: u64,
    /// Files.
    pub files: usize,
    /// Bytes of its patch.
    pub patch_bytes: usize,
}

impl Default for Bounds {
    /// 50 MiB a file, 200 MiB and 5,000 files in all, 256 MiB of patch.
    fn default() -> Self {
        Self { file_bytes: 50 << 20, all_bytes: 200 << 20, files: 5_000, patch_bytes: 256 << 20 }
    }
}

/// Names the secrets that are in the bytes.
pub type Scan<'a> = &'a (dyn Fn(&[u8]) -> BTreeSet<Found> + Send + Sync);

/// What differs between a commit and a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The commit that it is a change of.
    pub base: Commit,
    /// The new tree.
    pub tree: Commit,
    /// Each path, sorted.
    pub files: Vec<Changed>,
    /// Counted.
    pub report: ChangeReport,
}

impl Change {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Below the tree's root; any bytes but zero.
    pub path: PathBuf,
    /// How.
    pub how: How,
    /// What it is now, or was.
    pub kind: Kind,
    /// Lines added and removed; `None` where it is no text.
    pub lines: Option<(u64, u64)>,
    /// The object that its content is; `None` where it is gone.
    pub object: Option<Commit>,
}

/// How a path changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is new.
    Added,
    /// Other content.
    Modified,
    /// The same content, but it may be executed now, or no more.
    Mode,
    /// A file became a link, or a link a file.
    Kind,
    /// It is gone.
    Deleted,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// One that may be executed.
    Executable,
    /// A symbolic link, to anywhere.
    Link,
    /// A commit of another repository.
    Submodule,
}

impl Kind {
    fn of(mode: &str) -> Self {
        match mode {
            "100755" => Self::Executable,
            "120000" => Self::Link,
            "160000" => Self::Submodule,
            _ => Self::File,
        }
    }
}

/// A path for people: quoted where it is odd.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    match text.contains(|c: char| c.is_control() || c == '"' || c == char::REPLACEMENT_CHARACTER) {
        true => format!("{text:?}"),
        false => text.into_owned(),
    }
}

/// Copies an index with its time: git looks into a file whose size and times are as they were only where it may have been
/// changed in the very second in which the index was written. A younger index would hide such a change.
pub(crate) async fn copy_index(from: &Path, to: &Path) -> std::io::Result<()> {
    tokio::fs::copy(from, to).await?;
    keep_time(from, to)
}

/// The time part of [`copy_index`].
pub(crate) fn keep_time(from: &Path, to: &Path) -> std::io::Result<()> {
    let written = std::fs::metadata(from)?.modified()?;
    std::fs::File::options().write(true).open(to)?.set_modified(written)
}

impl Repo {
    /// What differs between a commit and a tree.
    pub(crate) async fn between(&self, base: &Commit, tree: &Commit) -> Result<Change, GitError> {
        let diff = |how: &[&str]| {
            let args = ["diff-tree", "-r", "-z", "--no-renames", "--no-ext-diff", "--no-textconv", "--full-index"];
            self.call().args(args).args(how).args([base.as_str(), tree.as_str()])
        };
        let (listed, counted) = (diff(&["--raw"]).ok().await?, diff(&["--numstat"]).ok().await?);
        let counts: std::collections::HashMap<&[u8], Option<(u64, u64)>> = counted
            .pieces()
            .filter_map(|line| {
                let mut parts = line.splitn(3, |byte| *byte == b'\t');
                let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
                let lines = number().zip(number());
                Some((parts.next()?, lines))
            })
            .collect();
        let mut report = ChangeReport::default();
        let mut files = Vec::new();
        for entry in raw(&listed.stdout) {
            let how = match entry.status {
                b'A' => How::Added,
                b'D' => How::Deleted,
                b'T' => How::Kind,
                _ if entry.old == entry.new => How::Mode,
                _ => How::Modified,
            };
            let lines = counts.get(entry.path).copied().flatten();
            let (insertions, deletions) = lines.unwrap_or_default();
            report.files += 1;
            report.insertions += insertions;
            report.deletions += deletions;
            let kind = Kind::of(if how == How::Deleted { entry.old_mode } else { entry.new_mode });
            let path = OsStr::from_bytes(entry.path).into();
            files.push(Changed { path, how, kind, lines, object: Commit::parse(entry.new) });
        }
        Ok(Change { base: base.clone(), tree: tree.clone(), files, report })
    }

    /// The change as a patch that `git apply` takes, whatever the files are.
    pub(crate) async fn patch(&self, change: &Change, bounds: &Bounds) -> Result<Vec<u8>, GitError> {
        let args = [
            "diff-tree",
            "-p",
            "--binary",
            "--full-index",
            "--no-renames",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
        ];
        let call = self.call().args(args).args([change.base.as_str(), change.tree.as_str()]);
        Ok(call.most(bounds.patch_bytes).ok().await?.stdout)
    }

    /// The tree that a patch makes of the commit that it was made of.
    pub(crate) async fn patched(&self, base: &Commit, patch: &[u8], index: &Path) -> Result<Commit, GitError> {
        let call = || self.call().index(index);
        call().args(["read-tree", base.as_str()]).ok().await?;
        if !patch.is_empty() {
            let args = ["apply", "--cached", "--binary", "--whitespace=nowarn", "-"];
            call().args(args).stdin(patch.to_vec()).ok().await?;
        }
        self.parse(call().args(["write-tree"]).text().await?)
    }
}

/// One entry of `--raw`.
pub(super) struct Raw<'a> {
    pub(super) old_mode: &'a str,
    pub(super) new_mode: &'a str,
    pub(super) old: &'a str,
    pub(super) new: &'a str,
    pub(super) status: u8,
    pub(super) path: &'a [u8],
}

/// `:100644 100644 <old> <new> M\0<path>\0`, again and again.
pub(super) fn raw(bytes: &[u8]) -> Vec<Raw<'_>> {
    let mut entries = Vec::new();
    let mut pieces = bytes.split(|byte| *byte == 0);
    while let (Some(head), Some(path)) = (pieces.next(), pieces.next()) {
        let Ok(head) = std::str::from_utf8(head) else { continue };
        let mut parts = head.trim_start_matches(':').split(' ');
        let mut part = || parts.next().unwrap_or_default();
        let (old_mode, new_mode, old, new, status) = (part(), part(), part(), part(), part());
        let status = status.bytes().next().unwrap_or_default();
        entries.push(Raw { old_mode, new_mode, old, new, status, path });
    }
    entries
}
