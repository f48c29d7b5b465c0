//! The shared network: loopback and nothing else, one namespace for all containers of a worker that ask for it.
//!
//! A namespace lives as long as a container is in it, so one of our own holds it: a program that does nothing, in an
//! image of nothing else.

use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use schemas::task::Container;

use super::create::hardened;
use super::engine::{Engine, PATIENCE};
use super::program::{Program, ensure_image};
use super::refusal::{create_refused, status};
use crate::runtime::StartError;
use crate::runtime::container::labels::{Owner, own_labels};

/// The holder's image; made where it is missing, never pulled.
const IMAGE: &str = "shoal-holder:1";
/// Its only file.
const PROGRAM: &str = "hold";
const MEMORY: i64 = 16 << 20;

/// The worker's shared network.
pub(super) struct Holder {
    /// Id of the container that holds it.
    current: tokio::sync::Mutex<Option<String>>,
    owner: Owner,
}

impl Holder {
    pub(super) fn new(owner: Owner) -> Self {
        Self { current: tokio::sync::Mutex::default(), owner }
    }

    /// The network as the engine calls it; its holder is made where there is none, or where it is gone.
    /// Cancel safe: a holder made half way is swept with its worker.
    pub(super) async fn ensure(&self, engine: &Engine) -> Result<String, StartError> {
        let mut current = self.current.lock().await;
        if let Some(id) = &*current {
            match engine.ask(PATIENCE, engine.docker.inspect_container(id, None)).await {
                Ok(found) if found.state.as_ref().and_then(|state| state.running) == Some(true) => {
                    return Ok(format!("container:{id}"));
                }
                Ok(_) => drop(remove(engine, id).await),
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => return Err(create_refused(error, &Container::new(IMAGE))),
            }
        }
        let id = self.make(engine).await?;
        *current = Some(id.clone());
        Ok(format!("container:{id}"))
    }

    async fn make(&self, engine: &Engine) -> Result<String, StartError> {
        let as_container = Container::new(IMAGE);
        let program = Program::Hold.file(&engine.facts().architecture);
        let made = engine.ask(PATIENCE, ensure_image(&engine.docker, IMAGE, PROGRAM, program)).await;
        match made {
            Ok(true) => {}
            Ok(false) => {
                let message = format!(
                    "the network `shared` needs an engine on x86_64 or aarch64, this one is on `{}`",
                    engine.facts().architecture
                );
                return Err(StartError::Refused { code: schemas::Code::PolicyForbidden, message });
            }
            Err(error) => return Err(create_refused(error, &as_container)),
        }
        let mut host = hardened("none");
        host.readonly_rootfs = Some(true);
        let facts = engine.facts();
        if facts.memory_limit {
            (host.memory, host.memory_swap) = (Some(MEMORY), Some(MEMORY));
        }
        host.pids_limit = facts.pids_limit.then_some(4);
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            entrypoint: Some(vec![format!("/{PROGRAM}")]),
            labels: Some(own_labels(&self.owner, "holder")),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let name = format!("shoal-holder-{}-{}", self.owner.worker, random());
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = engine.ask(PATIENCE, engine.docker.create_container(Some(options), body)).await;
        let id = created.map_err(|error| create_refused(error, &as_container))?.id;
        if let Err(error) = engine.ask(PATIENCE, engine.docker.start_container(&id, None)).await {
            let _ = remove(engine, &id).await;
            return Err(create_refused(error, &as_container));
        }
        Ok(id)
    }
}

/// Whether there is a program for this machine.
pub(super) fn is_possible(architecture: &str) -> bool {
    Program::Hold.file(architecture).is_some()
}

fn random() -> String {
    format!("{:08x}", rand::random::<u32>())
}

async fn remove(engine: &Engine, id: &str) -> Result<(), Error> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    engine.ask(PATIENCE, engine.docker.remove_container(id, Some(options))).await
}
