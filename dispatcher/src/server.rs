//! One dispatcher: stores made so, duties looked after, HTTP served, until it is told to stop. Any number may run; they
//! share nothing but the server, and agree by compare-and-set.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jetstream::{Connection, Ensure, Ensured, JetStream};
use schemas::Names;
use schemas::stores::StoreSettings;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api, HttpSettings, Registry};
use crate::client::Client;
use crate::topology::{self, TopologyError};
use crate::{doors, micro, reconcile};

/// Everything a dispatcher needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names on the server.
    pub names: Names,
    /// What the stores are made like.
    pub stores: StoreSettings,
    /// Where HTTP listens; port 0 is any free one.
    pub http: SocketAddr,
    /// What HTTP lets in.
    pub http_settings: HttpSettings,
    /// Time between two looks at expired and lost tasks.
    pub reconcile_every: Duration,
    /// Time between two heartbeats of an agent; offline after three missed.
    pub heartbeat: Duration,
}

/// Why a dispatcher ended.
#[derive(Debug, thiserror::Error)]
pub enum DispatcherError {
    /// The stores could not be made so.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// HTTP cannot listen there.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// HTTP would listen beyond this machine, and everybody could call.
    #[error("HTTP listens beyond this machine ({address}) only with a token")]
    Exposed {
        /// Where.
        address: SocketAddr,
    },
    /// The client is gone for good.
    #[error("the connection to NATS broke for good")]
    Disconnected,
    /// HTTP broke.
    #[error("HTTP stopped")]
    Http(#[source] std::io::Error),
    /// A duty broke, which is a fault of this program.
    #[error("the duty `{duty}` broke: {why}")]
    Broken {
        /// Which.
        duty: &'static str,
        /// How.
        why: String,
    },
}

/// Runs until `stop`. `ready` gets the address of HTTP once everything runs.
pub async fn run(
    config: Config,
    connection: Connection,
    stop: CancellationToken,
    ready: oneshot::Sender<SocketAddr>,
) -> Result<(), DispatcherError> {
    let js = JetStream::new(connection.client.clone());
    // Listening comes first: a taken address is the likelier mistake, and costs nothing to find.
    let listener = api::listen(config.http, &config.http_settings).await?;
    for (name, ensured) in topology::ensure(&js, &config.names, &config.stores, Ensure::Upgrade).await? {
        match ensured {
            Ensured::Created => tracing::info!(store = name, "created"),
            Ensured::Updated(settings) => tracing::info!(store = name, ?settings, "updated"),
            Ensured::Unchanged(left) if left.is_empty() => {}
            Ensured::Unchanged(left) => {
                tracing::warn!(store = name, settings = ?left, "left as it is: a change would drop messages or is impossible");
            }
        }
    }
    let stop = stop.child_token();
    let _stop_all = stop.clone().drop_guard();
    let health = api::Health::new(js.clone(), connection.clone(), &config.names, &config.stores);
    let address = listener.address;
    let client = Client::new(connection.clone(), config.names.clone()).with_stores(config.stores.clone());
    let registry = Arc::new(Registry::new(client.clone(), config.heartbeat * reconcile::MISSED));
    let doors = doors::run(client.clone(), stop.clone());
    let calls = Api::new(client, registry.clone(), health, config.http_settings.streams, stop.clone());
    let service = micro::Service::start(calls.clone()).await;
    // Once the server answers this, it has read the subscriptions: a dispatcher that says that it is ready can be asked.
    if let Err(error) = js.stream_state(&config.names.tasks_stream()).await {
        tracing::debug!(%error, "not known whether NATS requests arrive yet");
    }
    let http = api::serve(listener, calls, config.http_settings, stop.clone());
    let link = connection.clone();
    let duties = reconcile::run(
        reconcile::Watch {
            js,
            connection,
            names: config.names,
            every: config.reconcile_every,
            heartbeat: config.heartbeat,
        },
        stop.clone(),
    );
    // Nobody may wait for it any more.
    let _ = ready.send(address);
    tracing::info!(http = %address, "dispatcher ready");
    let both = async {
        let beside = async {
            tokio::join!(service.run(stop.clone()), registry.keep(stop.clone()), doors);
            Ok(())
        };
        tokio::try_join!(http, duties, beside)?;
        Ok(())
    };
    let ended = tokio::select! {
        ended = both => ended,
        () = link.gone() => Err(DispatcherError::Disconnected),
    };
    tracing::info!("dispatcher stopped");
    ended
}
