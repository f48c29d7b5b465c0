//! The registry over HTTP, also for programs that are no workers: they register, beat, and are judged like everyone else.
//! A beat is one write, whatever the size of the fleet, and one read more where another dispatcher got the last one. A
//! worker's own record is its own while it lives.

use std::net::{IpAddr, SocketAddr};

use async_nats::HeaderMap;
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderValue, Method, StatusCode, header as http_header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::JsonSchema;
use schemas::http::{AgentBeat, AgentRegistration};
use schemas::{AgentId, AgentKind, AgentRecord, AgentStatus, Code, Timestamp, header, strict};
use serde::Deserialize;
use uuid::Uuid;

use super::Api;
use super::openapi::{JSON, Operation, YAML};
use super::problem::Failure;
use super::read::{Body, Query};
use super::registry::Wanted;
use crate::client::record::{self, Written};
use crate::client::{AgentView, ClientError};

/// How often a write is tried over those of others.
const TRIES: usize = 20;
/// Largest record of an agent.
const LARGEST: usize = 64 << 10;
/// Names of running work kept in a record; the count is exact.
const NAMED: usize = 64;

pub(super) fn operations() -> Vec<Operation> {
    let agent = |operation: Operation| operation.path::<AgentId>("id", "The agent's id.");
    let media = [JSON, YAML[0], YAML[1], YAML[2]];
    vec![
        Operation::new(
            &Method::POST,
            "/api/agents",
            "registerAgent",
            "Register a program that is no worker",
            register_over_http,
        )
        .notes(
            "It then beats with `POST /api/agents/{id}/heartbeat`, about every ten seconds; after three missed it is \
                 offline. Registering again is a new boot; `registered_at` stays.",
        )
        .body::<AgentRegistration>(&media)
        .answer::<AgentRecord>(StatusCode::CREATED, "Its record.")
        .fails(&[400, 408, 409, 413, 415]),
        Operation::new(&Method::GET, "/api/agents", "listAgents", "Everyone in the registry, by id", list_over_http)
            .query::<AgentsQuery>()
            .answer::<Vec<AgentRecord>>(StatusCode::OK, "With the status as the clock judges it.")
            .fails(&[400]),
        Operation::new(&Method::GET, "/api/agents/{id}", "getAgent", "One agent", get_over_http)
            .path::<String>("id", "Its id, or a prefix that fits one.")
            .answer::<AgentRecord>(StatusCode::OK, "With the status as the clock judges it.")
            .fails(&[400, 404, 409]),
        agent(Operation::new(
            &Method::DELETE,
            "/api/agents/{id}",
            "removeAgent",
            "Take an agent out of the registry",
            remove,
        ))
        .empty(StatusCode::NO_CONTENT, "It is out.")
        .fails(&[400, 404, 409]),
        agent(Operation::new(
            &Method::POST,
            "/api/agents/{id}/heartbeat",
            "beat",
            "Tell that an agent lives",
            beat_over_http,
        ))
        .notes("One that is told 404 registers again.")
        .optional_body::<AgentBeat>(&media)
        .answer::<AgentRecord>(StatusCode::OK, "Its record.")
        .fails(&[400, 404, 408, 409, 413, 415]),
    ]
}

/// Which agents.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentsQuery {
    /// Only in this status.
    status: Option<AgentStatus>,
    /// Only with this label: `zone=b`, or `zone`.
    label: Option<String>,
}

/// Everyone who is wanted, as JSON.
pub async fn list(api: &Api, query: &AgentsQuery) -> Result<Bytes, Failure> {
    if let Some(AgentStatus::Newer(word)) = query.status {
        let known = AgentStatus::ALL.map(|status| status.to_string()).join(", ");
        return Err(Failure::argument("status", format!("`{word}` is no status; allowed is {known}")));
    }
    let label = query.label.as_deref().map(|label| match label.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (label, None),
    });
    Ok(api.registry.list(Wanted { status: query.status, label }).await?)
}

/// What is under an agent's key, and the revision to write over.
async fn look(api: &Api, id: &AgentId) -> Result<(Option<AgentView>, u64), ClientError> {
    let names = &api.client.names;
    let stream = format!("KV_{}", names.agents_bucket());
    match api.client.js.last(&stream, &names.agent_subject(id)).await? {
        Some(message) => Ok((AgentView::read(&message, Timestamp::now())?, message.sequence)),
        None => Ok((None, 0)),
    }
}

/// Writes over `revision`; the new one, or `None` if something else came first.
async fn write(
    api: &Api,
    id: &AgentId,
    revision: u64,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Option<u64>, Failure> {
    if body.len() > LARGEST {
        return Err(Failure::too_large(format!(
            "the record of {id} is {} bytes; at most {LARGEST} are taken",
            body.len()
        )));
    }
    let client = &api.client;
    let (stream, subject) = (format!("KV_{}", client.names.agents_bucket()), client.names.agent_subject(id));
    let what = format!("the record of agent {id}");
    Ok(match record::set(&client.js, &stream, &subject, revision, headers, body, what).await? {
        Written::Stored(revision) => Some(revision),
        Written::Refused => None,
    })
}

fn contended(id: &AgentId) -> Failure {
    ClientError::Contended { what: format!("agent {id}") }.into()
}

/// A living worker speaks for itself.
fn is_a_workers(api: &Api, found: &AgentView) -> Result<(), Failure> {
    let record = &found.record;
    let lives = api.registry.judge(record, Timestamp::now()) != AgentStatus::Offline;
    match record.kind {
        AgentKind::Worker if lives => Err(Failure::conflict(format!("`{}` is a living worker", record.id))
            .hint("choose another id; a worker leaves by `shoal agents drain`")),
        AgentKind::Newer(kind) if lives => {
            Err(Failure::conflict(format!("`{}` is a living agent of the kind `{kind}`", record.id))
                .hint("choose another id, or ask a dispatcher of its version"))
        }
        AgentKind::Worker | AgentKind::External | AgentKind::Newer(_) => Ok(()),
    }
}

/// Puts a program into the registry. Returns its record as stored.
async fn register(api: &Api, peer: IpAddr, given: AgentRegistration) -> Result<Bytes, Failure> {
    for _ in 0..TRIES {
        let (found, revision) = look(api, &given.id).await?;
        found.as_ref().map_or(Ok(()), |found| is_a_workers(api, found))?;
        let before = found.map(|found| found.record).filter(|record| record.kind == AgentKind::External);
        let record = registered(given.clone(), before.as_ref(), peer, Timestamp::now());
        if let Some(stored) = store(api, record, revision).await? {
            return Ok(stored);
        }
    }
    Err(contended(&given.id))
}

/// The record of a program that registers. Pure.
fn registered(given: AgentRegistration, before: Option<&AgentRecord>, peer: IpAddr, now: Timestamp) -> AgentRecord {
    let address = given.address.unwrap_or_else(|| peer.to_canonical().to_string());
    AgentRecord {
        id: given.id,
        instance: given.instance.unwrap_or_else(|| Uuid::new_v4().simple().to_string()[..12].to_owned()),
        kind: AgentKind::External,
        hostname: given.hostname.unwrap_or_else(|| address.clone()),
        address: Some(address),
        port: given.port,
        version: given.version.unwrap_or_default(),
        status: given.status.unwrap_or(AgentStatus::Ready),
        reason: given.reason,
        queues: given.queues,
        labels: given.labels,
        runtimes: given.runtimes,
        slots: given.slots.unwrap_or_default(),
        slots_taken: None,
        running: Vec::new(),
        running_count: 0,
        free: None,
        registered_at: before.map_or(now, |before| before.registered_at),
        last_heartbeat: now,
        last_fetch: None,
        last_ack: None,
        // What another dispatcher, perhaps a newer one, knows of it.
        more: before.map(|before| before.more.clone()).unwrap_or_default(),
    }
}

/// Stores a record over `revision`, and keeps it in mind; `None` if something else came first.
async fn store(api: &Api, record: AgentRecord, revision: u64) -> Result<Option<Bytes>, Failure> {
    let body: Bytes = serde_json::to_vec(&record).expect("a record is plain data").into();
    let written = write(api, &record.id, revision, HeaderMap::new(), body.clone()).await?;
    Ok(written.map(|revision| {
        api.registry.known.keep(record, revision);
        body
    }))
}

/// Tells that an agent lives. Returns its record as stored.
async fn beat(api: &Api, id: &AgentId, beat: AgentBeat) -> Result<Bytes, Failure> {
    let mut known = api.registry.known.take(id);
    for _ in 0..TRIES {
        let (record, revision) = match known.take() {
            Some(known) => known,
            None => match look(api, id).await? {
                (Some(found), revision) => (found.record, revision),
                (None, _) => {
                    return Err(Failure::not_found(format!("no agent `{id}`")).hint("register it: POST /api/agents"));
                }
            },
        };
        if record.kind == AgentKind::Worker {
            return Err(Failure::conflict(format!("`{id}` is a worker, which beats by itself")));
        }
        let record = beaten(record, beat.clone(), Timestamp::now());
        if let Some(stored) = store(api, record, revision).await? {
            return Ok(stored);
        }
    }
    Err(contended(id))
}

/// A record after a beat. Pure.
fn beaten(mut record: AgentRecord, beat: AgentBeat, now: Timestamp) -> AgentRecord {
    let was_offline = record.status == AgentStatus::Offline;
    match beat.status {
        Some(status) => (record.status, record.reason) = (status, beat.reason),
        // The mark was put by whoever missed it, and so was the reason.
        None if was_offline => (record.status, record.reason) = (AgentStatus::Ready, beat.reason),
        None => record.reason = beat.reason.or(record.reason),
    }
    if let Some(running) = beat.running {
        record.running_count = running.len() as u32;
        record.running = running;
        record.running.truncate(NAMED);
    }
    record.running_count = beat.running_count.unwrap_or(record.running_count);
    record.free = beat.free.or(record.free);
    record.last_heartbeat = now;
    record
}

async fn register_over_http(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Body,
) -> Result<Response, Failure> {
    let value = body.value()?.ok_or_else(|| Failure::argument("", "the body must name at least the `id`"))?;
    let given =
        strict::agent_registration(&value).map_err(|error| Failure::wrong_field(error, Code::InvalidArgument))?;
    let location = HeaderValue::try_from(format!("/api/agents/{}", given.id)).expect("ids are ASCII");
    let record = register(&api, peer.ip(), given).await?;
    Ok((StatusCode::CREATED, [(http_header::LOCATION, location)], json(record)).into_response())
}

async fn list_over_http(State(api): State<Api>, Query(query): Query<AgentsQuery>) -> Result<Response, Failure> {
    let list = list(&api, &query).await?;
    Ok(json(list))
}

/// An answer that is JSON already.
fn json(body: Bytes) -> Response {
    ([(http_header::CONTENT_TYPE, JSON)], body).into_response()
}

async fn get_over_http(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<AgentRecord>, Failure> {
    let found = api.client.agent(&id).await?;
    let status = api.registry.judge(&found.record, Timestamp::now());
    Ok(Json(AgentRecord { status, ..found.record }))
}

async fn beat_over_http(State(api): State<Api>, Path(id): Path<String>, body: Body) -> Result<Response, Failure> {
    let given = match body.value()? {
        Some(value) => {
            strict::agent_beat(&value).map_err(|error| Failure::wrong_field(error, Code::InvalidArgument))?
        }
        None => AgentBeat::default(),
    };
    beat(&api, &id.parse()?, given).await.map(json)
}

async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    let id: AgentId = id.parse()?;
    for _ in 0..TRIES {
        let (found, revision) = look(&api, &id).await?;
        let Some(found) = found else {
            return Err(Failure::not_found(format!("no agent `{id}`")));
        };
        is_a_workers(&api, &found)?;
        let mut headers = HeaderMap::new();
        headers.insert(header::KV_OPERATION, "DEL");
        if write(&api, &id, revision, headers, Bytes::new()).await?.is_some() {
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    Err(contended(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn given() -> AgentRegistration {
        strict::agent_registration(&serde_json::json!({"id": "a"})).unwrap()
    }

    fn peer() -> IpAddr {
        "::ffff:10.0.0.9".parse().unwrap()
    }

    #[test]
    fn whoever_registers_again_keeps_its_first_time() {
        let first = registered(given(), None, peer(), at(1));
        assert_eq!((first.registered_at, first.status, first.kind), (at(1), AgentStatus::Ready, AgentKind::External));
        assert_eq!(first.address.as_deref(), Some("10.0.0.9"));
        let again = registered(given(), Some(&first), peer(), at(9));
        assert_eq!((again.registered_at, again.last_heartbeat), (at(1), at(9)));
        assert_ne!(again.instance, first.instance);
    }

    #[test]
    fn a_beat_changes_what_it_says_and_wakes_the_offline() {
        let offline = AgentRecord {
            status: AgentStatus::Offline,
            reason: Some("no heartbeat for 30s".into()),
            ..registered(given(), None, peer(), at(1))
        };
        let back = beaten(offline.clone(), AgentBeat::default(), at(50));
        assert_eq!((back.status, back.reason.clone(), back.last_heartbeat), (AgentStatus::Ready, None, at(50)));
        let draining = AgentBeat { status: Some(AgentStatus::Draining), ..Default::default() };
        let draining = beaten(offline, draining, at(51));
        assert_eq!(beaten(draining, AgentBeat::default(), at(52)).status, AgentStatus::Draining);
        let many = AgentBeat { running: Some(vec!["q.a".into(); 100]), ..Default::default() };
        let busy = beaten(back, many, at(53));
        assert_eq!((busy.running.len(), busy.running_count), (NAMED, 100));
    }
}
