//! What each stream and bucket must look like, as data: the JSON of the JetStream API.

use std::time::Duration;

use serde::Serialize;

use crate::ids::QueueName;
use crate::names::Names;
use crate::quantity::Bytes;
use crate::time::{HumanDuration, Timestamp};

/// Where a store lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In the server's memory: gone with it.
    Memory,
}

impl std::str::FromStr for Storage {
    type Err = &'static str;
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "file" => Ok(Self::File),
            "memory" => Ok(Self::Memory),
            _ => Err("allowed is `file` or `memory`"),
        }
    }
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Memory => "memory",
        })
    }
}

/// What an operator may set. Defaults are the design's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Copies of every store.
    pub replicas: u8,
    /// Disk or memory.
    pub storage: Storage,
    /// How long logs stay.
    pub logs_kept: HumanDuration,
    /// How much log stays.
    pub logs_bytes: Bytes,
    /// How long dead letters stay.
    pub dead_kept: HumanDuration,
    /// How long artifacts and large results stay.
    pub artifacts_kept: HumanDuration,
    /// Lease of a delivery, for queues not made yet.
    pub ack_wait: HumanDuration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        const DAY: u64 = 86_400;
        Self {
            replicas: 1,
            storage: Storage::File,
            logs_kept: HumanDuration::seconds(3 * DAY),
            logs_bytes: Bytes(10 << 30),
            dead_kept: HumanDuration::seconds(30 * DAY),
            artifacts_kept: HumanDuration::seconds(7 * DAY),
            ack_wait: HumanDuration::seconds(15),
        }
    }
}

/// How long a terminal record stays, unless set otherwise: seven days.
pub const RECORDS_KEPT: HumanDuration = HumanDuration::seconds(7 * 86_400);
/// Room between a task and the server's `max_payload`, so that its dead letter with headers still fits.
pub const TASK_HEADROOM_BYTES: usize = 64 << 10;
/// Open pulls a queue's consumer holds; the server's default of 512 would stop the 513th worker, and it cannot be
/// changed later.
pub const MAX_WAITING: u32 = 16_384;
/// Deliveries out at once without a cap; the server's default of 1,000 would stop a fleet there.
pub const MAX_ACK_PENDING: u32 = 100_000;
/// A wish for an instance that nobody has taken is forgotten after this; whoever still wants it wishes again.
pub const ENSURE_KEPT: Duration = Duration::from_secs(600);
/// Results of tests stay for so long.
pub const TESTS_KEPT: Duration = Duration::from_secs(14 * 86_400);
/// Diffs and transcripts of agent jobs stay for so long.
pub const CHANGES_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// What agents say and are told stays as long as logs do by default.
pub const TALK_KEPT: Duration = Duration::from_secs(3 * 86_400);
/// A workspace's lease that nobody renews is forgotten after this.
pub const LEASES_KEPT: Duration = Duration::from_secs(600);
/// The agents' registry forgets after a day.
pub const AGENTS_KEPT: Duration = Duration::from_secs(86_400);

/// Configuration of one stream, as `STREAM.CREATE` takes it. Only what Shoal decides; the rest is the server's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamSpec {
    /// The stream's name.
    pub name: String,
    /// What it is, for people who list streams.
    pub description: &'static str,
    /// What it takes.
    pub subjects: Vec<String>,
    /// `limits` or `workqueue`.
    pub retention: &'static str,
    /// Disk or memory.
    pub storage: Storage,
    /// Copies.
    pub num_replicas: u8,
    /// `old` or `new`.
    pub discard: &'static str,
    /// Refuse a second message on a subject instead of replacing the first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub discard_new_per_subject: bool,
    /// Messages per subject, -1 for any number.
    pub max_msgs_per_subject: i64,
    /// Nanoseconds; 0 for ever.
    pub max_age: u64,
    /// -1 for any size.
    pub max_bytes: i64,
    /// -1 for the server's limit.
    pub max_msg_size: i64,
    /// Reads that do not pass the API queue; also what paged reads need.
    pub allow_direct: bool,
    /// Per-message time to live.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_msg_ttl: bool,
    /// Purge by header, which KV and object stores use.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_rollup_hdrs: bool,
    /// KV buckets forbid deleting by sequence.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deny_delete: bool,
}

/// Configuration of one queue's consumer, as `CONSUMER.CREATE` takes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConsumerSpec {
    /// The queue's name.
    pub name: String,
    /// The same: it outlives its workers.
    pub durable_name: String,
    /// The queue's subjects.
    pub filter_subject: String,
    /// Explicit.
    pub ack_policy: &'static str,
    /// Nanoseconds: the lease.
    pub ack_wait: u64,
    /// Unlimited: giving up is Shoal's act, with a record and a dead letter.
    pub max_deliver: i64,
    /// Open pulls.
    pub max_waiting: u32,
    /// Deliveries out at once: the queue's cap.
    pub max_ack_pending: u32,
    /// From the first message on.
    pub deliver_policy: &'static str,
    /// At once.
    pub replay_policy: &'static str,
    /// Nothing is handed out before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_until: Option<Timestamp>,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Names {
    /// Every stream of the fleet. `max_payload` is the server's, from its greeting.
    pub fn streams(&self, settings: &StoreSettings, max_payload: usize) -> Vec<StreamSpec> {
        let plain = |name: String, description, subjects: Vec<String>| StreamSpec {
            name,
            description,
            subjects,
            retention: "limits",
            storage: settings.storage,
            num_replicas: settings.replicas,
            discard: "old",
            discard_new_per_subject: false,
            max_msgs_per_subject: -1,
            max_age: 0,
            max_bytes: -1,
            max_msg_size: -1,
            allow_direct: true,
            allow_msg_ttl: false,
            allow_rollup_hdrs: false,
            deny_delete: false,
        };
        let bucket = |bucket: String, description| StreamSpec {
            discard: "new",
            max_msgs_per_subject: 1,
            allow_rollup_hdrs: true,
            deny_delete: true,
            ..plain(format!("KV_{bucket}"), description, vec![format!("$KV.{bucket}.>")])
        };
        let objects = |bucket: String, description, kept| StreamSpec {
            discard: "new",
            allow_rollup_hdrs: true,
            max_age: nanos(kept),
            ..plain(format!("OBJ_{bucket}"), description, vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")])
        };
        vec![
            StreamSpec {
                retention: "workqueue",
                discard: "new",
                discard_new_per_subject: true,
                max_msgs_per_subject: 1,
                max_msg_size: i64::try_from(max_payload.saturating_sub(TASK_HEADROOM_BYTES)).unwrap_or(-1),
                ..plain(self.tasks_stream(), "Shoal: queued and running tasks", vec![self.tasks_subjects()])
            },
            StreamSpec { allow_msg_ttl: true, ..bucket(self.records_bucket(), "Shoal: task records") },
            StreamSpec { max_age: nanos(AGENTS_KEPT), ..bucket(self.agents_bucket(), "Shoal: agent registry") },
            bucket(self.queues_bucket(), "Shoal: queue settings"),
            bucket(self.functions_bucket(), "Shoal: function definitions"),
            bucket(self.instances_bucket(), "Shoal: instances of functions"),
            StreamSpec {
                retention: "workqueue",
                discard: "new",
                discard_new_per_subject: true,
                max_msgs_per_subject: 1,
                // Nobody waits that long; a wish that nobody serves must not stand in the way for ever.
                max_age: nanos(ENSURE_KEPT),
                max_msg_size: 64 << 10,
                ..plain(self.ensure_stream(), "Shoal: wishes for instances", vec![self.ensure_subjects()])
            },
            StreamSpec {
                max_age: nanos(settings.logs_kept.0),
                max_bytes: i64::try_from(settings.logs_bytes.0).unwrap_or(-1),
                ..plain(self.logs_stream(), "Shoal: log lines", vec![self.logs_subjects()])
            },
            StreamSpec {
                max_age: nanos(settings.dead_kept.0),
                ..plain(self.dead_stream(), "Shoal: dead letters", vec![self.dead_subjects()])
            },
            objects(self.artifacts_bucket(), "Shoal: artifacts and large results", settings.artifacts_kept.0),
            objects(self.kept_bucket(14), "Shoal: artifacts kept for 14 days", TESTS_KEPT),
            objects(self.kept_bucket(30), "Shoal: artifacts kept for 30 days", CHANGES_KEPT),
            StreamSpec {
                allow_msg_ttl: true,
                max_age: nanos(LEASES_KEPT),
                ..bucket(self.slots_bucket(), "Shoal: workspaces of agent jobs")
            },
            bucket(self.playbooks_bucket(), "Shoal: named playbooks"),
            StreamSpec {
                // No bound of bytes: a server sets a bound aside from its disk, and this is little beside the logs.
                max_age: nanos(TALK_KEPT),
                ..plain(self.talk_stream(), "Shoal: what agents say and are told", self.talk_subjects().into())
            },
        ]
    }

    /// The consumer of one queue.
    pub fn queue_consumer(&self, queue: &QueueName, ack_wait: Duration, cap: Option<u32>) -> ConsumerSpec {
        self.consumer(queue, self.queue_subjects(queue), ack_wait, cap)
    }

    /// The consumer of one pool's wishes for instances.
    pub fn pool_consumer(&self, pool: &QueueName, ack_wait: Duration) -> ConsumerSpec {
        self.consumer(pool, self.pool_subjects(pool), ack_wait, None)
    }

    fn consumer(&self, name: &QueueName, filter: String, ack_wait: Duration, cap: Option<u32>) -> ConsumerSpec {
        ConsumerSpec {
            name: name.to_string(),
            durable_name: name.to_string(),
            filter_subject: filter,
            ack_policy: "explicit",
            ack_wait: nanos(ack_wait),
            max_deliver: -1,
            max_waiting: MAX_WAITING,
            max_ack_pending: cap.unwrap_or(MAX_ACK_PENDING),
            deliver_policy: "all",
            replay_policy: "instant",
            pause_until: None,
        }
    }
}
