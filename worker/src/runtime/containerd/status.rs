//! What containerd answers instead of an answer. Pure.

use std::error::Error as _;

use containerd_client::tonic::{Code as Grpc, Status};
use schemas::task::Container;

use super::NAME;
use crate::runtime::container::words::refused as said;
use crate::runtime::{RuntimeError, StartError};

/// What a request that was given up in time looks like: as one that containerd never heard of.
pub(super) fn no_answer() -> Status {
    Status::unavailable("no answer in time")
}

/// containerd does not answer, and how that showed; `None` where it said something.
pub(super) fn is_unreachable(status: &Status) -> Option<String> {
    // The client's own words for a connection that broke; containerd's errors have no source here.
    let broke = status.source().is_some();
    (status.code() == Grpc::Unavailable || broke).then(|| chain(status))
}

/// There is nothing of that name.
pub(super) fn is_missing(status: &Status) -> bool {
    status.code() == Grpc::NotFound
}

/// There is one already.
pub(super) fn is_there(status: &Status) -> bool {
    status.code() == Grpc::AlreadyExists
}

/// What it says, for people.
pub(super) fn words(status: &Status) -> String {
    match is_unreachable(status) {
        Some(why) => why,
        None => status.message().trim().to_owned(),
    }
}

fn chain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

/// Why a step of a start before the task itself failed: nothing ran.
pub(super) fn refused(status: &Status, container: &Container, what: &'static str) -> StartError {
    if let Some(why) = is_unreachable(status) {
        return StartError::Unavailable { runtime: NAME, why };
    }
    match said(NAME, words(status), container, what) {
        StartError::Unsure { runtime, why } => StartError::Unavailable { runtime, why },
        error => error,
    }
}

/// Why a created task could not be started. Where a request went out and no answer came, nobody knows.
pub(super) fn start_refused(status: &Status, container: &Container) -> StartError {
    match is_unreachable(status) {
        Some(why) => StartError::Unsure { runtime: NAME, why },
        None => said(NAME, words(status), container, "start the container"),
    }
}

/// A step beside all tasks that failed.
pub(super) fn failed(what: &'static str, status: Status) -> RuntimeError {
    RuntimeError::Engine { runtime: NAME, what, source: Box::new(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_does_not_answer_refuses_nothing() {
        let container = Container::new("a");
        let down = refused(&no_answer(), &container, "create the container");
        assert!(matches!(down, StartError::Unavailable { runtime: NAME, .. }), "{down}");
        let unsure = start_refused(&no_answer(), &container);
        assert!(matches!(unsure, StartError::Unsure { runtime: NAME, .. }), "it may run: {unsure}");
        let missing = Status::unknown(
            "failed to create shim task: OCI runtime create failed: exec: \"nosuch\": executable file not found in $PATH: unknown",
        );
        assert!(
            matches!(start_refused(&missing, &container), StartError::CommandNotFound { program } if program == "nosuch")
        );
        assert_eq!(is_unreachable(&missing), None);
    }
}
