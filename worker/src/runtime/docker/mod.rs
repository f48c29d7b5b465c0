//! The Docker runtime.

pub mod credentials;
pub mod guard;
pub mod labels;
pub mod pull;
pub mod refusal;
pub mod sweep;
