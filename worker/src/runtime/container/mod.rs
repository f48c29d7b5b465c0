//! What the runtimes of container engines have in common.

#![cfg(target_os = "linux")]

pub(in crate::runtime) mod files;
pub mod guard;
pub(in crate::runtime) mod jobs;
pub(in crate::runtime) mod keeper;
pub mod labels;
pub(in crate::runtime) mod usage;
pub(in crate::runtime) mod words;
