//! What a newer version wrote and this one does not know: kept, and written back as it came.
//!
//! Old and new binaries live together in one fleet. A record that is read, changed and written back by the older one must
//! not lose what the newer one put there.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// Fields of a newer version, by name. Flattened into what is read and rewritten; it is no part of a JSON Schema, which
/// allows more fields by itself, and the strict door refuses them. Mostly there are none, and every record has several of
/// these: it is as small as a pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct More(Option<Box<Map<String, Value>>>);

impl More {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.as_ref()?.get(name)
    }
}

impl Serialize for More {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().flat_map(|fields| fields.iter()))
    }
}

impl<'de> Deserialize<'de> for More {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Map::deserialize(deserializer)?;
        Ok(Self((!fields.is_empty()).then(|| Box::new(fields))))
    }
}

/// A word of a newer version where ours are an enum. Kept as it is; small and `Copy`, for the enums that hold one are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word(&'static str);

/// Longest word that is kept.
const LONGEST: usize = 64;
/// Words kept in the life of a program: they are never given back, and what is read may be hostile.
const MOST: usize = 1_024;

static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

impl Word {
    /// The word; `unknown` if it is too long, or one too many.
    pub fn new(text: &str) -> Self {
        const UNKNOWN: Word = Word("unknown");
        if text.is_empty() || text.len() > LONGEST {
            return UNKNOWN;
        }
        let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(word) = words.get(text) {
            return Self(word);
        }
        if words.len() >= MOST {
            return UNKNOWN;
        }
        let word: &'static str = Box::leak(text.into());
        words.insert(word);
        Self(word)
    }

    /// As it is on the wire.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.0)
    }
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(&std::borrow::Cow::<str>::deserialize(deserializer)?))
    }
}

/// The schema of an enum names our own words and no others: exactly one of them.
pub(crate) fn one_of(schema: &mut schemars::Schema) {
    if let Some(words) = schema.remove("anyOf") {
        schema.insert("oneOf".into(), words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_kept_and_a_hostile_one_is_not() {
        assert_eq!(Word::new("from_tomorrow"), Word::new("from_tomorrow"));
        assert_eq!(serde_json::from_str::<Word>(r#""from_tomorrow""#).unwrap().as_str(), "from_tomorrow");
        assert_eq!(Word::new(&"x".repeat(LONGEST + 1)).as_str(), "unknown");
        assert!(serde_json::from_str::<Word>("7").is_err());
    }
}
