//! A registry of one image, without TLS: enough of its protocol to be pulled from.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// By path: the type of the body, and the body.
type Answers = Arc<Mutex<HashMap<String, (String, Vec<u8>)>>>;

pub struct TinyRegistry {
    pub host: String,
    answers: Answers,
    /// Requests for layers.
    pub layers_asked: Arc<AtomicUsize>,
    _serving: tokio::task::JoinHandle<()>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl TinyRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let answers: Answers = Arc::default();
        let layers_asked = Arc::new(AtomicUsize::new(0));
        let (of, asked) = (answers.clone(), layers_asked.clone());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (of, asked) = (of.clone(), asked.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    if path.ends_with("#layer")
                        || of.lock().unwrap().get(&path).is_some_and(|(kind, _)| kind == "layer")
                    {
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                    let found = of.lock().unwrap().get(&path).cloned();
                    let (status, kind, body) = match found {
                        _ if path == "/v2/" => ("200 OK", "application/json".to_owned(), b"{}".to_vec()),
                        Some((kind, body)) => ("200 OK", kind, body),
                        None => (
                            "404 Not Found",
                            "application/json".to_owned(),
                            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#.to_vec(),
                        ),
                    };
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&body).await;
                });
            }
        });
        Self { host, answers, layers_asked, _serving: serving }
    }

    /// Puts an image of one layer there; its whole name.
    pub fn push(&self, name: &str, layer: Vec<u8>) -> String {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "os": "linux", "architecture": architecture, "config": {"Cmd": ["sh", "-c", "echo pulled"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(&layer), "size": layer.len()}],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut answers = self.answers.lock().unwrap();
        let mut put = |path: String, kind: &str, body: Vec<u8>| answers.insert(path, (kind.to_owned(), body));
        put(format!("/v2/{name}/blobs/{}", sha256(&layer)), "layer", layer);
        put(format!("/v2/{name}/blobs/{}", sha256(&config)), "application/octet-stream", config);
        put(format!("/v2/{name}/manifests/{}", sha256(&manifest)), MANIFEST, manifest.clone());
        put(format!("/v2/{name}/manifests/1"), MANIFEST, manifest);
        format!("{}/{name}:1", self.host)
    }
}
