//! What of a tree may leave the worker: everything that differs from the base, but what is too large, odd, or holds a
//! secret. One such file is no reason to lose the rest: it is left out, and named.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::change::{Bounds, Change, Changed, How, Kind, Scan, copy_index, raw, shown};
use super::repo::Repo;
use super::{Commit, GitError};
use crate::secret::Found;

/// Most that is named of what is left out.
const NAMED: usize = 10;
/// More paths that git itself does not take are not told apart.
const TOLD_APART: usize = 100;

/// A change of which nothing is left that may not leave the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sifted {
    /// Without what is left out.
    pub change: Change,
    /// What is left out, each by its path and why; a name that holds a secret is not told. Not masked.
    pub left_out: Vec<String>,
}

impl Sifted {
    /// All of the change; refused, if something had to be left out.
    pub fn whole(self) -> Result<Change, GitError> {
        match self.left_out() {
            None => Ok(self.change),
            Some(what) => Err(GitError::ChangeRefused(what)),
        }
    }

    /// What is left out, for people; `None` if it is nothing.
    pub fn left_out(&self) -> Option<String> {
        let (all, more) = (&self.left_out, self.left_out.len().saturating_sub(NAMED));
        let named = || all[..all.len() - more].join("; ");
        match more {
            _ if all.is_empty() => None,
            0 => Some(named()),
            more => Some(format!("{}; and {more} more", named())),
        }
    }
}

/// What is left out so far.
struct Refusals<'a> {
    scan: Scan<'a>,
    all: Vec<String>,
}

impl Refusals<'_> {
    fn add(&mut self, path: &[u8], why: impl std::fmt::Display) {
        if !self.hides(path) {
            self.all.push(format!("{}: {why}", shown(path)));
        }
    }

    /// Several, for one reason.
    fn add_all(&mut self, why: String, paths: &[Vec<u8>]) {
        let told: Vec<_> = paths.iter().filter(|path| (self.scan)(path).is_empty()).take(NAMED).collect();
        let names: Vec<_> = told.iter().map(|path| shown(path)).collect();
        let more = paths.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.all.push(format!("{why}: {}{more}", names.join(", ")));
    }

    /// Refused, where the path itself tells a secret.
    fn hides(&mut self, path: &[u8]) -> bool {
        let Some(found) = (self.scan)(path).pop_first() else { return false };
        self.all.push(format!("the name of a file has the secret {} in it", found.name));
        true
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

impl Repo {
    /// Reads the tree against `base`, of which `index` is the index. The new index is left as `new_index`.
    pub(crate) async fn sift(
        &self,
        work: &Path,
        base: &Commit,
        index: &Path,
        new_index: &Path,
        bounds: &Bounds,
        scan: Scan<'_>,
    ) -> Result<Sifted, GitError> {
        let folder = |error: std::io::Error| GitError::Failed { what: "index".to_owned(), message: error.to_string() };
        let mut refusals = Refusals { scan, all: Vec::new() };
        copy_index(index, new_index).await.map_err(folder)?;
        let mut touched = self.touched(work, new_index, bounds, &mut refusals).await?;
        loop {
            // From the base each time: what is left out is as it was there.
            copy_index(index, new_index).await.map_err(folder)?;
            let mut of_git = Refusals { scan, all: Vec::new() };
            self.read(work, new_index, &touched, &mut of_git).await?;
            let tree = self.parse(self.call().index(new_index).args(["write-tree"]).text().await?)?;
            let change = self.between(base, &tree).await?;
            let refused = self.refused(&change, bounds, &mut refusals).await?;
            if refused.is_empty() {
                refusals.all.append(&mut of_git.all);
                return Ok(Sifted { change, left_out: refusals.all });
            }
            for path in refused {
                if !touched.there.remove(&path) {
                    return Err(GitError::ChangeRefused(refusals.all.join("; ")));
                }
            }
        }
    }

    /// Reads what was touched into the index; what git does not take is refused.
    async fn read(
        &self,
        work: &Path,
        index: &Path,
        touched: &Touched,
        refusals: &mut Refusals<'_>,
    ) -> Result<(), GitError> {
        let update = async |args: &[&str], list: Vec<u8>| {
            let output =
                self.call().tree(work).index(index).args(["update-index"]).args(args).stdin(list).run().await?;
            match output.status.success() {
                true => Ok(Ok(output)),
                false => match output.error("update-index") {
                    GitError::Failed { message, .. } => Ok(Err(message)),
                    other => Err(other),
                },
            }
        };
        // What is gone goes first, and by name alone: a link may stand where its folder was.
        let gone: Vec<u8> =
            touched.gone.iter().flat_map(|path| [b"0 ", NONE, b"\t", path, b"\0"]).flatten().copied().collect();
        if !gone.is_empty()
            && let Err(message) = update(&["-z", "--index-info"], gone).await?
        {
            return Err(GitError::ChangeRefused(message));
        }
        let there: Vec<&[u8]> = touched.there.iter().map(Vec::as_slice).collect();
        let mut pieces = vec![there.as_slice()];
        let mut found = 0;
        while let Some(piece) = pieces.pop().filter(|piece| !piece.is_empty()) {
            let list = piece.iter().flat_map(|path| [*path, b"\0"]).flatten().copied().collect();
            // All of them, or none: the index is written at the end.
            let message = match update(&["--add", "--remove", "--replace", "-z", "--stdin"], list).await? {
                Err(message) => message,
                Ok(done) => {
                    // It takes the others, and its code says that all is well.
                    for path in done.stderr.lines().filter_map(|line| line.strip_prefix("Ignoring path ")) {
                        refusals.add(path.as_bytes(), "git does not take it");
                    }
                    continue;
                }
            };
            match piece.len() {
                1 => refusals.add(piece[0], message),
                _ if found < TOLD_APART => {
                    let (one, other) = piece.split_at(piece.len() / 2);
                    pieces.extend([other, one]);
                    continue;
                }
                _ => {
                    let paths: Vec<_> = piece.iter().map(|path| path.to_vec()).collect();
                    refusals.add_all("git does not take these".to_owned(), &paths);
                }
            }
            found += 1;
        }
        Ok(())
    }

    /// The paths that are not as the index has them: sorted, each looked at without following links.
    async fn touched(
        &self,
        work: &Path,
        index: &Path,
        bounds: &Bounds,
        refusals: &mut Refusals<'_>,
    ) -> Result<Touched, GitError> {
        let call = || self.call().tree(work).index(index);
        let others = call().args(["ls-files", "-z", "--others", "--exclude-standard"]).ok().await?;
        // A folder that git cannot look into is only warned of, and would be missing in silence.
        for line in others.stderr.lines().filter(|line| line.contains("could not open directory")) {
            if !refusals.hides(line.as_bytes()) {
                refusals.all.push(line.trim_start_matches("warning: ").to_owned());
            }
        }
        // What was only touched (a formatter, a checkout of the job's own) is no change. Its code says that some are.
        call().args(["update-index", "-q", "--refresh", "--ignore-submodules"]).run().await?;
        let args = ["diff-files", "-z", "--raw", "--no-renames", "--no-ext-diff", "--ignore-submodules=all"];
        let known = call().args(args).ok().await?;
        let known = raw(&known.stdout);
        let mut touched = Touched::default();
        let (mut all, mut count, mut too_many, mut too_much) = (0, 0, Vec::new(), Vec::new());
        // What the base has comes first: where there is too much, it is more likely to be the work.
        let listed =
            known.iter().map(|entry| (entry.path, Some(entry))).chain(others.pieces().map(|path| (path, None)));
        for (path, old) in listed {
            count += 1;
            if old.is_none() && refusals.hides(path) {
                continue;
            }
            if path.ends_with(b"/") {
                refusals.add(path, "another repository; a submodule is not added by a job");
                continue;
            }
            let dotted = |part: &[u8]| part.eq_ignore_ascii_case(b".git") || part.eq_ignore_ascii_case(b"git~1");
            if path.split(|byte| *byte == b'/').any(dotted) {
                refusals.add(path, "a path inside of `.git`");
                continue;
            }
            let is_gone = old.is_some_and(|entry| entry.status == b'D');
            let mut size = 0;
            if !is_gone {
                match work.join(OsStr::from_bytes(path)).symlink_metadata() {
                    Ok(found) => {
                        let kind = found.file_type();
                        if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
                            refusals.add(path, "neither a file nor a link");
                            continue;
                        }
                        // A folder in a file's place: the files in it are listed themselves.
                        if kind.is_file() {
                            size = found.len();
                        }
                    }
                    Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => {}
                    Err(error) => {
                        refusals.add(path, error);
                        continue;
                    }
                }
            }
            if size > bounds.file_bytes {
                refusals.add(path, format!("{size} bytes, of at most {}", bounds.file_bytes));
            } else if touched.there.len() + touched.gone.len() == bounds.files {
                too_many.push(path.to_vec());
            } else if all + size > bounds.all_bytes {
                too_much.push(path.to_vec());
            } else {
                all += size;
                let list = if is_gone { &mut touched.gone } else { &mut touched.there };
                list.insert(path.to_vec());
            }
        }
        if !too_many.is_empty() {
            refusals.add_all(format!("{count} files changed, of at most {}", bounds.files), &too_many);
        }
        if !too_much.is_empty() {
            refusals.add_all(format!("more than {} bytes in all", bounds.all_bytes), &too_much);
        }
        Ok(touched)
    }

    /// What of it may not leave the worker: paths of the change.
    async fn refused(
        &self,
        change: &Change,
        bounds: &Bounds,
        refusals: &mut Refusals<'_>,
    ) -> Result<Vec<Vec<u8>>, GitError> {
        let mut refused = Vec::new();
        let mut there: Vec<&Changed> = change.files.iter().filter(|file| file.how != How::Deleted).collect();
        there.retain(|file| {
            let path = file.path.as_os_str().as_bytes();
            let is_other = file.kind == Kind::Submodule;
            if is_other {
                refusals.add(path, "another repository; a submodule is not added by a job");
                refused.push(path.to_vec());
            }
            !is_other
        });
        let most = usize::try_from(bounds.all_bytes).unwrap_or(usize::MAX).saturating_add(64 << 20);
        for some in there.chunks(100) {
            let list: String = some.iter().filter_map(|file| Some(format!("{}\n", file.object.as_ref()?))).collect();
            let output = self.call().args(["cat-file", "--batch"]).stdin(list.into_bytes()).most(most).ok().await?;
            let mut rest = output.stdout.as_slice();
            for file in some {
                let (content, more) = batched(rest)
                    .ok_or_else(|| GitError::Corrupt(format!("{}: its content is missing", file.path.display())))?;
                rest = more;
                let found = (refusals.scan)(content);
                if !found.is_empty()
                    && let Some(Found { name, .. }) =
                        found.difference(&self.had(change, &file.path, bounds, refusals.scan).await?).next()
                {
                    let path = file.path.as_os_str().as_bytes();
                    refusals.add(path, format!("the secret {name} is in it"));
                    refused.push(path.to_vec());
                }
            }
        }
        Ok(refused)
    }

    /// The secrets that were in the file before: the change does not bring them out.
    async fn had(
        &self,
        change: &Change,
        path: &Path,
        bounds: &Bounds,
        scan: Scan<'_>,
    ) -> Result<BTreeSet<Found>, GitError> {
        let object = [change.base.as_str().as_bytes(), b":", path.as_os_str().as_bytes()].concat();
        let args = [OsStr::new("cat-file"), OsStr::new("blob"), OsStr::from_bytes(&object)];
        let most = usize::try_from(bounds.all_bytes).unwrap_or(usize::MAX);
        let old = self.call().args(args).most(most).run().await?;
        Ok(if old.status.success() { scan(&old.stdout) } else { BTreeSet::new() })
    }
}

/// The first object of `cat-file --batch`, and what comes behind it.
fn batched(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = bytes.iter().position(|byte| *byte == b'\n')?;
    let size: usize = std::str::from_utf8(&bytes[..line]).ok()?.rsplit(' ').next()?.parse().ok()?;
    let rest = &bytes[line + 1..];
    Some((rest.get(..size)?, rest.get(size + 1..)?))
}
