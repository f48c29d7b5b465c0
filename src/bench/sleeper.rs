//! A worker of Shoal whose handler `sleep` does nothing for a while: for how many tasks a fleet holds at once. Only
//! `shoal bench` has it; a worker of yours has no such handler.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use jetstream::ConnectSettings;
use schemas::HumanDuration;
use serde::{Deserialize, Serialize};
use worker::{Config, GuardCommand, HandlerError, Handlers, RuntimeName, Stop};

use crate::output;

/// What it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Where the server is.
    pub url: String,
    /// Its id.
    pub id: String,
    /// Attempts at once.
    pub slots: usize,
    /// Where it keeps its lock.
    pub state_dir: PathBuf,
    /// The queue's lease.
    pub ack_wait: HumanDuration,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Works until it is told to stop.
pub async fn run(spec: Spec) -> Result<(), BoxError> {
    let settings = ConnectSettings { url: Some(spec.url), ..ConnectSettings::default() };
    let connection = settings.connect("shoal bench sleeper").await?;
    let mut config = Config::new(spec.state_dir, GuardCommand::this_program());
    config.id = Some(spec.id.parse()?);
    config.slots = spec.slots;
    config.stores.ack_wait = spec.ack_wait;
    config.runtimes = Some(vec![RuntimeName::Call]);
    let handlers = Handlers::default().with("sleep", |call| async move {
        let milliseconds = call.payload.as_u64().ok_or_else(|| HandlerError::hopeless("the payload is no number"))?;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        Ok(Bytes::new())
    });
    let stop = Stop::default();
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(worker::run(config, connection, handlers, stop.clone(), ready));
    if let Ok(id) = is_ready.await {
        output::line(format_args!("ready worker={id}"));
        end.recv().await;
    }
    stop.drain.cancel();
    Ok(running.await??)
}
