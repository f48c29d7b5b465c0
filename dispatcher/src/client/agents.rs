//! The registry: who is there, judged by the clock as well.

use std::collections::BTreeMap;
use std::time::Duration;

use jetstream::{ApiError, StoredMessage};
use schemas::cancel::{CordonReply, CordonRequest, DrainReply, DrainRequest};
use schemas::{AgentId, AgentRecord, AgentStatus, HumanDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Client, ClientError};

/// Beats may be this far apart before an agent counts as gone: three missed beats of 10 s.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(30);

/// An agent as it stands.
#[derive(Clone, Debug)]
pub struct AgentView {
    /// What it last said.
    pub record: AgentRecord,
    /// How it is, judged by its last beat as well.
    pub status: AgentStatus,
    /// Time since its last beat.
    pub silent_for: Duration,
    /// Revision of its record.
    pub revision: u64,
}

/// Entries asked for at a time.
const PAGE: usize = 2_000;
/// How often the registry is read while waiting for somebody to leave.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Candidates that an error names.
const NAMED: usize = 8;

impl AgentView {
    /// Reads one entry of the registry at `now`; a marker is nobody.
    pub fn read(message: &StoredMessage, now: Timestamp) -> Result<Option<Self>, ClientError> {
        if message.is_marker() || message.payload.is_empty() {
            return Ok(None);
        }
        let record: AgentRecord = serde_json::from_slice(&message.payload)
            .map_err(|source| ClientError::Unreadable { what: format!("agent `{}`", message.subject), source })?;
        let silent_for = now.since(record.last_heartbeat);
        let status = judged(record.status, silent_for);
        Ok(Some(Self { record, status, silent_for, revision: message.sequence }))
    }
}

/// How an agent is, whatever it said last.
pub fn judged(says: AgentStatus, silent_for: Duration) -> AgentStatus {
    if silent_for > OFFLINE_AFTER { AgentStatus::Offline } else { says }
}

impl Client {
    /// Everyone in the registry, by id.
    pub async fn agents(&self) -> Result<Vec<AgentView>, ClientError> {
        let now = Timestamp::now();
        let subjects = format!("$KV.{}.*", self.names.agents_bucket());
        let mut agents = BTreeMap::new();
        let mut from = 1;
        loop {
            let page = self.js.page(&self.agents_stream(), &subjects, from, PAGE).await?;
            for message in page.messages {
                from = message.sequence + 1;
                match AgentView::read(&message, now) {
                    Ok(Some(agent)) => {
                        // One that beat while we read comes again, newer.
                        agents.insert(agent.record.id.clone(), agent);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!(subject = message.subject, %error, "left out of the list of agents"),
                }
            }
            if !page.more {
                return Ok(agents.into_values().collect());
            }
        }
    }

    /// One agent, by its id or a prefix of it that fits only one.
    pub async fn agent(&self, text: &str) -> Result<AgentView, ClientError> {
        let id: AgentId = text.parse()?;
        if let Some(agent) = self.agent_exactly(&id).await? {
            return Ok(agent);
        }
        let mut fitting = self.agents().await?;
        fitting.retain(|agent| agent.record.id.as_str().starts_with(text));
        match fitting.len() {
            0 => Err(ClientError::NotFound { kind: "agent", name: text.into() }),
            1 => Ok(fitting.remove(0)),
            several => {
                let candidates = fitting.into_iter().take(NAMED).map(|agent| agent.record.id.to_string()).collect();
                Err(ClientError::Ambiguous { kind: "agent", name: text.into(), candidates, more: several > NAMED })
            }
        }
    }

    async fn agent_exactly(&self, id: &AgentId) -> Result<Option<AgentView>, ClientError> {
        match self.js.last(&self.agents_stream(), &self.names.agent_subject(id)).await? {
            Some(message) => AgentView::read(&message, Timestamp::now()),
            None => Ok(None),
        }
    }

    /// Asks a worker to take nothing new, finish and leave. The answer comes at once.
    pub async fn drain(&self, agent: &AgentId, grace: Option<HumanDuration>) -> Result<DrainReply, ClientError> {
        self.control(agent, self.names.drain_subject(agent), &DrainRequest { grace }).await
    }

    /// Asks a worker to take nothing new but to stay, or to take tasks again. The wish is gone with this boot of it.
    pub async fn cordon(&self, agent: &AgentId, request: &CordonRequest) -> Result<CordonReply, ClientError> {
        self.control(agent, self.names.cordon_subject(agent), request).await
    }

    /// Asks one worker; who does not answer is told apart from who is not there.
    async fn control<T: DeserializeOwned>(
        &self,
        agent: &AgentId,
        subject: String,
        request: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = serde_json::to_vec(request).expect("our own types always serialize");
        match self.js.request(&subject, request.into()).await {
            Ok(reply) => serde_json::from_slice(&reply.payload)
                .map_err(|source| ClientError::Unreadable { what: format!("the answer of agent {agent}"), source }),
            Err(ApiError::NoResponders { .. } | ApiError::TimedOut { .. }) => match self.agent_exactly(agent).await? {
                None => Err(ClientError::NotFound { kind: "agent", name: agent.to_string() }),
                Some(found) => Err(ClientError::AgentSilent {
                    agent: agent.clone(),
                    offline: found.status == AgentStatus::Offline,
                }),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until an agent says that it is gone, falls silent, or has begun anew.
    pub async fn wait_offline(&self, agent: &AgentId, timeout: Option<Duration>) -> Result<(), ClientError> {
        let leaving = async {
            let mut instance = None;
            loop {
                match self.agent_exactly(agent).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(found)) => {
                        let first = instance.get_or_insert_with(|| found.record.instance.clone());
                        if found.status == AgentStatus::Offline || *first != found.record.instance {
                            return Ok(());
                        }
                    }
                    Err(error) if error.is_transient() => {}
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match timeout {
            None => leaving.await,
            Some(after) => tokio::time::timeout(after, leaving)
                .await
                .unwrap_or_else(|_| Err(ClientError::TimedOut { what: format!("draining agent {agent}"), after })),
        }
    }

    fn agents_stream(&self) -> String {
        format!("KV_{}", self.names.agents_bucket())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silent_are_offline_whatever_they_said() {
        let (beat, gone) = (Duration::from_secs(30), Duration::from_millis(30_001));
        assert_eq!(judged(AgentStatus::Ready, beat), AgentStatus::Ready);
        assert_eq!(judged(AgentStatus::Ready, gone), AgentStatus::Offline);
        assert_eq!(judged(AgentStatus::Draining, gone), AgentStatus::Offline);
        assert_eq!(judged(AgentStatus::Offline, Duration::ZERO), AgentStatus::Offline);
    }
}
