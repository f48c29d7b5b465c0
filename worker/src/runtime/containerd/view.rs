//! A look into a container's files, as the container sees them: every link leads where it would lead there.
//!
//! A thread of its own, with a mount namespace and a root of its own, is where they are mounted; when it ends nothing of
//! that is left, however it ends.

use std::io;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Calls `look` where `/` is what these mounts show, only to be read. `at` is any folder; nothing is seen in it from
/// elsewhere. Fails where the mounts cannot be made.
pub(super) async fn within<T: Send + 'static>(
    mounts: Vec<Mount>,
    at: PathBuf,
    look: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let looking = move || {
        let seen = enter(&mounts, &at).and_then(|()| look());
        // Nobody may wait any more.
        let _ = tell.send(seen);
    };
    std::thread::Builder::new().name("shoal-view".to_owned()).spawn(looking)?;
    told.await.unwrap_or_else(|_| Err(io::Error::other("the look into a container's files panicked")))
}

/// A folder to look from.
pub(super) fn place() -> io::Result<PathBuf> {
    let place = PathBuf::from("/run/shoal");
    std::fs::create_dir_all(&place)?;
    Ok(place)
}

fn enter(mounts: &[Mount], at: &Path) -> io::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let [one] = mounts else { return Err(io::Error::other(format!("{} mounts and not one", mounts.len()))) };
    let layers = match one.r#type.as_str() {
        "overlay" => layers(&one.options),
        "bind" => vec![one.source.as_str()],
        kind => return Err(io::Error::other(format!("mounts of the kind `{kind}` cannot be looked into"))),
    };
    match layers[..] {
        [] => return Err(io::Error::other("an overlay of nothing")),
        // The kernel makes no overlay of one layer without a place to write.
        [folder] => {
            mount(Some(folder), at, NONE, MsFlags::MS_BIND, NONE)?;
            mount(NONE, at, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, NONE)?;
        }
        _ => {
            let (data, flags) =
                (format!("index=off,lowerdir={}", layers.join(":")), MsFlags::MS_RDONLY | MsFlags::MS_NODEV);
            mount(Some("overlay"), at, Some("overlay"), flags, Some(data.as_str()))?;
        }
    }
    std::env::set_current_dir(at).and_then(|()| nix::unistd::chroot(".").map_err(io::Error::from))?;
    // It is the thread's own since `CLONE_FS`.
    std::env::set_current_dir("/")
}

/// The layers of an overlay, the topmost first: what was written is one of them.
fn layers(options: &[String]) -> Vec<&str> {
    let of = |name: &str| options.iter().find_map(|option| option.strip_prefix(name));
    of("upperdir=").into_iter().chain(of("lowerdir=").into_iter().flat_map(|lower| lower.split(':'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_lies_on_top() {
        let options = |options: &[&str]| options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        let writable = options(&["index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"]);
        assert_eq!(layers(&writable), ["/s/3/fs", "/s/2/fs", "/s/1/fs"]);
        assert_eq!(layers(&options(&["lowerdir=/s/2/fs:/s/1/fs"])), ["/s/2/fs", "/s/1/fs"]);
        assert!(layers(&options(&["index=off"])).is_empty());
    }
}
