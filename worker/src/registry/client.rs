//! One pull, from a name to files.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::manifest::{OciDescriptor, OciImageIndex, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncWrite;
use tokio::sync::watch;

use super::credentials::Credentials;
use super::error::PullError;
use super::settings::{Password, RegistrySettings, Scheme};
use crate::image::ImageName;

/// Layers at once, as Docker does.
const AT_ONCE: usize = 3;
/// How often a part is tried whose connection breaks.
const TRIES: u32 = 3;
/// Before the second try; doubled before the third.
const TRY_AGAIN: Duration = Duration::from_millis(300);
/// For a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// For the next bytes.
const SILENCE: Duration = Duration::from_secs(30);
/// Largest configuration of an image; real ones have some kilobytes.
const LARGEST_CONFIG: u64 = 8 << 20;

const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// What comes behind is the compression.
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// The registries, as this worker speaks to them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registries {
    settings: Arc<RegistrySettings>,
    credentials: Credentials,
}

/// The machine that an image is for, in the words of images: `linux`, `amd64`, and for ARM `v7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Which of its kinds, where it matters.
    pub variant: Option<String>,
}

/// An image as its registry has it now.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Its name.
    pub image: ImageName,
    /// Digest of the manifest of the platform: exactly this image.
    pub digest: String,
    /// Media type of the manifest.
    pub media_type: String,
    /// The manifest to the byte.
    pub manifest: Vec<u8>,
    /// Digest of its configuration: what Docker calls its id.
    pub config: String,
    parts: OciImageManifest,
    /// Who asked goes on asking.
    session: Arc<Session>,
}

/// An image as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Digest of the manifest of the platform: exactly this image.
    pub digest: String,
    /// The manifest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// Layers as they were pulled, the lowest first. The same layer may be there twice.
    pub layers: Vec<Blob>,
}

/// One file of an image, its digest verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// As `sha256:…`.
    pub digest: String,
    /// What is in it.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// Where it is.
    pub path: PathBuf,
}

/// How far a pull is; for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers that are complete.
    pub done: usize,
    /// Layers of the image.
    pub layers: usize,
    /// Bytes that came.
    pub bytes: u64,
    /// Bytes of all layers.
    pub of: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebi = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Self { done, layers, bytes, of } = self;
        write!(f, "{done} of {layers} layers, {:.1} of {:.1} MiB", mebi(*bytes), mebi(*of))
    }
}

impl Platform {
    /// The one that this program runs on.
    pub fn of_this_machine() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "x86" => ("386", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Registry, name and login of one pull.
struct Session {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
    image: String,
    registry: String,
}

impl Registries {
    /// As these settings say, with the passwords of `docker login` of this user.
    pub fn new(settings: RegistrySettings) -> Self {
        Self::with_credentials(settings, Credentials::of_this_user())
    }

    /// The same with passwords of another place.
    pub fn with_credentials(settings: RegistrySettings, credentials: Credentials) -> Self {
        Self { settings: Arc::new(settings), credentials }
    }

    /// Whether the settings speak of this registry.
    pub fn is_set(&self, registry: &str) -> bool {
        self.settings.get(registry).is_some()
    }

    /// Where passwords are looked for that the settings do not have.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The image, with config and layers as files in the folder `into`, which exists and is the caller's to remove. Cancel
    /// safe: what is there by then stays there.
    pub async fn pull(
        &self,
        image: &ImageName,
        platform: &Platform,
        into: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<Pulled, PullError> {
        let resolved = self.resolve(image, platform).await?;
        self.fetch(&resolved, into, progress).await
    }

    /// What the registry has under that name now, and nothing of it. Cancel safe.
    pub async fn resolve(&self, image: &ImageName, platform: &Platform) -> Result<Resolved, PullError> {
        Arc::new(self.session(image).await?).resolve(image, platform).await
    }

    /// The rest of a pull. Cancel safe: what is there by then stays there.
    pub async fn fetch(
        &self,
        resolved: &Resolved,
        into: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<Pulled, PullError> {
        resolved.session.fetch(resolved, into, progress).await
    }

    /// Logs in.
    async fn session(&self, image: &ImageName) -> Result<Session, PullError> {
        let registry = image.registry().to_owned();
        let setting = self.settings.get(&registry).cloned().unwrap_or_default();
        let unusable = |why: String| PullError::Setting { registry: registry.clone(), why };
        let auth = match &setting.login {
            Some((username, Password::Plain(password))) => RegistryAuth::Basic(username.clone(), password.clone()),
            Some((username, Password::File(file))) => {
                let password = tokio::fs::read_to_string(file).await;
                let password = password.map_err(|error| unusable(format!("{}: {error}", file.display())))?;
                RegistryAuth::Basic(username.clone(), password.trim_end_matches(['\r', '\n']).to_owned())
            }
            None => self.credentials.find(&registry).await.login.map_or(RegistryAuth::Anonymous, |login| login.auth()),
        };
        let certificates = match &setting.ca {
            Some(file) => {
                let pem =
                    tokio::fs::read(file).await.map_err(|error| unusable(format!("{}: {error}", file.display())))?;
                authorities(&pem).map_err(|why| unusable(format!("{}: {why}", file.display())))?
            }
            None => Vec::new(),
        };
        let config = ClientConfig {
            protocol: match setting.scheme {
                Scheme::Https => ClientProtocol::Https,
                Scheme::Http => ClientProtocol::Http,
            },
            extra_root_certificates: certificates,
            platform_resolver: None,
            connect_timeout: Some(CONNECT_WITHIN),
            read_timeout: Some(SILENCE),
            user_agent: concat!("shoal/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        // It reads and parses the system's authorities.
        let client = tokio::task::spawn_blocking(move || client(config)).await;
        let client = client.unwrap_or_else(|error| Err(error.to_string())).map_err(unusable)?;
        let name = image.to_string();
        let reference = name.parse::<Reference>().map_err(|error| {
            let why = error.to_string();
            PullError::Invalid { image: name.clone(), why }
        })?;
        Ok(Session { client, reference, auth, image: name, registry })
    }
}

fn client(config: ClientConfig) -> Result<Client, String> {
    // The library takes the process's own; another one that is there already is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // It would panic without any.
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(
            "this machine has no CA certificates at all; install `ca-certificates`, or set SSL_CERT_FILE".into()
        );
    }
    Client::try_from(config).map_err(|error| error.to_string())
}

fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut all = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|error| format!("it is no PEM of certificates: {error:?}"))?;
        all.push(Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() });
    }
    if all.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(all) }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("image", &self.image).finish_non_exhaustive()
    }
}

impl Session {
    fn failed(&self, error: oci_client::errors::OciDistributionError) -> PullError {
        PullError::of(error, &self.image, &self.registry, self.auth != RegistryAuth::Anonymous)
    }

    fn invalid(&self, why: impl Into<String>) -> PullError {
        PullError::Invalid { image: self.image.clone(), why: why.into() }
    }

    async fn resolve(self: Arc<Self>, image: &ImageName, platform: &Platform) -> Result<Resolved, PullError> {
        let login = || async {
            // Done by itself, too, but then nobody hears why it fails.
            let asked = self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await;
            asked.map_err(|error| self.failed(error))
        };
        again(login).await?;
        let (bytes, digest) = self.manifest(&self.reference).await?;
        let media_type = media_type(&bytes).map_err(|why| self.invalid(why))?;
        let (bytes, digest, media_type) = if INDEXES.contains(&media_type.as_str()) {
            let index: OciImageIndex =
                serde_json::from_slice(&bytes).map_err(|error| self.invalid(format!("its index: {error}")))?;
            let Some(digest) = choose(&index, platform) else {
                return Err(self.invalid(format!("it has no manifest for {platform}")));
            };
            let (bytes, digest) = self.manifest(&self.reference.clone_with_digest(digest)).await?;
            let media_type = self::media_type(&bytes).map_err(|why| self.invalid(why))?;
            (bytes, digest, media_type)
        } else {
            (bytes, digest, media_type)
        };
        if !MANIFESTS.contains(&media_type.as_str()) {
            return Err(self.invalid(format!("a manifest of the type `{media_type}` is none of an image")));
        }
        let parts: OciImageManifest =
            serde_json::from_slice(&bytes).map_err(|error| self.invalid(format!("its manifest: {error}")))?;
        self.check(&parts)?;
        let config = parts.config.digest.clone();
        let session = self.clone();
        Ok(Resolved { image: image.clone(), digest, media_type, manifest: bytes, config, parts, session })
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String), PullError> {
        let accepted = [MANIFESTS, INDEXES].concat();
        let ask = || async {
            let answer = self.client.pull_manifest_raw(reference, &self.auth, &accepted).await;
            answer.map_err(|error| self.failed(error))
        };
        let (bytes, digest) = again(ask).await?;
        Ok((bytes.to_vec(), digest))
    }

    /// Whether it is an image, and says nothing impossible.
    fn check(&self, parts: &OciImageManifest) -> Result<(), PullError> {
        if !CONFIGS.contains(&parts.config.media_type.as_str()) {
            return Err(self.invalid(format!("its configuration is of the type `{}`", parts.config.media_type)));
        }
        for part in parts.layers.iter().chain([&parts.config]) {
            if part.size < 0 || ImageName::parse(&format!("a@{}", part.digest)).is_err() {
                return Err(self.invalid(format!("it has a part `{}` of {} bytes", part.digest, part.size)));
            }
        }
        if parts.config.size.unsigned_abs() > LARGEST_CONFIG {
            return Err(self.invalid(format!("its configuration has {} bytes", parts.config.size)));
        }
        let is_layer = |kind: &str| {
            LAYERS.iter().any(|layer| {
                kind.strip_prefix(layer).is_some_and(|rest| matches!(rest, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd"))
            })
        };
        match parts.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            Some(layer) => Err(self.invalid(format!("it has a layer of the type `{}`", layer.media_type))),
            None => Ok(()),
        }
    }

    async fn fetch(
        &self,
        resolved: &Resolved,
        into: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<Pulled, PullError> {
        let parts = &resolved.parts;
        let of = parts.layers.iter().map(|layer| layer.size.unsigned_abs()).sum();
        progress.send_replace(Progress { layers: parts.layers.len(), of, ..Progress::default() });
        self.client.store_auth_if_needed(self.reference.resolve_registry(), &self.auth).await;

        let manifest = blob(into, &resolved.digest, &resolved.media_type, resolved.manifest.len() as u64);
        let written = tokio::fs::write(&manifest.path, &resolved.manifest).await;
        written.map_err(|source| PullError::Write { path: manifest.path.clone(), source })?;
        let config = self.part(&parts.config, into, None).await?;

        let (mut seen, mut fetching) = (BTreeSet::new(), Vec::new());
        for layer in &parts.layers {
            if seen.insert(layer.digest.as_str()) {
                fetching.push(self.part(layer, into, Some(progress)).boxed());
            }
        }
        let mut fetching = futures_util::stream::iter(fetching).buffer_unordered(AT_ONCE);
        while let Some(blob) = fetching.try_next().await? {
            let times = parts.layers.iter().filter(|layer| layer.digest == blob.digest).count();
            progress.send_modify(|progress| {
                progress.done += times;
                // A layer that is there twice came once.
                progress.bytes += blob.size * (times as u64 - 1);
            });
        }
        let layers = parts.layers.iter();
        let layers = layers.map(|layer| blob(into, &layer.digest, &layer.media_type, layer.size.unsigned_abs()));
        Ok(Pulled { digest: resolved.digest.clone(), manifest, config, layers: layers.collect() })
    }

    async fn part(
        &self,
        part: &OciDescriptor,
        into: &Path,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<Blob, PullError> {
        let blob = blob(into, &part.digest, &part.media_type, part.size.unsigned_abs());
        let download = || async {
            let unwritten = |source| PullError::Write { path: blob.path.clone(), source };
            let file = tokio::fs::File::create(&blob.path).await.map_err(unwritten)?;
            let mut sink = Sink { file, left: blob.size, came: 0, failed: None, progress };
            let pulled = self.client.pull_blob(&self.reference, part, &mut sink).await;
            let Sink { left, came, failed, .. } = sink;
            let ended = match (pulled, failed) {
                (_, Some(error)) => Err(unwritten(error)),
                (Ok(()), None) if left > 0 => {
                    let why = format!("{} is shorter than the {} bytes it should have", part.digest, blob.size);
                    Err(PullError::Digest { image: self.image.clone(), why })
                }
                (Ok(()), None) => Ok(()),
                (Err(_), None) if came > blob.size => {
                    let why = format!("{} is longer than the {} bytes it should have", part.digest, blob.size);
                    Err(PullError::Digest { image: self.image.clone(), why })
                }
                (Err(error), None) => Err(match self.failed(error) {
                    PullError::Passing { image, why } => {
                        PullError::Passing { image, why: format!("{}: {why}", part.digest) }
                    }
                    // The manifest is there, so the image is; what it names is not, for now.
                    PullError::NotFound { image, why, .. } => {
                        PullError::Passing { image, why: format!("the registry lacks {}: {why}", part.digest) }
                    }
                    error => error,
                }),
            };
            if ended.is_err()
                && let Some(progress) = progress
            {
                progress.send_modify(|progress| progress.bytes = progress.bytes.saturating_sub(blob.size - left));
            }
            ended
        };
        again(download).await?;
        Ok(blob)
    }
}

/// Tries what may pass some times.
async fn again<T, F: Future<Output = Result<T, PullError>>>(attempt: impl Fn() -> F) -> Result<T, PullError> {
    let (mut tries, mut pause) = (1, TRY_AGAIN);
    loop {
        match attempt().await {
            Err(error) if error.may_pass_soon() && tries < TRIES => {
                tracing::debug!(%error, "a pull tries again");
                tokio::time::sleep(pause).await;
                (tries, pause) = (tries + 1, pause * 2);
            }
            ended => return ended,
        }
    }
}

fn blob(into: &Path, digest: &str, media_type: &str, size: u64) -> Blob {
    let path = into.join(digest.replace(':', "-"));
    Blob { digest: digest.to_owned(), media_type: media_type.to_owned(), size, path }
}

/// The type that a manifest has by its own word; an older OCI one may leave it out.
fn media_type(manifest: &[u8]) -> Result<String, String> {
    let value: serde_json::Value =
        serde_json::from_slice(manifest).map_err(|error| format!("its manifest: {error}"))?;
    if value["schemaVersion"] != 2 {
        return Err("its manifest is of a version before 2; push it anew".to_owned());
    }
    let of_index = value["manifests"].is_array() && value["layers"].is_null();
    Ok(value["mediaType"].as_str().unwrap_or(if of_index { INDEXES[0] } else { MANIFESTS[0] }).to_owned())
}

/// The first that fits exactly, else the first whose variant is not told or does not matter.
fn choose(index: &OciImageIndex, platform: &Platform) -> Option<String> {
    let word = |of: &dyn fmt::Display| of.to_string();
    let fitting = index.manifests.iter().filter_map(|entry| {
        let of = entry.platform.as_ref()?;
        let fits = word(&of.os) == platform.os && word(&of.architecture) == platform.architecture;
        let variant_fits = match (&of.variant, &platform.variant) {
            (Some(of), Some(wanted)) if of != wanted => return None,
            (of, wanted) => of == wanted,
        };
        fits.then_some((!variant_fits, entry))
    });
    fitting.min_by_key(|(is_worse, _)| *is_worse).map(|(_, entry)| entry.digest.clone())
}

/// A file that takes no more than it should, and counts.
struct Sink<'a> {
    file: tokio::fs::File,
    left: u64,
    came: u64,
    /// Of the file, which the library would mix up with the network's.
    failed: Option<io::Error>,
    progress: Option<&'a watch::Sender<Progress>>,
}

impl Sink<'_> {
    fn file_failed(&mut self, error: &io::Error) {
        self.failed = Some(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error));
    }
}

impl AsyncWrite for Sink<'_> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() as u64 > self.left {
            self.came += bytes.len() as u64;
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        let written = std::task::ready!(Pin::new(&mut self.file).poll_write(context, bytes));
        match &written {
            Ok(count) => {
                let count = *count as u64;
                self.left -= count;
                self.came += count;
                if let Some(progress) = self.progress {
                    progress.send_modify(|progress| progress.bytes += count);
                }
            }
            Err(error) => self.file_failed(error),
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = std::task::ready!(Pin::new(&mut self.file).poll_flush(context));
        if let Err(error) = &flushed {
            self.file_failed(error);
        }
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(context)
    }
}
