//! `shoal bench`: what a fleet does on this machine. Every job must end well, exactly once, before a figure is printed.

mod agent;
mod bare;
mod engine;
mod fleet;
mod function;
mod load;
mod logs;
mod machine;
mod meter;
mod model;
pub mod part;
mod plan;
mod registry;
mod report;
mod sitting;
mod sleeper;
mod suites;
mod watch;
mod work;

pub use plan::{Place, Plan};
pub use report::{Beside, PartCpu, Report, Spread};
pub use sitting::run;
pub use suites::Suite;

/// Why a measurement is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A job did not end as it must.
    #[error("the job {key} did not end well, so no figure is worth anything: {why}")]
    WrongEnd {
        /// `<queue>.<id>`.
        key: String,
        /// What its record says.
        why: String,
    },
    /// Nothing ended for a long time.
    #[error("{missing} of {tasks} jobs had not ended after {after:?} without news; is there a worker that runs them?")]
    Stalled {
        /// How many.
        missing: usize,
        /// Of how many.
        tasks: usize,
        /// How long nothing ended.
        after: std::time::Duration,
    },
    /// A job was not accepted.
    #[error("a job was not accepted")]
    Submit(#[from] dispatcher::client::SubmitError),
    /// The fleet to measure could not be started.
    #[error("{what}")]
    Fleet {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl BenchError {
    /// A fleet that could not be had.
    fn fleet(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Fleet { what: what.into(), source: Some(source.into()) }
    }

    /// A fleet that did not do what it must.
    fn broken(what: String) -> Self {
        Self::Fleet { what, source: None }
    }
}
