//! What the engine has against a request, or that it does not answer at all. Pure.

use std::error::Error as _;

use bollard::errors::Error;
use schemas::task::Container;

use crate::runtime::StartError;
use crate::runtime::container::words::refused as said;

/// The runtime's word.
pub const DOCKER: &str = "docker";

/// Why a container could not be created.
pub fn create_refused(error: Error, container: &Container) -> StartError {
    unstarted(refused(error, container, "create the container"))
}

/// Why a created container could not be started. Where a request went out and no answer came, nobody knows.
pub fn start_refused(error: Error, container: &Container) -> StartError {
    match is_unreachable(&error) {
        Some(why) if !is_unsent(&error) => StartError::Unsure { runtime: DOCKER, why },
        _ => refused(error, container, "start the container"),
    }
}

/// The engine never heard of it.
fn is_unsent(error: &Error) -> bool {
    match error {
        Error::SocketNotFoundError(_) => true,
        Error::HyperLegacyError { err } => err.is_connect(),
        _ => false,
    }
}

/// Why a created container could not be attached to: it did not run yet.
pub fn attach_refused(error: Error, container: &Container) -> StartError {
    unstarted(refused(error, container, "attach to the container"))
}

/// What was not yet to run did not.
fn unstarted(error: StartError) -> StartError {
    match error {
        StartError::Unsure { runtime, why } => StartError::Unavailable { runtime, why },
        error => error,
    }
}

/// The engine does not answer, and how that showed; `None` where it said something.
pub fn is_unreachable(error: &Error) -> Option<String> {
    match error {
        Error::RequestTimeoutError => Some("no answer in time".to_owned()),
        Error::SocketNotFoundError(path) => Some(format!("there is no socket {path}")),
        Error::HyperLegacyError { .. } | Error::HyperResponseError { .. } | Error::IOError { .. } => Some(chain(error)),
        _ => None,
    }
}

/// What the engine said, for people; else the error as it is.
pub fn words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, status_code } if message.trim().is_empty() => {
            format!("the engine answers {status_code}")
        }
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        other => chain(other),
    }
}

/// The status of the engine's answer.
pub fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// The error and all its causes, each once: hyper tells what happened only in the last.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn refused(error: Error, container: &Container, what: &'static str) -> StartError {
    if let Some(why) = is_unreachable(&error) {
        return StartError::Unavailable { runtime: DOCKER, why };
    }
    said(DOCKER, words(&error), container, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn an_engine_that_does_not_answer_refuses_nothing() {
        let down = Error::IOError { err: io::ErrorKind::ConnectionRefused.into() };
        let down = create_refused(down, &Container::new("a"));
        assert!(matches!(down, StartError::Unavailable { runtime: DOCKER, .. }), "{down}");
        let slow = attach_refused(Error::RequestTimeoutError, &Container::new("a"));
        assert!(matches!(slow, StartError::Unavailable { .. }), "{slow}");
        let unsure = start_refused(Error::RequestTimeoutError, &Container::new("a"));
        assert!(matches!(unsure, StartError::Unsure { .. }), "it may run: {unsure}");
        let unsent = start_refused(Error::SocketNotFoundError("/s".into()), &Container::new("a"));
        assert!(matches!(unsent, StartError::Unavailable { .. }), "{unsent}");
        let said = Error::DockerResponseServerError { status_code: 500, message: String::new() };
        assert_eq!(is_unreachable(&said), None);
        assert_eq!(words(&said), "the engine answers 500");
    }
}
