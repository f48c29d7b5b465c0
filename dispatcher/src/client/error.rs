//! Why a call of the client did not do what it was asked.

use std::time::Duration;

use jetstream::{ApiError, PublishError, STREAM_NOT_FOUND};
use schemas::{AgentId, Code, InvalidId, State, TaskKey};

use super::submit::SubmitError;
use crate::topology::SET_UP;

/// Why a call of the client failed. [`ClientError::hint`] tells what to try next.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server did not answer, or said no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Something could not be stored.
    #[error("cannot store {what}")]
    Write {
        /// What.
        what: String,
        /// The server's verdict.
        source: PublishError,
    },
    /// What is stored is not what it should be.
    #[error("{what} is unreadable")]
    Unreadable {
        /// What.
        what: String,
        /// Where.
        source: serde_json::Error,
    },
    /// There is no such thing.
    #[error("no {kind} `{name}`")]
    NotFound {
        /// `task`, `agent`, `dead letter`, `artifact`.
        kind: &'static str,
        /// What was looked for.
        name: String,
    },
    /// A prefix fits several.
    #[error("`{name}` fits several {kind}s: {}{}", candidates.join(", "), if *more { ", …" } else { "" })]
    Ambiguous {
        /// `task` or `agent`.
        kind: &'static str,
        /// What was looked for.
        name: String,
        /// Some that fit.
        candidates: Vec<String>,
        /// Whether there are more than these.
        more: bool,
    },
    /// There are too many tasks to look for a prefix among them.
    #[error("no task `{name}` among the first {looked_at} looked at; there are more")]
    GaveUp {
        /// What was looked for.
        name: String,
        /// How many keys were compared.
        looked_at: usize,
    },
    /// An id that is none.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// A value that is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// It was not over in time.
    #[error("{what} was not over after {}", schemas::HumanDuration(*after))]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// Neither message nor record of this run is left: deleted by hand, or its record expired.
    #[error("run {sequence} of task {key} is gone: neither its message nor its record is left")]
    Gone {
        /// The task.
        key: TaskKey,
        /// Which run.
        sequence: u64,
    },
    /// The id is in use by a later run; this one is over.
    #[error("run {sequence} of task {key} is over: its record is of run {newer}")]
    RunOver {
        /// The task.
        key: TaskKey,
        /// Which run was meant.
        sequence: u64,
        /// Which run the record is of.
        newer: u64,
    },
    /// The task must be finished for this.
    #[error("task {key} is {status}")]
    Unfinished {
        /// The task.
        key: TaskKey,
        /// `queued`, `running`, `retrying`.
        status: String,
    },
    /// Neither record nor dead letter keeps the task.
    #[error("the {state} task {key} was larger than a record keeps, and there is no dead letter of it")]
    NoTaskKept {
        /// The task.
        key: TaskKey,
        /// How it ended.
        state: State,
    },
    /// A dead letter of a message that never had valid ids.
    #[error("dead letter {dead_sequence} cannot be replayed: it came as `{subject}`")]
    NotReplayable {
        /// Which.
        dead_sequence: u64,
        /// Its tokens.
        subject: String,
        /// What is wrong with them.
        source: InvalidId,
    },
    /// A task could not be submitted.
    #[error(transparent)]
    Submit(Box<SubmitError>),
    /// A worker does not answer.
    #[error("agent {agent} does not answer")]
    AgentSilent {
        /// Which.
        agent: AgentId,
        /// Whether the registry says that it is gone.
        offline: bool,
    },
    /// A worker did not do what it was asked.
    #[error("agent {agent} refuses: {why}")]
    Refused {
        /// Which.
        agent: AgentId,
        /// What it said.
        why: String,
    },
    /// An object is not what the record says.
    #[error("object {name} has digest {found}, the record says {expected}")]
    Digest {
        /// Which.
        name: String,
        /// What the record says.
        expected: String,
        /// What it has.
        found: String,
    },
    /// An object cannot be read.
    #[error("cannot read object {name}")]
    Object {
        /// Which.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Others write the same key all the time.
    #[error("{what} is being changed by others all the time")]
    Contended {
        /// What.
        what: String,
    },
    /// A queue could not be made.
    #[error(transparent)]
    Topology(#[from] crate::topology::TopologyError),
    /// A function could not be had, or a call of it came to nothing.
    #[error(transparent)]
    Function(#[from] functions::CallError),
    /// The connection was closed for good.
    #[error("the connection is closed")]
    Closed,
}

impl ClientError {
    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Api(error) => error.is_transient(),
            Self::Topology(error) => error.is_transient(),
            Self::Function(functions::CallError::Api(error)) => error.is_transient(),
            _ => false,
        }
    }

    /// What to try next, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Api(error) => return hint_of(error),
            Self::Topology(error) => return error.hint(),
            Self::Submit(error) => return error.hint(),
            Self::Write { source: PublishError::Refused { err_code: STREAM_NOT_FOUND, .. }, .. } => SET_UP.into(),
            Self::Write { source, .. } => match source {
                PublishError::NotStored { .. } => "try again; nothing was stored".into(),
                PublishError::Unknown { .. } => "read it again to see whether it was stored".into(),
                _ => return None,
            },
            Self::Unreadable { .. } => "it may be of a newer version: upgrade this program".into(),
            Self::NotFound { kind: "task", .. } => "`shoal list` shows the tasks that are known".into(),
            Self::NotFound { kind: "agent", .. } => "`shoal agents list` shows who is there".into(),
            Self::NotFound { kind: "dead letter", .. } => "`shoal dead list` shows them".into(),
            Self::NotFound { kind: "artifact", .. } => "the record names what there is: `shoal get`".into(),
            Self::NotFound { kind: "store", .. } => SET_UP.into(),
            Self::NotFound { kind: "log", .. } => {
                "`shoal function list` shows the functions; none of its instances wrote yet".into()
            }
            Self::NotFound { kind: "container", .. } => "`shoal containers list` shows what there is".into(),
            Self::NotFound { .. } => return None,
            Self::Ambiguous { .. } => "write more of it, or `<queue>.<id>`".into(),
            Self::GaveUp { .. } => "write the whole id, or `<queue>.` before it".into(),
            Self::InvalidId(_) | Self::Invalid(_) => return None,
            Self::TimedOut { .. } => {
                "wait longer, or see where it stands with `shoal get` and who could run it with `shoal queues list`"
                    .into()
            }
            Self::Gone { .. } => "submit it again, if it was not run".into(),
            Self::RunOver { .. } => "name no run, to mean the newest".into(),
            Self::Unfinished { key, .. } => {
                format!("wait for it (`shoal wait {key}`) or cancel it (`shoal cancel {key}`)")
            }
            Self::NoTaskKept { .. } => "submit it again from where it came".into(),
            Self::NotReplayable { dead_sequence, .. } => {
                format!("take its body with `shoal dead show {dead_sequence}` and submit that under a valid id")
            }
            Self::AgentSilent { offline: true, .. } => "it is offline; there is nobody to tell".into(),
            Self::AgentSilent { offline: false, .. } => {
                "it beats but does not answer; look at its log, or stop it with SIGTERM on its host".into()
            }
            Self::Refused { .. } => "`shoal containers list` shows how it is now".into(),
            Self::Digest { .. } => "fetch it again; if it stays so, the stored object is damaged".into(),
            Self::Object { .. } | Self::Contended { .. } => "try again".into(),
            Self::Function(error) => return hint_of_function(error),
            Self::Closed => return None,
        })
    }
}

fn hint_of_function(error: &functions::CallError) -> Option<String> {
    use functions::CallError;
    let error = match error {
        CallError::Failed(error) => error,
        CallError::Api(error) => return hint_of(error),
        CallError::Publish(PublishError::Refused { err_code: STREAM_NOT_FOUND, .. }) => return Some(SET_UP.into()),
        CallError::Publish(_) => return Some("read it again to see whether it was stored: `shoal instances`".into()),
    };
    let hint = match error.code {
        Code::NotFound => "`shoal function list` shows those that are",
        Code::PermissionDenied => "say whose it is: --owner, or over HTTP the header `X-Shoal-Owner`",
        Code::NoInstance => {
            "see its instances with `shoal instances` and who could run it with `shoal agents list`; raise its `max`, \
             `concurrency` or `acquire_timeout`"
        }
        Code::TooLarge => "hand large input over by reference, or raise the server's max_payload",
        Code::ResponseTooLarge => "raise its `response_limit` (at most 64Mi), or have it answer by reference",
        Code::ResponseLost => {
            "see what it did with `shoal logs _functions.<function>` before calling again; one that may be called twice \
             says `idempotent`"
        }
        Code::TimedOut => "raise its `request_timeout`, or call it asynchronously",
        Code::CircuitOpen => "wait a few seconds; `shoal instances` tells what is wrong",
        Code::IpUnavailable | Code::NotHealthy | Code::InstanceExited | Code::InstanceUnreachable => {
            "see what it wrote with `shoal logs _functions.<function>`"
        }
        Code::ImageNotFound | Code::ImagePullFailed | Code::InvalidImage => {
            "check its `image`, and that the workers of its pool may pull it"
        }
        Code::PolicyForbidden => "what a worker allows is its operator's word: `shoal worker --help`",
        Code::Conflict | Code::Unavailable => "try again",
        Code::Ambiguous => "write more of it",
        Code::InvalidArgument => "docs/functions.md has every field of a definition",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn hint_of(error: &ApiError) -> Option<String> {
    match error {
        ApiError::Refused { err_code: STREAM_NOT_FOUND, .. } => Some(SET_UP.into()),
        ApiError::NoResponders { .. } => Some(format!("check that the server runs with JetStream, and {SET_UP}")),
        ApiError::TimedOut { .. } | ApiError::Failed { .. } => Some("check the connection, then try again".into()),
        ApiError::Refused { .. } | ApiError::Unreadable { .. } => None,
    }
}

impl From<SubmitError> for ClientError {
    fn from(error: SubmitError) -> Self {
        Self::Submit(Box::new(error))
    }
}
