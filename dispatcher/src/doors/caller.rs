//! One prompt: made a task, and its job streamed back. The caller may leave whenever it likes.

use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use schemas::agent_job::TITLE_BYTES;
use schemas::nats_agent::{BEAT, Prompt, Refusal, chunk};
use schemas::queue::PromptJob;
use schemas::record::TaskResult;
use schemas::transcript::{AgentReport, Event};
use schemas::{AgentJob, QueueName, State, Task, TaskId, TaskKey, TaskRecord, Workload, header};
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ClientError, Submission, SubmitError, Submitted, Told};

/// Field of an envelope that names the task; without it the task gets an id of its own.
const TASK_ID: &str = "task_id";
/// Between two tries to read what a job says.
const AGAIN: Duration = Duration::from_secs(1);

/// Who asked.
pub struct Caller {
    client: Client,
    queue: QueueName,
    reply: Subject,
    stop: CancellationToken,
}

/// Why a stream ended before its job.
enum Broken {
    /// The caller is told with a code.
    Refused(Refusal),
    /// The caller cannot be told.
    Gone(async_nats::Error),
}

impl<E: Into<async_nats::Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self::Gone(error.into())
    }
}

impl Caller {
    /// One who listens on `reply`, until `stop`.
    pub fn new(client: Client, queue: QueueName, reply: Subject, stop: CancellationToken) -> Self {
        Self { client, queue, reply, stop }
    }

    /// The error, and the end.
    pub async fn refuse(&self, refusal: &Refusal) -> Result<(), async_nats::Error> {
        let nats = self.client.js.client();
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_SERVICE_ERROR_CODE, refusal.code.to_string());
        headers.insert(header::NATS_SERVICE_ERROR, refusal.message.as_str());
        let body = json!({"error": refusal.code.to_string(), "message": refusal.message}).to_string();
        nats.publish_with_headers(self.reply.clone(), headers, body.into()).await?;
        nats.publish(self.reply.clone(), Bytes::new()).await?;
        Ok(())
    }

    async fn send(&self, body: Vec<u8>) -> Result<(), Broken> {
        Ok(self.client.js.client().publish(self.reply.clone(), body.into()).await?)
    }

    /// All of it, from the ack to the end. Whatever becomes of the caller, a task that is stored runs.
    pub async fn serve(self, prompt: Prompt, job: PromptJob) {
        let told = match self.converse(prompt, job).await {
            Ok(()) => self.client.js.client().publish(self.reply.clone(), Bytes::new()).await.map_err(Into::into),
            Err(Broken::Refused(refusal)) => self.refuse(&refusal).await,
            Err(Broken::Gone(error)) => Err(error),
        };
        if let Err(error) = told {
            tracing::debug!(queue = %self.queue, %error, "a caller of the agent protocol is not answered");
        }
    }

    async fn converse(&self, prompt: Prompt, job: PromptJob) -> Result<(), Broken> {
        self.send(chunk::ack()).await?;
        let submission = submission(&self.queue, &prompt, &job).map_err(Broken::Refused)?;
        let keeping_alive = async {
            let mut sign = tokio::time::interval(BEAT);
            sign.tick().await;
            loop {
                sign.tick().await;
                self.send(chunk::ack()).await?;
            }
        };
        let mut name = None;
        let streaming = async {
            let submitted = self.client.submit(submission).await.map_err(|error| Broken::Refused(refusal(&error)))?;
            let key = submitted.key.clone();
            tracing::info!(task = %key, "a prompt became a task");
            name = Some(key.clone());
            self.send(chunk::response(&key.to_string())).await?;
            let record = self.follow(&submitted).await?;
            self.send(chunk::end(&summary(&record), &told(&key, &record))).await
        };
        tokio::select! {
            ended = streaming => return ended,
            ended = keeping_alive => return ended,
            () = self.stop.cancelled() => {}
        }
        let message = match name {
            Some(key) => format!("this dispatcher stops; the task {key} goes on"),
            None => "this dispatcher stops; whether the prompt became a task is not known".to_owned(),
        };
        Err(Broken::Refused(Refusal::new(500, message)))
    }

    /// Streams what the job says, until its record tells the end.
    async fn follow(&self, submitted: &Submitted) -> Result<TaskRecord, Broken> {
        let key = &submitted.key;
        let mut asked = Asked::default();
        let mut read_to = 0;
        // A reader that broke is made anew where it stood: what is stored stays there.
        loop {
            let mut telling = self.client.told(key, read_to, true);
            let error = loop {
                match telling.next().await {
                    Some(Ok(Told { sequence, entry })) => {
                        read_to = sequence;
                        self.pass_on(key, entry.event, &mut asked).await?;
                    }
                    Some(Err(error)) => break Some(error),
                    None => break None,
                }
            };
            let Some(error) = error else { break };
            lost(key, &error)?;
            tokio::time::sleep(AGAIN).await;
        }
        loop {
            match self.client.wait(key, Some(submitted.sequence), None).await {
                Ok(recorded) => return Ok(recorded.record),
                Err(error) => lost(key, &error)?,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn pass_on(&self, key: &TaskKey, event: Event, asked: &mut Asked) -> Result<(), Broken> {
        match event {
            Event::Text { text } => self.send(chunk::response(&text)).await?,
            Event::PhaseEnded { phase, error: Some(error) } => {
                self.send(chunk::response(&format!("{phase} failed: {}", error.message))).await?;
            }
            Event::Question { id, text } => {
                let nats = self.client.js.client();
                let inbox = nats.new_inbox();
                let mut answers = nats.subscribe(inbox.clone()).await?;
                self.send(chunk::query(&id, &inbox, &text)).await?;
                let (client, key, question) = (self.client.clone(), key.clone(), id.clone());
                asked.wait(id, async move {
                    // The first that can be read; the protocol allows one.
                    while let Some(answer) = answers.next().await {
                        let Ok(prompt) = Prompt::read(&answer.payload) else { continue };
                        match client.say(&key, &prompt.text, Some(&question)).await {
                            Ok(_) => return,
                            Err(error) => tracing::debug!(task = %key, %error, "an answer is not passed on"),
                        }
                    }
                });
            }
            // By whomever.
            Event::Answer { id, .. } => asked.over(&id),
            _ => {}
        }
        Ok(())
    }
}

/// Questions whose answers are waited for; none is once this is dropped.
#[derive(Default)]
struct Asked {
    waiting: JoinSet<()>,
    open: Vec<(String, AbortHandle)>,
}

impl Asked {
    fn wait(&mut self, id: String, answer: impl Future<Output = ()> + Send + 'static) {
        while self.waiting.try_join_next().is_some() {}
        let handle = self.waiting.spawn(answer);
        self.open.push((id, handle));
    }

    fn over(&mut self, id: &str) {
        self.open.retain(|(open, handle)| {
            if open == id {
                handle.abort();
            }
            open != id
        });
    }
}

/// Whether reading may go on after this.
fn lost(key: &TaskKey, error: &ClientError) -> Result<(), Broken> {
    match error {
        ClientError::NotFound { .. } | ClientError::Gone { .. } | ClientError::RunOver { .. } => {
            Err(Broken::Refused(Refusal::new(404, format!("the task {key} is gone: {error}"))))
        }
        ClientError::Closed => Err(Broken::Refused(Refusal::new(500, format!("the task {key} goes on: {error}")))),
        error => {
            tracing::debug!(task = %key, %error, "what it says cannot be read now");
            Ok(())
        }
    }
}

/// The task that a prompt becomes.
fn submission(queue: &QueueName, prompt: &Prompt, job: &PromptJob) -> Result<Submission, Refusal> {
    let job = job.read().map_err(|error| {
        Refusal::new(500, format!("the job of queue {queue} cannot be read, it may be of a newer version: {error}"))
    })?;
    let job = AgentJob { title: title(&prompt.text), description: prompt.text.clone(), ..job };
    let id = match prompt.fields.get(TASK_ID) {
        None | Some(Value::Null) => None,
        Some(id) => {
            let id = id.as_str().ok_or_else(|| Refusal::new(400, format!("`{TASK_ID}` must be text")))?;
            Some(TaskId::new(id).map_err(|error| Refusal::new(400, format!("`{TASK_ID}`: {error}")))?)
        }
    };
    let task = Task::new(Workload::Agent(Box::new(job)));
    let payload = serde_json::to_vec(&task).expect("a task is JSON");
    Submission::checked(queue.clone(), id, payload).map_err(|error| refusal(&error))
}

/// The prompt's first line, as a title may be.
fn title(prompt: &str) -> String {
    let line = prompt.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let mut title: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if title.len() > TITLE_BYTES {
        let cut = (0..=TITLE_BYTES).rev().find(|at| title.is_char_boundary(*at)).unwrap_or(0);
        title.truncate(cut);
    }
    match title.trim() {
        "" => "A prompt".to_owned(),
        title => title.to_owned(),
    }
}

fn refusal(error: &SubmitError) -> Refusal {
    let code = match error {
        SubmitError::Invalid(_) | SubmitError::InvalidId(_) | SubmitError::Header { .. } => 400,
        SubmitError::TooLarge { .. } => 400,
        SubmitError::Locked { .. } => 409,
        // The stream takes no more.
        SubmitError::Refused { .. } => 429,
        SubmitError::NotSetUp { .. }
        | SubmitError::NotStored { .. }
        | SubmitError::Unknown { .. }
        | SubmitError::Read { .. } => 500,
    };
    Refusal::new(code, error.to_string())
}

/// The end, for people.
fn summary(record: &TaskRecord) -> String {
    let mut lines = Vec::new();
    let report = record.attempts.last().and_then(|attempt| attempt.agent.as_ref()?.read());
    let report = report.as_ref();
    if record.state == State::Succeeded {
        lines.extend(report.into_iter().flat_map(lines_of));
    }
    match &record.error {
        Some(error) if record.state != State::Succeeded => {
            lines.push(format!("{}: {}: {}", record.state, error.code, error.message));
        }
        _ if lines.is_empty() => lines.push(record.state.to_string()),
        _ => {}
    }
    lines.join("\n")
}

fn lines_of(report: &AgentReport) -> Vec<String> {
    let mut lines = Vec::new();
    match (&report.branch, report.pushed) {
        (Some(branch), true) => lines.push(format!("branch {branch}")),
        _ => lines.push(format!("nothing was pushed; the change is the artifact `{}`", schemas::agent_job::PATCH)),
    }
    lines.extend(report.commit.as_ref().map(|commit| format!("commit {commit}")));
    lines.push(match &report.tests {
        None => "tests: none were run".to_owned(),
        Some(tests) => {
            let counts = tests.counts.map_or_else(
                || tests.exit_code.map_or_else(|| "ended by a signal".to_owned(), |code| format!("exit code {code}")),
                |counts| format!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped),
            );
            format!("tests: {counts} ({})", tests.command)
        }
    });
    lines
}

/// The end, for programs.
fn told(key: &TaskKey, record: &TaskRecord) -> Value {
    let mut told = json!({"id": key.id, "queue": key.queue, "sequence": record.sequence, "state": record.state});
    let inline = record.result.as_ref().and_then(TaskResult::inline_bytes);
    if let Some(Ok(bytes)) = inline
        && let Ok(result) = serde_json::from_slice::<Value>(&bytes)
    {
        told["result"] = result;
    }
    if let Some(error) = record.error.as_ref().filter(|_| record.state != State::Succeeded) {
        told["error"] = json!(error);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_line_of_at_most_200_bytes() {
        assert_eq!(title("\n  Fix the parser.\r\nThe last line is lost."), "Fix the parser.");
        assert_eq!(title("a\tb"), "a b");
        assert_eq!(title("\u{1}\n"), "A prompt");
        let long = title(&"é".repeat(150));
        assert_eq!(long, "é".repeat(100));
        let long = title(&format!("x{}", "é".repeat(150)));
        assert_eq!(long.len(), 199, "no letter is cut in two");
    }

    #[test]
    fn a_prompt_fills_in_the_job_of_its_queue() {
        let job: PromptJob = AgentJob::new("https://host/a.git", "of the prompt").into();
        let queue: QueueName = "default".parse().unwrap();
        let prompt = Prompt::read(br#"{"prompt":"Fix it.\nAll of it.","task_id":"t1"}"#).unwrap();
        let submission = submission(&queue, &prompt, &job).unwrap();
        assert_eq!(submission.key.to_string(), "default.t1");
        let Workload::Agent(job) = Task::decode(&submission.payload).unwrap().workload else { panic!("another kind") };
        assert_eq!((job.title.as_str(), job.description.as_str()), ("Fix it.", "Fix it.\nAll of it."));
        let bad = |fields: &[u8]| {
            let prompt = Prompt::read(fields).unwrap();
            super::submission(&queue, &prompt, &AgentJob::new("https://host/a.git", "a").into()).unwrap_err().code
        };
        assert_eq!(bad(br#"{"prompt":"a","task_id":"a b"}"#), 400);
        assert_eq!(bad(br#"{"prompt":"a","task_id":1}"#), 400);
        assert_eq!(bad(b"a\0b"), 400);
    }
}
