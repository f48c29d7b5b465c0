//! A server of the tests that is written in Python: says `ready PORT` once it listens, and ends with this value.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running one.
pub struct Python {
    child: Child,
    /// Where it listens.
    pub port: u16,
}

impl Python {
    /// Runs `tests/<script>` with the packages that `scripts/setup tests` has brought.
    pub fn start(script: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join(".tools/venv/bin/python"))
            .arg(root.join("tests").join(script))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs; `scripts/setup tests` has brought it");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let port = line.trim().strip_prefix("ready ").and_then(|port| port.parse().ok());
        Self { port: port.unwrap_or_else(|| panic!("{script} said {line:?}: {:?}", child.wait())), child }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
