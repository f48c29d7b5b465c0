//! Process trees below this process. As subreaper it is the parent of every orphan of what it started, so its
//! descendants are exactly what its job has left, whatever was forked and whichever session it hid in.

use std::fs;

use libc::pid_t;

/// The children of `pid`, of all its threads. What is gone has none.
pub(super) fn children(pid: pid_t) -> Vec<pid_t> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => found.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<pid_t>().ok())),
            // A kernel without CONFIG_PROC_CHILDREN: the long way.
            Err(_) if fs::metadata(thread.path()).is_ok() => return children_by_scan(pid),
            Err(_) => {}
        }
    }
    found
}

fn children_by_scan(parent: pid_t) -> Vec<pid_t> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<pid_t>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

/// What `/proc/<pid>/stat` says.
pub(super) struct Stat {
    pub(super) parent: pid_t,
    pub(super) group: pid_t,
    /// User and system time, its reaped children's too, in clock ticks.
    pub(super) ticks: u64,
}

/// The state of a process; `None` if it is gone.
pub(super) fn stat(pid: pid_t) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets too.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    // utime, stime, cutime and cstime are fields 14 to 17; the first after the name is field 3.
    let ticks = (11..15).filter_map(number).sum();
    Some(Stat { parent: number(1)? as pid_t, group: number(2)? as pid_t, ticks })
}

/// All descendants of `roots` and these themselves, parents before children.
pub(super) fn with_descendants(roots: Vec<pid_t>) -> Vec<pid_t> {
    visit(roots, |_| {})
}

/// Kills `roots` and all below them. Each is halted before its children are looked up, so that it can neither fork
/// away nor reap, and no number is signalled that might have passed to a stranger. Call again until nothing is left:
/// what was forked a moment ago may have been missed.
pub(super) fn kill(roots: Vec<pid_t>) {
    for pid in visit(roots, |pid| signal(pid, libc::SIGSTOP)) {
        signal(pid, libc::SIGKILL);
    }
}

fn visit(roots: Vec<pid_t>, meet: impl Fn(pid_t)) -> Vec<pid_t> {
    let mut met = roots;
    let mut seen: std::collections::HashSet<pid_t> = met.iter().copied().collect();
    let mut next = 0;
    while let Some(&pid) = met.get(next) {
        next += 1;
        meet(pid);
        met.extend(children(pid).into_iter().filter(|child| seen.insert(*child)));
    }
    met
}

/// Signals one process; that it is gone already is no error.
pub(super) fn signal(pid: pid_t, signal: i32) {
    // Zero and below would mean a whole group, or everything.
    if pid > 1 {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Signals the group that `leader` leads. The leader must not have been reaped, or the number might be a stranger's.
pub(super) fn signal_group(leader: pid_t, signal: i32) {
    if leader > 1 {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(-leader, signal) };
    }
}

/// Largest resident memory of a process so far, in bytes.
pub(super) fn peak_memory(pid: pid_t) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
