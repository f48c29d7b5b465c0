//! The work folder of one start: made before it, gone after it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use schemas::{AgentId, StartId};

mod spare;

/// An own folder, and beside it the file that takes the result.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    result: PathBuf,
    /// Looked for after its workload was gone, and not there.
    no_result: bool,
    removed: bool,
}

fn root(state_dir: &Path, worker: &AgentId) -> PathBuf {
    state_dir.join("work").join(worker.as_str())
}

/// Nobody else on this machine looks in: a work folder is open to all for the users of containers, who also leave files
/// there that run as their owner.
fn make_root(root: &Path) -> io::Result<()> {
    std::fs::create_dir_all(root)?;
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
}

impl Folder {
    /// Makes an empty one.
    pub fn create(state_dir: &Path, worker: &AgentId, start: &StartId) -> io::Result<Self> {
        let root = root(state_dir, worker);
        let path = root.join(start.as_str());
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_root(&root)?;
                std::fs::create_dir(&path)?;
            }
            made => made?,
        }
        Ok(Self::at(&root, path, start))
    }

    fn at(root: &Path, path: PathBuf, start: &StartId) -> Self {
        Self { result: root.join(format!("{start}.result")), path, no_result: false, removed: false }
    }

    /// Where the workload runs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it writes its result. Beside the folder, so that no glob gathers it.
    pub fn result_file(&self) -> PathBuf {
        self.result.clone()
    }

    /// Whether its workload, which is gone, left something where its result belongs.
    pub fn has_result(&mut self) -> bool {
        let looked = std::fs::symlink_metadata(&self.result);
        self.no_result = looked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        !self.no_result
    }

    fn remove_result(&self) {
        if !self.no_result {
            let _ = std::fs::remove_file(&self.result);
        }
    }

    /// Removes it with all that is in it.
    pub async fn remove(mut self) {
        self.removed = true;
        self.remove_result();
        // Most are empty, and for these nothing needs to wait.
        if std::fs::remove_dir(&self.path).is_ok() {
            return;
        }
        let path = self.path.clone();
        let removed = tokio::task::spawn_blocking(move || remove_tree(&path)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(path = %self.path.display(), %error, "work folder not removed; the next start sweeps it");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.removed {
            self.remove_result();
            let _ = remove_tree(&self.path);
        }
    }
}

/// Where the work folders of one worker are made, and those that their processes left as they had found them: the next
/// process gets one of these under a new name. To make a folder and to remove it costs more than all else that is done
/// for a short process.
#[derive(Debug)]
pub struct Folders {
    state_dir: PathBuf,
    worker: AgentId,
    spares: spare::Spares,
}

impl Folders {
    /// Of this worker.
    pub fn new(state_dir: &Path, worker: &AgentId) -> Self {
        let spares = spare::Spares::new(root(state_dir, worker));
        Self { state_dir: state_dir.to_owned(), worker: worker.clone(), spares }
    }

    /// A new one.
    pub fn create(&self, start: &StartId) -> io::Result<Folder> {
        Folder::create(&self.state_dir, &self.worker, start)
    }

    /// One for a process: empty, and as a new one in every respect.
    pub fn take(&self, start: &StartId) -> io::Result<Folder> {
        if let Some(folder) = self.spares.take(start) {
            return Ok(folder);
        }
        let folder = self.create(start)?;
        self.spares.look_at(&folder.path);
        Ok(folder)
    }

    /// Takes one back from a process that is gone with all that it started.
    pub async fn put(&self, folder: Folder) {
        if let Err(folder) = self.spares.keep(folder) {
            folder.remove().await;
        }
    }
}

/// Removes a tree of any depth, folders that a workload made unreadable included. No stack and no table of open files can
/// be too small for it: a workload nests folders as deep as it likes. Every step goes by an open folder and never through
/// a link, for the workload may still be at it where its engine is away.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let mut folder = match open_folder(AT_FDCWD, path) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened?,
    };
    let mut left = clear(&folder)?;
    // By which names we came here, and what is left to do there.
    let mut above: Vec<(CString, (u64, u64), Vec<CString>)> = Vec::new();
    loop {
        if let Some(name) = left.pop() {
            let below = open_folder(&folder, name.as_c_str())?;
            above.push((name, identity(&folder)?, left));
            left = clear(&below)?;
            folder = below;
        } else if let Some((name, id, left_there)) = above.pop() {
            folder = openat(&folder, "..", FOLDER, Mode::empty())?;
            // Moved meanwhile, its parent is another, and may be none of ours.
            if identity(&folder)? != id || !remove_one(&folder, &name)? {
                return Err(io::Error::other("somebody else is at work in it"));
            }
            left = left_there;
        } else {
            return std::fs::remove_dir(path);
        }
    }
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Removes what can be at once; the names of folders that hold something are left.
fn clear(folder: &OwnedFd) -> nix::Result<Vec<CString>> {
    let mut left = Vec::new();
    for entry in Dir::openat(folder, ".", FOLDER, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") && !remove_one(folder, name)? {
            left.push(name.to_owned());
        }
    }
    Ok(left)
}

fn identity(folder: &OwnedFd) -> nix::Result<(u64, u64)> {
    let stat = fstat(folder)?;
    // The types differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

/// Removes a file, a link or an empty folder; `false`: it is a folder and holds something.
fn remove_one(folder: &OwnedFd, name: &CStr) -> nix::Result<bool> {
    match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        // Which of the two a folder gives depends on the system.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(error) => return Err(error),
    }
    match unlinkat(folder, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a folder, never through a link; one of our own that cannot be read or changed is opened up first.
fn open_folder(at: impl AsFd, name: &(impl NixPath + ?Sized)) -> nix::Result<OwnedFd> {
    if !nix::unistd::geteuid().is_root() {
        // What is not ours stays as it is, and what follows tells.
        let _ = fchmodat(at.as_fd(), name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink);
    }
    openat(at.as_fd(), name, FOLDER | OFlag::O_NOFOLLOW, Mode::empty())
}

/// Whether work folders can be made; why not, in a sentence.
pub fn probe(state_dir: &Path, worker: &AgentId) -> Result<(), String> {
    let path = root(state_dir, worker).join(".probe");
    let made = std::fs::create_dir(&path).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    });
    made.and_then(|()| std::fs::remove_dir(&path)).map_err(|error| format!("no work folder can be made: {error}"))
}

/// Removes what an earlier boot of this worker left. Only for the holder of the id.
pub fn sweep(state_dir: &Path, worker: &AgentId) -> io::Result<()> {
    let root = root(state_dir, worker);
    make_root(&root)?;
    let entries = std::fs::read_dir(&root)?;
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type()?.is_dir() { remove_tree(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_gone_after_its_start_whatever_was_made_in_it() {
        let state = tempfile::tempdir().unwrap();
        let worker = AgentId::new("w-1").unwrap();
        let folder = Folder::create(state.path(), &worker, &StartId::new("s1").unwrap()).unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/c"), "x").unwrap();
        std::fs::write(folder.result_file(), "y").unwrap();
        folder.remove().await;
        assert_eq!(std::fs::read_dir(root(state.path(), &worker)).unwrap().count(), 0);
    }

    #[test]
    fn a_sweep_removes_what_an_earlier_boot_left() {
        let state = tempfile::tempdir().unwrap();
        let worker = AgentId::new("w-1").unwrap();
        let folder = Folder::create(state.path(), &worker, &StartId::new("s1").unwrap()).unwrap();
        std::fs::write(folder.path().join("c"), "x").unwrap();
        std::mem::forget(folder);
        sweep(state.path(), &worker).unwrap();
        assert_eq!(std::fs::read_dir(root(state.path(), &worker)).unwrap().count(), 0);
    }

    /// Folders in folders, `depth` of them, each with a file beside the next.
    fn nest(path: &Path, depth: usize) {
        std::fs::create_dir_all(path).unwrap();
        let mut folder = open_folder(AT_FDCWD, path).unwrap();
        for _ in 0..depth {
            nix::sys::stat::mkdirat(&folder, "d", Mode::S_IRWXU).unwrap();
            nix::unistd::symlinkat("/etc", &folder, "link").unwrap();
            folder = open_folder(&folder, "d").unwrap();
        }
    }

    #[test]
    fn no_depth_is_too_deep_to_remove() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("deep");
        nest(&path, 3_000);
        nest(&path.join("beside"), 3);
        // As many times more as a usual stack is larger.
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let removed = path.clone();
        small.spawn(move || remove_tree(&removed)).unwrap().join().unwrap().unwrap();
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists());
        remove_tree(&path).unwrap();
    }

    #[test]
    fn what_a_workload_shut_is_removed_too() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("a");
        std::fs::create_dir_all(path.join("b/c/d")).unwrap();
        for shut in ["b/c/d", "b/c", "b", ""] {
            std::fs::set_permissions(path.join(shut), std::fs::Permissions::from_mode(0o0)).unwrap();
        }
        remove_tree(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nobody_else_on_the_machine_sees_the_work_folders() {
        let state = tempfile::tempdir().unwrap();
        let worker = AgentId::new("w-1").unwrap();
        sweep(state.path(), &worker).unwrap();
        let mode = std::fs::metadata(root(state.path(), &worker)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
