//! Whole-fleet tests: real nats-server, real `shoal` processes, looked at from outside. One binary, one module a
//! behaviour; `support` is what they are made of.

mod agent_jobs;
mod artifacts;
mod bench;
mod bulk;
mod cancel;
mod cli;
mod comeback;
mod container;
#[cfg(feature = "containerd")]
mod containerd;
mod cordon;
mod doctor;
mod drain;
mod examples;
mod explain;
#[cfg(feature = "fail-points")]
mod failpoints;
mod functions;
mod garbage;
mod handlers;
mod harness;
mod http;
mod inspect;
mod load;
mod logs;
mod lost;
mod micro;
mod outage;
mod placement;
mod prefix;
mod process;
mod queues;
mod registry;
mod results;
mod retries;
mod run_image;
mod security;
mod setback;
mod submit;
#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the fault suite, which uses the rest")]
mod support;
mod up;
mod upgrade;
