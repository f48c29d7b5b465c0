//! What running agents say, stored and live, in stream order; and what they are told. Never a consumer.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use schemas::agent_job::is_name;
use schemas::explain::AskedQuestion;
use schemas::transcript::{Entry, Message};
use schemas::{More, QueueName, StartId, TaskKey, Timestamp, header, strict};

use super::record::Pauses;
use super::wait::Watch;
use super::{Client, ClientError};

/// Entries asked for at a time.
const PAGE: usize = 500;
/// Read again although nothing woke us.
const READ_AGAIN: Duration = Duration::from_secs(15);
/// A wake-up may overtake the storing of what it tells of.
const LOOKS: [u64; 4] = [0, 10, 50, 250];

/// One entry, and its place in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Its place; go on from the next one.
    pub sequence: u64,
    /// What was told.
    pub entry: Entry,
}

impl Client {
    /// What the agent job `key` told in its newest run: what is stored after `from` (0: all), and with `follow` what comes,
    /// until the task has ended.
    pub fn told(&self, key: &TaskKey, from: u64, follow: bool) -> BoxStream<'static, Result<Told, ClientError>> {
        let reader = Reader {
            client: self.clone(),
            key: key.clone(),
            subject: self.names.talk_out_subject(key.id.as_str()),
            read_to: from,
            begins: None,
            found: VecDeque::new(),
            newest: None,
            follow,
            live: None,
            begun: false,
            over: false,
        };
        stream::try_unfold(reader, |mut reader| async move { Ok(reader.next().await?.map(|told| (told, reader))) })
            .into_stream()
            .boxed()
    }

    /// Tells a running agent job something. With `answers`, it is the answer to that question. Returns its place in the
    /// stream.
    pub async fn say(&self, key: &TaskKey, text: &str, answers: Option<&str>) -> Result<u64, ClientError> {
        let message = Message {
            text: text.to_owned(),
            answers: answers.map(str::to_owned),
            queue: Some(key.queue.clone()),
            more: More::default(),
        };
        let body = serde_json::to_vec(&message).expect("our own types are JSON");
        let mut headers = HeaderMap::new();
        // A publish that is tried again is told once.
        headers.insert(header::NATS_MSG_ID, uuid::Uuid::now_v7().to_string());
        let subject = self.names.talk_in_subject(key.id.as_str());
        Ok(self.js.publish(subject, headers, body.into()).await.map_err(::functions::CallError::Publish)?.sequence)
    }

    /// What the job has asked and nobody answered, the oldest first. Of a job that does not run nothing is open.
    pub async fn questions(&self, key: &TaskKey) -> Result<Vec<AskedQuestion>, ClientError> {
        let view = self.get(key).await?;
        Ok(self.agent_facts(&view).await?.questions)
    }

    /// Keeps a playbook, given as YAML, under a name that jobs can use. What was there is replaced.
    pub async fn apply_playbook(&self, name: &str, yaml: &str) -> Result<(), ClientError> {
        if !is_name(name) {
            let problem = "a playbook's name has A-Z a-z 0-9 _ - and at most 128 of them".to_owned();
            return Err(ClientError::Invalid(problem));
        }
        let read = serde_saphyr::from_str::<serde_json::Value>(yaml);
        let value = read.map_err(|error| ClientError::Invalid(error.to_string().chars().take(500).collect()))?;
        strict::playbook(&value, "").map_err(|error| ClientError::Invalid(error.to_string()))?;
        let subject = self.names.playbook_subject(name);
        let body = yaml.as_bytes().to_vec();
        self.js.publish(subject, HeaderMap::new(), body.into()).await.map_err(::functions::CallError::Publish)?;
        Ok(())
    }

    /// A named playbook, as it was applied.
    pub async fn playbook(&self, name: &str) -> Result<String, ClientError> {
        let stream = format!("KV_{}", self.names.playbooks_bucket());
        let found = self.js.last(&stream, &self.names.playbook_subject(name)).await?;
        let found = found.filter(|found| !found.is_marker());
        let found = found.ok_or_else(|| ClientError::NotFound { kind: "playbook", name: name.to_owned() })?;
        Ok(String::from_utf8_lossy(&found.payload).into_owned())
    }
}

struct Reader {
    client: Client,
    key: TaskKey,
    subject: String,
    /// Everything up to here was read.
    read_to: u64,
    /// Entries stored before are of an earlier run.
    begins: Option<Timestamp>,
    /// Read and not handed out.
    found: VecDeque<Told>,
    /// The newest that was read.
    newest: Option<(StartId, u64)>,
    follow: bool,
    live: Option<Box<Live>>,
    begun: bool,
    over: bool,
}

struct Live {
    passing: Subscriber,
    task: Watch,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Told>, ClientError> {
        if !self.begun {
            self.begin().await?;
        }
        loop {
            if let Some(told) = self.found.pop_front() {
                return Ok(Some(told));
            }
            if self.read().await? {
                continue;
            }
            match self.live.as_mut().filter(|_| !self.over) {
                None => return Ok(None),
                Some(live) => {
                    self.over = live.wait(self.newest.as_ref()).await?;
                    for pause in LOOKS {
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                        if self.read().await? {
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn begin(&mut self) -> Result<(), ClientError> {
        let view = self.client.look(&self.key).await?;
        let recorded = view.record.as_ref().map(|recorded| recorded.record.submitted_at);
        self.begins = recorded.max(view.queued.as_ref().map(|queued| queued.submitted_at));
        if self.begins.is_none() {
            return Err(ClientError::NotFound { kind: "task", name: self.key.to_string() });
        }
        if self.follow {
            let client = self.client.js.client();
            let passing = client.subscribe(self.subject.clone()).await.map_err(|_| ClientError::Closed)?;
            let task = Watch::new(&self.client, &self.key, view.sequence());
            self.live = Some(Box::new(Live { passing, task }));
        }
        self.begun = true;
        Ok(())
    }

    /// Reads what is there. Whether anything was. A passing failure is borne.
    async fn read(&mut self) -> Result<bool, ClientError> {
        let stream = self.client.names.talk_stream();
        let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut any = false;
        loop {
            let page = match self.client.js.page(&stream, &self.subject, self.read_to + 1, PAGE).await {
                Ok(page) => page,
                Err(error) if error.is_transient() && self.follow => {
                    pauses.sleep().await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for message in page.messages {
                self.read_to = message.sequence;
                if self.begins.is_some_and(|begins| message.stored_at < begins) {
                    continue;
                }
                // What a newer version tells in another way is passed over, not an end.
                let Ok(entry) = serde_json::from_slice::<Entry>(&message.payload) else { continue };
                if is_of(&entry, &self.key.queue) {
                    any = true;
                    self.newest = Some((entry.start.clone(), entry.number));
                    self.found.push_back(Told { sequence: message.sequence, entry });
                }
            }
            if !page.more {
                return Ok(any);
            }
        }
    }
}

fn is_of(entry: &Entry, queue: &QueueName) -> bool {
    entry.queue == *queue
}

impl Live {
    /// Waits for a reason to read. Whether the task is over.
    async fn wait(&mut self, newest: Option<&(StartId, u64)>) -> Result<bool, ClientError> {
        loop {
            tokio::select! {
                passed = self.passing.next() => match passed {
                    None => return Err(ClientError::Closed),
                    // One reading finds what many have announced.
                    Some(message) if is_read(&message.payload, newest) => {}
                    Some(_) => return Ok(false),
                },
                recorded = self.task.next() => {
                    return Ok(recorded?.is_none_or(|recorded| recorded.record.state.is_terminal()));
                }
                () = tokio::time::sleep(READ_AGAIN) => return Ok(false),
            }
        }
    }
}

fn is_read(payload: &[u8], newest: Option<&(StartId, u64)>) -> bool {
    let entry = serde_json::from_slice::<Entry>(payload).ok();
    entry.zip(newest).is_some_and(|(entry, (start, number))| entry.start == *start && entry.number <= *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_read_yet_is_a_reason_to_read() {
        let entry = |number: u64, start: &str| {
            let event = serde_json::json!({"kind": "note", "text": "a"});
            let at = "2026-11-22T00:00:00Z";
            let entry =
                serde_json::json!({"number": number, "at": at, "queue": "default", "start": start, "event": event});
            entry.to_string().into_bytes()
        };
        let start = "k3v9x2abcdef";
        let read = Some((serde_json::from_value(start.into()).unwrap(), 3));
        let is_read = |payload: &[u8]| is_read(payload, read.as_ref());
        assert!(is_read(&entry(2, start)) && is_read(&entry(3, start)));
        assert!(!is_read(&entry(4, start)));
        assert!(!is_read(&entry(1, "m4w8y1bcdefg")), "another start counts anew");
        assert!(!is_read(b"of another version"));
        assert!(!super::is_read(&entry(1, start), None));
    }
}
