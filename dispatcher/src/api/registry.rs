//! The registry, kept at hand: a list of ten thousand agents is answered from here, after one look at what was written
//! since the last one, a second ago at most: ten thousand at once would keep the first who asks waiting. By paged reads
//! from a watermark, as the reconciler does it: no consumer, and nothing that could be lost unseen. Nobody's list is older
//! than its own request.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use schemas::stores::AGENTS_KEPT;
use schemas::{AgentId, AgentRecord, AgentStatus, Timestamp};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::known::Known;
use crate::client::{AgentView, Client, ClientError};

/// Entries in one read.
const PAGE: usize = 2_000;
/// Between two looks. A fleet that beats every ten seconds leaves a tenth of itself to read, and nothing where nobody beat.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All agents, as last read.
#[derive(Debug)]
pub struct Registry {
    client: Client,
    offline_after: Duration,
    memory: Mutex<Memory>,
    /// Of those who beat here.
    pub known: Known,
}

#[derive(Debug, Default)]
struct Memory {
    /// Everything up to here was read.
    read: u64,
    agents: BTreeMap<AgentId, Kept>,
}

/// As little as a list needs: there may be ten thousand.
#[derive(Debug)]
struct Kept {
    says: AgentStatus,
    last_heartbeat: Timestamp,
    /// The record as the bucket has it. A copy: what came from the server holds on to all that came with it.
    json: Box<[u8]>,
}

impl Kept {
    fn record(&self) -> AgentRecord {
        serde_json::from_slice(&self.json).expect("it was read before it was kept")
    }
}

/// Which agents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// In this status, judged by the last beat as well.
    pub status: Option<AgentStatus>,
    /// With this label; without a value, any value will do.
    pub label: Option<(&'a str, Option<&'a str>)>,
}

impl Wanted<'_> {
    /// `record` is asked for only where it matters.
    fn takes(&self, status: AgentStatus, record: impl FnOnce() -> AgentRecord) -> bool {
        self.status.is_none_or(|wanted| wanted == status)
            && self.label.is_none_or(|(name, value)| {
                record().labels.get(name).is_some_and(|has| value.is_none_or(|value| has == value))
            })
    }
}

impl Registry {
    /// Agents silent for longer than `offline_after` count as offline, whatever they said last.
    pub fn new(client: Client, offline_after: Duration) -> Self {
        let known = Known::default();
        Self { client, offline_after, memory: Mutex::default(), known }
    }

    /// How an agent is now.
    pub fn judge(&self, record: &AgentRecord, now: Timestamp) -> AgentStatus {
        self.judged(record.status, record.last_heartbeat, now)
    }

    fn judged(&self, says: AgentStatus, last_heartbeat: Timestamp, now: Timestamp) -> AgentStatus {
        if now.since(last_heartbeat) > self.offline_after { AgentStatus::Offline } else { says }
    }

    /// Keeps fresh what somebody may ask for, so that a list finds little left to read.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let mut memory = self.memory.lock().await;
            if let Err(error) = memory.refresh(&self.client).await {
                tracing::debug!(%error, "the registry is read again when somebody asks");
            }
            memory.forget_the_gone(Timestamp::now());
        }
    }

    /// The agents by id, as a JSON list.
    pub async fn list(&self, wanted: Wanted<'_>) -> Result<Bytes, ClientError> {
        let now = Timestamp::now();
        let mut memory = self.memory.lock().await;
        memory.refresh(&self.client).await?;
        memory.forget_the_gone(now);
        let mut list = Vec::with_capacity(2 + memory.agents.values().map(|kept| kept.json.len() + 16).sum::<usize>());
        list.push(b'[');
        for kept in memory.agents.values() {
            let status = self.judged(kept.says, kept.last_heartbeat, now);
            if !wanted.takes(status, || kept.record()) {
                continue;
            }
            if list.len() > 1 {
                list.push(b',');
            }
            if status == kept.says {
                list.extend_from_slice(&kept.json);
            } else {
                let record = AgentRecord { status, ..kept.record() };
                serde_json::to_writer(&mut list, &record).expect("a record is plain data");
            }
        }
        list.push(b']');
        Ok(list.into())
    }
}

impl Memory {
    /// The bucket forgets the gone after a day, without a word.
    fn forget_the_gone(&mut self, now: Timestamp) {
        self.agents.retain(|_, kept| now.since(kept.last_heartbeat) < AGENTS_KEPT);
    }

    async fn refresh(&mut self, client: &Client) -> Result<(), ClientError> {
        let bucket = client.names.agents_bucket();
        let stream = format!("KV_{bucket}");
        let Some(state) = client.js.stream_state(&stream).await? else {
            return Err(ClientError::NotFound { kind: "store", name: stream });
        };
        if state.last_seq < self.read {
            // The bucket was made anew.
            *self = Self::default();
        }
        let filter = format!("$KV.{bucket}.*");
        while self.read < state.last_seq {
            let page = client.js.page(&stream, &filter, self.read + 1, PAGE).await?;
            for message in &page.messages {
                self.read = message.sequence;
                let id = message.subject.rsplit('.').next().and_then(|id| id.parse::<AgentId>().ok());
                let Some(id) = id else { continue };
                match AgentView::read(message, Timestamp::now()) {
                    Ok(Some(view)) => {
                        let AgentRecord { status: says, last_heartbeat, .. } = view.record;
                        self.agents.insert(id, Kept { says, last_heartbeat, json: message.payload[..].into() });
                    }
                    Ok(None) => {
                        self.agents.remove(&id);
                    }
                    Err(error) => tracing::warn!(agent = %id, %error, "left out of the list of agents"),
                }
            }
            if page.messages.is_empty() {
                // A replica that trails; it is asked again next time.
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use schemas::AgentKind;

    use super::*;

    pub(crate) fn agent(labels: &[(&str, &str)]) -> AgentRecord {
        let now = Timestamp::from_millis(0);
        AgentRecord {
            id: "a".parse().unwrap(),
            instance: String::new(),
            kind: AgentKind::External,
            hostname: String::new(),
            address: None,
            port: None,
            version: String::new(),
            status: AgentStatus::Ready,
            reason: None,
            queues: Vec::new(),
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            runtimes: Default::default(),
            slots: 0,
            slots_taken: None,
            running: Vec::new(),
            running_count: 0,
            free: None,
            registered_at: now,
            last_heartbeat: now,
            last_fetch: None,
            last_ack: None,
            more: Default::default(),
        }
    }

    #[test]
    fn only_what_is_wanted_is_listed() {
        let record = agent(&[("zone", "b")]);
        let takes = |status, label| Wanted { status, label }.takes(AgentStatus::Ready, || record.clone());
        assert!(takes(None, None));
        assert!(takes(Some(AgentStatus::Ready), Some(("zone", Some("b")))));
        assert!(takes(None, Some(("zone", None))));
        assert!(!takes(Some(AgentStatus::Offline), None));
        assert!(!takes(None, Some(("zone", Some("a")))));
        assert!(!takes(None, Some(("rack", None))));
    }
}
