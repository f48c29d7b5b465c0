//! What a container writes and reads: FIFOs between us and its shim, which holds their other ends while we are away.

use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::runtime::Started;

/// Of one container, by its id: FIFOs, and the files that every container has in `/etc`.
const FOLDER: &str = "/run/shoal/containers";
/// Output of those that outlive their worker.
const LOGS: &str = "/var/lib/shoal/instances";
/// The file with its address.
const ADDRESS: &str = "address";
/// Held of each stream while nobody reads.
const HELD: usize = 64 << 10;
/// How long a stream may stay open after the end of the container.
const LATEST: Duration = Duration::from_secs(5);

/// Files beside a container.
#[derive(Clone, Debug)]
pub(super) struct Beside(PathBuf);

impl Beside {
    /// Of the container `id`.
    pub(super) fn of(id: &str) -> Self {
        Self(Path::new(FOLDER).join(id))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn stream(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    pub(super) fn stdin(&self) -> String {
        self.stream("stdin")
    }

    pub(super) fn stdout(&self) -> String {
        self.stream("stdout")
    }

    pub(super) fn stderr(&self) -> String {
        self.stream("stderr")
    }

    /// Makes the folder with FIFOs, and opens our ends of those that it writes to.
    pub(super) fn make(&self, stdin: bool) -> io::Result<Pipes> {
        self.make_folder()?;
        let mode = Mode::from_bits_truncate(0o600);
        if stdin {
            nix::unistd::mkfifo(self.stdin().as_str(), mode)?;
        }
        let open = |path: String| {
            nix::unistd::mkfifo(path.as_str(), mode)?;
            pipe::OpenOptions::new().open_receiver(path)
        };
        Ok(Pipes { stdout: open(self.stdout())?, stderr: open(self.stderr())? })
    }

    /// Makes the folder, and elsewhere plain files to be appended to.
    pub(super) fn make_files(&self) -> io::Result<()> {
        self.make_folder()?;
        std::fs::create_dir_all(LOGS)?;
        std::fs::set_permissions(LOGS, std::fs::Permissions::from_mode(0o700))?;
        std::fs::create_dir(self.logs())?;
        for path in [self.log("stdout"), self.log("stderr")] {
            std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        }
        Ok(())
    }

    /// Where the output goes of a container that outlives its worker: memory is no place for it.
    fn logs(&self) -> PathBuf {
        Path::new(LOGS).join(self.0.file_name().unwrap_or_default())
    }

    pub(super) fn log(&self, name: &str) -> String {
        self.logs().join(name).to_string_lossy().into_owned()
    }

    /// What its network's plugins answered.
    pub(super) fn cni_result(&self) -> PathBuf {
        self.0.join("cni")
    }

    /// The address that it was given.
    pub(super) fn address(&self) -> Option<std::net::IpAddr> {
        std::fs::read_to_string(self.0.join(ADDRESS)).ok()?.trim().parse().ok()
    }

    fn make_folder(&self) -> io::Result<()> {
        std::fs::create_dir_all(FOLDER)?;
        // Nobody else on this machine looks in.
        std::fs::set_permissions(FOLDER, std::fs::Permissions::from_mode(0o700))?;
        std::fs::create_dir(&self.0)
    }

    /// The files that every container has in `/etc`: its names, and who names others.
    pub(super) fn write_etc(&self, hostname: &str, address: Option<std::net::IpAddr>, host: bool) -> io::Result<()> {
        let own = address.map_or_else(|| "127.0.1.1".to_owned(), |address| address.to_string());
        let hosts = match host {
            true => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            false => format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n"),
        };
        let resolv = match address.is_some() || host {
            true => resolv(host),
            // Where there is no network nobody is to be asked.
            false => String::new(),
        };
        if let Some(address) = address {
            std::fs::write(self.0.join(ADDRESS), address.to_string())?;
        }
        for (name, text) in [("hosts", hosts), ("hostname", format!("{hostname}\n")), ("resolv.conf", resolv)] {
            let path = self.0.join(name);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }

    /// What is gone already is gone.
    pub(super) fn remove(&self) -> io::Result<()> {
        crate::folder::remove_tree(&self.logs())?;
        crate::folder::remove_tree(&self.0)
    }

    /// Writes all of it and says that there is no more, as far as our end goes. A container need not read.
    pub(super) async fn feed(&self, stdin: String) {
        // The shim has it open by now.
        if let Ok(mut end) = pipe::OpenOptions::new().open_sender(self.stdin()) {
            let _ = end.write_all(stdin.as_bytes()).await;
        }
    }
}

/// Whom names are asked of: the machine's own servers, and not those that only the machine itself reaches.
fn resolv(host: bool) -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let is_local = |text: &str| {
        let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).peekable();
        servers.peek().is_some() && servers.all(|server| server.trim().starts_with("127.") || server.trim() == "::1")
    };
    let usual = read("/etc/resolv.conf").unwrap_or_default();
    if !host && is_local(&usual) {
        return read("/run/systemd/resolve/resolv.conf").unwrap_or(usual);
    }
    usual
}

/// Our ends of what a container writes to.
pub(super) struct Pipes {
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

/// The writing ends towards whoever reads; dropped, they see the end.
pub(super) struct Output {
    stdout: DuplexStream,
    stderr: DuplexStream,
}

/// Both streams for their reader.
pub(super) fn streams() -> (Started, Output) {
    let (stdout_end, stdout) = tokio::io::duplex(HELD);
    let (stderr_end, stderr) = tokio::io::duplex(HELD);
    let started = Started { stdout: Box::new(stdout), stderr: Box::new(stderr), ran: Duration::ZERO };
    (started, Output { stdout: stdout_end, stderr: stderr_end })
}

impl Pipes {
    /// Carries both streams to their ends; true if one had to be cut off. `gone` says that the container is.
    pub(super) async fn carry(self, output: Output, gone: &CancellationToken) -> bool {
        let Self { stdout, stderr } = self;
        let Output { stdout: to_stdout, stderr: to_stderr } = output;
        let (one, other) = tokio::join!(carry(stdout, to_stdout, gone), carry(stderr, to_stderr, gone));
        one || other
    }
}

/// One stream: held back where nobody reads yet, thrown away where nobody does any more.
async fn carry(mut from: pipe::Receiver, mut to: DuplexStream, gone: &CancellationToken) -> bool {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let too_late = async {
            gone.cancelled().await;
            tokio::time::sleep(LATEST).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read(&mut bytes) => read,
            () = too_late => return true,
        };
        match read {
            Ok(0) | Err(_) => return false,
            // The container must be able to go on.
            Ok(read) => drop(to.write_all(&bytes[..read]).await),
        }
    }
}
