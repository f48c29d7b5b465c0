//! A task: what a client wants done. JSON on `shoal.tasks.<queue>.<id>`; the id is in the subject, not in here.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent_job::AgentJob;
use crate::code::Code;
use crate::ids::FunctionName;
use crate::newer::More;
use crate::quantity::{Bytes, Cpu, Limit};
use crate::queue::QueueDefaults;
use crate::strict::{self, InvalidTask};
use crate::time::{HumanDuration, Timestamp};

/// A task on the wire. Only `workload` is required; readers ignore unknown fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// What runs.
    pub workload: Workload,
    /// Longest run of one attempt; default 30m, or the queue's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Limit<HumanDuration>>,
    /// Longest silence on stdout and stderr before the attempt is stopped; default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
    /// The queue deadline: a task not started by then ends as `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What happens after a failure; default: nothing, one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// What happens when a worker is lost with this task.
    #[serde(default, skip_serializing_if = "OnLost::is_retry")]
    pub on_lost: OnLost,
    /// Bounds of one attempt; what is not named here is the worker's default.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// Globs below the work folder, gathered at the end of every attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Time between the polite signal and the kill when an attempt is stopped; default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace: Option<HumanDuration>,
    /// Free words for people and filters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What an attempt runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Workload {
    /// A registered function, or a NATS service.
    Call(Call),
    /// An OS process on the worker.
    Process(Process),
    /// One container, from image to exit code.
    Container(Container),
    /// One call of a function.
    Invoke(Invoke),
    /// A coding agent on a git repository.
    Agent(Box<AgentJob>),
}

impl Workload {
    /// The word on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Call(_) => "call",
            Self::Process(_) => "process",
            Self::Container(_) => "container",
            Self::Invoke(_) => "invoke",
            Self::Agent(_) => "agent",
        }
    }
}

/// A function registered in an embedding program, or any NATS service on `shoal.handlers.<handler>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Call {
    /// Name of the handler; `echo` and `noop` are built in.
    pub handler: String,
    /// Handed to it as JSON.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub payload: serde_json::Value,
}

/// One call of a function: durable, retried and dead-lettered as every task. Its result is the response's body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Invoke {
    /// The function's name.
    pub function: FunctionName,
    /// The body of the call, as JSON; `null` is an empty body.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub payload: serde_json::Value,
    /// The same in base64, for what is not JSON; then `payload` is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Its content type; default `application/json`, or `application/octet-stream` beside `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Who calls, where the function has an owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl Invoke {
    fn check(&self) -> Result<(), InvalidTask> {
        if self.body.is_some() && !self.payload.is_null() {
            return Err(InvalidTask::value("workload.body", "…", "one of `payload` and `body`"));
        }
        if self.bytes().is_err() {
            return Err(InvalidTask::value("workload.body", "…", "base64"));
        }
        if let Some(kind) = &self.content_type
            && (kind.is_empty() || kind.len() > 256 || !kind.bytes().all(|b| (b' '..=b'~').contains(&b)))
        {
            return Err(InvalidTask::value("workload.content_type", kind, "a content type"));
        }
        Ok(())
    }

    /// The body as it is sent.
    pub fn bytes(&self) -> Result<Vec<u8>, base64::DecodeError> {
        use base64::Engine;
        match &self.body {
            Some(body) => base64::engine::general_purpose::STANDARD.decode(body),
            None if self.payload.is_null() => Ok(Vec::new()),
            None => Ok(serde_json::to_vec(&self.payload).expect("a JSON value is JSON")),
        }
    }
}

/// An OS process. It dies with its worker, whatever it forked; its result is what it wrote to `$SHOAL_RESULT_FILE`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Program and arguments; no shell stands between.
    pub command: Vec<String>,
    /// Added to the minimal environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Written to its standard input, which is then closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
}

/// One container. What loosens its confinement (network, mounts, capabilities, `privileged`, `engine_runtime`) must also
/// be allowed by the worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// Image reference, by tag or digest.
    pub image: String,
    /// Replaces the image's command; goes behind the entrypoint, if there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Added to the image's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Written to its standard input, which is then closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// User and group as `name`, `uid`, `name:group` or `uid:gid`; default the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Absolute path; default the image's, else the work folder `/shoal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// `none`, `shared` (loopback only, one namespace a worker), `bridge`, `host`, or a network of the engine; default
    /// the worker's, which is `none` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// When the image is pulled; default the worker's, which is `if_not_present` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Folders or files of the worker's machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Capabilities to keep, as `NET_BIND_SERVICE`; all others are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// No confinement at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// A runtime of the engine, as `runsc`; default the engine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_runtime: Option<String>,
    /// The image's files cannot be changed; `/tmp` and the work folder can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// A small init stands before the command: it passes signals on and reaps orphans.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Before every start; what the registry has now is what runs.
    Always,
    /// If the engine has no image of this name.
    #[default]
    IfNotPresent,
    /// Never: it must be there.
    Never,
}

/// A folder or file of the worker's machine, seen in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mount {
    /// Absolute path on the machine.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// It cannot be written to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

impl Container {
    /// Nothing but an image.
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    /// The rules between fields that types do not hold. `at`: its path in what was submitted.
    pub(crate) fn check(&self, at: &str) -> Result<(), InvalidTask> {
        let wrong =
            |field: &str, value: &str, allowed: &str| Err(InvalidTask::value(&format!("{at}.{field}"), value, allowed));
        if self.image.is_empty() || self.image.len() > 512 || !self.image.bytes().all(|b| b.is_ascii_graphic()) {
            return wrong("image", &self.image, "an image reference");
        }
        let zero = |words: &[String]| words.iter().any(|word| word.contains('\0'));
        if zero(&self.entrypoint) || self.entrypoint.first().is_some_and(String::is_empty) {
            return wrong("entrypoint", "", "a program and its arguments, without a zero byte");
        }
        for (field, value) in
            [("user", &self.user), ("network", &self.network), ("engine_runtime", &self.engine_runtime)]
        {
            let Some(value) = value else { continue };
            if value.is_empty() || value.len() > 128 || !value.bytes().all(|b| b.is_ascii_graphic()) {
                return wrong(field, value, "a name of at most 128 characters");
            }
        }
        // The prefix would be another container's namespace, whoever's it is.
        if let Some(network) = self.network.as_ref().filter(|network| network.contains([':', '/'])) {
            return wrong("network", network, "`none`, `shared`, `bridge`, `host` or the name of a network");
        }
        let absolute = |path: &str| {
            path.starts_with('/') && !path.contains(['\0', ':', ',']) && !path.split('/').any(|part| part == "..")
        };
        if let Some(dir) = self.working_dir.as_ref().filter(|dir| !absolute(dir)) {
            return wrong("working_dir", dir, "an absolute path");
        }
        for (i, mount) in self.mounts.iter().enumerate() {
            for (field, path) in [("source", &mount.source), ("target", &mount.target)] {
                if !absolute(path) || (field == "target" && path.trim_end_matches('/').is_empty()) {
                    return wrong(&format!("mounts[{i}].{field}"), path, "an absolute path without `..`, `:` or `,`");
                }
            }
            if Path::new(&mount.target).starts_with(WORK_FOLDER) {
                return wrong(&format!("mounts[{i}].target"), &mount.target, "a path outside the work folder `/shoal`");
            }
        }
        for name in &self.capabilities {
            let letter = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
            if name.is_empty() || !name.bytes().all(letter) || name.starts_with("CAP_") {
                return wrong("capabilities", name, "names as `NET_BIND_SERVICE`, without `CAP_`");
            }
        }
        Ok(())
    }
}

/// What no environment can hold.
pub(crate) fn check_env(field: &str, env: &BTreeMap<String, String>) -> Result<(), InvalidTask> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(InvalidTask::value(field, name, "names without `=`, nothing with a zero byte"));
        }
    }
    Ok(())
}

/// The work folder as a container sees it.
pub const WORK_FOLDER: &str = "/shoal";

/// Retries after a failure. Lost deliveries are counted apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RetryPolicy {
    /// Attempts in all, the first counted in.
    #[serde(default = "one")]
    pub max_attempts: NonZeroU32,
    /// Pause before each retry.
    #[serde(default)]
    pub backoff: Backoff,
    /// Error codes after which there is no retry, beside those that never are retried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub never_on_codes: Vec<Code>,
    /// Exit codes after which there is no retry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub never_on_exit_codes: Vec<i32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: one(),
            backoff: Backoff::default(),
            never_on_codes: Vec::new(),
            never_on_exit_codes: Vec::new(),
            more: More::default(),
        }
    }
}

/// Exponential backoff with full jitter: each pause is random between zero and the bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Backoff {
    /// Bound of the first pause.
    pub initial: HumanDuration,
    /// Growth of the bound from attempt to attempt.
    pub factor: f64,
    /// The bound never grows beyond this.
    pub max: HumanDuration,
    /// `full`: between zero and the bound. `none`: exactly the bound.
    pub jitter: Jitter,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// How the pause lies below its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// Evenly between zero and the bound, so that a crowd of failures does not come back as a crowd.
    #[default]
    Full,
    /// Exactly the bound.
    None,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: HumanDuration::seconds(1),
            factor: 2.0,
            max: HumanDuration::seconds(300),
            jitter: Jitter::Full,
            more: More::default(),
        }
    }
}

impl Backoff {
    /// Bound of the pause after attempt `attempt` (from 1).
    pub fn bound(&self, attempt: NonZeroU32) -> Duration {
        let exponent = i32::try_from(attempt.get() - 1).unwrap_or(i32::MAX);
        let seconds = self.initial.0.as_secs_f64() * self.factor.powi(exponent);
        if seconds.is_finite() && seconds < self.max.0.as_secs_f64() {
            Duration::from_secs_f64(seconds)
        } else {
            self.max.0
        }
    }
}

/// What happens when a worker is lost with a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// It runs elsewhere, without spending an attempt.
    #[default]
    Retry,
    /// It ends as `lost`: started at most once, under every fault.
    Fail,
}

impl OnLost {
    fn is_retry(&self) -> bool {
        *self == Self::Retry
    }
}

/// Bounds of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// CPU time per time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Limit<Cpu>>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Limit<Bytes>>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Limit<u64>>,
    /// Bytes of log kept of one attempt; what comes after is counted, not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<Limit<Bytes>>,
}

impl Limits {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The rules of one task with every default filled in: task, else queue, else fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Longest run of one attempt.
    pub timeout: Limit<HumanDuration>,
    /// Longest silence.
    pub idle_timeout: Option<HumanDuration>,
    /// Retries.
    pub retry: RetryPolicy,
    /// Signal to kill.
    pub stop_grace: Duration,
}

/// Fleet default of `timeout`.
pub const DEFAULT_TIMEOUT: HumanDuration = HumanDuration::seconds(30 * 60);
/// Fleet default of `stop_grace`.
pub const DEFAULT_STOP_GRACE: HumanDuration = HumanDuration::seconds(10);
/// Longest `stop_grace`: a stop must end some time.
pub const LONGEST_STOP_GRACE: HumanDuration = HumanDuration::seconds(3600);

impl Task {
    /// A task of nothing but its workload.
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            timeout: None,
            idle_timeout: None,
            expires_at: None,
            retry: None,
            on_lost: OnLost::default(),
            limits: Limits::default(),
            artifacts: Vec::new(),
            stop_grace: None,
            labels: BTreeMap::new(),
        }
    }

    /// Reads a task leniently, as workers do: unknown fields pass, wrong values do not.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidTask> {
        let task: Self = serde_json::from_slice(bytes).map_err(|error| strict::no_task(bytes, &error))?;
        task.check()?;
        Ok(task)
    }

    /// The rules between fields that types do not hold.
    pub fn check(&self) -> Result<(), InvalidTask> {
        let (env, command) = match &self.workload {
            Workload::Call(call) => {
                let token = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
                if call.handler.is_empty() || !call.handler.bytes().all(token) {
                    let allowed = "A-Z a-z 0-9 _ -";
                    return Err(InvalidTask::value("workload.handler", &call.handler, allowed));
                }
                (None, None)
            }
            Workload::Process(process) => {
                if process.command.first().is_none_or(String::is_empty) {
                    return Err(InvalidTask::value("workload.command", "[]", "a program and its arguments"));
                }
                (Some(&process.env), Some(&process.command))
            }
            Workload::Container(container) => {
                container.check("workload")?;
                (Some(&container.env), Some(&container.command))
            }
            Workload::Invoke(invoke) => {
                invoke.check()?;
                (None, None)
            }
            Workload::Agent(job) => {
                job.check()?;
                (None, None)
            }
        };
        if let Some(env) = env {
            check_env("workload.env", env)?;
        }
        if command.is_some_and(|command| command.iter().any(|argument| argument.contains('\0'))) {
            return Err(InvalidTask::value("workload.command", "", "arguments without a zero byte"));
        }
        if let Some(retry) = &self.retry {
            if !retry.backoff.factor.is_finite() || retry.backoff.factor < 1.0 {
                let factor = retry.backoff.factor.to_string();
                return Err(InvalidTask::value("retry.backoff.factor", &factor, "1.0 or more"));
            }
            if self.on_lost == OnLost::Fail && retry.max_attempts.get() > 1 {
                let attempts = retry.max_attempts.to_string();
                let allowed = "1 together with `on_lost: fail`, which promises at most one start";
                return Err(InvalidTask::value("retry.max_attempts", &attempts, allowed));
            }
        }
        if let Some(grace) = self.stop_grace.filter(|grace| *grace > LONGEST_STOP_GRACE) {
            return Err(InvalidTask::value("stop_grace", &grace.to_string(), "at most 1h"));
        }
        for (field, zero) in [
            ("timeout", matches!(self.timeout, Some(Limit::At(timeout)) if timeout.0.is_zero())),
            ("idle_timeout", self.idle_timeout.is_some_and(|timeout| timeout.0.is_zero())),
            ("limits.pids", self.limits.pids == Some(Limit::At(0))),
            ("limits.memory", self.limits.memory == Some(Limit::At(Bytes(0)))),
        ] {
            if zero {
                return Err(InvalidTask::value(field, "0", "more than zero"));
            }
        }
        for glob in &self.artifacts {
            let leaves = glob.split('/').any(|part| part == "..");
            if glob.is_empty() || glob.starts_with('/') || leaves {
                return Err(InvalidTask::value("artifacts", glob, "globs below the work folder"));
            }
        }
        Ok(())
    }

    /// Fills in what the task leaves open.
    pub fn policy(&self, queue: &QueueDefaults) -> Policy {
        let retry = match self.on_lost {
            // At most one start: a queue's default must not add to it.
            OnLost::Fail => RetryPolicy::default(),
            OnLost::Retry => self.retry.clone().or_else(|| queue.retry.clone()).unwrap_or_default(),
        };
        Policy {
            timeout: self.timeout.or(queue.timeout).unwrap_or(Limit::At(DEFAULT_TIMEOUT)),
            idle_timeout: self.idle_timeout.or(queue.idle_timeout),
            retry,
            stop_grace: self.stop_grace.or(queue.stop_grace).unwrap_or(DEFAULT_STOP_GRACE).0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(json: &str) -> Result<Task, InvalidTask> {
        Task::decode(json.as_bytes())
    }

    #[test]
    fn only_the_workload_is_required() {
        let task = decode(r#"{"workload":{"kind":"process","command":["date"]}}"#).unwrap();
        let policy = task.policy(&QueueDefaults::default());
        assert_eq!(policy.timeout, Limit::At(DEFAULT_TIMEOUT));
        assert_eq!(policy.retry.max_attempts.get(), 1);
    }

    #[test]
    fn what_is_left_open_comes_from_the_queue() {
        let queue = QueueDefaults { timeout: Some(Limit::At(HumanDuration::seconds(5))), ..QueueDefaults::default() };
        let task = decode(r#"{"workload":{"kind":"call","handler":"noop"}}"#).unwrap();
        assert_eq!(task.policy(&queue).timeout, Limit::At(HumanDuration::seconds(5)));
        let own = decode(r#"{"workload":{"kind":"call","handler":"noop"},"timeout":"unlimited"}"#).unwrap();
        assert_eq!(own.policy(&queue).timeout, Limit::Unlimited);
    }

    #[test]
    fn readers_ignore_unknown_fields() {
        assert!(decode(r#"{"workload":{"kind":"call","handler":"noop","new":1},"newer":2}"#).is_ok());
    }

    #[test]
    fn rules_between_fields_are_named() {
        for (json, field) in [
            (r#"{"workload":{"kind":"process","command":[]}}"#, "workload.command"),
            (r#"{"workload":{"kind":"call","handler":"a.b"}}"#, "workload.handler"),
            (r#"{"workload":{"kind":"process","command":["a"],"env":{"A=B":"c"}}}"#, "workload.env"),
            (r#"{"workload":{"kind":"call","handler":"a"},"artifacts":["../x"]}"#, "artifacts"),
            (r#"{"workload":{"kind":"call","handler":"a"},"timeout":"0s"}"#, "timeout"),
            (
                r#"{"workload":{"kind":"call","handler":"a"},"on_lost":"fail","retry":{"max_attempts":2}}"#,
                "retry.max_attempts",
            ),
        ] {
            assert_eq!(decode(json).unwrap_err().field, field);
        }
    }

    #[test]
    fn backoff_grows_to_its_bound() {
        let backoff = Backoff::default();
        let bound = |n| backoff.bound(NonZeroU32::new(n).unwrap()).as_secs();
        assert_eq!([bound(1), bound(2), bound(3), bound(9), bound(10), bound(u32::MAX)], [1, 2, 4, 256, 300, 300]);
    }
}
