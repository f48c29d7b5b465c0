//! What to measure, where and how.

use std::path::PathBuf;

use dispatcher::client::Client;
use schemas::QueueName;
use worker::policy::ContainerSettings;

use super::suites::Suite;

/// What to measure and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which suites.
    pub suites: Vec<Suite>,
    /// Rounds of each case.
    pub rounds: usize,
    /// Jobs a round in hundredths of the usual: 100 is the usual.
    pub percent: usize,
    /// Where jobs go.
    pub queue: QueueName,
    /// What containers are started from; its `true` is run.
    pub image: String,
    /// What functions are made from.
    pub function_image: Option<String>,
    /// The engine, for what is measured beside; a worker of ours is told the same.
    pub engine: ContainerSettings,
}

/// Where it is measured.
pub enum Place {
    /// On a fleet of our own, with this nats-server.
    Own(PathBuf),
    /// On this one.
    Given(Box<Client>),
}
