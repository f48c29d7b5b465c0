//! Empty work folders that wait for the next process.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use schemas::StartId;

use super::Folder;

/// Kept at most.
const MOST: usize = 64;
/// Begins their names. No start is called so, and the sweep of the next boot finds them.
const NAME: &str = ".spare-";

/// Those of one worker. Removed when this is dropped.
#[derive(Debug)]
pub(super) struct Spares {
    root: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    paths: Vec<PathBuf>,
    numbered: u64,
    /// How a folder looks that was just made; unknown until one was.
    fresh: Option<Look>,
}

/// All that a process can change of an empty folder, its times aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    /// Some file systems never make a folder smaller again.
    size: u64,
    attributes: isize,
}

impl Look {
    fn of(path: &Path) -> io::Result<Self> {
        let about: Metadata = std::fs::symlink_metadata(path)?;
        Ok(Self {
            mode: about.mode(),
            owner: (about.uid(), about.gid()),
            links: about.nlink(),
            size: about.size(),
            attributes: attributes(path)?,
        })
    }
}

/// Bytes of the names of its extended attributes: access lists, labels.
#[cfg(target_os = "linux")]
fn attributes(path: &Path) -> io::Result<isize> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte, and nothing is written where there is no room.
    match unsafe { libc::llistxattr(path.as_ptr(), std::ptr::null_mut(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        bytes => Ok(bytes),
    }
}

/// Elsewhere nothing is known of them, so no folder is used twice.
#[cfg(not(target_os = "linux"))]
fn attributes(path: &Path) -> io::Result<isize> {
    let _ = path.as_os_str().as_bytes();
    Err(io::ErrorKind::Unsupported.into())
}

fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

impl Spares {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // No code that holds it can panic half way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns how a folder looks that was just made.
    pub(super) fn look_at(&self, path: &Path) {
        let mut kept = self.kept();
        if kept.fresh.is_none() {
            kept.fresh = Look::of(path).ok();
        }
    }

    /// One under the name of `start`; `None`: there is none, and one is to be made.
    pub(super) fn take(&self, start: &StartId) -> Option<Folder> {
        let spare = self.kept().paths.pop()?;
        let path = self.root.join(start.as_str());
        // Somebody may have cleared the state folder, or work in it.
        if std::fs::rename(&spare, &path).is_err() {
            let _ = std::fs::remove_dir(&spare);
            return None;
        }
        Some(Folder::at(&self.root, path, start))
    }

    /// Keeps it, if it is as it was when it was made; else hands it back.
    pub(super) fn keep(&self, mut folder: Folder) -> Result<(), Folder> {
        let fresh = self.kept().fresh;
        let as_new = fresh.is_some() && Look::of(&folder.path).ok() == fresh && is_empty(&folder.path);
        if !as_new {
            return Err(folder);
        }
        let spare = {
            let mut kept = self.kept();
            if kept.paths.len() >= MOST {
                return Err(folder);
            }
            kept.numbered += 1;
            self.root.join(format!("{NAME}{}", kept.numbered))
        };
        // A folder on which something is mounted, or that may not be changed, keeps its name.
        if std::fs::rename(&folder.path, &spare).is_err() {
            return Err(folder);
        }
        folder.removed = true;
        folder.remove_result();
        self.kept().paths.push(spare);
        Ok(())
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        for path in self.kept().paths.drain(..) {
            let _ = std::fs::remove_dir(path);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::{Folders, root, sweep};
    use super::*;
    use schemas::AgentId;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    struct Fixture {
        state: tempfile::TempDir,
        worker: AgentId,
    }

    impl Fixture {
        fn new() -> (Self, Folders) {
            let this = Self { state: tempfile::tempdir().unwrap(), worker: AgentId::new("w-1").unwrap() };
            let folders = Folders::new(this.state.path(), &this.worker);
            (this, folders)
        }

        fn entries(&self) -> usize {
            std::fs::read_dir(root(self.state.path(), &self.worker)).unwrap().count()
        }
    }

    fn inode(folder: &Folder) -> u64 {
        std::fs::metadata(folder.path()).unwrap().ino()
    }

    fn start(name: &str) -> StartId {
        StartId::new(name).unwrap()
    }

    #[tokio::test]
    async fn a_folder_left_as_it_was_found_is_the_next_ones_under_its_own_name() {
        let (fixture, folders) = Fixture::new();
        let first = folders.take(&start("s1")).unwrap();
        let (path, number) = (first.path().to_owned(), inode(&first));
        folders.put(first).await;
        assert!(!path.exists());
        let second = folders.take(&start("s2")).unwrap();
        assert_eq!((inode(&second), second.path().file_name().unwrap().to_str()), (number, Some("s2")));
        assert!(second.result_file().ends_with("s2.result"));
        folders.put(second).await;
        drop(folders);
        assert_eq!(fixture.entries(), 0, "they end with their worker");
    }

    #[tokio::test]
    async fn a_folder_that_a_process_changed_in_any_way_is_nobody_elses() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("a file", |path| std::fs::write(path.join("x"), "secret").unwrap()),
            ("its mode", |path| std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap()),
            ("an attribute", |path| {
                let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
                let (name, value) = (c"user.shoal".as_ptr(), c"x".as_ptr().cast());
                // SAFETY: texts that end with a zero byte, and one byte of a value.
                let set = unsafe { libc::setxattr(path.as_ptr(), name, value, 1, 0) };
                assert_eq!(set, 0, "{}", io::Error::last_os_error());
            }),
            ("its place", |path| {
                std::fs::remove_dir(path).unwrap();
                std::os::unix::fs::symlink("/tmp", path).unwrap();
            }),
        ];
        for (what, change) in changes {
            let (fixture, folders) = Fixture::new();
            let first = folders.take(&start("s1")).unwrap();
            change(first.path());
            folders.put(first).await;
            assert!(folders.spares.kept().paths.is_empty(), "{what}");
            let second = folders.take(&start("s2")).unwrap();
            assert!(is_empty(second.path()), "{what}");
            folders.put(second).await;
            drop(folders);
            // A link in the place of a folder is left to the sweep, as ever.
            sweep(fixture.state.path(), &fixture.worker).unwrap();
            assert_eq!(fixture.entries(), 0, "{what}");
        }
    }

    #[tokio::test]
    async fn a_result_goes_with_its_start_and_a_kill_leaves_what_a_sweep_removes() {
        let (fixture, folders) = Fixture::new();
        let mut first = folders.take(&start("s1")).unwrap();
        assert!(!first.has_result());
        folders.put(first).await;
        let mut second = folders.take(&start("s2")).unwrap();
        std::fs::write(second.result_file(), "y").unwrap();
        assert!(second.has_result());
        folders.put(second).await;
        assert_eq!(fixture.entries(), 1, "the spare one");
        std::mem::forget(folders);
        sweep(fixture.state.path(), &fixture.worker).unwrap();
        assert_eq!(fixture.entries(), 0);
    }

    #[tokio::test]
    async fn a_spare_folder_that_is_gone_costs_nothing_but_a_new_one() {
        let (fixture, folders) = Fixture::new();
        folders.put(folders.take(&start("s1")).unwrap()).await;
        sweep(fixture.state.path(), &fixture.worker).unwrap();
        let second = folders.take(&start("s2")).unwrap();
        assert!(second.path().is_dir());
    }
}
