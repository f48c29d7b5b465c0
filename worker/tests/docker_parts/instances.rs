//! Instances of functions on Docker: the cases of every runtime, and what is Docker's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::ListContainersOptionsBuilder;
use schemas::task::{Container, PullPolicy};
use schemas::{AgentId, Code, FunctionName, StartId};
use shoal_worker::GuardCommand;
use shoal_worker::logs::Notes;
use shoal_worker::policy::{ContainerSettings, Policy};
use shoal_worker::runtime::docker::guard::{Guard, Target};
use shoal_worker::runtime::docker::labels::{self, Owner, instance_labels};
use shoal_worker::runtime::docker::{DockerConfig, DockerRuntime};
use shoal_worker::runtime::instances::{Instances, Launch};
use shoal_worker::runtime::{Runtime, StartError, Status};

use crate::conformance::instances::{Place, instances_cases};
use crate::proxy::Proxy;
use crate::support::{Engine, FUNCTION, eventually, random_word, task};

/// The engine of this machine.
struct Docker {
    engine: Engine,
    booted: Mutex<Vec<Arc<DockerRuntime>>>,
}

async fn docker() -> Option<Docker> {
    let engine = Engine::find().await?;
    engine.make_function().await?;
    Some(Docker { engine, booted: Mutex::default() })
}

impl Docker {
    async fn runtime(&self, worker: &str, settings: ContainerSettings) -> Arc<DockerRuntime> {
        let docker_host = settings.docker_host.or_else(|| Some(self.engine.host.clone()));
        let config = DockerConfig {
            settings: ContainerSettings { docker_host, ..settings },
            fleet: self.engine.owner.fleet.clone(),
            worker: AgentId::new(worker).unwrap(),
            instance: random_word(),
            scratch: std::env::temp_dir().join(format!("shoal-test-pulls-{:016x}", rand::random::<u64>())),
            guard: GuardCommand::this_program(),
        };
        let runtime = Arc::new(DockerRuntime::new(config).await.unwrap());
        self.booted.lock().unwrap().push(runtime.clone());
        runtime
    }

    fn wish(&self) -> Launch {
        Launch {
            start: StartId::new(random_word()).unwrap(),
            function: FunctionName::new("f").unwrap(),
            index: 0,
            spec: "s".to_owned(),
            container: Container { pull: Some(PullPolicy::Never), ..Container::new(FUNCTION) },
            env: Vec::new(),
            limits: ContainerSettings::default().limits,
            notes: Notes::nowhere(),
        }
    }

    /// On this network.
    fn wish_on(&self, network: &str) -> Launch {
        let mut wish = self.wish();
        wish.container.network = Some(network.to_owned());
        wish
    }
}

impl Place for Docker {
    async fn boot(&self, worker: &str) -> Arc<dyn Runtime> {
        self.runtime(worker, ContainerSettings::default()).await
    }

    fn image(&self) -> String {
        FUNCTION.to_owned()
    }

    async fn containers(&self) -> Vec<String> {
        let ours = vec![format!("{}={}", labels::FLEET, self.engine.owner.fleet)];
        let filters = HashMap::from([("label".to_owned(), ours)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.engine.docker.list_containers(Some(options)).await.unwrap();
        found.into_iter().map(|container| container.names.unwrap_or_default().join(",")).collect()
    }

    async fn close(&self) {
        let booted = std::mem::take(&mut *self.booted.lock().unwrap());
        for runtime in booted {
            runtime.close().await;
        }
    }
}

instances_cases!(docker);

#[tokio::test]
async fn the_guard_of_a_killed_worker_leaves_its_instances() {
    let Some(docker) = docker().await else { return };
    let owner = Owner { instance: "killed".into(), ..docker.engine.owner.clone() };
    let runtime = docker.runtime(owner.worker.as_str(), ContainerSettings::default()).await;
    let made = runtime.launch(docker.wish()).await.unwrap();
    let of_a_task = docker.engine.run(task(&owner, "a", true)).await;
    let guard =
        Guard::start(&GuardCommand::this_program(), &Target::Docker(docker.engine.host.clone()), &owner).await.unwrap();
    // As of a worker that is frozen, and then of one that is gone.
    guard.extend(std::time::Instant::now());
    eventually("the task killed", async || !docker.engine.runs(&of_a_task).await).await;
    assert!(docker.engine.runs(&made.id).await);
    let pid = guard.pid().unwrap();
    drop(guard);
    eventually("the task removed, and the guard done", async || {
        !docker.engine.has(&of_a_task).await && !crate::guard::is_alive(pid)
    })
    .await;
    assert!(docker.engine.runs(&made.id).await);
    runtime.destroy(&made.id, Duration::ZERO).await.unwrap();
    docker.close().await;
}

#[tokio::test]
async fn what_a_killed_worker_made_half_is_found_by_its_next_boot() {
    let Some(docker) = docker().await else { return };
    let wish = docker.wish();
    let half = docker.engine.create(instance_labels(&docker.engine.owner, &wish)).await;
    let mut nonsense = instance_labels(&docker.engine.owner, &wish);
    nonsense.insert(labels::INDEX.to_owned(), "first".to_owned());
    let nonsense = docker.engine.create(nonsense).await;
    let runtime = docker.runtime(docker.engine.owner.worker.as_str(), ContainerSettings::default()).await;
    let found = Instances::instances(&*runtime).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0].id, &found[0].start, &found[0].status), (&half, &wish.start, &Status::Stopped));
    assert_eq!(found[0].address, None);
    runtime.destroy(&half, Duration::from_secs(5)).await.unwrap();
    assert!(!docker.engine.has(&half).await && docker.engine.has(&nonsense).await);
    docker.close().await;
}

#[tokio::test]
async fn a_strangers_container_of_an_image_of_ours_is_no_instance() {
    let Some(docker) = docker().await else { return };
    let runtime = docker.runtime(docker.engine.owner.worker.as_str(), ContainerSettings::default()).await;
    let made = runtime.launch(docker.wish()).await.unwrap();
    let image = format!("shoal-worker-test/{}", random_word());
    let commit = bollard::query_parameters::CommitContainerOptions {
        container: Some(made.id.clone()),
        repo: Some(image.clone()),
        ..Default::default()
    };
    docker.engine.docker.commit_container(commit, bollard::models::ContainerConfig::default()).await.unwrap();
    docker.engine.forget(&image);
    let body = bollard::models::ContainerCreateBody { image: Some(image), ..Default::default() };
    let options = None::<bollard::query_parameters::CreateContainerOptions>;
    let theirs = docker.engine.docker.create_container(options, body).await.unwrap().id;
    let found = Instances::instances(&*runtime).await.unwrap();
    assert_eq!(found.iter().map(|found| &found.id).collect::<Vec<_>>(), [&made.id]);
    assert!(docker.engine.has(&theirs).await);
    runtime.destroy(&made.id, Duration::ZERO).await.unwrap();
    docker.close().await;
}

#[tokio::test]
async fn the_workers_networks_for_functions_win() {
    let Some(docker) = docker().await else { return };
    let network = docker.engine.owner.fleet.clone();
    let labels =
        labels::own_labels(&Owner { worker: AgentId::new("net").unwrap(), ..docker.engine.owner.clone() }, "net");
    let request =
        NetworkCreateRequest { name: network.clone(), labels: Some(labels), ..NetworkCreateRequest::default() };
    docker.engine.docker.create_network(request).await.unwrap();
    let allowing = |networks: &[&str]| ContainerSettings {
        policy: Policy {
            function_networks: Some(networks.iter().map(|name| (*name).to_owned()).collect()),
            ..Policy::default()
        },
        ..ContainerSettings::default()
    };
    let open = docker.runtime("open", allowing(&[&network])).await;
    let made = open.launch(docker.wish_on(&network)).await.unwrap();
    let found = docker.engine.docker.inspect_container(&made.id, None).await.unwrap();
    let endpoints = found.network_settings.unwrap().networks.unwrap();
    assert_eq!(endpoints[&network].ip_address.as_deref(), Some(&*made.address.to_string()));
    open.destroy(&made.id, Duration::ZERO).await.unwrap();
    for (networks, asked) in [(&[][..], "bridge"), (&[&*network][..], "bridge"), (&["bridge"][..], &*network)] {
        let runtime = docker.runtime("shut", allowing(networks)).await;
        let error = runtime.launch(docker.wish_on(asked)).await.unwrap_err().to_task_error();
        assert_eq!(error.code, Code::PolicyForbidden, "{}", error.message);
        assert!(error.message.contains(&format!("`--function-networks {asked}`")), "{}", error.message);
    }
    docker.close().await;
}

#[tokio::test]
async fn an_instance_is_hardened_as_every_container() {
    let Some(docker) = docker().await else { return };
    let runtime = docker.runtime("w", ContainerSettings::default()).await;
    let made = runtime.launch(docker.wish()).await.unwrap();
    let found = docker.engine.docker.inspect_container(&made.id, None).await.unwrap();
    let host = found.host_config.unwrap();
    assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    assert_eq!((host.memory, host.pids_limit), (Some(512 << 20), Some(512)));
    assert_eq!(host.log_config.and_then(|log| log.typ).as_deref(), Some("none"));
    assert_eq!(host.restart_policy.and_then(|policy| policy.name.map(|name| name.to_string())).as_deref(), Some("no"));
    assert!(found.mounts.unwrap_or_default().is_empty(), "no work folder");
    let labels = found.config.unwrap().labels.unwrap();
    assert_eq!((labels[labels::MORTAL].as_str(), labels.get(labels::INSTANCE)), ("false", None));
    runtime.destroy(&made.id, Duration::ZERO).await.unwrap();
    docker.close().await;
}

#[tokio::test]
async fn an_instance_is_waited_for_over_an_outage_of_the_engine() {
    let Some(docker) = docker().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut door = Proxy::open(folder.path());
    let settings = ContainerSettings { docker_host: Some(door.host()), ..ContainerSettings::default() };
    let runtime = docker.runtime("w", settings).await;
    let made = runtime.launch(docker.wish()).await.unwrap();
    let waiting = tokio::spawn({
        let (runtime, id) = (runtime.clone(), made.id.clone());
        async move { runtime.ended(&id).await }
    });
    door.shut().await;
    let mut trouble = runtime.trouble().unwrap();
    trouble.wait_for(Option::is_some).await.unwrap();
    assert!(Instances::instances(&*runtime).await.is_err() && runtime.destroy(&made.id, Duration::ZERO).await.is_err());
    let refused = runtime.launch(docker.wish()).await;
    assert!(matches!(refused, Err(StartError::Unavailable { .. })), "{refused:?}");
    door.reopen();
    trouble.wait_for(Option::is_none).await.unwrap();
    assert!(!waiting.is_finished() && docker.engine.runs(&made.id).await);
    docker.engine.docker.stop_container(&made.id, None).await.unwrap();
    let exit = waiting.await.unwrap().unwrap();
    assert_eq!((exit.code, exit.oom), (Some(0), false));
    runtime.destroy(&made.id, Duration::ZERO).await.unwrap();
    docker.close().await;
}

#[tokio::test]
async fn a_launch_that_an_outage_broke_is_taken_back_when_the_engine_is_back() {
    let Some(docker) = docker().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut door = Proxy::open(folder.path());
    let settings = ContainerSettings {
        docker_host: Some(door.host()),
        sweep_every: Duration::from_millis(100),
        ..ContainerSettings::default()
    };
    let runtime = docker.runtime("w", settings).await;
    let launching = tokio::spawn({
        let (runtime, wish) = (runtime.clone(), docker.wish_on("none"));
        async move { runtime.launch(wish).await }
    });
    eventually("a container", async || !docker.containers().await.is_empty()).await;
    door.shut().await;
    let failed = launching.await.unwrap();
    assert!(matches!(failed, Err(StartError::Unsure { .. } | StartError::Unavailable { .. })), "{failed:?}");
    assert_eq!(docker.containers().await.len(), 1);
    door.reopen();
    eventually("nothing left", async || docker.containers().await.is_empty()).await;
    docker.close().await;
}
