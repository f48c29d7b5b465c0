//! What a job wrote, as it lies in the stream of logs.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use dispatcher::client::Client;
use futures_util::StreamExt;
use schemas::TaskKey;

use super::BenchError;

/// How much of it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Line ends.
    pub lines: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Written {
    /// What so many lines of this size come to, with their ends.
    pub fn of(lines: usize, bytes: usize) -> Self {
        Self { lines: lines as u64, bytes: (lines * bytes) as u64 }
    }

    fn add(&mut self, piece: &[u8]) {
        self.lines += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.bytes += piece.len() as u64;
    }
}

/// Counts what lies in the stream of one task's log now, and nothing that comes later.
pub async fn count(client: &Client, key: &TaskKey) -> Result<Written, BenchError> {
    read(client, key).await.map_err(|error| BenchError::fleet("could not read the log", error))
}

async fn read(client: &Client, key: &TaskKey) -> Result<Written, Box<dyn std::error::Error + Send + Sync>> {
    let js = jetstream::new(client.js.client().clone());
    let stream = js.get_stream(client.names.logs_stream()).await?;
    let config = pull::OrderedConfig {
        filter_subject: client.names.task_logs_subjects(key),
        deliver_policy: DeliverPolicy::All,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let mut written = Written::default();
    let mut left = consumer.cached_info().num_pending;
    let mut messages = consumer.messages().await?;
    while left > 0 {
        let next = tokio::time::timeout(Duration::from_secs(30), messages.next()).await?;
        written.add(&next.ok_or("the log ended early")??.payload);
        left -= 1;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_across_pieces() {
        let mut written = Written::default();
        written.add(b"one\ntw");
        written.add(b"o\n");
        assert_eq!(written, Written { lines: 2, bytes: 8 });
    }
}
