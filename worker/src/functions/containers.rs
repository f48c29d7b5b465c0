//! What this worker holds on its engines, told to whoever asks, and halted by hand: `shoal.control.<agent>.containers`.
//! What is halted by hand goes on with its next call, as one that was paused for being idle does.

use std::sync::Arc;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use schemas::containers::{ContainersReply, ContainersRequest, ContainersVerb, HeldContainer};
use schemas::{InstanceStatus, header};
use tokio::sync::Semaphore;

use super::Functions;
use crate::runtime::instances::Found;
use crate::runtime::{Runtime, Status};

/// Requests answered at once; more wait.
const AT_ONCE: usize = 4;

/// Why a request was not done: a status as in HTTP, and words.
type Refused = (u16, String);

/// Answers until the worker is over.
pub async fn serve(functions: Arc<Functions>) {
    let subject = functions.worker.config.names.containers_subject(&functions.worker.id);
    let mut requests = match functions.worker.js.client().subscribe(subject).await {
        Ok(requests) => requests,
        Err(error) => return tracing::warn!(%error, "what it holds cannot be asked from afar"),
    };
    let room = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(Some(request)) = functions.over.run_until_cancelled(requests.next()).await {
        let permit = room.clone().acquire_owned().await.expect("never closed");
        let functions = functions.clone();
        tokio::spawn(async move {
            answer(&functions, request).await;
            drop(permit);
        });
    }
}

async fn answer(functions: &Arc<Functions>, request: Message) {
    let Some(reply) = request.reply else { return };
    let done = match serde_json::from_slice(&request.payload) {
        Ok(asked) => perform(functions, &asked).await,
        Err(error) => Err((400, error.to_string())),
    };
    let mut headers = HeaderMap::new();
    let body = match done {
        Ok(containers) => serde_json::to_vec(&ContainersReply { containers }).expect("our own types are JSON"),
        Err((status, why)) => {
            let line: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            headers.insert(header::NATS_SERVICE_ERROR, line.as_str());
            headers.insert(header::NATS_SERVICE_ERROR_CODE, status.to_string());
            Vec::new()
        }
    };
    if let Err(error) = functions.worker.js.client().publish_with_headers(reply, headers, Bytes::from(body)).await {
        tracing::debug!(%error, "not answered");
    }
}

async fn perform(functions: &Arc<Functions>, asked: &ContainersRequest) -> Result<Vec<HeldContainer>, Refused> {
    let halts = match asked.verb {
        ContainersVerb::List | ContainersVerb::Stats => None,
        ContainersVerb::Pause => Some(true),
        ContainersVerb::Resume => Some(false),
    };
    let mut found = all(functions).await?;
    if let Some(id) = &asked.id {
        found.retain(|(_, found)| found.id == *id);
    }
    if let Some(halted) = halts {
        let (Some(_), [(runtime, one)]) = (&asked.id, found.as_slice()) else {
            return Err((404, "it holds no such container".into()));
        };
        halt(functions, runtime, one, halted).await?;
        let id = one.id.clone();
        found = all(functions).await?;
        found.retain(|(_, found)| found.id == id);
    }
    let mut told = Vec::with_capacity(found.len());
    for (runtime, found) in found {
        let usage = match (asked.verb, runtime.instances()) {
            (ContainersVerb::Stats, Some(instances)) => match instances.instance_stats(&found.id).await {
                Ok(usage) => Some(usage),
                Err(error) => {
                    tracing::debug!(name = found.name, %error, "what it uses is not known");
                    None
                }
            },
            _ => None,
        };
        told.push(HeldContainer {
            id: found.id,
            name: found.name,
            worker: functions.worker.id.clone(),
            runtime: runtime.name().to_owned(),
            status: word(&found.status).to_owned(),
            function: found.function,
            index: found.index,
            start: found.start,
            ip_address: found.address.map(|address| address.to_string()),
            usage,
        });
    }
    told.sort_by(|a, b| (&a.function, a.index).cmp(&(&b.function, b.index)));
    Ok(told)
}

/// Every container of ours, in every runtime.
async fn all(functions: &Functions) -> Result<Vec<(Arc<dyn Runtime>, Found)>, Refused> {
    let mut all = Vec::new();
    for runtime in functions.worker.runtimes.values() {
        let Some(instances) = runtime.instances() else { continue };
        let found = instances.instances().await.map_err(|error| (503, error.to_string()))?;
        all.extend(found.into_iter().map(|found| (runtime.clone(), found)));
    }
    Ok(all)
}

async fn halt(
    functions: &Arc<Functions>,
    runtime: &Arc<dyn Runtime>,
    found: &Found,
    halted: bool,
) -> Result<(), Refused> {
    let failed = |error: crate::runtime::RuntimeError| (503, error.to_string());
    let Some(seat) = functions.held(&found.function, &found.start) else {
        // Being made, or on its way out: nobody calls it.
        let Some(instances) = runtime.instances() else { return Ok(()) };
        return instances.halt_instance(&found.id, halted).await.map_err(failed);
    };
    if !halted {
        if seat.wake().await.map_err(failed)? {
            functions.tell_awake(&seat);
        }
        return Ok(());
    }
    if !seat.pause().await.map_err(failed)? {
        return Err((409, "calls are under way".into()));
    }
    let _ = seat.rewrite(&functions.caller, |record| record.status = InstanceStatus::Paused).await;
    // A call may have come as this was written.
    if !seat.is_paused().await {
        functions.tell_awake(&seat);
    }
    Ok(())
}

fn word(status: &Status) -> &'static str {
    match status {
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopped => "stopped",
        Status::Unknown(_) => "unknown",
    }
}
