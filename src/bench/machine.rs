//! What the machine and single processes use, as the kernel counts it.

use std::time::Duration;

/// CPU time of one process and of what it has reaped.
pub fn cpu_of(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, also parentheses and blanks.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = rest.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

/// Memory of one process that is in RAM, in MiB.
pub fn memory_mib(pid: u32) -> f64 {
    status_mib(pid, "VmRSS:")
}

/// The most of it since [`forget_peak`].
pub fn peak_mib(pid: u32) -> f64 {
    status_mib(pid, "VmHWM:")
}

/// Begins the count of [`peak_mib`] anew.
pub fn forget_peak(pid: u32) {
    // Without it the peak is that of the process's whole life, which is no less.
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

fn status_mib(pid: u32, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// CPU time of this process so far.
pub fn own_cpu() -> Duration {
    used(nix::sys::resource::UsageWho::RUSAGE_SELF)
}

/// CPU time of the children of this process that have ended, and of theirs.
pub fn ended_cpu() -> Duration {
    used(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)
}

fn used(who: nix::sys::resource::UsageWho) -> Duration {
    let Ok(usage) = nix::sys::resource::getrusage(who) else { return Duration::ZERO };
    let time = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().max(0) as u64) + Duration::from_micros(time.tv_usec().max(0) as u64)
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// CPU time of the whole machine: busy, and all of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineTime {
    busy: Duration,
    all: Duration,
}

impl MachineTime {
    /// Until now.
    pub fn now() -> Self {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|ticks| ticks.parse().ok()).collect();
        let all: u64 = ticks.iter().sum();
        // user nice system idle iowait …
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Self { busy: Duration::from_millis((all - idle) * 10), all: Duration::from_millis(all * 10) }
    }

    /// Which share of the machine, 0 to 1, was used since `before` by others than those who used `ours`.
    pub fn foreign_share(self, before: Self, ours: Duration) -> f64 {
        let (busy, all) = (self.busy.saturating_sub(before.busy), self.all.saturating_sub(before.all));
        if all.is_zero() { 0.0 } else { busy.saturating_sub(ours).as_secs_f64() / all.as_secs_f64() }
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
