//! What JetStream has room for, for this account.

use serde::Deserialize;
use serde_json::json;

use crate::{ApiError, JetStream};

/// What an account uses and may use.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Bytes on disk.
    pub storage: u64,
    /// Bytes in memory.
    pub memory: u64,
    /// Bounds of the account, where it has one for all.
    pub limits: Limits,
    /// The same by tier (`R1`, `R3`), where bounds are set so.
    pub tiers: std::collections::BTreeMap<String, Tier>,
}

/// What is used and allowed of one tier.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Tier {
    /// Bytes on disk.
    pub storage: u64,
    /// Bytes in memory.
    pub memory: u64,
    /// Its bounds.
    pub limits: Limits,
}

/// Bounds; -1 or 0 is none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes on disk.
    pub max_storage: i64,
    /// Bytes in memory.
    pub max_memory: i64,
}

impl JetStream {
    /// What this account uses and may use.
    pub async fn account(&self) -> Result<Account, ApiError> {
        self.api("INFO", &json!({})).await
    }
}
