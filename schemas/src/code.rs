//! Error codes: the one table of reasons that leave the program. `docs/errors.md` is made from it.

use crate::newer::Word;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal, retryable: $retryable:literal;)+) => {
        /// Why something failed. API: a code keeps its word and its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[schemars(transform = crate::newer::one_of)]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $name,)+
            /// A code of a newer version, read by an older one.
            #[serde(untagged)]
            #[schemars(skip)]
            Newer(Word),
        }

        impl Code {
            /// Every code of this version.
            pub const ALL: &[Code] = &[$(Code::$name,)+];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                    Self::Newer(word) => word.as_str(),
                }
            }

            /// Whether another attempt may help, as far as the code tells.
            pub fn retryable(self) -> bool {
                match self {
                    $(Self::$name => $retryable,)+
                    Self::Newer(_) => false,
                }
            }

            /// What it means, one line.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc,)+).trim_ascii(),)+
                    Self::Newer(_) => "A code of a newer version.",
                }
            }
        }
    };
}

codes! {
    /// The message is no task: wrong JSON, a wrong field, an unknown workload.
    InvalidTask = "invalid_task", retryable: false;
    /// The subject's queue or id has characters that are not allowed, or is too long.
    InvalidId = "invalid_id", retryable: false;
    /// The task was not started before its `expires_at`.
    Expired = "expired", retryable: false;
    /// Somebody cancelled it.
    Cancelled = "cancelled", retryable: false;
    /// The attempt ran longer than `timeout`.
    TimedOut = "timed_out", retryable: true;
    /// The attempt wrote nothing for longer than `idle_timeout`.
    IdleTimedOut = "idle_timed_out", retryable: true;
    /// The process or container ended with an exit code other than 0.
    ExitedNonZero = "exited_non_zero", retryable: true;
    /// A signal ended the process, and it was not ours.
    KilledBySignal = "killed_by_signal", retryable: true;
    /// The kernel killed it because it used more memory than its limit.
    OutOfMemory = "out_of_memory", retryable: true;
    /// It failed after starting more processes or threads than its limit.
    TooManyProcesses = "too_many_processes", retryable: true;
    /// There is no such program on the worker (what a shell calls exit 127).
    CommandNotFound = "command_not_found", retryable: false;
    /// The program cannot be executed (what a shell calls exit 126).
    CommandNotExecutable = "command_not_executable", retryable: false;
    /// The workload could not be started, for a reason that may pass.
    StartFailed = "start_failed", retryable: true;
    /// The worker that took it does not run this kind of workload; it waits for one that does.
    RuntimeNotAllowed = "runtime_not_allowed", retryable: true;
    /// No worker of its queue runs this kind of workload now; it waits until one does.
    NoWorker = "no_worker", retryable: true;
    /// The worker cannot make the folders that a workload needs; the task waits.
    NoWorkFolder = "no_work_folder", retryable: true;
    /// The worker's own settings forbid what the task asks for: image, mount, network, capability, privilege, repository.
    PolicyForbidden = "policy_forbidden", retryable: false;
    /// No registry has this image, or it wants a login; or the policy is `never` and the engine has none.
    ImageNotFound = "image_not_found", retryable: false;
    /// The image could not be pulled, for a reason that may pass.
    ImagePullFailed = "image_pull_failed", retryable: true;
    /// The registry's certificate is signed by nobody whom the worker trusts, or is for another host.
    RegistryUntrusted = "registry_untrusted", retryable: true;
    /// The registry does not take the user and password that the worker has for it.
    RegistryLoginRefused = "registry_login_refused", retryable: true;
    /// The image's name or digest cannot be read, or the image is not for this machine.
    InvalidImage = "invalid_image", retryable: false;
    /// The image has no such user or group.
    UserNotFound = "user_not_found", retryable: false;
    /// A port that it asks for is taken on the worker's machine.
    PortTaken = "port_taken", retryable: true;
    /// The container engine does not answer; the task waits.
    EngineUnavailable = "engine_unavailable", retryable: true;
    /// The container was lost with its engine; it runs again without spending an attempt.
    EngineLost = "engine_lost", retryable: true;
    /// The worker has no means to hold a limit that the task asks for.
    LimitUnsupported = "limit_unsupported", retryable: false;
    /// The handler answered with an error.
    HandlerFailed = "handler_failed", retryable: true;
    /// No program in the fleet answers for this handler.
    NoHandler = "no_handler", retryable: true;
    /// The result is larger than the worker takes.
    ResultTooLarge = "result_too_large", retryable: false;
    /// Too many workers were lost with this task: it may be what kills them.
    LostTooOften = "lost_too_often", retryable: false;
    /// A worker was lost with it, and the task asks to be started at most once.
    WorkerLost = "worker_lost", retryable: false;
    /// Its message is gone from the stream though it had not ended: deleted by hand, or lost by the server.
    MessageLost = "message_lost", retryable: false;
    /// The container has no address: its network gave none in time.
    IpUnavailable = "ip_unavailable", retryable: true;
    /// The instance did not pass its health check in time after its start.
    NotHealthy = "not_healthy", retryable: true;
    /// The instance's container ended by itself, at its start or under a call.
    InstanceExited = "instance_exited", retryable: true;
    /// No instance had room within the function's `acquire_timeout`.
    NoInstance = "no_instance", retryable: true;
    /// The instance took no connection; nothing was sent to it.
    InstanceUnreachable = "instance_unreachable", retryable: true;
    /// The call was sent, and no whole response came back: whether it was carried out is not known.
    ResponseLost = "response_lost", retryable: true;
    /// The response is larger than the function's `response_limit`.
    ResponseTooLarge = "response_too_large", retryable: false;
    /// The function says of itself that it failed: a status of 400 or more, or an error in its header.
    FunctionFailed = "function_failed", retryable: true;
    /// Calls of this function failed too often for the platform's reasons; none is sent for a while.
    CircuitOpen = "circuit_open", retryable: true;
    /// The context of an agent job is not usable: a playbook, a model, a price, a setting that is not there.
    ContextInvalid = "context_invalid", retryable: false;
    /// No workspace could be made: no disk, a mirror that is broken, no free slot.
    WorkspaceFailed = "workspace_failed", retryable: true;
    /// The remote has no repository of this name, or does not show it to the worker's credentials.
    RepositoryNotFound = "repository_not_found", retryable: false;
    /// The remote cannot be reached, or broke off.
    RepositoryUnreachable = "repository_unreachable", retryable: true;
    /// The remote does not take the worker's credentials.
    GitLoginRefused = "git_login_refused", retryable: false;
    /// The repository has no such base branch.
    BaseNotFound = "base_not_found", retryable: false;
    /// The work does not fit onto what the base has become.
    RebaseConflict = "rebase_conflict", retryable: true;
    /// The model's endpoint cannot be reached, is overloaded or broke off, again and again.
    ModelUnavailable = "model_unavailable", retryable: true;
    /// The model's endpoint does not take the worker's key, or knows no such model.
    ModelRejected = "model_rejected", retryable: false;
    /// The model declined to do it.
    ModelRefused = "model_refused", retryable: false;
    /// The model's answers were empty or could not be read, again and again.
    ModelMalformed = "model_malformed", retryable: true;
    /// The implementer did the same again and again.
    ImplementerStuck = "implementer_stuck", retryable: true;
    /// The implementer ended with an error.
    ImplementationFailed = "implementation_failed", retryable: true;
    /// The implementer ended, and nothing was changed.
    NothingChanged = "nothing_changed", retryable: true;
    /// A step of the playbook failed.
    StepFailed = "step_failed", retryable: true;
    /// The tests failed; nothing was pushed.
    TestsFailed = "tests_failed", retryable: true;
    /// The change may not leave the worker: a secret in it, a file too large, a path that is not its own.
    ChangeRefused = "change_refused", retryable: false;
    /// The remote refuses the branch: protected, a hook of its own, or moved by somebody else.
    PushRefused = "push_refused", retryable: false;
    /// The branch could not be pushed, for a reason that may pass.
    PushFailed = "push_failed", retryable: true;
    /// The change or its transcript could not be stored.
    ArtifactFailed = "artifact_failed", retryable: true;
    /// The job has used up its turns, tokens, money or time.
    BudgetExceeded = "budget_exceeded", retryable: false;
    /// The runtime has no such ability.
    Unimplemented = "unimplemented", retryable: false;
    /// Something went wrong inside Shoal; the message says what.
    Internal = "internal", retryable: true;
    /// An argument, a header or a body of a call is not what it takes.
    InvalidArgument = "invalid_argument", retryable: false;
    /// There is no such task, agent, artifact or path.
    NotFound = "not_found", retryable: false;
    /// A short id fits several.
    Ambiguous = "ambiguous", retryable: false;
    /// The id is queued or running.
    Locked = "locked", retryable: true;
    /// What it acts on is in another state than that, or is being changed by others.
    Conflict = "conflict", retryable: true;
    /// The call wants a token.
    Unauthenticated = "unauthenticated", retryable: false;
    /// A call from this origin, or to this host name, is not allowed.
    PermissionDenied = "permission_denied", retryable: false;
    /// The path is there, but not for this method.
    MethodNotAllowed = "method_not_allowed", retryable: false;
    /// The body is of a type that the call does not read.
    UnsupportedMediaType = "unsupported_media_type", retryable: false;
    /// The body, or the answer, is larger than is taken.
    TooLarge = "too_large", retryable: false;
    /// Too many calls from this address.
    RateLimited = "rate_limited", retryable: true;
    /// NATS, or what is asked of it, cannot be reached now, or there is no room for more.
    Unavailable = "unavailable", retryable: true;
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Code {
    type Err = std::convert::Infallible;
    /// Never fails: what this version does not know is [`Code::Newer`].
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(Self::ALL.iter().copied().find(|code| code.as_str() == word).unwrap_or_else(|| Self::Newer(Word::new(word))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_its_word() {
        for code in Code::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
            assert!(code.meaning().ends_with(['.', ')']), "{}", code.meaning());
        }
        let newer: Code = serde_json::from_str("\"from_the_future\"").unwrap();
        assert_eq!(newer, Code::Newer(Word::new("from_the_future")));
        assert_eq!(serde_json::to_string(&newer).unwrap(), "\"from_the_future\"", "and back");
    }
}
