//! Secrets: values that are wiped when they are dropped, and the mask over everything that leaves the worker.

mod found;
mod known;
mod mask;
mod written;

pub use found::{Found, find_all};
pub use mask::{LEAST_BYTES, Mask, MaskStream, TooShort};

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret value. Its memory is wiped when it is dropped; it prints as `***`. It has no `Clone` and no serde, so that no
/// copy is made by the way: share it as an `Arc`.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Takes a value over, without copying it.
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value, for the moment of its use.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
