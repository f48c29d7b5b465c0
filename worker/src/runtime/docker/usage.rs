//! What a container uses: from its control group where that is seen here, else from the engine.

use std::time::Duration;

use bollard::models::{ContainerState, ContainerStatsResponse};
use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt;

use super::engine::Engine;
use crate::runtime::container::usage::{Group, Meter, Sample, group};

/// The first look; most short jobs are over by then, and none is slowed down.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Longest time between two looks at a job: what is used after the last one is not seen.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The same of an instance, which lives long, beside many others.
pub(super) const LONGEST_PAUSE_OF_INSTANCES: Duration = Duration::from_secs(15);
/// For one answer of the engine.
const PATIENCE: Duration = Duration::from_secs(10);

impl Meter {
    /// Looks again and again; never completes. Cancel safe.
    pub(in crate::runtime::docker) async fn follow(&self, engine: &Engine, name: &str, longest_pause: Duration) {
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
    pub(in crate::runtime::docker) async fn look(
        &self,
        engine: &Engine,
        name: &str,
    ) -> Result<(), bollard::errors::Error> {
        let group = match self.group() {
            Some(group) => group,
            None => {
                let group = if engine.is_local() { find(engine, name).await? } else { None };
                self.set_group(group.clone());
                group
            }
        };
        if group.is_some() && self.read() {
            return Ok(());
        }
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut answers = engine.docker.stats(name, Some(options));
        let answer = async { answers.next().await.unwrap_or_else(|| Ok(ContainerStatsResponse::default())) };
        self.add(told(&engine.ask(PATIENCE, answer).await?));
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
        oom: false,
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
