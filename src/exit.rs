//! Exit codes: one table, in one place.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | the job failed without a code of its own, or the command did |
//! | 2 | usage: a flag, a variable, the configuration file or a task file is wrong |
//! | 3 | NATS cannot be reached, or does not answer |
//! | 124 | timed out: the job, or the waiting for it |
//! | 125 | the job could not be started: its image, a limit, what the worker forbids, the engine |
//! | 126, 127 | the job's command cannot be executed, is not there |
//! | 130 | cancelled |
//! | others | the job's own; 128 + n for signal n |

use std::process::ExitCode;

use schemas::{Code, Outcome, State, TaskRecord};

/// An exit code of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

/// All is well.
pub const DONE: Exit = Exit(0);
/// The job failed, or the command did.
pub const FAILED: Exit = Exit(1);
/// Wrong usage.
pub const USAGE: Exit = Exit(2);
/// NATS cannot be reached.
pub const UNREACHABLE: Exit = Exit(3);
/// Timed out.
pub const TIMED_OUT: Exit = Exit(124);
/// It could not be started, as container engines say it.
pub const NOT_STARTED: Exit = Exit(125);
/// Cancelled.
pub const CANCELLED: Exit = Exit(130);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.0.into()
    }
}

/// The code of a finished job. It is the job's own where it has one; `None` while it is not finished.
pub fn of_record(record: &TaskRecord) -> Option<Exit> {
    match record.state {
        State::Running | State::Retrying => None,
        State::Succeeded => Some(DONE),
        State::Cancelled => Some(CANCELLED),
        State::Expired => Some(TIMED_OUT),
        State::Lost => Some(FAILED),
        State::Failed => Some(of_failure(record)),
    }
}

fn of_failure(record: &TaskRecord) -> Exit {
    match record.error.as_ref().map(|error| error.code) {
        Some(Code::TimedOut | Code::IdleTimedOut | Code::Expired) => return TIMED_OUT,
        Some(
            Code::PolicyForbidden
            | Code::ImageNotFound
            | Code::ImagePullFailed
            | Code::RegistryUntrusted
            | Code::RegistryLoginRefused
            | Code::InvalidImage
            | Code::UserNotFound
            | Code::PortTaken
            | Code::StartFailed
            | Code::LimitUnsupported
            | Code::EngineUnavailable,
        ) => return NOT_STARTED,
        Some(Code::CommandNotFound) => return Exit(127),
        Some(Code::CommandNotExecutable) => return Exit(126),
        // Every other reason leaves it to what the last attempt says.
        _ => {}
    }
    // Lost and handed-back attempts end nothing.
    let last = record.attempts.iter().rev().find(|attempt| attempt.number.is_some());
    let Some(attempt) = last.filter(|attempt| attempt.outcome == Outcome::Exited) else { return FAILED };
    let own = match (attempt.exit_code, attempt.signal) {
        (Some(code), _) => u8::try_from(code).ok(),
        (None, Some(signal)) => u8::try_from(128 + signal).ok(),
        (None, None) => None,
    };
    // A failed job never looks like a success.
    own.filter(|code| *code != 0).map_or(FAILED, Exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(state: &str, rest: serde_json::Value) -> TaskRecord {
        let mut value = json!({
            "id": "a", "queue": "default", "sequence": 1, "state": state, "submitted_at": "2026-11-20T10:00:00Z",
        });
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn attempt(rest: serde_json::Value) -> serde_json::Value {
        let mut value = json!({"number": 1, "outcome": "exited"});
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        value
    }

    fn error(code: &str) -> serde_json::Value {
        json!({"code": code, "message": "m"})
    }

    #[test]
    fn a_job_that_is_not_finished_has_no_code() {
        assert_eq!(of_record(&record("running", json!({}))), None);
        assert_eq!(of_record(&record("retrying", json!({}))), None);
    }

    #[test]
    fn the_jobs_own_code_passes_through() {
        for (rest, code) in [
            (json!({"attempts": [attempt(json!({"exit_code": 7}))], "error": error("exited_non_zero")}), 7),
            (json!({"attempts": [attempt(json!({"signal": 9}))], "error": error("killed_by_signal")}), 137),
            (json!({"attempts": [attempt(json!({"signal": 9, "oom": true}))], "error": error("out_of_memory")}), 137),
            (json!({"attempts": [attempt(json!({}))], "error": error("handler_failed")}), 1),
            // The result was refused though the process ended well.
            (json!({"attempts": [attempt(json!({"exit_code": 0}))], "error": error("result_too_large")}), 1),
            // A later loss spends nothing and says nothing.
            (
                json!({"attempts": [attempt(json!({"exit_code": 5})), {"outcome": "lost"}],
                       "error": error("exited_non_zero")}),
                5,
            ),
        ] {
            assert_eq!(of_record(&record("failed", rest.clone())), Some(Exit(code)), "{rest}");
        }
    }

    #[test]
    fn ends_that_are_not_the_jobs_own_have_theirs() {
        for (state, rest, code) in [
            ("succeeded", json!({}), 0),
            ("cancelled", json!({}), 130),
            ("expired", json!({}), 124),
            ("lost", json!({}), 1),
            ("failed", json!({"error": error("timed_out")}), 124),
            ("failed", json!({"error": error("idle_timed_out")}), 124),
            ("failed", json!({"error": error("image_not_found")}), 125),
            ("failed", json!({"error": error("policy_forbidden")}), 125),
            ("failed", json!({"error": error("command_not_found")}), 127),
            ("failed", json!({"error": error("command_not_executable")}), 126),
            ("failed", json!({"error": error("lost_too_often")}), 1),
            ("failed", json!({}), 1),
        ] {
            assert_eq!(of_record(&record(state, rest.clone())), Some(Exit(code)), "{state} {rest}");
        }
    }
}
