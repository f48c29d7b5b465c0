//! A TCP proxy that can be cut, to part one program from the server without touching either.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes bytes on while it is open.
pub struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// An open proxy to `target`.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let (open, state) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                // Closed at once while it is cut, like a machine that refuses.
                if *state.borrow() {
                    tokio::spawn(pass(inner, target.clone(), state.clone()));
                }
            }
        });
        Self { address, open, accepting }
    }

    /// Where programs connect to.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Breaks every connection and lets no new one live.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Lets connections through again.
    pub fn restore(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut inner: TcpStream, target: String, mut state: watch::Receiver<bool>) {
    let Ok(mut outer) = TcpStream::connect(&target).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut inner, &mut outer) => {}
        _ = state.wait_for(|open| !open) => {}
    }
}
