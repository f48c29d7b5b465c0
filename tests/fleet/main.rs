//! Whole-fleet tests: real nats-server, real `shoal` processes, looked at from outside. One binary, one module a
//! behaviour; `support` is what they are made of.

mod bench;
mod cancel;
mod cli;
mod container;
mod drain;
mod examples;
#[cfg(feature = "fail-points")]
mod failpoints;
mod garbage;
mod handlers;
mod harness;
mod inspect;
mod load;
mod logs;
mod lost;
mod outage;
mod placement;
mod prefix;
mod process;
mod queues;
mod registry;
mod results;
mod retries;
mod security;
mod submit;
mod support;
mod up;
