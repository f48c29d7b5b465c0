//! One child process: its output goes to files that are shown when the test fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::system::{self, dies_with_us, signal};
use super::wait::{eventually, in_time};

/// A running program.
pub struct Program {
    name: String,
    child: tokio::process::Child,
    pid: u32,
    stdout: PathBuf,
    stderr: PathBuf,
    /// Its end, once it was waited for.
    ended: Option<ExitStatus>,
}

/// What an ended command left.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; 128 + n for a signal.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Output {
    /// Its data as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is no JSON: {e}\n{self:?}"))
    }

    /// Fails unless the command ended well.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exit(0)
    }

    /// Fails unless the command ended with `code`.
    #[track_caller]
    pub fn exit(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

impl Program {
    /// Starts `command`; its output goes below `folder`.
    pub fn spawn(name: &str, folder: &Path, mut command: Command, stdin: Stdio) -> Self {
        let unique = super::system::random_word();
        let file = |what: &str| folder.join(format!("{name}-{unique}.{what}"));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        command.stdin(stdin);
        command.stdout(File::create(&stdout).expect("a file for stdout"));
        command.stderr(File::create(&stderr).expect("a file for stderr"));
        dies_with_us(&mut command);
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().expect("the program starts");
        let pid = child.id().expect("it was not waited for");
        Self { name: name.to_owned(), child, pid, stdout, stderr, ended: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it wrote to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits until it wrote this to stderr.
    pub async fn logged(&self, text: &str) {
        let what = format!("{text:?} in the log of {}", self.name);
        eventually(what, async || match self.stderr() {
            log if log.contains(text) => Ok(()),
            log => Err(log),
        })
        .await;
    }

    /// Waits for its line `ready …` and returns the values named there.
    pub async fn ready(&mut self) -> std::collections::HashMap<String, String> {
        let name = self.name.clone();
        let what = format!("`ready` of {name}");
        eventually(what, async || {
            let stdout = self.stdout();
            let line = stdout.lines().find(|line| line.starts_with("ready") && stdout.contains('\n'));
            if let Some(line) = line {
                let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
                return Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
            }
            if let Some(status) = self.try_wait() {
                panic!("{name} ended before it was ready: {status}\n{}", self.stderr());
            }
            Err(format!("stdout {stdout:?}"))
        })
        .await
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> Output {
        if self.ended.is_none() {
            let what = format!("the end of {}", self.name);
            self.ended = Some(in_time(what, self.child.wait()).await.expect("a child can be waited for"));
        }
        use std::os::unix::process::ExitStatusExt;
        let status = self.ended.expect("it ended");
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        Output { code, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) {
        signal(self.pid, libc::SIGKILL);
        self.wait().await;
    }

    /// The same with all its children, whose task it may be to clean up behind it. None of them sees another die.
    pub async fn kill_with_children(&mut self) {
        self.freeze();
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("its threads").flatten();
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let children: String = children.collect();
        for child in children.split_whitespace() {
            signal(child.parse().expect("a pid"), libc::SIGKILL);
        }
        self.kill().await;
    }

    /// SIGSTOP; it does nothing any more once this returns.
    pub fn freeze(&self) {
        system::freeze(self.pid);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        signal(self.pid, libc::SIGCONT);
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        signal(self.pid, libc::SIGTERM);
    }

    /// SIGINT, without waiting.
    pub fn interrupt(&self) {
        signal(self.pid, libc::SIGINT);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (what, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
                if !text.is_empty() {
                    let lines: Vec<&str> = text.lines().collect();
                    let tail = lines[lines.len().saturating_sub(60)..].join("\n");
                    eprintln!("--- {} ({}) {what}\n{tail}", self.name, self.pid);
                }
            }
        }
    }
}
