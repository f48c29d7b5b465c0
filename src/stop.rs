//! Signals of a role: the first drains, the second stops now, a third ends the program on the spot.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit;

/// Two wishes, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Finish what runs, take nothing new.
    pub drain: CancellationToken,
    /// Stop now; set only after `drain`.
    pub now: CancellationToken,
}

/// Listens for SIGTERM and SIGINT from here on.
pub fn listen() -> std::io::Result<Signals> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signals = Signals::default();
    let wishes = signals.clone();
    tokio::spawn(async move {
        let signal = next(&mut terminate, &mut interrupt).await;
        tracing::info!(signal, "draining; once more to stop at once");
        wishes.drain.cancel();
        let signal = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal, "stopping at once");
        wishes.now.cancel();
        let signal = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal, "ending without goodbye");
        std::process::exit(exit::CANCELLED.0.into());
    });
    Ok(signals)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
