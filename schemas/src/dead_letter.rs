//! A dead letter: a task given up, on `shoal.dead.<queue>.<id>`. The body is the message as it came, byte for byte;
//! its own headers are kept (never `Nats-*`), and ours tell why.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::time::Timestamp;

/// A dead letter as read back, without its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// Its place in the stream of dead letters.
    pub dead_sequence: u64,
    /// Queue token, valid or not.
    pub queue: String,
    /// Id token, valid or not.
    pub id: String,
    /// Sequence the task had.
    pub sequence: u64,
    /// Why it was given up.
    pub reason: Code,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How many attempts were spent.
    pub attempts: u32,
    /// When it was written.
    pub at: Timestamp,
    /// Size of the body.
    pub bytes: u64,
}
