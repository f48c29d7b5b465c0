//! Invoke: one request to whatever worker holds a warm instance; cold, an ensure before it.

use std::sync::PoisonError;
use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use schemas::{AgentId, Code, FunctionName, StartId, TaskError, header};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::{CallError, Caller};

/// How long the limits of a function are taken for true.
const BELIEVED: Duration = Duration::from_secs(10);
/// Functions whose limits are kept in mind.
const MOST_KNOWN: usize = 10_000;
/// How long the worker's own time limits are waited for beyond what they allow: then it is the worker that is lost.
const BEYOND: Duration = Duration::from_secs(5);
/// Room in a message for headers beside the body.
const HEADROOM: usize = 8 << 10;

/// One call.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Sent as it is.
    pub body: Bytes,
    /// Its content type; default `application/json`.
    pub content_type: Option<String>,
    /// Names the call in the container's headers and in logs; random unless given.
    pub request_id: Option<String>,
    /// W3C trace context, passed on.
    pub traceparent: Option<String>,
    /// How long to wait for an instance with room; default the function's own limit.
    pub acquire_timeout: Option<Duration>,
}

impl Call {
    /// A call with this body.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }
}

/// What the container answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Names the call.
    pub request_id: String,
    /// HTTP status.
    pub status: u16,
    /// Its content type.
    pub content_type: Option<String>,
    /// What the function says of its own failure: its header's word, or `status` for a status of 400 or more.
    pub function_error: Option<String>,
    /// The instance that was called.
    pub instance: Option<StartId>,
    /// The worker that called it.
    pub worker: Option<AgentId>,
    /// The body.
    pub body: Bytes,
}

impl Caller {
    /// Calls a function once. Nothing is sent a second time that an instance may have received, unless the function says
    /// that it may.
    pub async fn invoke(&self, name: &FunctionName, call: &Call) -> Result<Response, CallError> {
        let room = self.js.max_payload().saturating_sub(HEADROOM);
        if call.body.len() > room {
            let message = format!("the body has {} bytes, the server takes messages of {room}", call.body.len());
            return Err(CallError::new(Code::TooLarge, message));
        }
        for (what, text) in [
            ("the request id", &call.request_id),
            ("the content type", &call.content_type),
            ("traceparent", &call.traceparent),
            ("the owner", &self.owner),
        ] {
            // They travel as headers.
            let printable = |text: &String| text.len() <= 1_024 && text.bytes().all(|b| (b' '..=b'~').contains(&b));
            if !text.as_ref().is_none_or(printable) {
                let message = format!("{what} of a call is printable ASCII, up to 1024 characters");
                return Err(CallError::new(Code::InvalidArgument, message));
            }
        }
        let request_id = call.request_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let limits = self.limits(name).await?;
        let until = Instant::now() + call.acquire_timeout.unwrap_or(limits.acquire);
        let mut is_first = true;
        // Records that look well, though nobody answered when they were there.
        let mut doubted: Vec<u64> = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Unless its caller says otherwise, the worker takes the function's own limit.
            let acquire = (!is_first || call.acquire_timeout.is_some()).then_some(left);
            match self.ask(name, call, &request_id, acquire, limits).await {
                Ok(reply) => match self.response(name, request_id.clone(), reply).await {
                    // Said by a worker that leaves and has sent nothing.
                    Err(CallError::Failed(error)) if error.code == Code::Unavailable && !left.is_zero() => {}
                    answered => return answered,
                },
                Err(Asked::NobodyHolds) => {}
                Err(Asked::Failed(error)) => return Err(error),
            }
            if !is_first && left.is_zero() {
                let message = format!("no worker answers for `{name}`, though an instance was ready");
                return Err(CallError::new(Code::NoInstance, message));
            }
            is_first = false;
            let (defined, instances) = self.look(name).await?;
            self.check_owner(&defined)?;
            let seen = instances.iter().filter(|known| known.instance.takes_calls());
            let seen: Vec<u64> = seen.map(|known| known.revision).collect();
            // A worker takes calls before it writes the record: whoever is behind one that was there before nobody
            // answered is gone. One that has come since is asked first.
            if seen.iter().all(|revision| doubted.contains(revision)) {
                self.make(name, &doubted, until).await?;
            } else {
                doubted = seen;
            }
        }
    }

    /// The limits of a function's calls; those of a moment ago are good enough.
    async fn limits(&self, name: &FunctionName) -> Result<Limits, CallError> {
        let known = self.limits.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if let Some(limits) = known.filter(|limits| limits.read.elapsed() < BELIEVED) {
            return Ok(limits);
        }
        let function = self.defined(name).await?.function;
        // One that may be sent again may take twice as long.
        let tries = if function.idempotent { 2 } else { 1 };
        let request = function.request_timeout.0.saturating_mul(tries);
        let limits = Limits { acquire: function.acquire_timeout.0, request, read: Instant::now() };
        let mut known = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(name.clone(), limits);
        Ok(limits)
    }

    async fn ask(
        &self,
        name: &FunctionName,
        call: &Call,
        request_id: &str,
        acquire: Option<Duration>,
        limits: Limits,
    ) -> Result<Message, Asked> {
        let mut headers = HeaderMap::new();
        headers.insert(header::REQUEST_ID, request_id);
        if let Some(owner) = &self.owner {
            headers.insert(header::OWNER, owner.as_str());
        }
        if let Some(kind) = &call.content_type {
            headers.insert(header::CONTENT_TYPE, kind.as_str());
        }
        if let Some(traceparent) = &call.traceparent {
            headers.insert(header::TRACEPARENT, traceparent.as_str());
        }
        if let Some(acquire) = acquire {
            headers.insert(header::ACQUIRE_MS, acquire.as_millis().to_string());
        }
        // The worker keeps the function's own limits and answers when they are over; this is for a worker that is lost.
        let patience = acquire.unwrap_or(limits.acquire).saturating_add(limits.request).saturating_add(BEYOND);
        let request = Request::new().headers(headers).payload(call.body.clone()).timeout(Some(patience));
        let subject = self.names.invoke_subject(name);
        self.js.client().send_request(subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Asked::NobodyHolds,
            RequestErrorKind::MaxPayloadExceeded => {
                Asked::Failed(CallError::new(Code::TooLarge, format!("the call cannot be sent: {error}")))
            }
            RequestErrorKind::InvalidSubject => {
                Asked::Failed(CallError::new(Code::InvalidArgument, format!("the call cannot be sent: {error}")))
            }
            _ => {
                let message =
                    format!("no answer from `{name}`; whether the call was carried out is not known: {error}");
                Asked::Failed(CallError::new(Code::ResponseLost, message))
            }
        })
    }

    async fn response(&self, name: &FunctionName, request_id: String, reply: Message) -> Result<Response, CallError> {
        let header =
            |word: &str| reply.headers.as_ref().and_then(|headers| headers.get(word)).map(|value| value.as_str());
        if header(header::ERROR).is_some() {
            let error: TaskError = serde_json::from_slice(&reply.payload).map_err(|error| {
                CallError::new(Code::Internal, format!("`{name}` answers an error that cannot be read: {error}"))
            })?;
            return Err(CallError::Failed(error));
        }
        let Some(status) = header(header::STATUS).and_then(|status| status.parse().ok()) else {
            return Err(CallError::new(Code::Internal, format!("the answer of `{name}` says no status")));
        };
        let body = match header(header::OBJECT) {
            None => reply.payload.clone(),
            Some(object) => self.fetch(name, object).await?,
        };
        Ok(Response {
            request_id,
            status,
            content_type: header(header::CONTENT_TYPE).map(str::to_owned),
            function_error: header(header::FUNCTION_ERROR).map(str::to_owned),
            instance: header(header::INSTANCE).and_then(|start| start.parse().ok()),
            worker: header(header::WORKER).and_then(|worker| worker.parse().ok()),
            body,
        })
    }

    /// A response that was too large for a message. It was for this caller alone, so it is deleted then.
    async fn fetch(&self, name: &FunctionName, object: &str) -> Result<Bytes, CallError> {
        let failed = |error: String| {
            CallError::new(Code::ResponseLost, format!("the response of `{name}` cannot be fetched: {error}"))
        };
        let context = async_nats::jetstream::new(self.js.client().clone());
        let store = context.get_object_store(self.names.artifacts_bucket()).await.map_err(|e| failed(e.to_string()))?;
        let mut reader = store.get(object).await.map_err(|error| failed(error.to_string()))?;
        let mut body = Vec::with_capacity(reader.info.size);
        // The client checks the digest at the end.
        reader.read_to_end(&mut body).await.map_err(|error| failed(error.to_string()))?;
        drop(reader);
        if let Err(error) = store.delete(object).await {
            tracing::debug!(object, %error, "a fetched response is left to the store's retention");
        }
        Ok(body.into())
    }
}

/// How long the calls of one function may take, as its definition says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    acquire: Duration,
    request: Duration,
    read: Instant,
}

enum Asked {
    NobodyHolds,
    Failed(CallError),
}
