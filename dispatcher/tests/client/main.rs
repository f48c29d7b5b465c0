//! The client against a real nats-server. No workers: where one is needed, the test plays it by raw writes.

mod cancel;
#[cfg(feature = "fail-points")]
mod crash;
mod dead;
mod explain;
mod find;
mod follow;
mod functions;
mod list;
mod queues;
#[cfg(feature = "server")]
mod reconcile;
mod registry;
mod submit;
mod support;
mod topology;
