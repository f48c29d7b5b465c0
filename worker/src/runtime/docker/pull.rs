//! Images: looked up, and pulled once however many starts wait for one.
//!
//! A pull is a task of its own that lives as long as somebody waits for it. Who gives up waiting takes nothing from the
//! others; when the last one gives up, the engine is told by the end of the connection.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt;
use schemas::Code;
use schemas::task::PullPolicy;
use tokio::sync::{OnceCell, watch};
use tokio::task::AbortHandle;

use super::credentials;
use super::load::{load, pinned};
use super::refusal::{is_unreachable, status, words};
use crate::image::ImageName;
use crate::logs::Notes;
use crate::registry::credentials::Credentials;
use crate::registry::{Platform, Progress, PullError, Registries, RegistrySettings};
use crate::runtime::StartError;

/// Between two lines about the progress of one pull.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// An engine that answers at all answers a small question within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A pull may be silent for this long before the engine is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(20);

/// The images of one engine. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    docker: Docker,
    runtime: &'static str,
    /// Those that the settings speak of are pulled from by this worker, the others by the engine.
    registries: Registries,
    /// For what this worker pulls.
    scratch: PathBuf,
    /// Manifest and id of what this worker gave to the engine, by name.
    given: Mutex<HashMap<String, (String, String)>>,
    /// What is being pulled now, by whole name.
    pulls: Mutex<HashMap<String, Weak<Pull>>>,
    /// Operating system and architecture of the engine.
    platform: OnceCell<(String, String)>,
}

/// One image that the engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The engine's own name for exactly this image.
    pub id: String,
    /// Where its command starts, unless that is the root.
    pub working_dir: Option<String>,
    /// Whom it runs as, unless that is the engine's default.
    pub user: Option<String>,
}

impl Images {
    /// Of this engine; `runtime` is the word for it in errors.
    pub fn new(docker: Docker, runtime: &'static str) -> Self {
        Self::with_credentials(docker, runtime, Credentials::of_this_user())
    }

    /// The same with passwords of another place.
    pub fn with_credentials(docker: Docker, runtime: &'static str, credentials: Credentials) -> Self {
        let docker = docker.with_request_modifier(credentials::fit_header);
        let registries = Registries::with_credentials(RegistrySettings::default(), credentials);
        let scratch = std::env::temp_dir();
        Self::of(Inner {
            docker,
            runtime,
            registries,
            scratch,
            given: Mutex::default(),
            pulls: Mutex::default(),
            platform: OnceCell::new(),
        })
    }

    fn of(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// The same where some registries have settings; what is pulled from those passes through the folder `scratch`, which
    /// is emptied.
    pub fn with_registries(self, registries: Registries, scratch: PathBuf) -> Self {
        // Of a pull that was killed.
        if let Err(error) = std::fs::remove_dir_all(&scratch)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, folder = %scratch.display(), "what is left of an earlier pull is not removed");
        }
        let Inner { docker, runtime, .. } = &*self.inner;
        let (docker, runtime) = (docker.clone(), *runtime);
        Self::of(Inner {
            docker,
            runtime,
            registries,
            scratch,
            given: Mutex::default(),
            pulls: Mutex::default(),
            platform: OnceCell::new(),
        })
    }

    /// Makes sure that the engine has the image, and says which one it is. Cancel safe: a pull that nobody waits for any
    /// more is given up.
    pub async fn ensure(&self, image: &str, policy: PullPolicy, notes: &Notes) -> Result<Image, StartError> {
        let name = ImageName::parse(image).map_err(|why| StartError::Refused {
            code: Code::InvalidImage,
            message: format!("`{image}` is no image: {why}"),
        })?;
        let found = match policy {
            PullPolicy::Always => None,
            PullPolicy::IfNotPresent | PullPolicy::Never => self.inner.find(&name).await?,
        };
        let found = match (found, policy) {
            (Some(found), _) => found,
            (None, PullPolicy::Never) => {
                let message = format!("the engine has no image `{name}`, and here it is never pulled");
                return Err(StartError::Refused { code: Code::ImageNotFound, message });
            }
            (None, PullPolicy::Always | PullPolicy::IfNotPresent) => {
                self.pull(&name, notes).await.map_err(|failed| failed.to_start_error(self.inner.runtime))?;
                self.inner.find(&name).await?.ok_or_else(|| StartError::Refused {
                    code: Code::ImagePullFailed,
                    message: format!("the engine has no image `{name}` although the pull went well"),
                })?
            }
        };
        self.inner.check_platform(&name, &found, notes).await?;
        let config = found.config.unwrap_or_default();
        let id = found.id.filter(|id| !id.is_empty()).unwrap_or_else(|| name.to_string());
        Ok(Image {
            id,
            working_dir: config.working_dir.filter(|dir| !dir.is_empty() && dir != "/"),
            user: config.user.filter(|user| !user.is_empty()),
        })
    }

    /// Waits for the pull that is under way, or begins one.
    async fn pull(&self, name: &ImageName, notes: &Notes) -> Result<(), Failed> {
        let pull = self.join(name);
        let mut state = pull.state.clone();
        let (mut told, mut remarks) = (String::new(), 0);
        notes.say(&format!("pulling image {name}")).await;
        loop {
            let now = state.borrow_and_update().clone();
            for remark in &now.remarks[remarks.min(now.remarks.len())..] {
                notes.say(remark).await;
            }
            remarks = now.remarks.len();
            match now.ended {
                Some(Ok(())) => {
                    notes.say(&now.line).await;
                    return Ok(());
                }
                Some(Err(failed)) => {
                    notes.say(&format!("image {name} is not pulled: {}", failed.message)).await;
                    return Err(failed);
                }
                None => {}
            }
            if now.line != told {
                notes.say(&now.line).await;
                told = now.line;
                // An end is told at once, progress at the pace of people.
                let _ = tokio::time::timeout(LINE_EVERY, state.wait_for(|state| state.ended.is_some())).await;
            } else {
                notes.touch();
                if state.changed().await.is_err() && state.borrow().ended.is_none() {
                    return Err(Failed::passing(format!("the pull of `{name}` broke off inside this worker")));
                }
            }
        }
    }

    fn join(&self, name: &ImageName) -> Arc<Pull> {
        let mut pulls = self.inner.pulls();
        pulls.retain(|_, pull| pull.strong_count() > 0);
        let under_way = pulls.get(&name.to_string()).and_then(Weak::upgrade);
        // One that has ended tells what the registry had before this start came.
        if let Some(pull) = under_way.filter(|pull| pull.state.borrow().ended.is_none()) {
            return pull;
        }
        let (sender, state) = watch::channel(State::default());
        let task = tokio::spawn(run(self.inner.clone(), name.clone(), sender)).abort_handle();
        let pull = Arc::new(Pull { state, task });
        pulls.insert(name.to_string(), Arc::downgrade(&pull));
        pull
    }
}

impl Inner {
    fn pulls(&self) -> MutexGuard<'_, HashMap<String, Weak<Pull>>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By its whole name: an engine would also take a short one for the beginning of an id, past every rule about names.
    async fn find(&self, name: &ImageName) -> Result<Option<ImageInspect>, StartError> {
        if let Some(found) = self.find_called(&name.to_string()).await? {
            return Ok(Some(found));
        }
        // What was handed to it has no digest of its own.
        match pinned(name) {
            Some(pinned) if self.registries.is_set(name.registry()) => self.find_called(&pinned).await,
            _ => Ok(None),
        }
    }

    async fn find_called(&self, name: &str) -> Result<Option<ImageInspect>, StartError> {
        match bounded(self.docker.inspect_image(name)).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(match is_unreachable(&error) {
                Some(why) => StartError::Unavailable { runtime: self.runtime, why },
                None => StartError::Failed {
                    what: format!("the engine failed to look for the image `{name}`"),
                    source: Some(std::io::Error::other(words(&error))),
                },
            }),
        }
    }

    /// Operating system and architecture of the engine.
    async fn platform(&self) -> Result<&(String, String), String> {
        let asking = self.platform.get_or_try_init(|| async {
            let version = bounded(self.docker.version()).await?;
            Ok::<_, Error>((version.os.unwrap_or_default(), version.arch.unwrap_or_default()))
        });
        asking.await.map_err(|error| is_unreachable(&error).unwrap_or_else(|| words(&error)))
    }

    /// Refuses what cannot run here. Where another architecture may be emulated that is only said.
    async fn check_platform(&self, name: &ImageName, found: &ImageInspect, notes: &Notes) -> Result<(), StartError> {
        let platform = self.platform().await;
        let (os, arch) = platform.map_err(|why| StartError::Unavailable { runtime: self.runtime, why })?;
        let image_os = found.os.as_deref().unwrap_or_default();
        let image_arch = found.architecture.as_deref().unwrap_or_default();
        let differs =
            |of_image: &str, of_engine: &str| !of_image.is_empty() && !of_engine.is_empty() && of_image != of_engine;
        let told = format!("the image `{name}` is for {image_os}/{image_arch} and this engine is {os}/{arch}");
        if differs(image_os, os) || (differs(image_arch, arch) && !runs_on(image_arch, arch)) {
            return Err(StartError::Refused { code: Code::InvalidImage, message: told });
        }
        if differs(image_arch, arch) {
            notes.say(&format!("warning: {told}; it runs emulated, if at all")).await;
        }
        Ok(())
    }

    /// Pulls what the settings speak of, and hands it to the engine unless it has exactly that already. What came, for
    /// people.
    async fn give(&self, name: &ImageName, state: &watch::Sender<State>) -> Result<Option<String>, Failed> {
        let (os, architecture) = self.platform().await.map_err(Failed::unreachable)?.clone();
        let platform = Platform { os, architecture, variant: None };
        let resolved = self.registries.resolve(name, &platform).await?;
        let found = self.find(name).await.map_err(Failed::looking)?.and_then(|found| found.id);
        let given = self.given().get(&name.to_string()).cloned();
        // By the id of engines that keep images as their configurations, or by what we gave to others.
        if found.is_some_and(|id| id == resolved.config || given == Some((resolved.digest.clone(), id))) {
            return Ok(None);
        }
        let unwritten = |source| PullError::Write { path: self.scratch.clone(), source };
        tokio::fs::create_dir_all(&self.scratch).await.map_err(unwritten)?;
        let folder = tempfile::tempdir_in(&self.scratch).map_err(unwritten)?;
        let (progress, mut seen) = watch::channel(Progress::default());
        let fetching = self.registries.fetch(&resolved, folder.path(), &progress);
        tokio::pin!(fetching);
        let pulled = loop {
            tokio::select! {
                biased;
                pulled = &mut fetching => break pulled?,
                _ = seen.changed() => {
                    let line = format!("pulling image {name}: {}", *seen.borrow_and_update());
                    state.send_modify(|state| state.line = line);
                }
            }
        };
        let summary = progress.borrow().to_string();
        state.send_modify(|state| state.line = format!("handing image {name} to the engine"));
        let called = pinned(name).unwrap_or_else(|| name.to_string());
        load(&self.docker, &called, &pulled).await.map_err(|error| match is_unreachable(&error) {
            Some(why) => Failed::unreachable(why),
            None => Failed::passing(format!("the engine does not take the image `{name}`: {}", words(&error))),
        })?;
        if let Some(id) = self.find(name).await.map_err(Failed::looking)?.and_then(|found| found.id) {
            self.given().insert(name.to_string(), (resolved.digest.clone(), id));
        }
        Ok(Some(summary))
    }

    fn given(&self) -> MutexGuard<'_, HashMap<String, (String, String)>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the engine is there after all when a pull is silent: then it is the registry that is slow.
    async fn answers(&self) -> bool {
        for _ in 0..2 {
            if let Ok(Ok(_)) = tokio::time::timeout(ANSWER_WITHIN / 4, self.docker.ping()).await {
                return true;
            }
        }
        false
    }
}

/// Whether the engine's machine may run it although it is made for another one.
fn runs_on(image: &str, engine: &str) -> bool {
    // An engine elsewhere than on Linux is in a machine of its own that mostly emulates.
    matches!((image, engine), ("386", "amd64") | ("arm", "arm64")) || !cfg!(target_os = "linux") || is_emulated(image)
}

/// Whether this machine's kernel hands programs of that architecture to an emulator.
fn is_emulated(arch: &str) -> bool {
    let word = match arch {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "386" => "i386",
        "ppc64le" | "s390x" | "riscv64" | "arm" | "mips64le" | "loong64" => arch,
        _ => return false,
    };
    let word = if word == "mips64le" {
        "mips64el"
    } else if word == "loong64" {
        "loongarch64"
    } else {
        word
    };
    ["qemu-", "", "rosetta-"].iter().any(|prefix| {
        let entry = format!("/proc/sys/fs/binfmt_misc/{prefix}{word}");
        std::fs::read_to_string(entry).is_ok_and(|text| text.starts_with("enabled"))
    })
}

async fn bounded<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(ANSWER_WITHIN, request).await.unwrap_or(Err(Error::RequestTimeoutError))
}

/// A pull under way, held by those who wait for it.
struct Pull {
    state: watch::Receiver<State>,
    task: AbortHandle,
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Default)]
struct State {
    /// How far it is.
    line: String,
    /// What is to be known beside.
    remarks: Vec<String>,
    ended: Option<Result<(), Failed>>,
}

/// Why an image is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failed {
    /// `None`: the engine does not answer.
    code: Option<Code>,
    message: String,
}

impl Failed {
    fn passing(message: String) -> Self {
        Self { code: Some(Code::ImagePullFailed), message }
    }

    /// The engine does not answer.
    fn unreachable(why: String) -> Self {
        Self { code: None, message: why }
    }

    /// The engine could not be asked for an image.
    fn looking(error: StartError) -> Self {
        match error {
            StartError::Unavailable { why, .. } => Self::unreachable(why),
            error => Self::passing(error.to_task_error().message),
        }
    }

    fn to_start_error(&self, runtime: &'static str) -> StartError {
        match self.code {
            Some(code) => StartError::Refused { code, message: self.message.clone() },
            None => StartError::Unavailable { runtime, why: self.message.clone() },
        }
    }
}

impl From<PullError> for Failed {
    fn from(error: PullError) -> Self {
        Self { code: Some(error.code()), message: error.words() }
    }
}

/// One pull, to its end.
async fn run(inner: Arc<Inner>, name: ImageName, state: watch::Sender<State>) {
    let began = Instant::now();
    let pulled = match inner.registries.is_set(name.registry()) {
        true => inner.give(&name, &state).await,
        false => pull(&inner, &name, &state).await,
    };
    state.send_modify(|state| {
        let seconds = began.elapsed().as_secs_f64();
        state.line = match &pulled {
            Ok(Some(summary)) => format!("pulled image {name}: {summary} in {seconds:.1} s"),
            Ok(None) | Err(_) => format!("image {name} is what its registry has"),
        };
        state.ended = Some(pulled.map(drop));
    });
}

/// By the engine. What came, for people; `None` where it was all there.
async fn pull(inner: &Inner, name: &ImageName, state: &watch::Sender<State>) -> Result<Option<String>, Failed> {
    let mut layers = Layers::default();
    let found = inner.registries.credentials().find(name.registry()).await;
    state.send_modify(|state| state.remarks.extend(found.remark));
    let options = CreateImageOptions {
        from_image: Some(name.repository()),
        tag: Some(name.pick().to_owned()),
        ..CreateImageOptions::default()
    };
    let mut progress =
        std::pin::pin!(inner.docker.create_image(Some(options), None, found.login.map(credentials::to_engine)));
    loop {
        let Ok(item) = tokio::time::timeout(SILENCE, progress.next()).await else {
            if inner.answers().await {
                continue;
            }
            return Err(Failed { code: None, message: "it went silent in the middle of a pull".to_owned() });
        };
        match item {
            None => return Ok((!layers.all.is_empty()).then(|| layers.summary())),
            Some(Ok(info)) if tells_nothing(&info) => {
                // Older engines and Podman put the error where no field for it is known.
                return Err(Failed::passing(format!(
                    "the engine reports an error that it does not explain, for `{name}`"
                )));
            }
            Some(Ok(info)) => {
                if let Some(detail) = &info.error_detail {
                    let words = detail.message.clone().unwrap_or_else(|| format!("error {:?}", detail.code));
                    return Err(classified(name, None, &words));
                }
                layers.take(&info);
                let line = format!("pulling image {name}: {}", layers.summary());
                state.send_if_modified(|state| std::mem::replace(&mut state.line, line.clone()) != line);
            }
            Some(Err(Error::RequestTimeoutError)) if inner.answers().await => {
                return Err(Failed::passing(format!("the registry of `{name}` does not answer in time")));
            }
            Some(Err(error)) => {
                return Err(match is_unreachable(&error) {
                    Some(message) => Failed { code: None, message },
                    None => classified(name, status(&error), &words(&error)),
                });
            }
        }
    }
}

fn tells_nothing(info: &CreateImageInfo) -> bool {
    *info == CreateImageInfo::default()
}

/// By the words of the engine, which quotes the registry's; what no phrase matches may pass.
fn classified(name: &ImageName, status: Option<u16>, words: &str) -> Failed {
    let text = words.to_lowercase();
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    let code = if has(&["x509: ", "failed to verify certificate"]) {
        Code::RegistryUntrusted
    } else if has(&["incorrect username or password"]) {
        Code::RegistryLoginRefused
    } else if has(&[
        "no such host",
        "timeout",
        "timed out",
        "deadline exceeded",
        "connection refused",
        "connection reset",
        "eof",
        "toomanyrequests",
        "too many requests",
        "rate limit",
        "verification failed",
        "does not match digest",
        "failed precondition",
        "blob unknown",
        "unknown blob",
        "no space left",
        "context canceled",
    ]) {
        Code::ImagePullFailed
    } else if has(&[
        "invalid reference format",
        "invalid digest",
        "invalid checksum digest",
        "unsupported digest",
        "no matching manifest",
        "no match for platform",
        "does not match the specified platform",
        "image operating system",
        "unsupported manifest",
        "unsupported media type",
        "unsupported schema",
        "repository name must be",
        "cannot specify 64-byte hexadecimal",
        "encountered remote \"application",
        "must be lowercase",
    ]) {
        Code::InvalidImage
    } else if has(&[
        "manifest unknown",
        "name unknown",
        "name_unknown",
        "manifest_unknown",
        "pull access denied",
        "unauthorized",
        "authentication required",
        "no basic auth credentials",
        "denied:",
        "access denied",
        "access to the resource is denied",
        "http 404",
        "http 403",
        "http 401",
        "404 not found",
        "403 forbidden",
        "401 unauthorized",
        "not found",
        "no such image",
    ]) || status == Some(404)
    {
        Code::ImageNotFound
    } else {
        Code::ImagePullFailed
    };
    Failed { code: Some(code), message: format!("the image `{name}` cannot be pulled: {words}") }
}

/// How far each layer is.
#[derive(Default)]
struct Layers {
    all: BTreeMap<String, Layer>,
}

#[derive(Default)]
struct Layer {
    done: bool,
    bytes: i64,
    of: i64,
}

impl Layers {
    fn take(&mut self, info: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&info.id, info.status.as_deref()) else { return };
        let detail =
            info.progress_detail.as_ref().map(|detail| (detail.current.unwrap_or(0), detail.total.unwrap_or(0)));
        let layer = match status {
            "Pulling fs layer" | "Waiting" | "Verifying Checksum" => self.all.entry(id.clone()).or_default(),
            "Downloading" => {
                let layer = self.all.entry(id.clone()).or_default();
                let (bytes, of) = detail.unwrap_or_default();
                (layer.bytes, layer.of) = (bytes.max(layer.bytes), of.max(layer.of));
                layer
            }
            "Download complete" | "Extracting" | "Pull complete" | "Already exists" => {
                let layer = self.all.entry(id.clone()).or_default();
                layer.bytes = layer.of;
                layer
            }
            // `latest: Pulling from …` and what engines may say one day are no layers.
            _ => return,
        };
        layer.done |= matches!(status, "Pull complete" | "Already exists");
    }

    fn summary(&self) -> String {
        let done = self.all.values().filter(|layer| layer.done).count();
        let sum = |part: fn(&Layer) -> i64| self.all.values().map(part).sum::<i64>() as f64 / f64::from(1 << 20);
        let (bytes, of) = (sum(|layer| layer.bytes), sum(|layer| layer.of));
        format!("{done} of {} layers, {bytes:.1} of {of:.1} MiB", self.all.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_words_of_a_pull_tell_whether_it_may_go_well_later() {
        use Code::{ImageNotFound, ImagePullFailed, InvalidImage, RegistryLoginRefused, RegistryUntrusted};
        let name = ImageName::parse("registry.example/a:1").unwrap();
        for (status, words, expected) in [
            (404, "manifest for registry.example/a:1 not found: manifest unknown: manifest unknown", ImageNotFound),
            (404, "pull access denied for a, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", ImageNotFound),
            (404, "registry.example/a:1: not found", ImageNotFound),
            (404, "repository registry.example/a not found: name unknown: repository name not known to registry", ImageNotFound),
            (500, "Head \"https://registry.example/v2/a/manifests/1\": unauthorized: authentication required", ImageNotFound),
            (500, "Head \"http://127.0.0.1:1/v2/a/manifests/1\": no basic auth credentials", ImageNotFound),
            (500, "failed to resolve reference \"registry.example/a:1\": pull access denied, repository does not exist or may require authorization", ImageNotFound),
            (404, "", ImageNotFound),
            (404, "no matching manifest for linux/amd64 in the manifest list entries", InvalidImage),
            (0, "no matching manifest for linux/amd64 in the manifest list entries", InvalidImage),
            (400, "invalid reference format: repository name must be lowercase", InvalidImage),
            (500, "image operating system \"windows\" cannot be used on this platform", InvalidImage),
            (500, "Get \"https://registry.example/v2/\": dial tcp: lookup registry.example: no such host", ImagePullFailed),
            (500, "Get \"https://registry.example/v2/\": dial tcp 127.0.0.1:1: connect: connection refused", ImagePullFailed),
            (500, "Get \"https://registry.example/v2/\": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)", ImagePullFailed),
            (500, "Get \"https://registry.example/v2/\": net/http: TLS handshake timeout", ImagePullFailed),
            (500, "received unexpected HTTP status: 503 Service Unavailable", ImagePullFailed),
            (500, "toomanyrequests: You have reached your pull rate limit.", ImagePullFailed),
            (0, "filesystem layer verification failed for digest sha256:abc", ImagePullFailed),
            (0, "unexpected EOF", ImagePullFailed),
            (0, "error pulling image configuration: image config verification failed for digest sha256:abc", ImagePullFailed),
            (0, "write /var/lib/docker/tmp/x: no space left on device", ImagePullFailed),
            (500, "Get \"https://registry.example/v2/\": x509: certificate signed by unknown authority", RegistryUntrusted),
            (500, "Get \"https://registry.example/v2/\": tls: failed to verify certificate: x509: certificate is valid for a, not b", RegistryUntrusted),
            (500, "Get \"https://registry.example/v2/\": unauthorized: incorrect username or password", RegistryLoginRefused),
            (500, "something nobody has seen yet", ImagePullFailed),
        ] {
            let status = Some(status).filter(|status| *status != 0);
            assert_eq!(classified(&name, status, words).code, Some(expected), "{words}");
        }
    }

    /// An engine of one image, which is there once a pull ended well; `pull` is what is said about that, each after its
    /// pause.
    fn fake_engine(folder: &std::path::Path, pull: Vec<(u64, &'static str)>) -> Docker {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let socket = folder.join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let mut is_there = false;
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap();
                let answer = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}");
                let simple = match path {
                    _ if path.contains("/images/create") => {
                        stream.write_all(answer("200 OK", "").as_bytes()).await.unwrap();
                        for (pause, line) in &pull {
                            tokio::time::sleep(Duration::from_millis(*pause)).await;
                            stream.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
                        }
                        is_there = true;
                        continue;
                    }
                    _ if path.contains("/images/") && is_there => answer("200 OK", r#"{"Id":"sha256:1","Os":"linux"}"#),
                    _ if path.contains("/images/") => answer("404 Not Found", r#"{"message":"No such image: a"}"#),
                    _ => answer("200 OK", r#"{"Os":"linux","Arch":"amd64"}"#),
                };
                stream.write_all(simple.as_bytes()).await.unwrap();
            }
        });
        Docker::connect_with_host(&format!("unix://{}", socket.display())).unwrap()
    }

    /// What became of the pull, and what was said about it.
    async fn pulled(pull: Vec<(u64, &'static str)>) -> (Result<Image, StartError>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials::of_file(folder.path().join("none"));
        let images = Images::with_credentials(fake_engine(folder.path(), pull), "docker", credentials);
        let (notes, mut heard) = Notes::heard();
        let ensured = images.ensure("a", PullPolicy::Always, &notes).await;
        drop(notes);
        let mut lines = Vec::new();
        while let Some((_, line)) = heard.recv().await {
            lines.push(String::from_utf8(line.to_vec()).unwrap().trim().to_owned());
        }
        (ensured, lines)
    }

    #[tokio::test]
    async fn progress_is_told_at_the_pace_of_people() {
        let mut pull = vec![(0, r#"{"status":"Pulling from library/a","id":"latest"}"#)];
        pull.push((0, r#"{"status":"Pulling fs layer","progressDetail":{},"id":"x"}"#));
        for line in [
            r#"{"status":"Downloading","progressDetail":{"current":1048576,"total":3145728},"id":"x"}"#,
            r#"{"status":"Downloading","progressDetail":{"current":2097152,"total":3145728},"id":"x"}"#,
        ] {
            pull.extend([(300, line), (300, line), (300, line)]);
        }
        pull.push((0, r#"{"status":"Pull complete","progressDetail":{},"id":"x"}"#));
        pull.push((0, r#"{"status":"Status: Downloaded newer image for a:latest"}"#));
        let (ensured, lines) = pulled(pull).await;
        assert_eq!(ensured.unwrap().id, "sha256:1");
        assert_eq!(lines.first().unwrap(), "[shoal] pulling image docker.io/library/a:latest");
        let last = lines.last().unwrap();
        assert!(
            last.starts_with("[shoal] pulled image docker.io/library/a:latest: 1 of 1 layers, 3.0 of 3.0 MiB in "),
            "{last}"
        );
        // In two seconds: the first, the last, and at most three between.
        assert!((3..=5).contains(&lines.len()), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("0 of 1 layers")), "{lines:?}");
    }

    #[tokio::test]
    async fn an_error_in_the_stream_is_an_error_however_it_is_told() {
        let begin = (0, r#"{"status":"Pulling from library/a","id":"latest"}"#);
        for (line, expected) in [
            (r#"{"errorDetail":{"message":"manifest unknown"},"error":"manifest unknown"}"#, Code::ImageNotFound),
            (
                r#"{"errorDetail":{"code":1,"message":"unexpected EOF"},"error":"unexpected EOF"}"#,
                Code::ImagePullFailed,
            ),
            (r#"{"errorDetail":{"code":1}}"#, Code::ImagePullFailed),
            // As some engines do, in a field of which our client knows nothing.
            (r#"{"error":"unexpected EOF"}"#, Code::ImagePullFailed),
        ] {
            let (ensured, lines) = pulled(vec![begin, (0, line)]).await;
            assert!(
                matches!(&ensured, Err(StartError::Refused { code, .. }) if *code == expected),
                "{line} {ensured:?}"
            );
            assert!(lines.last().unwrap().contains("is not pulled: "), "{lines:?}");
        }
        let (ensured, _) = pulled(vec![begin, (0, "{\"status\":\"Pul")]).await;
        assert!(ensured.is_err(), "{ensured:?}");
    }

    #[test]
    fn layers_are_counted_by_what_is_told_of_them() {
        let mut layers = Layers::default();
        let mut tell = |id: &str, status: &str, bytes: Option<(i64, i64)>| {
            let json = serde_json::json!({
                "id": id, "status": status,
                "progressDetail": bytes.map(|(current, total)| serde_json::json!({"current": current, "total": total})),
            });
            layers.take(&serde_json::from_value(json).unwrap());
            layers.summary()
        };
        assert_eq!(tell("latest", "Pulling from library/alpine", None), "0 of 0 layers, 0.0 of 0.0 MiB");
        assert_eq!(tell("a", "Pulling fs layer", None), "0 of 1 layers, 0.0 of 0.0 MiB");
        assert_eq!(tell("b", "Already exists", None), "1 of 2 layers, 0.0 of 0.0 MiB");
        assert_eq!(tell("a", "Downloading", Some((1 << 20, 4 << 20))), "1 of 2 layers, 1.0 of 4.0 MiB");
        assert_eq!(tell("a", "Download complete", None), "1 of 2 layers, 4.0 of 4.0 MiB");
        assert_eq!(tell("a", "Extracting", Some((1, 4 << 20))), "1 of 2 layers, 4.0 of 4.0 MiB");
        assert_eq!(tell("a", "Pull complete", None), "2 of 2 layers, 4.0 of 4.0 MiB");
    }

    #[test]
    fn other_architectures_run_where_machines_run_them() {
        assert!(runs_on("386", "amd64") && runs_on("arm", "arm64"));
        assert!(!cfg!(target_os = "linux") || !runs_on("no-such-architecture", "amd64"));
    }
}
