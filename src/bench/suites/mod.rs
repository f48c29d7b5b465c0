//! The suites: what is measured, beside what, and how often. One file each.

mod container;
mod idle;
mod latency;
mod process;
mod registry;
mod throughput;

use clap::ValueEnum;

use super::BenchError;
use super::sitting::Sitting;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Suite {
    /// No-op calls, 64 and 1,000 under way at once
    Throughput,
    /// No-op calls, one at a time
    Latency,
    /// `/bin/true` as a process, beside a bare spawn loop
    Process,
    /// `true` in containers with network none, shared and bridge, beside the bare Engine API
    Container,
    /// 1,000 agents over HTTP: register, beat, list; a dispatcher of our own
    Registry,
    /// A fleet of our own at rest, and how soon a new worker is of use
    Idle,
}

impl Suite {
    /// Every one, in the order in which they are measured.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// Measures it.
    pub async fn run(self, sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
        match self {
            Self::Throughput => throughput::run(sitting).await,
            Self::Latency => latency::run(sitting).await,
            Self::Process => process::run(sitting).await,
            Self::Container => container::run(sitting).await,
            Self::Registry => registry::run(sitting).await,
            Self::Idle => idle::run(sitting).await,
        }
    }
}
