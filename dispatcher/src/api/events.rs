//! What goes on while somebody listens: a task's record on every change, and its log. Both as server-sent events that
//! can be resumed anywhere: an event's id is a place in a stream of the server, so any dispatcher goes on from it.
//!
//! A stream ends with the event `end`. A browser's `EventSource` that comes back all the same, with the id of that last
//! event, is told 204: there is nothing more, and it stops.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use schemars::JsonSchema;
use schemas::StartId;
use schemas::function::LOG_QUEUE;
use schemas::http::{LogPiece, ShownTask};
use schemas::names::LogSource;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::openapi::{EVENTS, NDJSON, Operation};
use super::problem::Failure;
use super::read::{Query, accepts, last_event_id};
use crate::client::{ClientError, LogCursor, LogOptions, Recorded};

/// A comment is sent after so much silence, so that whoever is between does not hang up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// When a reader that was cut off comes back.
const COME_BACK: Duration = Duration::from_secs(1);

pub(super) fn operations() -> Vec<Operation> {
    let task = |operation: Operation| {
        operation
            .path::<String>("id", "Id, `queue.id`, or a prefix that fits one task.")
            .header("Last-Event-ID", "Go on after this event.")
    };
    vec![
        task(Operation::new(
            &Method::GET,
            "/api/tasks/{id}/events",
            "watchTask",
            "The task on every change, until it has ended",
            events,
        ))
        .notes(
            "Events: `task` with the task as `GET /api/tasks/{id}` shows it, its id the record's revision (a task that \
             only waits has none); `problem` with a problem, after which the stream ends; `end` once the task has ended.",
        )
        .query::<EventsQuery>()
        .pieces::<ShownTask>(StatusCode::OK, EVENTS, "Server-sent events; the data of a `task` is this.")
        .empty(StatusCode::NO_CONTENT, "It has ended, and the reader has seen that.")
        .fails(&[400, 404, 409]),
        task(Operation::new(
            &Method::GET,
            "/api/tasks/{id}/logs",
            "readLog",
            "A task's log, stored and live",
            logs,
        ))
        .notes(
            "Plain text unless `Accept` names JSON lines or server-sent events. Events: `log` with a piece, its id the \
             piece's sequence; `problem`; `end`. Server-sent events follow unless told otherwise.",
        )
        .query::<LogsQuery>()
        .bytes(StatusCode::OK, "text/plain", "The bytes as they were written.")
        .pieces::<LogPiece>(StatusCode::OK, NDJSON, "One piece a line.")
        .pieces::<LogPiece>(StatusCode::OK, EVENTS, "Server-sent events; the data of a `log` is this.")
        .empty(StatusCode::NO_CONTENT, "Nothing comes after the last event.")
        .fails(&[400, 404, 409]),
    ]
}

/// Which changes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only of this run; of the newest if absent.
    sequence: Option<u64>,
    /// Go on after this revision; `Last-Event-ID` wins.
    after: Option<u64>,
}

/// Which lines.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Go on until the task has ended.
    follow: Option<bool>,
    /// Only what comes after this sequence; `Last-Event-ID` wins.
    after: Option<u64>,
    /// Only of these, with commas: stdout, stderr, system.
    source: Option<String>,
    /// Only of this start of an attempt.
    start: Option<StartId>,
    /// Of what is stored, only the last so many lines.
    tail: Option<usize>,
    /// Also of earlier runs of the same id.
    #[serde(default)]
    all_runs: bool,
}

async fn events(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let after = last_event_id(&headers)?.or(query.after).unwrap_or_default();
    let key = api.client.find(&id).await?;
    let room = api.stream()?;
    let view = api.client.get(&key).await?;
    let over = |recorded: &Recorded| {
        let of_run = query.sequence.is_none_or(|sequence| recorded.record.sequence == sequence);
        of_run && recorded.record.state.is_terminal() && recorded.revision <= after
    };
    if view.current().is_some_and(over) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    // Whoever comes before there is a record hears at once that it waits.
    let waits = match view.current() {
        None => view.shown().map(|shown| Ok(event("task", None, &shown))),
        Some(_) => None,
    };
    let changes = api.client.watch(&key, query.sequence.or(view.sequence())).flat_map(move |change| {
        let events = match change {
            Ok(Recorded { revision, .. }) if revision <= after => Vec::new(),
            Ok(Recorded { revision, record, .. }) => {
                let over = record.state.is_terminal().then(|| end(revision));
                let task = event("task", Some(revision), &ShownTask::from(record));
                [Some(task), over].into_iter().flatten().collect()
            }
            Err(error) => vec![problem(error)],
        };
        stream::iter(events.into_iter().map(Ok))
    });
    Ok(sse(&api, room, stream::iter(waits).chain(changes)))
}

async fn logs(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let as_events = accepts(&headers, EVENTS);
    let seen = last_event_id(&headers)?;
    let options = LogOptions {
        follow: query.follow.unwrap_or(as_events),
        from: LogCursor(seen.or(query.after).unwrap_or_default()),
        sources: sources(query.source.as_deref())?,
        start: query.start,
        // A reader that comes back goes on; the tail was for the first time.
        tail: query.tail.filter(|_| seen.is_none()),
        all_runs: query.all_runs,
    };
    let key = api.client.find_log(&id).await?;
    let room = api.stream()?;
    // That of a function's instances has no end.
    let over = key.queue.as_str() != LOG_QUEUE
        && api.client.get(&key).await?.status().is_some_and(|status| status.is_terminal());
    let follows = options.follow && !over;
    let mut chunks = api.client.logs(&key, options).peekable();
    if !follows {
        // All that comes is stored, so whether it can be read is known before the answer begins.
        match std::pin::Pin::new(&mut chunks).peek().await {
            Some(Err(_)) => {
                let Some(Err(error)) = chunks.next().await else { unreachable!("it was an error a moment ago") };
                return Err(error.into());
            }
            None if as_events && seen.is_some() => return Ok(StatusCode::NO_CONTENT.into_response()),
            Some(Ok(_)) | None => {}
        }
    }
    let pieces = chunks.map(|chunk| chunk.map(LogPiece::from));
    if as_events {
        let mut last = seen.unwrap_or_default();
        let events = pieces.map(Some).chain(stream::once(async { None })).scan(false, move |failed, piece| {
            let event = match piece {
                _ if *failed => None,
                Some(Ok(piece)) => {
                    last = piece.sequence;
                    Some(Ok(event("log", Some(last), &piece)))
                }
                Some(Err(error)) => {
                    *failed = true;
                    Some(Ok(problem(error)))
                }
                None => Some(Ok(end(last))),
            };
            std::future::ready(event)
        });
        return Ok(sse(&api, room, events));
    }
    let as_lines = accepts(&headers, NDJSON) || accepts(&headers, "application/jsonl");
    let media = if as_lines { NDJSON } else { "text/plain; charset=utf-8" };
    let bytes = pieces.map(move |piece| piece.map(|piece| if as_lines { line(&piece) } else { raw(piece) }));
    let body = Body::from_stream(held(&api, room, bytes));
    Ok(([(header::CONTENT_TYPE, media)], body).into_response())
}

fn sources(text: Option<&str>) -> Result<Vec<LogSource>, Failure> {
    let words = text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty());
    let read = |word: &str| {
        LogSource::from_token(word).ok_or_else(|| {
            let word: String = word.chars().take(64).collect();
            Failure::argument("source", format!("`{word}` is no source; allowed is stdout, stderr, system"))
        })
    };
    words.map(read).collect()
}

fn line(piece: &LogPiece) -> Vec<u8> {
    let mut line = serde_json::to_vec(piece).expect("a piece of log is JSON");
    line.push(b'\n');
    line
}

/// The bytes as the job wrote them.
fn raw(piece: LogPiece) -> Vec<u8> {
    use base64::Engine;
    match (piece.text, piece.base64) {
        (Some(text), _) => text.into_bytes(),
        (None, base64) => {
            base64::engine::general_purpose::STANDARD.decode(base64.unwrap_or_default()).unwrap_or_default()
        }
    }
}

fn event(name: &str, id: Option<u64>, data: &impl Serialize) -> Event {
    // JSON has no line breaks of its own, so the data is one line.
    let data = serde_json::to_string(data).expect("our own types are JSON");
    let event = Event::default().event(name).data(data);
    match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    }
}

fn end(last: u64) -> Event {
    Event::default().event("end").id(last.to_string()).data("{}")
}

fn problem(error: ClientError) -> Event {
    event("problem", None, &Failure::from(error).problem)
}

/// A stream that holds its room, and ends when the dispatcher does.
fn held<S: Stream>(api: &Api, room: OwnedSemaphorePermit, stream: S) -> impl Stream<Item = S::Item> + use<S> {
    stream.take_until(api.stop.clone().cancelled_owned()).map(move |item| {
        let _held = &room;
        item
    })
}

fn sse(
    api: &Api,
    room: OwnedSemaphorePermit,
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let first = stream::once(async { Ok(Event::default().retry(COME_BACK)) });
    let events = first.chain(held(api, room, events));
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // A proxy that gathers what it passes on would hold events back.
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_words_with_commas() {
        assert_eq!(sources(Some("stdout, system")).unwrap(), [LogSource::Stdout, LogSource::System]);
        assert!(sources(None).unwrap().is_empty());
        let failure = sources(Some("stdot")).unwrap_err();
        assert_eq!(failure.problem.field.as_deref(), Some("source"));
    }
}
