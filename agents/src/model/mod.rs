//! A model behind an OpenAI-compatible endpoint, as an implementer.
//!
//! [`client`] asks for one answer, tries again what may pass; [`transport`] is HTTP, [`answer`] puts streamed pieces
//! together. [`conversation`] is what was said so far, kept within bounds; [`watch`] sees that it goes round in circles;
//! [`implementer`] is the loop over them.

pub mod answer;
pub mod client;
pub mod conversation;
pub mod implementer;
pub mod price;
pub mod summary;
pub mod transport;
pub mod watch;

pub use answer::{Answer, Call, Usage};
pub use client::{Client, Failure, Settings};
pub use implementer::{Limits, ModelImplementer};
pub use price::Prices;
