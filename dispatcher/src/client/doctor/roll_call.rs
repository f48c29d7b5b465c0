//! Who is there: the registry, answers to a ping of all workers, and what each says when it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::service::PingResponse;
use futures_util::StreamExt;
use jetstream::ApiError;
use schemas::{AgentId, header};
use tokio::time::Instant;

use super::agents::{Answer, Entry, Ping};
use crate::client::{AgentView, Client, ClientError};

/// Entries of the registry that are read: those that were not written for longest.
const READ: usize = 1_000;
/// At once.
const AT_ONCE: usize = 32;
/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long answers to a ping of all are gathered, and how many.
const GATHER: Duration = Duration::from_secs(1);
const PINGS: u64 = 1_000;

/// Reads the registry: those that did not beat for longest.
pub(super) async fn registry(client: &Client) -> Result<(BTreeMap<AgentId, Entry>, u64), ClientError> {
    let stream = format!("KV_{}", client.names.agents_bucket());
    let page = client.js.page(&stream, &client.names.agents_subjects(), 1, READ).await?;
    let total = page.messages.len() as u64 + page.left;
    Ok((page.messages.iter().filter_map(entry).collect(), total))
}

/// The entries of these agents.
pub(super) async fn entries(
    client: &Client,
    agents: &BTreeSet<AgentId>,
) -> Result<BTreeMap<AgentId, Entry>, ClientError> {
    let stream = format!("KV_{}", client.names.agents_bucket());
    let subjects: Vec<String> = agents.iter().map(|agent| client.names.agent_subject(agent)).collect();
    let mut found = BTreeMap::new();
    for some in subjects.chunks(500) {
        found.extend(client.js.newest(&stream, some).await?.iter().filter_map(entry));
    }
    Ok(found)
}

fn entry(message: &jetstream::StoredMessage) -> Option<(AgentId, Entry)> {
    // One that is unreadable is told in the list of agents.
    let view = AgentView::read(message, message.stored_at).ok()??;
    let entry = Entry { record: view.record, stored_at: message.stored_at, revision: message.sequence };
    Some((entry.record.id.clone(), entry))
}

/// Who answers a ping of all workers.
pub(super) async fn pings(client: &Client) -> Result<Vec<Ping>, ClientError> {
    let nats = client.js.client();
    let subject = format!("$SRV.PING.{}", client.names.worker_service());
    let failed = |why: String| ApiError::Failed { subject: subject.clone(), why };
    let inbox = nats.new_inbox();
    let mut replies = nats.subscribe(inbox.clone()).await.map_err(|error| failed(error.to_string()))?;
    replies.unsubscribe_after(PINGS).await.map_err(|error| failed(error.to_string()))?;
    nats.publish_with_reply(subject.clone(), inbox, Vec::new().into())
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut found = Vec::new();
    let until = Instant::now() + GATHER;
    while let Ok(Some(reply)) = tokio::time::timeout_at(until, replies.next()).await {
        // A status: nobody is there.
        if reply.status.is_some() {
            break;
        }
        let Ok(answer) = serde_json::from_slice::<PingResponse>(&reply.payload) else { continue };
        let word = |name: &str| answer.metadata.get(name).map(String::as_str).unwrap_or_default();
        if let Ok(worker) = word("worker").parse() {
            let queues = word("queues").split(',').filter_map(|queue| queue.parse().ok()).collect();
            found.push(Ping { worker, instance: word("instance").to_owned(), queues });
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether any dispatcher answers.
pub(super) async fn dispatcher_answers(client: &Client) -> bool {
    let subject = format!("$SRV.PING.{}", client.names.service());
    client.js.request_within(&subject, Vec::new().into(), PATIENCE).await.is_ok_and(|reply| reply.status.is_none())
}

/// Asks workers for what they are and run.
pub(super) async fn answers(client: &Client, workers: &BTreeSet<AgentId>) -> BTreeMap<AgentId, Answer> {
    let asked = workers.iter().map(|worker| async move {
        let subject = client.names.info_subject(worker);
        let answer = match client.js.request_within(&subject, Vec::new().into(), PATIENCE).await {
            Ok(reply) => {
                let refused = reply.headers.as_ref().is_some_and(|h| h.get(header::NATS_SERVICE_ERROR).is_some());
                match serde_json::from_slice(&reply.payload) {
                    Ok(record) if !refused => Answer::Told(Box::new(record)),
                    _ => Answer::Other,
                }
            }
            Err(_) => Answer::Silent,
        };
        (worker.clone(), answer)
    });
    futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await
}
