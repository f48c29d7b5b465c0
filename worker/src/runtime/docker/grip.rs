//! What the guard does to a Docker engine. It speaks plain HTTP/1.0 by itself: as many megabytes as a client library would
//! take, on every worker, for three requests.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use serde_json::Value;

use crate::runtime::container::guard::{ANSWER_WITHIN, Grip};
use crate::runtime::container::labels::{FLEET, INSTANCE, MORTAL, Owner, WORKER};

/// Requests at once.
const AT_ONCE: usize = 8;

/// On the engine at `host` (`unix://…`, `tcp://…`).
pub(in crate::runtime) fn grip(host: &str, owner: Owner) -> io::Result<Box<dyn Grip>> {
    Ok(Box::new(OnDocker { engine: Engine::at(host)?, owner }))
}

struct OnDocker {
    engine: Engine,
    owner: Owner,
}

impl Grip for OnDocker {
    fn mortal(&self) -> io::Result<Vec<String>> {
        let mut labels = self.labels();
        labels.push(format!("{MORTAL}=true"));
        let running = ["running", "paused", "restarting"].map(str::to_owned).to_vec();
        self.engine.list("containers", HashMap::from([("label", labels), ("status", running)]))
    }

    fn kill(&self, ids: &[String]) {
        self.engine.each(ids, |engine, id| engine.kill(id));
    }

    fn remove_all(&self) -> io::Result<usize> {
        let filters = || HashMap::from([("label", self.labels())]);
        let containers = self.engine.list("containers", filters())?;
        // Dead at once, all of them; the removal takes its time.
        self.engine.each(&containers, |engine, id| engine.kill(id));
        self.engine.each(&containers, |engine, id| engine.remove(&format!("/containers/{id}?force=1&v=1")));
        let networks = self.engine.list("networks", filters())?;
        self.engine.each(&networks, |engine, id| engine.remove(&format!("/networks/{id}")));
        let volumes = self.engine.list("volumes", filters())?;
        self.engine.each(&volumes, |engine, name| engine.remove(&format!("/volumes/{name}")));
        Ok(containers.len() + networks.len() + volumes.len())
    }

    fn is_gone_for_good(&self) -> bool {
        self.engine.is_gone_for_good()
    }
}

impl OnDocker {
    fn labels(&self) -> Vec<String> {
        let Owner { fleet, worker, instance } = &self.owner;
        vec![format!("{FLEET}={fleet}"), format!("{WORKER}={worker}"), format!("{INSTANCE}={instance}")]
    }
}
/// Where the engine listens.
enum Engine {
    Unix(std::path::PathBuf),
    Tcp(String),
}

impl Engine {
    fn at(host: &str) -> io::Result<Self> {
        match host.split_once("://") {
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) => Ok(Self::Tcp(address.trim_end_matches('/').to_owned())),
            _ => Err(io::Error::other(format!("`{host}` is neither unix://… nor tcp://…"))),
        }
    }

    /// Not only its socket is gone, as of an engine that is down, but the place where it would come back.
    fn is_gone_for_good(&self) -> bool {
        match self {
            Self::Unix(socket) => socket.parent().is_some_and(|folder| !folder.exists()),
            Self::Tcp(_) => false,
        }
    }

    /// Ids of what fits; names of volumes.
    fn list(&self, kind: &str, filters: HashMap<&str, Vec<String>>) -> io::Result<Vec<String>> {
        let filters = percent(&serde_json::to_string(&filters)?);
        let (status, body) =
            self.ask("GET", &format!("/{kind}?all=1&filters={filters}").replace("/containers?", "/containers/json?"))?;
        if status != 200 {
            return Err(io::Error::other(format!("the engine answers {status} to a list of {kind}")));
        }
        let (body, key): (Value, _) = match kind {
            "volumes" => (serde_json::from_slice::<Value>(&body)?["Volumes"].take(), "Name"),
            _ => (serde_json::from_slice(&body)?, "Id"),
        };
        let ids = body.as_array().into_iter().flatten().filter_map(|object| object[key].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    /// Does it to each, several at once. What fails is found again by the next list.
    fn each(&self, ids: &[String], act: impl Fn(&Self, &str) -> io::Result<()> + Sync) {
        let left = Mutex::new(ids.iter());
        let work = || {
            while let Some(id) = left.lock().ok().and_then(|mut left| left.next()) {
                if let Err(error) = act(self, id) {
                    eprintln!("shoal: the guard of the containers: {id}: {error}");
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..ids.len().min(AT_ONCE) {
                // Without another thread this one does it alone.
                let _ = std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, work);
            }
            work();
        });
    }

    fn kill(&self, id: &str) -> io::Result<()> {
        let kill = || self.ask("POST", &format!("/containers/{id}/kill?signal=KILL"));
        let (status, body) = kill()?;
        match status {
            200..=299 | 404 => Ok(()),
            // Some engines kill nothing that is paused.
            409 | 500 if String::from_utf8_lossy(&body).contains("paused") => {
                self.ask("POST", &format!("/containers/{id}/unpause"))?;
                kill().map(|_| ())
            }
            // It does not run.
            409 => Ok(()),
            status => Err(io::Error::other(format!("{status} {}", String::from_utf8_lossy(&body).trim()))),
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match self.ask("DELETE", path)? {
            // In use, or somebody is at it: the next list tells.
            (200..=299 | 404 | 409, _) => Ok(()),
            (status, body) => Err(io::Error::other(format!("{status} {}", String::from_utf8_lossy(&body).trim()))),
        }
    }

    /// One request on a connection of its own.
    fn ask(&self, method: &str, path: &str) -> io::Result<(u16, Vec<u8>)> {
        let request = format!("{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Length: 0\r\n\r\n");
        let mut answer = Vec::new();
        match self {
            Self::Unix(socket) => {
                let mut stream = connect(socket)?;
                stream.write_all(request.as_bytes())?;
                stream.read_to_end(&mut answer)?;
            }
            Self::Tcp(address) => {
                let mut stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(ANSWER_WITHIN))?;
                stream.set_write_timeout(Some(ANSWER_WITHIN))?;
                stream.write_all(request.as_bytes())?;
                stream.read_to_end(&mut answer)?;
            }
        }
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = std::str::from_utf8(&answer[..head]).ok().and_then(|head| head.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("the engine does not speak HTTP"))?;
        answer.drain(..head + 4);
        Ok((status, answer))
    }
}

/// With its timeouts set before: the queue of a frozen engine may be full.
fn connect(path: &std::path::Path) -> io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = nix::sys::time::TimeVal::new(ANSWER_WITHIN.as_secs() as i64, 0);
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &timeout)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// For the query of a URL.
fn percent(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
