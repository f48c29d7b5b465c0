//! Mirrors, slots, changes and pushes with the real git, on real remotes.

mod change;
mod disk;
#[path = "../support/host.rs"]
mod host;
mod hostile;
mod http;
mod keep;
mod measure;
mod push;
mod sift;
mod slots;
mod support;
