//! What the client knows, as commands and HTTP show it.

use base64::Engine;
use schemas::AgentRecord;
use schemas::http::{Accepted, CancelOutcome as Outcome, IdHolder, LogPiece, QueueInfo, QueuedTask, ShownTask};

use super::{AgentView, CancelEnd, Holder, ListItem, LogChunk, QueueView, Submitted, TaskView};

impl TaskView {
    /// As it is shown; `None` if nothing is known of it.
    pub fn shown(&self) -> Option<ShownTask> {
        if let Some(current) = self.current() {
            return Some(current.record.clone().into());
        }
        let queued = self.queued.as_ref()?;
        let mut waiting = QueuedTask::new(&self.key, queued.sequence, queued.submitted_at);
        waiting.submission.clone_from(&queued.submission);
        waiting.task = serde_json::from_slice(&queued.task).ok();
        waiting.previous = self.record.as_ref().map(|previous| Box::new(previous.record.clone()));
        Some(ShownTask::Queued(Box::new(waiting)))
    }
}

impl ListItem {
    /// As it is shown.
    pub fn shown(self) -> ShownTask {
        match self.record {
            Some(recorded) => recorded.record.into(),
            None => ShownTask::Queued(Box::new(QueuedTask::new(&self.key, self.sequence, self.submitted_at))),
        }
    }
}

impl From<Submitted> for Accepted {
    fn from(submitted: Submitted) -> Self {
        let Submitted { key, sequence, submission, existing } = submitted;
        Self { id: key.id, queue: key.queue, sequence, submission, existing }
    }
}

impl From<Holder> for IdHolder {
    fn from(holder: Holder) -> Self {
        let Holder { sequence, status, worker, since } = holder;
        Self { sequence, state: status.as_str().into(), worker, since }
    }
}

impl From<CancelEnd> for Outcome {
    fn from(end: CancelEnd) -> Self {
        match end {
            CancelEnd::Cancelled => Self::Cancelled,
            CancelEnd::AlreadyEnded => Self::AlreadyEnded,
            CancelEnd::EndedMeanwhile => Self::EndedMeanwhile,
        }
    }
}

impl From<LogChunk> for LogPiece {
    fn from(chunk: LogChunk) -> Self {
        let LogChunk { sequence, start, source, bytes, at } = chunk;
        let (text, base64) = match std::str::from_utf8(&bytes) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(&bytes))),
        };
        Self { sequence, start, source, at, text, base64 }
    }
}

impl From<QueueView> for QueueInfo {
    fn from(view: QueueView) -> Self {
        let QueueView { name, waiting, in_flight, pulls, paused_until, cap, consumer, settings } = view;
        Self { name, waiting, in_flight, pulls, cap, paused_until, consumer, settings }
    }
}

impl From<AgentView> for AgentRecord {
    /// The record with the status as the clock judges it.
    fn from(view: AgentView) -> Self {
        Self { status: view.status, ..view.record }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Queued;
    use schemas::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_waiting_task_has_the_shape_of_a_record() {
        let queued = Queued {
            sequence: 7,
            submitted_at: Timestamp::from_millis(0),
            task: br#"{"workload":{"kind":"call","handler":"noop"}}"#.as_slice().into(),
            submission: Some("mine".into()),
        };
        let view = TaskView { key: "q.a".parse().unwrap(), record: None, revision: 0, queued: Some(queued) };
        let value: Value = serde_json::from_str(&serde_json::to_string(&view.shown()).unwrap()).unwrap();
        let expected = json!({
            "id": "a", "queue": "q", "sequence": 7, "state": "queued", "submission": "mine",
            "task": {"workload": {"kind": "call", "handler": "noop"}}, "submitted_at": "1970-01-01T00:00:00.000Z",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn log_bytes_that_are_no_text_are_base64() {
        let chunk = |bytes: &'static [u8]| LogChunk {
            sequence: 1,
            start: "k3".parse().unwrap(),
            source: schemas::names::LogSource::Stdout,
            bytes: bytes.into(),
            at: Timestamp::from_millis(0),
        };
        let text: LogPiece = chunk(b"hi\n").into();
        assert_eq!((text.text.as_deref(), text.base64), (Some("hi\n"), None));
        let bytes: LogPiece = chunk(b"\xff").into();
        assert_eq!((bytes.text, bytes.base64.as_deref()), (None, Some("/w==")));
    }
}
