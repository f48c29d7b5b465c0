//! Who writes the change: a model with tools of ours, or any agent program.

pub mod acp;
pub mod command;

use std::path::Path;

use futures_util::future::BoxFuture;
use schemas::{Code, TaskError};

use crate::budget::{Allowance, Used};
use crate::line::{Keeper, Line};
use crate::secret::Mask;
use crate::shell::{Shell, ShellError};

/// Works in a workspace. One value lives through all rounds of an attempt, and remembers what it said and was told.
pub trait Implementer: Send {
    /// Works on what it is told, until it says that it is done. Called again with what the tests found, if they fail.
    /// Dropped half way, it leaves the workspace as it is.
    fn work<'a>(&'a mut self, room: &'a Room<'a>, told: &'a str) -> BoxFuture<'a, Result<Finish, ImplementError>>;

    /// What it has used so far, over all attempts.
    fn used(&self) -> Used;

    /// The model that works, where one is known.
    fn model(&self) -> Option<String> {
        None
    }
}

/// What an implementer finds around it.
pub struct Room<'a> {
    /// The workspace's root, as this process sees it. Whatever is in it may be hostile: links lead anywhere.
    pub tree: &'a Path,
    /// Runs commands in it.
    pub shell: &'a dyn Shell,
    /// To people.
    pub line: &'a dyn Line,
    /// Over everything that a model is shown, too: it needs no secrets.
    pub mask: &'a Mask,
    /// Told after each turn.
    pub keeper: &'a dyn Keeper,
    /// What may be used, over all attempts.
    pub allowance: Allowance,
}

/// It says that it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finish {
    /// Its last words.
    pub said: String,
}

/// Why it ended without saying that it is done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImplementError {
    /// Nothing more may be used.
    #[error("{}", .0.message)]
    Budget(TaskError),
    /// The model's endpoint cannot be reached, is overloaded or broke off, again and again.
    #[error("{0}")]
    Unavailable(String),
    /// The endpoint does not take the key, or knows no such model, or calls the request wrong.
    #[error("{0}")]
    Rejected(String),
    /// The model declined.
    #[error("the model declined: {0}")]
    Refused(String),
    /// Its answers were empty or unreadable, again and again.
    #[error("{0}")]
    Malformed(String),
    /// It did the same again and again.
    #[error("{0}")]
    Stuck(String),
    /// A program ended with an error, or broke its protocol.
    #[error("{0}")]
    Failed(String),
    /// Its command could not be run.
    #[error(transparent)]
    Shell(#[from] ShellError),
}

impl ImplementError {
    /// The same for the record.
    pub fn to_task_error(&self) -> TaskError {
        let code = match self {
            Self::Budget(error) => return error.clone(),
            Self::Shell(error) => return error.to_task_error(),
            Self::Unavailable(_) => Code::ModelUnavailable,
            Self::Rejected(_) => Code::ModelRejected,
            Self::Refused(_) => Code::ModelRefused,
            Self::Malformed(_) => Code::ModelMalformed,
            Self::Stuck(_) => Code::ImplementerStuck,
            Self::Failed(_) => Code::ImplementationFailed,
        };
        TaskError::new(code, self.to_string())
    }
}
