//! `true` as a container task.

use std::sync::Arc;

use serde_json::json;
use worker::runtime::docker::bare::Bare;

use super::super::BenchError;
use super::super::sitting::{Case, Sitting};
use super::super::work::Work;

/// Beside the bare Engine API, with every network a task may ask for.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    let engine_lost = |error| BenchError::fleet("could not measure containers", error);
    let plan = sitting.plan;
    for (slots, jobs) in [(1, 20), (4, 40)] {
        let host = plan.engine.docker_host.clone().map(|host| ("SHOAL_DOCKER_HOST", host));
        let networks = ("SHOAL_ALLOWED_NETWORKS", "shared,bridge".to_owned());
        let settings: Vec<_> = host.into_iter().chain([networks]).collect();
        sitting.fleet.worker("docker", slots, &settings).await?;
        for network in ["none", "shared", "bridge"] {
            let bare = Arc::new(Bare::new(&plan.engine, &plan.image, network).await.map_err(engine_lost)?);
            let workload = json!({
                "kind": "container", "image": plan.image, "command": ["true"], "network": network,
            });
            let case = Case {
                suite: "container",
                name: format!("true, network {network}, {slots} at once"),
                jobs: sitting.jobs(jobs),
                ours: Work::Cycle { body: json!({ "workload": workload }).to_string().into(), in_flight: slots },
                beside: vec![Work::Containers(slots, bare.clone())],
                memory: false,
            };
            let measured = sitting.case(case).await;
            if let Some(bare) = Arc::into_inner(bare) {
                bare.end().await.map_err(engine_lost)?;
            }
            measured?;
        }
    }
    Ok(())
}
