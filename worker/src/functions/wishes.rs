//! Wishes for instances: pulled as long as there is room, each fulfilled once, whoever wished for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use functions::Defined;
use futures_util::StreamExt;
use jetstream::{ApiError, Ensure, STREAM_NOT_FOUND};
use schemas::function::EnsureRequest;
use schemas::{FunctionName, Instance, InstanceStatus, QueueName, TaskError};

use super::Functions;
use super::make::{self, Slot};
use super::tend::failed;
use super::{adopt, seat::Standing};
use crate::nats::delivery::Delivery;
use crate::nats::pull::{Arrival, Pulls};

/// Instances that are made at once.
const AT_ONCE: usize = 4;
/// Between two tries to begin.
const BEGIN_AGAIN: Duration = Duration::from_secs(2);
/// How soon a wish comes back that could not be looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Pulls and fulfils until the worker leaves.
pub async fn run(functions: Arc<Functions>) {
    let leaving = functions.leaving.clone();
    let mut adopted = false;
    loop {
        let begun = leaving.run_until_cancelled(begin(&functions)).await;
        match begun {
            None => return,
            Some(Ok(pools)) => {
                // Before any wish: what is found then is of an earlier boot.
                if !adopted && leaving.run_until_cancelled(adopt::adopt(&functions)).await.is_none() {
                    return;
                }
                adopted = true;
                match pull(&functions, pools).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "wishes for instances are pulled anew"),
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "wishes for instances cannot be pulled yet"),
        }
        if leaving.run_until_cancelled(tokio::time::sleep(BEGIN_AGAIN)).await.is_none() {
            return;
        }
    }
}

/// A pool that this worker serves, and the lease of its wishes.
type Served = (QueueName, Duration);

/// Makes the stores where they are missing, and the consumers of this worker's pools, which are named like its queues.
async fn begin(functions: &Functions) -> Result<Vec<Served>, ApiError> {
    let (js, config) = (&functions.worker.js, &functions.worker.config);
    let stream = config.names.ensure_stream();
    let mut pools = Vec::new();
    for queue in &functions.worker.queues {
        let found = match js.consumer(&stream, queue.name.as_str()).await {
            Ok(found) => found,
            // A fleet of an older version.
            Err(error) if error.err_code() == Some(STREAM_NOT_FOUND) => {
                let wanted = [stream.clone(), config.names.functions_stream(), config.names.instances_stream()];
                for spec in config.names.streams(&config.stores, js.max_payload()) {
                    if wanted.contains(&spec.name) {
                        js.ensure_stream(&spec, Ensure::Create).await?;
                    }
                }
                None
            }
            Err(error) => return Err(error),
        };
        let consumer = match found {
            Some(consumer) => consumer,
            None => {
                let spec = config.names.pool_consumer(&queue.name, config.stores.ack_wait.0);
                js.ensure_consumer(&stream, &spec).await?
            }
        };
        pools.push((queue.name.clone(), consumer.ack_wait()));
    }
    Ok(pools)
}

async fn pull(functions: &Arc<Functions>, pools: Vec<Served>) -> Result<(), ApiError> {
    let worker = &functions.worker;
    let names = &worker.config.names;
    let consumers = pools.iter().map(|(name, lease)| (name.to_string(), *lease));
    let (mut pulls, mut inbox) = Pulls::open(&worker.js, names.ensure_stream(), consumers).await?;
    let (finished, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let mut making = 0;
    let mut connects = worker.js.connects();
    loop {
        if worker.js.connects() != connects {
            connects = worker.js.connects();
            pulls.forget_all();
        }
        // An engine that is down makes nothing; others may.
        let is_able = making < AT_ONCE && functions.runtime().is_ok();
        for pool in 0..pools.len() {
            let owed: usize = (0..pools.len()).map(|pool| pulls.credits(pool)).sum();
            let has_room = functions.count() + making + owed < worker.config.most_instances;
            if is_able && has_room && pulls.credits(pool) == 0 {
                pulls.ask(pool, 1, true).await;
            }
        }
        let (watch_at, _) = pulls.watch();
        let message = tokio::select! {
            () = functions.leaving.cancelled() => return Ok(()),
            Some(()) = ends.recv() => {
                making -= 1;
                continue;
            }
            () = tokio::time::sleep_until(watch_at.min(std::time::Instant::now() + BEGIN_AGAIN).into()) => continue,
            message = inbox.next() => match message {
                Some(message) => message,
                None => return Ok(()),
            },
        };
        let pool_of = |subject: &str| {
            let (pool, ..) = names.ensure_tokens(subject)?;
            pools.iter().position(|(name, _)| name.as_str() == pool)
        };
        match pulls.arrived(message, pool_of) {
            Some(Arrival::Message(pool, message)) => {
                making += 1;
                let (functions, finished, lease) = (functions.clone(), finished.clone(), pools[pool].1);
                functions.clone().tasks.spawn(async move {
                    fulfil(&functions, message, lease).await;
                    // Closed only when nobody pulls any more.
                    let _ = finished.send(());
                });
            }
            Some(Arrival::Missing(_)) => {
                let why = "the consumer of the wishes is gone".to_owned();
                return Err(ApiError::Failed { subject: names.ensure_stream(), why });
            }
            Some(Arrival::Refused(_, why)) => tracing::debug!(why, "a pull for wishes was refused"),
            Some(Arrival::Served(_) | Arrival::Empty(_)) | None => {}
        }
    }
}

/// What becomes of a wish.
enum Verdict {
    /// It is fulfilled, or came to nothing that trying again would mend.
    Done,
    /// It comes again after this.
    Again(Duration),
    /// It is given back: the worker leaves.
    Back,
}

/// Fulfils one wish and settles it. Its lease is renewed meanwhile.
async fn fulfil(functions: &Arc<Functions>, message: Message, lease: Duration) {
    let Some(delivery) = Delivery::read(message, 0, 0) else { return };
    let client = functions.worker.js.client();
    let say = async |word: Bytes| {
        if let Err(error) = client.publish(delivery.reply.clone(), word).await {
            tracing::debug!(%error, "a wish is not settled; it comes again");
        }
    };
    let renew = async {
        loop {
            tokio::time::sleep(lease / 3).await;
            say(Bytes::from_static(b"+WPI")).await;
        }
    };
    let verdict = tokio::select! {
        verdict = look(functions, &delivery) => verdict,
        // What is being made is undone as its future is dropped.
        () = functions.leaving.cancelled() => Verdict::Back,
        never = renew => never,
    };
    match verdict {
        Verdict::Done => say(Bytes::from_static(b"+ACK")).await,
        Verdict::Back => say(Bytes::from_static(b"-NAK")).await,
        Verdict::Again(pause) => say(format!("-NAK {{\"delay\": {}}}", pause.as_nanos()).into()).await,
    }
}

async fn look(functions: &Arc<Functions>, delivery: &Delivery) -> Verdict {
    let names = &functions.worker.config.names;
    let tokens = names.ensure_tokens(&delivery.subject);
    let slot = tokens.and_then(|(pool, name, index)| Some((pool, name.parse().ok()?, index.parse().ok()?)));
    let Some((pool, name, index)): Option<(&str, FunctionName, u32)> = slot else {
        tracing::warn!(subject = %delivery.subject, "a wish on a subject that names no slot is dropped");
        return Verdict::Done;
    };
    let request: EnsureRequest = match delivery.payload.is_empty() {
        true => EnsureRequest::default(),
        false => match serde_json::from_slice(&delivery.payload) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(subject = %delivery.subject, %error, "a wish that cannot be read is taken for a plain one");
                EnsureRequest::default()
            }
        },
    };
    let (defined, found) =
        match tokio::try_join!(functions.caller.definition(&name), functions.caller.instance(&name, index)) {
            Ok((Some(defined), found)) => (defined, found),
            // Deleted meanwhile.
            Ok((None, _)) => return Verdict::Done,
            Err(error) => {
                tracing::warn!(function = %name, index, %error, "a wish cannot be looked at now");
                return Verdict::Again(LOOK_AGAIN);
            }
        };
    // Of another pool by now, or more than there may be: whoever wished reads it again.
    if defined.function.pool.as_str() != pool || index >= defined.function.max {
        return Verdict::Done;
    }
    let (record, revision) = found;
    if let Some(record) = &record {
        match standing(functions, &defined, record, revision, &request).await {
            Found::Good => return Verdict::Done,
            Found::Doubted => return Verdict::Again(LOOK_AGAIN),
            Found::Nothing => {}
        }
    }
    let slot = Slot { index, revision, replaces: record.as_ref().and_then(|record| record.start.clone()) };
    match make::make(functions, &defined, &slot).await {
        Ok(_) => Verdict::Done,
        Err(error) => {
            tracing::warn!(function = %name, index, code = %error.code, message = error.message, "no instance was made");
            not_made(functions, &defined, &slot, record, error).await;
            Verdict::Done
        }
    }
}

/// How a slot is found.
enum Found {
    /// It has an instance that is as it should be. Who waits for it was told.
    Good,
    /// Whether its instance is well is about to be known.
    Doubted,
    /// It has none, or one to be replaced.
    Nothing,
}

async fn standing(
    functions: &Functions,
    defined: &Defined,
    record: &Instance,
    revision: u64,
    request: &EnsureRequest,
) -> Found {
    if !record.takes_calls() || record.spec != defined.function.spec() {
        return Found::Nothing;
    }
    if let Some(seat) = record.start.as_ref().and_then(|start| functions.held(&defined.name, start)) {
        if !seat.takes.load(Ordering::Relaxed) {
            return Found::Doubted;
        }
        // Written again: that makes whoever doubted it believe it.
        let alive = |record: &mut Instance| record.last_used = Some(functions.worker.js.now());
        return match seat.rewrite(&functions.caller, alive).await {
            Ok(Standing::Ours(status)) if status != InstanceStatus::Stopping => Found::Good,
            Ok(_) => Found::Nothing,
            Err(_) => Found::Doubted,
        };
    }
    if record.worker == functions.worker.id {
        // Ours, and not here: it was an earlier boot's.
        return Found::Nothing;
    }
    let owner = defined.function.owner.clone();
    match functions.caller.clone().owned_by(owner).holds(record).await {
        Ok(Some(true)) => {}
        // Its worker is gone, or has nothing of it.
        Ok(Some(false)) => return Found::Nothing,
        Ok(None) => return Found::Doubted,
        Err(error) => {
            tracing::debug!(%error, "whether its holder is there is not known; it is left as it is");
            return Found::Doubted;
        }
    }
    if request.gone.is_some() && request.gone == record.start {
        // Doubted, and its holder has it: written again, it is believed.
        let _ = functions.caller.put_instance(record, revision).await;
    }
    Found::Good
}

/// Tells why a slot has no instance, or no newer one.
async fn not_made(functions: &Functions, defined: &Defined, slot: &Slot, record: Option<Instance>, error: TaskError) {
    let worker = &functions.worker;
    let now = worker.js.now();
    let failures = record.as_ref().map_or(0, |record| record.failures) + 1;
    let nothing = Instance {
        function: defined.name.clone(),
        index: slot.index,
        status: InstanceStatus::Failed,
        id: None,
        name: None,
        ip_address: None,
        port: None,
        worker: worker.id.clone(),
        boot: worker.instance.clone(),
        runtime: None,
        start: None,
        revision: defined.revision,
        spec: defined.function.spec(),
        owner: defined.function.owner.clone(),
        created_at: now,
        ready_at: None,
        last_used: None,
        error: None,
        failures: 0,
        retry_at: None,
        more: Default::default(),
    };
    let told = failed(nothing, error.bounded(), failures, now);
    // One of an older definition that still serves stays as it is; it only says why it is not replaced.
    let write = |newer: Option<&Instance>| match newer.or(record.as_ref()) {
        Some(serving) if serving.takes_calls() && serving.spec != told.spec => {
            Instance { error: told.error.clone(), failures: told.failures, retry_at: told.retry_at, ..serving.clone() }
        }
        _ => told.clone(),
    };
    match slot.write(&functions.caller, write).await {
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(function = %defined.name, index = slot.index, %error, "that it failed is not written")
        }
    }
}
