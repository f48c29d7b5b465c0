//! Containers that outlive one call, and their worker: what a function's instances run in.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemas::record::Usage;
use schemas::task::Container;
use schemas::{Code, FunctionName, StartId};
use tokio::io::AsyncRead;

use super::{Bounds, Exit, RuntimeError, StartError, Status};
use crate::logs::Notes;

/// How often an address is looked for: 100 ms apart at first, doubling to 1.6 s.
pub const ADDRESS_TRIES: u32 = 5;

/// A runtime that keeps instances. They are labelled with worker, function, index, start and spec, live on when their
/// worker ends, and are known to its next boot by those labels. What is labelled for another worker is never touched.
pub trait Instances: Send + Sync + 'static {
    /// Pulls the image if the policy wants it, creates and starts the container and waits for its address, which is
    /// looked for [`ADDRESS_TRIES`] times. A launch that fails, or whose future is dropped, leaves nothing behind.
    fn launch(&self, wish: Launch) -> BoxFuture<'_, Result<Launched, StartError>>;

    /// Every instance that this worker has on its engine, whatever boot made it.
    fn instances(&self) -> BoxFuture<'_, Result<Vec<Found>, RuntimeError>>;

    /// Its output: from its start on for the first who asks of one that this boot launched, so that one that ended at once
    /// tells why; else from now on. Both ends reach EOF at its end.
    fn output<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Output, RuntimeError>>;

    /// Waits for its end, however often the engine goes and comes back. `NotFound` where it is gone.
    fn ended<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Exit, RuntimeError>>;

    /// What it uses now.
    fn instance_stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Usage, RuntimeError>>;

    /// Halts it, or lets it go on. Doing what is done already is no error.
    fn halt_instance<'a>(&'a self, id: &'a str, halted: bool) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// A polite signal, `grace`, then kill; and everything of it removed: container, network, volumes. Removing what is
    /// gone already is no error.
    fn destroy<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;
}

/// An instance to make.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Names it; unique for ever.
    pub start: StartId,
    /// Whose instance.
    pub function: FunctionName,
    /// Which of them.
    pub index: u32,
    /// [`schemas::Function::spec`] of its definition.
    pub spec: String,
    /// Its container; the network is one that gives an address.
    pub container: Container,
    /// Added to the image's environment: the container's own and what we tell it.
    pub env: Vec<(String, String)>,
    /// Bounds, defaults filled in.
    pub limits: Bounds,
    /// For what people should know of the start: pull progress, trouble.
    pub notes: Notes,
}

/// An instance that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The engine's id of the container, whole.
    pub id: String,
    /// Its name on the engine.
    pub name: String,
    /// Where this worker reaches it.
    pub address: IpAddr,
}

/// An instance that is on the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The engine's id of the container, whole.
    pub id: String,
    /// Its name on the engine.
    pub name: String,
    /// From its labels.
    pub function: FunctionName,
    /// From its labels.
    pub index: u32,
    /// From its labels.
    pub start: StartId,
    /// From its labels.
    pub spec: String,
    /// How it is.
    pub status: Status,
    /// Where this worker reaches it, if it runs.
    pub address: Option<IpAddr>,
}

/// What an instance writes.
pub struct Output {
    /// Standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Standard error.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
}

/// No address after so many looks.
pub fn no_address(container: &str, network: &str, looks: u32) -> StartError {
    let message = format!("the container `{container}` has no address on the network `{network}` after {looks} looks");
    StartError::Refused { code: Code::IpUnavailable, message }
}
