//! A worker telling the fleet that it lives, and how. The whole record is put each time; nothing that fails to be
//! measured keeps a beat from being sent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use schemas::agent::{Resources, RuntimeInfo};
use schemas::{AgentKind, AgentRecord, AgentStatus, More, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::folder;
use crate::worker::Worker;

/// Less free space than this, and a worker fetches nothing: a job could not even write its log of failure.
const LEAST_DISK: u64 = 64 << 20;
/// An open pull says something at least every two seconds; three times that is silence.
const FETCH_SILENCE: Duration = Duration::from_secs(6);
/// Names of running tasks in one beat; the count is exact.
pub(crate) const NAMED: usize = 64;

/// What the beat is about, beside the worker itself.
pub struct Heartbeat {
    worker: Arc<Worker>,
    registered_at: Timestamp,
    hostname: String,
    /// Whether pulls are answered.
    ready: watch::Receiver<bool>,
    draining: watch::Receiver<bool>,
    /// Whether the registry has been told of the first.
    shown: watch::Sender<bool>,
    cpu: Option<(u64, u64)>,
    /// Of this machine, or of what this program may use of it. Counted once: that takes a dozen system calls.
    cores: u64,
}

impl Heartbeat {
    /// A worker that has not beaten yet.
    pub fn new(
        worker: Arc<Worker>,
        ready: watch::Receiver<bool>,
        draining: watch::Receiver<bool>,
        shown: watch::Sender<bool>,
    ) -> Self {
        let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let registered_at = worker.js.now();
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        Self { worker, registered_at, hostname, ready, draining, shown, cpu: None, cores }
    }

    /// Beats until `stop`, at once on every change of status, then says `offline`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.beat(false).await;
            // Jitter, so that a fleet started at once does not beat at once.
            let pause = self.worker.config.heartbeat.mul_f64(rand::random_range(0.9..1.0));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Whoever tells these may be gone before the last beat.
                Ok(()) = self.ready.changed() => {}
                Ok(()) = self.draining.changed() => {}
                () = self.worker.beat_soon.notified() => {}
                () = stop.cancelled() => break,
            }
        }
        self.beat(true).await;
    }

    async fn beat(&mut self, gone: bool) {
        let free = self.free();
        let full = free
            .as_ref()
            .filter(|free| free.disk_bytes < LEAST_DISK)
            .map(|free| format!("only {} MiB of disk are free where work folders are", free.disk_bytes >> 20));
        let trouble = full
            .or_else(|| folder::probe(&self.worker.config.state_dir, &self.worker.id).err())
            .or_else(|| self.nothing_runs());
        self.worker.blocked.send_if_modified(|blocked| {
            let changed = *blocked != trouble;
            *blocked = trouble;
            changed
        });
        let is_ready = *self.ready.borrow();
        let record = self.record(gone, free);
        let body = serde_json::to_vec(&record).expect("a record is plain data");
        self.worker.said.send_replace(Some(record));
        let subject = self.worker.config.names.agent_subject(&self.worker.id);
        if let Err(error) = self.worker.js.publish(subject, HeaderMap::new(), body.into()).await {
            tracing::warn!(%error, "heartbeat not stored");
        }
        // Also where it cannot be stored: work goes on without a registry.
        if is_ready {
            self.shown.send_replace(true);
        }
    }

    /// Why nothing that this worker allows can run now, if so.
    fn nothing_runs(&self) -> Option<String> {
        if self.worker.calls {
            return None;
        }
        let mut why = None;
        for (name, runtime) in &self.worker.runtimes {
            let trouble = runtime.trouble().and_then(|trouble| trouble.borrow().clone())?;
            why = Some(format!("the runtime `{name}` is down: {trouble}"));
        }
        why
    }

    fn status(&self) -> (AgentStatus, Option<String>) {
        if *self.draining.borrow() {
            return (AgentStatus::Draining, None);
        }
        if let Some(reason) = self.worker.blocked.borrow().clone() {
            return (AgentStatus::Starting, Some(reason));
        }
        if let Some(reason) = self.worker.cordon.reason() {
            return (AgentStatus::Starting, Some(reason));
        }
        if !*self.ready.borrow() {
            return (AgentStatus::Starting, Some("no pull was answered yet".into()));
        }
        let silent = self.worker.pulse.last_fetch().is_none_or(|at| self.worker.js.now().since(at) > FETCH_SILENCE);
        // With every slot taken there is nothing to fetch for.
        if silent && self.worker.slots.free() > 0 && !self.worker.cordon.lifted_within(FETCH_SILENCE) {
            return (AgentStatus::Starting, Some("the server does not answer pulls".into()));
        }
        (AgentStatus::Ready, None)
    }

    fn record(&self, gone: bool, free: Option<Resources>) -> AgentRecord {
        let worker = &self.worker;
        let (status, reason) = if gone { (AgentStatus::Offline, None) } else { self.status() };
        let mut runtimes: BTreeMap<String, RuntimeInfo> =
            worker.runtimes.iter().map(|(name, runtime)| ((*name).to_owned(), runtime.capabilities())).collect();
        if worker.calls {
            runtimes.insert("call".into(), RuntimeInfo::default());
        }
        if let Some(agents) = &worker.agents {
            runtimes.insert("agent".into(), agents.capabilities());
        }
        AgentRecord {
            id: worker.id.clone(),
            instance: worker.instance.clone(),
            kind: AgentKind::Worker,
            hostname: self.hostname.clone(),
            address: Some(worker.js.client().server_info().client_ip).filter(|ip| !ip.is_empty()),
            port: None,
            version: env!("CARGO_PKG_VERSION").into(),
            status,
            reason,
            queues: worker.queues.iter().map(|queue| queue.name.clone()).collect(),
            labels: worker.config.labels.clone(),
            runtimes,
            slots: worker.slots.total() as u32,
            slots_taken: Some(worker.slots.taken() as u32),
            running: worker.running.names(NAMED),
            running_count: worker.running.count() as u32,
            free,
            registered_at: self.registered_at,
            last_heartbeat: worker.js.now(),
            last_fetch: worker.pulse.last_fetch(),
            last_ack: worker.pulse.last_ack(),
            more: More::default(),
        }
    }

    /// What is free; what cannot be measured is told as nothing at all, never as a guess.
    fn free(&mut self) -> Option<Resources> {
        let disk = disk_bytes(&self.worker.config.state_dir)?;
        let memory = memory_bytes()?;
        let now = cpu_times()?;
        let before = self.cpu.replace(now).unwrap_or((0, 0));
        let (busy, all) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
        let idle = all.saturating_sub(busy);
        Some(Resources {
            cpu_millis: (self.cores * 1_000 * idle).checked_div(all).unwrap_or(0),
            memory_bytes: memory,
            disk_bytes: disk,
            more: More::default(),
        })
    }
}

fn disk_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    // The types differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    Some(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

fn memory_bytes() -> Option<u64> {
    let text = head("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The first lines of a file of the kernel, in one read.
fn head(path: &str) -> Option<String> {
    let mut head = [0; 512];
    let read = File::open(path).ok()?.read(&mut head).ok()?;
    Some(String::from_utf8_lossy(&head[..read]).into_owned())
}

/// Busy and all CPU time of the machine, in ticks.
fn cpu_times() -> Option<(u64, u64)> {
    let text = head("/proc/stat")?;
    let ticks: Vec<u64> = text.lines().next()?.split_whitespace().skip(1).filter_map(|v| v.parse().ok()).collect();
    let all = ticks.iter().take(8).sum();
    // user nice system idle iowait …
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Some((all - idle, all))
}
