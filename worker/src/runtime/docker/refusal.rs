//! What the engine has against a request, in the words of the table of codes. Pure.
//!
//! Engines tell most of it in prose only. The phrases here are those of Docker 20.10 to 28, of containerd and runc below
//! it, and of Podman where it differs; what no phrase matches is a failure that may pass.

use std::error::Error as _;
use std::io;

use bollard::errors::Error;
use schemas::Code;
use schemas::task::Container;

use crate::runtime::StartError;

/// The runtime's word.
pub const DOCKER: &str = "docker";

/// Why a container could not be created.
pub fn create_refused(error: Error, container: &Container) -> StartError {
    refused(error, container, "create the container")
}

/// Why a created container could not be started.
pub fn start_refused(error: Error, container: &Container) -> StartError {
    refused(error, container, "start the container")
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
    let message = words(&error);
    let reason = reason(&message.to_lowercase(), container);
    let refused = |code| StartError::Refused { code, message: format!("the engine refuses to {what}: {message}") };
    match reason {
        Some(Reason::NotFound(program)) => StartError::CommandNotFound { program },
        Some(Reason::NotExecutable(program)) => {
            StartError::CommandNotExecutable { program, source: io::Error::other(message) }
        }
        Some(Reason::Limit(limit)) => StartError::LimitUnsupported { limit, why: message },
        Some(Reason::Code(code)) => refused(code),
        None => {
            StartError::Failed { what: format!("the engine failed to {what}"), source: Some(io::Error::other(message)) }
        }
    }
}

enum Reason {
    NotFound(String),
    NotExecutable(String),
    Limit(&'static str),
    Code(Code),
}

/// By the words, in lower case. The order matters: runc's messages quote the command.
fn reason(text: &str, container: &Container) -> Option<Reason> {
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    let program = || {
        let first = container.entrypoint.first().or(container.command.first());
        first.cloned().or_else(|| quoted_program(text)).unwrap_or_else(|| "the image's command".to_owned())
    };
    if has(&[
        "no matching entries in passwd file",
        "no matching entries in group file",
        "unable to find user",
        "unable to find group",
    ]) {
        return Some(Reason::Code(Code::UserNotFound));
    }
    if has(&["port is already allocated", "address already in use", "ports are not available"]) {
        return Some(Reason::Code(Code::PortTaken));
    }
    if has(&["minimum memory limit", "memory limit should be"])
        || (text.contains("memory") && has(&["limit too low", "too low"]))
    {
        return Some(Reason::Limit("memory"));
    }
    if has(&["range of cpus is from", "nanocpus", "cpu cfs", "conflicting options: nano cpus"]) {
        return Some(Reason::Limit("cpu"));
    }
    if text.contains("pids limit") {
        return Some(Reason::Limit("pids"));
    }
    if has(&[
        "bind source path does not exist",
        "invalid mount config",
        "invalid mount path",
        "mount path must be absolute",
    ]) {
        return Some(Reason::Code(Code::InvalidTask));
    }
    if has(&[
        "unknown or invalid runtime name",
        "unknown runtime specified",
        "invalid runtime name",
        "invalid capability",
        "unknown capability",
    ]) {
        return Some(Reason::Code(Code::InvalidTask));
    }
    if text.contains("network") && has(&["not found", "no such network", "could not find network"]) {
        return Some(Reason::Code(Code::InvalidTask));
    }
    if has(&["no such image", "no such object: image"]) {
        return Some(Reason::Code(Code::ImageNotFound));
    }
    if has(&[
        "invalid reference format",
        "invalid checksum digest",
        "repository name must be",
        "cannot specify 64-byte hexadecimal",
    ]) {
        return Some(Reason::Code(Code::InvalidImage));
    }
    if has(&[
        "exec format error",
        "does not match the specified platform",
        "no matching manifest",
        "operating system cannot be used",
    ]) {
        return Some(Reason::Code(Code::InvalidImage));
    }
    if has(&["no command specified"]) {
        return Some(Reason::NotFound(program()));
    }
    // runc and crun say where they were: before the program itself, trouble is the machine's.
    let of_program = has(&["exec:", "exec user process", "starting container process", "executable file"]);
    if of_program
        && has(&["executable file not found", "executable file `", "no such file or directory", "not a directory"])
    {
        // The working folder is the image's or the task's; runc cannot go there.
        if has(&["chdir to cwd", "mkdir /"]) {
            return Some(Reason::Code(Code::InvalidTask));
        }
        return Some(Reason::NotFound(program()));
    }
    if of_program
        && has(&["permission denied", "is a directory", "operation not permitted"])
        && !has(&["mounting", "rootfs_linux"])
    {
        return Some(Reason::NotExecutable(program()));
    }
    None
}

/// `exec: "prog": …`
fn quoted_program(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("exec: \"")?;
    rest.split_once('"').map(|(program, _)| program.to_owned())
}
