//! The connection to containerd: whether it answers, what it and this machine can do. Every request is bounded in time.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::{Channel, Endpoint};
use containerd_client::tonic::{Request, Response, Status};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::groups::{self, Hierarchy};
use super::status::{is_unreachable, no_answer, words};
use super::{ContainerdRuntimeError, NAMESPACE, Place};
use crate::policy::ContainerSettings;

/// Between two looks at one that answers.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at one that does not.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A healthy one tells its version in a millisecond.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// For a whole answer, where nothing big is asked for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A list of all containers carries the whole specification of each.
const LARGEST_ANSWER: usize = 256 << 20;

/// What it and this machine can do.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Of containerd.
    pub(super) version: Option<String>,
    /// Of this machine, as images name it.
    pub(super) architecture: &'static str,
    /// CPUs that containers can have.
    pub(super) cpus: u64,
    /// What bounds containers.
    pub(super) hierarchy: Hierarchy,
}

/// The engine as the whole runtime shares it.
pub(super) struct Engine {
    channel: Channel,
    pub(super) place: Place,
    facts: RwLock<Arc<Facts>>,
    trouble: watch::Sender<Option<String>>,
    /// How often it came back.
    back: watch::Sender<u64>,
    look: Notify,
}

impl Engine {
    /// Asks it. One that does not answer yet is no error: it is waited for.
    pub(super) async fn connect(place: Place) -> Result<Self, ContainerdRuntimeError> {
        let engine = Self {
            channel: channel(&place.socket)?,
            place,
            facts: RwLock::default(),
            trouble: watch::Sender::new(None),
            back: watch::Sender::new(0),
            look: Notify::new(),
        };
        if let Err(status) = engine.learn().await {
            engine.trouble.send_replace(Some(words(&status)));
        }
        Ok(engine)
    }

    pub(super) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(super) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    pub(super) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    /// Why it runs nothing now.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Whether it is known not to answer.
    pub(super) fn is_down(&self) -> bool {
        self.trouble.borrow().is_some()
    }

    /// Counts its returns.
    pub(super) fn returns(&self) -> watch::Receiver<u64> {
        self.back.subscribe()
    }

    /// What it can do, as last told.
    pub(super) fn facts(&self) -> Arc<Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One request: given up after `patience`, or as soon as it is known to be down.
    /// Cancel safe as far as the request is; containerd may carry it out all the same.
    pub(super) async fn ask<T>(
        &self,
        patience: Duration,
        request: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let mut trouble = self.trouble.subscribe();
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout(patience, request) => answer.unwrap_or_else(|_| Err(no_answer())),
            _ = trouble.wait_for(Option::is_some) => Err(no_answer()),
        };
        if let Err(status) = &answer
            && is_unreachable(status).is_some()
        {
            self.look.notify_one();
        }
        answer.map(Response::into_inner)
    }

    /// Completes as soon as it answers.
    pub(super) async fn up(&self) {
        let _ = self.trouble.subscribe().wait_for(Option::is_none).await;
    }

    /// Looks at it until `stop`, and tells when it goes down or comes back.
    pub(super) async fn keep_watch(&self, stop: CancellationToken) {
        let mut missed = 0;
        loop {
            let is_down = self.is_down();
            let pause = if is_down || missed > 0 { LOOK_AGAIN } else { LOOK_EVERY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // While it is down everybody finds it unreachable.
                () = self.look.notified(), if !is_down && missed == 0 => {}
                () = stop.cancelled() => return,
            }
            match self.learn().await {
                Ok(()) => {
                    missed = 0;
                    if is_down {
                        self.trouble.send_replace(None);
                        self.back.send_modify(|times| *times += 1);
                    }
                }
                Err(status) => {
                    missed += 1;
                    // A busy one may be late once; a closed door is a closed door.
                    let is_shut = UnixStream::connect(&self.place.socket).await.is_err();
                    if !is_down && (missed >= 2 || is_shut) {
                        self.trouble.send_replace(Some(words(&status)));
                    }
                }
            }
        }
    }

    async fn learn(&self) -> Result<(), Status> {
        let asking = VersionClient::new(self.channel.clone());
        let asking = async move { { asking }.version(()).await };
        let answer = tokio::time::timeout(LOOK_PATIENCE, asking).await.unwrap_or_else(|_| Err(no_answer()))?;
        let facts = Facts {
            version: Some(answer.into_inner().version).filter(|version| !version.is_empty()),
            architecture: architecture(),
            cpus: std::thread::available_parallelism().map_or(0, |cpus| cpus.get() as u64),
            hierarchy: groups::hierarchy(Path::new("/sys/fs/cgroup")),
        };
        *self.facts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
        Ok(())
    }
}

/// In our namespace.
pub(super) fn ours<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

/// The same, with what it makes held by a lease.
pub(super) fn leased<T>(message: T, lease: &str) -> Request<T> {
    let mut request = ours(message);
    if let Ok(lease) = lease.parse::<MetadataValue<Ascii>>() {
        request.metadata_mut().insert("containerd-lease", lease);
    }
    request
}

/// This machine as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Connects at the first request, and again after each connection that broke.
fn channel(socket: &Path) -> Result<Channel, ContainerdRuntimeError> {
    let failed =
        |why: &str| ContainerdRuntimeError::Address { address: socket.display().to_string(), why: why.to_owned() };
    if !socket.is_absolute() {
        return Err(failed("it is the absolute path of a socket"));
    }
    let socket = socket.to_owned();
    // The name is nobody's: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://containerd.invalid");
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })))
}

/// Whether one answers where these settings look for it, and this worker may use it.
pub async fn found(settings: &ContainerSettings) -> bool {
    if !nix::unistd::geteuid().is_root() || !settings.containerd_address.exists() {
        return false;
    }
    match Engine::connect(Place::of(settings)).await {
        Ok(engine) => !engine.is_down(),
        Err(_) => false,
    }
}
