//! HTTP by hand over a unix socket: one request a connection.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest wait of one request; an engine that is frozen never answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// Status and body of one request.
pub async fn unix(socket: &Path, method: &str, path: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(head(method, path, body.len()).as_bytes()).await?;
        stream.write_all(body).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        read(answer)
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The same where nothing can be awaited.
pub fn unix_blocking(socket: &Path, method: &str, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(head(method, path, 0).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    read(answer)
}

/// 1.0, so that the body comes in one piece and the connection ends with it.
fn head(method: &str, path: &str, length: usize) -> String {
    let kind = if path.starts_with("/images/") { "application/x-tar" } else { "application/json" };
    format!("{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")
}

fn read(answer: Vec<u8>) -> io::Result<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, answer[end + 4..].to_vec()))
}
