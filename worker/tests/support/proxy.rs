//! A door to the engine that can be shut: what a worker sees of an engine that is gone, while the engine itself works on.

use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub struct Proxy {
    socket: PathBuf,
    engine: PathBuf,
    open: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl Proxy {
    /// An open one, beside `folder`'s files.
    pub fn open(folder: &Path) -> Self {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        let engine = host.strip_prefix("unix://").expect("these tests need a local engine").into();
        Self::before(folder, engine)
    }

    /// The same of the engine at this socket.
    #[allow(dead_code, reason = "the tests of containerd use it")]
    pub fn to(folder: &Path, engine: &Path) -> Self {
        Self::before(folder, engine.to_owned())
    }

    fn before(folder: &Path, engine: PathBuf) -> Self {
        let mut proxy = Self { socket: folder.join("engine.sock"), engine, open: None };
        proxy.reopen();
        proxy
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Lets everybody in again.
    pub fn reopen(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (shut, engine) = (CancellationToken::new(), self.engine.clone());
        let stop = shut.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            // Dropped at the end, all connections with it.
            while let Some(Ok((mut here, _))) = stop.run_until_cancelled(listener.accept()).await {
                let engine = engine.clone();
                connections.spawn(async move {
                    let mut there = UnixStream::connect(engine).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                });
            }
        });
        self.open = Some((shut, serving));
    }

    /// Cuts every connection and lets nobody in.
    pub async fn shut(&mut self) {
        let (shut, serving) = self.open.take().expect("it is open");
        shut.cancel();
        serving.await.unwrap();
        let _ = std::fs::remove_file(&self.socket);
    }
}
