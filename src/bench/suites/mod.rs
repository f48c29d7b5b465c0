//! The suites: what is measured, beside what, and how often. One file each.

mod agents;
mod backlog;
mod cluster;
mod container;
mod functions;
mod idle;
mod latency;
mod logs;
mod memory;
mod process;
mod registry;
mod scaling;
mod throughput;

use clap::ValueEnum;

use super::BenchError;
use super::sitting::Sitting;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Suite {
    /// No-op calls, 64 and 1,000 under way at once, and submission alone, beside the bare engine
    Throughput,
    /// No-op calls, one at a time, beside the bare engine
    Latency,
    /// `/bin/true` as a process, beside a bare spawn loop
    Process,
    /// `true` in containers with network none, shared and bridge, beside the bare Engine API
    Container,
    /// Functions: warm calls, ensures warm and cold, beside the bare engine; needs --function-image, so only by name
    Functions,
    /// Agent jobs: all but their model and tests, beside git alone; 20 at once; needs git, so only by name
    Agents,
    /// Lines from one process to the stream, and a log of 1 GB
    Logs,
    /// 10,000 agents over HTTP: register, beat every 10 s, list; a dispatcher of our own
    Registry,
    /// Worker and dispatcher in RAM: new, saturated, at rest again
    Memory,
    /// A fleet of our own at rest, and how soon a new worker is of use
    Idle,
    /// A million no-ops that wait, and drain; minutes, so only by name
    Backlog,
    /// 1, 4, 16 workers; 16 to 2,000 slots; minutes, so only by name
    Scaling,
    /// Three servers, three replicas, beside the bare engine; minutes, so only by name
    Cluster,
}

impl Suite {
    /// Every one that is measured where none is named, in that order: a few minutes in all.
    pub fn usual() -> impl Iterator<Item = Self> {
        let heavy = [Self::Backlog, Self::Scaling, Self::Cluster, Self::Functions, Self::Agents];
        Self::value_variants().iter().copied().filter(move |suite| !heavy.contains(suite))
    }

    /// Measures it.
    pub async fn run(self, sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
        match self {
            Self::Throughput => throughput::run(sitting).await,
            Self::Latency => latency::run(sitting).await,
            Self::Process => process::run(sitting).await,
            Self::Container => container::run(sitting).await,
            Self::Functions => functions::run(sitting).await,
            Self::Agents => agents::run(sitting).await,
            Self::Logs => logs::run(sitting).await,
            Self::Registry => registry::run(sitting).await,
            Self::Memory => memory::run(sitting).await,
            Self::Idle => idle::run(sitting).await,
            Self::Backlog => backlog::run(sitting).await,
            Self::Scaling => scaling::run(sitting).await,
            Self::Cluster => cluster::run(sitting).await,
        }
    }
}
