//! The door of one queue: one service `agents`, its beats, and those who are served.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::service::{Request, Service, ServiceExt};
use futures_util::{FutureExt, StreamExt};
use schemas::QueueName;
use schemas::nats_agent::{BEAT, Beat, Prompt, Refusal, SERVICE, queue_token};
use schemas::queue::PromptJob;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use crate::client::Client;

/// Most streams of replies at once; one whose caller has vanished counts until its job ends.
const MOST_CALLERS: usize = 1_024;
/// Tried again after this where the service cannot be made.
const AGAIN: Duration = Duration::from_secs(2);
/// For the last words to those who are served.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A door that is open.
pub struct Door {
    job: watch::Sender<PromptJob>,
    /// No more prompts.
    shut: CancellationToken,
    /// Nobody is served any more.
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Door {
    /// Opens it.
    pub fn open(client: Client, queue: QueueName, job: PromptJob) -> Self {
        let (job, current) = watch::channel(job);
        let (shut, stop) = (CancellationToken::new(), CancellationToken::new());
        let inside = Inside { client, queue, job: current, shut: shut.clone(), stop: stop.clone() };
        Self { job, shut, stop, serving: tokio::spawn(inside.serve()) }
    }

    /// From now on prompts become this.
    pub fn set(&self, job: PromptJob) {
        self.job.send_if_modified(|current| {
            let changed = *current != job;
            *current = job;
            changed
        });
    }

    /// Takes no more prompts; who is served is served to the end.
    pub fn leave(self) {
        self.shut.cancel();
    }

    /// Ends it; who is served is told that the job goes on without us.
    pub async fn close(self) {
        self.shut.cancel();
        self.stop.cancel();
        let _ = self.serving.await;
    }
}

struct Inside {
    client: Client,
    queue: QueueName,
    job: watch::Receiver<PromptJob>,
    shut: CancellationToken,
    stop: CancellationToken,
}

/// A service ends with whoever made it.
struct Stopped(Option<Service>);

impl Drop for Stopped {
    fn drop(&mut self) {
        // There is nothing in it to wait for.
        let _ = self.0.take().map(|service| service.stop().now_or_never());
    }
}

impl Inside {
    async fn serve(self) {
        let mut callers = JoinSet::new();
        while !self.shut.is_cancelled() {
            if let Err(error) = self.receive(&mut callers).await {
                tracing::warn!(queue = %self.queue, %error, "prompts are not taken now");
            }
            tokio::select! {
                () = self.shut.cancelled() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        let rest = async { while callers.join_next().await.is_some() {} };
        let late = async {
            self.stop.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = rest => {}
            () = late => {}
        }
    }

    /// One service, until it breaks or the door is shut.
    async fn receive(&self, callers: &mut JoinSet<()>) -> Result<(), async_nats::Error> {
        let (nats, names, token) = (self.client.js.client(), &self.client.names, queue_token(&self.queue));
        let mut metadata: HashMap<String, String> = names.nats_agent_metadata(&token).into();
        metadata.insert("queue".to_owned(), self.queue.to_string());
        metadata.insert("role".to_owned(), "controller".to_owned());
        let builder = nats.service_builder().description("Shoal: agent jobs of a queue").metadata(metadata);
        let service = builder.start(SERVICE, env!("CARGO_PKG_VERSION")).await?;
        let instance = service.info().await.id;
        // A task is the prompt as JSON, which may take twice its bytes.
        let about = HashMap::from([
            ("max_payload".to_owned(), format!("{}KB", self.client.js.max_payload() >> 11)),
            ("attachments_ok".to_owned(), "false".to_owned()),
        ]);
        let subject = |verb| names.nats_agent_subject(verb, &token);
        let endpoint = || service.endpoint_builder().queue_group(SERVICE);
        let mut prompts = endpoint().name("prompt").metadata(about).add(subject("prompt")).await?;
        let mut statuses = endpoint().name("status").add(subject("status")).await?;
        let _stopped = Stopped(Some(service));
        let beats = subject("hb");
        let beat = || serde_json::to_vec(&Beat::now(names, &token, &instance)).expect("our own types are JSON");
        let mut due = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                () = self.shut.cancelled() => return Ok(()),
                _ = due.tick() => nats.publish(beats.clone(), beat().into()).await?,
                request = statuses.next() => {
                    let Some(request) = request else { return Ok(()) };
                    request.respond(Ok(beat().into())).await?;
                }
                request = prompts.next() => {
                    let Some(request) = request else { return Ok(()) };
                    self.admit(request, callers).await?;
                }
                Some(_) = callers.join_next() => {}
            }
        }
    }

    async fn admit(&self, request: Request, callers: &mut JoinSet<()>) -> Result<(), async_nats::Error> {
        // Who names no inbox cannot be answered.
        let Some(reply) = request.message.reply.clone() else { return Ok(()) };
        let caller = Caller::new(self.client.clone(), self.queue.clone(), reply, self.stop.clone());
        let prompt = match Prompt::read(&request.message.payload) {
            Ok(_) if callers.len() >= MOST_CALLERS => {
                Err(Refusal::new(429, "too many prompts are being answered here"))
            }
            Ok(prompt) if !prompt.attachments.is_empty() => Err(Refusal::new(400, "this agent takes no attachments")),
            read => read,
        };
        match prompt {
            Ok(prompt) => {
                let job = self.job.borrow().clone();
                callers.spawn(caller.serve(prompt, job));
                Ok(())
            }
            Err(refusal) => caller.refuse(&refusal).await,
        }
    }
}
