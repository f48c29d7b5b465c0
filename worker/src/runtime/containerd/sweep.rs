//! What nobody owns any more is removed: what an earlier life of this worker left, and what this one lost sight of.

use std::time::Duration;

use containerd_client::services::v1::{Container as Record, ListContainersRequest};
use containerd_client::tonic::Status;
use futures_util::StreamExt;
use schemas::StartId;

use super::engine::{Engine, PATIENCE, ours};
use super::undo::undo;
use super::{groups, namespace, network};
use crate::runtime::container::labels::{FLEET, Owner, WORKER};

/// Removals at once.
const AT_ONCE: usize = 8;

/// Records of this worker's containers, in this life or an earlier one.
pub(super) async fn records(engine: &Engine, owner: &Owner) -> Result<Vec<Record>, Status> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let is = |label: &str, value: &str| format!("labels.{}=={}", quoted(label), quoted(value));
    let filter = format!("{},{}", is(FLEET, &owner.fleet), is(WORKER, owner.worker.as_str()));
    let request = ListContainersRequest { filters: vec![filter] };
    let found = engine.ask(PATIENCE, engine.containers().list(ours(request))).await?.containers;
    // The engine filters well, but removing is for good.
    Ok(found.into_iter().filter(|record| owner.owns(&record.labels)).collect())
}

/// How much a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) containers: usize,
    /// Left for the next one.
    pub(super) refused: usize,
}

/// Removes every container of this worker that no start owns: of all its earlier lives, and of this life what runs a task
/// that is not `live` and is older than `grace`. May be done again at any time, and beside another sweep.
pub(super) async fn sweep(
    engine: &Engine,
    owner: &Owner,
    live: &(dyn Fn(&StartId) -> bool + Sync),
    grace: Duration,
) -> Result<Swept, Status> {
    let created = |record: &Record| record.created_at.as_ref().map(|at| at.seconds);
    let found = records(engine, owner).await?.into_iter();
    let left = found.filter(|record| owner.is_left(live, grace, &record.labels, created(record)));
    let swept = remove(engine, left.map(|record| record.id).collect()).await;
    for life in groups::other_lives(owner) {
        groups::kill(&life);
        groups::remove(&life);
    }
    let (ours, own) = (network::shared_by_worker(owner), network::shared(owner));
    for name in namespace::all().into_iter().filter(|name| name.starts_with(&ours) && *name != own) {
        if let Err(error) = namespace::remove(&name) {
            tracing::warn!(name, %error, "a network namespace is left");
        }
    }
    Ok(swept)
}

/// Removes everything of this life; how much there was.
pub(super) async fn remove_all(engine: &Engine, owner: &Owner) -> Result<Swept, Status> {
    let found = records(engine, owner).await?.into_iter();
    let ids = found.filter(|record| !owner.owns_instance(&record.labels) && owner.is_of_this_life(&record.labels));
    let swept = remove(engine, ids.map(|record| record.id).collect()).await;
    if swept.refused == 0 {
        if let Err(error) = namespace::remove(&network::shared(owner)) {
            tracing::warn!(%error, "a network namespace is left");
        }
        groups::remove(&groups::of_life(owner));
        groups::remove_empty(&format!("{}/lasting", groups::of_worker(owner)));
        groups::remove_empty(&groups::of_worker(owner));
    }
    Ok(swept)
}

async fn remove(engine: &Engine, ids: Vec<String>) -> Swept {
    let removals = ids.into_iter().map(|id| async move {
        let undone = undo(engine, &id).await;
        if let Err(error) = &undone {
            tracing::warn!(id, %error, "not removed whole; tried again later");
        }
        undone.is_ok()
    });
    let ended: Vec<bool> = futures_util::stream::iter(removals).buffer_unordered(AT_ONCE).collect().await;
    let containers = ended.iter().filter(|gone| **gone).count();
    Swept { containers, refused: ended.len() - containers }
}
