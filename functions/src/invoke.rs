//! Invoke: one request to whatever worker holds a warm instance; cold, an ensure before it.

use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use schemas::{AgentId, Code, FunctionName, InstanceStatus, StartId, TaskError, header};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::{CallError, Caller};

/// How long a caller waits for an instance unless it says otherwise.
const ACQUIRE: Duration = Duration::from_secs(30);
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
        let request_id = call.request_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let until = Instant::now() + call.acquire_timeout.unwrap_or(ACQUIRE);
        let mut is_first = true;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.ask(name, call, &request_id, (!is_first || call.acquire_timeout.is_some()).then_some(left)).await
            {
                Ok(reply) => return self.response(name, request_id, reply).await,
                Err(Asked::NobodyHolds) => {}
                Err(Asked::Failed(error)) => return Err(error),
            }
            if !is_first && left.is_zero() {
                let message = format!("no worker answers for `{name}`, though an instance was ready");
                return Err(CallError::new(Code::NoInstance, message));
            }
            self.warm(name, call.acquire_timeout.map(|_| until)).await?;
            is_first = false;
        }
    }

    /// Nobody holds an instance that takes calls, whatever the bucket says: has one made.
    async fn warm(&self, name: &FunctionName, until: Option<Instant>) -> Result<(), CallError> {
        let (defined, instances) = self.look(name).await?;
        self.check_owner(&defined)?;
        let until = until.unwrap_or_else(|| Instant::now() + defined.function.acquire_timeout.0);
        let stale = instances.iter().find(|known| known.instance.takes_calls());
        let gone = stale.and_then(|known| known.instance.start.clone());
        match self.make(name, gone.as_ref(), until).await {
            // The one that was thought gone is well after all, says the worker that looked.
            Err(CallError::Failed(error)) if error.code == Code::NoInstance && gone.is_some() => {
                let (_, instances) = self.look(name).await?;
                let is_back = |known: &crate::Known| {
                    known.instance.start == gone && known.instance.status == InstanceStatus::Ready
                };
                if instances.iter().any(is_back) { Ok(()) } else { Err(CallError::Failed(error)) }
            }
            made => made.map(|_| ()),
        }
    }

    async fn ask(
        &self,
        name: &FunctionName,
        call: &Call,
        request_id: &str,
        acquire: Option<Duration>,
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
        // The worker says how long it takes, by pings in the absence of an answer it would be two timers for one thing;
        // no function is allowed more than this.
        let patience = LONGEST_CALL + BEYOND;
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

/// The longest a call may take in all: no function may allow more together.
const LONGEST_CALL: Duration = Duration::from_secs(2 * 3600);

enum Asked {
    NobodyHolds,
    Failed(CallError),
}
