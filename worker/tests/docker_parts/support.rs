//! The engine as one test uses it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, NetworkCreateRequest, VolumeCreateRequest};
use bollard::query_parameters::{CreateContainerOptions, CreateImageOptions};
use futures_util::TryStreamExt;
use schemas::AgentId;
use shoal_worker::runtime::docker::labels::{FLEET, MORTAL, Owner, START, own_labels};

/// Made from this machine's static busybox; it stays.
pub const IMAGE: &str = "shoal-worker-test/busybox:1";

/// The function that tests call; `scripts/engine` makes it.
pub const FUNCTION: &str = "shoal-test/function:1";

/// No test waits longer; in time means in far less.
const TOO_LONG: Duration = Duration::from_secs(60);

/// One engine, and a fleet on it that is this test's alone.
pub struct Engine {
    pub docker: Docker,
    pub host: String,
    pub owner: Owner,
    /// Images that go with the test.
    images: Mutex<Vec<String>>,
}

/// The engine, or the end of the test where there is none (in CI: its failure).
macro_rules! engine {
    () => {
        match $crate::support::Engine::find().await {
            Some(engine) => engine,
            None => return,
        }
    };
}
pub(crate) use engine;

impl Engine {
    pub async fn find() -> Option<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
        let found = async {
            let docker = Docker::connect_with_host(&host).map_err(|error| error.to_string())?;
            tokio::time::timeout(Duration::from_secs(5), docker.ping())
                .await
                .map_err(|_| "no answer".to_owned())?
                .map_err(|error| error.to_string())?;
            Ok::<_, String>(docker)
        };
        match found.await {
            Ok(docker) => {
                let owner = Owner {
                    fleet: format!("test-{}", random_word()),
                    worker: AgentId::new("w").unwrap(),
                    instance: "now".into(),
                };
                let engine = Self { docker, host, owner, images: Mutex::default() };
                engine.make_image().await;
                Some(engine)
            }
            Err(reason) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
                panic!("in CI no test is skipped, but there is no container engine at {host}: {reason}")
            }
            Err(reason) => {
                eprintln!("skipped: no container engine at {host}: {reason}");
                None
            }
        }
    }

    async fn make_image(&self) {
        if self.docker.inspect_image(IMAGE).await.is_ok() {
            return;
        }
        let (repo, tag) = IMAGE.split_once(':').unwrap();
        let options = CreateImageOptions {
            from_src: Some("-".into()),
            repo: Some(repo.into()),
            tag: Some(tag.into()),
            ..CreateImageOptions::default()
        };
        let body = bollard::body_full(busybox(&[]).into());
        self.docker.create_image(Some(options), Some(body), None).try_collect::<Vec<_>>().await.unwrap();
    }

    /// Has the image [`FUNCTION`] made, which takes `rustc` alone; `None` where it cannot be.
    pub async fn make_function(&self) -> Option<()> {
        if self.docker.inspect_image(FUNCTION).await.is_ok() {
            return Some(());
        }
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/engine");
        let output = std::process::Command::new(script).arg("found").output().expect("scripts/engine starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        if self.docker.inspect_image(FUNCTION).await.is_ok() {
            return Some(());
        }
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "in CI no test is skipped: no {FUNCTION}: {told}"
        );
        eprintln!("skipped: there is no {FUNCTION}: {told}");
        None
    }

    /// Another life of the same worker.
    pub fn owner_of(&self, instance: &str) -> Owner {
        Owner { instance: instance.into(), ..self.owner.clone() }
    }

    /// Removes this image at the end.
    pub fn forget(&self, image: &str) {
        self.images.lock().unwrap().push(image.to_owned());
    }

    /// Runs a container that sleeps; its id.
    pub async fn run(&self, labels: HashMap<String, String>) -> String {
        let id = self.create(labels).await;
        self.docker.start_container(&id, None).await.unwrap();
        id
    }

    /// Makes it only.
    pub async fn create(&self, labels: HashMap<String, String>) -> String {
        let body = ContainerCreateBody {
            image: Some(IMAGE.into()),
            cmd: Some(vec!["sleep".into(), "600".into()]),
            labels: Some(labels),
            host_config: Some(HostConfig { network_mode: Some("none".into()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        self.docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id
    }

    /// Runs a command in an image, as root, to its end.
    pub async fn exit_code_of(&self, image: &str, command: &[&str]) -> i64 {
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            user: Some("0".to_owned()),
            labels: Some(own_labels(&self.owner, "test")),
            ..ContainerCreateBody::default()
        };
        let id = self.docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
        self.docker.start_container(&id, None).await.unwrap();
        let options = Some(bollard::query_parameters::WaitContainerOptions::default());
        match self.docker.wait_container(&id, options).try_collect::<Vec<_>>().await {
            Ok(ends) => ends[0].status_code,
            // The library's word for an exit code other than 0.
            Err(bollard::errors::Error::DockerContainerWaitError { code, .. }) => code,
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn network(&self, labels: HashMap<String, String>) -> String {
        let name = format!("shoal-{}", random_word());
        let request = NetworkCreateRequest {
            name,
            internal: Some(true),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        self.docker.create_network(request).await.unwrap().id
    }

    pub async fn volume(&self, labels: HashMap<String, String>) -> String {
        let name = format!("shoal-{}", random_word());
        let request = VolumeCreateRequest { name: Some(name), labels: Some(labels), ..VolumeCreateRequest::default() };
        self.docker.create_volume(request).await.unwrap().name
    }

    pub async fn has(&self, id: &str) -> bool {
        let container = self.docker.inspect_container(id, None).await.is_ok();
        let network = self.docker.inspect_network(id, None).await.is_ok();
        container || network || self.docker.inspect_volume(id).await.is_ok()
    }

    pub async fn runs(&self, id: &str) -> bool {
        let found = self.docker.inspect_container(id, None).await.unwrap();
        found.state.and_then(|state| state.running).unwrap_or(false)
    }

    /// Without a client, for there is no waiting in a drop.
    fn ask(&self, method: &str, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.host.strip_prefix("unix://")?).ok()?;
        stream.set_read_timeout(Some(TOO_LONG)).ok()?;
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: d\r\nContent-Length: 0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let filters = format!(r#"{{"label":["{FLEET}={}"]}}"#, self.owner.fleet);
        let filters: String = filters.bytes().map(|b| format!("%{b:02X}")).collect();
        for (kind, list, key) in
            [("containers", "containers/json", "Id"), ("networks", "networks", "Id"), ("volumes", "volumes", "Name")]
        {
            let answer = self.ask("GET", &format!("/{list}?all=1&filters={filters}")).unwrap_or_default();
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
            let list = if kind == "volumes" { &answer["Volumes"] } else { &answer };
            for id in list.as_array().into_iter().flatten().filter_map(|object| object[key].as_str()) {
                self.ask("DELETE", &format!("/{kind}/{id}?force=1&v=1"));
            }
        }
        for image in self.images.lock().map(|images| images.clone()).unwrap_or_default() {
            self.ask("DELETE", &format!("/images/{image}?force=1"));
        }
    }
}

/// Labels of a task's container of `owner`.
pub fn task(owner: &Owner, start: &str, mortal: bool) -> HashMap<String, String> {
    let mut labels = own_labels(owner, "task");
    labels.extend([(START.to_owned(), start.to_owned()), (MORTAL.to_owned(), mortal.to_string())]);
    labels
}

/// A tar of a static busybox and some applets, and of a file of these bytes.
pub fn busybox(padding: &[u8]) -> Vec<u8> {
    let binary = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8], mode| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    put("bin/busybox", &binary.expect("a static busybox"), 0o755);
    put("etc/passwd", b"root:x:0:0::/root:/bin/sh\n", 0o644);
    put("etc/group", b"root:x:0:\n", 0o644);
    put("padding", padding, 0o644);
    for applet in ["sh", "sleep", "true"] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn random_word() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Waits until it is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let began = Instant::now();
        while !is_so().await {
            assert!(began.elapsed() < TOO_LONG, "{caller}: not in time: {what}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
