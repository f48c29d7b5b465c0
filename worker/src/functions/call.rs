//! One call: from its message to its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::client::{Request, RequestErrorKind};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use functions::Defined;
use http::{HeaderName, HeaderValue};
use schemas::{Code, StartId, TaskError, header};

use super::Functions;
use super::http::{Answer, Failed};
use super::pool::{Admission, MOST_HOPS, Place, Pool, Step};
use super::seat::Seat;
use crate::objects;
use crate::worker::new_start_id;

/// How often a call looks for another instance when the one that it got took nothing.
const TRIES: u32 = 3;
/// Room in a message for headers beside the body.
const HEADROOM: usize = 8 << 10;
/// A wish because of a call that waits is made again after this.
const WISH_AGAIN: Duration = Duration::from_secs(5);
/// How long a worker that a call was passed on to is waited for beyond what it may take.
const PASSED_ON_BEYOND: Duration = Duration::from_secs(3);
/// Longest word of a function about its own failure that is passed on.
const LONGEST_WORD: usize = 256;

/// What a caller asks.
struct Asked {
    request_id: String,
    traceparent: Option<String>,
    owner: Option<String>,
    content_type: Option<String>,
    acquire: Option<Duration>,
    hops: u32,
    touch: Option<StartId>,
}

impl Asked {
    fn read(message: &Message) -> Self {
        let text = |name: &str| {
            message.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str().to_owned())
        };
        let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
        Self {
            request_id: text(header::REQUEST_ID).unwrap_or_else(|| new_start_id().to_string()),
            traceparent: text(header::TRACEPARENT),
            owner: text(header::OWNER),
            content_type: text(header::CONTENT_TYPE),
            acquire: number(header::ACQUIRE_MS).map(Duration::from_millis),
            hops: number(header::HOPS).and_then(|hops| u32::try_from(hops).ok()).unwrap_or(0),
            touch: text(header::TOUCH).and_then(|start| start.parse().ok()),
        }
    }
}

/// What is told back.
enum Told {
    Answer(Answer, Arc<Seat>),
    Error(TaskError),
    /// Another worker answers.
    PassedOn,
}

/// Answers one call.
pub async fn answer(functions: Arc<Functions>, pool: Arc<Pool>, message: Message) {
    let asked = Asked::read(&message);
    let defined = pool.defined();
    if let Some(start) = &asked.touch {
        let seat = pool.seat(start).filter(|_| defined.function.admits(asked.owner.as_deref()));
        if let Some(seat) = &seat {
            functions.touch(seat, &defined);
        }
        if let Some(reply) = message.reply {
            let takes = seat.is_some_and(|seat| seat.takes.load(Ordering::Relaxed));
            let mut headers = HeaderMap::new();
            headers.insert(header::STATUS, if takes { "200" } else { "404" });
            // Who hears nothing asks again.
            let _ = functions.worker.js.client().publish_with_headers(reply, headers, Bytes::new()).await;
        }
        return;
    }
    let Some(reply) = message.reply.clone() else {
        return tracing::debug!(function = %defined.name, "a call that wants no answer is not made");
    };
    let told = match defined.function.admits(asked.owner.as_deref()) {
        true => call(&functions, &pool, &defined, &asked, &message).await,
        false => {
            let who = asked.owner.as_deref().unwrap_or("nobody in particular");
            let message = format!("the function `{}` belongs to another owner than {who}", defined.name);
            Told::Error(TaskError::new(Code::PermissionDenied, message))
        }
    };
    let (headers, body) = match told {
        Told::PassedOn => return,
        Told::Answer(answer, seat) => match tell(&functions, &defined, &asked, answer, &seat).await {
            Ok(told) => told,
            Err(error) => refusal(&functions, &defined, &asked, error),
        },
        Told::Error(error) => refusal(&functions, &defined, &asked, error),
    };
    if let Err(error) = functions.worker.js.client().publish_with_headers(reply, headers, body).await {
        tracing::warn!(function = %defined.name, request = asked.request_id, %error, "not answered");
    }
}

async fn call(
    functions: &Arc<Functions>,
    pool: &Arc<Pool>,
    defined: &Defined,
    asked: &Asked,
    message: &Message,
) -> Told {
    let name = &defined.name;
    let until = Instant::now() + asked.acquire.unwrap_or(defined.function.acquire_timeout.0);
    let (mut tried, mut lost_once) = (0, false);
    loop {
        tried += 1;
        let place = match admission(functions, pool, defined, asked, message, until).await {
            Ok(Some(place)) => place,
            Ok(None) => return Told::PassedOn,
            Err(error) => return Told::Error(error),
        };
        // Held to the end of the turn: the next one goes elsewhere.
        let seat = place.seat.clone();
        functions.touch(&seat, defined);
        let failed = match seat.wake().await {
            Ok(woken) => {
                if woken {
                    functions.tell_awake(&seat);
                }
                let posted = post(functions, defined, asked, message, &seat).await;
                // Idleness begins at its end.
                functions.touch(&seat, defined);
                match posted {
                    Ok(answer) => {
                        pool.ended(false, Instant::now());
                        return Told::Answer(answer, seat);
                    }
                    Err(failed) => failed,
                }
            }
            Err(error) => Failed::NotSent(format!("it is paused and does not go on: {error}")),
        };
        let is_last = tried >= TRIES || Instant::now() >= until;
        match failed {
            Failed::NotSent(why) => {
                pool.ended(true, Instant::now());
                // Whoever looks after it finds out; nothing more goes there until then.
                pool.close(&seat);
                seat.doubted.notify_one();
                if is_last {
                    let message = format!("the instance {} of `{name}` takes no connection: {why}", seat.index);
                    return Told::Error(TaskError::new(Code::InstanceUnreachable, message));
                }
            }
            Failed::Lost(why) => {
                pool.ended(true, Instant::now());
                seat.doubted.notify_one();
                if !defined.function.idempotent || lost_once || is_last {
                    return Told::Error(lost(functions, defined, &seat, &why).await);
                }
                lost_once = true;
            }
            Failed::TimedOut => {
                // The function is slow, which is no fault of the platform; or it hangs: nothing more goes there until that is
                // known.
                pool.ended(false, Instant::now());
                pool.close(&seat);
                seat.doubted.notify_one();
                let limit = defined.function.request_timeout;
                let message = format!("`{name}` did not answer within its `request_timeout` of {limit}");
                return Told::Error(TaskError::new(Code::TimedOut, message));
            }
            Failed::TooLarge(size) => {
                pool.ended(false, Instant::now());
                let limit = defined.function.response_limit;
                let message = format!(
                    "the response of `{name}` has {size} bytes or more, its `response_limit` is {limit} ({} bytes)",
                    limit.0
                );
                return Told::Error(TaskError::new(Code::ResponseTooLarge, message));
            }
        }
    }
}

/// A place, or none where another worker has answered the call.
async fn admission(
    functions: &Arc<Functions>,
    pool: &Arc<Pool>,
    defined: &Defined,
    asked: &Asked,
    message: &Message,
    until: Instant,
) -> Result<Option<Place>, TaskError> {
    let name = &defined.name;
    loop {
        let step = match pool.admit(asked.hops, Instant::now()) {
            Admission::Go(place) => return Ok(Some(place)),
            Admission::PassOn(worker) => Some(Step::PassOn(worker)),
            Admission::Wait(steps, wishes) => {
                functions.wish(defined, wishes);
                wait(functions, pool, steps, until).await
            }
            Admission::Shut(wait) => {
                let message = format!(
                    "calls of `{name}` failed too often on the worker {}; none is sent for {} ms",
                    functions.worker.id,
                    wait.as_millis()
                );
                return Err(TaskError::new(Code::CircuitOpen, message));
            }
            Admission::Refuse(error) => return Err(error),
            Admission::Full => {
                let message = format!("too many calls wait for `{name}` on the worker {}", functions.worker.id);
                return Err(TaskError::new(Code::NoInstance, message));
            }
        };
        match step {
            Some(Step::Go(place)) => return Ok(Some(place)),
            Some(Step::Fail(error)) => return Err(error),
            Some(Step::PassOn(worker)) => match pass_on(functions, defined, asked, message, &worker, until).await? {
                true => return Ok(None),
                // It is gone; nothing was heard of it by anybody.
                false => pool.forget_worker(&worker),
            },
            None => {
                let waited = asked.acquire.unwrap_or(defined.function.acquire_timeout.0);
                let message = format!(
                    "no instance of `{name}` had room within {} ms; it may have {} with {} calls at once each",
                    waited.as_millis(),
                    defined.function.max,
                    defined.function.concurrency
                );
                return Err(TaskError::new(Code::NoInstance, message));
            }
        }
    }
}

/// Waits in line, and wishes again now and then: a wish may have come to nothing.
async fn wait(
    functions: &Arc<Functions>,
    pool: &Arc<Pool>,
    mut steps: tokio::sync::oneshot::Receiver<Step>,
    until: Instant,
) -> Option<Step> {
    loop {
        let next = until.min(Instant::now() + WISH_AGAIN);
        match tokio::time::timeout_at(next.into(), &mut steps).await {
            Ok(step) => return step.ok(),
            Err(_) if Instant::now() >= until => return None,
            Err(_) => functions.wish(&pool.defined(), pool.wish_again(Instant::now())),
        }
    }
}

/// Asks another worker, and answers with what it answers. `false`: it is not there, and nothing was sent to anybody.
async fn pass_on(
    functions: &Functions,
    defined: &Defined,
    asked: &Asked,
    message: &Message,
    to: &schemas::AgentId,
    until: Instant,
) -> Result<bool, TaskError> {
    let mut headers = message.headers.clone().unwrap_or_default();
    let hops = (asked.hops + 1).min(MOST_HOPS);
    headers.insert(header::HOPS, hops.to_string());
    headers.insert(header::REQUEST_ID, asked.request_id.as_str());
    let left = until.saturating_duration_since(Instant::now());
    headers.insert(header::ACQUIRE_MS, left.as_millis().to_string());
    let client = functions.worker.js.client();
    let subject = functions.worker.config.names.invoke_at_subject(&defined.name, to);
    // Twice, because of an idempotent function it may be sent twice.
    let patience = left + defined.function.request_timeout.0 * 2 + PASSED_ON_BEYOND;
    let request = Request::new().headers(headers).payload(message.payload.clone()).timeout(Some(patience));
    let answer = match client.send_request(subject, request).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == RequestErrorKind::NoResponders => return Ok(false),
        Err(error) => {
            let name = &defined.name;
            let message =
                format!("the worker {to}, which a call of `{name}` was passed on to, does not answer: {error}");
            return Err(TaskError::new(Code::ResponseLost, message));
        }
    };
    // A call without one was not taken up.
    let reply = message.reply.clone().unwrap_or_else(|| "".into());
    let told = client.publish_with_headers(reply, answer.headers.unwrap_or_default(), answer.payload).await;
    if let Err(error) = told {
        tracing::warn!(function = %defined.name, request = asked.request_id, %error, "not answered");
    }
    Ok(true)
}

async fn post(
    functions: &Functions,
    defined: &Defined,
    asked: &Asked,
    message: &Message,
    seat: &Seat,
) -> Result<Answer, Failed> {
    let function = &defined.function;
    let mut headers = http::HeaderMap::with_capacity(8);
    let mut put = |name: HeaderName, text: &str| {
        // What is no header of HTTP cannot be passed on.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    put(http::header::CONTENT_TYPE, asked.content_type.as_deref().unwrap_or("application/json"));
    put(HeaderName::from_static("x-request-id"), &asked.request_id);
    put(HeaderName::from_static("lambda-runtime-aws-request-id"), &asked.request_id);
    put(HeaderName::from_static("x-shoal-function"), defined.name.as_str());
    if let Some(traceparent) = &asked.traceparent {
        put(HeaderName::from_static("traceparent"), traceparent);
    }
    let body = message.payload.clone();
    let (within, limit) = (function.request_timeout.0, function.response_limit.0);
    let posting = functions.http.post(seat.address, &function.path, headers, body, within, limit);
    tokio::select! {
        biased;
        answer = posting => answer,
        () = ended_under(seat) => Err(Failed::Lost("its container ended under the call".into())),
    }
}

/// Completes a moment after the container's end, so that an answer that is on its way still counts.
async fn ended_under(seat: &Seat) {
    seat.ended.cancelled().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// What is said of a call whose answer did not come.
async fn lost(functions: &Functions, defined: &Defined, seat: &Seat, why: &str) -> TaskError {
    // A broken connection is often the container's end, which is told a moment later.
    let ended = tokio::time::timeout(Duration::from_millis(500), seat.ended.cancelled()).await.is_ok();
    let name = &defined.name;
    let (code, what) = match ended {
        true => {
            (Code::InstanceExited, format!("the container of instance {} of `{name}` ended under the call", seat.index))
        }
        false => (Code::ResponseLost, format!("the call of `{name}` was sent, and no whole response came back")),
    };
    let message = format!("{what}; whether it was carried out is not known, and it is not sent again: {why}");
    tracing::debug!(function = %name, worker = %functions.worker.id, message);
    // Whoever retries it as a whole, as a task does, decides that for itself.
    TaskError::new(code, message).bounded()
}

/// An answer as a message; what is too large for one lies in the object store.
async fn tell(
    functions: &Functions,
    defined: &Defined,
    asked: &Asked,
    answer: Answer,
    seat: &Seat,
) -> Result<(HeaderMap, Bytes), TaskError> {
    let worker = &functions.worker;
    let mut headers = HeaderMap::new();
    headers.insert(header::REQUEST_ID, asked.request_id.as_str());
    headers.insert(header::STATUS, answer.status.to_string());
    headers.insert(header::INSTANCE, seat.start.as_str());
    headers.insert(header::WORKER, worker.id.as_str());
    let text = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(kind) = text("content-type") {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    match text("x-amz-function-error") {
        Some(word) => {
            let word: String = word.chars().take(LONGEST_WORD).collect();
            headers.insert(header::FUNCTION_ERROR, word.as_str());
        }
        None if answer.status >= 400 => headers.insert(header::FUNCTION_ERROR, "status"),
        None => {}
    }
    let room = worker.js.max_payload().saturating_sub(HEADROOM);
    if answer.body.len() <= room {
        return Ok((headers, answer.body));
    }
    // The id is the caller's, and may be given twice.
    let name = format!("{}.{}", asked.request_id, new_start_id());
    let name = worker.config.names.response_name(&defined.name, &name);
    let mut body: &[u8] = &answer.body;
    let size = answer.body.len() as u64;
    let object = objects::put(worker, &worker.config.names.artifacts_bucket(), name, size, &mut body).await.map_err(
        |error| {
            let message = format!("the response of {size} bytes could not be kept for its caller: {error}");
            TaskError::new(Code::ResponseLost, message)
        },
    )?;
    headers.insert(header::OBJECT, object.name.as_str());
    Ok((headers, Bytes::new()))
}

/// An error as a message.
fn refusal(functions: &Functions, defined: &Defined, asked: &Asked, error: TaskError) -> (HeaderMap, Bytes) {
    tracing::info!(
        function = %defined.name,
        request = asked.request_id,
        traceparent = asked.traceparent,
        code = %error.code,
        message = error.message,
        "a call failed"
    );
    let mut headers = HeaderMap::new();
    headers.insert(header::REQUEST_ID, asked.request_id.as_str());
    headers.insert(header::ERROR, error.code.as_str());
    headers.insert(header::WORKER, functions.worker.id.as_str());
    (headers, serde_json::to_vec(&error).expect("our own types are JSON").into())
}
