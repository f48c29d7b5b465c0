//! One task, as it stands: its message if it is queued or running, its record if there is one.

use bytes::Bytes;
use jetstream::StoredMessage;
use schemas::{Order, State, TaskKey, Timestamp, header};
use serde::{Serialize, Serializer};

use super::{Client, ClientError, Recorded, record};

/// Where a task stands, the state that no record says included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Its message waits; no record of this run.
    Queued,
    /// As its record says.
    Recorded(State),
}

impl Status {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Recorded(state) => state.as_str(),
        }
    }

    /// Whether nothing more can come.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Queued => false,
            Self::Recorded(state) => state.is_terminal(),
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Status {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let all = || [Self::Queued].into_iter().chain(State::ALL.into_iter().map(Self::Recorded));
        all().find(|status| status.as_str() == word).ok_or_else(|| {
            let words: Vec<&str> = all().map(Self::as_str).collect();
            format!("`{word}` is no state; allowed is {}", words.join(", "))
        })
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A task's message in the stream: it is queued, running or waiting for its retry.
#[derive(Clone, Debug)]
pub struct Queued {
    /// Which run.
    pub sequence: u64,
    /// When the server stored it.
    pub submitted_at: Timestamp,
    /// The task as it came.
    pub task: Bytes,
    /// The submitter's own id.
    pub submission: Option<String>,
}

/// Everything known of a task at one moment.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// Queue and id.
    pub key: TaskKey,
    /// Its record, if there is one. May be of an older run than `queued`.
    pub record: Option<Recorded>,
    /// The revision to expect when writing the record: 0 for nothing, a marker's own for a marker.
    pub revision: u64,
    /// Its message, if there is one.
    pub queued: Option<Queued>,
}

impl TaskView {
    /// Where the newest run stands; `None` if nothing is known.
    pub fn status(&self) -> Option<Status> {
        match (self.current(), &self.queued) {
            (Some(current), _) => Some(Status::Recorded(current.record.state)),
            (None, Some(_)) => Some(Status::Queued),
            (None, None) => None,
        }
    }

    /// The newest run.
    pub fn sequence(&self) -> Option<u64> {
        let current = self.current().map(|current| current.record.sequence);
        current.or_else(|| self.queued.as_ref().map(|queued| queued.sequence))
    }

    /// The record, if it is of the newest run.
    pub fn current(&self) -> Option<&Recorded> {
        self.record.as_ref().filter(|recorded| match self.order(recorded) {
            Order::Same | Order::Later => true,
            // The stream holds a message of the id now, and it holds one a subject: whatever number the record names, its
            // run is over. A higher one is left from before the stream was set back.
            Order::Earlier | Order::Unclear => false,
        })
    }

    /// How the record's run stands to the one whose message is there.
    fn order(&self, recorded: &Recorded) -> Order {
        let queued = self.queued.as_ref();
        queued.map_or(Order::Same, |queued| recorded.record.order_to(queued.sequence, queued.submitted_at))
    }

    /// The record, unless it is left from before the stream was set back: of a run that came before the one whose message
    /// is there, under the same or a higher number.
    pub(super) fn recorded(&self) -> Option<&Recorded> {
        let queued = self.queued.as_ref().map_or(u64::MAX, |queued| queued.sequence);
        self.record
            .as_ref()
            .filter(|recorded| recorded.record.sequence < queued || self.order(recorded) != Order::Unclear)
    }

    /// Whether record and message do not fit together, so that the message must be seen once more behind the record: it
    /// was read before it, and the record may be of a run that was submitted in between.
    fn is_unclear(&self) -> bool {
        self.record.as_ref().is_some_and(|recorded| self.order(recorded) == Order::Unclear)
    }
}

impl Queued {
    /// Reads a message of the stream of tasks.
    pub(super) fn read(message: &StoredMessage) -> Self {
        let submission = message.header(header::SUBMISSION).or_else(|| message.header(header::NATS_MSG_ID));
        Self {
            sequence: message.sequence,
            submitted_at: message.stored_at,
            task: message.payload.clone(),
            submission: submission.map(str::to_owned),
        }
    }
}

impl Client {
    /// A task as it stands, read from the leaders; an error if nothing is known of it.
    pub async fn get(&self, key: &TaskKey) -> Result<TaskView, ClientError> {
        let view = self.look(key).await?;
        if view.status().is_none() {
            return Err(ClientError::NotFound { kind: "task", name: key.to_string() });
        }
        Ok(view)
    }

    /// The same, where nothing is an answer too.
    pub async fn look(&self, key: &TaskKey) -> Result<TaskView, ClientError> {
        // The message first: it goes only after its terminal record was written, so whoever finds it gone finds the
        // record. The other way round, a task that ends between the two reads would seem never to have been.
        let (stream, subject) = (self.names.tasks_stream(), self.names.task_subject(key));
        let message = || self.js.last(&stream, &subject);
        let mut queued = message().await?.as_ref().map(Queued::read);
        loop {
            let slot = record::read(&self.js, &self.names, key).await?;
            let view = TaskView { key: key.clone(), record: slot.recorded, revision: slot.revision, queued };
            if !view.is_unclear() {
                return Ok(view);
            }
            let again = message().await?.as_ref().map(Queued::read);
            let run = |queued: &Queued| (queued.sequence, queued.submitted_at);
            if again.as_ref().map(run) == view.queued.as_ref().map(run) {
                return Ok(view);
            }
            queued = again;
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::TaskRecord;

    use super::*;

    fn view(recorded: Option<(u64, State)>, queued: Option<u64>) -> TaskView {
        let key: TaskKey = "q.a".parse().unwrap();
        let now = Timestamp::now();
        TaskView {
            record: recorded.map(|(sequence, state)| Recorded {
                record: TaskRecord::new(&key, sequence, state, now),
                revision: 9,
                written_at: now,
            }),
            revision: 9,
            queued: queued.map(|sequence| Queued { sequence, submitted_at: now, task: Bytes::new(), submission: None }),
            key,
        }
    }

    #[test]
    fn the_newest_run_decides_the_status() {
        let failed = Some((3, State::Failed));
        for (recorded, queued, status, sequence) in [
            (None, None, None, None),
            (None, Some(1), Some("queued"), Some(1)),
            (failed, None, Some("failed"), Some(3)),
            (failed, Some(3), Some("failed"), Some(3)),
            (failed, Some(4), Some("queued"), Some(4)),
            (Some((4, State::Running)), Some(4), Some("running"), Some(4)),
        ] {
            let view = view(recorded, queued);
            assert_eq!(view.status().map(Status::as_str), status);
            assert_eq!(view.sequence(), sequence);
        }
    }

    #[test]
    fn a_message_that_is_there_is_newer_than_a_relic_of_any_number() {
        for sequence in [4, 5] {
            let mut relic = view(Some((sequence, State::Succeeded)), Some(4));
            if let Some(queued) = &mut relic.queued {
                queued.submitted_at = queued.submitted_at.plus(std::time::Duration::from_secs(60));
            }
            assert_eq!(relic.status(), Some(Status::Queued));
            assert_eq!((relic.sequence(), relic.current().is_none()), (Some(4), true));
        }
    }

    #[test]
    fn every_status_reads_back_its_word() {
        for word in ["queued", "running", "retrying", "succeeded", "failed", "cancelled", "lost", "expired"] {
            assert_eq!(word.parse::<Status>().unwrap().as_str(), word);
        }
        assert!("done".parse::<Status>().unwrap_err().contains("succeeded"));
    }
}
