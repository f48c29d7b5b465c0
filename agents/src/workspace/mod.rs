//! Clean places to work in: a bare mirror a repository, a slot a job.
//!
//! ```text
//! <root>/lock                    one process a root
//!        git/                    git's own home
//!        mirrors/<name>-<hash>/  bare; fetched into by us alone, under names of ours (`refs/shoal/…`)
//!        slots/<n>/tree/         the job's work tree; its .git is the job's, and nothing to us
//!                  home/ aside/  the job's home, and files for both sides
//!                  git/ index    what *we* know of the tree: references, new objects, index
//!                  state.json    which repository it last had
//!        pits/                   what is being removed
//! ```
//!
//! A slot's git directory is a small repository of its own that borrows the mirror's objects, and so is the `.git` that
//! the job finds in its tree. (A worktree of git's own kind would give the job a way into the mirror: to its references,
//! to the other jobs' indexes, to its locks. And a git that is killed in a slot cannot hurt a mirror.) A job's `git commit`,
//! `git gc` or `git push` ends in that `.git`; it has no remote.
//!
//! A slot that last had the same repository keeps its tree: only the difference is checked out. It is cleaned after a job
//! and before the next, by walking the folders that the index knows and removing whatever it does not know, `.git`s at any
//! depth included (`git clean` leaves those). What cannot be cleaned is set aside, told, and made anew. All of this holds
//! against what commands left behind, as long as none of them still runs.

mod clean;
mod disk;
mod mirror;
mod slot;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use schemas::{Code, TaskError};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use crate::git::Remote;
use crate::git::{Author, Bounds, Git, GitError};
use mirror::Mirror;
pub use mirror::{Fetched, Want};
pub use slot::{Kept, Slot};

/// How a worker keeps workspaces.
#[derive(Clone)]
pub struct Settings {
    /// Jobs at once.
    pub slots: usize,
    /// Bytes of mirrors and slots together; what is idle longest goes first. A job that is alone may go beyond.
    pub disk_bytes: u64,
    /// Beginnings of branches that may be pushed.
    pub prefixes: Vec<String>,
    /// Of every commit.
    pub author: Author,
    /// Of every change.
    pub bounds: Bounds,
    /// Told what an operator should know.
    pub tell: Arc<dyn Fn(Trouble) + Send + Sync>,
}

impl Default for Settings {
    /// 4 slots, 50 GiB, `feature/`; troubles are logged.
    fn default() -> Self {
        Self {
            slots: 4,
            disk_bytes: 50 << 30,
            prefixes: vec!["feature/".to_owned()],
            author: Author::default(),
            bounds: Bounds::default(),
            tell: Arc::new(|trouble| tracing::warn!(%trouble, "workspace")),
        }
    }
}

/// What an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is broken, and lies there now; a new one is made.
    SetAside {
        /// Where it lies.
        path: PathBuf,
        /// What is broken.
        why: String,
    },
    /// It was removed for the disk budget.
    Evicted {
        /// Where it was.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// All that is idle is removed, and it is still more than allowed.
    OverBudget {
        /// What is there.
        bytes: u64,
        /// What may be.
        most: u64,
    },
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SetAside { path, why } => write!(f, "set aside as {}: {why}", path.display()),
            Self::Evicted { path, bytes } => {
                write!(f, "removed {} of {bytes} bytes for the disk budget", path.display())
            }
            Self::OverBudget { bytes, most } => write!(f, "{bytes} bytes are in use, of {most}"),
        }
    }
}

/// Why there is no workspace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkspaceError {
    /// Git's part.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A folder cannot be made, read or removed.
    #[error("{path}: {why}")]
    Folder {
        /// Which.
        path: String,
        /// The system's words.
        why: String,
    },
    /// Another process has the root.
    #[error("{0} belongs to another process")]
    Taken(String),
    /// Running jobs use the whole disk budget.
    #[error("{bytes} bytes are in use by running jobs, of {most}")]
    NoRoom {
        /// What is in use.
        bytes: u64,
        /// What may be.
        most: u64,
    },
}

impl WorkspaceError {
    /// Whether the same may succeed in a while.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Git(error) => error.retryable(),
            Self::Taken(_) | Self::NoRoom { .. } => true,
            Self::Folder { .. } => false,
        }
    }

    /// For [`retried`](crate::retry::retried).
    pub fn again(&self) -> crate::retry::Again {
        self.retryable().into()
    }

    /// The same for the record.
    pub fn to_task_error(&self) -> TaskError {
        match self {
            Self::Git(error) => error.to_task_error(),
            Self::Folder { .. } | Self::Taken(_) | Self::NoRoom { .. } => {
                TaskError::new(Code::WorkspaceFailed, self.to_string())
            }
        }
    }

    fn folder(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.raw_os_error() {
            Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => GitError::NoSpace(path.display().to_string()).into(),
            _ => Self::Folder { path: path.display().to_string(), why: error.to_string() },
        }
    }
}

/// All workspaces of a worker. Cheap to clone.
#[derive(Clone)]
pub struct Workspaces(Arc<Inner>);

pub(crate) struct Inner {
    root: PathBuf,
    settings: Settings,
    git: Git,
    free: Arc<Semaphore>,
    book: Mutex<Book>,
    /// One removes what is idle.
    evicting: Arc<tokio::sync::Mutex<()>>,
    /// Held as long as this lives; the kernel lets go of it with the process.
    _lock: File,
}

/// What is where.
#[derive(Default)]
struct Book {
    slots: Vec<Place>,
    mirrors: HashMap<String, Arc<Mirror>>,
}

/// A slot, as the book has it.
#[derive(Clone, Debug, Default)]
struct Place {
    busy: bool,
    state: State,
}

/// What a slot's `state.json` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// Name of the mirror that its tree is of.
    mirror: Option<String>,
    /// The commit that its tree is at, as far as its index knows.
    commit: Option<String>,
    /// Milliseconds since 1970.
    used: u64,
    /// When it was last measured.
    bytes: u64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Workspaces {
    /// Opens the root, makes it if need be. One process a root: another one is refused.
    pub async fn open(root: &Path, settings: Settings, git: crate::git::Settings) -> Result<Self, WorkspaceError> {
        let folder = WorkspaceError::folder(root);
        let (root, lock) = blocking({
            let root = root.to_owned();
            move || {
                std::fs::create_dir_all(root.join("mirrors"))?;
                std::fs::create_dir_all(root.join("slots"))?;
                std::fs::create_dir_all(root.join("pits"))?;
                let root = root.canonicalize()?;
                let lock = File::create(root.join("lock"))?;
                Ok((root, lock))
            }
        })
        .await
        .map_err(folder)?;
        if lock.try_lock().is_err() {
            return Err(WorkspaceError::Taken(root.display().to_string()));
        }
        let git = Git::new(git, &root.join("git")).await?;
        let mut book = Book::default();
        for number in 0..settings.slots {
            let state = std::fs::read(root.join(format!("slots/{number}/state.json"))).unwrap_or_default();
            book.slots.push(Place { busy: false, state: serde_json::from_slice(&state).unwrap_or_default() });
        }
        let free = Arc::new(Semaphore::new(settings.slots));
        Ok(Self(Arc::new(Inner {
            root,
            settings,
            git,
            free,
            book: Mutex::new(book),
            evicting: Arc::default(),
            _lock: lock,
        })))
    }

    /// Major and minor version of the git that is used.
    pub fn git_version(&self) -> String {
        let (major, minor) = self.0.git.version();
        format!("{major}.{minor}")
    }

    /// Takes a slot for a job, clean, waiting until one is free: one that last had this repository, else an unused one,
    /// else the one that is idle longest.
    ///
    /// Cancel safe. A slot that is dropped without [`Slot::release`] is cleaned when it is next taken.
    pub async fn take(&self, remote: &Remote) -> Result<Slot, WorkspaceError> {
        self.0.git.allows(remote)?;
        let permit = self.0.free.clone().acquire_owned().await.expect("never closed");
        self.0.make_room().await?;
        let mirror = self.0.mirror(remote);
        let (hold, state) = {
            let mut book = self.0.book();
            let rank = |place: &Place| match &place.state.mirror {
                Some(name) if *name == mirror.name => (0, u64::MAX - place.state.used),
                None => (1, 0),
                Some(_) => (2, place.state.used),
            };
            let free = book.slots.iter_mut().enumerate().filter(|(_, place)| !place.busy);
            let (number, place) = free.min_by_key(|(_, place)| rank(place)).expect("as many permits as slots");
            place.busy = true;
            let state = place.state.clone();
            // From now on it borrows the mirror's objects.
            if place.state.mirror.as_ref() != Some(&mirror.name) {
                place.state.mirror = Some(mirror.name.clone());
                place.state.commit = None;
            }
            (Hold { inner: self.0.clone(), number, permit: Some(permit) }, state)
        };
        let mut slot = Slot::new(hold, remote.clone(), mirror);
        slot.make_clean(&state).await?;
        Ok(slot)
    }

    /// Clears what a dead process left: broken things of earlier, half removed folders, and whatever its jobs wrote.
    /// For the worker's start, before the first job; taking a slot is safe without it.
    pub async fn sweep(&self) -> Result<(), WorkspaceError> {
        let inner = self.0.clone();
        let sweep = move || {
            let pits = inner.root.join("pits");
            // What resists is told, and hinders nobody.
            let remove = |path: &Path| {
                let pit = pits.join(format!("swept-{}", now()));
                let removed = clean::remove(path, &pit).and_then(|()| std::fs::remove_dir(&pit));
                if let Err(error) = removed {
                    (inner.settings.tell)(Trouble::SetAside { path: path.to_owned(), why: error.to_string() });
                }
            };
            for entry in std::fs::read_dir(&pits)? {
                remove(&entry?.path());
            }
            for entry in std::fs::read_dir(inner.root.join("slots"))? {
                let path = entry?.path();
                let number =
                    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<usize>().ok());
                match number.is_some_and(|number| number < inner.settings.slots) {
                    true => ["home", "aside", "git", "tree/.git"].iter().for_each(|name| remove(&path.join(name))),
                    false => remove(&path),
                }
            }
            for entry in std::fs::read_dir(inner.root.join("mirrors"))? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().contains(".broken-") {
                    remove(&entry.path());
                }
            }
            Ok(())
        };
        blocking(sweep).await.map_err(WorkspaceError::folder(&self.0.root))
    }
}

/// A slot in somebody's hand; free again when all who work in it have let go.
struct Hold {
    inner: Arc<Inner>,
    number: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.inner.book().slots[self.number].busy = false;
        drop(self.permit.take());
    }
}

impl Inner {
    /// What a slot's folder holds now.
    fn note(&self, number: usize, state: State) {
        self.book().slots[number].state = state;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mirror(&self, remote: &Remote) -> Arc<Mirror> {
        let name = mirror::name(&remote.url);
        let path = self.root.join("mirrors").join(&name);
        self.book().mirrors.entry(name.clone()).or_insert_with(|| Arc::new(Mirror::new(name, path))).clone()
    }

    /// Renames what is broken, and tells. The next one finds nothing there.
    fn set_aside(&self, path: &Path, why: &str) -> io::Result<()> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".broken-{}", now()));
        let aside = PathBuf::from(aside);
        match std::fs::rename(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        (self.settings.tell)(Trouble::SetAside { path: aside, why: why.to_owned() });
        Ok(())
    }
}

/// Work that waits for the disk, off the threads that do not.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
