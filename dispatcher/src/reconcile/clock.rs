//! The server's clock, by which stored messages are judged: ours may be wrong by an hour, and so may an agent's.

use jetstream::{ApiError, JetStream};
use schemas::Timestamp;
use serde::Deserialize;
use serde_json::json;

/// What a stream holds, and when the server said so.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The server's present.
    pub now: Timestamp,
    /// Sequence of the oldest message.
    pub first: u64,
    /// Sequence of the newest message ever stored.
    pub last: u64,
}

#[derive(Deserialize)]
struct Info {
    /// Absent before 2.10.
    ts: Option<Timestamp>,
    state: State,
}

#[derive(Deserialize)]
struct State {
    first_seq: u64,
    last_seq: u64,
}

/// Asks the stream's leader.
pub async fn look(js: &JetStream, stream: &str) -> Result<Look, ApiError> {
    let Info { ts, state } = js.api(&format!("STREAM.INFO.{stream}"), &json!({})).await?;
    Ok(Look { now: ts.unwrap_or_else(Timestamp::now), first: state.first_seq, last: state.last_seq })
}
