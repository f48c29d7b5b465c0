//! What must exist on the server: streams and buckets of a fleet, consumers of its queues. Made if missing, brought up
//! to date when asked, never emptied.

use jetstream::{ApiError, ConsumerState, Ensure, Ensured, JetStream, STREAM_NOT_FOUND};
use schemas::loss::{self, Loss};
use schemas::stores::{StoreSettings, StreamSpec};
use schemas::{Names, QueueName, QueueSettings, Timestamp};

/// Why a store or a queue could not be made so.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The server has no JetStream, or none for this account.
    #[error("JetStream is not enabled on this server")]
    NoJetStream {
        /// Its words.
        source: ApiError,
    },
    /// The store asks for more than the server has.
    #[error("stream {stream} is larger than the server takes")]
    TooLarge {
        /// Which stream.
        stream: String,
        /// The setting to lower, where one decides its size.
        setting: Option<&'static str>,
        /// The server's words.
        source: ApiError,
    },
    /// More copies than servers.
    #[error("stream {stream} cannot have {replicas} replicas here")]
    Replicas {
        /// Which stream.
        stream: String,
        /// How many were asked for.
        replicas: u8,
        /// The server's words.
        source: ApiError,
    },
    /// The settings of a queue cannot be read.
    #[error("the settings of queue {queue} are unreadable")]
    Unreadable {
        /// Which queue.
        queue: QueueName,
        /// Where.
        source: serde_json::Error,
    },
    /// Anything else, with what it was about.
    #[error("cannot make {what} as it should be")]
    Api {
        /// Stream or queue.
        what: String,
        /// The server's words.
        source: ApiError,
    },
}

/// Insufficient storage, insufficient memory, and the account's own bounds on either.
const TOO_LARGE: [u32; 5] = [10047, 10028, 10002, 10023, 10122];
/// Replicas without a cluster, and no peers for so many.
const REPLICAS: [u32; 2] = [10074, 10005];
/// JetStream is off: for the server, for the account.
const NO_JETSTREAM: [u32; 2] = [10076, 10039];

impl TopologyError {
    fn of_stream(spec: &StreamSpec, names: &Names, source: ApiError) -> Self {
        let stream = spec.name.clone();
        match source.err_code() {
            Some(code) if TOO_LARGE.contains(&code) => {
                let setting = (stream == names.logs_stream()).then_some("logs_bytes");
                Self::TooLarge { stream, setting, source }
            }
            Some(code) if REPLICAS.contains(&code) => Self::Replicas { stream, replicas: spec.num_replicas, source },
            _ => Self::other(format!("stream {stream}"), source),
        }
    }

    fn other(what: String, source: ApiError) -> Self {
        let off = source.err_code().is_some_and(|code| NO_JETSTREAM.contains(&code));
        if off || matches!(source, ApiError::NoResponders { .. }) {
            return Self::NoJetStream { source };
        }
        Self::Api { what, source }
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoJetStream { source } | Self::Api { source, .. } => source.is_transient(),
            Self::TooLarge { .. } | Self::Replicas { .. } | Self::Unreadable { .. } => false,
        }
    }

    /// What to try next, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoJetStream { .. } => Some(
                "start the server with JetStream (`nats-server -js`), or give this account JetStream; a user without \
                 permission for `$JS.API.>` sees the same"
                    .into(),
            ),
            Self::TooLarge { setting: Some(setting), .. } => {
                Some(format!("lower `{setting}`, or give the server more with `max_file_store`"))
            }
            Self::TooLarge { setting: None, .. } => {
                Some("give the server more with `max_file_store` (`max_memory_store` for memory)".into())
            }
            Self::Replicas { .. } => {
                Some("set `replicas` to 1, or to no more than the number of servers in the cluster".into())
            }
            Self::Unreadable { queue, .. } => Some(format!("write them again with `shoal queues set {queue}`")),
            Self::Api { source, .. } => {
                source.err_code().is_some_and(|code| code == STREAM_NOT_FOUND).then(|| SET_UP.into())
            }
        }
    }
}

/// What helps where a stream is missing.
pub(crate) const SET_UP: &str = "make the fleet's streams and buckets with `shoal admin apply`";

/// Makes every stream and bucket of the fleet so, in a fixed order. Idempotent; many may do it at once.
pub async fn ensure(
    js: &JetStream,
    names: &Names,
    settings: &StoreSettings,
    how: Ensure,
) -> Result<Vec<(String, Ensured)>, TopologyError> {
    let max_payload = js.max_payload();
    let mut done = Vec::new();
    for spec in names.streams(settings, max_payload) {
        let ensured =
            js.ensure_stream(&spec, how).await.map_err(|source| TopologyError::of_stream(&spec, names, source))?;
        done.push((spec.name, ensured));
    }
    Ok(done)
}

/// Takes the note of what the server's store lost off the stream of tasks: somebody has read it. Returns what it told;
/// what was told is not noted again.
pub async fn clear_loss(js: &JetStream, names: &Names) -> Result<Vec<Loss>, TopologyError> {
    let mut told = Vec::new();
    let change = |notes: &mut _| told = loss::mark_read(notes);
    let stream = names.tasks_stream();
    js.change_metadata(&stream, change)
        .await
        .map_err(|source| TopologyError::other(format!("stream {stream}"), source))?;
    Ok(told)
}

/// The consumer of `queue`, made if missing, then with the cap and the pause that are set for the queue. One that
/// exists is taken as it is.
pub async fn ensure_queue(
    js: &JetStream,
    names: &Names,
    settings: &StoreSettings,
    queue: &QueueName,
) -> Result<ConsumerState, TopologyError> {
    let failed = |source| TopologyError::other(format!("queue {queue}"), source);
    let stream = names.tasks_stream();
    if let Some(state) = js.consumer(&stream, queue.as_str()).await.map_err(failed)? {
        return Ok(state);
    }
    let bucket = format!("KV_{}", names.queues_bucket());
    let entry = js.last(&bucket, &names.queue_subject(queue)).await.map_err(failed)?;
    let set: QueueSettings = match entry.filter(|entry| !entry.is_marker()) {
        Some(entry) => serde_json::from_slice(&entry.payload)
            .map_err(|source| TopologyError::Unreadable { queue: queue.clone(), source })?,
        None => QueueSettings::default(),
    };
    let mut spec = names.queue_consumer(queue, settings.ack_wait.0, set.cap);
    // Part of the creation: between a creation and a pause somebody would pull.
    spec.pause_until = set.paused_until.filter(|until| *until > Timestamp::now());
    js.ensure_consumer(&stream, &spec).await.map_err(failed)
}
