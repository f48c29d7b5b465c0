//! Ids as newtypes, checked where they enter: each is one NATS subject token and one valid KV key part.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {kind}: allowed is {allowed}")]
pub struct InvalidId {
    kind: &'static str,
    value: String,
    allowed: &'static str,
}

fn check(
    kind: &'static str,
    value: &str,
    allowed: &'static str,
    most: usize,
    fits: impl Fn(u8) -> bool,
) -> Result<(), InvalidId> {
    if (1..=most).contains(&value.len()) && value.bytes().all(fits) {
        return Ok(());
    }
    // A hostile id may be a megabyte long; an error message need not be.
    let shown: String = value.chars().take(64).collect();
    Err(InvalidId { kind, value: shown, allowed })
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $allowed:literal, $pattern:literal, $most:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
        #[serde(try_from = "String")]
        #[schemars(with = "String", extend("pattern" = $pattern))]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps `value`.
            pub fn new(value: impl AsRef<str>) -> Result<Self, InvalidId> {
                let value = value.as_ref();
                check($kind, value, $allowed, $most, $fits)?;
                Ok(Self(value.into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().into()
            }
        }
    };
}

fn word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-'
}

id!(
    /// A task's id: the last token of its subject, and a lock while it is queued or running.
    TaskId, "task id", "1 to 128 of A-Z a-z 0-9 _ -", "^[A-Za-z0-9_-]{1,128}$", 128, word
);
id!(
    /// The name of a queue.
    QueueName, "queue name", "1 to 64 of a-z 0-9 _ -", "^[a-z0-9_-]{1,64}$", 64, lower
);
id!(
    /// A worker's id, the same over restarts.
    AgentId, "agent id", "1 to 64 of a-z 0-9 _ -", "^[a-z0-9_-]{1,64}$", 64, lower
);
id!(
    /// The name of a function.
    FunctionName, "function name", "1 to 64 of a-z 0-9 _ -", "^[a-z0-9_-]{1,64}$", 64, lower
);
id!(
    /// The random id of one start of one attempt. It is the fence: only its holder may write the record on.
    StartId, "start id", "1 to 32 of a-z 0-9", "^[a-z0-9]{1,32}$", 32, |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit()
);

/// A task's whole identity: `<queue>.<id>`. Also its key in the records' bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey {
    /// The queue it was published to.
    pub queue: QueueName,
    /// The id within that queue.
    pub id: TaskId,
}

impl TaskKey {
    /// Puts the two parts together.
    pub fn new(queue: QueueName, id: TaskId) -> Self {
        Self { queue, id }
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.queue, self.id)
    }
}

impl FromStr for TaskKey {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let (queue, id) = value.split_once('.').ok_or_else(|| InvalidId {
            kind: "task key",
            value: value.chars().take(64).collect(),
            allowed: "<queue>.<id>",
        })?;
        Ok(Self { queue: queue.parse()?, id: id.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_subject_token_and_one_key_part() {
        for good in ["a", "order-42", "A_b-9", &"x".repeat(128)] {
            assert!(TaskId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a:b", "ü", "a b", "a*", ">", "a%20", &"x".repeat(129)] {
            assert!(TaskId::new(bad).is_err(), "{bad}");
        }
        assert!(QueueName::new("Default").is_err());
    }

    #[test]
    fn a_key_reads_back_what_it_prints() {
        let key: TaskKey = "default.order-42".parse().unwrap();
        assert_eq!(key.to_string(), "default.order-42");
        assert!("order-42".parse::<TaskKey>().is_err());
    }
}
