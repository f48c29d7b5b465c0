//! `shoal dispatcher`: one dispatcher, for deployment. Any number may run; no task passes through them.

use std::net::SocketAddr;

use clap::Args;
use schemas::HumanDuration;

use super::http::Http;
use super::stores::Stores;
use super::worker::{Beat, listen};
use super::{Error, global};
use crate::exit::{self, Exit};
use crate::{output, resident};

/// Flags of `shoal dispatcher`.
#[derive(Clone, Debug, Args)]
pub struct Dispatcher {
    /// Where HTTP listens; port 0 is any free one
    #[arg(long, env = "SHOAL_HTTP", default_value_t = default_http(), value_name = "ADDR")]
    pub http: SocketAddr,
    /// What HTTP lets in.
    #[command(flatten)]
    pub http_settings: Http,
    /// How it looks after things.
    #[command(flatten)]
    pub duties: Duties,
    /// How it judges agents.
    #[command(flatten)]
    pub beat: Beat,
    /// What the stores are made like.
    #[command(flatten)]
    pub stores: Stores,
}

/// How a dispatcher looks after things, whether alone or in `shoal up`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Duties {
    /// Time between two looks at expired and lost tasks
    #[arg(long, env = "SHOAL_RECONCILE_EVERY", default_value = "10s", value_name = "DURATION")]
    pub reconcile_every: HumanDuration,
}

impl Duties {
    /// Checked.
    pub fn check(self) -> Result<(), Error> {
        if (HumanDuration::millis(100)..=HumanDuration::seconds(3600)).contains(&self.reconcile_every) {
            return Ok(());
        }
        let problem = format!("--reconcile-every is {}; allowed is 100ms to 1h", self.reconcile_every);
        Err(Error::usage(problem, "--reconcile-every 10s"))
    }
}

/// Runs the dispatcher.
pub async fn run(args: Dispatcher, global: &global::Global) -> Result<Exit, Error> {
    args.duties.check()?;
    args.beat.check()?;
    let config = ::dispatcher::Config {
        names: schemas::Names::new(global.prefix.clone()),
        stores: args.stores.settings()?,
        http: args.http,
        http_settings: args.http_settings.settings(args.http)?,
        reconcile_every: args.duties.reconcile_every.0,
        heartbeat: args.beat.heartbeat.0,
    };
    let signals = listen()?;
    let connection = tokio::select! {
        connection = global.connect_role("shoal dispatcher") => connection?,
        () = signals.drain.cancelled() => return Ok(exit::DONE),
    };
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let announce = async {
        // An error means that it ended before it was ready; why is what the other future says.
        if let Ok(address) = is_ready.await {
            output::line(format_args!("ready http=http://{address}"));
            resident::settle().await;
        }
        std::future::pending::<std::convert::Infallible>().await
    };
    let ended = tokio::select! {
        ended = ::dispatcher::run(config, connection, signals.drain, ready) => ended,
        never = announce => match never {},
    };
    ended.map_err(failed)?;
    Ok(exit::DONE)
}

/// A dispatcher that ended by itself.
pub fn failed(error: ::dispatcher::DispatcherError) -> Error {
    match error {
        ::dispatcher::DispatcherError::Topology(error) => Error::Topology(error),
        error @ ::dispatcher::DispatcherError::Listen { .. } => Error::failed(
            "the dispatcher cannot start",
            "name another address with --http, port 0 is any free one",
            error,
        ),
        error => Error::failed("the dispatcher stopped", "start it again, and look at its log", error),
    }
}

/// Where HTTP listens unless told otherwise.
pub fn default_http() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7070))
}
