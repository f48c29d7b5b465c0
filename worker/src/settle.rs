//! What becomes of a task when an attempt has ended. Pure: clock, queue and dice are elsewhere.

use std::num::NonZeroU32;
use std::time::Duration;

use schemas::record::TaskError;
use schemas::task::{Jitter, OnLost, Policy};
use schemas::{Code, Outcome};

use crate::attempt::phase::{End, Why};

/// What the record says next, and what is told to the server after it.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    /// Record `succeeded`, ack.
    Succeed,
    /// Record `retrying`, nak with a delay.
    Retry {
        /// Pause before the next attempt.
        after: Duration,
        /// Why this attempt failed.
        error: TaskError,
    },
    /// Record `failed`, dead letter, term.
    Fail(TaskError),
    /// Record `cancelled`, ack.
    Cancel,
    /// Record `retrying`, due now, nak: nothing is spent. With what was lost, if it did not end at our wish.
    HandBack(Option<TaskError>),
    /// Record `retrying` as if it had not been handed out, nak: another worker, or this one later.
    PutOff(TaskError),
    /// Record `lost`, ack: it may not start again.
    Lose(TaskError),
    /// Nothing at all: the task is somebody else's by now.
    Leave,
}

impl Settlement {
    /// Why the attempt failed, or was ended, from the table of codes; `None` where it did neither.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Retry { error, .. } | Self::Fail(error) | Self::HandBack(Some(error)) | Self::Lose(error) => {
                Some(error.code)
            }
            Self::Cancel => Some(Code::Cancelled),
            Self::Succeed | Self::HandBack(None) | Self::PutOff(_) | Self::Leave => None,
        }
    }
}

/// Decides. `dice` is between 0 and 1.
pub fn settle(end: &End, attempt: NonZeroU32, policy: &Policy, on_lost: OnLost, dice: f64) -> Settlement {
    let (error, exit_code) = match end {
        End::Succeeded => return Settlement::Succeed,
        End::Stopped(Why::Cancelled) => return Settlement::Cancel,
        End::Stopped(Why::LeaseLost | Why::Superseded) => return Settlement::Leave,
        End::Stopped(Why::Unstarted(error)) => return Settlement::PutOff(error.clone()),
        End::Stopped(why @ (Why::Drained | Why::EngineLost(_))) => {
            return match (on_lost, why) {
                (OnLost::Retry, Why::EngineLost(error)) => Settlement::HandBack(Some(error.clone())),
                (OnLost::Retry, _) => Settlement::HandBack(None),
                (OnLost::Fail, Why::EngineLost(error)) => Settlement::Lose(error.clone()),
                (OnLost::Fail, _) => {
                    let message = "the worker was told to stop, and the task asks to be started at most once";
                    Settlement::Lose(TaskError::new(Code::WorkerLost, message))
                }
            };
        }
        End::Stopped(Why::TimedOut(error)) => (error, None),
        End::Failed { error, exit_code } => (error, *exit_code),
    };
    let never = policy.retry.never_on_codes.contains(&error.code)
        || exit_code.is_some_and(|code| policy.retry.never_on_exit_codes.contains(&code));
    if attempt < policy.retry.max_attempts && error.retryable && !never {
        let bound = policy.retry.backoff.bound(attempt);
        let after = match policy.retry.backoff.jitter {
            Jitter::Full => bound.mul_f64(dice.clamp(0.0, 1.0)),
            Jitter::None => bound,
        };
        return Settlement::Retry { after, error: error.clone() };
    }
    Settlement::Fail(error.clone())
}

/// The word for an end in the record.
pub fn outcome(end: &End) -> Outcome {
    match end {
        End::Succeeded => Outcome::Exited,
        End::Failed { error, .. } => match error.code {
            Code::CommandNotFound
            | Code::CommandNotExecutable
            | Code::StartFailed
            | Code::LimitUnsupported
            | Code::PolicyForbidden
            | Code::ImageNotFound
            | Code::ImagePullFailed
            | Code::RegistryUntrusted
            | Code::RegistryLoginRefused
            | Code::InvalidImage
            | Code::UserNotFound
            | Code::PortTaken => Outcome::FailedToStart,
            _ => Outcome::Exited,
        },
        End::Stopped(Why::TimedOut(_)) => Outcome::TimedOut,
        End::Stopped(Why::Cancelled) => Outcome::Cancelled,
        End::Stopped(Why::Drained | Why::Unstarted(_)) => Outcome::HandedBack,
        End::Stopped(Why::LeaseLost | Why::Superseded | Why::EngineLost(_)) => Outcome::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::queue::QueueDefaults;
    use schemas::{HumanDuration, Task};

    fn policy(retry: &str) -> Policy {
        let json = format!(r#"{{"workload":{{"kind":"call","handler":"noop"}},"retry":{retry}}}"#);
        Task::decode(json.as_bytes()).unwrap().policy(&QueueDefaults::default())
    }

    fn attempt(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn exited(code: i32) -> End {
        End::Failed { error: TaskError::new(Code::ExitedNonZero, "exit"), exit_code: Some(code) }
    }

    #[test]
    fn a_failure_is_retried_while_attempts_are_left() {
        let policy = policy(r#"{"max_attempts":3,"backoff":{"initial":"2s"}}"#);
        let settle = |number| settle(&exited(1), attempt(number), &policy, OnLost::Retry, 1.0);
        assert!(matches!(settle(1), Settlement::Retry { after, .. } if after == HumanDuration::seconds(2).0));
        assert!(matches!(settle(2), Settlement::Retry { after, .. } if after == HumanDuration::seconds(4).0));
        assert!(matches!(settle(3), Settlement::Fail(_)));
    }

    #[test]
    fn jitter_lies_between_zero_and_the_bound() {
        let full = policy(r#"{"max_attempts":2,"backoff":{"initial":"4s"}}"#);
        let none = policy(r#"{"max_attempts":2,"backoff":{"initial":"4s","jitter":"none"}}"#);
        let after = |policy, dice| match settle(&exited(1), attempt(1), policy, OnLost::Retry, dice) {
            Settlement::Retry { after, .. } => after.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!([after(&full, 0.0), after(&full, 0.5), after(&full, 1.0), after(&none, 0.5)], [0, 2, 4, 4]);
    }

    #[test]
    fn what_cannot_help_is_not_retried() {
        let policy = policy(r#"{"max_attempts":3,"never_on_exit_codes":[2],"never_on_codes":["idle_timed_out"]}"#);
        let settle = |end: &End| settle(end, attempt(1), &policy, OnLost::Retry, 1.0);
        assert!(matches!(settle(&exited(1)), Settlement::Retry { .. }));
        assert!(matches!(settle(&exited(2)), Settlement::Fail(_)));
        let hopeless = End::failed(TaskError::new(Code::CommandNotFound, ""));
        assert!(matches!(settle(&hopeless), Settlement::Fail(_)));
        let silent = Why::TimedOut(TaskError::new(Code::IdleTimedOut, ""));
        assert!(matches!(settle(&End::Stopped(silent)), Settlement::Fail(_)));
    }

    #[test]
    fn what_is_handed_back_spends_nothing_unless_it_may_start_only_once() {
        let policy = policy("{}");
        let drained = End::Stopped(Why::Drained);
        assert_eq!(settle(&drained, attempt(1), &policy, OnLost::Retry, 0.0), Settlement::HandBack(None));
        assert!(matches!(settle(&drained, attempt(1), &policy, OnLost::Fail, 0.0), Settlement::Lose(_)));
    }

    #[test]
    fn what_is_superseded_is_left_alone() {
        for why in [Why::Superseded, Why::LeaseLost] {
            let settlement = settle(&End::Stopped(why), attempt(1), &policy("{}"), OnLost::Retry, 0.0);
            assert_eq!(settlement, Settlement::Leave);
        }
    }
}
