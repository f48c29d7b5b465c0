//! A container as runc is told of it: the runtime specification of OCI. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use schemas::task::{Container, Mount, WORK_FOLDER};
use schemas::{Bytes, Limit};
use serde_json::{Value, json};

use super::engine::Facts;
use super::image::Config;
use super::seccomp;
use super::users::User;
use crate::runtime::{Bounds, StartError};

/// What programs are looked for in, where the image says nothing.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bounds of CPU time are for this long, in microseconds; a longer time for the smallest of them.
const PERIOD: u64 = 100_000;
const LONG_PERIOD: u64 = 1_000_000;
/// The kernel takes no smaller quota.
const LEAST_QUOTA: u64 = 1_000;
/// What runc needs to begin; less is no bound that can be held.
const LEAST_MEMORY: u64 = 6 << 20;
/// Of `/dev/shm`.
const SHARED_MEMORY: u64 = 64 << 20;

/// What tells of the machine or changes it.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Every capability that the kernel knows.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Which network namespace it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Net {
    /// One of its own, with loopback only; runc makes it.
    Own,
    /// The machine's.
    Host,
    /// This one, made before.
    At(String),
}

/// What is known beside the container itself.
pub(super) struct Plan<'a> {
    pub(super) container: &'a Container,
    pub(super) image: &'a Config,
    /// What is set beside the image's environment.
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) user: &'a User,
    pub(super) working_dir: &'a str,
    /// Checked.
    pub(super) mounts: &'a [Mount],
    /// Mounted as the work folder, if it has one.
    pub(super) folder: Option<&'a Path>,
    /// Where `hosts`, `hostname` and `resolv.conf` are.
    pub(super) etc: &'a Path,
    pub(super) hostname: &'a str,
    pub(super) net: Net,
    pub(super) limits: &'a Bounds,
    pub(super) facts: &'a Facts,
    /// Path of its control group below the roots.
    pub(super) group: &'a str,
    /// A small init of this machine, if it wants one.
    pub(super) init: Option<&'a Path>,
}

/// Where a small init of the machine is seen in containers.
const INIT: &str = "/dev/init";

impl Plan<'_> {
    /// The whole document.
    pub(super) fn spec(&self) -> Value {
        let privileged = self.container.privileged;
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": self.process(),
            "root": {"path": "rootfs", "readonly": self.container.read_only},
            "hostname": self.hostname,
            "mounts": self.mounts(),
            "linux": {
                "resources": self.resources(),
                "cgroupsPath": self.group,
                "namespaces": self.namespaces(),
            },
        });
        if !privileged {
            spec["linux"]["maskedPaths"] = json!(MASKED);
            spec["linux"]["readonlyPaths"] = json!(READ_ONLY);
            spec["linux"]["seccomp"] = seccomp::profile(&self.container.capabilities);
        }
        if self.net == Net::Host {
            // It is the machine's own there.
            spec.as_object_mut().map(|spec| spec.remove("hostname"));
        }
        spec
    }

    /// The command: the image's, unless the task has its own.
    pub(super) fn args(&self) -> Vec<String> {
        let Container { entrypoint, command, .. } = self.container;
        let of_image = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
        // Whoever brings an entrypoint does not mean the image's arguments.
        let (mut args, rest) = match (entrypoint.is_empty(), command.is_empty()) {
            (false, _) => (entrypoint.clone(), command.clone()),
            (true, false) => (of_image(&self.image.entrypoint), command.clone()),
            (true, true) => (of_image(&self.image.entrypoint), of_image(&self.image.cmd)),
        };
        args.extend(rest);
        args
    }

    fn process(&self) -> Value {
        let mut args = self.args();
        if self.init.is_some() {
            args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
        }
        let kept: Vec<String> = match self.container.privileged {
            true => CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect(),
            false => self.container.capabilities.iter().map(|name| format!("CAP_{name}")).collect(),
        };
        // Those of the process itself are root's: whoever else it is gets none by its start, as everywhere.
        let own: &[String] = if self.user.uid == 0 { &kept } else { &[] };
        json!({
            "terminal": false,
            "user": {"uid": self.user.uid, "gid": self.user.gid, "additionalGids": self.user.groups},
            "args": args,
            "env": self.environment(),
            "cwd": self.working_dir,
            "capabilities": {"bounding": kept, "effective": own, "permitted": own, "inheritable": []},
            "noNewPrivileges": !self.container.privileged,
            "oomScoreAdj": 0,
        })
    }

    /// The image's, over it what is set; a path and a name in any case.
    fn environment(&self) -> Vec<String> {
        let name = |line: &str| line.split_once('=').map_or(line, |(name, _)| name).to_owned();
        let mut lines: Vec<String> = self.image.env.clone().unwrap_or_default();
        lines.retain(|line| !self.env.contains_key(&name(line)));
        lines.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        for (known, value) in [("HOSTNAME", self.hostname), ("PATH", PATH)] {
            if !lines.iter().any(|line| name(line) == known) {
                lines.insert(0, format!("{known}={value}"));
            }
        }
        lines
    }

    fn mounts(&self) -> Vec<Value> {
        let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
        let writable = if self.container.privileged { "rw" } else { "ro" };
        let mut mounts = vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", writable]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", writable]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &format!("size={SHARED_MEMORY}")]),
        ];
        if self.container.privileged {
            // No confinement at all: the machine's own devices.
            mounts.retain(|mount| !mount["destination"].as_str().is_some_and(|at| at.starts_with("/dev")));
            mounts.push(bind("/dev", "/dev", false));
        }
        let covered = |target: &str| self.mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target);
        for file in ["hosts", "hostname", "resolv.conf"] {
            let target = format!("/etc/{file}");
            if !covered(&target) {
                mounts.push(bind(&self.etc.join(file).to_string_lossy(), &target, self.container.read_only));
            }
        }
        // Programs rely on it.
        if self.container.read_only && !covered("/tmp") {
            mounts.push(mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]));
        }
        mounts.extend(self.mounts.iter().map(|mount| bind(&mount.source, &mount.target, mount.read_only)));
        mounts.extend(self.folder.map(|folder| bind(&folder.to_string_lossy(), WORK_FOLDER, false)));
        mounts.extend(self.init.map(|init| bind(&init.to_string_lossy(), INIT, true)));
        mounts
    }

    fn namespaces(&self) -> Vec<Value> {
        let mut kinds: Vec<Value> = ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind})).to_vec();
        match &self.net {
            Net::Own => kinds.push(json!({"type": "network"})),
            Net::At(path) => kinds.push(json!({"type": "network", "path": path})),
            Net::Host => kinds.retain(|kind| kind["type"] != "uts"),
        }
        kinds
    }

    fn resources(&self) -> Value {
        let hierarchy = &self.facts.hierarchy;
        let mut resources = json!({"devices": devices(self.container.privileged)});
        if let (Limit::At(Bytes(bytes)), true) = (self.limits.memory, hierarchy.has("memory")) {
            // Equal: no swap beside it.
            resources["memory"] = json!({"limit": bytes, "swap": bytes});
        }
        if let (Limit::At(pids), true) = (self.limits.pids, hierarchy.has("pids")) {
            resources["pids"] = json!({"limit": pids});
        }
        if let (Limit::At(cpu), true) = (self.limits.cpu, hierarchy.has("cpu")) {
            // More than there is, is no bound.
            let millis = if self.facts.cpus == 0 { cpu.millis } else { cpu.millis.min(self.facts.cpus * 1_000) };
            let period = if millis * PERIOD / 1_000 < LEAST_QUOTA { LONG_PERIOD } else { PERIOD };
            let quota = (millis.saturating_mul(period) / 1_000).max(LEAST_QUOTA);
            resources["cpu"] = json!({"quota": quota, "period": period});
        }
        resources
    }
}

fn bind(source: &str, target: &str, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", access]})
}

/// Which devices it may use: those that runc makes in every container, or all.
fn devices(all: bool) -> Value {
    if all {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let character = |major: i64, minor: Option<i64>, access: &str| {
        let mut rule = json!({"allow": true, "type": "c", "major": major, "access": access});
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    json!([
        {"allow": false, "access": "rwm"},
        character(1, Some(3), "rwm"), // null
        character(1, Some(5), "rwm"), // zero
        character(1, Some(7), "rwm"), // full
        character(1, Some(8), "rwm"), // random
        character(1, Some(9), "rwm"), // urandom
        character(5, Some(0), "rwm"), // tty
        character(5, Some(2), "rwm"), // ptmx
        character(136, None, "rwm"),  // pts
    ])
}

/// What cannot be held here: refused where the task asks for it, a warning where only the worker's default does.
pub(super) fn check_limits(limits: &Bounds, defaults: &Bounds, facts: &Facts) -> Result<Vec<String>, StartError> {
    if let Limit::At(Bytes(bytes)) = limits.memory
        && bytes < LEAST_MEMORY
    {
        let why = format!("a container needs {LEAST_MEMORY} bytes to begin");
        return Err(StartError::LimitUnsupported { limit: "memory", why });
    }
    let asked = [
        ("cpu", limits.cpu.bound().is_some(), limits.cpu != defaults.cpu),
        ("memory", limits.memory.bound().is_some(), limits.memory != defaults.memory),
        ("pids", limits.pids.bound().is_some(), limits.pids != defaults.pids),
    ];
    let mut warnings = Vec::new();
    for (limit, is_bound, by_task) in asked {
        if facts.hierarchy.has(limit) || !is_bound {
            continue;
        }
        let why = format!("this machine has no control group to bound {limit}");
        if by_task {
            return Err(StartError::LimitUnsupported { limit, why });
        }
        warnings.push(format!("not bounded: {why}"));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::super::groups::Hierarchy;
    use super::*;
    use schemas::Cpu;

    fn facts(hierarchy: Hierarchy) -> Facts {
        Facts { version: None, architecture: "amd64", cpus: 2, hierarchy }
    }

    fn all() -> Hierarchy {
        Hierarchy::V2(["cpu", "memory", "pids"].map(str::to_owned).to_vec())
    }

    fn bounds(millis: u64) -> Bounds {
        Bounds { cpu: Limit::At(Cpu { millis }), memory: Limit::At(Bytes::mebi(8)), pids: Limit::At(9) }
    }

    fn spec_of(container: Container, image: Config, limits: Bounds, hierarchy: Hierarchy) -> Value {
        let plan = Plan {
            container: &container,
            image: &image,
            env: &[("A".to_owned(), "1 = one".to_owned())].into(),
            user: &User::default(),
            working_dir: "/shoal",
            mounts: &container.mounts,
            folder: Some(Path::new("/work/s")),
            etc: Path::new("/run/shoal/c/etc"),
            hostname: "s",
            net: Net::Own,
            limits: &limits,
            facts: &facts(hierarchy),
            group: "/shoal/w/l/mortal/c",
            init: None,
        };
        plan.spec()
    }

    fn spec(container: Container) -> Value {
        spec_of(container, Config::default(), bounds(500), all())
    }

    #[test]
    fn nothing_is_allowed_that_is_not_asked_for() {
        let spec = spec(Container { command: vec!["true".into()], ..Container::new("a") });
        let process = &spec["process"];
        for set in ["bounding", "effective", "permitted", "inheritable"] {
            assert_eq!(process["capabilities"][set], json!([]), "{set}");
        }
        assert_eq!(process["noNewPrivileges"], true);
        let kinds: Vec<&str> =
            spec["linux"]["namespaces"].as_array().unwrap().iter().map(|of| of["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "cgroup", "network"]);
        assert_eq!(spec["linux"]["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert!(spec["linux"]["maskedPaths"].as_array().unwrap().contains(&json!("/proc/kcore")));
        assert_eq!(spec["linux"]["cgroupsPath"], "/shoal/w/l/mortal/c");
        let mounts = spec["mounts"].as_array().unwrap();
        assert_eq!(mounts.last().unwrap()["destination"], "/shoal");
        assert!(mounts.iter().all(|mount| mount["source"] != "/dev"));
    }

    #[test]
    fn what_a_task_leaves_out_is_the_images() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let image = || Config {
            env: Some(words(&["PATH=/bin", "A=0", "B=2"])),
            entrypoint: Some(words(&["entry"])),
            cmd: Some(words(&["point"])),
            ..Config::default()
        };
        let args = |entrypoint: &[&str], command: &[&str]| {
            let container = Container { entrypoint: words(entrypoint), command: words(command), ..Container::new("a") };
            spec_of(container, image(), bounds(500), all())["process"]["args"].clone()
        };
        assert_eq!(args(&[], &[]), json!(["entry", "point"]));
        assert_eq!(args(&[], &["mine"]), json!(["entry", "mine"]));
        assert_eq!(args(&["my"], &[]), json!(["my"]));
        assert_eq!(args(&["my"], &["mine"]), json!(["my", "mine"]));
        let env = spec_of(Container::new("a"), image(), bounds(500), all())["process"]["env"].clone();
        assert_eq!(env, json!(["HOSTNAME=s", "PATH=/bin", "B=2", "A=1 = one"]));
    }

    #[test]
    fn privileged_is_all_or_nothing() {
        let spec = spec(Container { privileged: true, ..Container::new("a") });
        assert_eq!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len(), CAPABILITIES.len());
        assert_eq!(spec["process"]["noNewPrivileges"], false);
        assert!(spec["linux"].get("seccomp").is_none() && spec["linux"].get("maskedPaths").is_none());
        assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
    }

    #[test]
    fn what_cannot_be_written_to_has_places_that_can() {
        let targets = |container: Container| {
            let spec = spec(container);
            let mounts = spec["mounts"].as_array().unwrap().clone();
            let at = |target: &str| {
                mounts.iter().filter(|mount| mount["destination"] == target).cloned().collect::<Vec<_>>()
            };
            (spec["root"]["readonly"].clone(), at("/tmp"), at("/shoal"))
        };
        let read_only = Container { read_only: true, ..Container::new("a") };
        let (root, tmp, folder) = targets(read_only.clone());
        assert_eq!((root, tmp.len(), folder.len()), (json!(true), 1, 1));
        assert_eq!(tmp[0]["type"], "tmpfs");
        let own = Mount { source: "/data".into(), target: "/tmp/".into(), read_only: true };
        let (_, tmp, _) = targets(Container { mounts: vec![own], ..read_only });
        assert!(tmp.is_empty(), "the task mounts something there");
    }

    #[test]
    fn bounds_are_what_the_kernel_takes() {
        let cpu = |millis| {
            spec_of(Container::new("a"), Config::default(), bounds(millis), all())["linux"]["resources"]["cpu"].clone()
        };
        assert_eq!(cpu(500), json!({"quota": 50_000, "period": 100_000}));
        assert_eq!(cpu(64_000), json!({"quota": 200_000, "period": 100_000}), "more than there is");
        assert_eq!(cpu(5), json!({"quota": 5_000, "period": 1_000_000}), "less than the kernel's least quota");
        let resources = spec(Container::new("a"))["linux"]["resources"].clone();
        assert_eq!(resources["memory"], json!({"limit": 8 << 20, "swap": 8 << 20}));
        assert_eq!(resources["pids"], json!({"limit": 9}));
        let unlimited = Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited };
        for (limits, hierarchy) in [(unlimited, all()), (bounds(1), Hierarchy::None)] {
            let spec = spec_of(Container::new("a"), Config::default(), limits, hierarchy);
            let resources = &spec["linux"]["resources"];
            assert!(["cpu", "memory", "pids"].iter().all(|name| resources.get(name).is_none()), "{resources}");
        }
    }

    #[test]
    fn a_bound_that_cannot_be_held_is_refused_to_a_task_and_told_of_a_default() {
        let default = bounds(500);
        let (can, cannot) = (facts(all()), facts(Hierarchy::None));
        assert!(check_limits(&default, &default, &can).unwrap().is_empty());
        assert_eq!(check_limits(&default, &default, &cannot).unwrap().len(), 3);
        let asked = Bounds { pids: Limit::At(3), ..default };
        let refused = check_limits(&asked, &default, &cannot).unwrap_err();
        assert!(matches!(refused, StartError::LimitUnsupported { limit: "pids", .. }), "{refused}");
        let tiny = Bounds { memory: Limit::At(Bytes(4096)), ..default };
        assert!(matches!(
            check_limits(&tiny, &default, &can),
            Err(StartError::LimitUnsupported { limit: "memory", .. })
        ));
    }
}
