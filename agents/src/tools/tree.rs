//! The files of a workspace that may be hostile, and may be changed while we look.
//!
//! Nothing is ever opened by its whole path. The root is opened once; everything else is resolved by the kernel from that
//! descriptor, beneath it and without following any link (`openat2`, Linux 5.6), so that no moment lies between looking
//! and touching. Where `openat2` is missing, or a sandbox forbids it, each component is opened by itself with
//! `O_NOFOLLOW`, which comes to the same for paths without `..`, the only ones that a [`Place`] holds.
//! FIFOs, sockets and devices are refused; they are opened without blocking before that is known.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, dup, unlinkat};

use super::place::Place;

/// An open workspace.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    /// The kernel has `openat2`, as far as is known.
    beneath: AtomicBool,
}

/// Why a file could not be touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// There is none.
    #[error("{0} does not exist")]
    Missing(String),
    /// It is a link, or a component of its path is.
    #[error("{0} is a symbolic link, or leads through one; links are not followed")]
    Link(String),
    /// It is something else than what is needed.
    #[error("{0} is not {1}")]
    Kind(String, &'static str),
    /// It is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// The system said no.
    #[error("{0}: {1}")]
    System(String, Errno),
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// FIFO, socket, device.
    Other,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// It.
    pub name: OsString,
    /// What it stands for.
    pub kind: Kind,
}

impl Tree {
    /// Opens a workspace. The way to `root` is trusted; `root` itself may not be a link.
    pub fn open(root: &Path) -> Result<Self, TreeError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = nix::fcntl::open(root, flags, Mode::empty())
            .map_err(|errno| TreeError::System(root.display().to_string(), errno))?;
        Ok(Self { root, beneath: AtomicBool::new(true) })
    }

    /// The same without `openat2`, as on kernels before 5.6.
    #[cfg(test)]
    fn without_openat2(self) -> Self {
        self.beneath.store(false, Ordering::Relaxed);
        self
    }

    /// Opens a file for reading, and tells its size.
    pub fn file(&self, place: &Place) -> Result<(File, u64), TreeError> {
        let fd = self.opened(place, OFlag::O_RDONLY)?;
        let stat = fstat(&fd).map_err(|errno| error(place, errno))?;
        match kind(&stat) {
            Kind::File => Ok((File::from(fd), u64::try_from(stat.st_size).unwrap_or(0))),
            Kind::Folder => Err(TreeError::Kind(place.to_string(), "a file but a folder")),
            Kind::Link | Kind::Other => Err(TreeError::Kind(place.to_string(), "a regular file")),
        }
    }

    /// A whole file of at most `most` bytes.
    pub fn read(&self, place: &Place, most: u64) -> Result<Vec<u8>, TreeError> {
        let (file, size) = self.file(place)?;
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes).map_err(|io| error(place, errno_of(&io)))?;
        if size.max(bytes.len() as u64) > most {
            return Err(TreeError::Kind(place.to_string(), "small enough to be edited as a whole"));
        }
        Ok(bytes)
    }

    /// What is there, without following a link.
    pub fn kind(&self, place: &Place) -> Result<Kind, TreeError> {
        let Some((folder, name)) = place.split() else { return Ok(Kind::Folder) };
        let folder = self.folder(&folder)?;
        let stat = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|errno| error(place, errno))?;
        Ok(kind(&stat))
    }

    /// The names in a folder, sorted, at most `most` of them; git's own are left out. And whether there are more.
    pub fn list(&self, place: &Place, most: usize) -> Result<(Vec<Named>, bool), TreeError> {
        let fd = self.opened(place, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut folder = Dir::from_fd(fd).map_err(|errno| error(place, errno))?;
        let (mut names, mut unknown) = (Vec::new(), Vec::new());
        let mut more = false;
        for entry in folder.iter() {
            let entry = entry.map_err(|errno| error(place, errno))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name == "." || name == ".." || place.join(&name).is_none() {
                continue;
            }
            if names.len() + unknown.len() >= most {
                more = true;
                break;
            }
            use nix::dir::Type;
            let kind = match entry.file_type() {
                Some(Type::File) => Kind::File,
                Some(Type::Directory) => Kind::Folder,
                Some(Type::Symlink) => Kind::Link,
                Some(Type::Fifo | Type::Socket | Type::CharacterDevice | Type::BlockDevice) => Kind::Other,
                None => {
                    unknown.push(name);
                    continue;
                }
            };
            names.push(Named { name, kind });
        }
        // File systems that do not tell the kind with the name.
        for name in unknown {
            if let Ok(stat) = fstatat(&folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                names.push(Named { name, kind: kind(&stat) });
            }
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((names, more))
    }

    /// Where a link leads, as it is written.
    pub fn link(&self, place: &Place) -> Option<OsString> {
        let (folder, name) = place.split()?;
        readlinkat(self.folder(&folder).ok()?, name).ok()
    }

    /// Writes a whole file, in one step as others see it, with its folders. A file that is there keeps its mode; only
    /// regular files are replaced.
    pub fn write(&self, place: &Place, bytes: &[u8]) -> Result<(), TreeError> {
        let wrong = |errno| error(place, errno);
        let Some((folder, name)) = place.split() else { return Err(TreeError::Kind(place.to_string(), "a file")) };
        let folder = self.made(&folder)?;
        let mode = match fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => match kind(&stat) {
                Kind::File => Some(Mode::from_bits_truncate(stat.st_mode & 0o777)),
                Kind::Link => return Err(TreeError::Link(place.to_string())),
                Kind::Folder => return Err(TreeError::Kind(place.to_string(), "a file but a folder")),
                Kind::Other => return Err(TreeError::Kind(place.to_string(), "a regular file")),
            },
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(wrong(errno)),
        };
        let aside = OsString::from(format!(".shoal-{:016x}.tmp", rand::random::<u64>()));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&folder, aside.as_os_str(), flags, Mode::from_bits_truncate(0o666)).map_err(wrong)?;
        let mut file = File::from(fd);
        let written = file
            .write_all(bytes)
            .map_err(|io| errno_of(&io))
            .and_then(|()| mode.map_or(Ok(()), |mode| fchmod(&file, mode)))
            .and_then(|()| renameat(&folder, aside.as_os_str(), &folder, name));
        written.map_err(|errno| {
            let _ = unlinkat(&folder, aside.as_os_str(), UnlinkatFlags::NoRemoveDir);
            wrong(errno)
        })
    }

    /// Removes a file or a link, not what it leads to.
    pub fn remove(&self, place: &Place) -> Result<(), TreeError> {
        let Some((folder, name)) = place.split() else { return Err(TreeError::Kind(place.to_string(), "a file")) };
        let folder = self.folder(&folder)?;
        unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir).map_err(|errno| match errno {
            Errno::EISDIR | Errno::EPERM => TreeError::Kind(place.to_string(), "a file but a folder"),
            errno => error(place, errno),
        })
    }

    /// Gives a file or folder another name, with the folders that this takes. Nothing is replaced.
    pub fn rename(&self, from: &Place, to: &Place) -> Result<(), TreeError> {
        let (Some((folder, name)), Some((to_folder, to_name))) = (from.split(), to.split()) else {
            return Err(TreeError::Kind(from.to_string(), "to be moved"));
        };
        let folder = self.folder(&folder)?;
        fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|errno| error(from, errno))?;
        let to_folder = self.made(&to_folder)?;
        let flags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
        nix::fcntl::renameat2(&folder, name, &to_folder, to_name, flags).map_err(|errno| match errno {
            Errno::EEXIST => TreeError::Exists(to.to_string()),
            Errno::EINVAL => TreeError::Kind(to.to_string(), "a place to move it to: it is below itself"),
            errno => error(from, errno),
        })
    }

    /// A folder, as something to begin from.
    fn folder(&self, place: &Place) -> Result<OwnedFd, TreeError> {
        self.opened(place, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// The same, and every folder on the way that is missing is made.
    fn made(&self, place: &Place) -> Result<OwnedFd, TreeError> {
        match self.folder(place) {
            Err(TreeError::Missing(_)) => {}
            other => return other,
        }
        let mut at = dup(&self.root).map_err(|errno| error(place, errno))?;
        for name in place.path() {
            match mkdirat(&at, name, Mode::from_bits_truncate(0o777)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(error(place, errno)),
            }
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            at = openat(&at, name, flags, Mode::empty()).map_err(|errno| error(place, errno))?;
        }
        Ok(at)
    }

    /// Opens without following any link, and without waiting for whoever is at the other end.
    fn opened(&self, place: &Place, flags: OFlag) -> Result<OwnedFd, TreeError> {
        let path = if place.is_root() { Path::new(".") } else { place.path() };
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // The kernel refuses further flags beside `O_PATH`.
        let flags = if flags.contains(OFlag::O_PATH) { flags } else { flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY };
        if self.beneath.load(Ordering::Relaxed) {
            match self.beneath(path, flags) {
                // A sandbox may answer EPERM to what it does not know. Then, and on old kernels, step by step.
                Err(Errno::ENOSYS | Errno::EPERM) => self.beneath.store(false, Ordering::Relaxed),
                opened => return opened.map_err(|errno| error(place, errno)),
            }
        }
        stepwise(self.root.as_fd(), path, flags).map_err(|errno| error(place, errno))
    }

    fn beneath(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let resolve =
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        for _ in 0..16 {
            // EAGAIN: somebody renamed something just then, and the kernel cannot be sure.
            // `O_NOFOLLOW` would call a link that should be a folder "not a folder".
            match openat2(&self.root, path, OpenHow::new().flags(flags - OFlag::O_NOFOLLOW).resolve(resolve)) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                opened => return opened,
            }
        }
        Err(Errno::EAGAIN)
    }
}

/// One component after the other, none of them a link.
fn stepwise(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let folder = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = dup(root)?;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        let last = names.peek().is_none();
        at = openat(&at, name, if last { flags } else { folder }, Mode::empty()).map_err(|errno| {
            // `O_DIRECTORY` sees a link as "not a folder"; it is a link that was met.
            let stat = fstatat(&at, name, AtFlags::AT_SYMLINK_NOFOLLOW);
            if errno == Errno::ENOTDIR && stat.is_ok_and(|stat| kind(&stat) == Kind::Link) {
                Errno::ELOOP
            } else {
                errno
            }
        })?;
    }
    Ok(at)
}

fn kind(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Folder,
        SFlag::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn error(place: &Place, errno: Errno) -> TreeError {
    let place = place.to_string();
    match errno {
        Errno::ENOENT => TreeError::Missing(place),
        Errno::ELOOP | Errno::EXDEV => TreeError::Link(place),
        Errno::ENOTDIR => TreeError::Kind(place, "below folders only, or not a folder"),
        // A socket, or a FIFO without a reader.
        Errno::ENXIO => TreeError::Kind(place, "a regular file"),
        errno => TreeError::System(place, errno),
    }
}

#[cfg(test)]
mod tests;
