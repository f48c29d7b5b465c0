//! Messages that their queue's consumer has behind itself without their being settled: in the stream, and nobody will
//! ever be given them. A damaged store brings settled ones back like that, a consumer made again by hand from the newest
//! message on skips the rest, one with a `max_deliver` gives up. They hold their ids for ever.
//!
//! What lies at or below the consumer's ack floor while it is in the stream is stranded for certain, and so is what was
//! handed out while nothing at all is pending. Seen twice, a second apart (in a cluster twelve), over one connection, it is
//! told, and the consumer is made again from the first message on, as soon as nothing is out (or after a while all the same): each run
//! is handed out once more and judged by its record. What was given up above the floor, while others are out, is found as
//! soon as the floor has passed it or nothing is out.

use std::collections::HashMap;

use jetstream::ConsumerState;
use schemas::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Rhythm, Watch};
use crate::client::ClientError;

/// How long a queue that is never idle may keep stranded messages waiting, in ack waits.
const PATIENCE: u32 = 4;

/// The oldest message of a queue that is stranded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stranded {
    sequence: u64,
    stored_at: Timestamp,
}

/// Looks every `every`.
pub async fn run(watch: Watch, stop: CancellationToken) {
    let mut rhythm = Rhythm::new(watch.every);
    // Since when each queue is known to have some.
    let mut since: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rhythm.ticks.tick() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            looked = turn(&watch, &mut since) => rhythm.report("stranded", looked),
        }
    }
}

async fn turn(watch: &Watch, since: &mut HashMap<String, Instant>) -> Result<(), ClientError> {
    let epoch = watch.connection.link.borrow().epoch;
    let mut suspects = Vec::new();
    for state in watch.js.consumers(&watch.names.tasks_stream()).await? {
        match oldest(watch, &state).await? {
            Some(stranded) => suspects.push((state.name, stranded)),
            None => {
                since.remove(&state.name);
            }
        }
    }
    if suspects.is_empty() {
        return Ok(());
    }
    super::settled(watch).await?;
    for (queue, stranded) in suspects {
        let Some(state) = watch.js.consumer(&watch.names.tasks_stream(), &queue).await? else { continue };
        let again = oldest(watch, &state).await?;
        if again != Some(stranded) || watch.connection.link.borrow().epoch != epoch {
            continue;
        }
        let known = since.entry(queue.clone()).or_insert_with(|| {
            tracing::error!(queue, sequence = stranded.sequence, "messages that are never handed out again");
            Instant::now()
        });
        if state.num_ack_pending > 0 && known.elapsed() < state.ack_wait() * PATIENCE {
            continue;
        }
        tracing::error!(queue, out = state.num_ack_pending, "made again so that they are handed out");
        watch.js.recreate_consumer(&watch.names.tasks_stream(), &state).await?;
        since.remove(&queue);
    }
    Ok(())
}

/// The oldest message of a queue, if it is stranded. The consumer was asked before the stream: what is settled in between
/// is gone by then.
async fn oldest(watch: &Watch, state: &ConsumerState) -> Result<Option<Stranded>, ClientError> {
    let Some(filter) = state.config.get("filter_subject").and_then(|filter| filter.as_str()) else { return Ok(None) };
    let behind = match state.num_ack_pending {
        0 => state.delivered.stream_seq.max(state.ack_floor.stream_seq),
        _ => state.ack_floor.stream_seq,
    };
    if behind == 0 {
        return Ok(None);
    }
    // The leader's own word, header unread: it may be one that no client can read.
    let first = watch.js.next_unread(&watch.names.tasks_stream(), filter, 1).await?;
    let first = first.filter(|message| message.sequence <= behind);
    Ok(first.map(|message| Stranded { sequence: message.sequence, stored_at: message.stored_at }))
}
