//! Images straight from their registries, for engines that pull none themselves and for registries that the worker's
//! settings speak of.
//!
//! ```text
//! resolve:  name -> manifest of this platform       a request or two, nothing of the image itself
//! fetch:    manifest -> config and layers as files  some at once, every digest verified, a cut one again
//! ```
//!
//! Nothing is unpacked here and nothing kept: whoever pulls says where the files go, and that one pull of an image is
//! enough for all that wait for it.

mod client;
pub mod credentials;
mod error;
mod settings;

pub use client::{Blob, Platform, Progress, Pulled, Registries, Resolved};
pub use error::PullError;
pub use settings::{RegistrySetting, RegistrySettings, Scheme};
