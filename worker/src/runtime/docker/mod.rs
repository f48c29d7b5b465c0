//! The Docker runtime.

pub mod credentials;
pub mod labels;
pub mod pull;
pub mod refusal;
