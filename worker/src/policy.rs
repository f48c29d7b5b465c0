//! What this worker allows in containers, whatever a task asks for. It asks nobody but the file system, for where a
//! mount really leads.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use globset::GlobBuilder;
use schemas::task::{Container, Mount, PullPolicy};
use schemas::{Bytes, Code, Cpu, Limit};

use crate::image::ImageName;
use crate::registry::RegistrySettings;
use crate::runtime::{Bounds, StartError};

/// Network of functions unless their definition says otherwise: the engine's own way out, and in.
pub const FUNCTION_NETWORK: &str = "bridge";

/// What a container must never see of the machine, with all below it: whoever can write there, or read, has the machine.
const CLOSED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Where engines listen, or keep what they run: whoever reaches one of these has the machine. `*` is one part.
const ENGINES: [&str; 25] = [
    "/run/docker.sock",
    "/run/docker",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
    "/run/libvirt",
    "/run/k3s",
    "/run/shoal",
    "/var/lib/shoal/instances",
    "/run/buildkit",
    "/run/cri-dockerd.sock",
    "/run/dockershim.sock",
    "/run/balena-engine.sock",
    "/run/incus",
    "/run/lxd.socket",
    "/run/systemd/private",
    "/run/dbus",
    "/run/user/*/docker.sock",
    "/run/user/*/podman",
    "/run/user/*/containerd",
    "/run/user/*/libvirt",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/kubelet",
];

/// Names by which a socket gives itself away wherever it lies.
const SOCKET_WORDS: [&str; 8] =
    ["docker", "containerd", "podman", "crio", "libvirt", "buildkit", "balena-engine", "dockershim"];

/// Where containerd listens unless it is told otherwise.
pub const CONTAINERD_ADDRESS: &str = "/run/containerd/containerd.sock";

/// A folder is looked through for sockets no further than this.
const LOOK_AT_MOST: usize = 10_000;

/// How and what a worker runs in containers.
#[derive(Clone, Debug)]
pub struct ContainerSettings {
    /// The Docker engine as `unix:///…` or `tcp://…`; `None`: `DOCKER_HOST`, else the usual sockets.
    pub docker_host: Option<String>,
    /// The socket of containerd.
    pub containerd_address: PathBuf,
    /// Where CNI's plugins are; `None`: the usual folders.
    pub cni_bin_dir: Option<PathBuf>,
    /// What tasks may ask for.
    pub policy: Policy,
    /// Bounds where the task says nothing.
    pub limits: Bounds,
    /// Network of a task that asks for none.
    pub network: String,
    /// When images are pulled, where the task says nothing.
    pub pull: PullPolicy,
    /// Time between two sweeps of what nobody owns.
    pub sweep_every: Duration,
    /// How registries are spoken to that want another way than the usual one.
    pub registries: RegistrySettings,
}

/// What loosens a container's confinement and is allowed here. Everything not named is forbidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Globs of images; `None` allows all, an empty list none.
    pub images: Option<Vec<String>>,
    /// Networks beside `none` and the worker's own default.
    pub networks: Vec<String>,
    /// Networks of functions, which must be called by somebody and so never have `none`. Absent: the engine's `bridge`;
    /// empty: none, and so no functions.
    pub function_networks: Option<Vec<String>>,
    /// Folders of this machine that may be mounted, with all below them.
    pub mounts: Vec<AllowedMount>,
    /// Capabilities that may be kept, as `NET_BIND_SERVICE`.
    pub capabilities: Vec<String>,
    /// Whether `privileged` is allowed.
    pub privileged: bool,
    /// Runtimes of the engine beside its default.
    pub engine_runtimes: Vec<String>,
}

/// A folder that may be mounted: `/data`, or `/data:ro`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedMount {
    /// Absolute.
    pub path: std::path::PathBuf,
    /// Only to be read.
    pub read_only: bool,
}

impl std::str::FromStr for AllowedMount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        if !path.starts_with('/') || path.contains(':') || path.split('/').any(|part| part == "..") {
            return Err(format!(
                "`{text}` is no mount: write an absolute path, with `:ro` behind it if only to be read"
            ));
        }
        Ok(Self { path: path.into(), read_only })
    }
}

impl Policy {
    /// Whether a container may run here; the refusal names the flag that would allow it.
    pub fn check(&self, settings: &ContainerSettings, container: &Container) -> Result<(), StartError> {
        self.check_image(&container.image)?;
        self.check_network(&settings.network, container.network.as_deref())?;
        self.check_rest(settings, container)
    }

    /// Whether an instance of a function may run here. Its networks are a list of their own: tasks have none by default,
    /// while a function that nobody reaches is of no use.
    pub fn check_function(&self, settings: &ContainerSettings, container: &Container) -> Result<(), StartError> {
        self.check_image(&container.image)?;
        let network = container.network.as_deref().unwrap_or(FUNCTION_NETWORK);
        refuse_joining(network)?;
        let allowed = match &self.function_networks {
            Some(networks) => networks.iter().any(|allowed| allowed == network),
            None => network == FUNCTION_NETWORK,
        };
        if network == "shared" || network == "host" {
            let message = format!("a function needs an address of its own, which the network `{network}` has not");
            return Err(StartError::Refused { code: Code::PolicyForbidden, message });
        }
        // What has no network is no danger; that it has no address either is told by who looks for it.
        if !allowed && network != "none" {
            return forbidden(&format!("the network `{network}` to functions"), "--function-networks", network);
        }
        self.check_rest(settings, container)
    }

    /// All but image and network.
    fn check_rest(&self, settings: &ContainerSettings, container: &Container) -> Result<(), StartError> {
        self.mounts(settings, container)?;
        for name in &container.capabilities {
            let bare = |allowed: &String| allowed.to_ascii_uppercase().trim_start_matches("CAP_") == *name;
            if !self.capabilities.iter().any(bare) {
                return forbidden(&format!("the capability `{name}`"), "--allowed-capabilities", name);
            }
        }
        if container.privileged && !self.privileged {
            return forbidden("a privileged container", "--allow-privileged", "");
        }
        match &container.engine_runtime {
            Some(runtime) if !self.engine_runtimes.contains(runtime) => {
                forbidden(&format!("the engine's runtime `{runtime}`"), "--allowed-engine-runtimes", runtime)
            }
            _ => Ok(()),
        }
    }

    /// What is mounted: where the sources really lead, and read-only where only that is allowed. An engine that is given
    /// these paths meets no link of the task's making on its way, as long as nobody moves one in that very moment.
    pub fn mounts(&self, settings: &ContainerSettings, container: &Container) -> Result<Vec<Mount>, StartError> {
        container.mounts.iter().map(|mount| self.mount(settings, mount)).collect()
    }

    fn check_image(&self, image: &str) -> Result<(), StartError> {
        let name = ImageName::parse(image).map_err(|why| StartError::Refused {
            code: Code::InvalidImage,
            message: format!("`{image}` is no image: {why}"),
        })?;
        match &self.images {
            Some(globs) if !globs.iter().any(|glob| allows_image(glob, &name)) => forbidden(
                &format!("the image `{image}`"),
                "--allowed-images",
                &name.spellings().pop().unwrap_or_default(),
            ),
            _ => Ok(()),
        }
    }

    fn check_network(&self, default: &str, asked: Option<&str>) -> Result<(), StartError> {
        let network = asked.unwrap_or(default);
        refuse_joining(network)?;
        if network == "none" || network == default || self.networks.iter().any(|allowed| allowed == network) {
            return Ok(());
        }
        forbidden(&format!("the network `{network}`"), "--allowed-networks", network)
    }

    fn mount(&self, settings: &ContainerSettings, mount: &Mount) -> Result<Mount, StartError> {
        let source = resolved(Path::new(&mount.source));
        if let Some(why) = always_closed(&source, settings) {
            let message = format!("this worker never mounts `{}`: {why}", mount.source);
            return Err(StartError::Refused { code: Code::PolicyForbidden, message });
        }
        let mut allowed = self.mounts.iter().filter(|allowed| source.starts_with(resolved(&allowed.path))).peekable();
        if allowed.peek().is_none() {
            return forbidden(
                &format!("the mount of `{}`", mount.source),
                "--allowed-mounts",
                &source.to_string_lossy(),
            );
        }
        let read_only = mount.read_only || allowed.all(|allowed| allowed.read_only);
        let Some(path) = source.to_str() else {
            let message = format!("`{}` leads to a path that is no UTF-8", mount.source);
            return Err(StartError::Refused { code: Code::PolicyForbidden, message });
        };
        Ok(Mount { source: path.to_owned(), target: mount.target.clone(), read_only })
    }
}

/// Another container's namespace, whoever's it is: no flag allows that.
fn refuse_joining(network: &str) -> Result<(), StartError> {
    if !network.contains(':') {
        return Ok(());
    }
    let message = format!("this worker forbids the network `{network}`: it is another container's");
    Err(StartError::Refused { code: Code::PolicyForbidden, message })
}

fn forbidden<T>(what: &str, flag: &str, value: &str) -> Result<T, StartError> {
    let example = if value.is_empty() { flag.to_owned() } else { format!("{flag} {value}") };
    let message = format!("this worker forbids {what}; its operator can allow it with `{example}`");
    Err(StartError::Refused { code: Code::PolicyForbidden, message })
}

/// Whether it can allow any image: it is the name of one, or a glob.
pub fn is_image_glob(glob: &str) -> bool {
    if is_plain(glob) { ImageName::parse(glob).is_ok() } else { GlobBuilder::new(glob).build().is_ok() }
}

fn is_plain(glob: &str) -> bool {
    !glob.contains(['*', '?', '[', '{'])
}

/// Whether a glob of `--allowed-images` takes this image. One without tag and digest takes all of a name; one that cannot
/// be read takes none.
fn allows_image(glob: &str, name: &ImageName) -> bool {
    // Without a wildcard it is a name as any other, whichever way it is spelt.
    if is_plain(glob) {
        return ImageName::parse(glob).is_ok_and(|allowed| {
            allowed.repository() == name.repository() && (!picks(glob) || allowed.pick() == name.pick())
        });
    }
    let Ok(matcher) = GlobBuilder::new(glob).literal_separator(true).build().map(|glob| glob.compile_matcher()) else {
        return false;
    };
    let suffix = match (name.digest(), name.tag()) {
        _ if !picks(glob) => String::new(),
        (Some(digest), _) => format!("@{digest}"),
        (None, Some(tag)) => format!(":{tag}"),
        (None, None) => return false,
    };
    name.spellings().iter().any(|spelling| matcher.is_match(format!("{spelling}{suffix}")))
}

/// Whether it says more than a repository: the colon of a port stands before the last slash.
fn picks(glob: &str) -> bool {
    glob.rsplit('/').next().unwrap_or(glob).contains([':', '@'])
}

/// Where a path really leads, as far as it exists on this machine.
fn resolved(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut there = path;
    loop {
        if let Ok(real) = fs::canonicalize(there) {
            return rest.iter().rev().fold(real, |path, part| path.join(part));
        }
        // A link that leads nowhere yet may lead somewhere by the time the engine looks: that is no ancestor to build on.
        let (Some(parent), Some(Component::Normal(part))) = (there.parent(), there.components().next_back()) else {
            return path.to_owned();
        };
        if let Ok(target) = fs::read_link(there) {
            let target = parent.join(target);
            let unseen = rest.iter().rev().fold(target, |path, part: &&std::ffi::OsStr| path.join(part));
            return lexical(&unseen);
        }
        rest.push(part);
        there = parent;
    }
}

/// Without `.` and `..`.
fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

/// Why no flag opens this path, if so: it is, holds or lies in what gives the machine away.
fn always_closed(source: &Path, settings: &ContainerSettings) -> Option<&'static str> {
    const SOCKET: &str = "it is or holds the socket or the store of a container engine, which gives the machine away";
    if CLOSED.iter().any(|closed| source.starts_with(closed) || Path::new(closed).starts_with(source)) {
        return Some("it shows the machine itself");
    }
    // Also where /var/run is a folder of its own, or this is no machine with that link.
    let plain = match source.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => source.to_owned(),
    };
    if Path::new("/run").starts_with(&plain) || Path::new("/var/lib").starts_with(&plain) {
        return Some(SOCKET);
    }
    if ENGINES.iter().any(|engine| meets(&plain, Path::new(engine))) {
        return Some(SOCKET);
    }
    let docker = settings.docker_host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
    let docker = docker.as_deref().and_then(|host| host.strip_prefix("unix://")).map(Path::new);
    for socket in docker.into_iter().chain([settings.containerd_address.as_path()]) {
        if resolved(socket).starts_with(source) || is_same_file(source, socket) {
            return Some(SOCKET);
        }
    }
    holds_socket(source).then_some(SOCKET)
}

/// Whether one of them is the other, or lies in it; a part `*` of the pattern is any.
fn meets(path: &Path, pattern: &Path) -> bool {
    path.components().zip(pattern.components()).all(|(part, of)| of.as_os_str() == "*" || part == of)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// Whether it is an engine's socket by another name, or a folder in which one lies plainly.
fn holds_socket(source: &Path) -> bool {
    let is_socket = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let is_named = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        SOCKET_WORDS.iter().any(|word| name.contains(word))
    };
    let is_known = |path: &Path| ENGINES.iter().any(|engine| is_same_file(path, Path::new(engine)));
    let is_engine = |path: &Path| is_socket(path) && (is_named(path) || is_known(path));
    if is_engine(source) {
        return true;
    }
    let entries = fs::read_dir(source).into_iter().flatten().flatten();
    entries.take(LOOK_AT_MOST).any(|entry| is_engine(&entry.path()))
}

impl Default for ContainerSettings {
    fn default() -> Self {
        Self {
            docker_host: None,
            containerd_address: PathBuf::from(CONTAINERD_ADDRESS),
            cni_bin_dir: None,
            policy: Policy::default(),
            limits: Bounds {
                cpu: Limit::At(Cpu { millis: 1_000 }),
                memory: Limit::At(Bytes::mebi(512)),
                pids: Limit::At(512),
            },
            network: "none".to_owned(),
            pull: PullPolicy::IfNotPresent,
            sweep_every: Duration::from_secs(60),
            registries: RegistrySettings::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "sha256:aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccdddddddddddddddd";

    /// The message of the refusal, if it is one.
    fn refusal<T>(checked: Result<T, StartError>, expected: Code) -> Option<String> {
        match checked {
            Ok(_) => None,
            Err(StartError::Refused { code, message }) => {
                assert_eq!(code, expected, "{message}");
                Some(message)
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// What becomes of `container` where `settings` are the worker's.
    fn check(settings: &ContainerSettings, container: &Container) -> Option<String> {
        refusal(settings.policy.check(settings, container), Code::PolicyForbidden)
    }

    fn with_policy(policy: Policy) -> ContainerSettings {
        ContainerSettings { policy, ..ContainerSettings::default() }
    }

    fn allows(globs: &[&str], image: &str) -> bool {
        let images = Some(globs.iter().map(|glob| (*glob).to_owned()).collect());
        let settings = with_policy(Policy { images, ..Policy::default() });
        check(&settings, &Container::new(image)).is_none()
    }

    #[test]
    fn globs_allow_images_by_every_spelling() {
        let pinned = format!("alpine@{HASH}");
        for (glob, image) in [
            ("alpine", "alpine"),
            ("alpine", "alpine:3"),
            ("alpine", &pinned),
            ("alpine", "docker.io/library/alpine"),
            ("docker.io/alpine", "library/alpine:3"),
            ("index.docker.io/library/alpine", "alpine"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("alpine:latest", "alpine"),
            ("alpine:3*", "alpine:3.20"),
            (&pinned, &pinned),
            ("alpine@*", &pinned),
            ("*", "alpine:3"),
            ("acme/*", "acme/x"),
            ("docker.io/acme/*", "acme/x:1"),
            ("ghcr.io/acme/*", "ghcr.io/acme/x:1"),
            ("ghcr.io/**", "ghcr.io/acme/deep/x"),
            ("**", "ghcr.io/acme/deep/x"),
            ("127.0.0.1:5000/*", "127.0.0.1:5000/x:1"),
            ("localhost:5000/x", "localhost:5000/x"),
            ("{alpine,busybox}", "busybox:1"),
        ] {
            assert!(allows(&[glob], image), "{glob} {image}");
            assert!(allows(&["nothing", glob], image), "{glob} {image}");
        }
    }

    #[test]
    fn what_only_looks_like_an_allowed_image_is_forbidden() {
        let pinned = format!("alpine:3@{HASH}");
        for (glob, image) in [
            ("alpine", "evil.example/alpine"),
            ("alpine", "evil.example/library/alpine"),
            ("alpine", "localhost/alpine"),
            ("alpine", "evil/alpine"),
            ("alpine", "alpine-evil"),
            ("alpine", "DOCKER.IO/library/alpine"),
            ("library/*", "evil.example/library/alpine"),
            ("*", "acme/x"),
            ("acme/*", "acme/deep/x"),
            ("acme/*", "evil.example/acme/x"),
            ("ghcr.io/acme/*", "ghcr.io/acme/deep/x"),
            ("ghcr.io/acme/*", "ghcr.io.evil.example/acme/x"),
            ("ghcr.io/acme/*", "evil.example/ghcr.io/acme/x"),
            ("ghcr.io/acme/**", "ghcr.io/acme-evil/x"),
            ("alpine:3", "alpine:4"),
            ("alpine:3", "alpine"),
            // The engine passes over the tag beside a digest, so it allows nothing.
            ("alpine:3", &pinned),
            ("alpine:*", &pinned),
            ("localhost:5000/x", "localhost:5001/x"),
            // No glob at all.
            ("[", "alpine"),
            ("", "alpine"),
        ] {
            assert!(!allows(&[glob], image), "{glob} {image}");
        }
        assert!(!is_image_glob("[") && !is_image_glob("Alpine") && is_image_glob("*") && is_image_glob("alpine:3"));
        assert!(!allows(&[], "alpine"), "an empty list allows none");
        assert!(check(&ContainerSettings::default(), &Container::new("any.example/x")).is_none());
    }

    #[test]
    fn what_is_no_image_is_told_as_such() {
        let settings = ContainerSettings::default();
        for image in ["Alpine", "alpine:", "a b", &format!("alpine@{}", &HASH[..20]), HASH] {
            let checked = settings.policy.check(&settings, &Container::new(image));
            assert!(refusal(checked, Code::InvalidImage).is_some_and(|message| message.contains(image)));
        }
    }

    #[test]
    fn everything_that_loosens_is_forbidden_and_the_flag_named() {
        let plain = || Container::new("alpine");
        let mount = |source: &str| Mount { source: source.into(), target: "/data".into(), read_only: false };
        let images = Some(vec!["busybox".to_owned()]);
        for (policy, container, flag) in [
            (Policy { images, ..Policy::default() }, plain(), "--allowed-images alpine"),
            (Policy::default(), Container { network: Some("host".into()), ..plain() }, "--allowed-networks host"),
            (Policy::default(), Container { network: Some("bridge".into()), ..plain() }, "--allowed-networks bridge"),
            (Policy::default(), Container { network: Some("default".into()), ..plain() }, "--allowed-networks default"),
            (Policy::default(), Container { mounts: vec![mount("/opt")], ..plain() }, "--allowed-mounts /opt"),
            (
                Policy { capabilities: vec!["CHOWN".into()], ..Policy::default() },
                Container { capabilities: vec!["CHOWN".into(), "SYS_ADMIN".into()], ..plain() },
                "--allowed-capabilities SYS_ADMIN",
            ),
            (Policy::default(), Container { privileged: true, ..plain() }, "--allow-privileged"),
            (
                Policy::default(),
                Container { engine_runtime: Some("runsc".into()), ..plain() },
                "--allowed-engine-runtimes runsc",
            ),
        ] {
            let message = check(&with_policy(policy), &container).expect("forbidden");
            assert!(message.contains(&format!("`{flag}`")), "{message}");
        }
    }

    #[test]
    fn what_is_named_is_allowed() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let settings = with_policy(Policy {
            networks: words(&["host", "backend"]),
            capabilities: words(&["CAP_CHOWN", "net_bind_service"]),
            privileged: true,
            engine_runtimes: words(&["runsc"]),
            ..Policy::default()
        });
        for network in ["none", "host", "backend"] {
            let container = Container {
                network: Some(network.into()),
                capabilities: words(&["CHOWN", "NET_BIND_SERVICE"]),
                privileged: true,
                engine_runtime: Some("runsc".into()),
                ..Container::new("alpine")
            };
            assert_eq!(check(&settings, &container), None);
        }
        let settings = ContainerSettings { network: "bridge".into(), ..ContainerSettings::default() };
        assert_eq!(check(&settings, &Container::new("alpine")), None);
        assert_eq!(check(&settings, &Container { network: Some("bridge".into()), ..Container::new("alpine") }), None);
    }

    #[test]
    fn functions_have_networks_of_their_own_list() {
        let check = |networks: Option<&[&str]>, asked: Option<&str>| {
            let function_networks = networks.map(|all| all.iter().map(|name| (*name).to_owned()).collect());
            let settings = with_policy(Policy { function_networks, ..Policy::default() });
            let container = Container { network: asked.map(str::to_owned), ..Container::new("alpine") };
            refusal(settings.policy.check_function(&settings, &container), Code::PolicyForbidden)
        };
        assert_eq!(check(None, None), None, "out of the box");
        assert_eq!(check(None, Some("bridge")), None);
        assert_eq!(check(Some(&["backend"]), Some("backend")), None);
        for (networks, asked, words) in [
            (None, Some("backend"), "`--function-networks backend`"),
            (Some(&["backend"][..]), None, "`--function-networks bridge`"),
            (Some(&[]), Some("bridge"), "`--function-networks bridge`"),
            (Some(&["host", "shared"]), Some("host"), "an address of its own"),
            (Some(&["host", "shared"]), Some("shared"), "an address of its own"),
            (Some(&["container:abc"]), Some("container:abc"), "another container's"),
        ] {
            let message = check(networks, asked).expect("forbidden");
            assert!(message.contains(words), "{message}");
        }
        let settings = with_policy(Policy { images: Some(Vec::new()), ..Policy::default() });
        let image = settings.policy.check_function(&settings, &Container::new("alpine"));
        assert!(refusal(image, Code::PolicyForbidden).is_some(), "every other rule is the same");
    }

    #[test]
    fn no_flag_opens_the_network_of_another_container() {
        let other = "container:shoal-holder".to_owned();
        let mut settings = with_policy(Policy { networks: vec![other.clone()], ..Policy::default() });
        assert!(check(&settings, &Container { network: Some(other.clone()), ..Container::new("a") }).is_some());
        settings.network = other;
        assert!(check(&settings, &Container::new("a")).is_some());
    }

    /// What the sources become where these folders are allowed.
    fn mounted(allowed: &[&str], source: &str) -> Result<Mount, StartError> {
        let mounts = allowed.iter().map(|path| path.parse().expect("a mount")).collect();
        let settings = with_policy(Policy { mounts, ..Policy::default() });
        let mounts = vec![Mount { source: source.into(), target: "/in".into(), read_only: false }];
        let container = Container { mounts, ..Container::new("alpine") };
        settings.policy.check(&settings, &container)?;
        settings.policy.mounts(&settings, &container).map(|mut mounts| mounts.remove(0))
    }

    #[test]
    fn mounts_lie_in_allowed_folders_wherever_links_lead() {
        let root = tempfile::tempdir().expect("a folder");
        let path = |name: &str| root.path().join(name).to_str().expect("UTF-8").to_owned();
        for folder in ["open/deep", "opened", "secret"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.path().join(name)).expect("a link");
        link("../secret", "open/out");
        link(&path("open"), "in");
        link("/nonexistent/place", "open/dangling");
        let open = path("open");
        let source = |source: &str| mounted(&[&open], &path(source)).map(|mount| mount.source).ok();
        assert_eq!(source("open"), Some(path("open")));
        assert_eq!(source("open/deep"), Some(path("open/deep")));
        assert_eq!(source("in/deep"), Some(path("open/deep")), "a link into it");
        assert_eq!(source("open/not/yet"), Some(path("open/not/yet")));
        for outside in
            ["secret", "opened", "open/out", "open/out/file", "open/dangling", "open/dangling/x", "open/../secret", "."]
        {
            assert_eq!(source(outside), None, "{outside}");
        }
        let by_link = mounted(&[&path("in")], &path("open/deep")).map(|mount| mount.source).ok();
        assert_eq!(by_link, Some(path("open/deep")), "an allowed folder that is a link");
    }

    #[test]
    fn what_is_allowed_only_to_be_read_is_mounted_so() {
        let read_only = |allowed: &[&str], source| mounted(allowed, source).expect("allowed").read_only;
        assert!(read_only(&["/opt:ro"], "/opt/x"));
        assert!(!read_only(&["/opt"], "/opt/x"));
        assert!(!read_only(&["/opt:ro", "/opt/x"], "/opt/x/y"), "the wider word of two counts");
    }

    #[test]
    fn no_flag_opens_what_gives_the_machine_away() {
        let root = tempfile::tempdir().expect("a folder");
        let path = |name: &str| root.path().join(name).to_str().expect("UTF-8").to_owned();
        let _listens = std::os::unix::net::UnixListener::bind(path("my-docker.sock")).expect("a socket");
        std::os::unix::fs::symlink("/var/run", root.path().join("link")).expect("a link");
        fs::create_dir(root.path().join("plain")).expect("a folder");
        let (folder, socket, link) = (path(""), path("my-docker.sock"), path("link"));
        let linked = path("link/docker.sock");
        for source in [
            "/",
            "/run",
            "/run/",
            "/var",
            "/var/run",
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run/containerd",
            "/run/containerd/containerd.sock",
            "/run/podman/podman.sock",
            "/run/crio/crio.sock",
            "/run/libvirt/libvirt-sock",
            "/run/user",
            "/run/user/1000",
            "/run/user/1000/docker.sock",
            "/run/user/1000/podman/podman.sock",
            "/proc",
            "/proc/1/root/tmp",
            "/sys",
            "/sys/fs/cgroup",
            "/dev",
            "/dev/sda",
            "/var/lib",
            "/var/lib/docker/volumes",
            &folder,
            &socket,
            &link,
            &linked,
        ] {
            let message = refusal(mounted(&["/"], source), Code::PolicyForbidden);
            assert!(message.as_ref().is_some_and(|message| message.contains("never mounts")), "{source}: {message:?}");
        }
        for source in
            [&*path("plain"), "/run/my-app", "/run/user/1000/my-app", "/opt", "/var/lib/my-app", "/development"]
        {
            assert!(mounted(&["/"], source).is_ok(), "{source}");
        }
    }

    #[test]
    fn the_socket_of_the_workers_own_engine_is_closed() {
        let root = tempfile::tempdir().expect("a folder");
        let place = root.path().canonicalize().expect("a path");
        let settings = ContainerSettings {
            docker_host: Some(format!("unix://{}/engine/api", place.display())),
            policy: Policy { mounts: vec!["/".parse().expect("a mount")], ..Policy::default() },
            ..ContainerSettings::default()
        };
        let asks = |source: PathBuf| {
            let source = source.to_str().expect("UTF-8").to_owned();
            let mounts = vec![Mount { source, target: "/in".into(), read_only: true }];
            check(&settings, &Container { mounts, ..Container::new("alpine") })
        };
        assert!(asks(place.clone()).is_some());
        assert!(asks(place.join("engine")).is_some());
        assert!(asks(place.join("engine/api")).is_some());
        assert_eq!(asks(place.join("other")), None);
    }
}
