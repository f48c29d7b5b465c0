//! What stands beside the workers: what exists on the server ([`topology`]) and what a program does with it
//! ([`client`]). No task passes through here. With the feature `server` also the dispatcher itself: what it looks after
//! ([`reconcile`]) and its HTTP ([`api`]).

#[cfg(feature = "server")]
pub mod api;
pub mod client;
#[cfg(feature = "server")]
mod doors;
mod fail_point;
#[cfg(feature = "server")]
mod micro;
#[cfg(feature = "server")]
pub mod reconcile;
#[cfg(feature = "server")]
mod server;
pub mod topology;

#[cfg(feature = "server")]
pub use server::{Config, DispatcherError, run};
