//! A disk of a few megabytes that a test may fill, mounted where a program keeps its files.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system, gone with this value.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `megabytes` at `path`, which is made; none where that is not allowed (in CI a failure).
    pub fn mount(path: &Path, megabytes: u32) -> Option<Self> {
        fs::create_dir_all(path).expect("a folder to mount at");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0755"), "shoal-test"]).arg(path);
        let output = command.output().expect("mount starts");
        if output.status.success() {
            return Some(Self { path: path.to_owned() });
        }
        let reason = format!("no disk can be mounted: {}", String::from_utf8_lossy(&output.stderr).trim());
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "in CI no test is skipped, but {reason}");
        eprintln!("SKIPPED: {reason}");
        None
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).expect("a file");
        for piece in [1 << 20, 1 << 12, 1] {
            let bytes = vec![1; piece];
            while ballast.write_all(&bytes).is_ok() {}
        }
    }

    /// Makes room again.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.path.join(".ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
