//! NATS spoken by hand over TCP: the client that knows nothing, neither of Shoal nor of JetStream.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One connection.
pub struct RawClient {
    stream: BufReader<TcpStream>,
}

impl RawClient {
    /// Connects and waits for the server's first pong.
    pub async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server takes connections");
        let mut client = Self { stream: BufReader::new(stream) };
        let greeting = client.line().await;
        assert!(greeting.starts_with("INFO "), "{greeting}");
        client.send(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"name\":\"by hand\"}\r\n").await;
        client.flush().await;
        client
    }

    /// `PUB`, and a round trip so that the server has it.
    pub async fn publish(&mut self, subject: &str, payload: &[u8]) {
        self.send(format!("PUB {subject} {}\r\n", payload.len()).as_bytes()).await;
        self.send(payload).await;
        self.send(b"\r\n").await;
        self.flush().await;
    }

    /// `HPUB`: the same with a header block, taken as it is.
    pub async fn publish_with_headers(&mut self, subject: &str, headers: &[u8], payload: &[u8]) {
        let whole = headers.len() + payload.len();
        self.send(format!("HPUB {subject} {} {whole}\r\n", headers.len()).as_bytes()).await;
        self.send(headers).await;
        self.send(payload).await;
        self.send(b"\r\n").await;
        self.flush().await;
    }

    async fn flush(&mut self) {
        self.send(b"PING\r\n").await;
        loop {
            let line = self.line().await;
            if line.starts_with("PONG") {
                return;
            }
            assert!(!line.starts_with("-ERR"), "the server says {line}");
            assert!(!line.is_empty(), "the server hung up");
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.expect("the server reads");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.expect("the server answers");
        line
    }
}
