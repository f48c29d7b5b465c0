//! One attempt of one task, from delivery to settlement.

pub mod admit;
mod ending;
pub mod fence;
pub mod holder;
mod invoke;
#[cfg(test)]
mod model;
pub mod phase;
pub mod runner;
mod watch;
pub mod workload;
