//! A job, or an instance of a function, as the engine's request to create its container. Pure.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountType,
    RestartPolicy, RestartPolicyNameEnum,
};
use schemas::task::{Container, WORK_FOLDER};
use schemas::{Bytes, Limit};

use super::engine::Facts;
use crate::runtime::{Bounds, StartError};

/// Below this share of a CPU the engine's usual period is too short for the kernel.
const LEAST_NANO_CPUS: i64 = 10_000_000;

/// All that is known of a container to make.
pub(super) struct Plan<'a> {
    pub(super) container: &'a Container,
    /// Added to the image's, as `NAME=value`.
    pub(super) env: Vec<String>,
    pub(super) limits: &'a Bounds,
    /// What the engine knows the image by.
    pub(super) image: &'a str,
    /// Where it runs; `None` where the image says.
    pub(super) working_dir: Option<&'a str>,
    pub(super) labels: HashMap<String, String>,
    /// As the engine calls it.
    pub(super) network: &'a str,
    /// Checked.
    pub(super) mounts: &'a [schemas::task::Mount],
    pub(super) work: Work<'a>,
    pub(super) facts: &'a Facts,
}

/// The work folder.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    /// None: it is no job.
    None,
    /// This folder is the container's.
    Bound(&'a Path),
    /// Files are copied.
    Copied,
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
            env: Some(self.env.clone()),
            user: user.clone(),
            working_dir: self.working_dir.map(str::to_owned),
            labels: Some(self.labels.clone()),
            attach_stdin: Some(stdin.is_some()),
            open_stdin: Some(stdin.is_some()),
            stdin_once: Some(stdin.is_some()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            // A job is judged by its exit, an instance by our own look; a check in the image would only run beside it.
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
        bound(&mut host, self.limits, self.facts);
        host
    }

    fn mounts(&self) -> Vec<Mount> {
        let mut mounts: Vec<Mount> =
            self.mounts.iter().map(|mount| bind(&mount.source, &mount.target, mount.read_only)).collect();
        match self.work {
            Work::Bound(folder) => mounts.push(bind(&folder.to_string_lossy(), WORK_FOLDER, false)),
            // The image's files cannot be written to, so the folder is a volume that goes with the container.
            Work::Copied if self.container.read_only => mounts.push(Mount {
                typ: Some(MountType::VOLUME),
                target: Some(WORK_FOLDER.to_owned()),
                ..Mount::default()
            }),
            Work::Copied | Work::None => {}
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
        // On control groups of version 1 the engine's default would be the machine's.
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
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

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Cpu;

    const ALL: Facts = Facts {
        version: None,
        architecture: String::new(),
        cpus: Some(2),
        cpu_limit: true,
        memory_limit: true,
        pids_limit: true,
        live_restore: false,
        is_shut_out: false,
    };

    fn none() -> Facts {
        Facts { cpu_limit: false, memory_limit: false, pids_limit: false, ..ALL }
    }

    fn bounds(millis: u64) -> Bounds {
        Bounds { cpu: Limit::At(Cpu { millis }), memory: Limit::At(Bytes::mebi(8)), pids: Limit::At(9) }
    }

    fn body(container: Container, bind: bool, limits: Bounds, facts: &Facts) -> ContainerCreateBody {
        let plan = Plan {
            container: &container,
            env: vec!["A=1 = one".to_owned()],
            limits: &limits,
            image: "sha256:abc",
            working_dir: Some("/shoal"),
            labels: HashMap::new(),
            network: "none",
            mounts: &container.mounts,
            work: if bind { Work::Bound(Path::new("/work/s")) } else { Work::Copied },
            facts,
        };
        plan.body()
    }

    fn host(container: Container, bind: bool, limits: Bounds, facts: &Facts) -> HostConfig {
        body(container, bind, limits, facts).host_config.unwrap()
    }

    #[test]
    fn what_a_task_leaves_out_is_the_images() {
        let body = body(Container::new("a"), true, bounds(500), &ALL);
        assert_eq!((body.cmd, body.entrypoint, body.user), (None, None, None));
        assert_eq!(body.env, Some(vec!["A=1 = one".to_owned()]));
        assert_eq!((body.open_stdin, body.stdin_once, body.tty), (Some(false), Some(false), Some(false)));
        assert_eq!(body.healthcheck.and_then(|check| check.test), Some(vec!["NONE".to_owned()]));
    }

    #[test]
    fn nothing_is_allowed_that_is_not_asked_for() {
        let host = host(Container::new("a"), true, bounds(500), &ALL);
        assert_eq!((host.cap_drop, host.cap_add), (Some(vec!["ALL".to_owned()]), None));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!((host.privileged, host.oom_kill_disable, host.auto_remove), (Some(false), None, Some(false)));
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.log_config.and_then(|log| log.typ).as_deref(), Some("none"));
        assert_eq!((host.pid_mode, host.uts_mode, host.userns_mode, host.devices), (None, None, None, None));
        let mounts = host.mounts.unwrap();
        assert_eq!(mounts.len(), 1);
        assert_eq!((mounts[0].source.as_deref(), mounts[0].target.as_deref()), (Some("/work/s"), Some("/shoal")));
    }

    #[test]
    fn privileged_is_all_or_nothing() {
        let container = Container { privileged: true, capabilities: vec!["NET_RAW".to_owned()], ..Container::new("a") };
        let host = host(container, true, bounds(500), &ALL);
        assert_eq!((host.privileged, host.cap_drop, host.cap_add, host.security_opt), (Some(true), None, None, None));
    }

    #[test]
    fn what_cannot_be_written_to_has_places_that_can() {
        let read_only = Container { read_only: true, ..Container::new("a") };
        let bound = host(read_only.clone(), true, bounds(500), &ALL);
        assert_eq!(bound.readonly_rootfs, Some(true));
        assert_eq!(bound.tmpfs, Some(HashMap::from([("/tmp".to_owned(), "mode=1777".to_owned())])));
        let copied = host(read_only.clone(), false, bounds(500), &ALL).mounts.unwrap();
        assert_eq!((copied[0].typ, copied[0].target.as_deref()), (Some(MountType::VOLUME), Some("/shoal")));
        let tmp = schemas::task::Mount { source: "/data".into(), target: "/tmp/".into(), read_only: true };
        let covered = host(Container { mounts: vec![tmp], ..read_only }, true, bounds(500), &ALL);
        assert_eq!(covered.tmpfs, None, "the task mounts something there");
        assert_eq!(covered.mounts.unwrap()[0].read_only, Some(true));
    }

    #[test]
    fn bounds_are_what_the_engine_takes() {
        let cpu = |millis, facts: &Facts| {
            let host = host(Container::new("a"), true, bounds(millis), facts);
            (host.nano_cpus, host.cpu_period, host.cpu_quota)
        };
        assert_eq!(cpu(500, &ALL), (Some(500_000_000), None, None));
        assert_eq!(cpu(64_000, &ALL), (Some(2_000_000_000), None, None), "more than there is");
        assert_eq!(cpu(5, &ALL), (None, Some(1_000_000), Some(5_000)), "less than the engine's own unit");
        let all = host(Container::new("a"), true, bounds(500), &ALL);
        assert_eq!((all.memory, all.memory_swap, all.pids_limit), (Some(8 << 20), Some(8 << 20), Some(9)));
        let unlimited = Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited };
        for host in
            [host(Container::new("a"), true, unlimited, &ALL), host(Container::new("a"), true, bounds(1), &none())]
        {
            assert_eq!((host.nano_cpus, host.cpu_quota, host.memory, host.pids_limit), (None, None, None, None));
        }
    }

    #[test]
    fn a_bound_that_cannot_be_held_is_refused_to_a_task_and_told_of_a_default() {
        let default = bounds(500);
        assert_eq!(check_limits(&default, &default, &ALL).unwrap(), Vec::<String>::new());
        assert_eq!(check_limits(&default, &default, &none()).unwrap().len(), 3);
        let asked = Bounds { pids: Limit::At(3), ..default };
        let refused = check_limits(&asked, &default, &none()).unwrap_err();
        assert!(matches!(refused, StartError::LimitUnsupported { limit: "pids", .. }), "{refused}");
        let unlimited = Bounds { pids: Limit::Unlimited, ..default };
        assert_eq!(check_limits(&unlimited, &default, &none()).unwrap().len(), 2);
    }
}
