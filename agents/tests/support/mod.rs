//! What tests of this crate share: a shell of real processes, people, a keeper, and the scripted model.
#![allow(dead_code, missing_docs, reason = "each test uses a part of it")]

pub mod people;
pub mod scripted;
pub mod shell;
