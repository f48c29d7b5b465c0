//! An image registry: the HTTP API v2 of those, as far as a pull goes, over plain HTTP on 127.0.0.1, which every engine
//! takes as insecure by itself. It counts what is asked, and can be slow, refuse, lie and hang up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{Engine, random_word};

/// A registry with images of its own.
pub struct Registry {
    host: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// This status instead of the answer.
    Status(u16),
    /// One byte is another.
    Corrupt,
    /// The connection ends in the middle of the body.
    Cut,
    /// The body comes at so many bytes a second.
    Slow(usize),
}

#[derive(Default)]
struct State {
    /// Path, content type, bytes.
    files: Vec<(String, &'static str, Vec<u8>)>,
    /// Paths that were asked for by GET, in order.
    requests: Vec<String>,
    /// For paths that contain this; how often yet.
    faults: Vec<(String, Fault, usize)>,
}

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

impl Registry {
    /// An empty one on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let host = listener.local_addr().expect("its address").to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { host, state, server }
    }

    /// Puts up an image: busybox as `sh`, and `padding` bytes that no other image has. What it is called, for a task;
    /// the engine forgets it with the test.
    pub fn push(&self, engine: &Engine, name: &str, padding: usize) -> String {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
        let mut layer = Vec::new();
        entry(&mut layer, "bin/busybox", b'0', "", &busybox.expect("a static busybox"));
        for applet in ["sh", "echo", "sleep", "true", "cat"] {
            entry(&mut layer, &format!("bin/{applet}"), b'2', "busybox", &[]);
        }
        let mut noise = random_word().into_bytes();
        noise.resize(noise.len() + padding, b'.');
        entry(&mut layer, "padding", b'0', "", &noise);
        layer.resize(layer.len() + 1024, 0);

        let config = json!({
            "architecture": architecture(), "os": "linux", "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}, "history": [{"created": "2026-01-01T00:00:00Z"}],
        });
        let config = config.to_string().into_bytes();
        let part = |kind, bytes: &[u8]| json!({"mediaType": kind, "size": bytes.len(), "digest": digest(bytes)});
        let manifest: Value = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": part(CONFIG, &config), "layers": [part(LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut state = self.state();
        let manifests = format!("/v2/{name}/manifests/");
        state.files.retain(|(path, ..)| *path != format!("{manifests}latest"));
        state.files.push((format!("{manifests}{}", digest(&manifest)), MANIFEST, manifest.clone()));
        state.files.push((format!("{manifests}latest"), MANIFEST, manifest));
        for (bytes, kind) in [(config, CONFIG), (layer, LAYER)] {
            state.files.push((format!("/v2/{name}/blobs/{}", digest(&bytes)), kind, bytes));
        }
        drop(state);
        let image = self.image(name);
        engine.forget(&image);
        image
    }

    /// What an image of this name is called, whether it is there or not.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.host)
    }

    /// The next `times` requests of a path that contains `part` go wrong.
    pub fn fails(&self, part: &str, fault: Fault, times: usize) {
        self.state().faults.push((part.to_owned(), fault, times));
    }

    /// From now on nothing goes wrong.
    pub fn heals(&self) {
        self.state().faults.clear();
    }

    /// The path of an image's largest part, to be given to [`Registry::fails`].
    pub fn layer(&self, name: &str) -> String {
        let state = self.state();
        let layer = state.files.iter().rfind(|(path, kind, _)| *kind == LAYER && path.contains(name));
        layer.expect("that image").0.clone()
    }

    /// How often a path that contains `part` was asked for.
    pub fn asked(&self, part: &str) -> usize {
        self.state().requests.iter().filter(|path| path.contains(part)).count()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with it")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One request; a client that speaks TLS first gets an error it understands, and comes again without.
async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = Vec::new();
    stream.read_until(b'\n', &mut request).await?;
    let request = String::from_utf8_lossy(&request).into_owned();
    let (method, path) = match request.split(' ').collect::<Vec<_>>()[..] {
        [method @ ("GET" | "HEAD"), path, _] => (method, path),
        _ => return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await,
    };
    let mut offset = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            offset = range.trim().trim_end_matches('-').parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let (file, fault) = {
        let mut state = state.lock().expect("nothing panics with it");
        if method == "GET" {
            state.requests.push(path.to_owned());
        }
        let fault = state.faults.iter_mut().find(|(part, _, left)| path.contains(part.as_str()) && *left > 0);
        let fault = fault.map(|(_, fault, left)| {
            *left -= 1;
            *fault
        });
        let file = state.files.iter().find(|(of, ..)| of == path).cloned();
        (file, fault)
    };
    let (status, kind, mut body) = match (fault, file) {
        (Some(Fault::Status(status)), _) => (status, "application/json", b"{\"errors\":[]}".to_vec()),
        (_, Some((_, kind, body))) => (if offset > 0 { 206 } else { 200 }, kind, body),
        (_, None) if path == "/v2/" => (200, "application/json", b"{}".to_vec()),
        (_, None) => {
            let errors = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            (404, "application/json", errors.to_string().into_bytes())
        }
    };
    let content_digest = digest(&body);
    let whole = body.len();
    body.drain(..offset.min(whole));
    let mut rate = usize::MAX;
    let mut sent = body.len();
    match fault {
        Some(Fault::Corrupt) => body[sent / 2] ^= 1,
        Some(Fault::Cut) => sent /= 2,
        Some(Fault::Slow(bytes)) => rate = bytes / 20,
        Some(Fault::Status(_)) | None => {}
    }
    let head = format!(
        "HTTP/1.1 {status} said\r\nConnection: close\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
         Docker-Content-Digest: {content_digest}\r\nContent-Type: {kind}\r\nAccept-Ranges: bytes\r\n\
         Content-Range: bytes {offset}-{}/{whole}\r\nContent-Length: {}\r\n\r\n",
        whole.saturating_sub(1),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method == "GET" {
        for piece in body[..sent].chunks(rate.clamp(1, 1 << 20)) {
            stream.write_all(piece).await?;
            if rate != usize::MAX {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    stream.shutdown().await
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// One file or link of a tar, as POSIX has it.
fn entry(tar: &mut Vec<u8>, name: &str, kind: u8, link: &str, bytes: &[u8]) {
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", bytes.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(header);
    tar.extend(bytes);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
