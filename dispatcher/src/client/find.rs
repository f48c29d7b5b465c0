//! From what a person types to a task's key.

use std::collections::BTreeSet;

use schemas::{QueueName, TaskId, TaskKey};

use super::{Client, ClientError};

/// How many keys a prefix is compared with, in each of the two stores, before we give up.
const LOOK_AT: usize = 1_000_000;
/// How many candidates an error names.
const NAMED: usize = 8;

impl Client {
    /// Resolves an id, `<queue>.<id>`, or a prefix of either that fits only one task. Exact ones come first and cost
    /// two reads; a prefix compares the names of all tasks.
    pub async fn find(&self, text: &str) -> Result<TaskKey, ClientError> {
        let (queue, id) = match text.split_once('.') {
            Some((queue, id)) => (Some(queue.parse::<QueueName>()?), id.parse::<TaskId>()?),
            None => (None, text.parse::<TaskId>()?),
        };
        let exact = self.exact(queue.as_ref(), &id).await?;
        if !exact.is_empty() {
            return only(text, exact);
        }
        let (found, looked_at, complete) = self.with_prefix(queue.as_ref(), id.as_str()).await?;
        match (found.is_empty(), complete) {
            // Another may fit among those we did not look at.
            (_, false) if found.len() < 2 => Err(ClientError::GaveUp { name: text.into(), looked_at }),
            (true, _) => Err(ClientError::NotFound { kind: "task", name: text.into() }),
            (false, _) => only(text, found),
        }
    }

    async fn exact(&self, queue: Option<&QueueName>, id: &TaskId) -> Result<BTreeSet<TaskKey>, ClientError> {
        let queue = queue.map_or("*", QueueName::as_str);
        let (tasks, records) = (self.names.tasks_stream(), self.names.records_stream());
        let task_subject = replaced(&self.names.tasks_subjects(), queue, id.as_str());
        let record_subject = replaced(&self.record_subjects(), queue, id.as_str());
        let mut found = BTreeSet::new();
        // Each queue may have the id: the newest of each subject, not only the newest of all.
        for message in self.js.newest(&tasks, std::slice::from_ref(&task_subject)).await? {
            found.extend(self.task_key(&message.subject));
        }
        for message in self.js.newest(&records, std::slice::from_ref(&record_subject)).await? {
            if !message.is_marker() {
                found.extend(self.task_key(&message.subject));
            }
        }
        if found.is_empty() {
            // Those were direct reads, which may trail; the leader has the last word.
            let leader = [self.js.last(&tasks, &task_subject).await?, self.js.last(&records, &record_subject).await?];
            let messages = leader.into_iter().flatten().filter(|message| !message.is_marker());
            found.extend(messages.filter_map(|message| self.task_key(&message.subject)));
        }
        Ok(found)
    }

    /// Keys with this prefix, how many were looked at, and whether that was all.
    async fn with_prefix(
        &self,
        queue: Option<&QueueName>,
        prefix: &str,
    ) -> Result<(BTreeSet<TaskKey>, usize, bool), ClientError> {
        let queue = queue.map_or("*", QueueName::as_str);
        let mut found = BTreeSet::new();
        let (mut looked_at, mut complete) = (0, true);
        for (stream, subjects) in [
            (self.names.tasks_stream(), self.names.tasks_subjects()),
            (self.names.records_stream(), self.record_subjects()),
        ] {
            let filter = replaced(&subjects, queue, "*");
            let mut offset = 0;
            loop {
                let page = self.js.subjects(&stream, &filter, offset).await?;
                offset += page.counts.len();
                looked_at += page.counts.len();
                let keys = page.counts.iter().filter_map(|(subject, _)| self.task_key(subject));
                found.extend(keys.filter(|key| key.id.as_str().starts_with(prefix)));
                if page.counts.is_empty() || offset as u64 >= page.total {
                    break;
                }
                if found.len() > NAMED || offset >= LOOK_AT {
                    complete = false;
                    break;
                }
            }
        }
        Ok((found, looked_at, complete))
    }

    /// All records of all queues.
    pub(super) fn record_subjects(&self) -> String {
        format!("$KV.{}.*.*", self.names.records_bucket())
    }

    /// The key of a task's message or record; `None` for tokens that are no valid ids.
    pub(super) fn task_key(&self, subject: &str) -> Option<TaskKey> {
        if let Some(key) = self.names.record_key(subject) {
            return key.parse().ok();
        }
        let (queue, id) = self.names.task_tokens(subject)?;
        Some(TaskKey::new(queue.parse().ok()?, id.parse().ok()?))
    }
}

/// `….*.*` with other last two tokens.
pub(super) fn replaced(subjects: &str, queue: &str, id: &str) -> String {
    let base = subjects.strip_suffix("*.*").expect("our own pattern ends in two wildcards");
    format!("{base}{queue}.{id}")
}

fn only(text: &str, found: BTreeSet<TaskKey>) -> Result<TaskKey, ClientError> {
    let more = found.len() > NAMED;
    let mut keys: Vec<TaskKey> = found.into_iter().take(NAMED).collect();
    match keys.pop() {
        Some(key) if keys.is_empty() => Ok(key),
        last => {
            let candidates = keys.into_iter().chain(last).map(|key| key.to_string()).collect();
            Err(ClientError::Ambiguous { kind: "task", name: text.into(), candidates, more })
        }
    }
}
