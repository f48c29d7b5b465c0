//! The engine without Shoal: the fewest requests that run a container and read its output, to measure ours beside.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{LogsOptionsBuilder, RemoveContainerOptionsBuilder, WaitContainerOptions};
use futures_util::TryStreamExt;

use super::engine::first_of;
use super::program::{Program, ensure_image};
use super::{DockerRuntimeError, refusal};
use crate::policy::ContainerSettings;

/// The image that is measured unless another is named: one program that ends at once, and well.
pub const TRUE_IMAGE: &str = "shoal-true:1";

/// An engine as any client uses it.
pub struct Bare {
    docker: Docker,
    image: String,
    network: String,
    holder: Option<String>,
}

/// A container that goes on.
pub struct Served {
    id: String,
    /// Where it is.
    pub address: std::net::IpAddr,
}

/// Why the engine could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// There is none.
    #[error(transparent)]
    Engine(#[from] DockerRuntimeError),
    /// It refused.
    #[error("the engine refused")]
    Refused(#[from] Error),
    /// `true` did not end well.
    #[error("`true` in {image} ended with {code}")]
    WrongEnd {
        /// The image.
        image: String,
        /// The exit code.
        code: i64,
    },
    /// There is no image of our own for this machine.
    #[error("there is no image of our own for `{architecture}`; name one that has `true`")]
    NoImage {
        /// The engine's word.
        architecture: String,
    },
}

impl Bare {
    /// The engine that a worker with these settings would use. `network` is `none`, `bridge` or `shared`.
    pub async fn new(settings: &ContainerSettings, image: &str, network: &str) -> Result<Self, BareError> {
        let (_, docker) = first_of(settings)?;
        if image == TRUE_IMAGE {
            let architecture = docker.version().await?.arch.unwrap_or_default();
            let file = Program::True.file(&architecture);
            if !ensure_image(&docker, TRUE_IMAGE, "bin/true", file).await? {
                return Err(BareError::NoImage { architecture });
            }
        }
        let mut bare = Self { docker, image: image.to_owned(), network: network.to_owned(), holder: None };
        if network == "shared" {
            bare.network = "none".to_owned();
            let architecture = bare.docker.version().await?.arch.unwrap_or_default();
            ensure_image(&bare.docker, "shoal-holder:1", "hold", Program::Hold.file(&architecture)).await?;
            let holder = bare.create("shoal-holder:1", "/hold").await?;
            bare.docker.start_container(&holder, None).await?;
            bare.network = format!("container:{holder}");
            bare.holder = Some(holder);
        }
        Ok(bare)
    }

    async fn create(&self, image: &str, program: &str) -> Result<String, Error> {
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(vec![program.to_owned()]),
            host_config: Some(HostConfig { network_mode: Some(self.network.clone()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        Ok(self.docker.create_container(None, body).await?.id)
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        let force = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        self.docker.remove_container(id, Some(force)).await
    }

    /// One container: create, start, wait, logs, remove.
    pub async fn run(&self) -> Result<(), BareError> {
        let id = self.create(&self.image, "true").await?;
        let ran = self.start_and_wait(&id).await;
        self.remove(&id).await?;
        ran
    }

    async fn start_and_wait(&self, id: &str) -> Result<(), BareError> {
        self.docker.start_container(id, None).await?;
        let waited: Result<Vec<_>, _> =
            self.docker.wait_container(id, None::<WaitContainerOptions>).try_collect().await;
        let code = match waited {
            Ok(ends) => ends.first().map_or(0, |end| end.status_code),
            // The library's word for an exit code other than 0.
            Err(Error::DockerContainerWaitError { code, .. }) => code,
            Err(error) => return Err(error.into()),
        };
        let logs = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
        let _: Vec<LogOutput> = self.docker.logs(id, Some(logs)).try_collect().await?;
        if code == 0 { Ok(()) } else { Err(BareError::WrongEnd { image: self.image.clone(), code }) }
    }

    /// A container that goes on, by the image's own command, once it has an address.
    pub async fn serve(&self) -> Result<Served, BareError> {
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            host_config: Some(HostConfig { network_mode: Some(self.network.clone()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let id = self.docker.create_container(None, body).await?.id;
        self.docker.start_container(&id, None).await?;
        loop {
            let found = self.docker.inspect_container(&id, None).await?;
            let networks = found.network_settings.and_then(|settings| settings.networks).into_iter().flatten();
            let address = networks.filter_map(|(_, network)| network.ip_address?.parse().ok()).next();
            if let Some(address) = address {
                return Ok(Served { id, address });
            }
        }
    }

    /// Removes such a container.
    pub async fn end_served(&self, served: Served) -> Result<(), BareError> {
        Ok(self.remove(&served.id).await?)
    }

    /// Removes what it made.
    pub async fn end(self) -> Result<(), BareError> {
        match &self.holder {
            Some(holder) => match self.remove(holder).await {
                Err(error) if refusal::status(&error) != Some(404) => Err(error.into()),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }
}
