//! Gathers what a user can read after a round: streams, buckets and objects by plain NATS, the file of effects, what the
//! machine and its engine still hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::Message;
use futures_util::StreamExt;
use schemas::{StartId, TaskRecord, header};
use tokio::io::AsyncReadExt;

use crate::history::{Effect, Letter, Log, Moment, Rest, Revision};
use crate::support::{Client, marked_processes};
use crate::world::{World, now};

/// What is kept of one start's stdout: the plans' lines are far fewer, floods far more.
const KEPT_OF_LOG: usize = 64 << 10;

/// Every message of a stream on `filter`, oldest first.
async fn all(client: &Client, stream: &str, filter: &str, mut each: impl FnMut(Message)) {
    let stream = client.stream(stream).await;
    let config = pull::OrderedConfig {
        filter_subject: filter.to_owned(),
        deliver_policy: DeliverPolicy::All,
        ..pull::OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.expect("an ordered consumer");
    if consumer.cached_info().num_pending == 0 {
        return;
    }
    let mut messages = consumer.messages().await.expect("its messages");
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), messages.next()).await;
        let message = next.expect("a message within half a minute").expect("the stream goes on").expect("a message");
        let pending = message.info().expect("a delivery").pending;
        each(message);
        if pending == 0 {
            return;
        }
    }
}

fn stored_at(message: &Message) -> i64 {
    let nanos = message.info().expect("a delivery").published.unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).expect("a time of this age")
}

/// Every revision of every record.
pub async fn revisions(client: &Client) -> Vec<Revision> {
    let mut found = Vec::new();
    all(client, &client.names.records_stream(), ">", |message| {
        let headers = message.headers.as_ref();
        let marker = |name| headers.is_some_and(|headers| headers.get(name).is_some());
        if marker(header::KV_OPERATION) || marker(header::NATS_MARKER_REASON) {
            return;
        }
        let key = client.names.record_key(&message.subject).expect("a subject of the bucket").to_owned();
        let record: TaskRecord = serde_json::from_slice(&message.payload).expect("a record that can be read");
        let revision = message.info().expect("a delivery").stream_sequence;
        found.push(Revision { key, revision, at: stored_at(&message), record });
    })
    .await;
    found
}

/// Every dead letter.
pub async fn letters(client: &Client) -> Vec<Letter> {
    let mut found = Vec::new();
    let prefix = format!("{}.dead.", client.names.prefix());
    all(client, &client.names.dead_stream(), ">", |message| {
        let text = |name: &str| {
            let headers = message.headers.as_ref();
            headers.and_then(|headers| headers.get(name)).map(|value| value.as_str().to_owned()).unwrap_or_default()
        };
        let key = message.subject.strip_prefix(&prefix).expect("a subject of the stream").to_owned();
        let sequence = text(header::SEQUENCE).parse().unwrap_or_default();
        found.push(Letter { key, sequence, reason: text(header::REASON), body: message.payload.to_vec() });
    })
    .await;
    found
}

/// What is kept of every start's stdout.
pub async fn logs(client: &Client) -> BTreeMap<(String, String), Log> {
    let mut bytes: BTreeMap<(String, String), (Vec<u8>, bool)> = BTreeMap::new();
    let prefix = format!("{}.logs.", client.names.prefix());
    all(client, &client.names.logs_stream(), ">", |message| {
        let subject = message.subject.strip_prefix(&prefix).expect("a subject of the stream");
        let [queue, id, start, name] = subject.split('.').collect::<Vec<_>>()[..] else { panic!("subject {subject}") };
        let (kept, cut) = bytes.entry((format!("{queue}.{id}"), start.to_owned())).or_default();
        match name {
            "stdout" if kept.len() < KEPT_OF_LOG => kept.extend_from_slice(&message.payload),
            "stdout" | "stderr" => {}
            _ => *cut |= String::from_utf8_lossy(&message.payload).contains("not kept"),
        }
    })
    .await;
    let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect();
    bytes.into_iter().map(|(start, (kept, cut))| (start, Log { lines: lines(&kept), cut })).collect()
}

/// The artifacts that terminal records name, also those of earlier runs of an id.
pub async fn artifacts(
    client: &Client,
    revisions: &[Revision],
) -> BTreeMap<(String, String, String), Result<Vec<u8>, String>> {
    let store = client.js.get_object_store(client.names.artifacts_bucket()).await.expect("the store of artifacts");
    let mut found = BTreeMap::new();
    for Revision { key, record, .. } in revisions.iter().filter(|revision| revision.record.state.is_terminal()) {
        for artifact in &record.artifacts {
            let start: &StartId = &artifact.start;
            let name = format!("{}/{start}/{}", key.replacen('.', "/", 1), artifact.path);
            let read = async {
                let mut object = store.get(&name).await.map_err(|e| e.to_string())?;
                let mut bytes = Vec::new();
                object.read_to_end(&mut bytes).await.map_err(|e| e.to_string())?;
                Ok(bytes)
            };
            found.insert((key.clone(), start.to_string(), artifact.path.clone()), read.await);
        }
    }
    found
}

/// What attempts wrote down.
pub fn effects(folder: &Path) -> Vec<Effect> {
    let text = std::fs::read_to_string(folder.join("effects")).unwrap_or_default();
    let uptime = std::fs::read_to_string("/proc/uptime").expect("/proc is there");
    let since_boot: f64 = uptime.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    let boot = now() - (since_boot * 1_000.0) as i64;
    let mut found = Vec::new();
    for line in text.lines() {
        let [nonce, start, attempt, what, at] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("a torn line of effects: {line:?}");
        };
        let what = match what {
            "begin" => Moment::Begin,
            "alive" => Moment::Alive,
            "end" => Moment::End,
            other => panic!("a moment called {other:?}"),
        };
        let at: f64 = at.parse().expect("seconds since boot");
        found.push(Effect {
            nonce: nonce.to_owned(),
            start: start.to_owned(),
            attempt: attempt.parse().expect("a number"),
            what,
            at: boot + (at * 1_000.0) as i64,
        });
    }
    found
}

/// What the registry says of each worker, once it says what is: living ones ready with nothing to do, the others offline.
/// After `patience` it is what it is, for the checker to judge.
pub async fn registry(world: &World, patience: Duration) -> Rest {
    let workers = world.workers.iter().filter(|worker| worker.program.is_some());
    let mut rest = Rest { workers: workers.map(|worker| worker.id.clone()).collect(), ..Rest::default() };
    let until = tokio::time::Instant::now() + patience;
    loop {
        rest.registry.clear();
        for id in world.fleet.agents().await {
            if let Ok(Some(agent)) = world.fleet.agent(&id).await {
                rest.registry.insert(id, (agent.status.to_string(), agent.running.len()));
            }
        }
        let right = |(id, (status, running)): (&String, &(String, usize))| {
            let wanted = if rest.workers.contains(id) { "ready" } else { "offline" };
            status == wanted && *running == 0
        };
        let known: BTreeSet<&String> = rest.registry.keys().collect();
        let all = rest.workers.iter().all(|id| known.contains(id));
        if (all && rest.registry.iter().all(right)) || tokio::time::Instant::now() > until {
            return rest;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What is left in the stream and, once all workers have left, on the machine.
pub async fn leftovers(world: &World, rest: &mut Rest, patience: Duration) {
    let prefix = format!("{}.tasks.", world.fleet.names.prefix());
    let messages = world.fleet.messages(&world.fleet.names.tasks_stream(), ">").await;
    rest.messages = messages.iter().map(|m| m.subject.strip_prefix(&prefix).unwrap_or(&m.subject).to_owned()).collect();
    let until = tokio::time::Instant::now() + patience;
    loop {
        rest.processes = marked_processes(&world.mark);
        rest.folders = job_folders(world.fleet.folder());
        rest.containers = match &world.engine {
            Some(engine) => engine.leftovers().await.unwrap_or_else(|e| vec![e]),
            None => Vec::new(),
        };
        let clean = rest.processes.is_empty() && rest.folders.is_empty() && rest.containers.is_empty();
        if clean || tokio::time::Instant::now() > until {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Work folders of jobs: `<state>/work/<worker>/<start>`; what begins with a dot is the worker's own.
fn job_folders(fleet: &Path) -> Vec<String> {
    let below = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let states = below(fleet);
    let workers = states.iter().flat_map(|state| below(&state.join("work")));
    let own =
        |path: &std::path::PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    workers.flat_map(|worker| below(&worker)).filter(|path| !own(path)).map(|path| path.display().to_string()).collect()
}
