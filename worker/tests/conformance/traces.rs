//! A containerd, and what containers leave on its machine: everything of a start is found by its id.

use std::path::{Path, PathBuf};

use containerd_client::Client;
use containerd_client::services::v1::snapshots::ListSnapshotsRequest;
use containerd_client::services::v1::{ListContainersRequest, ListTasksRequest};
use containerd_client::tonic::Request;
use containerd_client::with_namespace;
use schemas::{AgentId, StartId};
use shoal_worker::GuardCommand;
use shoal_worker::policy::ContainerSettings;
use shoal_worker::runtime::containerd::{ContainerdConfig, NAMESPACE};

use crate::world::IMAGE;

/// The engine itself, to look for what is left.
pub struct Traces {
    client: Client,
    socket: PathBuf,
}

/// Where one is looked for: as told, the project's own, the system's.
fn sockets() -> Vec<PathBuf> {
    match std::env::var_os("SHOAL_CONTAINERD_ADDRESS") {
        Some(address) => vec![address.into()],
        None => vec![
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/containerd/containerd.sock"),
            "/run/containerd/containerd.sock".into(),
        ],
    }
}

impl Traces {
    /// The engine, with the image; `None` where there is none, which is news, and in CI a failure.
    pub async fn find() -> Option<Self> {
        for socket in sockets() {
            let Ok(socket) = std::fs::canonicalize(socket) else { continue };
            let Ok(client) = Client::from_path(&socket).await else { continue };
            let traces = Self { client, socket };
            traces.bring_image().await;
            return Some(traces);
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI no test is skipped: no containerd");
        eprintln!("skipped: no containerd");
        None
    }

    /// What `scripts/engine` brings over from Docker; by our own import where it did not.
    async fn bring_image(&self) {
        use containerd_client::services::v1::GetImageRequest;
        let request = GetImageRequest { name: format!("docker.io/{IMAGE}") };
        if self.client.images().get(with_namespace!(request, NAMESPACE)).await.is_err() {
            panic!("there is no image {IMAGE} in the namespace {NAMESPACE}; run scripts/engine");
        }
    }

    /// Removes an image that a test brought.
    pub async fn forget_image(&self, name: &str) {
        use containerd_client::services::v1::DeleteImageRequest;
        let request = DeleteImageRequest { name: name.to_owned(), sync: true, target: None };
        self.client.images().delete(with_namespace!(request, NAMESPACE)).await.unwrap();
    }

    pub fn settings(&self) -> ContainerSettings {
        ContainerSettings { containerd_address: self.socket.clone(), ..ContainerSettings::default() }
    }

    /// Where its socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ids of all containers with this label.
    pub async fn containers(&self, label: &str, value: &str) -> Vec<String> {
        let request = with_namespace!(ListContainersRequest::default(), NAMESPACE);
        let found = self.client.containers().list(request).await.unwrap().into_inner().containers;
        let ours = found.into_iter().filter(|container| container.labels.get(label).is_some_and(|of| of == value));
        ours.map(|container| container.id).collect()
    }

    pub fn config(&self, worker: &AgentId, instance: &str) -> ContainerdConfig {
        ContainerdConfig {
            settings: self.settings(),
            fleet: "test".to_owned(),
            worker: worker.clone(),
            instance: instance.to_owned(),
            scratch: std::env::temp_dir().join(format!("shoal-test-pulls-{:016x}", rand::random::<u64>())),
            guard: GuardCommand::this_program(),
        }
    }

    /// Everything on the machine that belongs to one of these starts.
    pub async fn of(&self, starts: &[StartId]) -> Vec<String> {
        let is_of = |text: &str| starts.iter().any(|start| text.contains(start.as_str()));
        let mut left = Vec::new();
        let request = with_namespace!(ListContainersRequest::default(), NAMESPACE);
        for container in self.client.containers().list(request).await.unwrap().into_inner().containers {
            left.push(format!("container {}", container.id));
        }
        let request = with_namespace!(ListTasksRequest::default(), NAMESPACE);
        for task in self.client.tasks().list(request).await.unwrap().into_inner().tasks {
            left.push(format!("task {}", task.id));
        }
        let request = ListSnapshotsRequest { snapshotter: "overlayfs".to_owned(), filters: Vec::new() };
        let snapshots = self.client.snapshots().list(with_namespace!(request, NAMESPACE)).await.unwrap();
        let mut snapshots = snapshots.into_inner();
        while let Some(answer) = snapshots.message().await.unwrap() {
            left.extend(answer.info.into_iter().map(|info| format!("snapshot {}", info.name)));
        }
        for folder in ["/run/shoal/containers", "/run/shoal/netns", "/var/lib/shoal/instances"] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                left.push(entry.path().display().to_string());
            }
        }
        for entry in std::fs::read_dir("/run/shoal/cni/shoal").into_iter().flatten().flatten() {
            let holder = std::fs::read_to_string(entry.path()).unwrap_or_default();
            left.push(format!("address {} of {holder}", entry.path().display()));
        }
        groups(Path::new("/sys/fs/cgroup"), &mut left);
        left.retain(|text| is_of(text));
        left
    }
}

/// Control groups of ours.
fn groups(root: &Path, into: &mut Vec<String>) {
    fn below(folder: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                into.push(format!("control group {}", entry.path().display()));
                below(&entry.path(), into);
            }
        }
    }
    below(&root.join("shoal"), into);
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        below(&entry.path().join("shoal"), into);
    }
}
