//! What a worker needs on the server: bound if there, made if missing and allowed.

use jetstream::{ApiError, ConsumerState, Ensure, JetStream, STREAM_NOT_FOUND};
use schemas::{QueueName, QueueSettings};

use crate::config::Config;

/// The consumer of one queue, and every store of the fleet if there is none yet.
pub async fn ensure_queue(js: &JetStream, config: &Config, queue: &QueueName) -> Result<ConsumerState, ApiError> {
    let stream = config.names.tasks_stream();
    match js.consumer(&stream, queue.as_str()).await {
        Ok(Some(consumer)) => return Ok(consumer),
        Ok(None) => {}
        Err(error) if error.err_code() == Some(STREAM_NOT_FOUND) => {
            let max_payload = js.client().max_payload();
            // The tasks' stream comes first in the list and last here: where it is, all are.
            for spec in config.names.streams(&config.stores, max_payload).iter().rev() {
                js.ensure_stream(spec, Ensure::Create).await?;
            }
        }
        Err(error) => return Err(error),
    }
    // Cap and pause act in the consumer; one that is made anew must have them from its first delivery on.
    let settings = read_settings(js, config, queue).await?;
    let mut spec = config.names.queue_consumer(queue, config.stores.ack_wait.0, settings.cap);
    spec.pause_until = settings.paused_until.filter(|until| *until > js.now());
    js.ensure_consumer(&stream, &spec).await
}

/// The stores of agent jobs, where a fleet of an older version has none yet.
pub async fn ensure_agents(js: &JetStream, config: &Config) -> Result<(), ApiError> {
    let names = &config.names;
    let own = [
        format!("OBJ_{}", names.kept_bucket(14)),
        format!("OBJ_{}", names.kept_bucket(30)),
        format!("KV_{}", names.slots_bucket()),
        format!("KV_{}", names.playbooks_bucket()),
        names.talk_stream(),
    ];
    let specs = names.streams(&config.stores, js.client().max_payload());
    for spec in specs.iter().filter(|spec| own.contains(&spec.name)) {
        if js.stream_state(&spec.name).await?.is_none() {
            js.ensure_stream(spec, Ensure::Create).await?;
        }
    }
    Ok(())
}

/// What is set for a queue; the defaults where nothing is.
pub async fn read_settings(js: &JetStream, config: &Config, queue: &QueueName) -> Result<QueueSettings, ApiError> {
    let names = &config.names;
    let stream = format!("KV_{}", names.queues_bucket());
    let entry = js.last(&stream, &names.queue_subject(queue)).await?.filter(|entry| !entry.is_marker());
    Ok(entry.and_then(|entry| serde_json::from_slice(&entry.payload).ok()).unwrap_or_default())
}

/// What tells this fleet from every other one, also of the same prefix: when its tasks' stream was made. As long as that
/// stream is there, a worker id names one worker.
pub async fn fleet(js: &JetStream, config: &Config) -> Result<String, ApiError> {
    let stream = config.names.tasks_stream();
    let created = js.stream_created(&stream).await?.map_or(0, schemas::Timestamp::as_millis);
    Ok(fleet_of(config.names.prefix(), created))
}

/// The same, of a fleet whose tasks' stream was made at `created`, in milliseconds since 1970.
pub fn fleet_of(prefix: &schemas::Prefix, created: i64) -> String {
    format!("{prefix}-{created:x}")
}
