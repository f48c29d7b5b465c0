//! Which secrets are in some bytes: what is to leave the worker is looked through.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Mask;
use super::known::known;

/// A secret that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its name, or its kind where nobody named it.
    pub name: String,
    /// Which one of its kind.
    which: u64,
}

impl Found {
    /// One that has a name of its own.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), which: 0 }
    }
}

/// The secrets of the mask that are in `bytes`, and those that are secrets by their form alone; each once.
pub fn find_all(mask: &Mask, bytes: &[u8]) -> BTreeSet<Found> {
    let mut found: BTreeSet<Found> = mask.find(bytes).into_iter().map(Found::named).collect();
    found.extend(known(bytes).map(|(name, secret)| {
        let mut hasher = DefaultHasher::new();
        secret.hash(&mut hasher);
        Found { name: name.to_owned(), which: hasher.finish() }
    }));
    found
}
