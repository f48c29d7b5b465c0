//! Functions that an embedding program registers for `call` workloads. `echo` and `noop` are built in.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemas::{Code, TaskError, TaskKey};
use tokio_util::sync::CancellationToken;

/// What a handler is called with.
#[derive(Clone, Debug)]
pub struct Call {
    /// The task.
    pub key: TaskKey,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// The payload of the task, as JSON.
    pub payload: serde_json::Value,
    /// Cancelled when the attempt is to stop; the call is dropped a moment later.
    pub stop: CancellationToken,
}

/// Why a handler failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HandlerError {
    /// For people.
    pub message: String,
    /// Whether another attempt may help.
    pub retryable: bool,
}

impl HandlerError {
    /// A failure that another attempt may mend.
    pub fn retryable(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: true }
    }

    /// A failure that no attempt can mend.
    pub fn hopeless(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: false }
    }
}

impl From<HandlerError> for TaskError {
    fn from(error: HandlerError) -> Self {
        Self { retryable: error.retryable, ..Self::new(Code::HandlerFailed, error.message) }
    }
}

type Function = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Bytes, HandlerError>> + Send + Sync>;

/// The functions of one program, by name.
#[derive(Clone)]
pub struct Handlers {
    functions: BTreeMap<String, Function>,
}

impl Default for Handlers {
    fn default() -> Self {
        Self { functions: BTreeMap::new() }.with("noop", |_| async { Ok(Bytes::new()) }).with(
            "echo",
            |call| async move {
                serde_json::to_vec(&call.payload)
                    .map(Bytes::from)
                    .map_err(|error| HandlerError::hopeless(error.to_string()))
            },
        )
    }
}

impl Handlers {
    /// Adds `function` under `name`, replacing what was there. What it answers is the task's result.
    pub fn with<F, A>(mut self, name: &str, function: F) -> Self
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Bytes, HandlerError>> + Send + 'static,
    {
        self.functions.insert(name.to_owned(), Arc::new(move |call| Box::pin(function(call))));
        self
    }

    /// The function of this name.
    pub fn get(&self, name: &str) -> Option<&Function> {
        self.functions.get(name)
    }
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.functions.keys()).finish()
    }
}
