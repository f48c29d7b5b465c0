//! The control groups of one job, as the worker plans them and a shepherd makes, reads and removes them. It names
//! files and values only, so the two versions look the same from here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::tree;

/// How long the removal is tried: the kernel lets go of a group a moment after its last process.
const REMOVAL: Duration = Duration::from_secs(2);

/// What to make for a job, and what to read of it afterwards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct CgroupPlan {
    /// One folder a hierarchy; all are new and end with the job.
    pub(super) folders: Vec<PathBuf>,
    /// Written in this order.
    pub(super) settings: Vec<Setting>,
    /// File that counts kills for memory.
    pub(super) oom: Option<PathBuf>,
    /// File that counts refused forks.
    pub(super) pids: Option<PathBuf>,
    /// File that forbids further forks, once told `0`.
    pub(super) pids_max: Option<PathBuf>,
    /// File with the largest memory so far.
    pub(super) peak: Option<PathBuf>,
    /// File with a line `usage_usec`.
    pub(super) cpu: Option<PathBuf>,
    /// File that kills all, once told `1`.
    pub(super) kill: Option<PathBuf>,
}

/// One value of one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Setting {
    /// The file.
    pub(super) file: PathBuf,
    /// Written whole.
    pub(super) value: String,
    /// May be missing on this kernel.
    pub(super) optional: bool,
}

impl CgroupPlan {
    /// Makes the groups and opens what a process writes `0` to in order to join. On an error nothing is left.
    pub(super) fn make(&self) -> Result<Vec<File>, (String, io::Error)> {
        self.try_make().inspect_err(|_| self.remove())
    }

    fn try_make(&self) -> Result<Vec<File>, (String, io::Error)> {
        for folder in &self.folders {
            fs::create_dir(folder).map_err(|e| (folder.display().to_string(), e))?;
        }
        for setting in &self.settings {
            match write(&setting.file, &setting.value) {
                Err(e) if !setting.optional => {
                    return Err((format!("{} = {}", setting.file.display(), setting.value), e));
                }
                _ => {}
            }
        }
        let open = |folder: &PathBuf| {
            let file = folder.join("cgroup.procs");
            OpenOptions::new().write(true).open(&file).map_err(|e| (file.display().to_string(), e))
        };
        self.folders.iter().map(open).collect()
    }

    /// Whether the kernel killed for memory.
    pub(super) fn oom_killed(&self) -> bool {
        self.oom.as_deref().is_some_and(|file| field(file, "oom_kill") > 0)
    }

    /// Whether a fork was refused.
    pub(super) fn pids_refused(&self) -> bool {
        self.pids.as_deref().is_some_and(|file| field(file, "max") > 0)
    }

    /// Largest memory so far, where it is counted.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        fs::read_to_string(self.peak.as_deref()?).ok()?.trim().parse().ok()
    }

    /// CPU time, where it is counted.
    pub(super) fn cpu_us(&self) -> Option<u64> {
        Some(field(self.cpu.as_deref()?, "usage_usec")).filter(|us| *us > 0)
    }

    /// Lets nobody in it fork any more, and kills all where the kernel can do it at once.
    pub(super) fn choke(&self) {
        for (file, value) in [(&self.pids_max, "0"), (&self.kill, "1")] {
            if let Some(file) = file {
                let _ = write(file, value);
            }
        }
    }

    /// Kills what is still in it and removes it. What resists is left to the next sweep.
    pub(super) fn remove(&self) {
        for folder in &self.folders {
            remove_group(folder);
        }
    }
}

/// Kills everything in one group and removes it, as far as that can be done in a short time.
pub(super) fn remove_group(folder: &Path) {
    let began = Instant::now();
    loop {
        match fs::remove_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(_) if began.elapsed() < REMOVAL => {}
            Err(e) => return eprintln!("shoal: could not remove the control group {}: {e}", folder.display()),
            Ok(()) => return,
        }
        // A job may have made groups of its own below.
        for below in fs::read_dir(folder).into_iter().flatten().flatten() {
            if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_group(&below.path());
            }
        }
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            tree::signal(pid, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Writes a kernel file: it must exist, and takes its value in one piece.
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// The number behind `key` in a file of lines like `key 42`.
fn field(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_by_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.events");
        fs::write(&file, "oom_kill_disable 0\noom 4\noom_kill 3\noom_group_kill 9\n").unwrap();
        assert_eq!((field(&file, "oom_kill"), field(&file, "oom"), field(&file, "kill")), (3, 4, 0));
    }
}
