//! The connection to the engine: where it is, whether it answers, what it can do. Every request is bounded in time.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::DockerRuntimeError;
use super::refusal::is_unreachable;
use crate::policy::ContainerSettings;

/// Between two pings of an engine that answers.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Between two pings of one that does not.
const PING_AGAIN: Duration = Duration::from_millis(500);
/// A healthy engine answers a ping in a millisecond.
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// What it does on its way out comes so long before its door is shut, at most.
pub(super) const LEAVES_WITHIN: Duration = Duration::from_secs(1);
/// For the headers of any answer; the library's own bound, in seconds.
const HEADERS_PATIENCE: u64 = 120;
/// For a whole answer, where nothing big is asked for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What an engine can do.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Of the engine.
    pub(super) version: Option<String>,
    /// As `x86_64`.
    pub(super) architecture: String,
    /// CPUs that its containers can have.
    pub(super) cpus: Option<u64>,
    /// It can bound CPU time.
    pub(super) cpu_limit: bool,
    /// It can bound memory.
    pub(super) memory_limit: bool,
    /// It can bound processes.
    pub(super) pids_limit: bool,
    /// Its containers outlive it.
    pub(super) live_restore: bool,
    /// Labels of SELinux, or users of its own, keep it and its containers from folders of ours.
    pub(super) is_shut_out: bool,
}

/// The engine as the whole runtime shares it.
pub(super) struct Engine {
    pub(super) docker: Docker,
    pub(super) host: String,
    facts: RwLock<Arc<Facts>>,
    trouble: watch::Sender<Option<String>>,
    /// How often it came back.
    back: watch::Sender<u64>,
    look: Notify,
}

impl Engine {
    /// Finds and asks it. One that does not answer yet is no error: it is waited for.
    pub(super) async fn connect(settings: &ContainerSettings) -> Result<Self, DockerRuntimeError> {
        let (host, docker) = first_of(settings)?;
        let engine = Self {
            docker,
            host,
            facts: RwLock::default(),
            trouble: watch::Sender::new(None),
            back: watch::Sender::new(0),
            look: Notify::new(),
        };
        if let Err(error) = engine.learn().await {
            engine.trouble.send_replace(Some(why(&error)));
        }
        Ok(engine)
    }

    /// Why it runs nothing now.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Counts its returns.
    pub(super) fn returns(&self) -> watch::Receiver<u64> {
        self.back.subscribe()
    }

    /// What it can do, as last told.
    pub(super) fn facts(&self) -> Arc<Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// On this machine, so that its processes and control groups are seen here.
    pub(super) fn is_local(&self) -> bool {
        self.host.starts_with("unix://")
    }

    /// One request: given up after `patience`, or as soon as the engine is known to be down.
    /// Cancel safe as far as the request is; the engine may carry it out all the same.
    pub(super) async fn ask<T>(
        &self,
        patience: Duration,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut trouble = self.trouble.subscribe();
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout(patience, request) => answer.unwrap_or(Err(Error::RequestTimeoutError)),
            _ = trouble.wait_for(Option::is_some) => Err(Error::RequestTimeoutError),
        };
        if let Err(error) = &answer
            && is_unreachable(error).is_some()
        {
            self.look.notify_one();
        }
        answer
    }

    /// The same, again after every outage. `None` once `stop` is cancelled.
    pub(super) async fn insist<T, F>(
        &self,
        stop: &CancellationToken,
        request: impl Fn() -> F,
    ) -> Option<Result<T, Error>>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let insisting = async {
            loop {
                self.up().await;
                match self.ask(PATIENCE, request()).await {
                    Err(error) if is_unreachable(&error).is_some() => tokio::time::sleep(PING_AGAIN / 5).await,
                    answer => return answer,
                }
            }
        };
        stop.run_until_cancelled(insisting).await
    }

    /// Completes as soon as it answers.
    pub(super) async fn up(&self) {
        let _ = self.trouble.subscribe().wait_for(Option::is_none).await;
    }

    /// Whether it is on its way out, or is within `patience`: one that is told to stop shuts its door first, ends its
    /// containers then, and serves whom it let in before to the last.
    pub(super) async fn is_leaving(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let accepts = match self.host.strip_prefix("unix://") {
                Some(path) => UnixStream::connect(path).await.is_ok(),
                None => tokio::time::timeout(PING_PATIENCE, self.docker.ping()).await.is_ok_and(|pong| pong.is_ok()),
            };
            if !accepts || self.trouble.borrow().is_some() {
                self.look.notify_one();
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(PING_AGAIN / 5).await;
        }
    }

    /// Pings it until `stop`, and tells when it goes down or comes back.
    pub(super) async fn keep_watch(&self, stop: CancellationToken) {
        let mut missed = 0;
        loop {
            let is_down = self.trouble.borrow().is_some();
            let pause = if is_down || missed > 0 { PING_AGAIN } else { PING_EVERY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // While it is down everybody finds it unreachable.
                () = self.look.notified(), if !is_down && missed == 0 => {}
                () = stop.cancelled() => return,
            }
            let seen = match tokio::time::timeout(PING_PATIENCE, self.docker.ping()).await {
                Ok(Ok(_)) if !is_down => Ok(()),
                Ok(Ok(_)) => self.learn().await,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(Error::RequestTimeoutError),
            };
            match seen {
                Ok(()) => {
                    missed = 0;
                    if is_down {
                        self.trouble.send_replace(None);
                        self.back.send_modify(|times| *times += 1);
                    }
                }
                Err(error) => {
                    missed += 1;
                    // A busy engine may be late once; a closed door is a closed door.
                    let is_late = matches!(error, Error::RequestTimeoutError);
                    if !is_down && (missed >= 2 || !is_late) {
                        self.trouble.send_replace(Some(why(&error)));
                    }
                }
            }
        }
    }

    /// Asks what it can do, in the newest version of the API that both know.
    async fn learn(&self) -> Result<(), Error> {
        let asking = async {
            self.docker.clone().negotiate_version().await?;
            self.docker.info().await
        };
        let info = tokio::time::timeout(PING_PATIENCE * 2, asking).await.unwrap_or(Err(Error::RequestTimeoutError))?;
        let options = info.security_options.unwrap_or_default();
        let facts = Facts {
            version: info.server_version,
            architecture: info.architecture.unwrap_or_default(),
            cpus: info.ncpu.and_then(|cpus| u64::try_from(cpus).ok()).filter(|cpus| *cpus > 0),
            cpu_limit: info.cpu_cfs_quota.unwrap_or(false),
            memory_limit: info.memory_limit.unwrap_or(false),
            pids_limit: info.pids_limit.unwrap_or(false),
            live_restore: info.live_restore_enabled.unwrap_or(false),
            is_shut_out: options
                .iter()
                .any(|of| ["selinux", "userns", "rootless"].iter().any(|word| of.contains(word))),
        };
        *self.facts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
        Ok(())
    }
}

/// Whether an engine answers where these settings look for one; one that is named is believed to be there.
pub async fn found(settings: &ContainerSettings) -> bool {
    if named(settings).is_some() {
        return true;
    }
    let Ok((_, docker)) = first_of(settings) else { return false };
    matches!(tokio::time::timeout(PING_PATIENCE, docker.ping()).await, Ok(Ok(_)))
}

/// The host that the operator names.
fn named(settings: &ContainerSettings) -> Option<String> {
    settings.docker_host.clone().or_else(|| std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()))
}

pub(super) fn first_of(settings: &ContainerSettings) -> Result<(String, Docker), DockerRuntimeError> {
    if let Some(host) = named(settings) {
        return connect(&host).map(|docker| (host, docker));
    }
    let sockets = usual_sockets();
    match sockets.iter().find(|path| Path::new(path.as_str()).exists()) {
        Some(path) => {
            let host = format!("unix://{path}");
            connect(&host).map(|docker| (host, docker))
        }
        None => Err(DockerRuntimeError::NoEngine { tried: sockets.join(", ") }),
    }
}

fn connect(host: &str) -> Result<Docker, DockerRuntimeError> {
    let failed = |why: String| DockerRuntimeError::Host { host: host.to_owned(), why };
    let tls = std::env::var("DOCKER_TLS_VERIFY").is_ok_and(|word| !word.is_empty());
    let connected = match host.split_once("://") {
        Some(("unix", _)) => Docker::connect_with_unix(host, HEADERS_PATIENCE, API_DEFAULT_VERSION),
        Some(("tcp" | "http", _)) if !tls => Docker::connect_with_http(host, HEADERS_PATIENCE, API_DEFAULT_VERSION),
        Some(("tcp" | "http" | "https", _)) => {
            return Err(failed("TLS to an engine is not supported; use its socket, or a tunnel to it".into()));
        }
        _ => return Err(failed("allowed are unix:///path and tcp://host:port".into())),
    };
    connected.map_err(|error| failed(error.to_string()))
}

/// Where engines listen: the system's, the user's own, Docker Desktop's.
fn usual_sockets() -> Vec<String> {
    let mut sockets = vec!["/var/run/docker.sock".to_owned()];
    for (variable, below) in [("XDG_RUNTIME_DIR", "docker.sock"), ("HOME", ".docker/run/docker.sock")] {
        if let Ok(folder) = std::env::var(variable) {
            sockets.push(format!("{folder}/{below}"));
        }
    }
    sockets
}

fn why(error: &Error) -> String {
    match error {
        Error::RequestTimeoutError => "the engine does not answer in time".to_owned(),
        error => is_unreachable(error).unwrap_or_else(|| error.to_string()),
    }
}
