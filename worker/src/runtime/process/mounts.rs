//! Where control groups can be made: what is mounted, where this process is in it, and what it may write.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plan;

/// The controllers that a bound may need.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// A place below which groups with this controller can be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hierarchy {
    pub(super) controller: &'static str,
    pub(super) parent: PathBuf,
    pub(super) v2: bool,
}

/// One line of `/proc/self/mountinfo` about control groups.
#[derive(Debug, PartialEq)]
struct Mount {
    /// Which part of the hierarchy is mounted.
    root: String,
    at: PathBuf,
    v2: bool,
    /// Version 1 says here which controllers it has.
    options: Vec<String>,
}

/// Every controller that this process may use, with its place.
pub(super) fn hierarchies() -> Vec<Hierarchy> {
    let mounts = read_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    CONTROLLERS.iter().filter_map(|controller| find(controller, &mounts, &own)).collect()
}

fn find(controller: &'static str, mounts: &[Mount], own: &str) -> Option<Hierarchy> {
    let v1 = mounts.iter().find(|mount| !mount.v2 && mount.options.iter().any(|option| option == controller));
    if let Some(mount) = v1 {
        let parent = own_folder(mount, own, Some(controller))?;
        return may_make_groups(&parent).then_some(Hierarchy { controller, parent, v2: false });
    }
    let mount = mounts.iter().find(|mount| mount.v2)?;
    let own = own_folder(mount, own, None)?;
    // From the own group upwards: the nearest that hands the controller down.
    let parents = own.ancestors().take_while(|folder| folder.starts_with(&mount.at));
    for parent in parents {
        if !has(parent, "cgroup.controllers", controller) || !may_make_groups(parent) {
            continue;
        }
        if enable(parent, controller) || (parent == own && make_room(parent) && enable(parent, controller)) {
            return Some(Hierarchy { controller, parent: parent.to_owned(), v2: true });
        }
    }
    None
}

fn read_mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let front: Vec<&str> = front.split(' ').collect();
        let mut back = back.split(' ');
        let v2 = match back.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = back.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
        Some(Mount { root: (*front.get(3)?).to_owned(), at: front.get(4)?.into(), v2, options })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The folder of this process's own group; `own` is `/proc/self/cgroup`.
fn own_folder(mount: &Mount, own: &str, controller: Option<&str>) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let mine = match controller {
            Some(controller) => controllers.split(',').any(|each| each == controller),
            None => number == "0" && controllers.is_empty(),
        };
        mine.then_some(path)
    })?;
    // In a container the mount shows a part only; from outside of it the path begins with that part's.
    let below = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or_default().trim_start_matches('/');
    let folder = mount.at.join(below);
    folder.is_dir().then_some(folder)
}

/// Tries it: modes and owners tell only half of the truth.
fn may_make_groups(parent: &Path) -> bool {
    let trial = parent.join(format!("shoal-jobs-trial-{}", std::process::id()));
    let made = fs::create_dir(&trial);
    let _ = fs::remove_dir(&trial);
    made.is_ok()
}

/// Hands `controller` down to the groups below `folder`; true if they have it.
pub(super) fn enable(folder: &Path, controller: &str) -> bool {
    let file = "cgroup.subtree_control";
    if !has(folder, file, controller)
        && let Err(error) = plan::write(&folder.join(file), &format!("+{controller}"))
    {
        tracing::debug!(folder = %folder.display(), controller, %error, "the control group hands nothing down");
    }
    has(folder, file, controller)
}

fn has(folder: &Path, file: &str, controller: &str) -> bool {
    let words = fs::read_to_string(folder.join(file)).unwrap_or_default();
    words.split_ascii_whitespace().any(|word| word == controller)
}

/// A group that hands controllers down may hold no process itself. Where this process is the only one in it (a
/// service with `Delegate=yes`, a container), it moves into a group below.
fn make_room(own: &Path) -> bool {
    let me = std::process::id().to_string();
    let members = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    if members.split_ascii_whitespace().any(|pid| pid != me) {
        return false;
    }
    let below = own.join("worker");
    let moved = match fs::create_dir(&below) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => plan::write(&below.join("cgroup.procs"), &me),
    };
    moved.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_from_within_and_without_a_container() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("user/a")).unwrap();
        let own = "5:cpu,cpuacct:/x\n4:memory:/docker/1/user/a\n0::/user/a\n";
        let mount = |root: &str, v2| Mount { root: root.into(), at: folder.path().into(), v2, options: Vec::new() };
        let expected = Some(folder.path().join("user/a"));
        assert_eq!(own_folder(&mount("/docker/1", false), own, Some("memory")), expected);
        assert_eq!(own_folder(&mount("/", true), own, None), expected);
        assert_eq!(own_folder(&mount("/", false), own, Some("pids")), None);
    }

    #[test]
    fn both_versions_are_read_from_the_mounts() {
        let text = "30 23 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                    31 23 0:27 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n\
                    32 23 0:28 / /proc rw - proc proc rw\n";
        let mounts = read_mounts(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].v2, mounts[0].options[1].as_str()), (false, "memory"));
        assert_eq!(
            (mounts[1].v2, mounts[1].root.as_str(), mounts[1].at.as_path()),
            (true, "/a", Path::new("/sys/fs/cgroup"))
        );
    }

    #[test]
    fn version_2_takes_the_nearest_group_that_hands_its_controllers_down() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("user/scope");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("cgroup.controllers"), "memory pids\n").unwrap();
        fs::write(own.join("cgroup.procs"), "1\n2\n").unwrap();
        fs::write(own.join("cgroup.subtree_control"), "").unwrap();
        let user = root.path().join("user");
        fs::write(user.join("cgroup.controllers"), "memory pids\n").unwrap();
        fs::write(user.join("cgroup.subtree_control"), "memory pids\n").unwrap();
        let mounts = [Mount { root: "/".into(), at: root.path().into(), v2: true, options: Vec::new() }];
        // The fake file takes the word as it was written, so it never reads as enabled: like EBUSY.
        let found = find("memory", &mounts, "0::/user/scope\n").unwrap();
        assert_eq!((found.parent, found.v2), (user, true));
        assert_eq!(find("cpu", &mounts, "0::/user/scope\n"), None);
    }
}
