//! What whole-fleet tests are made of: a real server, real programs, a plain NATS client, and ways to wait and to look.
//!
//! Nothing here uses Shoal's own code besides the wire types of `schemas`: what these tests see is what any outsider
//! sees. Every child dies with the thread of its test.

mod client;
mod curl;
mod fleet;
mod job;
mod ledger;
mod nats;
mod operator;
mod program;
mod proxy;
mod raw;
mod system;
mod wait;

pub use client::{Client, Publish};
pub use curl::{Answer, Event, curl, curl_stream, events};
pub use fleet::{Fleet, FleetBuilder};
pub use job::{Job, With, echo, noop, process, shell};
pub use ledger::Ledger;
pub use nats::Nats;
pub use operator::Operator;
pub use program::{Output, Program};
pub use proxy::Proxy;
pub use raw::RawClient;
pub use system::{http_get, marked_processes, process_runs, random_word, signal};
pub use wait::{eventually, in_time};
