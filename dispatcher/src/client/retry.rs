//! A finished task once more, under the same id.

use bytes::Bytes;
use schemas::TaskKey;

use super::dead::own_headers;
use super::{Client, ClientError, Submission, Submitted};

impl Client {
    /// Submits the task of a finished record again: from the record, or from its dead letter if the record keeps none.
    /// What `once` said does not hold for it: the record that exists is the very reason.
    pub async fn retry(&self, key: &TaskKey) -> Result<Submitted, ClientError> {
        self.retry_run(key, None).await
    }

    /// The same for one run: an error if there is a newer one.
    pub async fn retry_run(&self, key: &TaskKey, sequence: Option<u64>) -> Result<Submitted, ClientError> {
        let view = self.get(key).await?;
        if let Some((sequence, newer)) = sequence.zip(view.sequence())
            && sequence != newer
        {
            return Err(ClientError::RunOver { key: key.clone(), sequence, newer });
        }
        let record = match view.current() {
            Some(current) if current.record.state.is_terminal() => &current.record,
            _ => {
                let status = view.status().map_or_else(String::new, |status| status.to_string());
                return Err(ClientError::Unfinished { key: key.clone(), status });
            }
        };
        let (payload, headers) = match &record.task {
            Some(task) => (Bytes::copy_from_slice(task.get().as_bytes()), Vec::new()),
            None => match self.dead_letter_of(key).await? {
                Some(dead) if dead.letter.sequence == record.sequence => (dead.body, own_headers(dead.headers)),
                _ => return Err(ClientError::NoTaskKept { key: key.clone(), state: record.state }),
            },
        };
        let task = Submission { key: key.clone(), payload, submission: None, once: false, headers };
        Ok(self.submit(task).await?)
    }
}
