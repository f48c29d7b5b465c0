//! Which control groups this worker may make, and what bounds of a job become.
//!
//! A worker makes one folder of its own, `shoal-jobs-<name>`, per hierarchy, and holds a lock on it as long as it lives. A
//! folder whose lock is free belongs to a dead worker and is swept by the next one to start.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use schemas::StartId;

use super::super::{Bounds, StartError};
use super::mounts::{self, Hierarchy};
use super::plan::{self, CgroupPlan, Setting};

/// Begins the name of every folder that a worker makes for itself, and of nothing else: an operator may well have a
/// `shoal-worker.service` beside it, whose members nobody may kill.
const OURS: &str = "shoal-jobs-";
/// CPU time is handed out per this many microseconds, the kernel's default.
const PERIOD_US: u64 = 100_000;
/// The kernel's longest, for shares below its smallest quota of 1 ms a period.
const LONG_PERIOD_US: u64 = 1_000_000;
/// Ten thousand cores: more the kernel does not take.
const LARGEST_QUOTA_US: u64 = 1_000_000_000;

/// The folders of one worker.
pub(super) struct Cgroups {
    memory: Option<Home>,
    cpu: Option<Home>,
    pids: Option<Home>,
    /// Held as long as the worker lives.
    _locks: Vec<File>,
    /// Root without capabilities aside, RLIMIT_NPROC does not bind root.
    root: bool,
}

#[derive(Clone, Debug)]
struct Home {
    folder: PathBuf,
    v2: bool,
}

/// How the bounds of a job are held.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) cgroup: Option<CgroupPlan>,
    pub(super) address_space: Option<u64>,
    pub(super) processes: Option<u64>,
}

impl Cgroups {
    /// None at all: bounds by rlimits, as far as these go.
    pub(super) fn none() -> Self {
        Self { memory: None, cpu: None, pids: None, _locks: Vec::new(), root: nix::unistd::geteuid().is_root() }
    }

    /// Finds where groups may be made, sweeps what dead workers left there, and makes the worker's own. Blocks.
    pub(super) fn claim(name: &str) -> Self {
        let hierarchies = mounts::hierarchies();
        let mut parents: Vec<PathBuf> = hierarchies.iter().map(|hierarchy| hierarchy.parent.clone()).collect();
        parents.sort();
        parents.dedup();
        parents.iter().for_each(|parent| sweep(parent));
        let Some((own, locks)) = claim_name(&parents, name) else { return Self::none() };
        let home = |controller: &str| {
            let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.controller == controller)?;
            let Hierarchy { parent, v2, .. } = hierarchy;
            let home = Home { folder: parent.join(&own), v2: *v2 };
            // Version 2 hands a controller down only where it is told to.
            let passed_on = !v2 || mounts::enable(&home.folder, controller);
            passed_on.then_some(home)
        };
        let root = nix::unistd::geteuid().is_root();
        Self { memory: home("memory"), cpu: home("cpu"), pids: home("pids"), _locks: locks, root }
    }

    /// Words for the registry.
    pub(super) fn capabilities(&self) -> Vec<String> {
        let words = [
            (true, "memory_limit"),
            (self.cpu.is_some(), "cpu_limit"),
            (self.pids.is_some() || !self.root, "pids_limit"),
            (self.memory.is_some(), "oom"),
        ];
        words.into_iter().filter(|(can, _)| *can).map(|(_, word)| word.to_owned()).collect()
    }

    /// How the bounds of the job `start` are held; an error names one that cannot be.
    pub(super) fn hold(&self, start: &StartId, bounds: &Bounds) -> Result<Held, StartError> {
        let mut held = Held::default();
        let mut plan = CgroupPlan::default();
        let within = |home: &Home| home.folder.join(start.as_str());
        if let Some(schemas::Bytes(bytes)) = bounds.memory.bound() {
            match &self.memory {
                Some(home) => hold_memory(&mut plan, within(home), home.v2, bytes),
                None => held.address_space = Some(bytes),
            }
        }
        if let Some(cpu) = bounds.cpu.bound() {
            match &self.cpu {
                Some(home) => hold_cpu(&mut plan, within(home), home.v2, cpu.millis),
                None => return Err(unsupported("cpu")),
            }
        }
        if let Some(count) = bounds.pids.bound() {
            match &self.pids {
                Some(home) => hold_pids(&mut plan, within(home), home.v2, count),
                // Counts all processes of the user, so it is held, if more strictly than asked for.
                None if !self.root => held.processes = Some(count),
                None => return Err(unsupported("pids")),
            }
        }
        held.cgroup = (!plan.folders.is_empty()).then_some(plan);
        Ok(held)
    }

    /// Removes the worker's own folders, once their jobs are gone. Blocks.
    pub(super) fn remove(&self) {
        for home in [&self.memory, &self.cpu, &self.pids].into_iter().flatten() {
            // What is not empty yet is swept by the next worker.
            let _ = fs::remove_dir(&home.folder);
        }
    }
}

fn unsupported(limit: &'static str) -> StartError {
    let why = "no control group is writable here; run the worker as root or with a delegated cgroup, \
               or ask for `unlimited`";
    StartError::LimitUnsupported { limit, why: why.to_owned() }
}

fn hold_memory(plan: &mut CgroupPlan, folder: PathBuf, v2: bool, bytes: u64) {
    let bound = bytes.min(i64::MAX as u64).to_string();
    let (limit, swap) = if v2 {
        (
            vec![("memory.max", bound.as_str(), false)],
            vec![("memory.swap.max", "0", true), ("memory.oom.group", "1", true)],
        )
    } else {
        // Memory and swap together: the same bound leaves nothing for swap.
        let limit = vec![("memory.limit_in_bytes", bound.as_str(), false)];
        (limit, vec![("memory.memsw.limit_in_bytes", bound.as_str(), true), ("memory.swappiness", "0", true)])
    };
    for (file, value, optional) in limit.into_iter().chain(swap) {
        set(plan, &folder, file, value, optional);
    }
    plan.oom = Some(folder.join(if v2 { "memory.events" } else { "memory.oom_control" }));
    plan.peak = Some(folder.join(if v2 { "memory.peak" } else { "memory.max_usage_in_bytes" }));
    add(plan, folder, v2);
}

fn hold_cpu(plan: &mut CgroupPlan, folder: PathBuf, v2: bool, millis: u64) {
    // The kernel takes no quota below 1 ms.
    let period = if millis < 10 { LONG_PERIOD_US } else { PERIOD_US };
    let quota = (millis.saturating_mul(period) / 1_000).min(LARGEST_QUOTA_US);
    if v2 {
        set(plan, &folder, "cpu.max", &format!("{quota} {period}"), false);
    } else {
        set(plan, &folder, "cpu.cfs_period_us", &period.to_string(), false);
        set(plan, &folder, "cpu.cfs_quota_us", &quota.to_string(), false);
    }
    add(plan, folder, v2);
}

fn hold_pids(plan: &mut CgroupPlan, folder: PathBuf, v2: bool, count: u64) {
    // The kernel's own bound on pids is 2^22.
    set(plan, &folder, "pids.max", &count.min(1 << 22).to_string(), false);
    plan.pids = Some(folder.join("pids.events"));
    plan.pids_max = Some(folder.join("pids.max"));
    add(plan, folder, v2);
}

fn set(plan: &mut CgroupPlan, folder: &Path, file: &str, value: &str, optional: bool) {
    plan.settings.push(Setting { file: folder.join(file), value: value.to_owned(), optional });
}

fn add(plan: &mut CgroupPlan, folder: PathBuf, v2: bool) {
    if v2 {
        plan.cpu = Some(folder.join("cpu.stat"));
        plan.kill = Some(folder.join("cgroup.kill"));
    }
    if !plan.folders.contains(&folder) {
        plan.folders.push(folder);
    }
}

/// Makes `shoal-jobs-<name>` below every parent and locks it; another name where another worker holds it.
fn claim_name(parents: &[PathBuf], name: &str) -> Option<(String, Vec<File>)> {
    if parents.is_empty() {
        return None;
    }
    let names = std::iter::once(format!("{OURS}{name}")).chain((2..1_000).map(|n| format!("{OURS}{name}-{n}")));
    for own in names {
        let locks: io::Result<Option<Vec<File>>> =
            parents.iter().map(|parent| make_and_lock(&parent.join(&own))).collect();
        match locks {
            Ok(Some(locks)) => return Some((own, locks)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "no control groups: limits are held by rlimits only");
                return None;
            }
        }
    }
    None
}

/// `None` if another worker holds it.
fn make_and_lock(folder: &Path) -> io::Result<Option<File>> {
    match fs::create_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let Ok(file) = File::open(folder) else { return Ok(None) };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
        Ok(()) => {}
    }
    // A sweep may have taken it for abandoned in the moment before the lock.
    let same = fs::metadata(folder).is_ok_and(|now| file.metadata().is_ok_and(|then| then.ino() == now.ino()));
    Ok(same.then_some(file))
}

/// Ends what dead workers left below `parent`, and removes it.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(OURS) {
            continue;
        }
        let folder = entry.path();
        if File::open(&folder).is_ok_and(|file| file.try_lock().is_ok() && is_group(&folder)) {
            plan::remove_group(&folder);
        }
    }
}

fn is_group(folder: &Path) -> bool {
    folder.join("cgroup.procs").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Limit;

    fn bounds(cpu: u64, memory: u64, pids: u64) -> Bounds {
        Bounds {
            cpu: Limit::At(schemas::Cpu { millis: cpu }),
            memory: Limit::At(schemas::Bytes(memory)),
            pids: Limit::At(pids),
        }
    }

    fn groups(v2: bool) -> Cgroups {
        let home = |name: &str| Some(Home { folder: if v2 { "/cg".into() } else { format!("/{name}").into() }, v2 });
        Cgroups { memory: home("memory"), cpu: home("cpu"), pids: home("pids"), _locks: Vec::new(), root: true }
    }

    fn settings(held: &Held) -> Vec<String> {
        let plan = held.cgroup.as_ref().unwrap();
        plan.settings.iter().map(|set| format!("{}={}", set.file.display(), set.value)).collect()
    }

    #[test]
    fn version_2_holds_all_bounds_in_one_group() {
        let held = groups(true).hold(&"s1".parse().unwrap(), &bounds(1500, 4096, 7)).unwrap();
        let expected = [
            "/cg/s1/memory.max=4096",
            "/cg/s1/memory.swap.max=0",
            "/cg/s1/memory.oom.group=1",
            "/cg/s1/cpu.max=150000 100000",
            "/cg/s1/pids.max=7",
        ];
        assert_eq!(settings(&held), expected);
        assert_eq!(held.cgroup.unwrap().folders, [PathBuf::from("/cg/s1")]);
    }

    #[test]
    fn version_1_holds_each_bound_in_its_own_hierarchy() {
        let held = groups(false).hold(&"s1".parse().unwrap(), &bounds(5, 4096, 7)).unwrap();
        let expected = [
            "/memory/s1/memory.limit_in_bytes=4096",
            "/memory/s1/memory.memsw.limit_in_bytes=4096",
            "/memory/s1/memory.swappiness=0",
            "/cpu/s1/cpu.cfs_period_us=1000000",
            "/cpu/s1/cpu.cfs_quota_us=5000",
            "/pids/s1/pids.max=7",
        ];
        assert_eq!(settings(&held), expected);
        assert_eq!(held.cgroup.unwrap().folders.len(), 3);
    }

    #[test]
    fn what_cannot_be_held_is_refused_by_name() {
        let start = "s1".parse().unwrap();
        let none = |root| Cgroups { root, ..Cgroups::none() };
        let unlimited = Bounds { cpu: Limit::Unlimited, memory: Limit::At(schemas::Bytes(9)), pids: Limit::At(3) };
        let held = none(false).hold(&start, &unlimited).unwrap();
        assert_eq!((held.cgroup, held.address_space, held.processes), (None, Some(9), Some(3)));
        let refused = none(true).hold(&start, &unlimited).unwrap_err();
        assert!(matches!(refused, StartError::LimitUnsupported { limit: "pids", .. }));
        let refused = none(false).hold(&start, &bounds(1, 1, 1)).unwrap_err();
        assert!(matches!(refused, StartError::LimitUnsupported { limit: "cpu", .. }));
    }

    #[test]
    fn a_job_without_bounds_gets_no_group() {
        let free = Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited };
        assert!(groups(true).hold(&"s1".parse().unwrap(), &free).unwrap().cgroup.is_none());
    }
}
