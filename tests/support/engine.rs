//! The Docker engine of this machine, looked at past Shoal: over its socket, by its own API.
//!
//! Many tests use it at once and so may other people: each [`Engine`] knows its own objects by worker ids that end with
//! a mark nobody else has, and removes what a failed test left of them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::fleet::{Fleet, WorkerBuilder};
use super::system::random_word;
use super::{eventually, http};

/// Made by `scripts/engine` from a static busybox: all applets, users `root`, `job` (1000) and `nobody`.
pub const IMAGE: &str = "shoal-test/busybox:1";
/// The same with `USER 1000`.
pub const IMAGE_USER: &str = "shoal-test/busybox:1-user";
/// The same with `WORKDIR /app` and `ENV FROM_IMAGE=yes`.
pub const IMAGE_APP: &str = "shoal-test/busybox:1-app";
/// The same with `ENTRYPOINT ["echo", "entry"]` and `CMD ["point"]`.
pub const IMAGE_ENTRYPOINT: &str = "shoal-test/busybox:1-entrypoint";
/// Nothing but the program `/busybox`, which is the entrypoint.
pub const IMAGE_STATIC: &str = "shoal-test/static:1";
/// The function of `tests/function/function.rs`, which is the entrypoint, and nothing else. Not made on a Mac.
pub const IMAGE_FUNCTION: &str = "shoal-test/function:1";

/// One engine, as one test uses it.
pub struct Engine {
    socket: PathBuf,
    mark: String,
    /// Paths of what goes with the test, whatever its labels say.
    made: Mutex<Vec<String>>,
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
    /// The engine of `DOCKER_HOST` or the usual socket, with the test images in it.
    pub async fn find() -> Option<Self> {
        match Self::try_find().await {
            Ok(engine) => Some(engine),
            Err(reason) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
                panic!("in CI no test is skipped, but {reason}")
            }
            Err(reason) => {
                eprintln!("SKIPPED: {reason}");
                None
            }
        }
    }

    async fn try_find() -> Result<Self, String> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
        let socket = host.strip_prefix("unix://").ok_or_else(|| format!("DOCKER_HOST={host} is no unix socket"))?;
        let engine = Self::at(Path::new(socket));
        engine
            .try_request("GET", "/_ping", &[])
            .await
            .map_err(|e| format!("no Docker engine answers at {host}: {e}"))?;
        for image in [IMAGE, IMAGE_STATIC] {
            if engine.try_request("GET", &format!("/images/{image}/json"), &[]).await.is_err() {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/engine");
                let output = std::process::Command::new(script).arg("found").output().expect("scripts/engine starts");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let made = engine.try_request("GET", &format!("/images/{image}/json"), &[]).await;
                made.map_err(|_| format!("there is no {image}: {}", String::from_utf8_lossy(&output.stderr)))?;
            }
        }
        Ok(engine)
    }

    /// The engine behind this socket.
    pub fn at(socket: &Path) -> Self {
        let mark = random_word();
        Self { socket: socket.into(), mark: mark[..10].to_owned(), made: Mutex::default() }
    }

    /// Its address, as `DOCKER_HOST` names it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The id of the worker called `name` in this test, unlike any other on the engine.
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.mark)
    }

    /// A worker that runs calls and containers on this engine. Jobs may mount the folder of the fleet.
    pub fn worker<'a>(&self, fleet: &'a Fleet, name: &str) -> WorkerBuilder<'a> {
        let mounts = fleet.folder().display().to_string();
        let worker = fleet.worker(&self.id(name)).runtimes("call,docker");
        worker.env("SHOAL_DOCKER_HOST", &self.host()).env("SHOAL_ALLOWED_MOUNTS", &mounts)
    }

    /// Asks; the answer's JSON, or what the engine has against it.
    pub async fn try_request(&self, method: &str, path: &str, body: &[u8]) -> Result<Value, String> {
        let (status, bytes) = http::unix(&self.socket, method, path, body).await.map_err(|e| e.to_string())?;
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        match status {
            200..=399 => Ok(value),
            status => Err(format!("{method} {path}: {status} {}", String::from_utf8_lossy(&bytes))),
        }
    }

    /// The same where a refusal is wrong.
    #[track_caller]
    pub fn request<'a>(&'a self, method: &'a str, path: &'a str, body: Value) -> impl Future<Output = Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
            self.try_request(method, path, &body).await.unwrap_or_else(|e| panic!("{caller}: {e}"))
        }
    }

    /// All containers of this test's workers, as the engine lists them; also dead ones.
    pub async fn containers(&self) -> Vec<Value> {
        self.listed("containers").await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Those that run or ran a task of this id.
    pub async fn of_task(&self, id: &str) -> Vec<Value> {
        let all = self.containers().await;
        all.into_iter().filter(|container| container["Labels"]["shoal.task"] == id).collect()
    }

    /// Waits for the running container of a task and inspects it.
    #[track_caller]
    pub fn running<'a>(&'a self, id: &'a str) -> impl Future<Output = Value> + 'a {
        eventually(format!("a running container of {id}"), async move || {
            let found = self.of_task(id).await;
            let running = found.iter().find(|container| container["State"] == "running");
            let container = running.ok_or_else(|| format!("{found:?}"))?["Id"].as_str().expect("an id");
            self.try_request("GET", &format!("/containers/{container}/json"), &[]).await
        })
    }

    /// Everything on the engine that carries a label of this test's workers, holders left out.
    pub async fn leftovers(&self) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        for container in self.listed("containers").await? {
            if container["Labels"]["shoal.kind"] != "holder" {
                found.push(format!("container {} {}", container["Names"], container["Status"]));
            }
        }
        for kind in ["networks", "volumes"] {
            found.extend(self.listed(kind).await?.iter().map(|object| format!("{kind} {}", object["Name"])));
        }
        Ok(found)
    }

    /// Waits until nothing of any task is left.
    #[track_caller]
    pub fn is_clean(&self) -> impl Future<Output = ()> {
        eventually("nothing of ours left on the engine", async || match self.leftovers().await? {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        })
    }

    /// Makes and starts a container behind everybody's back; its id.
    pub async fn run(&self, name: &str, labels: Value) -> String {
        let body = json!({
            "Image": IMAGE, "Cmd": ["sleep", "600"], "Labels": labels, "StopTimeout": 1, "HostConfig": {"NetworkMode": "none"}
        });
        let made = self.request("POST", &format!("/containers/create?name={name}"), body).await;
        let id = made["Id"].as_str().expect("an id").to_owned();
        self.made.lock().expect("nothing panics with it").push(format!("/containers/{id}?force=1&v=1"));
        self.request("POST", &format!("/containers/{id}/start"), Value::Null).await;
        id
    }

    /// Whether an object (`containers/ID`, `networks/ID`, `volumes/NAME`) is there.
    pub async fn has(&self, object: &str) -> bool {
        let path = if object.starts_with("containers/") { format!("/{object}/json") } else { format!("/{object}") };
        match self.try_request("GET", &path, &[]).await {
            Ok(_) => true,
            Err(e) if e.contains(": 404 ") => false,
            Err(e) => panic!("{e}"),
        }
    }

    /// Removes an object, if it is there.
    pub async fn remove(&self, object: &str) {
        let _ = self.try_request("DELETE", &format!("/{object}?force=1&v=1"), &[]).await;
    }

    /// Removes this image at the end of the test.
    pub fn forget(&self, image: &str) {
        self.made.lock().expect("nothing panics with it").push(format!("/images/{image}?force=1"));
    }

    async fn listed(&self, kind: &str) -> Result<Vec<Value>, String> {
        let answer = self.try_request("GET", &list_path(kind), &[]).await?;
        Ok(self.ours(&answer, kind))
    }

    fn ours(&self, answer: &Value, kind: &str) -> Vec<Value> {
        let list = if kind == "volumes" { &answer["Volumes"] } else { answer };
        let ours = |object: &&Value| object["Labels"]["shoal.worker"].as_str().is_some_and(|w| w.ends_with(&self.mark));
        list.as_array().into_iter().flatten().filter(ours).cloned().collect()
    }
}

/// What a failed test left would stand in the way of nobody, but of the next person's eyes.
impl Drop for Engine {
    fn drop(&mut self) {
        let ask = |method: &str, path: &str| http::unix_blocking(&self.socket, method, path);
        for path in self.made.lock().map(|made| made.clone()).unwrap_or_default() {
            let _ = ask("DELETE", &path);
        }
        for (kind, key) in [("containers", "Id"), ("networks", "Id"), ("volumes", "Name")] {
            let Ok((200, bytes)) = ask("GET", &list_path(kind)) else { return };
            let answer = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            for object in self.ours(&answer, kind) {
                let _ = ask("DELETE", &format!("/{kind}/{}?force=1&v=1", object[key].as_str().unwrap_or_default()));
            }
        }
    }
}

fn list_path(kind: &str) -> String {
    let path = if kind == "containers" { "containers/json" } else { kind };
    format!("/{path}?all=1&filters={}", percent(&json!({"label": ["shoal.worker"]}).to_string()))
}

/// For the query of a URL.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}
