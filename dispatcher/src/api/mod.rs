//! HTTP of a dispatcher. So far: whether it lives, and whether it is of use.

mod health;

pub use health::Health;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::DispatcherError;

/// How long open requests may take once it is told to stop.
const CLOSE: Duration = Duration::from_secs(3);

/// A bound socket, so that its port is known before anything is served.
pub struct Listener {
    listener: tokio::net::TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Binds `address`; port 0 is any free one.
pub async fn listen(address: SocketAddr) -> Result<Listener, DispatcherError> {
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "HTTP listens beyond this machine without a token; only health is served");
    }
    let failed = |source| DispatcherError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listener { listener, address })
}

/// Serves until `stop`.
pub async fn serve(listener: Listener, health: Health, stop: CancellationToken) -> Result<(), DispatcherError> {
    let routes = Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .with_state(health);
    let told = stop.clone();
    let served = axum::serve(listener.listener, routes).with_graceful_shutdown(async move { told.cancelled().await });
    tokio::select! {
        ended = served => ended.map_err(DispatcherError::Http),
        // A client that never finishes its request must not hold the end.
        () = async { stop.cancelled().await; tokio::time::sleep(CLOSE).await } => Ok(()),
    }
}
