//! Control groups of our containers, on both versions of them: what can be bounded, where they are, and how all that is
//! in one is killed without asking any engine.
//!
//! ```text
//! /shoal/<worker>/<life>/mortal/<container>     tasks, killed by the guard when nobody keeps them alive
//! /shoal/<worker>/<life>/tasks/<container>      tasks that are not
//! /shoal/<worker>/lasting/<container>           what outlives its worker
//! ```

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::runtime::container::labels::Owner;
use crate::runtime::container::usage::Group;

/// Where the kernel shows them.
const ROOT: &str = "/sys/fs/cgroup";

/// What bounds containers on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// Nothing.
    #[default]
    None,
    /// One tree a controller, with the names of those that are mounted.
    V1(Vec<String>),
    /// One tree for all, with the controllers that it has.
    V2(Vec<String>),
}

impl Hierarchy {
    /// Whether it can bound this: `cpu`, `memory`, `pids`.
    pub(super) fn has(&self, controller: &str) -> bool {
        match self {
            Self::None => false,
            Self::V1(controllers) | Self::V2(controllers) => controllers.iter().any(|one| one == controller),
        }
    }
}

/// What is mounted at `root`, which is `/sys/fs/cgroup`.
pub(super) fn hierarchy(root: &Path) -> Hierarchy {
    if let Ok(controllers) = std::fs::read_to_string(root.join("cgroup.controllers")) {
        return Hierarchy::V2(controllers.split_whitespace().map(str::to_owned).collect());
    }
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    // A folder may be several controllers', as `cpu,cpuacct`.
    let names = entries.filter(|entry| entry.path().join("tasks").exists()).map(|entry| entry.file_name());
    let controllers: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .flat_map(|name| name.split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    if controllers.is_empty() { Hierarchy::None } else { Hierarchy::V1(controllers) }
}

/// How long a container lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// Until nobody keeps it alive.
    Mortal,
    /// As long as its worker.
    Life,
    /// Until somebody removes it.
    Lasting,
}

/// A worker's part of the tree, as a path below the root of every hierarchy.
pub(super) fn of_worker(owner: &Owner) -> String {
    format!("/shoal/{}", key(&format!("{}/{}", owner.fleet, owner.worker)))
}

/// What belongs to this life of it.
pub(super) fn of_life(owner: &Owner) -> String {
    format!("{}/{}", of_worker(owner), key(&owner.instance))
}

/// Where a container's group is.
pub(super) fn of_container(owner: &Owner, span: Span, id: &str) -> String {
    match span {
        Span::Mortal => format!("{}/mortal/{id}", of_life(owner)),
        Span::Life => format!("{}/life/{id}", of_life(owner)),
        Span::Lasting => format!("{}/lasting/{id}", of_worker(owner)),
    }
}

/// Short, of letters and digits, and another for every text.
pub(super) fn key(text: &str) -> String {
    Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folders of one path in all hierarchies.
fn folders(path: &str) -> Vec<PathBuf> {
    let below = |root: PathBuf| root.join(path.trim_start_matches('/'));
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec![below(ROOT.into())];
    }
    let roots = std::fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = roots.map(below).filter(|folder| folder.is_dir()).collect();
    found.sort();
    found.dedup_by_key(|folder| std::fs::canonicalize(&*folder).unwrap_or_default());
    found
}

/// The folders below these, the deepest first, they themselves last.
fn tree(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            tree(&entry.path(), into);
        }
    }
    into.push(folder.to_owned());
}

fn processes(folder: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0 is one that is not seen from here.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// The groups right below `path` in which something runs, by name.
pub(super) fn busy(path: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for folder in folders(path) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let mut below = Vec::new();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                tree(&entry.path(), &mut below);
            }
            if below.iter().any(|folder| !processes(folder).is_empty()) {
                names.extend(entry.file_name().into_string());
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Kills all that is in the group at `path` and below it. What is frozen is let go, to die.
pub(super) fn kill(path: &str) {
    for folder in folders(path) {
        let mut all = Vec::new();
        tree(&folder, &mut all);
        for folder in all {
            // Version 2 does it in one, frozen or not, and misses nothing that forks.
            if std::fs::write(folder.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            for pid in processes(&folder) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            let _ = std::fs::write(folder.join("freezer.state"), "THAWED");
        }
    }
}

/// The files of the group at `path`, if it is there: what is measured in it.
pub(super) fn files(path: &str) -> Option<Group> {
    let below = |root: PathBuf| Some(root.join(path.trim_start_matches('/'))).filter(|folder| folder.is_dir());
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return below(ROOT.into()).map(Group::V2);
    }
    let of = |controller: &str| {
        let roots = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
        let is_of =
            |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.split(',').any(|one| one == controller));
        roots.filter(|entry| is_of(&entry.file_name())).find_map(|entry| below(entry.path()))
    };
    Some(Group::V1 { memory: of("memory")?, cpu: of("cpuacct")?, pids: of("pids")? })
}

/// Removes the group at `path` if there is nothing in it.
pub(super) fn remove_empty(path: &str) {
    // Whatever is in it keeps it.
    folders(path).into_iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
}

/// Removes the group at `path` and those below it, as far as nothing is in them.
pub(super) fn remove(path: &str) {
    for folder in folders(path) {
        let mut all = Vec::new();
        tree(&folder, &mut all);
        for folder in all {
            match std::fs::remove_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(folder = %folder.display(), %error, "a control group stays");
                }
                _ => {}
            }
        }
    }
}

/// The groups of a worker's other lives.
pub(super) fn other_lives(owner: &Owner) -> Vec<String> {
    let (worker, own) = (of_worker(owner), key(&owner.instance));
    let mut names: Vec<String> = Vec::new();
    for folder in folders(&worker) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let lives = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        names.extend(lives.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    names.sort();
    names.dedup();
    names.into_iter().filter(|name| *name != own && name != "lasting").map(|name| format!("{worker}/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::AgentId;

    #[test]
    fn both_versions_are_known_by_their_files() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        assert_eq!(hierarchy(root.path()), Hierarchy::None);
        for folder in ["cpu,cpuacct", "memory", "not-one"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        for folder in ["cpu,cpuacct", "memory"] {
            std::fs::write(at(folder).join("tasks"), "").unwrap();
        }
        let v1 = hierarchy(root.path());
        assert!(v1.has("cpu") && v1.has("cpuacct") && v1.has("memory") && !v1.has("pids") && !v1.has("not-one"));
        std::fs::write(at("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let v2 = hierarchy(root.path());
        assert!(matches!(v2, Hierarchy::V2(_)) && v2.has("pids") && !v2.has("cpuacct"));
    }

    #[test]
    fn what_outlives_its_worker_is_in_no_life_of_it() {
        let owner = Owner { fleet: "f".into(), worker: AgentId::new("w").unwrap(), instance: "i".into() };
        let life = of_life(&owner);
        assert!(of_container(&owner, Span::Mortal, "c").starts_with(&format!("{life}/mortal/")));
        assert!(of_container(&owner, Span::Life, "c").starts_with(&format!("{life}/")));
        assert!(!of_container(&owner, Span::Lasting, "c").starts_with(&life));
        let next = Owner { instance: "j".into(), ..owner.clone() };
        assert_ne!(of_life(&next), life);
        assert_eq!(of_container(&next, Span::Lasting, "c"), of_container(&owner, Span::Lasting, "c"));
    }
}
