//! What a worker allows in containers. Loosening is its operator's word, never a task's.

use std::path::PathBuf;

use clap::Args;
use schemas::task::PullPolicy;
use schemas::{Bytes, Cpu, HumanDuration, Limit};
use worker::policy::{AllowedMount, CONTAINERD_ADDRESS, ContainerSettings, Policy, is_image_glob};
use worker::registry::RegistrySettings;
use worker::runtime::Bounds;

use super::Error;

/// Flags about containers, the same for `shoal worker` and `shoal up`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What workers allow in containers")]
pub struct Containers {
    /// The Docker engine [default: DOCKER_HOST, else the usual sockets]
    #[arg(long, env = "SHOAL_DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
    /// The socket of containerd
    #[arg(long, env = "SHOAL_CONTAINERD_ADDRESS", default_value = CONTAINERD_ADDRESS, value_name = "PATH")]
    pub containerd_address: PathBuf,
    /// Folder of the CNI plugins that give containers on containerd a network [default: /opt/cni/bin, /usr/lib/cni, …]
    #[arg(long, env = "SHOAL_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Globs of images that may run; `*` stays within a part of the path, `**` crosses them [default: all]
    #[arg(long, env = "SHOAL_ALLOWED_IMAGES", value_delimiter = ',', value_name = "GLOB,…")]
    pub allowed_images: Option<Vec<String>>,
    /// Networks that a task may ask for, beside none and --container-network
    #[arg(long, env = "SHOAL_ALLOWED_NETWORKS", value_delimiter = ',', value_name = "NAME,…")]
    pub allowed_networks: Vec<String>,
    /// Networks that functions may use, which each need an address [default: bridge]
    #[arg(long, env = "SHOAL_FUNCTION_NETWORKS", value_delimiter = ',', value_name = "NAME,…")]
    pub function_networks: Option<Vec<String>>,
    /// Folders of this machine that may be mounted, as /data or /data:ro
    #[arg(long, env = "SHOAL_ALLOWED_MOUNTS", value_delimiter = ',', value_name = "PATH[:ro],…")]
    pub allowed_mounts: Vec<AllowedMount>,
    /// Capabilities that may be kept, as NET_BIND_SERVICE
    #[arg(long, env = "SHOAL_ALLOWED_CAPABILITIES", value_delimiter = ',', value_name = "NAME,…")]
    pub allowed_capabilities: Vec<String>,
    /// Runtimes of the engine that a task may ask for, as runsc
    #[arg(long, env = "SHOAL_ALLOWED_ENGINE_RUNTIMES", value_delimiter = ',', value_name = "NAME,…")]
    pub allowed_engine_runtimes: Vec<String>,
    /// Allow privileged containers: whoever may submit then owns this machine
    #[arg(long, env = "SHOAL_ALLOW_PRIVILEGED")]
    pub allow_privileged: bool,
    /// Network of a container that asks for none: none, shared, bridge, or one of the engine's
    #[arg(long, env = "SHOAL_CONTAINER_NETWORK", default_value = "none", value_name = "NAME")]
    pub container_network: String,
    /// CPU of a container that asks for none
    #[arg(long, env = "SHOAL_CONTAINER_CPU", default_value = "1", value_name = "CPU")]
    pub container_cpu: Limit<Cpu>,
    /// Memory of a container that asks for none
    #[arg(long, env = "SHOAL_CONTAINER_MEMORY", default_value = "512Mi", value_name = "SIZE")]
    pub container_memory: Limit<Bytes>,
    /// Processes and threads of a container that asks for none
    #[arg(long, env = "SHOAL_CONTAINER_PIDS", default_value = "512", value_name = "N")]
    pub container_pids: Limit<u64>,
    /// When images are pulled: always, if_not_present, never. `never` wins over any task
    #[arg(long, env = "SHOAL_IMAGE_PULL", default_value = "if_not_present", value_parser = pull, value_name = "POLICY")]
    pub image_pull: PullPolicy,
    /// Time between two sweeps of containers, networks and volumes that nobody owns any more
    #[arg(long, env = "SHOAL_SWEEP_EVERY", default_value = "60s", value_name = "DURATION")]
    pub sweep_every: HumanDuration,
    /// Registries that are not spoken to the usual way, as a mapping: {"registry.local:5000": {"scheme": "http"}}
    #[arg(long, env = "SHOAL_REGISTRIES", default_value = "{}", value_parser = registries, value_name = crate::config::MAPPING)]
    pub registries: RegistrySettings,
}

impl Containers {
    /// Checked.
    pub fn settings(&self) -> Result<ContainerSettings, Error> {
        for (flag, zero) in [
            ("--container-memory", self.container_memory == Limit::At(Bytes(0))),
            ("--container-pids", self.container_pids == Limit::At(0)),
        ] {
            if zero {
                let problem = format!("{flag} is 0; no bound is the word `unlimited`");
                return Err(Error::usage(problem, format!("{flag} unlimited")));
            }
        }
        if !(HumanDuration::seconds(1)..=HumanDuration::seconds(86_400)).contains(&self.sweep_every) {
            let problem = format!("--sweep-every is {}; allowed is 1s to 1d", self.sweep_every);
            return Err(Error::usage(problem, "--sweep-every 60s"));
        }
        let globs = self.allowed_images.iter().flatten();
        if let Some(glob) = globs.filter(|glob| !glob.is_empty()).find(|glob| !is_image_glob(glob)) {
            let problem = format!("--allowed-images has `{glob}`, which is neither an image's name nor a glob");
            return Err(Error::usage(problem, "--allowed-images 'alpine,ghcr.io/acme/*'"));
        }
        // An empty variable means an empty list, not a list of one empty word.
        let words = |words: &[String]| words.iter().filter(|word| !word.is_empty()).cloned().collect();
        Ok(ContainerSettings {
            docker_host: self.docker_host.clone().filter(|host| !host.is_empty()),
            containerd_address: self.containerd_address.clone(),
            cni_bin_dir: self.cni_bin_dir.clone().filter(|folder| !folder.as_os_str().is_empty()),
            policy: Policy {
                images: self.allowed_images.as_deref().map(words),
                networks: words(&self.allowed_networks),
                function_networks: self.function_networks.as_deref().map(words),
                mounts: self.allowed_mounts.clone(),
                capabilities: words(&self.allowed_capabilities),
                privileged: self.allow_privileged,
                engine_runtimes: words(&self.allowed_engine_runtimes),
            },
            limits: Bounds { cpu: self.container_cpu, memory: self.container_memory, pids: self.container_pids },
            network: self.container_network.clone(),
            pull: self.image_pull,
            sweep_every: self.sweep_every.0,
            registries: self.registries.clone(),
        })
    }
}

/// A word for when an image is pulled.
pub fn pull(word: &str) -> Result<PullPolicy, String> {
    match word {
        "always" => Ok(PullPolicy::Always),
        "if_not_present" => Ok(PullPolicy::IfNotPresent),
        "never" => Ok(PullPolicy::Never),
        _ => Err("allowed is always, if_not_present, never".into()),
    }
}

/// A mapping of registries, as JSON or YAML.
fn registries(text: &str) -> Result<RegistrySettings, String> {
    if text.trim().is_empty() {
        return Ok(RegistrySettings::default());
    }
    let value: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|error| format!("it is no mapping: {error}"))?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}
