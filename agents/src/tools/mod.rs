//! What a model may do in a workspace.
//!
//! [`place`] is a path as a model names it, [`tree`] the files of a workspace that may be hostile, [`walk`] goes through
//! them, [`files`] and [`search`] are the tools over them, [`output`] bounds what is shown, [`toolbox`] takes calls.

pub mod files;
pub mod output;
pub mod place;
pub mod schema;
pub mod search;
pub mod toolbox;
pub mod tree;
pub mod walk;

pub use toolbox::{Answer, Effect, Tool, Toolbox};
