//! Images in the content store: found by name, read, unpacked once however many starts wait for one.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_client::services::v1::{CreateImageRequest, GetImageRequest, Image as Record, UpdateImageRequest};
use containerd_client::tonic::Status;
use containerd_client::types::Descriptor;
use schemas::Code;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::NAME;
use super::content::{Lease, Piece};
use super::engine::{Engine, PATIENCE, ours};
use super::snapshot::SNAPSHOTTER;
use super::status::{is_missing, is_there, is_unreachable, words};
use crate::image::ImageName;
use crate::runtime::StartError;

/// Nobody nests lists deeper.
const DEEPEST: u32 = 3;

/// An image that can be run.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// The snapshot that its containers stand on.
    pub(super) chain: String,
    pub(super) config: Config,
}

/// What the image says of how it is run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    pub(super) user: Option<String>,
    pub(super) env: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) stop_signal: Option<String>,
}

/// The configuration as a document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    os: String,
    architecture: String,
    config: Option<Config>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// A manifest, or a list of them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    config: Option<Target>,
    layers: Vec<Target>,
    manifests: Vec<Target>,
}

/// What a document points to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Target {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: i64,
    pub(super) platform: Option<Platform>,
    pub(super) annotations: HashMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
}

impl From<Target> for Descriptor {
    fn from(target: Target) -> Self {
        Self { media_type: target.media_type, digest: target.digest, size: target.size, annotations: HashMap::new() }
    }
}

/// Why an image is not there to be run.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The engine refuses, or does not answer.
    #[error("containerd: {}", words(.0))]
    Engine(#[from] Box<Status>),
    /// The archive cannot be read.
    #[error("the archive cannot be read")]
    Read(#[from] std::io::Error),
    /// It is no archive of an image.
    #[error("it is no archive of an image: {0}")]
    Archive(String),
}

impl From<Status> for ImportError {
    fn from(status: Status) -> Self {
        Self::Engine(Box::new(status))
    }
}

/// Why an image cannot be run.
pub(super) enum Unfit {
    /// It is not there, or not whole.
    Missing,
    /// It is for another machine, or cannot be read.
    Invalid(String),
    Engine(Status),
}

impl From<Status> for Unfit {
    fn from(status: Status) -> Self {
        Self::Engine(status)
    }
}

impl Unfit {
    /// For a task that wants to run `name`.
    pub(super) fn into_start_error(self, name: &ImageName) -> StartError {
        match self {
            Self::Missing => {
                StartError::Refused { code: Code::ImageNotFound, message: format!("the engine has no image `{name}`") }
            }
            Self::Invalid(why) => {
                StartError::Refused { code: Code::InvalidImage, message: format!("the image `{name}`: {why}") }
            }
            Self::Engine(status) => match is_unreachable(&status) {
                Some(why) => StartError::Unavailable { runtime: NAME, why },
                None => StartError::Failed {
                    what: format!("the engine failed to make the image `{name}` ready"),
                    source: Some(std::io::Error::other(words(&status))),
                },
            },
        }
    }
}

/// The images of one engine.
pub(super) struct Images {
    engine: Arc<Engine>,
    /// One is unpacked at a time: starts of one image come in crowds, and disks like one writer.
    unpacking: tokio::sync::Mutex<()>,
}

impl Images {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, unpacking: tokio::sync::Mutex::default() }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the engine has under this name, unpacked. Cancel safe: what was half unpacked is held by a lease that ends.
    pub(super) async fn find(&self, name: &ImageName) -> Result<Image, Unfit> {
        let request = GetImageRequest { name: name.to_string() };
        let found = match self.engine.ask(PATIENCE, self.engine.images().get(ours(request))).await {
            Ok(found) => found.image.and_then(|image| image.target).ok_or(Unfit::Missing)?,
            Err(status) if is_missing(&status) => return Err(Unfit::Missing),
            Err(status) => return Err(status.into()),
        };
        let manifest = self.manifest(found).await?;
        let config = manifest.config.ok_or_else(|| Unfit::Invalid("its manifest names no configuration".to_owned()))?;
        let document: Document = self.document(&config.digest).await?;
        let of_machine = self.engine.facts().architecture;
        if document.os != "linux" || !runs_here(&document.architecture, of_machine) {
            let Document { os, architecture, .. } = document;
            return Err(Unfit::Invalid(format!("it is for {os}/{architecture} and this engine is linux/{of_machine}")));
        }
        let diff_ids = document.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() || diff_ids.is_empty() {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(Unfit::Invalid(format!("it has {layers} layers and tells of {ids}")));
        }
        let chains = chains(&diff_ids);
        let chain = chains.last().cloned().unwrap_or_default();
        if !self.engine.has_snapshot(&chain).await? {
            self.unpack(manifest.layers, &diff_ids, &chains, &config.digest).await?;
        }
        Ok(Image { chain, config: document.config.unwrap_or_default() })
    }

    /// The manifest for this machine below a list, or the one itself.
    async fn manifest(&self, mut target: Descriptor) -> Result<Manifest, Unfit> {
        let of_machine = self.engine.facts().architecture;
        for _ in 0..DEEPEST {
            let found: Manifest = self.document(&target.digest).await?;
            if found.manifests.is_empty() {
                return Ok(found);
            }
            let mut fits: Vec<Target> = found.manifests.into_iter().filter(|of| is_for(of, of_machine)).collect();
            // A list may name what was never fetched.
            target = loop {
                match fits.is_empty() {
                    true => return Err(Unfit::Missing),
                    false => {
                        let first = fits.remove(0);
                        if self.engine.has(&first.digest).await? {
                            break first.into();
                        }
                    }
                }
            };
        }
        Err(Unfit::Invalid("its lists lead to lists".to_owned()))
    }

    async fn document<T: for<'de> Deserialize<'de>>(&self, digest: &str) -> Result<T, Unfit> {
        let bytes = self.engine.read(digest).await?.ok_or(Unfit::Missing)?;
        serde_json::from_slice(&bytes).map_err(|error| Unfit::Invalid(format!("{digest} cannot be read: {error}")))
    }

    async fn unpack(
        &self,
        layers: Vec<Target>,
        diff_ids: &[String],
        chains: &[String],
        config: &str,
    ) -> Result<(), Unfit> {
        let _turn = self.unpacking.lock().await;
        for layer in &layers {
            if !self.engine.has(&layer.digest).await? {
                return Err(Unfit::Missing);
            }
        }
        let lease = self.engine.lease().await?;
        let mut parent = "";
        let mut unpacked = Ok(());
        for ((layer, diff_id), chain) in layers.into_iter().zip(diff_ids).zip(chains) {
            unpacked = match self.engine.has_snapshot(chain).await {
                Ok(true) => Ok(()),
                Ok(false) => self.engine.unpack(layer.into(), diff_id, parent, chain, &lease).await,
                Err(status) => Err(status),
            };
            if unpacked.is_err() {
                break;
            }
            parent = chain;
        }
        if unpacked.is_ok() {
            // From now on the image holds its snapshots.
            let label = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
            unpacked = self.engine.label(config, HashMap::from([(label, parent.to_owned())])).await;
        }
        self.engine.give_back(lease).await;
        Ok(unpacked?)
    }

    /// Makes a name of what the content store has, or gives an old one a new meaning.
    pub(super) async fn name(&self, name: &ImageName, target: Descriptor) -> Result<(), Status> {
        let image = Record { name: name.to_string(), target: Some(target), ..Record::default() };
        let request = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        match self.engine.ask(PATIENCE, self.engine.images().create(ours(request))).await {
            Err(status) if is_there(&status) => {
                let request = UpdateImageRequest { image: Some(image), ..UpdateImageRequest::default() };
                self.engine.ask(PATIENCE, self.engine.images().update(ours(request))).await.map(|_| ())
            }
            made => made.map(|_| ()),
        }
    }

    /// Takes an image as files, and gives it this name.
    pub(super) async fn take(
        &self,
        name: &ImageName,
        manifest: Descriptor,
        places: &HashMap<String, Piece>,
    ) -> Result<(), ImportError> {
        let lease = self.engine.lease().await?;
        let stored = self.store(&lease, manifest, places).await;
        let named = match stored {
            Ok(manifest) => self.name(name, manifest).await.map_err(ImportError::from),
            Err(error) => Err(error),
        };
        // Only now does the name hold what was written.
        self.engine.give_back(lease).await;
        named
    }

    /// Writes the manifest with all that it names: each blob from its place. Returns the manifest's descriptor.
    pub(super) async fn store(
        &self,
        lease: &Lease,
        manifest: Descriptor,
        places: &HashMap<String, Piece>,
    ) -> Result<Descriptor, ImportError> {
        let place = |digest: &str| {
            places.get(digest).cloned().ok_or_else(|| ImportError::Archive(format!("the blob {digest} is missing")))
        };
        let of_manifest = place(&manifest.digest)?;
        let bytes = tokio::task::spawn_blocking({
            let piece = of_manifest.clone();
            move || read(&piece)
        });
        let bytes = bytes.await.unwrap_or_else(|_| Err(std::io::Error::other("reading panicked")))?;
        let parsed: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| ImportError::Archive(error.to_string()))?;
        let config =
            parsed.config.ok_or_else(|| ImportError::Archive("a manifest names no configuration".to_owned()))?;
        let mut labels = HashMap::from([("containerd.io/gc.ref.content.config".to_owned(), config.digest.clone())]);
        for (at, layer) in parsed.layers.iter().enumerate() {
            self.engine.write(lease, &layer.digest, place(&layer.digest)?, HashMap::new()).await?;
            labels.insert(format!("containerd.io/gc.ref.content.l.{at}"), layer.digest.clone());
        }
        self.engine.write(lease, &config.digest, place(&config.digest)?, HashMap::new()).await?;
        self.engine.write(lease, &manifest.digest, of_manifest, labels).await?;
        Ok(manifest)
    }
}

/// All of a small piece.
pub(super) fn read(piece: &Piece) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(&piece.file)?;
    file.seek(SeekFrom::Start(piece.offset))?;
    let mut bytes = Vec::new();
    file.take(piece.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether what a list names is for this machine; what does not say is for all.
pub(super) fn is_for(target: &Target, architecture: &str) -> bool {
    target.platform.as_ref().is_none_or(|of| of.os == "linux" && runs_here(&of.architecture, architecture))
}

fn runs_here(image: &str, machine: &str) -> bool {
    image == machine || matches!((image, machine), ("386", "amd64") | ("arm", "arm64"))
}

/// The name of the snapshot after each layer, by the rules of OCI: each is the hash of all up to it.
fn chains(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            None => diff_id.clone(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        };
        chains.push(chain);
    }
    chains
}

/// `sha256:…` of these bytes.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_all_below_it() {
        let ids = ["sha256:a".to_owned(), "sha256:b".to_owned(), "sha256:c".to_owned()];
        let chains = chains(&ids);
        assert_eq!(chains[0], "sha256:a");
        assert_eq!(chains[1], sha256(b"sha256:a sha256:b"));
        assert_eq!(chains[2], sha256(format!("{} sha256:c", chains[1]).as_bytes()));
    }

    #[test]
    fn only_what_runs_on_this_machine_is_taken_from_a_list() {
        let target = |os: &str, architecture: &str| Target {
            platform: Some(Platform { os: os.to_owned(), architecture: architecture.to_owned() }),
            ..Target::default()
        };
        assert!(is_for(&target("linux", "amd64"), "amd64") && is_for(&target("linux", "386"), "amd64"));
        assert!(!is_for(&target("linux", "arm64"), "amd64") && !is_for(&target("windows", "amd64"), "amd64"));
        assert!(!is_for(&target("unknown", "unknown"), "amd64"), "an attestation");
        assert!(is_for(&Target::default(), "amd64"));
    }
}
