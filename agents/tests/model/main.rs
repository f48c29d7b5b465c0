//! The model implementer against a scripted endpoint: real HTTP, real streams, real files, real commands.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod budgets;
mod circles;
mod endpoint;
mod tools;
mod work;
