//! A remote that wants a login, behind the real `git http-backend`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use schemas::Code;
use shoal_agents::git::{Login, Pushed};
use shoal_agents::secret::{Mask, Secret};
use shoal_agents::workspace::Remote;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{BRANCH, Origin, Worker, allowed, executable, git, order, want, write};

const TOKEN: &str = "tok-8f2e1c";

/// Serves a folder of repositories to whoever has the token.
struct Host {
    url: String,
    /// What came in `Authorization`.
    logins: Arc<Mutex<BTreeSet<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone)]
struct Serve {
    root: PathBuf,
    logins: Arc<Mutex<BTreeSet<String>>>,
    /// Sends everybody there.
    elsewhere: Option<String>,
}

impl Host {
    async fn new(origin: &Origin, elsewhere: Option<String>) -> Self {
        git(&origin.path(), ["config", "http.receivepack", "true"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let logins: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let serve = Serve { root: origin.folder.path().to_owned(), logins: logins.clone(), elsewhere };
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve.clone().answer(stream));
            }
        });
        Self { url, logins, serving }
    }

    fn remote(&self, token: Option<&str>) -> Remote {
        let login = token.map(|token| Login { user: "shoal".to_owned(), token: Secret::new(token.to_owned()).into() });
        Remote { url: format!("{}/origin.git", self.url), login, mask: Mask::default() }
    }
}

impl Serve {
    async fn answer(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_until(b'\n', &mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8(head).unwrap();
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).await.unwrap();
        let login = header("authorization");
        self.logins.lock().unwrap().extend(login.clone());
        if let Some(elsewhere) = &self.elsewhere {
            let answer = format!(
                "HTTP/1.1 301 Moved\r\nLocation: {elsewhere}{target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            return;
        }
        use base64::Engine;
        let right = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("shoal:{TOKEN}")));
        if login.as_deref() != Some(&right) {
            let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            return;
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut backend = tokio::process::Command::new("git")
            .args(["http-backend"])
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("REQUEST_METHOD", method)
            .env("REMOTE_USER", "shoal")
            .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
            .env("CONTENT_LENGTH", body.len().to_string())
            .env("HTTP_CONTENT_ENCODING", header("content-encoding").unwrap_or_default())
            .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = backend.stdin.take().unwrap();
        let send = async move {
            stdin.write_all(&body).await.unwrap();
        };
        let (_, output) = tokio::join!(send, backend.wait_with_output());
        let output = output.unwrap().stdout;
        let status = match output.strip_prefix(b"Status: ") {
            Some(rest) => String::from_utf8_lossy(rest.split(|byte| *byte == b'\r').next().unwrap()).into_owned(),
            None => "200 OK".to_owned(),
        };
        stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n").as_bytes()).await.unwrap();
        stream.write_all(&output).await.unwrap();
        stream.shutdown().await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_by_askpass_fetches_and_pushes_and_the_token_is_nowhere() {
    let origin = Origin::new();
    let host = Host::new(&origin, None).await;
    // What git is started with.
    let program = origin.folder.path().join("git");
    let seen = origin.folder.path().join("seen");
    executable(&program, &format!("#!/bin/sh\necho \"$@\" >> {0}\nexec git \"$@\"\n", seen.display()));
    let worker = Worker::with(Default::default(), shoal_agents::git::Settings { program, ..allowed() }).await;
    let (mut slot, fetched) = worker.begin(&host.remote(Some(TOKEN))).await;
    write(&slot.tree(), "new", "x\n");
    let order = order(&slot, &fetched).await;
    assert_eq!(slot.push(&order).await.unwrap(), Pushed::Done);
    assert_eq!(origin.show(BRANCH, "new"), "x");
    assert!(!host.logins.lock().unwrap().is_empty());
    assert!(!std::fs::read_to_string(seen).unwrap().contains(TOKEN), "in no argument");
    let found = std::process::Command::new("grep").args(["-r", "-l", TOKEN]).arg(worker.root.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "in no file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_or_missing_is_told_without_the_token() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let host = Host::new(&origin, None).await;
    for token in [Some("tok-wrong-1"), None] {
        let mut slot = worker.all.take(&host.remote(token)).await.unwrap();
        let error = slot.fetch(&want()).await.unwrap_err().to_task_error();
        assert_eq!((error.code, error.retryable), (Code::GitLoginRefused, false), "{error:?}");
        assert!(!error.message.contains("tok-wrong-1"), "{error:?}");
    }
    let none = Remote { url: format!("{}/none.git", host.url), ..host.remote(Some(TOKEN)) };
    let mut slot = worker.all.take(&none).await.unwrap();
    assert_eq!(slot.fetch(&want()).await.unwrap_err().to_task_error().code, Code::RepositoryNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_given_to_its_own_host_alone() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let thief = Host::new(&origin, None).await;
    let host = Host::new(&origin, Some(thief.url.clone())).await;
    let mut slot = worker.all.take(&host.remote(Some(TOKEN))).await.unwrap();
    let error = slot.fetch(&want()).await.unwrap_err().to_task_error();
    assert_eq!(error.code, Code::GitLoginRefused, "{error:?}");
    assert!(thief.logins.lock().unwrap().is_empty(), "redirected, nobody answers");
}
