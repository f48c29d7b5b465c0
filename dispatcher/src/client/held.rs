//! What workers hold on their engines: asked of each, since only they know.

use std::time::Duration;

use futures_util::future::join_all;
use jetstream::ApiError;
use schemas::agent::CONTAINER_RUNTIMES;
use schemas::containers::{ContainersReply, ContainersRequest, ContainersVerb, HeldContainer};
use schemas::{AgentId, AgentKind, AgentStatus, header};

use super::{Client, ClientError};

/// How long one worker may take to say.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Candidates that an error names.
const NAMED: usize = 8;

/// What the workers said, and who said nothing.
#[derive(Debug, Default)]
pub struct Held {
    /// By function, index and worker.
    pub containers: Vec<HeldContainer>,
    /// Workers that beat but did not answer, and why.
    pub silent: Vec<(AgentId, String)>,
}

impl Client {
    /// What all workers hold, or one of them; `stats` with what it uses now.
    pub async fn containers(&self, worker: Option<&AgentId>, stats: bool) -> Result<Held, ClientError> {
        let verb = if stats { ContainersVerb::Stats } else { ContainersVerb::List };
        let workers: Vec<AgentId> = match worker {
            Some(worker) => vec![worker.clone()],
            None => {
                let agents = self.agents().await?.into_iter();
                let there = agents.filter(|agent| {
                    let mut runtimes = agent.record.runtimes.keys();
                    agent.record.kind == AgentKind::Worker
                        && agent.status != AgentStatus::Offline
                        && runtimes.any(|runtime| CONTAINER_RUNTIMES.contains(&runtime.as_str()))
                });
                there.map(|agent| agent.record.id).collect()
            }
        };
        let request = ContainersRequest { verb, id: None };
        let asked = workers.iter().map(|worker| self.ask_containers(worker, &request));
        let mut held = Held::default();
        for (worker, said) in workers.iter().zip(join_all(asked).await) {
            match said {
                Ok(reply) => held.containers.extend(reply.containers),
                Err(error) => held.silent.push((worker.clone(), error.to_string())),
            }
        }
        held.containers.sort_by(|a, b| (&a.function, a.index, &a.worker).cmp(&(&b.function, b.index, &b.worker)));
        Ok(held)
    }

    /// Halts one container, or lets it go on; `id` is its id (12 characters or more of it), name or start id.
    pub async fn halt_container(&self, id: &str, halted: bool) -> Result<HeldContainer, ClientError> {
        let held = self.containers(None, false).await?;
        let mut fitting: Vec<HeldContainer> = held.containers.into_iter().filter(|it| is_called(it, id)).collect();
        let found = match fitting.len() {
            0 => return Err(ClientError::NotFound { kind: "container", name: id.into() }),
            1 => fitting.remove(0),
            many => {
                let candidates = fitting.into_iter().take(NAMED).map(|it| it.name).collect();
                return Err(ClientError::Ambiguous {
                    kind: "container",
                    name: id.into(),
                    candidates,
                    more: many > NAMED,
                });
            }
        };
        let verb = if halted { ContainersVerb::Pause } else { ContainersVerb::Resume };
        let request = ContainersRequest { verb, id: Some(found.id.clone()) };
        let mut reply = self.ask_containers(&found.worker, &request).await?;
        match reply.containers.pop() {
            Some(now) => Ok(now),
            None => Err(ClientError::NotFound { kind: "container", name: id.into() }),
        }
    }

    async fn ask_containers(
        &self,
        worker: &AgentId,
        request: &ContainersRequest,
    ) -> Result<ContainersReply, ClientError> {
        let subject = self.names.containers_subject(worker);
        let body = serde_json::to_vec(request).expect("our own types are JSON");
        let reply = match self.js.request_within(&subject, body.into(), ANSWERS_WITHIN).await {
            Ok(reply) => reply,
            Err(ApiError::NoResponders { .. } | ApiError::TimedOut { .. }) => {
                return Err(ClientError::AgentSilent { agent: worker.clone(), offline: false });
            }
            Err(error) => return Err(error.into()),
        };
        let said = reply.headers.as_ref().and_then(|headers| headers.get(header::NATS_SERVICE_ERROR));
        if let Some(error) = said {
            return Err(ClientError::Refused { agent: worker.clone(), why: error.as_str().to_owned() });
        }
        serde_json::from_slice(&reply.payload)
            .map_err(|source| ClientError::Unreadable { what: format!("the answer of agent {worker}"), source })
    }
}

fn is_called(container: &HeldContainer, id: &str) -> bool {
    let whole = [container.id.as_str(), container.name.as_str(), container.start.as_str()].contains(&id);
    whole || (id.len() >= 12 && container.id.starts_with(id))
}
