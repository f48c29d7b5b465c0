//! What is wrong with a fleet: the answer of `shoal doctor`. `docs/doctor.md` has the table of codes, made from here.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::time::Timestamp;

/// What was found at one moment, and what was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DoctorReport {
    /// When the looking ended.
    pub at: Timestamp,
    /// Where the server is.
    pub server: String,
    /// Its version.
    pub version: String,
    /// What is wrong, the worst first; empty if nothing is.
    pub findings: Vec<Finding>,
    /// What was looked at, and how much of it where only a part was.
    pub looked_at: Vec<String>,
    /// What cannot be seen from here, and how to see it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// For programs.
    pub code: FindingCode,
    /// What it is about: `queue default`, `agent w-1`, `task default.a`, `stream SHOAL_TASKS`, …
    pub about: String,
    /// For people.
    pub message: String,
    /// What was seen, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, Value>,
    /// The next thing to try.
    pub next: String,
}

/// How bad a finding is; the worst is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something does not work, or was lost.
    Error,
    /// Something will not work for long, or could not be looked at.
    Warning,
    /// Good to know; heals by itself, or is a choice.
    Info,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

impl Finding {
    /// A finding without evidence yet.
    pub fn new(severity: Severity, code: FindingCode, about: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            about: about.into(),
            message: String::new(),
            evidence: BTreeMap::new(),
            next: String::new(),
        }
    }

    /// The same with words for people.
    pub fn says(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// The same with something that was seen.
    pub fn seen(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.evidence.insert(name.to_owned(), value.into());
        self
    }

    /// The same with the next thing to try.
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: next.into(), ..self }
    }
}

impl DoctorReport {
    /// The worst that was found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).min()
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal, $severity:literal;)+) => {
        /// What is wrong. API: a code keeps its word and its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum FindingCode {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $name,)+
        }

        impl FindingCode {
            /// Every code.
            pub const ALL: &[FindingCode] = &[$(FindingCode::$name,)+];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// How bad it is, in words.
            pub fn severity(self) -> &'static str {
                match self {
                    $(Self::$name => $severity,)+
                }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc,)+).trim_ascii(),)+
                }
            }
        }
    };
}

codes! {
    /// Something could not be looked at: no permission, or no answer in time.
    CheckFailed = "check_failed", "warning";
    /// The server is older than 2.12.
    ServerTooOld = "server_too_old", "error";
    /// The server is older than 2.14: schedules by cron are not there.
    ServerWithoutCron = "server_without_cron", "info";
    /// The server has no JetStream, or none for this account.
    JetstreamUnavailable = "jetstream_unavailable", "error";
    /// The server says of itself that it is not well. Seen only with `--monitor`.
    ServerUnhealthy = "server_unhealthy", "error";
    /// The monitoring address that was named does not answer.
    MonitorUnreachable = "monitor_unreachable", "warning";
    /// One copy, and the server does not sync each write: a power loss takes what it acknowledged since the last sync. Seen only with `--monitor`.
    SyncIntervalLong = "sync_interval_long", "info";
    /// The server's `max_payload` is smaller than a record with a large result can be.
    MaxPayloadSmall = "max_payload_small", "warning";
    /// Little room is left for what JetStream stores: above 80 % a warning, above 95 % an error.
    StorageLow = "storage_low", "warning, error";
    /// Fewer copies of a store than this cluster could keep.
    ReplicasLow = "replicas_low", "warning";
    /// A server is down or its copies of stores are behind.
    ReplicaBehind = "replica_behind", "warning";
    /// A stream or bucket of the fleet is not there.
    StoreMissing = "store_missing", "error";
    /// A stream or bucket is not as Shoal needs it; `shoal admin apply` would change it, or cannot.
    StoreDrifted = "store_drifted", "warning";
    /// A setting that is the operator's choice is another one than doctor was told.
    StoreSettingsDiffer = "store_settings_differ", "info";
    /// A dispatcher saw that the server lost messages.
    StoreLossReported = "store_loss_reported", "error";
    /// A record names a sequence that its stream has not reached: the store was set back, or made anew.
    StoreSetBack = "store_set_back", "error";
    /// This user may not do what the role needs: an error for a role named with `--role`, a warning for what doctor itself needs, else told by the way.
    PermissionMissing = "permission_missing", "error, warning, info";
    /// The clock of this machine differs from the server's: above 2 s a warning, above 10 s an error.
    ClockOff = "clock_off", "warning, error";
    /// The time stamp in an agent's beat differs from the time at which the server stored it.
    AgentClockOff = "agent_clock_off", "warning";
    /// No dispatcher answers: nobody ends expired tasks, records without a message, and silent agents' status.
    NoDispatcher = "no_dispatcher", "info";
    /// Tasks wait, pulls are open, nothing hinders, and nothing was handed out between two looks.
    QueueStuck = "queue_stuck", "error";
    /// Tasks wait in a queue that no living worker serves.
    QueueWithoutWorker = "queue_without_worker", "warning";
    /// A queue's consumer is not as Shoal needs it, or as the queue is set.
    QueueDrifted = "queue_drifted", "warning";
    /// Messages on subjects that no worker takes: the queue or the id is not a valid one.
    UnroutableMessages = "unroutable_messages", "warning";
    /// Its record says `running`, but nobody runs it: its worker is gone, or does not name it. A warning while the server will still hand it out again.
    TaskWithoutAttempt = "task_without_attempt", "warning, info";
    /// A task was handed out, is still there, and its consumer waits for nobody's answer: it will never be handed out again.
    TaskUndeliverable = "task_undeliverable", "error";
    /// A record is unfinished, and its message is gone.
    TaskWithoutMessage = "task_without_message", "error";
    /// A worker says that it runs a task of which there is no record of this run.
    AttemptWithoutRecord = "attempt_without_record", "error";
    /// A worker says that it runs a task whose message is gone.
    AttemptWithoutMessage = "attempt_without_message", "error";
    /// A worker has more slots taken than attempts running.
    SlotsLeaked = "slots_leaked", "error";
    /// An agent that did not say goodbye has not beaten for longer than three beats.
    AgentSilent = "agent_silent", "warning";
    /// A worker that beats does not answer when it is asked.
    AgentNoAnswer = "agent_no_answer", "warning";
    /// A worker beats, but takes no tasks: the server does not answer its pulls, or it says why it cannot.
    AgentNotFetching = "agent_not_fetching", "warning";
    /// The registry says `offline`, but it answers.
    OfflineAgentAnswers = "offline_agent_answers", "warning";
    /// A worker answers that is not in the registry.
    AgentNotRegistered = "agent_not_registered", "warning";
    /// Two live workers have the same id.
    AgentIdTwice = "agent_id_twice", "error";
    /// A container, network or volume of this fleet that no living worker owns. Seen only with `--docker-host`.
    ContainerWithoutOwner = "container_without_owner", "warning";
    /// A work folder that no living worker uses. Seen only with `--state-dir`.
    WorkspaceWithoutOwner = "workspace_without_owner", "warning";
    /// More dead letters in the last hour than is usual.
    DeadLettersGrowing = "dead_letters_growing", "warning";
    /// Fewer instances of a function take calls than its `min`; the message says why the last start failed.
    FunctionBelowMin = "function_below_min", "warning";
    /// The record of an instance says that it takes calls, and its worker is gone.
    InstanceWithoutWorker = "instance_without_worker", "warning";
}

impl std::fmt::Display for FindingCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_its_word_and_says_what_it_means() {
        for code in FindingCode::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<FindingCode>(&json).unwrap(), *code);
            assert!(code.meaning().ends_with(['.', ')']), "{}", code.meaning());
        }
    }

    #[test]
    fn the_worst_is_the_first_of_the_severities() {
        assert!(Severity::Error < Severity::Warning && Severity::Warning < Severity::Info);
    }
}
