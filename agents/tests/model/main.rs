//! The model implementer against a scripted endpoint: real HTTP, real streams, real files, real commands.

#[path = "../support/mod.rs"]
mod support;
