//! What whole-fleet tests are made of: a real server, real programs, a plain NATS client, and ways to wait and to look.
//!
//! Nothing here uses Shoal's own code besides the wire types of `schemas`: what these tests see is what any outsider
//! sees. Every child dies with the thread of its test.

mod client;
mod cluster;
mod curl;
mod engine;
mod false_clock;
mod fleet;
mod http;
mod job;
mod ledger;
mod nats;
mod operator;
mod own_engine;
mod program;
mod proxy;
pub mod python;
mod raw;
mod registry;
pub mod repo;
mod small_disk;
mod system;
mod wait;

pub(crate) use engine::engine;

pub use client::{Client, Publish};
pub use cluster::Cluster;
pub use curl::{Answer, Event, curl, curl_stream, events};
pub use engine::{Engine, IMAGE, IMAGE_APP, IMAGE_ENTRYPOINT, IMAGE_FUNCTION, IMAGE_STATIC, IMAGE_USER};
pub use false_clock::FalseClock;
pub use fleet::{Fleet, FleetBuilder, WorkerBuilder, old_binary};
pub use http::unix as unix_http;
pub use job::{Job, With, container, echo, noop, process, shell, shell_in};
pub use ledger::Ledger;
pub use nats::Nats;
pub use operator::Operator;
pub use own_engine::OwnEngine;
pub use program::{Output, Program};
pub use proxy::{Proxy, Weather};
pub use raw::RawClient;
pub use registry::{Fault, Registry};
pub use small_disk::SmallDisk;
pub use system::{freeze, http_get, marked_processes, process_runs, random_word, signal};
pub use wait::{eventually, in_time};
