//! The `nats-server` of `shoal up`: a child that lives no longer than this program, however this program ends.
//!
//! The kernel's parent-death signal is tied to the *thread* that forked, so one thread does all the forking and never
//! ends. The child has a process group of its own: Ctrl-C in a terminal must reach us alone, or the server would be gone
//! before the workers have drained.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jetstream::{ConnectSettings, Connection};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::cli::Error;

/// Where NATS clients look first.
const USUAL_PORT: u16 = 4222;
/// How long a server may take to answer; a large store takes a while to open.
const START: Duration = Duration::from_secs(30);
/// How long it may take to close its store.
const STOP: Duration = Duration::from_secs(10);
/// Bounds of the pause before it is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A running server.
pub struct NatsServer {
    plan: Plan,
    child: Child,
    forker: Forker,
}

/// How it is started, the same each time.
#[derive(Clone, Debug)]
struct Plan {
    program: PathBuf,
    folder: PathBuf,
    name: String,
    port: u16,
    cluster: Option<Cluster>,
}

/// The cluster that it is one of, all of it on this machine.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What the cluster is called.
    pub name: String,
    /// Where it hears the others.
    pub port: u16,
    /// Where each of them does, itself included.
    pub routes: Vec<u16>,
}

impl Plan {
    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("nats-server.log")
    }

    /// Writes the configuration and returns its path. Everything is loopback: this server asks nobody who they are.
    fn configure(&self) -> std::io::Result<PathBuf> {
        let path = self.folder.join("nats-server.conf");
        let store = self.folder.join("jetstream");
        // A path may hold quotes; JSON's escapes are those of the server's own format.
        let quoted = |text: &str| serde_json::to_string(text).expect("text is JSON");
        let text = format!(
            "# Written by `shoal up` at each start.\nserver_name: {}\nlisten: \"127.0.0.1:{}\"\njetstream {{ store_dir: {} }}\n",
            quoted(&self.name),
            self.port,
            quoted(&store.to_string_lossy()),
        );
        let cluster = self.cluster.iter().map(|Cluster { name, port, routes }| {
            let routes: Vec<_> = routes.iter().map(|port| quoted(&format!("nats://127.0.0.1:{port}"))).collect();
            let (name, routes) = (quoted(name), routes.join(", "));
            format!("cluster {{ name: {name}, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n")
        });
        let text = text + &cluster.collect::<String>();
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn command(&self) -> std::io::Result<Command> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.configure()?);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(command)
    }

    /// The end of its log, which says why it stopped.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("[FTL]") || line.contains("[ERR]")).collect();
        lines.last().map_or("it said nothing".into(), |line| (*line).to_owned())
    }
}

/// The one thread that forks.
struct Forker(std::sync::mpsc::Sender<(Command, tokio::sync::oneshot::Sender<std::io::Result<Child>>)>);

impl Forker {
    fn start() -> std::io::Result<Self> {
        let (requests, inbox) =
            std::sync::mpsc::channel::<(Command, tokio::sync::oneshot::Sender<std::io::Result<Child>>)>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("forker".into()).spawn(move || {
            let _entered = runtime.enter();
            // Whoever asked and went away drops the child, which kills it.
            while let Ok((mut command, reply)) = inbox.recv() {
                let _ = reply.send(command.spawn());
            }
            // Ending this thread would end its children: it stays, whatever becomes of those who ask.
            loop {
                std::thread::park();
            }
        })?;
        Ok(Self(requests))
    }

    async fn fork(&self, mut command: Command) -> std::io::Result<Child> {
        die_with_parent(&mut command);
        let (reply, child) = tokio::sync::oneshot::channel();
        let gone = || std::io::Error::other("the forking thread is gone");
        self.0.send((command, reply)).map_err(|_| gone())?;
        child.await.map_err(|_| gone())?
    }
}

/// The child is killed when the thread that forks it ends, and has a process group of its own.
pub fn die_with_parent(command: &mut Command) {
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        use nix::sys::signal::Signal;
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have died before the line above.
                if nix::unistd::getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
            });
        }
    }
}

/// The program to run: the one named, else on PATH, else what the set-up fetched into `.tools/bin`.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Error> {
    let hint = "install nats-server 2.12 or newer (or run `scripts/setup`), or name yours with --nats-server";
    if let Some(named) = named {
        return match named.is_file() {
            true => Ok(named.to_owned()),
            false => Err(Error::usage(format!("there is no nats-server at {}", named.display()), hint)),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let above = |start: Option<PathBuf>| {
        let start = start.unwrap_or_default();
        start.ancestors().map(|folder| folder.join(".tools/bin/nats-server")).collect::<Vec<_>>()
    };
    let fetched = above(std::env::current_dir().ok()).into_iter().chain(above(std::env::current_exe().ok()));
    on_path
        .chain(fetched)
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| Error::usage("there is no nats-server on PATH, nor in .tools/bin here or above", hint))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.is_file() && path.metadata().is_ok_and(|data| data.permissions().mode() & 0o111 != 0)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A free port that the kernel gives to no outgoing connection: while the server is down, a client that knocks at an
/// ephemeral port can become connected to itself and keep it.
fn any_port() -> Option<u16> {
    let seed = std::process::id();
    (0..200_u32)
        .map(|i| 10_000 + (seed.wrapping_mul(7_919).wrapping_add(i * 101) % 20_000) as u16)
        .find(|port| is_free(*port))
}

fn choose_port(wanted: Option<u16>) -> Result<u16, Error> {
    let none = || Error::usage("no port is free", "name one with --nats-port");
    match wanted {
        None if is_free(USUAL_PORT) => Ok(USUAL_PORT),
        None | Some(0) => any_port().ok_or_else(none),
        Some(port) if is_free(port) => Ok(port),
        Some(port) => {
            Err(Error::usage(format!("port {port} is taken"), "name another with --nats-port, 0 is any free one"))
        }
    }
}

impl NatsServer {
    /// Starts it over the store in `folder` and returns once it answers.
    pub async fn start(program: PathBuf, folder: &Path, port: Option<u16>) -> Result<(Self, Connection), Error> {
        Self::start_in(program, folder, port, None).await
    }

    /// The same as one of a cluster, which may have no leader yet.
    pub async fn start_in(
        program: PathBuf,
        folder: &Path,
        port: Option<u16>,
        cluster: Option<Cluster>,
    ) -> Result<(Self, Connection), Error> {
        let cannot = |error| Error::failed("cannot start nats-server", "name another store with --store", error);
        std::fs::create_dir_all(folder).map_err(cannot)?;
        // Paths in the server's configuration are not ours to resolve.
        let folder = folder.canonicalize().map_err(cannot)?;
        let forker = Forker::start().map_err(cannot)?;
        let port = choose_port(port)?;
        let plan = Plan { program, name: format!("shoal-up-{}-{port}", std::process::id()), folder, port, cluster };
        let child = forker.fork(plan.command().map_err(cannot)?).await.map_err(|error| {
            let problem = format!("cannot run {}", plan.program.display());
            Error::failed(problem, "name a nats-server with --nats-server", error)
        })?;
        let mut server = Self { plan, child, forker };
        let connection = server.first_answer().await?;
        Ok((server, connection))
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        self.plan.url()
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The first connection. Another server on the same port is told by its name.
    async fn first_answer(&mut self) -> Result<Connection, Error> {
        let settings = ConnectSettings { url: Some(self.url()), ..ConnectSettings::default() };
        let plan = self.plan.clone();
        let answer = async {
            loop {
                match settings.connect("shoal up").await {
                    Ok(connection) if connection.client.server_info().server_name == plan.name => {
                        return Ok(connection);
                    }
                    Ok(_) => {
                        let problem = format!("another NATS server answers on port {}", plan.port);
                        return Err(Error::usage(problem, "name another port with --nats-port, 0 is any free one"));
                    }
                    Err(jetstream::ConnectError::Unreachable { .. }) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let hint = format!("look at {}", plan.log().display());
        let failed = |problem: String| Error::Failed { problem, hint: hint.clone(), source: None };
        tokio::select! {
            answer = tokio::time::timeout(START, answer) => {
                answer.unwrap_or_else(|_| Err(failed(format!("nats-server did not answer within {} s", START.as_secs()))))
            }
            ended = self.child.wait() => {
                let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                Err(failed(format!("nats-server ended ({how}): {}", plan.last_words())))
            }
        }
    }

    /// Watches it until `stop`, and starts it again whenever it dies, on the same port and store.
    pub async fn watch(mut self, stop: CancellationToken) -> Self {
        let (mut pause, longest) = RESTART;
        let mut since = tokio::time::Instant::now();
        loop {
            tokio::select! {
                ended = self.child.wait() => {
                    let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                    tracing::warn!(%how, last_words = self.plan.last_words(), ?pause, "nats-server ended; starting it again");
                }
                () = stop.cancelled() => return self,
            }
            if since.elapsed() > longest {
                pause = RESTART.0;
            }
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => return self,
                }
                pause = (pause * 2).min(longest);
                let again = match self.plan.command() {
                    Ok(command) => self.forker.fork(command).await,
                    Err(error) => Err(error),
                };
                match again {
                    Ok(child) => {
                        self.child = child;
                        since = tokio::time::Instant::now();
                        break;
                    }
                    Err(error) => tracing::error!(%error, ?pause, "cannot start nats-server; trying again"),
                }
            }
        }
    }

    /// Stops it: politely, then firmly.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // The child is not reaped yet, so the id is still its own. A failure shows in the wait below.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP, self.child.wait()).await.is_err() {
            tracing::warn!("nats-server does not stop; killing it");
            if let Err(error) = self.child.kill().await {
                tracing::error!(%error, "cannot kill nats-server");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_only_where_it_was_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(choose_port(Some(port)).unwrap_err().to_string().contains(&port.to_string()));
        assert!((10_000..30_000).contains(&choose_port(Some(0)).unwrap()));
        assert!(choose_port(None).is_ok());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = find(Some(Path::new("/nowhere/nats-server"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere/nats-server"));
    }
}
