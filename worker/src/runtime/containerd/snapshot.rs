//! Snapshots: the files of containers and what they stand on.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    ViewSnapshotRequest,
};
use containerd_client::tonic::Status;
use containerd_client::types::{Descriptor, Mount};

use super::content::Lease;
use super::engine::{Engine, PATIENCE, leased, ours};
use super::status::{is_missing, is_there};

/// What makes snapshots; the default of containerd itself.
pub(super) const SNAPSHOTTER: &str = "overlayfs";
/// For one layer.
const APPLY_PATIENCE: Duration = Duration::from_secs(30 * 60);

impl Engine {
    /// Whether there is a snapshot of this name that others may stand on.
    pub(super) async fn has_snapshot(&self, key: &str) -> Result<bool, Status> {
        let request = StatSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        match self.ask(PATIENCE, self.snapshots().stat(ours(request))).await {
            Ok(_) => Ok(true),
            Err(status) if is_missing(&status) => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// The writable files of a container, whose record must name `key`: nothing else holds them.
    pub(super) async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        Ok(self.ask(PATIENCE, self.snapshots().prepare(ours(request))).await?.mounts)
    }

    /// How the files of a container are mounted.
    pub(super) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        Ok(self.ask(PATIENCE, self.snapshots().mounts(ours(request))).await?.mounts)
    }

    /// The files of an image, only to be read, as long as the lease holds.
    pub(super) async fn view(&self, key: &str, parent: &str, lease: &Lease) -> Result<Vec<Mount>, Status> {
        let request = ViewSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        Ok(self.ask(PATIENCE, self.snapshots().view(leased(request, &lease.id))).await?.mounts)
    }

    /// What is gone already is gone.
    pub(super) async fn remove_snapshot(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        match self.ask(PATIENCE, self.snapshots().remove(ours(request))).await {
            Err(status) if !is_missing(&status) => Err(status),
            _ => Ok(()),
        }
    }

    /// Unpacks one layer over `parent` as the snapshot `chain`. What somebody else made meanwhile is as good.
    pub(super) async fn unpack(
        &self,
        layer: Descriptor,
        diff_id: &str,
        parent: &str,
        chain: &str,
        lease: &Lease,
    ) -> Result<(), Status> {
        let key = format!("shoal-unpack-{:016x}", rand::random::<u64>());
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let mounts = self.ask(PATIENCE, self.snapshots().prepare(leased(request, &lease.id))).await?.mounts;
        let unpacked = self.unpack_into(layer, diff_id, mounts, &key, chain, lease).await;
        if unpacked.is_err() {
            let _ = self.remove_snapshot(&key).await;
        }
        match unpacked {
            Err(status) if is_there(&status) => Ok(()),
            unpacked => unpacked,
        }
    }

    async fn unpack_into(
        &self,
        layer: Descriptor,
        diff_id: &str,
        mounts: Vec<Mount>,
        key: &str,
        chain: &str,
        lease: &Lease,
    ) -> Result<(), Status> {
        let digest = layer.digest.clone();
        let request = ApplyRequest { diff: Some(layer), mounts, payloads: HashMap::new(), sync_fs: false };
        let applied = self.ask(APPLY_PATIENCE, self.diff().apply(leased(request, &lease.id))).await?.applied;
        let applied = applied.unwrap_or_default().digest;
        if applied != diff_id {
            let message = format!("the layer {digest} unpacks to {applied} and not to {diff_id}, as its image says");
            return Err(Status::failed_precondition(message));
        }
        let request = CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            name: chain.to_owned(),
            key: key.to_owned(),
            labels: HashMap::new(),
        };
        self.ask(PATIENCE, self.snapshots().commit(leased(request, &lease.id))).await.map(|_| ())
    }
}
