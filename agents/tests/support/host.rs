//! A git host: the real `git http-backend` behind HTTP, for whoever has the login. This file is part of two packages.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Serves repositories until it is dropped.
pub struct Host {
    /// Of the folder.
    pub url: String,
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
    answers: Answers,
    logins: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Clone)]
enum Answers {
    /// The repositories of a folder, for this value of `Authorization`.
    Folder(PathBuf, String),
    /// Go there.
    Elsewhere(String),
}

impl Host {
    /// Serves the repositories of a folder, to be fetched from and pushed to by this user with this token.
    pub async fn of(folder: &Path, user: &str, token: &str) -> Self {
        let login = format!("Basic {}", STANDARD.encode(format!("{user}:{token}")));
        Self::serve(Answers::Folder(folder.to_owned(), login)).await
    }

    /// Sends everybody on to another.
    #[allow(dead_code, reason = "this file is part of two packages")]
    pub async fn elsewhere(url: &str) -> Self {
        Self::serve(Answers::Elsewhere(url.to_owned())).await
    }

    /// What came in `Authorization`.
    #[allow(dead_code, reason = "this file is part of two packages")]
    pub fn logins(&self) -> BTreeSet<String> {
        self.logins.lock().expect("nobody panics with it").clone()
    }

    async fn serve(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let logins: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let serve = Serve { answers, logins: logins.clone() };
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who goes away in the middle is not answered.
                tokio::spawn(serve.clone().answer(stream));
            }
        });
        Self { url, logins, serving }
    }
}

impl Serve {
    async fn answer(self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_until(b'\n', &mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let login = header("authorization");
        self.logins.lock().expect("nobody panics with it").extend(login.clone());
        let (root, right) = match self.answers {
            Answers::Folder(root, right) => (root, right),
            Answers::Elsewhere(url) => {
                let answer = format!(
                    "HTTP/1.1 301 Moved\r\nLocation: {url}{target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                return stream.write_all(answer.as_bytes()).await;
            }
        };
        if login != Some(right) {
            let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\n\
                           Connection: close\r\n\r\n";
            return stream.write_all(refusal.as_bytes()).await;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut backend = tokio::process::Command::new("git")
            .args(["-c", "http.receivepack=true", "http-backend"])
            .env("GIT_PROJECT_ROOT", &root)
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
            .spawn()?;
        let mut stdin = backend.stdin.take().expect("it is piped");
        let send = async move { stdin.write_all(&body).await };
        let (_, output) = tokio::join!(send, backend.wait_with_output());
        let output = output?.stdout;
        let status = match output.strip_prefix(b"Status: ") {
            Some(rest) => {
                String::from_utf8_lossy(rest.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned()
            }
            None => "200 OK".to_owned(),
        };
        stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n").as_bytes()).await?;
        stream.write_all(&output).await?;
        stream.shutdown().await
    }
}
