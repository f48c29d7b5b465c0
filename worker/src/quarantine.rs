//! Messages that the client crate cannot read. Their header blocks are broken (not UTF-8, a lone carriage return, no colon),
//! the server takes them all the same, and whoever gets one handed out loses its connection over it. So they are looked
//! for where it shows: after a reconnect, and at a start that finds deliveries come again. Each becomes a dead letter.

use async_nats::HeaderMap;
use schemas::record::TaskRecord;
use schemas::{Code, Order, State, TaskError, TaskKey};

use jetstream::{ApiError, UnreadMessage};

use crate::nats::store::Letter;
use crate::worker::{Queue, Worker};

/// Most deliveries looked at in one sweep: a lost connection is not the moment to ask the server for everything.
const LOOKED_AT: usize = 500;

/// Looks through what is handed out of a queue and not settled, and takes out what cannot be read. `always`: also where
/// nothing was handed out twice.
pub async fn sweep(worker: &Worker, queue: &Queue, always: bool) {
    if let Err(error) = try_sweep(worker, queue, always).await {
        tracing::debug!(queue = %queue.name, %error, "unreadable messages not looked for");
    }
}

async fn try_sweep(worker: &Worker, queue: &Queue, always: bool) -> Result<(), ApiError> {
    let names = &worker.config.names;
    let stream = names.tasks_stream();
    let Some(consumer) = worker.js.consumer(&stream, queue.name.as_str()).await? else { return Ok(()) };
    if consumer.num_ack_pending == 0 || (consumer.num_redelivered == 0 && !always) {
        return Ok(());
    }
    let filter = names.queue_subjects(&queue.name);
    let mut from = consumer.ack_floor.stream_seq + 1;
    for _ in 0..LOOKED_AT {
        let Some(message) = worker.js.next_unread(&stream, &filter, from).await? else { return Ok(()) };
        if message.sequence > consumer.delivered.stream_seq {
            return Ok(());
        }
        from = message.sequence + 1;
        if !message.is_readable() {
            take_out(worker, &message).await?;
        }
    }
    Ok(())
}

/// Record, dead letter, event, delete: in that order, as always. What fails half way is done again by the next sweep.
async fn take_out(worker: &Worker, message: &UnreadMessage) -> Result<(), ApiError> {
    let names = &worker.config.names;
    let Some((queue, id)) = names.task_tokens(&message.subject) else { return Ok(()) };
    let error = TaskError::new(Code::InvalidTask, "its headers cannot be read");
    if let Ok(key) = format!("{queue}.{id}").parse::<TaskKey>() {
        let standing = worker.store.read(&key).await?;
        // The message is there, so whatever run a record names that is not this one came before.
        let of_this = |record: &TaskRecord| record.order_to(message.sequence, message.stored_at) == Order::Same;
        if !standing.record.as_ref().is_some_and(of_this) {
            let mut record = TaskRecord::new(&key, message.sequence, State::Failed, message.stored_at);
            record.keep_task(&message.payload);
            record.error = Some(error.clone());
            record.ended_at = Some(worker.js.now());
            match worker.store.write(&key, standing.revision, &record).await {
                Ok((revision, body)) => worker.store.tell(&key, revision, body).await,
                Err(error) => {
                    tracing::debug!(task = %key, %error, "left to the next sweep");
                    return Ok(());
                }
            }
        }
    }
    let letter = Letter {
        tokens: (queue, id),
        subject: &message.subject,
        sequence: message.sequence,
        stored_at: message.stored_at,
        attempts: 0,
        error: &error,
        headers: &HeaderMap::new(),
        payload: &message.payload,
    };
    let there = worker.store.has_letter(letter.tokens, (message.sequence, message.stored_at)).await?;
    if there || worker.store.bury(&letter, || true).await {
        worker.js.delete(&names.tasks_stream(), message.sequence).await?;
        tracing::warn!(subject = message.subject, "taken out: its headers cannot be read");
    }
    Ok(())
}
