//! What nobody owns any more is removed: what an earlier life of this worker left, and what this one lost sight of.
//!
//! Only labels count, and all of an owner's: what belongs to another fleet, another worker or to nobody stays.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    ListContainersOptions, ListNetworksOptions, ListVolumesOptions, RemoveContainerOptions, RemoveVolumeOptions,
};
use futures_util::StreamExt;
use schemas::StartId;

use super::refusal::{is_unreachable, status, words};
use crate::runtime::container::labels::{self, Owner};

/// Removals at once: engines do them side by side, but not by the hundred.
const AT_ONCE: usize = 8;

/// How much one sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Containers, with their anonymous volumes.
    pub containers: usize,
    /// Networks.
    pub networks: usize,
    /// Named volumes.
    pub volumes: usize,
    /// What the engine would not remove; the next sweep tries again.
    pub refused: usize,
}

impl Swept {
    /// Whether there was nothing to do.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Removes every object of this worker that no start owns: all of its earlier lives, and of this life what runs a task
/// that is not `live` and is older than `grace`. Instances of functions stay: whoever keeps their records decides. May be done again at any time, and beside another sweep.
pub async fn sweep(
    docker: &Docker,
    owner: &Owner,
    live: &(dyn Fn(&StartId) -> bool + Sync),
    grace: Duration,
) -> Result<Swept, Error> {
    let filters = Some(owner.filters());
    let is_left = |labels: &HashMap<String, String>, created: Option<i64>| owner.is_left(live, grace, labels, created);
    let mut swept = Swept::default();

    let list = ListContainersOptions { all: true, filters: filters.clone(), ..ListContainersOptions::default() };
    let containers = docker.list_containers(Some(list)).await?.into_iter();
    let mut left = Vec::new();
    for it in containers.filter(|it| it.labels.as_ref().is_some_and(|labels| is_left(labels, it.created))) {
        if !is_inherited(docker, it.labels.as_ref(), it.image_id.as_deref()).await? {
            left.extend(it.id);
        }
    }
    let force = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
    let removals = left.into_iter().map(|id| {
        let force = force.clone();
        async move { docker.remove_container(&id, Some(force)).await }
    });
    swept.containers = remove(removals, &mut swept.refused).await?;

    // Behind the containers, which hold them.
    let list = ListNetworksOptions { filters: filters.clone() };
    let networks = docker.list_networks(Some(list)).await?.into_iter();
    let left = networks.filter(|it| it.labels.as_ref().is_some_and(|labels| is_left(labels, seconds(&it.created))));
    let removals = left.filter_map(|it| it.id).map(|id| async move { docker.remove_network(&id).await });
    swept.networks = remove(removals, &mut swept.refused).await?;

    let volumes = docker.list_volumes(Some(ListVolumesOptions { filters })).await?.volumes.into_iter().flatten();
    let left = volumes.filter(|it| is_left(&it.labels, seconds(&it.created_at)));
    let removals = left.map(|it| async move { docker.remove_volume(&it.name, None::<RemoveVolumeOptions>).await });
    swept.volumes = remove(removals, &mut swept.refused).await?;
    Ok(swept)
}

/// Whether a container has our labels only from its image: who commits one of ours to an image and runs that, runs a
/// container of their own. One of ours has a start, or a life, that no image can know.
pub(super) async fn is_inherited(
    docker: &Docker,
    labels: Option<&HashMap<String, String>>,
    image: Option<&str>,
) -> Result<bool, Error> {
    let (Some(labels), Some(image)) = (labels, image) else { return Ok(false) };
    let of_image = match docker.inspect_image(image).await {
        Ok(found) => found.config.and_then(|config| config.labels).unwrap_or_default(),
        Err(error) if is_unreachable(&error).is_some() => return Err(error),
        // It may be gone; then nothing speaks for a stranger.
        Err(_) => return Ok(false),
    };
    let same = |name: &str| of_image.get(name) == labels.get(name);
    // An instance of a function has a start alone.
    let is_of_ours = [labels::INSTANCE, labels::START].iter().any(|name| of_image.contains_key(*name));
    Ok(is_of_ours && same(labels::INSTANCE) && same(labels::START))
}

/// The number of those that went well. What is gone already, or on its way, is as good.
async fn remove(
    removals: impl Iterator<Item = impl Future<Output = Result<(), Error>>>,
    refused: &mut usize,
) -> Result<usize, Error> {
    let mut ended = futures_util::stream::iter(removals).buffer_unordered(AT_ONCE);
    let mut removed = 0;
    while let Some(end) = ended.next().await {
        match end {
            Ok(()) => removed += 1,
            Err(error) if is_gone(&error) => {}
            Err(error) if is_unreachable(&error).is_some() => return Err(error),
            Err(error) => {
                *refused += 1;
                tracing::warn!(error = words(&error), "the engine does not remove what nobody owns; tried again later");
            }
        }
    }
    Ok(removed)
}

/// Whether a removal failed only because there is nothing to remove, or somebody is at it.
pub fn is_gone(error: &Error) -> bool {
    match status(error) {
        Some(404) => true,
        Some(409) => words(error).contains("already in progress"),
        _ => false,
    }
}

pub(super) fn seconds(created: &Option<String>) -> Option<i64> {
    created.as_deref()?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}
