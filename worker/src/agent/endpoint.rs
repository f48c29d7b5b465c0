//! A running job in the NATS agent protocol: any client of that protocol finds it, speaks with it, and answers what it
//! asks. One service a job, for as long as it runs.
//!
//! A prompt is a word in between: it is said to the job, what the job says from then on is streamed back, and the stream
//! ends with the first answer of the job after it has heard it.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::service::{Service, ServiceExt};
use async_nats::{Client, HeaderMap, Subject};
use futures_util::{FutureExt, StreamExt};
use schemas::nats_agent::{BEAT, Beat, Prompt, Refusal, SERVICE, chunk, task_token};
use schemas::transcript::{Entry, Event, Message};
use schemas::{More, Names, TaskKey, header};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::line::JobLine;

/// Most streams of replies at once.
const MOST_CALLERS: usize = 32;
/// Tried again after this where the service cannot be made.
const AGAIN: Duration = Duration::from_secs(5);

/// For the last words to those who still listen, once the line has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until the line has ended; then every caller has the end of its stream.
pub async fn serve(client: Client, names: Names, key: TaskKey, line: JobLine) {
    loop {
        match once(&client, &names, &key, &line).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(task = %key, %error, "not reached by the agent protocol now"),
        }
        tokio::select! {
            () = line.ended() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// A service ends with whoever made it.
struct Stopped(Option<Service>);

impl Drop for Stopped {
    fn drop(&mut self) {
        // There is nothing in it to wait for.
        let _ = self.0.take().map(|service| service.stop().now_or_never());
    }
}

/// Whether the line has ended.
async fn once(client: &Client, names: &Names, key: &TaskKey, line: &JobLine) -> Result<bool, async_nats::Error> {
    let token = task_token(key);
    let mut metadata: HashMap<String, String> = names.nats_agent_metadata(&token).into();
    metadata.insert("queue".to_owned(), key.queue.to_string());
    metadata.insert("role".to_owned(), "session".to_owned());
    let service = client
        .service_builder()
        .description("Shoal: a running agent job")
        .metadata(metadata)
        .start(SERVICE, env!("CARGO_PKG_VERSION"))
        .await?;
    let limit = format!("{}KB", client.max_payload() >> 10);
    let prompt = HashMap::from([("max_payload".to_owned(), limit), ("attachments_ok".to_owned(), "false".to_owned())]);
    let (prompts, statuses) = (names.nats_agent_subject("prompt", &token), names.nats_agent_subject("status", &token));
    let mut prompts =
        service.endpoint_builder().name("prompt").queue_group(SERVICE).metadata(prompt).add(prompts).await?;
    let mut statuses = service.endpoint_builder().name("status").queue_group(SERVICE).add(statuses).await?;
    let instance = service.info().await.id;
    let stopped = Stopped(Some(service));
    let beats = names.nats_agent_subject("hb", &token);
    let beat = || serde_json::to_vec(&Beat::now(names, &token, &instance)).expect("our own types are JSON");
    let mut due = tokio::time::interval(BEAT);
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            () = line.ended() => break,
            _ = due.tick() => client.publish(beats.clone(), beat().into()).await?,
            request = statuses.next() => {
                let Some(request) = request else { return Ok(false) };
                request.respond(Ok(beat().into())).await?;
            }
            request = prompts.next() => {
                let Some(request) = request else { return Ok(false) };
                let Some(reply) = request.message.reply.clone() else { continue };
                let caller = Caller { client: client.clone(), reply, line: line.clone(), key: key.clone() };
                match Prompt::read(&request.message.payload) {
                    Ok(_) if callers.len() >= MOST_CALLERS => {
                        caller.refuse(&Refusal::new(429, "too many speak with this job")).await?;
                    }
                    Ok(prompt) if !prompt.attachments.is_empty() => {
                        caller.refuse(&Refusal::new(400, "a running job takes no attachments")).await?;
                    }
                    Ok(prompt) => {
                        // Here, so that words are heard in the order in which they came.
                        let told = caller.say(prompt.text);
                        callers.spawn(caller.converse(told));
                    }
                    Err(refusal) => caller.refuse(&refusal).await?,
                }
            }
            Some(_) = callers.join_next() => {}
        }
    }
    drop(stopped);
    let last_words = async { while callers.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
        tracing::debug!(task = %key, "some who speak with the job do not hear its end");
    }
    Ok(true)
}

struct Caller {
    client: Client,
    reply: Subject,
    line: JobLine,
    key: TaskKey,
}

impl Caller {
    async fn refuse(&self, refusal: &Refusal) -> Result<(), async_nats::Error> {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_SERVICE_ERROR_CODE, refusal.code.to_string());
        headers.insert(header::NATS_SERVICE_ERROR, refusal.message.as_str());
        self.client.publish_with_headers(self.reply.clone(), headers, bytes::Bytes::new()).await?;
        self.client.publish(self.reply.clone(), bytes::Bytes::new()).await?;
        Ok(())
    }

    async fn send(&self, body: Vec<u8>) -> Result<(), async_nats::Error> {
        Ok(self.client.publish(self.reply.clone(), body.into()).await?)
    }

    /// Says it to the job; what the job says from then on.
    fn say(&self, text: String) -> UnboundedReceiver<Entry> {
        let told = self.line.listen();
        self.line.hear(Message { text, answers: None, queue: Some(self.key.queue.clone()), more: More::default() });
        told
    }

    /// Streams what the job says until it has answered, or is over.
    async fn converse(self, told: UnboundedReceiver<Entry>) {
        if let Err(error) = self.stream(told).await {
            tracing::debug!(task = %self.key, %error, "a caller of the agent protocol is not answered");
        }
        let _ = self.client.publish(self.reply.clone(), bytes::Bytes::new()).await;
    }

    async fn stream(&self, mut told: UnboundedReceiver<Entry>) -> Result<(), async_nats::Error> {
        self.send(chunk::ack()).await?;
        let mut asked = JoinSet::new();
        let mut sign = tokio::time::interval(BEAT);
        sign.tick().await;
        // A model takes what was said into its next turn; an agent program hears nothing, and is listened to until its end.
        let (mut heard, mut taken) = (false, false);
        loop {
            tokio::select! {
                _ = sign.tick() => self.send(chunk::ack()).await?,
                entry = told.recv() => match entry.map(|Entry { event, .. }| event) {
                    // The line has ended: the job is over.
                    None => return Ok(()),
                    // With one open question it is the answer to that.
                    Some(Event::Said { .. } | Event::Answer { .. }) => heard = true,
                    Some(Event::Turn { .. }) => taken = heard,
                    Some(Event::Text { text }) => {
                        self.send(chunk::response(&text)).await?;
                        if taken {
                            return Ok(());
                        }
                    }
                    Some(Event::Question { id, text }) => {
                        let inbox = self.client.new_inbox();
                        let mut answers = self.client.subscribe(inbox.clone()).await?;
                        self.send(chunk::query(&id, &inbox, &text)).await?;
                        let line = self.line.clone();
                        asked.spawn(async move {
                            if let Some(answer) = answers.next().await
                                && let Ok(prompt) = Prompt::read(&answer.payload)
                            {
                                line.hear(Message { text: prompt.text, answers: Some(id), queue: None, more: More::default() });
                            }
                        });
                    }
                    Some(Event::PhaseEnded { phase, error: Some(error) }) => {
                        self.send(chunk::response(&format!("{phase} failed: {}", error.message))).await?;
                    }
                    Some(_) => {}
                },
            }
        }
    }
}
