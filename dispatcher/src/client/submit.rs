//! Submitting: one publish a task, many in flight, and the exact rules of what may be sent again.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jetstream::{MESSAGE_TOO_LARGE, PublishError};
use schemas::stores::TASK_HEADROOM_BYTES;
use schemas::strict::{self, InvalidTask};
use schemas::{AgentId, InvalidId, QueueName, State, TaskId, TaskKey, TaskRecord, Timestamp, header};
use tokio::time::Instant;
use uuid::Uuid;

use super::record::{self, Pauses};
use super::{Client, ClientError, Status, TaskView};
use crate::topology::SET_UP;

/// A task to submit.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Queue and id.
    pub key: TaskKey,
    /// The task's JSON, sent byte for byte.
    pub payload: Bytes,
    /// Our own id of this submission, by which a second try is known. Made up if absent.
    pub submission: Option<String>,
    /// Start only if no record of this id exists.
    pub once: bool,
    /// More headers, as `traceparent`. `Nats-*` and what Shoal sets itself are left out.
    pub headers: Vec<(String, String)>,
}

impl Submission {
    /// A task as it stands, unchecked. Without an id it gets a UUID (version 7).
    pub fn new(queue: QueueName, id: Option<TaskId>, payload: impl Into<Bytes>) -> Self {
        let id = id.unwrap_or_else(|| {
            TaskId::new(Uuid::now_v7().to_string()).expect("a UUID is of hexadecimal digits and dashes")
        });
        Self {
            key: TaskKey::new(queue, id),
            payload: payload.into(),
            submission: None,
            once: false,
            headers: Vec::new(),
        }
    }

    /// The same, checked as a submitter's: unknown fields and wrong values are errors.
    pub fn checked(queue: QueueName, id: Option<TaskId>, payload: impl Into<Bytes>) -> Result<Self, SubmitError> {
        let payload = payload.into();
        let value = serde_json::from_slice(&payload)
            .map_err(|error| InvalidTask { field: String::new(), problem: format!("no JSON: {error}") })?;
        strict::task(&value)?;
        Ok(Self::new(queue, id, payload))
    }
}

/// How to submit.
#[derive(Clone, Copy, Debug)]
pub struct SubmitOptions {
    /// How long to try again before giving up, for each task.
    pub deadline: Duration,
    /// Publishes in flight at once.
    pub in_flight: usize,
}

impl Default for SubmitOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), in_flight: 1_000 }
    }
}

/// The server has it.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Queue and id.
    pub key: TaskKey,
    /// Which run of the id; of `existing`, if there is one.
    pub sequence: u64,
    /// Our id of this submission.
    pub submission: String,
    /// Only with `once`: the record that exists already. Nothing was or will be started then.
    pub existing: Option<Box<TaskRecord>>,
}

/// Who has the id.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Which run.
    pub sequence: u64,
    /// Where it stands.
    pub status: Status,
    /// On which worker, if it runs.
    pub worker: Option<AgentId>,
    /// Since when it has the id.
    pub since: Timestamp,
}

/// Why a task was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is no task.
    #[error(transparent)]
    Invalid(#[from] InvalidTask),
    /// An id that is none.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// Larger than the server takes.
    #[error("task {key} is {bytes} bytes with its headers; at most {most} are taken")]
    TooLarge {
        /// Which task.
        key: TaskKey,
        /// Its size.
        bytes: usize,
        /// What is taken.
        most: usize,
    },
    /// The id is queued or running.
    #[error("task {key} exists already: {}", describe(holder.as_deref()))]
    Locked {
        /// The id.
        key: TaskKey,
        /// Who has it, if that could be read.
        holder: Option<Box<Holder>>,
    },
    /// Certainly not stored.
    #[error("task {key} was not stored: {why}")]
    NotStored {
        /// Which task.
        key: TaskKey,
        /// Why.
        why: String,
    },
    /// The fleet's streams do not exist.
    #[error("task {key} was not stored: there is no stream {stream}")]
    NotSetUp {
        /// Which task.
        key: TaskKey,
        /// What is missing.
        stream: String,
    },
    /// No answer until the deadline.
    #[error("whether task {key} was stored is unknown: {why}")]
    Unknown {
        /// Which task.
        key: TaskKey,
        /// Submit with this again, and it cannot become two.
        submission: String,
        /// Why.
        why: String,
    },
    /// A header, or the submission's own id, has characters that no header may have.
    #[error("header `{name}` has characters that are not allowed")]
    Header {
        /// Which.
        name: String,
    },
    /// The server refuses it for good.
    #[error("the server refuses task {key}: {why}")]
    Refused {
        /// Which task.
        key: TaskKey,
        /// Its words.
        why: String,
    },
    /// The record that decides could not be read.
    #[error("cannot read what is known of task {key}")]
    Read {
        /// Which task.
        key: TaskKey,
        /// Why.
        source: Box<ClientError>,
    },
}

fn describe(holder: Option<&Holder>) -> String {
    match holder {
        None => "it is queued or running".into(),
        Some(Holder { sequence, status, worker, since }) => {
            let on = worker.as_ref().map(|worker| format!(" on {worker}")).unwrap_or_default();
            format!("{status}{on} since {since} (run {sequence})")
        }
    }
}

impl SubmitError {
    /// What to try next, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Invalid(_) | Self::InvalidId(_) | Self::Header { .. } | Self::Refused { .. } => return None,
            Self::TooLarge { .. } => "store the large part as an object and submit its name".into(),
            Self::Locked { key, .. } => {
                format!("wait for it (`shoal wait {key}`), cancel it (`shoal cancel {key}`), or choose another id")
            }
            Self::NotStored { .. } => "try again; the server may be electing a leader or out of space".into(),
            Self::NotSetUp { .. } => SET_UP.into(),
            Self::Unknown { key, submission, .. } => {
                format!("look with `shoal get {key}`, or submit again with the submission id {submission}")
            }
            Self::Read { source, .. } => return source.hint(),
        })
    }
}

/// What Shoal or the server sets itself on a task.
pub(super) fn is_reserved(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
        || [header::ONCE, header::SUBMISSION].iter().any(|own| own.eq_ignore_ascii_case(name))
}

impl Client {
    /// Submits one task. Accepted means stored by the server.
    pub async fn submit(&self, task: Submission) -> Result<Submitted, SubmitError> {
        self.submit_within(task, SubmitOptions::default().deadline).await
    }

    /// Submits many, pipelined; the results are in the order of the tasks.
    pub async fn submit_many(
        &self,
        tasks: Vec<Submission>,
        options: &SubmitOptions,
    ) -> Vec<Result<Submitted, SubmitError>> {
        let submits = stream::iter(tasks).map(|task| self.submit_within(task, options.deadline));
        submits.buffered(options.in_flight.max(1)).collect().await
    }

    /// Submits one task and tries again until `deadline` what may be tried again.
    pub async fn submit_within(&self, task: Submission, deadline: Duration) -> Result<Submitted, SubmitError> {
        let Submission { key, payload, submission, once, headers: given } = task;
        let submission = submission.unwrap_or_else(|| Uuid::now_v7().to_string());
        let headers = headers(&given, &submission, once)?;
        let bytes = payload.len() + wire_length(&headers);
        let most = self.js.max_payload().saturating_sub(TASK_HEADROOM_BYTES);
        if bytes > most {
            return Err(SubmitError::TooLarge { key, bytes, most });
        }
        let unread = |source| SubmitError::Read { key: key.clone(), source: Box::new(source) };
        let accepted =
            |sequence| Submitted { key: key.clone(), sequence, submission: submission.clone(), existing: None };

        if once && let Some(existing) = Box::pin(self.recorded(&key)).await.map_err(unread)? {
            let sequence = existing.sequence;
            // Our own, from a try whose answer was lost, is no other.
            let other = Some(existing).filter(|existing| existing.submission.as_deref() != Some(&submission));
            return Ok(Submitted { existing: other.map(Box::new), ..accepted(sequence) });
        }
        let sequence = self.store(&key, &payload, &headers, &submission, deadline).await?;
        if once {
            // One that ended between our look and our publish: the worker finds it too and starts nothing.
            let other =
                Box::pin(self.recorded(&key)).await.map_err(unread)?.filter(|record| record.sequence < sequence);
            return Ok(Submitted { existing: other.map(Box::new), ..accepted(sequence) });
        }
        Ok(accepted(sequence))
    }

    async fn recorded(&self, key: &TaskKey) -> Result<Option<TaskRecord>, ClientError> {
        let slot = record::read(&self.js, &self.names, key).await?;
        Ok(slot.recorded.map(|recorded| recorded.record))
    }

    /// Publishes until the outcome is known or `deadline` is over. The message id makes every try the same submission.
    async fn store(
        &self,
        key: &TaskKey,
        payload: &Bytes,
        headers: &HeaderMap,
        submission: &str,
        deadline: Duration,
    ) -> Result<u64, SubmitError> {
        let give_up = Instant::now() + deadline;
        let mut pauses = Pauses::new(Duration::from_millis(50), Duration::from_secs(2));
        // Whether some try may have been stored without our knowing.
        let mut uncertain = false;
        let mut looked_for_stream = false;
        let lost = |uncertain, why: String| match uncertain {
            true => SubmitError::Unknown { key: key.clone(), submission: submission.to_owned(), why },
            false => SubmitError::NotStored { key: key.clone(), why },
        };
        loop {
            if !self.connection.link.borrow().connected
                && tokio::time::timeout_at(give_up, self.connection.connected()).await.is_err()
            {
                return Err(lost(uncertain, "there is no connection".into()));
            }
            // The server forgets message ids of finished tasks when it restarts; what it stored, it shows.
            if uncertain
                && let Some(Ok(view)) = Box::pin(self.while_linked(self.look(key))).await
                && let Some(sequence) = own(&view, submission)
            {
                return Ok(sequence);
            }
            let publish = self.js.publish(self.names.task_subject(key), headers.clone(), payload.clone());
            let verdict = self.while_linked(publish).await;
            let broken = || Err(PublishError::Unknown { why: "the connection broke".into() });
            let why = match verdict.unwrap_or_else(broken) {
                Ok(stored) => return Ok(stored.sequence),
                Err(PublishError::Locked) => match Box::pin(self.look(key)).await {
                    Ok(view) => match (own(&view, submission), holder(&view)) {
                        (Some(sequence), _) => return Ok(sequence),
                        (None, Some(holder)) => {
                            return Err(SubmitError::Locked { key: key.clone(), holder: Some(Box::new(holder)) });
                        }
                        // It was let go of in between.
                        (None, None) => "the id was in use".to_owned(),
                    },
                    Err(error) if error.is_transient() => error.to_string(),
                    Err(source) => return Err(SubmitError::Read { key: key.clone(), source: Box::new(source) }),
                },
                Err(PublishError::NotStored { why }) => {
                    let stream = self.names.tasks_stream();
                    if !std::mem::replace(&mut looked_for_stream, true)
                        && let Ok(None) = Box::pin(self.js.stream_state(&stream)).await
                        && !uncertain
                    {
                        return Err(SubmitError::NotSetUp { key: key.clone(), stream });
                    }
                    why
                }
                Err(PublishError::Unknown { why }) => {
                    uncertain = true;
                    why
                }
                Err(PublishError::Refused { err_code: MESSAGE_TOO_LARGE, .. }) => {
                    let most = self.js.max_payload().saturating_sub(TASK_HEADROOM_BYTES);
                    let bytes = payload.len() + wire_length(headers);
                    return Err(SubmitError::TooLarge { key: key.clone(), bytes, most });
                }
                Err(
                    error @ (PublishError::Refused { .. }
                    | PublishError::Unsendable { .. }
                    | PublishError::Conflict { .. }),
                ) => return Err(SubmitError::Refused { key: key.clone(), why: error.to_string() }),
            };
            let pause = pauses.next();
            if Instant::now() + pause >= give_up {
                return Err(lost(uncertain, why));
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// The headers of a task's message.
fn headers(given: &[(String, String)], submission: &str, once: bool) -> Result<HeaderMap, SubmitError> {
    let mut headers = HeaderMap::new();
    let own = [(header::NATS_MSG_ID, submission), (header::SUBMISSION, submission)];
    let given = given.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.into_iter().chain(given.filter(|(name, _)| !is_reserved(name))) {
        let refused = || SubmitError::Header { name: name.chars().take(64).collect() };
        let parsed = (name.parse::<HeaderName>(), value.parse::<HeaderValue>());
        let (Ok(name), Ok(value)) = parsed else { return Err(refused()) };
        headers.append(name, value);
    }
    if once {
        headers.insert(header::ONCE, "true");
    }
    Ok(headers)
}

/// What headers take on the wire, which counts as part of the message.
fn wire_length(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    "NATS/1.0\r\n\r\n".len()
        + lines.map(|(name, value)| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4).sum::<usize>()
}

/// The run that came of this very submission, if it is to be seen.
fn own(view: &TaskView, submission: &str) -> Option<u64> {
    let queued = view.queued.as_ref().filter(|queued| queued.submission.as_deref() == Some(submission));
    let recorded = view.record.as_ref().map(|recorded| &recorded.record);
    let recorded = recorded.filter(|record| record.submission.as_deref() == Some(submission));
    queued.map(|queued| queued.sequence).or_else(|| recorded.map(|record| record.sequence))
}

/// Who has the id; `None` if it is free.
fn holder(view: &TaskView) -> Option<Holder> {
    let queued = view.queued.as_ref()?;
    let record = view.current().map(|current| &current.record);
    let attempt = record.filter(|record| record.state == State::Running).and_then(|record| record.attempts.last());
    let started = attempt.and_then(|attempt| attempt.phases.started.or(attempt.phases.pulled));
    Some(Holder {
        sequence: queued.sequence,
        status: view.status()?,
        worker: attempt.and_then(|attempt| attempt.worker.clone()),
        since: started.unwrap_or(queued.submitted_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> QueueName {
        "default".parse().unwrap()
    }

    #[test]
    fn an_id_is_made_up_where_none_is_given() {
        let [a, b] = [Submission::new(queue(), None, "{}"), Submission::new(queue(), None, "{}")];
        assert_ne!(a.key, b.key);
        assert!(a.key.id.as_str() < b.key.id.as_str(), "a later one sorts behind");
    }

    #[test]
    fn a_submitter_is_told_of_a_wrong_field() {
        let error =
            Submission::checked(queue(), None, r#"{"workload":{"kind":"call","handler":"noop"},"timeot":"1s"}"#);
        assert!(error.unwrap_err().to_string().contains("`timeout`"));
        assert!(Submission::checked(queue(), None, "{").unwrap_err().to_string().contains("no JSON"));
    }

    #[test]
    fn headers_of_a_submitter_cannot_stand_in_for_ours() {
        let given = [("nats-msg-id", "x"), ("Nats-TTL", "1"), ("shoal-once", "true"), ("traceparent", "00-a-b-01")];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = headers(&given, "mine", false).unwrap();
        assert_eq!(headers.get(header::NATS_MSG_ID).unwrap().as_str(), "mine");
        assert_eq!(headers.get("traceparent").unwrap().as_str(), "00-a-b-01");
        assert_eq!(headers.len(), 3);
        assert!(super::headers(&[("a".into(), "b\r\nNats-TTL: 1".into())], "x", false).is_err());
        assert!(super::headers(&[], "x\ny", false).is_err());
    }
}
