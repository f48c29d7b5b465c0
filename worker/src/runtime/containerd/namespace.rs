//! Network namespaces that outlive every process in them: files at which the kernel shows them.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Where they are; gone with everything else there when the machine starts anew.
pub(super) const FOLDER: &str = "/run/shoal/netns";

/// The file of one.
pub(super) fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Makes one with loopback up; one that is there already is as good.
pub(super) async fn ensure(name: &str) -> io::Result<PathBuf> {
    let path = path(name);
    let made = path.clone();
    // A thread of its own: what it unshares no other thread may come to run in.
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("shoal-netns".to_owned()).spawn(move || {
        let _ = tell.send(make(&made));
    })?;
    told.await.unwrap_or_else(|_| Err(io::Error::other("it panicked")))?;
    Ok(path)
}

fn make(path: &Path) -> io::Result<()> {
    const NONE: Option<&str> = None;
    std::fs::create_dir_all(FOLDER)?;
    if is_one(path) {
        return Ok(());
    }
    std::fs::File::create(path)?;
    let made = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .and_then(|()| loopback_up())
        .and_then(|()| Ok(mount(Some("/proc/thread-self/ns/net"), path, NONE, MsFlags::MS_BIND, NONE)?));
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Whether the kernel shows a namespace there, not only somebody's empty file.
fn is_one(path: &Path) -> bool {
    const NSFS: nix::sys::statfs::FsType = nix::sys::statfs::FsType(libc::NSFS_MAGIC);
    nix::sys::statfs::statfs(path).is_ok_and(|about| about.filesystem_type() == NSFS)
}

fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros is a request for nothing.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request lives through the call, and the kernel only reads it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Removes one: who still runs in it keeps it to the end. What is gone already is gone.
pub(super) fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    while is_one(&path) {
        umount2(&path, MntFlags::MNT_DETACH)?;
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All there are.
pub(super) fn all() -> Vec<String> {
    let entries = std::fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
