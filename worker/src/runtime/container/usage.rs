//! What a container uses: the files of its control group, and the largest numbers that were seen.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::record::Usage;

/// The largest numbers seen so far. Cheap to clone.
#[derive(Clone, Default)]
pub(in crate::runtime) struct Meter {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Clone, Default)]
struct Seen {
    usage: Usage,
    pids_exceeded: bool,
    oom: bool,
    /// Where its control group is, once looked for; `None` in it: not seen from here.
    group: Option<Option<Group>>,
}

/// The files of one control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runtime) enum Group {
    /// One a controller.
    V1 { memory: PathBuf, cpu: PathBuf, pids: PathBuf },
    /// One for all.
    V2(PathBuf),
}

/// One look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::runtime) struct Sample {
    pub(in crate::runtime) cpu_ms: Option<u64>,
    /// The most that is known of.
    pub(in crate::runtime) memory: Option<u64>,
    pub(in crate::runtime) pids_exceeded: bool,
    /// The kernel killed something in it for its memory.
    pub(in crate::runtime) oom: bool,
}

impl Meter {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The largest so far.
    pub(in crate::runtime) fn usage(&self) -> Usage {
        self.seen().usage.clone()
    }

    /// It was seen at its bound of processes.
    pub(in crate::runtime) fn pids_exceeded(&self) -> bool {
        self.seen().pids_exceeded
    }

    /// It was seen to be killed, or to lose a process, for its memory.
    #[cfg(feature = "containerd")]
    pub(in crate::runtime) fn oom(&self) -> bool {
        self.seen().oom
    }

    /// One more look.
    pub(in crate::runtime) fn add(&self, sample: Sample) {
        let mut seen = self.seen();
        seen.usage.cpu_ms = seen.usage.cpu_ms.max(sample.cpu_ms);
        seen.usage.peak_memory_bytes = seen.usage.peak_memory_bytes.max(sample.memory);
        seen.pids_exceeded |= sample.pids_exceeded;
        seen.oom |= sample.oom;
    }

    /// Where its control group is; `None`: not looked for yet.
    pub(in crate::runtime) fn group(&self) -> Option<Option<Group>> {
        self.seen().group.clone()
    }

    /// Where it is found to be.
    pub(in crate::runtime) fn set_group(&self, group: Option<Group>) {
        self.seen().group = Some(group);
    }

    /// Reads the group's files, if they are seen from here.
    pub(in crate::runtime) fn read(&self) -> bool {
        let sample = self.group().flatten().and_then(|group| group.read());
        let is_read = sample.is_some();
        sample.into_iter().for_each(|sample| self.add(sample));
        is_read
    }
}

/// The group that these lines of `/proc/<pid>/cgroup` name, if it is that of container `id`.
pub(in crate::runtime) fn group(lines: &str, id: &str) -> Option<Group> {
    let of = |controller: &str| {
        lines.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let fits = controllers.split(',').any(|one| one == controller) && path.contains(id);
            fits.then(|| PathBuf::from(format!("/sys/fs/cgroup/{controllers}/{}", path.trim_start_matches('/'))))
        })
    };
    match (of("memory"), of("cpuacct"), of("pids")) {
        (Some(memory), Some(cpu), Some(pids)) => Some(Group::V1 { memory, cpu, pids }),
        _ => {
            let path = lines.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| path.contains(id))?;
            Some(Group::V2(PathBuf::from("/sys/fs/cgroup").join(path.trim_start_matches('/'))))
        }
    }
}

impl Group {
    /// `None` where it cannot be read: not seen from here, or gone.
    pub(in crate::runtime) fn read(&self) -> Option<Sample> {
        let text = |folder: &PathBuf, file: &str| std::fs::read_to_string(folder.join(file)).ok();
        let number = |folder: &PathBuf, file: &str| text(folder, file)?.trim().parse::<u64>().ok();
        let field = |text: String, name: &str| {
            let mut words = text.lines().filter_map(|line| line.split_once(' '));
            words.find(|(word, _)| *word == name)?.1.trim().parse::<u64>().ok()
        };
        let hits = |folder: &PathBuf| field(text(folder, "pids.events")?, "max");
        match self {
            Self::V1 { memory, cpu, pids } => Some(Sample {
                cpu_ms: Some(number(cpu, "cpuacct.usage")? / 1_000_000),
                memory: number(memory, "memory.max_usage_in_bytes"),
                pids_exceeded: hits(pids).is_some_and(|hits| hits > 0),
                oom: text(memory, "memory.oom_control").is_some_and(|text| field(text, "oom_kill") > Some(0)),
            }),
            Self::V2(folder) => Some(Sample {
                cpu_ms: Some(field(text(folder, "cpu.stat")?, "usage_usec")? / 1_000),
                memory: number(folder, "memory.peak").or_else(|| number(folder, "memory.current")),
                pids_exceeded: hits(folder).is_some_and(|hits| hits > 0),
                oom: text(folder, "memory.events").is_some_and(|text| field(text, "oom_kill") > Some(0)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_the_containers_own_or_none() {
        let v1 = "9:pids:/docker/abc\n4:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n0::/system.slice\n";
        let expected = Group::V1 {
            memory: "/sys/fs/cgroup/memory/docker/abc".into(),
            cpu: "/sys/fs/cgroup/cpu,cpuacct/docker/abc".into(),
            pids: "/sys/fs/cgroup/pids/docker/abc".into(),
        };
        assert_eq!(group(v1, "abc"), Some(expected));
        assert_eq!(group(v1, "xyz"), None, "a process of another machine");
        let v2 = "0::/system.slice/docker-abc.scope\n";
        let expected = Group::V2("/sys/fs/cgroup/system.slice/docker-abc.scope".into());
        assert_eq!(group(v2, "abc"), Some(expected));
        assert_eq!(group("0::/\n", "abc"), None, "a namespace hides it");
    }

    #[test]
    fn the_largest_numbers_are_kept() {
        let meter = Meter::default();
        meter.add(Sample { cpu_ms: Some(5), memory: Some(70), pids_exceeded: true, oom: false });
        meter.add(Sample { cpu_ms: Some(9), memory: Some(30), pids_exceeded: false, oom: true });
        assert_eq!(meter.usage(), Usage { cpu_ms: Some(9), peak_memory_bytes: Some(70), ..Usage::default() });
        assert!(meter.pids_exceeded() && meter.oom());
    }
}
