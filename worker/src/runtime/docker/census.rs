//! What carries our labels on an engine, whoever made it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions, ListVolumesOptions};
use schemas::{AgentId, StartId};

use super::engine::first_of;
use super::refusal::words;
use super::sweep::{is_inherited, seconds};
use crate::census::{Census, Made};
use crate::policy::ContainerSettings;
use crate::runtime::container::labels;

/// How long the engine may take for all of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Lists what workers of `fleet` made on the engine `host` (`None`: where workers look for one).
pub async fn engine(host: Option<String>, fleet: &str) -> Result<Census, String> {
    let settings = ContainerSettings { docker_host: host, ..ContainerSettings::default() };
    let (host, docker) = first_of(&settings).map_err(|error| error.to_string())?;
    let listing = async {
        let filters = Some(HashMap::from([("label".to_owned(), vec![labels::FLEET.to_owned()])]));
        let mut census = Census::default();
        let list = ListContainersOptions { all: true, filters: filters.clone(), ..ListContainersOptions::default() };
        for it in docker.list_containers(Some(list)).await? {
            let Some(labels) = &it.labels else { continue };
            // A stranger's own container, of an image that was made of one of ours.
            if is_inherited(&docker, it.labels.as_ref(), it.image_id.as_deref()).await? {
                continue;
            }
            let name = it.names.into_iter().flatten().next().map(|name| name.trim_start_matches('/').to_owned());
            census.take("container", name.or(it.id), labels, it.created, fleet);
        }
        let list = ListNetworksOptions { filters: filters.clone() };
        for it in docker.list_networks(Some(list)).await? {
            let created = seconds(&it.created);
            census.take("network", it.name, &it.labels.unwrap_or_default(), created, fleet);
        }
        let volumes = docker.list_volumes(Some(ListVolumesOptions { filters })).await?.volumes;
        for it in volumes.into_iter().flatten() {
            let created = seconds(&it.created_at);
            census.take("volume", Some(it.name), &it.labels, created, fleet);
        }
        Ok::<_, bollard::errors::Error>(census)
    };
    match tokio::time::timeout(PATIENCE, listing).await {
        Ok(Ok(census)) => Ok(census),
        Ok(Err(error)) => Err(format!("the engine {host}: {}", words(&error))),
        Err(_) => Err(format!("the engine {host} does not answer within {} s", PATIENCE.as_secs())),
    }
}

impl Census {
    fn take(
        &mut self,
        kind: &'static str,
        name: Option<String>,
        labels: &HashMap<String, String>,
        created: Option<i64>,
        fleet: &str,
    ) {
        if labels.get(labels::FLEET).is_none_or(|of| of != fleet) {
            self.others += 1;
            return;
        }
        let of = |label: &str| labels.get(label).cloned();
        let worker = of(labels::WORKER).and_then(|worker| AgentId::new(worker).ok());
        let (Some(name), Some(worker)) = (name, worker) else { return };
        let is_task = of(labels::KIND).is_some_and(|kind| kind == labels::TASK_KIND);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created = created.and_then(|created| u64::try_from(created).ok()).map(Duration::from_secs);
        self.made.push(Made {
            kind,
            name,
            worker,
            instance: of(labels::INSTANCE),
            task: of(labels::NAME).filter(|_| is_task),
            start: of(labels::START).filter(|_| is_task).and_then(|start| StartId::new(start).ok()),
            age: created.map(|made| now.saturating_sub(made)),
        });
    }
}
