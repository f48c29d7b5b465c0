//! A job as the engine's request to create its container. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, RestartPolicy,
    RestartPolicyNameEnum,
};
use schemas::task::{Container, WORK_FOLDER};
use schemas::{Bytes, Limit};

use super::engine::Facts;
use crate::runtime::{Bounds, Job, StartError};

/// Below this share of a CPU the engine's usual period is too short for the kernel.
const LEAST_NANO_CPUS: i64 = 10_000_000;

/// What is known beside the job itself.
pub(super) struct Plan<'a> {
    pub(super) job: &'a Job,
    pub(super) container: &'a Container,
    /// What the engine knows the image by.
    pub(super) image: &'a str,
    /// Where it runs.
    pub(super) working_dir: &'a str,
    pub(super) labels: HashMap<String, String>,
    /// As the engine calls it.
    pub(super) network: &'a str,
    /// Checked.
    pub(super) mounts: &'a [schemas::task::Mount],
    /// The job's folder is the container's; else its files are copied.
    pub(super) bind: bool,
    pub(super) facts: &'a Facts,
}

impl Plan<'_> {
    /// The request.
    pub(super) fn body(&self) -> ContainerCreateBody {
        let Container { command, entrypoint, user, stdin, .. } = self.container;
        let words = |words: &Vec<String>| (!words.is_empty()).then(|| words.clone());
        ContainerCreateBody {
            image: Some(self.image.to_owned()),
            cmd: words(command),
            entrypoint: words(entrypoint),
            env: Some(self.job.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            user: user.clone(),
            working_dir: Some(self.working_dir.to_owned()),
            labels: Some(self.labels.clone()),
            attach_stdin: Some(stdin.is_some()),
            open_stdin: Some(stdin.is_some()),
            stdin_once: Some(stdin.is_some()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            // A job is judged by its exit; a check in the image would only run beside it.
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
            host_config: Some(self.host()),
            ..ContainerCreateBody::default()
        }
    }

    fn host(&self) -> HostConfig {
        let container = self.container;
        let mut host = hardened(self.network);
        host.cap_add = (!container.capabilities.is_empty()).then(|| container.capabilities.clone());
        host.mounts = Some(self.mounts());
        host.runtime = container.engine_runtime.clone();
        host.init = Some(container.init);
        if container.privileged {
            // The engine gives everything then; what would take it back makes it refuse or, worse, surprise.
            host.privileged = Some(true);
            (host.cap_drop, host.cap_add, host.security_opt) = (None, None, None);
        }
        if container.read_only {
            host.readonly_rootfs = Some(true);
            // Programs rely on it.
            let covered = self.mounts.iter().any(|mount| mount.target.trim_end_matches('/') == "/tmp");
            host.tmpfs = (!covered).then(|| HashMap::from([("/tmp".to_owned(), "mode=1777".to_owned())]));
        }
        bound(&mut host, &self.job.limits, self.facts);
        host
    }

    fn mounts(&self) -> Vec<Mount> {
        let mut mounts: Vec<Mount> =
            self.mounts.iter().map(|mount| bind(&mount.source, &mount.target, mount.read_only)).collect();
        if self.bind {
            mounts.push(bind(&self.job.folder.to_string_lossy(), WORK_FOLDER, false));
        } else if self.container.read_only {
            // The image's files cannot be written to, so the folder is a volume that goes with the container.
            mounts.push(Mount {
                typ: Some(MountType::VOLUME),
                target: Some(WORK_FOLDER.to_owned()),
                ..Mount::default()
            });
        }
        mounts
    }
}

fn bind(source: &str, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

/// What every container of ours has, whatever it is for.
pub(super) fn hardened(network: &str) -> HostConfig {
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        network_mode: Some(network.to_owned()),
        ipc_mode: Some("private".to_owned()),
        // What it writes goes to our log; the engine's would be a second copy, without a bound.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        // We remove it, once its end is known.
        auto_remove: Some(false),
        ..HostConfig::default()
    }
}

/// The bounds that the engine can hold.
fn bound(host: &mut HostConfig, limits: &Bounds, facts: &Facts) {
    if let (Limit::At(cpu), true) = (limits.cpu, facts.cpu_limit) {
        let nanos = i64::try_from(cpu.millis).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        // More than there is, is no bound; the engine would refuse it.
        let most = facts.cpus.map_or(i64::MAX, |cpus| (cpus as i64).saturating_mul(1_000_000_000));
        if nanos < LEAST_NANO_CPUS {
            (host.cpu_period, host.cpu_quota) = (Some(1_000_000), Some(nanos / 1_000));
        } else {
            host.nano_cpus = Some(nanos.min(most));
        }
    }
    if let (Limit::At(Bytes(bytes)), true) = (limits.memory, facts.memory_limit) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // Equal: no swap beside it.
        (host.memory, host.memory_swap) = (Some(bytes), Some(bytes));
    }
    if let (Limit::At(pids), true) = (limits.pids, facts.pids_limit) {
        host.pids_limit = Some(i64::try_from(pids).unwrap_or(i64::MAX));
    }
}

/// What the engine cannot hold: refused where the task asks for it, a warning where only the worker's default does.
pub(super) fn check_limits(limits: &Bounds, defaults: &Bounds, facts: &Facts) -> Result<Vec<String>, StartError> {
    let asked = [
        ("cpu", facts.cpu_limit, limits.cpu.bound().is_some(), limits.cpu != defaults.cpu),
        ("memory", facts.memory_limit, limits.memory.bound().is_some(), limits.memory != defaults.memory),
        ("pids", facts.pids_limit, limits.pids.bound().is_some(), limits.pids != defaults.pids),
    ];
    let mut warnings = Vec::new();
    for (limit, can, is_bound, by_task) in asked {
        if can || !is_bound {
            continue;
        }
        let why = format!("the engine has no means to bound {limit}");
        if by_task {
            return Err(StartError::LimitUnsupported { limit, why });
        }
        warnings.push(format!("not bounded: {why}"));
    }
    Ok(warnings)
}
