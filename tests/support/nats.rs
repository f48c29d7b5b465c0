//! A real nats-server of one test: own port, own store, killed, restarted and gone with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::system::{dies_with_us, http_get, signal};

/// One server.
pub struct Nats {
    folder: TempDir,
    program: PathBuf,
    /// Lines of configuration besides listen address and store.
    settings: String,
    scheme: &'static str,
    port: u16,
    monitor: String,
    child: Option<Child>,
}

impl Nats {
    /// A server with JetStream on loopback and nothing else set.
    pub async fn start() -> Self {
        Self::with("nats", |_| String::new()).await
    }

    /// A server whose further configuration is made by `settings`, which may put files into the folder it is given.
    pub async fn with(scheme: &'static str, settings: impl FnOnce(&Path) -> String) -> Self {
        let folder = tempfile::Builder::new().prefix("shoal-nats-").tempdir().expect("a temporary folder");
        let settings = settings(folder.path());
        let program = program();
        let mut nats = Self { folder, program, settings, scheme, port: 0, monitor: String::new(), child: None };
        // A port that the kernel never gives to outgoing connections: while a server is down, a client that knocks
        // at an ephemeral port can become connected to itself and keep it.
        for _ in 0..10 {
            nats.port = 10_000 + rand::random::<u16>() % 20_000;
            if nats.try_start().await {
                return nats;
            }
        }
        panic!("nats-server did not start on any of ten ports:\n{}", nats.log());
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder that is the server's alone.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it as a power cut of the process would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().expect("the server can be killed");
        child.wait().expect("the server can be waited for");
    }

    /// Ends it politely.
    pub async fn terminate(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        signal(child.id(), libc::SIGTERM);
        super::eventually("nats-server ends on SIGTERM", async || {
            child.try_wait().expect("it can be waited for").map(|_| ()).ok_or("it runs".into())
        })
        .await;
    }

    /// Starts it again on the same port and store.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "the server runs");
        for _ in 0..20 {
            if self.try_start().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        panic!("nats-server did not come back on port {}:\n{}", self.port, self.log());
    }

    /// Where its monitoring is, as `http://…`.
    pub fn monitor_address(&self) -> String {
        self.monitor.clone()
    }

    /// One page of the monitoring endpoint.
    pub async fn monitor(&self, path: &str) -> serde_json::Value {
        let (status, body) = http_get(&self.monitor, path).await.expect("the monitoring endpoint answers");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("monitoring speaks JSON")
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Whether its own health check finds nothing, streams and consumers included.
    pub async fn healthy(&self) -> Result<(), String> {
        match http_get(&self.monitor, "/healthz").await {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("{status} {body}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How many listen to a subject.
    pub async fn listeners(&self, subject: &str) -> usize {
        let page = self.monitor(&format!("/subsz?subs=1&test={subject}")).await;
        page["subscriptions_list"].as_array().map_or(0, Vec::len)
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn try_start(&mut self) -> bool {
        let folder = self.folder.path();
        let config = folder.join("server.conf");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: \"{folder}\"\n\
             jetstream {{ store_dir: \"{folder}/store\" }}\n{settings}\n",
            port = self.port,
            folder = folder.display(),
            settings = self.settings,
        );
        fs::write(&config, text).expect("the configuration can be written");
        let log = File::options().create(true).append(true).open(folder.join("log")).expect("the log can be opened");
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file handle")).stderr(log);
        dies_with_us(&mut command);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{} starts: {e}", self.program.display()));
        // Written when it listens.
        let ports = folder.join(format!("nats-server_{}.ports", child.id()));
        loop {
            if let Ok(text) = fs::read_to_string(&ports)
                && let Ok(ports) = serde_json::from_str::<serde_json::Value>(&text)
            {
                self.monitor = ports["monitoring"][0].as_str().expect("monitoring is on").to_owned();
                self.child = Some(child);
                return true;
            }
            if child.try_wait().expect("the server can be waited for").is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(2_000);
            eprintln!("--- nats-server on port {}\n{}", self.port, log.get(tail..).unwrap_or(&log));
        }
    }
}

/// The server: named by the environment, fetched by the set-up, or on PATH.
pub fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("SHOAL_NATS_SERVER") {
        return named.into();
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/nats-server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|folder| folder.join("nats-server")).find(|p| p.is_file());
    if fetched.is_file() {
        return fetched;
    }
    on_path().expect("there is no nats-server; run scripts/setup")
}

/// What may happen to a store while its server is down.
impl Nats {
    fn stream_folder(&self, stream: &str) -> PathBuf {
        assert!(self.child.is_none(), "the server runs: its files are its own");
        self.folder.path().join("store/jetstream/$G/streams").join(stream)
    }

    fn copy_folder(&self, stream: &str, name: &str) -> PathBuf {
        self.folder.path().join("copies").join(name).join(stream)
    }

    /// Ends it politely, takes a copy of these streams under `name`, and starts it again.
    pub async fn back_up(&mut self, name: &str, streams: &[&str]) {
        self.terminate().await;
        for stream in streams {
            copy(&self.stream_folder(stream), &self.copy_folder(stream, name));
        }
        self.restart().await;
    }

    /// Kills it, puts the copy of these streams back, and starts it again.
    pub async fn roll_back(&mut self, name: &str, streams: &[&str]) {
        self.kill();
        for stream in streams {
            let folder = self.stream_folder(stream);
            fs::remove_dir_all(&folder).expect("the stream has a folder");
            copy(&self.copy_folder(stream, name), &folder);
        }
        self.restart().await;
    }

    /// Kills it, leaves so much of the newest block of a stream's messages, and starts it again.
    pub async fn truncate_block(&mut self, stream: &str, left: impl FnOnce(u64) -> u64) {
        self.kill();
        let blocks = fs::read_dir(self.stream_folder(stream).join("msgs")).expect("the stream has messages").flatten();
        let blocks = blocks.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "blk"));
        let number = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        let newest = blocks.max_by_key(number).expect("the stream has a block");
        truncate(&newest, left);
        self.restart().await;
    }

    /// Kills it, empties what a consumer knows of its deliveries, and starts it again.
    pub async fn empty_consumer_state(&mut self, stream: &str, consumer: &str) {
        self.kill();
        truncate(&self.stream_folder(stream).join("obs").join(consumer).join("o.dat"), |_| 0);
        self.restart().await;
    }
}

fn truncate(path: &Path, left: impl FnOnce(u64) -> u64) {
    let file = File::options().write(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let length = file.metadata().expect("a file has a length").len();
    file.set_len(left(length)).expect("it can be made shorter");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder for the copy");
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())).flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("a file can be copied");
        }
    }
}
