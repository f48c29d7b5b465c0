//! Images from their registries: containerd of before 1.7 pulls nothing itself, so the worker does, and hands over what came.
//! Once however many starts wait for one.
//!
//! A pull is a task of its own that lives as long as somebody waits for it. Who gives up waiting takes nothing from the
//! others; when the last one gives up, it ends.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use containerd_client::services::v1::GetImageRequest;
use containerd_client::types::Descriptor;
use schemas::Code;
use schemas::task::PullPolicy;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::NAME;
use super::content::Piece;
use super::engine::{PATIENCE, ours};
use super::image::{Image, Images, ImportError, Unfit};
use super::status::is_unreachable;
use crate::image::ImageName;
use crate::logs::Notes;
use crate::registry::{Blob, Platform, Progress, PullError, Registries};
use crate::runtime::StartError;

/// Between two lines about the progress of one pull.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Pulls into the images of one engine.
pub(super) struct Puller {
    images: Arc<Images>,
    registries: Registries,
    /// What is pulled passes through it.
    scratch: PathBuf,
    /// What is being pulled now, by whole name.
    pulls: Mutex<HashMap<String, Weak<Pull>>>,
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
    ended: Option<Result<(), Failed>>,
}

/// Why an image is not there.
#[derive(Clone, Debug)]
enum Failed {
    Refused(Code, String),
    /// The engine does not answer.
    Away(String),
}

impl From<PullError> for Failed {
    fn from(error: PullError) -> Self {
        match error.to_start_error() {
            StartError::Refused { code, message } => Self::Refused(code, message),
            other => Self::Refused(Code::ImagePullFailed, other.to_string()),
        }
    }
}

impl From<ImportError> for Failed {
    fn from(error: ImportError) -> Self {
        match &error {
            ImportError::Engine(status) if is_unreachable(status).is_some() => Self::Away(error.to_string()),
            _ => Self::Refused(Code::ImagePullFailed, format!("the engine does not take the image: {error}")),
        }
    }
}

impl Failed {
    fn to_start_error(&self) -> StartError {
        match self.clone() {
            Self::Refused(code, message) => StartError::Refused { code, message },
            Self::Away(why) => StartError::Unavailable { runtime: NAME, why },
        }
    }
}

impl Puller {
    /// What is pulled passes through the folder `scratch`, which is emptied.
    pub(super) fn new(images: Arc<Images>, registries: Registries, scratch: PathBuf) -> Self {
        // Of a pull that was killed.
        if let Err(error) = std::fs::remove_dir_all(&scratch)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, folder = %scratch.display(), "what is left of an earlier pull is not removed");
        }
        Self { images, registries, scratch, pulls: Mutex::default() }
    }

    /// Makes sure that the image is there and ready to be stood on. Cancel safe: a pull that nobody waits for any more is
    /// given up.
    pub(super) async fn ensure(
        self: &Arc<Self>,
        name: &ImageName,
        policy: PullPolicy,
        notes: &Notes,
    ) -> Result<Image, StartError> {
        if policy != PullPolicy::Always {
            match (self.images.find(name).await, policy) {
                (Ok(image), _) => return Ok(image),
                (Err(Unfit::Missing), PullPolicy::Never) => {
                    let message = format!("the engine has no image `{name}`, and here it is never pulled");
                    return Err(StartError::Refused { code: Code::ImageNotFound, message });
                }
                (Err(Unfit::Missing), _) => {}
                (Err(unfit), _) => return Err(unfit.into_start_error(name)),
            }
        }
        self.pull(name, notes).await.map_err(|failed| failed.to_start_error())?;
        self.images.find(name).await.map_err(|unfit| unfit.into_start_error(name))
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<String, Weak<Pull>>> {
        // No code that holds it can panic half way.
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the pull that is under way, or begins one.
    async fn pull(self: &Arc<Self>, name: &ImageName, notes: &Notes) -> Result<(), Failed> {
        let pull = self.join(name);
        let mut state = pull.state.clone();
        let mut told = String::new();
        notes.say(&format!("pulling image {name}")).await;
        loop {
            let now = state.borrow_and_update().clone();
            match now.ended {
                Some(Ok(())) => {
                    notes.say(&now.line).await;
                    return Ok(());
                }
                Some(Err(failed)) => {
                    let (Failed::Refused(_, why) | Failed::Away(why)) = &failed;
                    notes.say(&format!("image {name} is not pulled: {why}")).await;
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
                    let why = format!("the pull of `{name}` broke off inside this worker");
                    return Err(Failed::Refused(Code::ImagePullFailed, why));
                }
            }
        }
    }

    fn join(self: &Arc<Self>, name: &ImageName) -> Arc<Pull> {
        let mut pulls = self.pulls();
        pulls.retain(|_, pull| pull.strong_count() > 0);
        let under_way = pulls.get(&name.to_string()).and_then(Weak::upgrade);
        // One that has ended tells what the registry had before this start came.
        if let Some(pull) = under_way.filter(|pull| pull.state.borrow().ended.is_none()) {
            return pull;
        }
        let (sender, state) = watch::channel(State::default());
        let (puller, of) = (self.clone(), name.clone());
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let ended = puller.run(&of, &sender).await;
            sender.send_modify(|state| {
                state.line = match &ended {
                    Ok(Some(summary)) => {
                        format!("pulled image {of}: {summary} in {:.1} s", began.elapsed().as_secs_f64())
                    }
                    _ => format!("image {of} is what its registry has"),
                };
                state.ended = Some(ended.map(|_| ()));
            });
        });
        let pull = Arc::new(Pull { state, task: task.abort_handle() });
        pulls.insert(name.to_string(), Arc::downgrade(&pull));
        pull
    }

    /// One pull, to its end. What came, for people; `None` where the engine had exactly that.
    async fn run(&self, name: &ImageName, state: &watch::Sender<State>) -> Result<Option<String>, Failed> {
        let resolved = self.registries.resolve(name, &Platform::of_this_machine()).await?;
        if self.has(name, &resolved.digest).await {
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
        let place = |blob: &Blob| Piece { file: blob.path.clone(), offset: 0, size: blob.size };
        let all = pulled.layers.iter().chain([&pulled.manifest, &pulled.config]);
        let places: HashMap<String, Piece> = all.map(|blob| (blob.digest.clone(), place(blob))).collect();
        let manifest = Descriptor {
            media_type: pulled.manifest.media_type.clone(),
            digest: pulled.manifest.digest.clone(),
            size: pulled.manifest.size as i64,
            annotations: HashMap::new(),
        };
        self.images.take(name, manifest, &places).await?;
        Ok(Some(summary))
    }

    /// Whether the engine has exactly this manifest under the name.
    async fn has(&self, name: &ImageName, digest: &str) -> bool {
        let engine = self.images.engine();
        let request = GetImageRequest { name: name.to_string() };
        let found = engine.ask(PATIENCE, engine.images().get(ours(request))).await;
        let target = found.ok().and_then(|found| found.image).and_then(|image| image.target);
        // One that is not whole is pulled again.
        target.is_some_and(|target| target.digest == digest) && self.images.find(name).await.is_ok()
    }
}
