//! Removes what hostile hands made: odd names, read-only folders, trees deeper than a path may be long, links to anywhere.
//!
//! Everything goes by the descriptor of its own folder, and no link is followed. Folders are first moved into a pit, one
//! level deep, so that depth costs neither stack nor descriptors.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Folders deeper than this in a tree are not walked: the whole tree is removed instead.
const DEPTH: usize = 128;

/// Removes a file, a link or a whole folder, if it is there. `pit` is a folder on the same file system that is made and
/// stays, empty.
pub(super) fn remove(path: &Path, pit: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("no folder of ours"));
    };
    let parent = match Dir::open(parent, FOLDER, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
        other => other?,
    };
    Pit::open(pit)?.take(parent.as_fd(), &CString::new(name.as_bytes())?)
}

/// What an index knows.
#[derive(Debug, Default)]
pub(super) struct Known {
    files: HashSet<Vec<u8>>,
    folders: HashSet<Vec<u8>>,
}

impl Known {
    /// From `git ls-files -s -z`. Submodules are none of it.
    pub(super) fn read<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut known = Self::default();
        for entry in entries {
            let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else { continue };
            if entry.starts_with(b"160000 ") {
                continue;
            }
            let path = &entry[tab + 1..];
            for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').rev() {
                if !known.folders.insert(path[..at].to_vec()) {
                    break;
                }
            }
            known.files.insert(path.to_vec());
        }
        known
    }
}

/// Removes whatever an index does not know from its tree. What it knows stays as it is; git tells whether it changed.
pub(super) fn scrub(tree: &Path, known: &Known, pit: &Path) -> io::Result<()> {
    let mut pit = Pit::open(pit)?;
    let mut stack = vec![(Dir::open(tree, FOLDER, Mode::empty())?, Vec::new())];
    let mut found = vec![names(&mut stack[0].0)?];
    while let (Some((folder, path)), Some(left)) = (stack.last(), found.last_mut()) {
        let Some((name, kind)) = left.pop() else {
            stack.pop();
            found.pop();
            continue;
        };
        let mut below = path.clone();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(name.to_bytes());
        let is_folder = kind == SFlag::S_IFDIR;
        match is_folder && known.folders.contains(&below) {
            true => {
                if stack.len() >= DEPTH {
                    return Err(io::Error::other("the tree is too deep"));
                }
                open_up(folder.as_fd(), &name)?;
                let mut next = Dir::openat(folder.as_fd(), name.as_c_str(), FOLDER, Mode::empty())?;
                found.push(names(&mut next)?);
                stack.push((next, below));
            }
            false if !is_folder && known.files.contains(&below) => {}
            false => pit.take(folder.as_fd(), &name)?,
        }
    }
    Ok(())
}

/// All that is in a folder, with what each is.
fn names(folder: &mut Dir) -> io::Result<Vec<(CString, SFlag)>> {
    let names: Vec<CString> =
        folder.iter().map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect::<Result<_, _>>()?;
    let mut found = Vec::with_capacity(names.len());
    for name in names.into_iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        match fstatat(folder.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {}
            stat => found.push((name, SFlag::from_bits_truncate(stat?.st_mode) & SFlag::S_IFMT)),
        }
    }
    Ok(found)
}

/// Whoever owns a folder may look into it and change it. (Never through a link.)
fn open_up(at: BorrowedFd, name: &CStr) -> io::Result<()> {
    let mode = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode;
    if mode & 0o700 != 0o700 || mode & 0o7000 != 0 {
        fchmodat(at, name, Mode::from_bits_truncate(mode & 0o777 | 0o700), FchmodatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

struct Pit {
    folder: Dir,
    next: u64,
    full: Vec<CString>,
}

impl Pit {
    fn open(path: &Path) -> io::Result<Self> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut folder = Dir::open(path, FOLDER, Mode::empty())?;
        // What was left in it is removed with what comes.
        let mut next = 0;
        let mut full = Vec::new();
        for (name, kind) in names(&mut folder)? {
            next = next.max(
                std::str::from_utf8(name.to_bytes()).ok().and_then(|name| name.parse().ok()).map_or(0, |n: u64| n + 1),
            );
            match kind == SFlag::S_IFDIR {
                true => full.push(name),
                false => unlinkat(folder.as_fd(), name.as_c_str(), UnlinkatFlags::NoRemoveDir)?,
            }
        }
        let mut pit = Self { folder, next, full };
        pit.empty()?;
        Ok(pit)
    }

    fn take(&mut self, at: BorrowedFd, name: &CStr) -> io::Result<()> {
        self.drop_in(at, name)?;
        self.empty()
    }

    /// Files are removed where they are; a folder falls into the pit.
    fn drop_in(&mut self, at: BorrowedFd, name: &CStr) -> io::Result<()> {
        match fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(()),
            stat if SFlag::from_bits_truncate(stat?.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR => {
                return Ok(unlinkat(at, name, UnlinkatFlags::NoRemoveDir)?);
            }
            _ => {}
        }
        open_up(at, name)?;
        let place = CString::new(self.next.to_string())?;
        self.next += 1;
        renameat(at, name, self.folder.as_fd(), place.as_c_str())?;
        self.full.push(place);
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        while let Some(place) = self.full.pop() {
            open_up(self.folder.as_fd(), &place)?;
            let mut folder = Dir::openat(self.folder.as_fd(), place.as_c_str(), FOLDER, Mode::empty())?;
            for (name, _) in names(&mut folder)? {
                self.drop_in(folder.as_fd(), &name)?;
            }
            drop(folder);
            unlinkat(self.folder.as_fd(), place.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
        Ok(())
    }
}

/// Bytes on the disk. What cannot be read counts nothing.
pub(super) fn bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let (mut sum, mut folders) = (0, vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            sum += found.blocks() * 512;
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn known(paths: &[&str]) -> Known {
        let lines: Vec<Vec<u8>> = paths.iter().map(|path| format!("100644 00 0\t{path}").into_bytes()).collect();
        Known::read(lines.iter().map(Vec::as_slice))
    }

    #[test]
    fn a_tree_keeps_only_what_its_index_knows() {
        let root = tempfile::tempdir().unwrap();
        let (tree, pit) = (root.path().join("tree"), root.path().join("pit"));
        let outside = root.path().join("outside");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("mine"), "mine").unwrap();
        for path in ["a/b/known", "a/unknown", "top", "-rf", "new\nline", "\"quo\\te"] {
            std::fs::write(tree.join(path), "x").unwrap();
        }
        std::fs::write(tree.join(OsStr::from_bytes(b"\xff\xfe")), "x").unwrap();
        std::fs::create_dir_all(tree.join("a/.git/hooks")).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink(&outside, tree.join("a/known-folder")).unwrap();
        std::fs::create_dir_all(tree.join("a/locked/in")).unwrap();
        std::fs::set_permissions(tree.join("a/locked"), std::fs::Permissions::from_mode(0o000)).unwrap();
        std::fs::set_permissions(tree.join("a/b"), std::fs::Permissions::from_mode(0o500)).unwrap();
        nix::unistd::mkfifo(&tree.join("pipe"), Mode::S_IRWXU).unwrap();
        scrub(&tree, &known(&["a/b/known", "top", "a/known-folder/f"]), &pit).unwrap();
        let mut left: Vec<_> = ["a", ""]
            .iter()
            .flat_map(|f| std::fs::read_dir(tree.join(f)).unwrap())
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["a", "b", "top"]);
        assert!(tree.join("a/b/known").exists());
        assert_eq!(std::fs::read(outside.join("mine")).unwrap(), b"mine", "no link was followed");
        assert_eq!(std::fs::read_dir(&pit).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_deeper_than_a_path_may_be_long_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("deep");
        std::fs::create_dir(&deep).unwrap();
        let mut at = Dir::open(&deep, FOLDER, Mode::empty()).unwrap();
        let name = CString::new("d".repeat(200)).unwrap();
        for _ in 0..1_000 {
            nix::sys::stat::mkdirat(at.as_fd(), name.as_c_str(), Mode::S_IRWXU).unwrap();
            at = Dir::openat(at.as_fd(), name.as_c_str(), FOLDER, Mode::empty()).unwrap();
        }
        drop(at);
        remove(&deep, &root.path().join("pit")).unwrap();
        assert!(!deep.exists());
    }

    #[test]
    fn a_link_is_removed_and_what_it_leads_to_stays() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("outside")).unwrap();
        symlink(root.path().join("outside"), root.path().join("home")).unwrap();
        remove(&root.path().join("home"), &root.path().join("pit")).unwrap();
        assert!(root.path().join("home").symlink_metadata().is_err());
        assert!(root.path().join("outside").exists());
        remove(&root.path().join("none/at/all"), &root.path().join("pit")).unwrap();
    }
}
