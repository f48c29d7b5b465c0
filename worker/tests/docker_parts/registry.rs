//! An image registry: the HTTP API v2 of those as far as a pull goes, on 127.0.0.1, which every engine takes without
//! TLS. It counts, and can be slow, refuse, lie and want a password.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

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
    /// So many bytes a second.
    Slow(usize),
}

#[derive(Default)]
struct State {
    /// By path: content type and bytes.
    files: HashMap<String, (&'static str, Vec<u8>)>,
    /// Paths asked for by GET.
    requests: Vec<String>,
    /// For paths with this part.
    fault: Option<(&'static str, Fault)>,
    /// `user:password`.
    login: Option<String>,
    /// Answers that nobody took to their end.
    given_up: usize,
}

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// In the paths of manifests, and in those of the rest.
pub const MANIFESTS: &str = "/manifests/";
pub const BLOBS: &str = "/blobs/";

impl Registry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    if serve(stream, &state).await.is_err() {
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

    pub fn host(&self) -> &str {
        &self.host
    }

    /// From now on.
    pub fn set_fault(&self, fault: Option<(&'static str, Fault)>) {
        self.state().fault = fault;
    }

    /// From now on, as `user:password`.
    pub fn want_login(&self, login: &str) {
        self.state().login = Some(login.to_owned());
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
async fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    let line = String::from_utf8_lossy(&line).into_owned();
    let (method, path) = match line.split(' ').collect::<Vec<_>>()[..] {
        [method @ ("GET" | "HEAD"), path, _] => (method, path),
        _ => return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await,
    };
    let (mut offset, mut login) = (0, None);
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.split_once(':') else { break };
        match &*name.to_ascii_lowercase() {
            "range" => offset = value.trim().trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0),
            "authorization" => login = value.trim().strip_prefix("Basic ").map(str::to_owned),
            _ => {}
        }
    }
    let (file, fault, is_allowed) = {
        let mut state = state.lock().unwrap();
        if method == "GET" {
            state.requests.push(path.to_owned());
        }
        let fault = state.fault.filter(|(part, _)| path.contains(part)).map(|(_, fault)| fault);
        let is_allowed = state.login.as_ref().is_none_or(|wanted| login == Some(STANDARD.encode(wanted)));
        (state.files.get(path).cloned(), fault, is_allowed)
    };
    let (status, kind, whole) = match (fault, file) {
        _ if !is_allowed => (401, "application/json", errors("UNAUTHORIZED", "authentication required")),
        (Some(Fault::Status(status)), _) => (status, "application/json", b"{}".to_vec()),
        (_, Some((kind, body))) => (if offset > 0 { 206 } else { 200 }, kind, body),
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
        Some(Fault::Corrupt | Fault::Status(_)) | None => {}
    }
    let head = format!(
        "HTTP/1.1 {status} said\r\nConnection: close\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
         WWW-Authenticate: Basic realm=\"test\"\r\nDocker-Content-Digest: {}\r\nContent-Type: {kind}\r\n\
         Accept-Ranges: bytes\r\nContent-Range: bytes {offset}-{}/{}\r\nContent-Length: {}\r\n\r\n",
        digest(&whole),
        whole.len().saturating_sub(1),
        whole.len(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
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
