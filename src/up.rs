//! `shoal up`: a whole fleet in one process: a real nats-server as child, a dispatcher, workers.
//!
//! Started in this order, ended in the opposite one. A worker or a dispatcher that fails ends the whole; a worker that is
//! drained leaves the others running; a server that ends is started again.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::dispatcher::client::Client;
use clap::Args;
use jetstream::{ConnectSettings, Connection, Ensure};
use schemas::{AgentId, AgentStatus, Names};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::RuntimeName;

use crate::cli::dispatcher::{Duties, failed as dispatcher_failed};
use crate::cli::global::Global;
use crate::cli::http::Http;
use crate::cli::stores::Stores;
use crate::cli::worker::{Beat, Manner, default_state_dir, failed as worker_failed, listen};
use crate::cli::{Error, dispatcher};
use crate::exit::{self, Exit};
use crate::nats_server::{self, NatsServer};
use crate::output;

/// How long the registry may take to show a worker that says it is ready.
const REGISTERED: Duration = Duration::from_secs(10);

/// Flags of `shoal up`.
#[derive(Clone, Debug, Args)]
pub struct Up {
    /// How many workers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1_000), value_name = "N")]
    pub workers: u16,
    /// Port of NATS; 0 is any free one [default: 4222, or any free one where that is taken]
    #[arg(long, value_name = "PORT")]
    pub nats_port: Option<u16>,
    /// Where HTTP listens; port 0 is any free one [default: 127.0.0.1:7070, or any free port where that is taken]
    #[arg(long, env = "SHOAL_HTTP", value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Folder for everything that is stored [default: ~/.local/state/shoal/up]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The nats-server program [default: on PATH, else .tools/bin/nats-server here or above]
    #[arg(long, env = "SHOAL_NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// What HTTP lets in.
    #[command(flatten)]
    pub http_settings: Http,
    /// How the workers work.
    #[command(flatten)]
    pub manner: Manner,
    /// How the fleet judges them.
    #[command(flatten)]
    pub beat: Beat,
    /// How the dispatcher looks after things.
    #[command(flatten)]
    pub duties: Duties,
    /// What the stores are made like.
    #[command(flatten)]
    pub stores: Stores,
}

/// Held while a store is in use; the lock goes with this process, however it ends.
struct Locked(#[expect(dead_code, reason = "held, not read")] File);

fn lock(store: &Path) -> Result<Locked, Error> {
    let hint = "stop it, or name another store with --store";
    let cannot =
        |error| Error::failed(format!("cannot use the store {}", store.display()), "name another with --store", error);
    std::fs::create_dir_all(store).map_err(cannot)?;
    let file = File::options().create(true).truncate(false).write(true).open(store.join("lock")).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(Locked(file)),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::usage(format!("another `shoal up` uses the store {}", store.display()), hint))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// What errors call the dispatcher.
const DISPATCHER: &str = "the dispatcher";

/// What ended by itself, or as it was told.
type Part = (String, Result<(), Error>);

/// The fleet's parts on one server.
struct Fleet {
    url: String,
    names: Names,
    parts: JoinSet<Part>,
}

impl Fleet {
    async fn connection(&self, name: &str) -> Result<Connection, Error> {
        let settings = ConnectSettings { url: Some(self.url.clone()), ..ConnectSettings::default() };
        Ok(settings.connect(name).await?)
    }

    /// Starts the dispatcher and returns where its HTTP listens.
    async fn dispatcher(&mut self, config: ::dispatcher::Config, stop: CancellationToken) -> Result<SocketAddr, Error> {
        let connection = self.connection("shoal up dispatcher").await?;
        let (ready, is_ready) = oneshot::channel();
        self.parts.spawn(async move {
            let ended = ::dispatcher::run(config, connection, stop, ready).await;
            (DISPATCHER.into(), ended.map_err(dispatcher_failed))
        });
        self.ready(is_ready).await
    }

    /// Starts one worker; the channel tells when it pulls.
    async fn worker(
        &mut self,
        config: ::worker::Config,
        stop: ::worker::Stop,
    ) -> Result<oneshot::Receiver<AgentId>, Error> {
        let name = config.id.as_ref().map_or("shoal worker".to_owned(), |id| format!("shoal worker {id}"));
        let connection = self.connection(&name).await?;
        let (ready, is_ready) = oneshot::channel();
        self.parts.spawn(async move {
            let ended = ::worker::run(config, connection, ::worker::Handlers::default(), stop, ready).await;
            (name, ended.map_err(worker_failed))
        });
        Ok(is_ready)
    }

    /// What a part says once it is ready; if it ends instead, why.
    async fn ready<T>(&mut self, is_ready: oneshot::Receiver<T>) -> Result<T, Error> {
        tokio::select! {
            ready = is_ready => match ready {
                Ok(ready) => Ok(ready),
                // The channel went with its part, whose end comes next.
                Err(_) => Err(why(self.parts.join_next().await)),
            },
            ended = self.parts.join_next() => Err(why(ended)),
        }
    }
}

/// The error in the end of a part that should have gone on.
fn why(ended: Option<Result<Part, tokio::task::JoinError>>) -> Error {
    let hint = "start it again, and look at its log";
    match ended {
        Some(Ok((_, Err(error)))) => error,
        Some(Ok((name, Ok(())))) => {
            Error::Failed { problem: format!("{name} ended by itself"), hint: hint.into(), source: None }
        }
        Some(Err(panic)) => Error::failed("a part of the fleet broke", hint, panic),
        None => Error::Failed { problem: "nothing runs".into(), hint: hint.into(), source: None },
    }
}

/// Runs the fleet until it is told to stop.
pub async fn run(args: Up, global: &Global) -> Result<Exit, Error> {
    args.duties.check()?;
    let names = Names::new(global.prefix.clone());
    let stores = args.stores.settings()?;
    let store = args.store.clone().map_or_else(|| default_state_dir().map(|dir| dir.join("up")), Ok)?;
    let runtimes = Some(vec![RuntimeName::Call, RuntimeName::Process, RuntimeName::Containers, RuntimeName::Agent]);
    let worker = |n: u16| {
        let id = AgentId::new(format!("worker-{n}")).expect("letters, digits and a dash");
        let state_dir = store.join("workers").join(id.as_str());
        args.manner.config(Some(id), runtimes.clone(), state_dir, args.beat, stores.clone(), names.clone())
    };
    let workers = (1..=args.workers).map(worker).collect::<Result<Vec<_>, _>>()?;
    args.beat.check()?;
    let http = match args.http {
        Some(http) => http,
        None => usual_or_any_http(),
    };
    let http_settings = args.http_settings.settings(http)?;
    let program = nats_server::find(args.nats_server.as_deref())?;
    let _locked = lock(&store)?;
    let signals = listen()?;

    let nats_folder = store.join("nats");
    let (server, connection) = tokio::select! {
        started = NatsServer::start(program, &nats_folder, args.nats_port) => started?,
        () = signals.drain.cancelled() => return Ok(exit::DONE),
    };
    let client = Client::new(connection, names.clone()).with_stores(stores.clone());
    let mut fleet = Fleet { url: server.url(), names: names.clone(), parts: JoinSet::new() };
    let server_stop = CancellationToken::new();
    let watched = tokio::spawn(server.watch(server_stop.clone()));

    let config = ::dispatcher::Config {
        names,
        stores,
        http,
        http_settings,
        reconcile_every: args.duties.reconcile_every.0,
        heartbeat: args.beat.heartbeat.0,
    };
    let dispatcher_stop = CancellationToken::new();
    let stop = ::worker::Stop { drain: signals.drain.child_token(), now: signals.now.clone() };
    let life = live(&mut fleet, &client, config, workers, &stop, &dispatcher_stop);
    let ended = tokio::select! {
        Err(error) = life => Err(error),
        () = signals.drain.cancelled() => Ok(exit::DONE),
    };
    // Workers first: their last writes want a server, and so does the dispatcher's.
    stop.drain.cancel();
    let ended = drain(&mut fleet, &dispatcher_stop, ended).await;
    // Its own link would take the server's end for a fault.
    drop(client);
    server_stop.cancel();
    match watched.await {
        Ok(server) => server.stop().await,
        Err(error) => tracing::error!(%error, "the watch over nats-server broke"),
    }
    ended
}

/// Starts everything, says `ready`, and then returns only when something ends by itself.
async fn live(
    fleet: &mut Fleet,
    client: &Client,
    config: ::dispatcher::Config,
    workers: Vec<::worker::Config>,
    stop: &::worker::Stop,
    dispatcher_stop: &CancellationToken,
) -> Result<std::convert::Infallible, Error> {
    ::dispatcher::topology::ensure(&client.js, &fleet.names, &config.stores, Ensure::Upgrade).await?;
    let http = fleet.dispatcher(config, dispatcher_stop.clone()).await?;
    let mut pulling = Vec::new();
    for config in workers {
        pulling.push(fleet.worker(config, stop.clone()).await?);
    }
    for is_ready in pulling {
        let id = fleet.ready(is_ready).await?;
        registered(client, &id).await?;
    }
    output::line(format_args!("ready nats={} http=http://{http}", fleet.url));
    loop {
        match fleet.parts.join_next().await {
            // Drained from afar; the others go on.
            Some(Ok((name, Ok(())))) if name != DISPATCHER => tracing::info!(name, "left the fleet"),
            ended => return Err(why(ended)),
        }
    }
}

/// Waits until the registry shows the worker as ready.
async fn registered(client: &Client, id: &AgentId) -> Result<(), Error> {
    let shown = async {
        loop {
            if let Ok(agent) = client.agent(id.as_str()).await
                && agent.status == AgentStatus::Ready
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(REGISTERED, shown).await.map_err(|_| {
        let problem = format!("the registry does not show {id} as ready");
        Error::Failed { problem, hint: "start it again with --log-level debug".into(), source: None }
    })
}

/// Waits for the workers' ends, then for the dispatcher's. The first error is the one that counts.
async fn drain(
    fleet: &mut Fleet,
    dispatcher_stop: &CancellationToken,
    mut ended: Result<Exit, Error>,
) -> Result<Exit, Error> {
    while !fleet.parts.is_empty() {
        if fleet.parts.len() == 1 {
            dispatcher_stop.cancel();
        }
        match fleet.parts.join_next().await {
            Some(Ok((name, Err(error)))) if ended.is_ok() => {
                tracing::error!(name, "did not end well");
                ended = Err(error);
            }
            Some(Ok((name, Err(error)))) => tracing::error!(name, %error, "did not end well"),
            Some(Err(panic)) if ended.is_ok() => ended = Err(why(Some(Err(panic)))),
            Some(_) | None => {}
        }
    }
    ended
}

fn usual_or_any_http() -> SocketAddr {
    let usual = dispatcher::default_http();
    match std::net::TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::new(usual.ip(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).is_err());
        drop(first);
        assert!(lock(folder.path()).is_ok());
    }
}
