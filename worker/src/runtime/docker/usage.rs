//! What a container uses: from its control group where that is seen here, else from the engine.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::models::{ContainerState, ContainerStatsResponse};
use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt;
use schemas::record::Usage;

use super::engine::Engine;

/// The first look; most short jobs are over by then, and none is slowed down.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Longest time between two looks at a job: what is used after the last one is not seen.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The same of an instance, which lives long, beside many others.
pub(super) const LONGEST_PAUSE_OF_INSTANCES: Duration = Duration::from_secs(15);
/// For one answer of the engine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest numbers seen so far. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Meter {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Clone, Default)]
struct Seen {
    usage: Usage,
    pids_exceeded: bool,
    /// Where its control group is, once looked for; `None` in it: not seen from here.
    group: Option<Option<Group>>,
}

/// The files of one control group.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Group {
    V1 { memory: PathBuf, cpu: PathBuf, pids: PathBuf },
    V2(PathBuf),
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Sample {
    cpu_ms: Option<u64>,
    memory: Option<u64>,
    pids_exceeded: bool,
}

impl Meter {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The largest so far.
    pub(super) fn usage(&self) -> Usage {
        self.seen().usage.clone()
    }

    /// It was seen at its bound of processes.
    pub(super) fn pids_exceeded(&self) -> bool {
        self.seen().pids_exceeded
    }

    fn add(&self, sample: Sample) {
        let mut seen = self.seen();
        seen.usage.cpu_ms = seen.usage.cpu_ms.max(sample.cpu_ms);
        seen.usage.peak_memory_bytes = seen.usage.peak_memory_bytes.max(sample.memory);
        seen.pids_exceeded |= sample.pids_exceeded;
    }

    /// Looks again and again; never completes. Cancel safe.
    pub(super) async fn follow(&self, engine: &Engine, name: &str, longest_pause: Duration) {
        let mut pause = FIRST_LOOK;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest_pause);
            if engine.trouble().borrow().is_none()
                && let Err(error) = self.look(engine, name).await
            {
                tracing::debug!(name, %error, "no usage");
            }
        }
    }

    /// One look now. Cancel safe.
    pub(super) async fn look(&self, engine: &Engine, name: &str) -> Result<(), bollard::errors::Error> {
        let known = self.seen().group.clone();
        let group = match known {
            Some(group) => group,
            None => {
                let group = if engine.is_local() { find(engine, name).await? } else { None };
                self.seen().group = Some(group.clone());
                group
            }
        };
        let sample = match group.as_ref().and_then(Group::read) {
            Some(sample) => sample,
            None => {
                let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
                let mut answers = engine.docker.stats(name, Some(options));
                let answer = async { answers.next().await.unwrap_or_else(|| Ok(ContainerStatsResponse::default())) };
                told(&engine.ask(PATIENCE, answer).await?)
            }
        };
        self.add(sample);
        Ok(())
    }
}

/// Looks for the control group of the container's main process.
async fn find(engine: &Engine, name: &str) -> Result<Option<Group>, bollard::errors::Error> {
    let found = engine.ask(PATIENCE, engine.docker.inspect_container(name, None)).await?;
    let pid = found.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
    let (Some(pid), Some(id)) = (pid, found.id) else { return Ok(None) };
    // An engine behind a forwarded socket has other processes under these numbers: the group must name the container.
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    Ok(group(&text, &id).filter(|group| group.read().is_some()))
}

/// The group that these lines of `/proc/<pid>/cgroup` name, if it is that of container `id`.
fn group(lines: &str, id: &str) -> Option<Group> {
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
    fn read(&self) -> Option<Sample> {
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
            }),
            Self::V2(folder) => Some(Sample {
                cpu_ms: Some(field(text(folder, "cpu.stat")?, "usage_usec")? / 1_000),
                memory: number(folder, "memory.peak").or_else(|| number(folder, "memory.current")),
                pids_exceeded: hits(folder).is_some_and(|hits| hits > 0),
            }),
        }
    }
}

/// What the engine tells.
fn told(stats: &ContainerStatsResponse) -> Sample {
    let memory = stats.memory_stats.as_ref();
    // The page cache is the machine's: it goes as soon as somebody needs the room.
    let cache = memory
        .and_then(|memory| memory.stats.as_ref())
        .and_then(|stats| ["inactive_file", "total_inactive_file"].iter().find_map(|name| stats.get(*name).copied()));
    let used = memory.and_then(|memory| memory.usage).map(|usage| usage.saturating_sub(cache.unwrap_or(0)));
    let pids = stats.pids_stats.as_ref();
    let (now, most) = (pids.and_then(|pids| pids.current), pids.and_then(|pids| pids.limit));
    Sample {
        cpu_ms: stats
            .cpu_stats
            .as_ref()
            .and_then(|cpu| cpu.cpu_usage.as_ref())
            .and_then(|cpu| cpu.total_usage)
            .map(|nanos| nanos / 1_000_000),
        memory: memory.and_then(|memory| memory.max_usage).max(used),
        pids_exceeded: matches!((now, most), (Some(now), Some(most)) if most > 0 && now >= most),
    }
}

/// From start to end by the engine's clock.
pub(super) fn wall_ms(state: &ContainerState) -> u64 {
    let at = |text: &Option<String>| text.as_deref()?.parse::<jiff::Timestamp>().ok();
    match (at(&state.started_at), at(&state.finished_at)) {
        (Some(start), Some(end)) => u64::try_from(end.duration_since(start).as_millis()).unwrap_or(0),
        _ => 0,
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
        meter.add(Sample { cpu_ms: Some(5), memory: Some(70), pids_exceeded: true });
        meter.add(Sample { cpu_ms: Some(9), memory: Some(30), pids_exceeded: false });
        assert_eq!(meter.usage(), Usage { cpu_ms: Some(9), peak_memory_bytes: Some(70), ..Usage::default() });
        assert!(meter.pids_exceeded());
    }
}
