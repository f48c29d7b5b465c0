//! Functions from the caller's side: what is there, what is wished for, what is called.
//!
//! Everything here is a reader and a wisher. Containers are made, called and removed by workers alone; no address that a
//! caller gives is ever used. Used by workers (the workload `invoke`) and by clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jetstream::{ApiError, JetStream, PublishError};
use schemas::{Code, FunctionName, Instance, Names, TaskError};

mod definition;
mod destroy;
mod ensure;
mod invoke;
mod lease;

pub use definition::{Applied, Defined, Known};
pub use ensure::Ensured;
pub use invoke::{Call, Response};
pub use lease::{Lease, Leases};

/// How long a wait for something that should be told is trusted before the bucket is read again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Finds, wishes for and calls functions of one fleet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    js: JetStream,
    names: Names,
    /// Says who calls, where a function has an owner.
    owner: Option<String>,
    limits: Arc<Mutex<HashMap<FunctionName, invoke::Limits>>>,
}

/// Why a call, or a wish, came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// For a reason that has a code.
    #[error("{}: {}", .0.code, .0.message)]
    Failed(TaskError),
    /// The server was not reached, or refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A write was not taken.
    #[error("not written: {0}")]
    Publish(#[from] PublishError),
}

impl CallError {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self::Failed(TaskError::new(code, message))
    }

    /// The same for a record or a problem.
    pub fn to_task_error(&self) -> TaskError {
        match self {
            Self::Failed(error) => error.clone(),
            Self::Api(error) => TaskError::new(Code::Unavailable, error.to_string()),
            Self::Publish(error) => TaskError::new(Code::Unavailable, error.to_string()),
        }
    }
}

impl Caller {
    /// Calls as nobody in particular.
    pub fn new(js: JetStream, names: Names) -> Self {
        Self { js, names, owner: None, limits: Arc::default() }
    }

    /// The same in somebody's name.
    pub fn owned_by(self, owner: Option<String>) -> Self {
        Self { owner, ..self }
    }

    /// The server's connection.
    pub fn js(&self) -> &JetStream {
        &self.js
    }

    /// Names on the server.
    pub fn names(&self) -> &Names {
        &self.names
    }

    fn check_owner(&self, defined: &Defined) -> Result<(), CallError> {
        if defined.function.admits(self.owner.as_deref()) { Ok(()) } else { Err(self.anothers(&defined.name)) }
    }

    /// The same for one whose function is deleted.
    fn check_owner_of(&self, instance: &Instance) -> Result<(), CallError> {
        let is_ours = instance.owner.is_none() || instance.owner == self.owner;
        if is_ours { Ok(()) } else { Err(self.anothers(&instance.function)) }
    }

    fn anothers(&self, function: &FunctionName) -> CallError {
        let who = self.owner.as_deref().unwrap_or("nobody in particular");
        let message = format!("the function `{function}` belongs to another owner than {who}");
        CallError::new(Code::PermissionDenied, message)
    }
}

fn not_found(function: &FunctionName) -> CallError {
    let message = format!("there is no function `{function}`; `shoal function list` shows those that are");
    CallError::new(Code::NotFound, message)
}
