//! Queues: what waits, what is out, the cap and the pause.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use jetstream::{ConsumerState, StoredMessage};
use schemas::queue::PromptJob;
use schemas::stores::MAX_ACK_PENDING;
use schemas::{QueueName, QueueSettings, Timestamp};

use super::record::{self, Written};
use super::{Client, ClientError};
use crate::topology;

/// A queue as it stands.
#[derive(Clone, Debug)]
pub struct QueueView {
    /// Its name.
    pub name: QueueName,
    /// Never handed out yet.
    pub waiting: u64,
    /// Handed out and not settled, retries waiting for their time included.
    pub in_flight: u64,
    /// Open pulls: workers that would take something now.
    pub pulls: u64,
    /// Nothing is handed out before.
    pub paused_until: Option<Timestamp>,
    /// Most handed out at once, if bounded.
    pub cap: Option<u32>,
    /// Whether its consumer exists; a queue that no worker ever pulled from has none.
    pub consumer: bool,
    /// What is set for it.
    pub settings: QueueSettings,
}

/// A pause without an end lasts this long: ten years.
const FOR_NOW: Duration = Duration::from_secs(10 * 365 * 86_400);
/// A resume is a pause that ends so soon: the server does not wake waiting pulls for a plain one (probed on 2.15.1).
const WAKE_AFTER: Duration = Duration::from_millis(50);
/// How often a change is tried over those of others.
const TRIES: usize = 20;

impl Client {
    /// Every queue that has workers, settings or tasks, by name.
    pub async fn queues(&self) -> Result<Vec<QueueView>, ClientError> {
        let stream = self.names.tasks_stream();
        let mut views: BTreeMap<QueueName, QueueView> = BTreeMap::new();
        for consumer in self.js.consumers(&stream).await? {
            // Consumers of other names are none of ours.
            if let Ok(name) = consumer.name.parse::<QueueName>() {
                views.insert(name.clone(), seen(name, Some(&consumer)));
            }
        }
        let mut from = 1;
        loop {
            let subjects = format!("$KV.{}.*", self.names.queues_bucket());
            let page = self.js.page(&self.queues_stream(), &subjects, from, PAGE).await?;
            for message in page.messages {
                from = message.sequence + 1;
                let name = message.subject.rsplit('.').next().and_then(|token| token.parse::<QueueName>().ok());
                if let (Some(name), Some(settings)) = (name, settings(&message)?) {
                    views.entry(name.clone()).or_insert_with(|| seen(name, None)).settings = settings;
                }
            }
            if !page.more {
                break;
            }
        }
        // Tasks that no consumer counts are of queues that no worker ever pulled from. Only then are subjects read.
        let messages = self.js.stream_state(&stream).await?.unwrap_or_default().messages;
        let counted: u64 = views.values().map(|view| view.waiting + view.in_flight).sum();
        if messages > counted {
            let mut orphans: BTreeMap<QueueName, u64> = BTreeMap::new();
            let mut offset = 0;
            loop {
                let page = self.js.subjects(&stream, &self.names.tasks_subjects(), offset).await?;
                offset += page.counts.len();
                for (subject, count) in &page.counts {
                    let name = self.names.task_tokens(subject).and_then(|(queue, _)| queue.parse::<QueueName>().ok());
                    if let Some(name) = name.filter(|name| views.get(name).is_none_or(|view| !view.consumer)) {
                        *orphans.entry(name).or_default() += count;
                    }
                }
                if page.counts.is_empty() || offset as u64 >= page.total {
                    break;
                }
            }
            for (name, waiting) in orphans {
                views.entry(name.clone()).or_insert_with(|| seen(name, None)).waiting = waiting;
            }
        }
        Ok(views.into_values().map(QueueView::completed).collect())
    }

    /// The job that prompts become, of every queue that has one. What cannot be read is passed over.
    pub async fn prompt_jobs(&self) -> Result<BTreeMap<QueueName, PromptJob>, ClientError> {
        let subjects = format!("$KV.{}.*", self.names.queues_bucket());
        let (mut jobs, mut from) = (BTreeMap::new(), 1);
        loop {
            let page = self.js.page(&self.queues_stream(), &subjects, from, PAGE).await?;
            for message in page.messages {
                from = message.sequence + 1;
                let name = message.subject.rsplit('.').next().and_then(|token| token.parse::<QueueName>().ok());
                let job = match settings(&message) {
                    Ok(settings) => settings.and_then(|settings| settings.agent),
                    Err(error) => {
                        tracing::warn!(%error, "passed over");
                        None
                    }
                };
                if let (Some(name), Some(job)) = (name, job) {
                    jobs.insert(name, job);
                }
            }
            if !page.more {
                return Ok(jobs);
            }
        }
    }

    /// One queue. One that nobody has used yet is empty.
    pub async fn queue(&self, queue: &QueueName) -> Result<QueueView, ClientError> {
        let stream = self.names.tasks_stream();
        let consumer = self.js.consumer(&stream, queue.as_str()).await?;
        let mut view = seen(queue.clone(), consumer.as_ref());
        if consumer.is_none() {
            view.waiting = self.js.subjects(&stream, &self.names.queue_subjects(queue), 0).await?.total;
        }
        view.settings = self.queue_settings(queue).await?.0;
        Ok(view.completed())
    }

    /// What is set for a queue, and the revision of that (0: nothing is).
    pub async fn queue_settings(&self, queue: &QueueName) -> Result<(QueueSettings, u64), ClientError> {
        match self.js.last(&self.queues_stream(), &self.names.queue_subject(queue)).await? {
            Some(message) => Ok((settings(&message)?.unwrap_or_default(), message.sequence)),
            None => Ok((QueueSettings::default(), 0)),
        }
    }

    /// Changes what is set for a queue, applies it to the queue's consumer and announces it. `change` may be called
    /// again if somebody else changed the settings meanwhile. A queue that does not exist yet is made.
    pub async fn set_queue(
        &self,
        queue: &QueueName,
        change: impl Fn(&mut QueueSettings) + Send,
    ) -> Result<QueueSettings, ClientError> {
        let what = format!("the settings of queue {queue}");
        for _ in 0..TRIES {
            let (mut settings, revision) = self.queue_settings(queue).await?;
            let before = settings.clone();
            change(&mut settings);
            if settings.cap == Some(0) {
                return Err(ClientError::Invalid("a cap of 0 is not allowed; allowed is 1 or more, or a pause".into()));
            }
            if revision == 0 || settings != before {
                let payload = serde_json::to_vec(&settings).expect("our own types always serialize");
                let subject = self.names.queue_subject(queue);
                let (stream, headers) = (self.queues_stream(), HeaderMap::new());
                let written =
                    record::set(&self.js, &stream, &subject, revision, headers, payload.into(), what.clone()).await?;
                if written == Written::Refused {
                    continue;
                }
            }
            self.apply_queue(queue, &settings).await?;
            return Ok(settings);
        }
        Err(ClientError::Contended { what })
    }

    /// Makes a queue's consumer as its settings say, and announces them. What [`Client::set_queue`] does after writing;
    /// done again it changes nothing.
    pub async fn apply_queue(&self, queue: &QueueName, settings: &QueueSettings) -> Result<(), ClientError> {
        let stream = self.names.tasks_stream();
        let mut state = topology::ensure_queue(&self.js, &self.names, &self.stores, queue).await?;
        let cap = settings.cap.unwrap_or(MAX_ACK_PENDING);
        if state.max_ack_pending() != u64::from(cap) {
            state = self.js.update_consumer(&stream, &state, &[("max_ack_pending", cap.into())]).await?;
        }
        let now = Timestamp::now();
        match settings.paused_until.filter(|until| *until > now) {
            Some(until) if state.paused && state.paused_until() == Some(until) => {}
            Some(until) => self.js.pause_consumer(&stream, queue.as_str(), until).await?,
            None if state.paused => {
                self.js.pause_consumer(&stream, queue.as_str(), now.plus(WAKE_AFTER)).await?;
            }
            None => {}
        }
        let payload = serde_json::to_vec(settings).expect("our own types always serialize");
        let told = self.js.client().publish(self.names.queue_event_subject(queue), payload.into()).await;
        let sent = self.js.client().flush().await;
        if told.is_err() || sent.is_err() {
            tracing::debug!(%queue, "could not announce the settings; workers will read them");
        }
        Ok(())
    }

    /// Hands out nothing of this queue before `until`, or until [`Client::resume_queue`]. What runs goes on.
    pub async fn pause_queue(&self, queue: &QueueName, until: Option<Timestamp>) -> Result<QueueSettings, ClientError> {
        let now = Timestamp::now();
        let until = until.unwrap_or_else(|| now.plus(FOR_NOW));
        if until <= now {
            return Err(ClientError::Invalid(format!("a pause until {until} is over already; it is {now}")));
        }
        self.set_queue(queue, |settings| settings.paused_until = Some(until)).await
    }

    /// Hands out again.
    pub async fn resume_queue(&self, queue: &QueueName) -> Result<QueueSettings, ClientError> {
        self.set_queue(queue, |settings| settings.paused_until = None).await
    }

    fn queues_stream(&self) -> String {
        format!("KV_{}", self.names.queues_bucket())
    }
}

/// Settings asked for at a time.
const PAGE: usize = 500;

fn settings(message: &StoredMessage) -> Result<Option<QueueSettings>, ClientError> {
    if message.is_marker() || message.payload.is_empty() {
        return Ok(None);
    }
    let unreadable =
        |source| ClientError::Unreadable { what: format!("entry `{}` of queue settings", message.subject), source };
    serde_json::from_slice(&message.payload).map(Some).map_err(unreadable)
}

/// What the server says of a queue.
fn seen(name: QueueName, consumer: Option<&ConsumerState>) -> QueueView {
    let cap = consumer.map(ConsumerState::max_ack_pending).and_then(|cap| u32::try_from(cap).ok());
    QueueView {
        name,
        waiting: consumer.map_or(0, |consumer| consumer.num_pending),
        in_flight: consumer.map_or(0, |consumer| consumer.num_ack_pending),
        pulls: consumer.map_or(0, |consumer| consumer.num_waiting),
        paused_until: consumer.filter(|consumer| consumer.paused).and_then(ConsumerState::paused_until),
        cap: cap.filter(|cap| *cap != MAX_ACK_PENDING),
        consumer: consumer.is_some(),
        settings: QueueSettings::default(),
    }
}

impl QueueView {
    /// Without a consumer, what is set is what will be.
    fn completed(mut self) -> Self {
        if !self.consumer {
            self.cap = self.settings.cap;
            self.paused_until = self.settings.paused_until.filter(|until| *until > Timestamp::now());
        }
        self
    }
}
