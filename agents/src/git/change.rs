//! The change: what differs between a commit and a work tree, path by path, and what of it may leave the worker.
//!
//! Never `git add .`: the paths are listed first (what the repository ignores is none of them), looked at, and only then
//! read, into an index and objects of the slot's own. Commits that an agent made count by their content. Nothing else may
//! work in the tree meanwhile: the job's commands have ended.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use schemas::transcript::ChangeReport;

use super::repo::Repo;
use super::{Commit, GitError};

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

/// Names the secret that is in the bytes, if there is one.
pub type Scan<'a> = &'a (dyn Fn(&[u8]) -> Option<String> + Send + Sync);

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

fn refused<T>(path: &[u8], why: impl std::fmt::Display) -> Result<T, GitError> {
    Err(GitError::ChangeRefused(format!("{}: {why}", shown(path))))
}

impl Repo {
    /// Reads the tree against `base`, of which `index` is the index. The new index is left as `new_index`.
    pub(crate) async fn change(
        &self,
        work: &Path,
        base: &Commit,
        index: &Path,
        new_index: &Path,
        bounds: &Bounds,
        scan: Scan<'_>,
    ) -> Result<Change, GitError> {
        let folder = |error: std::io::Error| GitError::Failed { what: "index".to_owned(), message: error.to_string() };
        tokio::fs::copy(index, new_index).await.map_err(folder)?;
        let touched = self.touched(work, new_index, bounds).await?;
        // What is gone goes first, and by name alone: a link may stand where its folder was.
        let gone = touched.gone.iter().flat_map(|path| [b"0 ", NONE, b"\t", path, b"\0"]).flatten().copied().collect();
        let there = touched.there.iter().flat_map(|path| [path.as_slice(), b"\0"]).flatten().copied().collect();
        for (args, list) in [
            (&["update-index", "-z", "--index-info"][..], gone),
            (&["update-index", "--add", "--remove", "--replace", "-z", "--stdin"][..], there),
        ] {
            let list: Vec<u8> = list;
            if list.is_empty() {
                continue;
            }
            let output = self.call().tree(work).index(new_index).args(args).stdin(list).run().await?;
            if !output.status.success() {
                return Err(match output.error("update-index") {
                    GitError::Failed { message, .. } => GitError::ChangeRefused(message),
                    other => other,
                });
            }
        }
        let tree = self.parse(self.call().index(new_index).args(["write-tree"]).text().await?)?;
        let change = self.between(base, &tree).await?;
        self.check(&change, bounds, scan).await?;
        Ok(change)
    }

    /// The paths that are not as the index has them: sorted, each looked at without following links.
    async fn touched(&self, work: &Path, index: &Path, bounds: &Bounds) -> Result<Touched, GitError> {
        let call = || self.call().tree(work).index(index);
        let others = call().args(["ls-files", "-z", "--others", "--exclude-standard"]).ok().await?;
        // A folder that git cannot look into is only warned of, and would be missing in silence.
        if let Some(line) = others.stderr.lines().find(|line| line.contains("could not open directory")) {
            return Err(GitError::ChangeRefused(line.trim_start_matches("warning: ").to_owned()));
        }
        // What was only touched (a formatter, a checkout of the job's own) is no change. Its code says that some are.
        call().args(["update-index", "-q", "--refresh", "--ignore-submodules"]).run().await?;
        let args = ["diff-files", "-z", "--raw", "--no-renames", "--no-ext-diff", "--ignore-submodules=all"];
        let known = call().args(args).ok().await?;
        let known = raw(&known.stdout);
        let count = others.pieces().count() + known.len();
        if count > bounds.files {
            return Err(GitError::ChangeRefused(format!("{count} files changed, of at most {}", bounds.files)));
        }
        let mut touched = Touched::default();
        let mut all = 0;
        let listed =
            known.iter().map(|entry| (entry.path, Some(entry))).chain(others.pieces().map(|path| (path, None)));
        for (path, old) in listed {
            if path.ends_with(b"/") {
                return refused(path, "another repository; a submodule is not added by a job");
            }
            let dotted = |part: &[u8]| part.eq_ignore_ascii_case(b".git") || part.eq_ignore_ascii_case(b"git~1");
            if path.split(|byte| *byte == b'/').any(dotted) {
                return refused(path, "a path inside of `.git`");
            }
            if old.is_some_and(|entry| entry.status == b'D') {
                touched.gone.insert(path.to_vec());
                continue;
            }
            match work.join(OsStr::from_bytes(path)).symlink_metadata() {
                Ok(found) => {
                    let kind = found.file_type();
                    if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
                        return refused(path, "neither a file nor a link");
                    }
                    // A folder in a file's place: the files in it are listed themselves.
                    if kind.is_file() {
                        all += found.len();
                        if found.len() > bounds.file_bytes {
                            return refused(path, format!("{} bytes, of at most {}", found.len(), bounds.file_bytes));
                        }
                    }
                }
                Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => {}
                Err(error) => return refused(path, error),
            }
            if all > bounds.all_bytes {
                return Err(GitError::ChangeRefused(format!("more than {} bytes in all", bounds.all_bytes)));
            }
            touched.there.insert(path.to_vec());
        }
        Ok(touched)
    }

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

    /// Whether it may leave the worker.
    async fn check(&self, change: &Change, bounds: &Bounds, scan: Scan<'_>) -> Result<(), GitError> {
        let there: Vec<&Changed> = change.files.iter().filter(|file| file.how != How::Deleted).collect();
        for file in &there {
            let path = file.path.as_os_str().as_bytes();
            if file.kind == Kind::Submodule {
                return refused(path, "another repository; a submodule is not added by a job");
            }
            if file.how == How::Added
                && let Some(name) = scan(path)
            {
                let why = format!("the name of a file has the secret {name} in it");
                return Err(GitError::ChangeRefused(why));
            }
        }
        let most = usize::try_from(bounds.all_bytes).unwrap_or(usize::MAX).saturating_add(64 << 20);
        for some in there.chunks(100) {
            let list: String = some.iter().filter_map(|file| Some(format!("{}\n", file.object.as_ref()?))).collect();
            let output = self.call().args(["cat-file", "--batch"]).stdin(list.into_bytes()).most(most).ok().await?;
            let mut rest = output.stdout.as_slice();
            for file in some {
                let (content, more) = batched(rest)
                    .ok_or_else(|| GitError::Corrupt(format!("{}: its content is missing", file.path.display())))?;
                rest = more;
                if let Some(name) = scan(content)
                    && !self.had(change, &file.path, bounds, scan, &name).await?
                {
                    return refused(file.path.as_os_str().as_bytes(), format!("the secret {name} is in it"));
                }
            }
        }
        Ok(())
    }

    /// Whether the secret was in the file before: then this change does not bring it out.
    async fn had(
        &self,
        change: &Change,
        path: &Path,
        bounds: &Bounds,
        scan: Scan<'_>,
        name: &str,
    ) -> Result<bool, GitError> {
        let object = [change.base.as_str().as_bytes(), b":", path.as_os_str().as_bytes()].concat();
        let args = [OsStr::new("cat-file"), OsStr::new("blob"), OsStr::from_bytes(&object)];
        let most = usize::try_from(bounds.all_bytes).unwrap_or(usize::MAX);
        let old = self.call().args(args).most(most).run().await?;
        Ok(old.status.success() && scan(&old.stdout).as_deref() == Some(name))
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

/// No object.
const NONE: &[u8] = &[b'0'; 40];

/// Paths that are not as an index has them.
#[derive(Default)]
struct Touched {
    there: BTreeSet<Vec<u8>>,
    gone: BTreeSet<Vec<u8>>,
}

struct Raw<'a> {
    old_mode: &'a str,
    new_mode: &'a str,
    old: &'a str,
    new: &'a str,
    status: u8,
    path: &'a [u8],
}

/// The first object of `cat-file --batch`, and what comes behind it.
fn batched(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = bytes.iter().position(|byte| *byte == b'\n')?;
    let size: usize = std::str::from_utf8(&bytes[..line]).ok()?.rsplit(' ').next()?.parse().ok()?;
    let rest = &bytes[line + 1..];
    Some((rest.get(..size)?, rest.get(size + 1..)?))
}

/// `:100644 100644 <old> <new> M\0<path>\0`, again and again.
fn raw(bytes: &[u8]) -> Vec<Raw<'_>> {
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
