//! One fleet of real programs on one server.

use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Client, Job, Nats, Output, Program};

/// The binary under test.
const SHOAL: &str = env!("CARGO_BIN_EXE_shoal");

/// A prefix on a server, and what every program of the fleet is told.
pub struct Fleet {
    client: Client,
    server: Option<Nats>,
    folder: TempDir,
    env: Vec<(String, String)>,
}

/// How a fleet is made.
pub struct FleetBuilder {
    prefix: String,
    env: Vec<(String, String)>,
    bare: bool,
}

impl Fleet {
    /// A fleet on a server of its own, its streams and buckets made, no worker yet.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// The same, settings first. The lease is short, so that a lost one is seen soon, and long enough for a machine
    /// that is busy with other tests.
    pub fn builder() -> FleetBuilder {
        let env = [("SHOAL_ACK_WAIT", "4s"), ("SHOAL_HEARTBEAT", "500ms"), ("SHOAL_RECONCILE_EVERY", "1s")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        FleetBuilder { prefix: "shoal".into(), env, bare: false }
    }

    /// The server, where it is this fleet's own.
    pub fn nats(&mut self) -> &mut Nats {
        self.server.as_mut().expect("a fleet with a server of its own")
    }

    /// Where its server is.
    pub fn url(&self) -> String {
        let url = self.env.iter().rev().find(|(name, _)| name == "SHOAL_NATS_URL");
        url.expect("every fleet has one").1.clone()
    }

    /// A folder that goes with the fleet.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A job that leaves traces.
    pub fn job(&self) -> Job {
        Job::new(self.folder.path())
    }

    /// A worker that runs calls and processes of the queue `default`, one at a time, under this id.
    pub fn worker(&self, id: &str) -> WorkerBuilder<'_> {
        let mut worker = WorkerBuilder { fleet: self, name: format!("worker-{id}"), command: self.command() };
        worker.command.arg("worker").env("SHOAL_WORKER_ID", id);
        worker
            .env("SHOAL_SLOTS", "1")
            .env("SHOAL_RUNTIMES", "call,process")
            .env("SHOAL_STATE_DIR", &self.folder.path().join(id).display().to_string())
    }

    /// A dispatcher that has said `ready`; its health is served at the address it returns.
    pub async fn dispatcher(&self, env: &[(&str, &str)]) -> (Program, String) {
        self.dispatcher_of(Path::new(SHOAL), env).await
    }

    /// The same of another binary.
    pub async fn dispatcher_of(&self, binary: &Path, env: &[(&str, &str)]) -> (Program, String) {
        let mut command = with_program(binary, &self.command());
        command.arg("dispatcher").env("SHOAL_HTTP", "127.0.0.1:0");
        command.envs(env.iter().copied());
        let mut program = Program::spawn("dispatcher", self.folder.path(), command, Stdio::null());
        let http = program.ready().await.remove("http").expect("ready names http");
        (program, http)
    }

    /// Runs a command to its end.
    pub async fn shoal(&self, args: &[&str]) -> Output {
        self.spawn(args, "").wait().await
    }

    /// The same with `input` on stdin.
    pub async fn shoal_with_input(&self, args: &[&str], input: &str) -> Output {
        self.spawn(args, input).wait().await
    }

    /// Starts a command.
    pub fn spawn(&self, args: &[&str], input: &str) -> Program {
        self.spawn_with(args, input, &[])
    }

    /// The same with further environment.
    pub fn spawn_with(&self, args: &[&str], input: &str, env: &[(&str, &str)]) -> Program {
        let mut command = self.command();
        command.args(args).envs(env.iter().copied());
        let stdin = if input.is_empty() {
            Stdio::null()
        } else {
            let mut file = tempfile::tempfile_in(self.folder.path()).expect("a temporary file");
            file.write_all(input.as_bytes()).expect("it can be written");
            std::io::Seek::rewind(&mut file).expect("it can be rewound");
            file.into()
        };
        Program::spawn(args.first().unwrap_or(&"shoal"), self.folder.path(), command, stdin)
    }

    /// The program with the fleet's environment and nothing of ours.
    pub fn command(&self) -> Command {
        let mut command = Command::new(SHOAL);
        let home = self.folder.path().join("home");
        std::fs::create_dir_all(&home).expect("a home");
        command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("SHOAL_NATS_SERVER", super::nats::program());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.path());
        command
    }
}

/// Another build of the program, older or newer, if `SHOAL_OLD_BINARY` names one: what lives beside ours while a fleet is
/// upgraded. Else ours.
pub fn old_binary() -> PathBuf {
    std::env::var_os("SHOAL_OLD_BINARY").map_or_else(|| SHOAL.into(), PathBuf::from)
}

/// The same command of another program. Only for commands of a fleet, which inherit no environment.
fn with_program(program: &Path, command: &Command) -> Command {
    let mut same = Command::new(program);
    same.args(command.get_args()).env_clear();
    same.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        same.current_dir(folder);
    }
    same
}

/// A fleet is first of all what a plain client sees of it.
impl Deref for Fleet {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl FleetBuilder {
    /// One more variable for every program.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How long a delivery stays its holder's.
    pub fn ack_wait(self, ack_wait: &str) -> Self {
        self.env("SHOAL_ACK_WAIT", ack_wait)
    }

    /// Another prefix than `shoal`.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// Makes no streams and buckets.
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// On a server of its own.
    pub async fn start(self) -> Fleet {
        let nats = Nats::start().await;
        let mut fleet = self.on(&nats.url()).await;
        fleet.server = Some(nats);
        fleet
    }

    /// On a server of somebody else's.
    pub async fn on(self, url: &str) -> Fleet {
        let client = Client::connect(url, &self.prefix).await;
        self.with_client(url, client).await
    }

    /// The same over a connection that is there already.
    pub async fn with_client(self, url: &str, client: Client) -> Fleet {
        let Self { prefix, mut env, bare } = self;
        env.push(("SHOAL_NATS_URL".into(), url.to_owned()));
        env.push(("SHOAL_PREFIX".into(), prefix));
        let folder = tempfile::Builder::new().prefix("shoal-fleet-").tempdir().expect("a temporary folder");
        let fleet = Fleet { client, server: None, folder, env };
        if !bare {
            fleet.shoal(&["admin", "apply"]).await.ok();
        }
        fleet
    }
}

/// How a worker is started.
pub struct WorkerBuilder<'a> {
    fleet: &'a Fleet,
    name: String,
    command: Command,
}

impl WorkerBuilder<'_> {
    /// One more variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Without a variable that tests set.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Without an id of its own, its state kept in `folder`.
    pub fn nameless(mut self, folder: &Path) -> Self {
        self.command.env_remove("SHOAL_WORKER_ID");
        let folder: PathBuf = folder.into();
        self.env("SHOAL_STATE_DIR", &folder.display().to_string())
    }

    /// Room for so many at once.
    pub fn slots(self, slots: u32) -> Self {
        self.env("SHOAL_SLOTS", &slots.to_string())
    }

    /// Which queues it pulls from.
    pub fn queues(self, queues: &str) -> Self {
        self.env("SHOAL_QUEUES", queues)
    }

    /// What it may run.
    pub fn runtimes(self, runtimes: &str) -> Self {
        self.env("SHOAL_RUNTIMES", runtimes)
    }

    /// How long it may take to leave.
    pub fn drain_grace(self, grace: &str) -> Self {
        self.env("SHOAL_DRAIN_GRACE", grace)
    }

    /// Dies when it comes to this point of an attempt.
    pub fn fails_at(self, point: &str) -> Self {
        self.env("SHOAL_FAIL_POINT", point)
    }

    /// Another build of the program.
    pub fn binary(mut self, binary: &Path) -> Self {
        self.command = with_program(binary, &self.command);
        self
    }

    /// Starts it without waiting.
    pub fn spawn(self) -> Program {
        Program::spawn(&self.name, self.fleet.folder(), self.command, Stdio::null())
    }

    /// Starts it and waits until it pulls.
    pub async fn start(self) -> Program {
        let mut program = self.spawn();
        program.ready().await;
        program
    }
}
