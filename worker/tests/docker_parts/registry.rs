//! An image registry: the HTTP API v2 of those as far as a pull goes, on 127.0.0.1, which every engine takes without
//! TLS; or with TLS, by an authority of its own. It counts, and can be slow, refuse, lie, hang up and want a password.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::support::{Engine, busybox, random_word};

pub struct Registry {
    host: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

/// What goes wrong with each request of a path.
#[derive(Clone, Copy)]
pub enum Fault {
    Status(u16),
    /// One byte is another.
    Corrupt,
    /// The connection ends in the middle of the answer.
    Cut,
    /// So many bytes a second.
    Slow(usize),
}

/// Who signs certificates that nobody else knows.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn acceptor(&self, host: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap()))
    }
}

#[derive(Default)]
struct State {
    /// By path: content type and bytes.
    files: HashMap<String, (&'static str, Vec<u8>)>,
    /// Paths asked for by GET.
    requests: Vec<String>,
    /// For paths with this part, so many times yet.
    fault: Option<(&'static str, Fault, usize)>,
    /// `user:password`.
    login: Option<String>,
    /// The login is for a token, which is for the rest.
    by_token: bool,
    /// Who asked.
    agents: Vec<String>,
    /// Answers that nobody took to their end.
    given_up: usize,
}

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TOKEN: &str = "only-for-this-test";
/// In the paths of manifests, and in those of the rest.
pub const MANIFESTS: &str = "/manifests/";
pub const BLOBS: &str = "/blobs/";

impl Registry {
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// With a certificate for `host`, which is 127.0.0.1 unless it is to be wrong.
    pub async fn start_tls(authority: &Authority, host: &str) -> Self {
        Self::serve(Some(authority.acceptor(host))).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    let served = match tls {
                        None => serve(stream, &state).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &state).await,
                            Err(_) => return,
                        },
                    };
                    if served.is_err() {
                        state.lock().unwrap().given_up += 1;
                    }
                });
            }
        });
        Self { host, state, server }
    }

    /// Puts up an image like no other; what it is called. The engine forgets it with the test.
    pub fn push(&self, engine: &Engine, name: &str, architecture: &str) -> String {
        let layer = busybox(random_word().as_bytes());
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"], "WorkingDir": "/app", "User": "7"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}, "history": [{"created": "2026-01-01T00:00:00Z"}],
        });
        let config = config.to_string().into_bytes();
        let part = |kind, bytes: &[u8]| json!({"mediaType": kind, "size": bytes.len(), "digest": digest(bytes)});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": part(CONFIG, &config), "layers": [part(LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut state = self.state();
        for pick in [digest(&manifest), "latest".to_owned()] {
            state.files.insert(format!("/v2/{name}{MANIFESTS}{pick}"), (MANIFEST, manifest.clone()));
        }
        for (kind, bytes) in [(CONFIG, config), (LAYER, layer)] {
            state.files.insert(format!("/v2/{name}{BLOBS}{}", digest(&bytes)), (kind, bytes));
        }
        let image = format!("{}/{name}", self.host);
        engine.forget(&format!("{image}:latest"));
        image
    }

    /// Puts up an index of images that are there, by architecture.
    pub fn push_index(&self, name: &str, images: &[(&str, &str)]) -> String {
        let mut state = self.state();
        let entry = |(architecture, name): &(&str, &str)| {
            let bytes = &state.files[&format!("/v2/{name}{MANIFESTS}latest")].1;
            json!({
                "mediaType": MANIFEST, "size": bytes.len(), "digest": digest(bytes),
                "platform": {"os": "linux", "architecture": architecture},
            })
        };
        let manifests: Vec<_> = images.iter().map(entry).collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string().into_bytes();
        let of_images: Vec<_> = state.files.iter().map(|(path, file)| (path.clone(), file.clone())).collect();
        for (path, file) in of_images {
            // All of them in the one repository.
            let rest = images.iter().find_map(|(_, from)| path.strip_prefix(&format!("/v2/{from}")));
            if let Some(rest) = rest.filter(|rest| rest.contains("sha256:")) {
                state.files.insert(format!("/v2/{name}{rest}"), file);
            }
        }
        for pick in [digest(&index), "latest".to_owned()] {
            state.files.insert(format!("/v2/{name}{MANIFESTS}{pick}"), (INDEX, index.clone()));
        }
        format!("{}/{name}", self.host)
    }

    /// The digest of the manifest that has this name now.
    pub fn digest_of(&self, name: &str) -> String {
        digest(&self.state().files[&format!("/v2/{name}{MANIFESTS}latest")].1)
    }

    /// Who asked, by the names of their programs.
    pub fn agents(&self) -> Vec<String> {
        self.state().agents.clone()
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// From now on.
    pub fn set_fault(&self, fault: Option<(&'static str, Fault)>) {
        self.state().fault = fault.map(|(part, fault)| (part, fault, usize::MAX));
    }

    /// So many times.
    pub fn fail(&self, part: &'static str, fault: Fault, times: usize) {
        self.state().fault = Some((part, fault, times));
    }

    /// From now on, as `user:password`.
    pub fn want_login(&self, login: &str) {
        self.state().login = Some(login.to_owned());
    }

    /// The same by the way of the large ones: the login gets a token, and the token the rest.
    pub fn want_token(&self, login: &str) {
        let mut state = self.state();
        (state.login, state.by_token) = (Some(login.to_owned()), true);
    }

    /// How often a path with this part was asked for.
    pub fn asked(&self, part: &str) -> usize {
        self.state().requests.iter().filter(|path| path.contains(part)).count()
    }

    /// How many answers nobody took to their end.
    pub fn given_up(&self) -> usize {
        self.state().given_up
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One request; one that begins TLS gets an answer it understands, and comes again without.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: &Mutex<State>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    let line = String::from_utf8_lossy(&line).into_owned();
    let (method, path) = match line.split(' ').collect::<Vec<_>>()[..] {
        [method @ ("GET" | "HEAD"), path, _] => (method, path),
        _ => return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await,
    };
    let (mut offset, mut login, mut token, mut host) = (0, None, None, String::new());
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.split_once(':') else { break };
        match &*name.to_ascii_lowercase() {
            "range" => offset = value.trim().trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0),
            "authorization" => {
                login = value.trim().strip_prefix("Basic ").map(str::to_owned);
                token = value.trim().strip_prefix("Bearer ").map(str::to_owned);
            }
            "host" => host = value.trim().to_owned(),
            "user-agent" => state.lock().unwrap().agents.push(value.trim().to_owned()),
            _ => {}
        }
    }
    let by_token = state.lock().unwrap().by_token;
    let (file, fault, is_allowed) = {
        let mut state = state.lock().unwrap();
        if method == "GET" {
            state.requests.push(path.to_owned());
        }
        let fault = state.fault.as_mut().filter(|(part, _, times)| path.contains(*part) && *times > 0);
        let fault = fault.map(|(_, fault, times)| {
            *times -= 1;
            *fault
        });
        let has_login = state.login.as_ref().is_none_or(|wanted| login == Some(STANDARD.encode(wanted)));
        let is_allowed = match by_token && !path.starts_with("/token") {
            true => token.as_deref() == Some(TOKEN),
            false => has_login,
        };
        (state.files.get(path).cloned(), fault, is_allowed)
    };
    let (status, kind, whole) = match (fault, file) {
        _ if !is_allowed => (401, "application/json", errors("UNAUTHORIZED", "authentication required")),
        (Some(Fault::Status(status)), _) => (status, "application/json", b"{}".to_vec()),
        (_, Some((kind, body))) => (if offset > 0 { 206 } else { 200 }, kind, body),
        (_, None) if path.starts_with("/token?") && path.contains("scope=repository") => {
            (200, "application/json", json!({"token": TOKEN}).to_string().into_bytes())
        }
        (_, None) if path == "/v2/" => (200, "application/json", b"{}".to_vec()),
        (_, None) => (404, "application/json", errors("MANIFEST_UNKNOWN", "manifest unknown")),
    };
    let mut body = whole[offset.min(whole.len())..].to_vec();
    let mut rate = usize::MAX;
    match fault {
        Some(Fault::Corrupt) if !body.is_empty() => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        Some(Fault::Slow(bytes)) => rate = bytes / 20,
        Some(Fault::Corrupt | Fault::Status(_) | Fault::Cut) | None => {}
    }
    let challenge = match by_token {
        true => format!("Bearer realm=\"http://{host}/token\",service=\"test\""),
        false => "Basic realm=\"test\"".to_owned(),
    };
    let head = format!(
        "HTTP/1.1 {status} said\r\nConnection: close\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
         WWW-Authenticate: {challenge}\r\nDocker-Content-Digest: {}\r\nContent-Type: {kind}\r\n\
         Accept-Ranges: bytes\r\nContent-Range: bytes {offset}-{}/{}\r\nContent-Length: {}\r\n\r\n",
        digest(&whole),
        whole.len().saturating_sub(1),
        whole.len(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if matches!(fault, Some(Fault::Cut)) {
        body.truncate(body.len() / 2);
    }
    if method == "GET" {
        for piece in body.chunks(rate.clamp(1, 1 << 20)) {
            stream.write_all(piece).await?;
            if rate != usize::MAX {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    stream.shutdown().await
}

fn errors(code: &str, message: &str) -> Vec<u8> {
    json!({"errors": [{"code": code, "message": message}]}).to_string().into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
