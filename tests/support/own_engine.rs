//! An engine of one test's own, which may be stopped, killed, frozen and restarted.
//!
//! It lives in namespaces of its own for processes, mounts and networks, below a process that dies with the test's
//! thread: whatever the engine started and mounted goes with them. The network namespace also keeps it from the
//! bridge and the packet filter of the machine's engine, which a second dockerd beside it would take over.

use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::engine::{Engine, IMAGE};
use super::eventually;
use super::http;
use super::system::{dies_with_us, freeze, marked_processes, process_runs};

/// A dockerd, its containerd and its containers.
pub struct OwnEngine {
    engine: Engine,
    /// Holds the namespaces.
    root: Child,
    dockerd: Option<Child>,
    folder: TempDir,
}

/// It is used as any other.
impl Deref for OwnEngine {
    type Target = Engine;
    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl OwnEngine {
    /// One that answers and has the image [`IMAGE`] of the machine's engine; none where that has none, or not for us.
    pub async fn start() -> Option<Self> {
        let machine = Engine::find().await?;
        // SAFETY: geteuid takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIPPED: an engine of its own takes root");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("test-engine-").tempdir().expect("a temporary folder");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
        // The shell is the first process in there: it waits for whatever is left behind.
        command.arg(format!("ip link set lo up; echo $$ > {}/up; sleep 2147483647 & wait", folder.path().display()));
        dies_with_us(&mut command);
        let root = command.stdin(Stdio::null()).spawn().expect("unshare starts");
        let engine = Engine::at(&folder.path().join("docker.sock"));
        let mut own = Self { engine, root, dockerd: None, folder };
        let up = own.folder.path().join("up");
        eventually("the namespaces", async || if up.exists() { Ok(()) } else { Err("not yet".into()) }).await;
        own.restart().await;
        let (_, image) =
            http::unix(machine.socket(), "GET", &format!("/images/{IMAGE}/get"), &[]).await.expect("a tar");
        let loaded = own.try_request("POST", "/images/load", &image).await;
        loaded.unwrap_or_else(|e| panic!("the image cannot be loaded: {e}"));
        own.request("GET", &format!("/images/{IMAGE}/json"), Value::Null).await;
        Some(own)
    }

    /// Starts dockerd again and waits until it answers.
    pub async fn restart(&mut self) {
        self.spawn();
        eventually("the engine answers", async || {
            if let Some(status) = self.dockerd.as_mut().expect("just started").try_wait().expect("a child") {
                panic!("dockerd ended with {status}:\n{}", self.log());
            }
            self.engine.try_request("GET", "/_ping", &[]).await
        })
        .await;
    }

    /// SIGTERM: it stops its containers and ends.
    pub async fn stop(&mut self) {
        self.end(libc::SIGTERM).await;
    }

    /// SIGKILL, also of its containerd: the containers run on without anybody.
    pub async fn kill(&mut self) {
        self.tell("containerd", libc::SIGKILL);
        self.end(libc::SIGKILL).await;
    }

    /// SIGSTOP: it takes connections and answers nothing.
    pub fn freeze(&self) {
        self.processes("dockerd").for_each(freeze);
    }

    /// SIGCONT; also for `nsenter`, which stops itself where its child is stopped.
    pub fn thaw(&self) {
        self.tell("dockerd", libc::SIGCONT);
        self.tell("nsenter", libc::SIGCONT);
    }

    async fn end(&mut self, how: i32) {
        let mut child = self.dockerd.take().expect("it runs");
        self.tell("dockerd", how);
        self.thaw();
        eventually("dockerd ends", async || match child.try_wait().expect("a child") {
            Some(_) => Ok(()),
            None => Err("it runs".into()),
        })
        .await;
    }

    fn spawn(&mut self) {
        assert!(self.dockerd.is_none(), "it runs");
        let folder = self.folder.path();
        let log = File::options().create(true).append(true).open(folder.join("log")).expect("a log");
        // `unshare` has one child, the root of the namespaces.
        let children = format!("/proc/{0}/task/{0}/children", self.root.id());
        let target = fs::read_to_string(children).expect("its children").trim().to_owned();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--net", "--mount", "--pid", "dockerd", "--shutdown-timeout=2"]);
        for (flag, name) in [("data-root", "data"), ("exec-root", "exec"), ("pidfile", "pid")] {
            command.arg(format!("--{flag}={}", folder.join(name).display()));
        }
        command.arg(format!("--cgroup-parent=/{}", self.cgroup()));
        command.arg(format!("--host={}", self.engine.host()));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file handle")).stderr(log);
        dies_with_us(&mut command);
        self.dockerd = Some(command.spawn().expect("nsenter starts"));
    }

    /// Signals the processes of this name that belong to this engine, as far as they are there.
    fn tell(&self, name: &str, signal: i32) {
        for pid in self.processes(name) {
            // SAFETY: kill takes two numbers.
            unsafe { libc::kill(pid.cast_signed(), signal) };
        }
    }

    fn processes(&self, name: &str) -> impl Iterator<Item = u32> {
        let mark = self.folder.path().display().to_string();
        let named =
            move |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        marked_processes(&mark).into_iter().filter(named)
    }

    fn cgroup(&self) -> String {
        self.folder.path().file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// Where dockerd writes what it does.
    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What dockerd wrote.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- dockerd\n{}", self.log());
        }
        // With the root of the namespaces goes all that is in them.
        let _ = self.root.kill();
        let _ = self.root.wait();
        if let Some(mut dockerd) = self.dockerd.take() {
            let _ = dockerd.kill();
            let _ = dockerd.wait();
        }
        let mark = self.folder.path().display().to_string();
        for _ in 0..100 {
            if !marked_processes(&mark).into_iter().any(process_runs) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // The engine's groups outlive its processes; only empty ones can be removed.
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
        roots.iter().for_each(|root| remove_groups(&root.join(self.cgroup())));
    }
}

fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
