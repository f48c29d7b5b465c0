//! Remote and model that only a proxy of the worker's environment reaches, which asks for a login.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use schemas::{Code, State};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::host::Host;
use super::tls::{Front, TOKEN, certificate};
use super::{World, mends, succeeded};
use crate::support::repo::RIGHT;

const REMOTE: &str = "git.example.test";
const MODEL: &str = "model.example.test";
const PASSWORD: &str = "the-passwords-of-proxies-are-masked";

/// A tunnel to the places that it knows by name, for whoever has the login; until it is dropped.
struct Proxy {
    port: u16,
    /// Where it was asked to go to, with the right login.
    asked: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Proxy {
    async fn to(places: &[(&str, u16)]) -> Self {
        let places: Arc<BTreeMap<String, u16>> =
            Arc::new(places.iter().map(|(name, port)| (format!("{name}:443"), *port)).collect());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heard = asked.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One that breaks off is its caller's trouble.
                tokio::spawn(tunnel(stream, places.clone(), heard.clone()));
            }
        });
        Self { port, asked, serving }
    }

    /// How the worker is told of it.
    fn url(&self, password: &str) -> String {
        format!("http://shoal:{password}@127.0.0.1:{}", self.port)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nothing panics with it").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn tunnel(
    stream: TcpStream,
    places: Arc<BTreeMap<String, u16>>,
    asked: Arc<Mutex<Vec<String>>>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? <= 2 {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let login = base64::engine::general_purpose::STANDARD.encode(format!("shoal:{PASSWORD}"));
    let may =
        lines.iter().any(|line| line.to_lowercase().starts_with("proxy-authorization:") && line.ends_with(&login));
    if !may {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"test\"\r\n\
                       Content-Length: 0\r\nConnection: close\r\n\r\n";
        return stream.write_all(refusal.as_bytes()).await;
    }
    let mut words = lines.first().map(String::as_str).unwrap_or_default().split(' ');
    let (verb, place) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    asked.lock().expect("nothing panics with it").push(place.to_owned());
    let (Some(port), "CONNECT") = (places.get(place), verb) else {
        return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    };
    let mut there = TcpStream::connect(("127.0.0.1", *port)).await?;
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut stream, &mut there).await.map(|_| ())
}

#[tokio::test]
async fn remote_and_model_are_reached_through_the_proxy_of_the_workers_environment() {
    let world = World::of(mends()).await;
    let folder = world.fleet.folder().to_owned();
    certificate(&folder, &[REMOTE, MODEL]);
    let host = Host::of(&folder, "x-access-token", TOKEN).await;
    let (remote, model) = (Front::of(&host.url, &folder), Front::of(&world.model.endpoint, &folder));
    let proxy = Proxy::to(&[(REMOTE, remote.port()), (MODEL, model.port())]).await;
    let job = world.job(json!({"repository": format!("https://{REMOTE}/remote.git")}));
    let builder = |name: &str, password: &str| {
        let builder = world.builder(name).queues(name).env("GIT_TOKEN", TOKEN).env("https_proxy", &proxy.url(password));
        let builder = builder.env("SSL_CERT_FILE", &folder.join("cert.pem").display().to_string());
        let builder = builder.env("SHOAL_ALLOWED_REPOSITORIES", &format!("https://{REMOTE}/**"));
        builder.env("SHOAL_MODEL_ENDPOINT", &format!("https://{MODEL}/v1"))
    };
    let _worker = builder("w", PASSWORD).start().await;
    let record = world.fleet.run("w.t", &job).await;
    succeeded(&record);
    assert_eq!(world.repo.file("feature/task-t-add-do-not-subtract", "add.sh").as_deref(), Some(RIGHT));
    world.model_is_content();
    let asked = proxy.asked();
    for place in [REMOTE, MODEL] {
        assert!(asked.iter().any(|it| *it == format!("{place}:443")), "{place}: {asked:?}");
    }

    let wrong = "not-the-password-of-this-proxy";
    let _stranger = builder("stranger", wrong).start().await;
    let record = world.fleet.run("stranger.s", &job).await;
    let error = record.error.as_ref().expect("an error");
    assert_eq!((record.state, error.code), (State::Failed, Code::RepositoryUnreachable), "{error:?}");
    assert!(error.message.contains("407") || error.message.contains("proxy"), "{error:?}");
    for (key, id, password) in [("w.t", "t", PASSWORD), ("stranger.s", "s", wrong)] {
        let record = world.fleet.record(key).await.expect("it is there");
        let log = world.fleet.shoal(&["logs", id]).await.ok().stdout;
        let told = format!("{record:?} {:?} {log}", world.told(id).await);
        assert!(!told.contains(password), "{told}");
    }
}
