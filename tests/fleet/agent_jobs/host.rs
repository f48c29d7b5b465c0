//! A git host: the real `git http-backend` behind HTTP, for whoever has the token.

use std::path::PathBuf;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::repo::Repo;

/// Serves repositories until it is dropped.
pub struct Host {
    /// Of the folder.
    pub url: String,
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
    login: String,
}

impl Host {
    /// Serves the folder of `repo`, to be fetched from and pushed to by this user with this token.
    pub async fn new(repo: &Repo, user: &str, token: &str) -> Self {
        repo.git(&["config", "http.receivepack", "true"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let root = PathBuf::from(repo.url()).parent().expect("a folder").to_owned();
        let serve = Serve { root, login: format!("Basic {}", STANDARD.encode(format!("{user}:{token}"))) };
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who goes away in the middle is not answered.
                tokio::spawn(serve.clone().answer(stream));
            }
        });
        Self { url, serving }
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
        if header("authorization") != Some(self.login) {
            let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\n\
                           Connection: close\r\n\r\n";
            return stream.write_all(refusal.as_bytes()).await;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut backend = tokio::process::Command::new("git")
            .arg("http-backend")
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
