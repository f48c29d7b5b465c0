//! What can be measured in turn: work with Shoal, and the same work without.

use std::sync::Arc;

use bytes::Bytes;
use schemas::QueueName;
use worker::runtime::docker::bare::Bare;

use super::engine::{Engine, Writes};
use super::fleet::Fleet;
use super::function::Called;
use super::load::{self, Load};
use super::meter::Parts;
use super::report::Round;
use super::{BenchError, bare};

/// One kind of work.
pub enum Work {
    /// Tasks from submission to their seen ends.
    Cycle {
        /// The task's JSON.
        body: Bytes,
        /// How many at once.
        in_flight: usize,
    },
    /// Tasks that are submitted and run by nobody.
    Submit {
        /// The task's JSON.
        body: Bytes,
        /// How many at once.
        in_flight: usize,
    },
    /// The same, so many in one call.
    SubmitMany {
        /// The task's JSON.
        body: Bytes,
        /// How many in one call.
        at_once: usize,
    },
    /// A queue that is filled while it is paused, and drained.
    Drain {
        /// The task's JSON.
        body: Bytes,
    },
    /// [`Work::Cycle`] on the engine without Shoal.
    EngineCycle {
        /// Size of a task.
        bytes: usize,
        /// How many at once.
        in_flight: usize,
        /// Whether it writes byte for byte as much as Shoal, or the least.
        same: bool,
    },
    /// [`Work::Submit`] on the engine.
    EngineSubmit {
        /// Size of a task.
        bytes: usize,
        /// How many at once.
        in_flight: usize,
        /// Whether with Shoal's headers.
        same: bool,
    },
    /// [`Work::SubmitMany`] on the engine.
    EngineBursts {
        /// Size of a task.
        bytes: usize,
        /// How many in one burst.
        at_once: usize,
        /// Whether with Shoal's headers.
        same: bool,
    },
    /// [`Work::Drain`] on the engine.
    EngineDrain {
        /// Size of a task.
        bytes: usize,
        /// Whether it writes byte for byte as much as Shoal, or the least.
        same: bool,
    },
    /// So many processes at once, spawned and awaited.
    Processes(usize),
    /// So many containers at once, on an engine of containers without Shoal.
    Containers(usize, Arc<Bare>),
    /// Calls of a warm function, so many at once.
    Invoke(Arc<Called>, usize),
    /// The same, so many a second.
    InvokePaced(Arc<Called>, u32),
    /// HTTP requests to its container.
    Post(Arc<Called>, usize),
    /// NATS requests, answered by this program.
    RoundTrip(Arc<Called>, usize),
    /// Ensures of a warm function.
    Ensure(Arc<Called>, usize),
    /// Ensures of a cold one.
    EnsureCold(Arc<Called>),
    /// The same by the container engine alone.
    BareFunction(Arc<Called>, Arc<Bare>),
}

impl Work {
    /// How a report calls it beside ours.
    pub fn what(&self) -> String {
        let writes = |same: &bool| if *same { Writes::Same { record_bytes: 0 } } else { Writes::Least };
        match self {
            Self::Cycle { .. }
            | Self::Submit { .. }
            | Self::SubmitMany { .. }
            | Self::Drain { .. }
            | Self::Invoke(..)
            | Self::InvokePaced(..)
            | Self::Ensure(..)
            | Self::EnsureCold(..) => "Shoal".into(),
            Self::Post(..) => "HTTP request to the container".into(),
            Self::RoundTrip(..) => "NATS round trip".into(),
            Self::BareFunction(..) => "Engine API: create, start, address, health".into(),
            Self::EngineCycle { same, .. } | Self::EngineDrain { same, .. } => writes(same).what().into(),
            Self::EngineSubmit { same, .. } | Self::EngineBursts { same, .. } => {
                let headers = if *same { ", the same headers" } else { "" };
                format!("engine publish{headers}")
            }
            Self::Processes(_) => "spawn and wait".into(),
            Self::Containers(..) => "Engine API: create, start, wait, logs, remove".into(),
        }
    }

    /// Whose CPU it uses beside that of this program.
    pub fn parts(&self, fleet: &Fleet) -> Parts {
        match self {
            Self::Cycle { .. }
            | Self::Submit { .. }
            | Self::SubmitMany { .. }
            | Self::Drain { .. }
            | Self::Invoke(..)
            | Self::InvokePaced(..)
            | Self::Ensure(..)
            | Self::EnsureCold(..) => fleet.pids(),
            Self::EngineCycle { .. }
            | Self::EngineSubmit { .. }
            | Self::EngineBursts { .. }
            | Self::EngineDrain { .. } => fleet.engine_pids(),
            Self::Processes(_)
            | Self::Containers(..)
            | Self::Post(..)
            | Self::RoundTrip(..)
            | Self::BareFunction(..) => Parts::new(),
        }
    }

    /// One round of it.
    pub async fn round(&self, fleet: &Fleet, queue: &QueueName, jobs: usize, name: &str) -> Result<Round, BenchError> {
        let load = |body: &Bytes, in_flight| Load { queue: queue.clone(), body: body.clone(), tasks: jobs, in_flight };
        match self {
            Self::Cycle { body, in_flight } => {
                load::round(&fleet.client, &fleet.watcher, &load(body, *in_flight), name).await
            }
            Self::Submit { body, in_flight } => {
                let round = load::submit(&fleet.client, &load(body, *in_flight), name).await?;
                fleet.empty(queue, jobs).await.map(|()| round)
            }
            Self::SubmitMany { body, at_once } => {
                let round = load::submit_many(&fleet.client, &load(body, *at_once), name).await?;
                fleet.empty(queue, jobs).await.map(|()| round)
            }
            Self::Drain { body } => load::drain(&fleet.client, &fleet.watcher, &load(body, 1_000), name).await,
            Self::EngineCycle { bytes, in_flight, same } => {
                let writes = writes(fleet, *same).await?;
                engine(fleet)?.cycle((jobs, *bytes), *in_flight, writes, name).await
            }
            Self::EngineSubmit { bytes, in_flight, same } => {
                let writes = if *same { Writes::Same { record_bytes: 0 } } else { Writes::Least };
                engine(fleet)?.publish((jobs, *bytes), *in_flight, writes, name).await
            }
            Self::EngineBursts { bytes, at_once, same } => {
                let writes = if *same { Writes::Same { record_bytes: 0 } } else { Writes::Least };
                engine(fleet)?.bursts((jobs, *bytes), *at_once, writes, name).await
            }
            Self::EngineDrain { bytes, same } => {
                let (engine, writes) = (engine(fleet)?, writes(fleet, *same).await?);
                let filled = engine.fill((jobs, *bytes), writes, name).await?;
                engine.drain(filled).await
            }
            Self::Processes(at_once) => bare::processes("/bin/true", jobs, *at_once).await,
            Self::Containers(at_once, engine) => bare::containers(engine, jobs, *at_once).await,
            Self::Invoke(called, at_once) => called.invoke(jobs, *at_once).await,
            Self::InvokePaced(called, pace) => called.invoke_paced(jobs, *pace).await,
            Self::Post(called, at_once) => called.post(jobs, *at_once).await,
            Self::RoundTrip(called, at_once) => called.round_trip(jobs, *at_once).await,
            Self::Ensure(called, at_once) => called.ensure(jobs, *at_once).await,
            Self::EnsureCold(called) => called.ensure_cold(jobs).await,
            Self::BareFunction(called, engine) => called.make_bare(engine, jobs).await,
        }
    }
}

fn engine(fleet: &Fleet) -> Result<&Engine, BenchError> {
    fleet.engine().ok_or_else(|| BenchError::broken("there is no engine beside this fleet".into()))
}

async fn writes(fleet: &Fleet, same: bool) -> Result<Writes, BenchError> {
    Ok(if same { Writes::Same { record_bytes: fleet.record_bytes().await? } } else { Writes::Least })
}
