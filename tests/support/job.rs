//! Tasks as JSON, and jobs that leave traces: which starts there were, what still runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::engine::IMAGE;
use super::eventually;
use super::system::{marked_processes, random_word};

/// `{"workload":{"kind":"call","handler":"noop"}}`.
pub fn noop() -> Value {
    json!({"workload": {"kind": "call", "handler": "noop"}})
}

/// Answers its payload.
pub fn echo(payload: impl Into<Value>) -> Value {
    json!({"workload": {"kind": "call", "handler": "echo", "payload": payload.into()}})
}

/// One program with its arguments.
pub fn process(command: &[&str]) -> Value {
    json!({"workload": {"kind": "process", "command": command}})
}

/// One shell script.
pub fn shell(script: &str) -> Value {
    process(&["sh", "-c", script])
}

/// One program with its arguments in a container of `image`.
pub fn container(image: &str, command: &[&str]) -> Value {
    json!({"workload": {"kind": "container", "image": image, "command": command}})
}

/// One shell script in a container of [`IMAGE`].
pub fn shell_in(script: &str) -> Value {
    container(IMAGE, &["sh", "-c", script])
}

/// Adds fields to a task.
pub trait With {
    /// The same with `field` set.
    fn with(self, field: &str, value: impl Into<Value>) -> Self;
    /// The same with `field` of its workload set.
    fn workload(self, field: &str, value: impl Into<Value>) -> Self;
    /// The same with up to `attempts` attempts, each pause exactly `pause`.
    fn retried(self, attempts: u32, pause: &str) -> Self;
}

impl With for Value {
    fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self[field] = value.into();
        self
    }

    fn workload(mut self, field: &str, value: impl Into<Value>) -> Self {
        self["workload"][field] = value.into();
        self
    }

    fn retried(self, attempts: u32, pause: &str) -> Self {
        let backoff = json!({"initial": pause, "factor": 1.0, "max": pause, "jitter": "none"});
        self.with("retry", json!({"max_attempts": attempts, "backoff": backoff}))
    }
}

/// A process job that writes down each of its starts, and whose processes are known by a mark in their environment.
pub struct Job {
    folder: PathBuf,
    mark: String,
}

impl Job {
    /// A job with a folder of its own below `parent`.
    pub fn new(parent: &std::path::Path) -> Self {
        let mark = format!("mark-{}", random_word());
        let folder = parent.join(&mark);
        fs::create_dir_all(&folder).expect("a folder for the job");
        // Root of a container without any capability is an other as any.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("it is ours");
        Self { folder, mark }
    }

    /// The task that writes its start down and then runs `script`. `$D` is the job's folder.
    pub fn script(&self, script: &str) -> Value {
        let script = format!("D='{}'\necho \"$$ $SHOAL_TASK_ATTEMPT\" >> $D/starts\n{script}", self.folder.display());
        json!({"workload": {"kind": "process", "command": ["sh", "-c", script], "env": {"MARK": self.mark}}})
    }

    /// The same in a container, which has the job's folder as `/job`.
    pub fn contained(&self, script: &str) -> Value {
        let script = format!("D=/job\necho \"$$ $SHOAL_TASK_ATTEMPT\" >> $D/starts\n{script}");
        let mount = json!({"source": self.folder.display().to_string(), "target": "/job", "read_only": false});
        shell_in(&script).workload("env", json!({"MARK": self.mark})).workload("mounts", json!([mount]))
    }

    /// The same in a container, which first waits until [`Job::open`].
    pub fn gated_contained(&self, then: &str) -> Value {
        self.contained(&format!("while [ ! -e $D/open ]; do sleep 0.05; done\n{then}"))
    }

    /// The same, which first waits until [`Job::open`].
    pub fn gated(&self, then: &str) -> Value {
        self.script(&format!("while [ ! -e $D/open ]; do sleep 0.05; done\n{then}"))
    }

    /// Its folder, `$D` of its scripts.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Lets a gated job go on.
    pub fn open(&self) {
        self.write("open", "");
    }

    /// Writes a file into the job's folder.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).expect("the job's folder can be written");
    }

    /// The lines of a file of the job's folder; none if there is no such file.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How often it was started.
    pub fn starts(&self) -> usize {
        self.lines("starts").len()
    }

    /// The process ids of its starts, in order.
    pub fn pids(&self) -> Vec<u32> {
        self.column(0)
    }

    /// The attempt numbers that its starts saw, in order.
    pub fn attempts(&self) -> Vec<u32> {
        self.column(1)
    }

    fn column(&self, n: usize) -> Vec<u32> {
        let number = |line: &String| line.split(' ').nth(n).and_then(|word| word.parse().ok());
        self.lines("starts").iter().map(|line| number(line).unwrap_or_else(|| panic!("a number in {line}"))).collect()
    }

    /// What of it still runs, whatever it forked.
    pub fn processes(&self) -> Vec<u32> {
        marked_processes(&self.mark)
    }

    /// Waits until it has been started `n` times.
    pub async fn started(&self, n: usize) {
        eventually(format!("start {n} of {}", self.mark), async || match self.starts() {
            starts if starts >= n => Ok(()),
            starts => Err(format!("{starts} starts")),
        })
        .await;
    }

    /// Waits until nothing of it runs.
    pub async fn gone(&self) {
        eventually(format!("no process of {} left", self.mark), async || match self.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        })
        .await;
    }
}
