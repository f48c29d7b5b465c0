//! Functions: what they are, where their containers run, and what is said about them on the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{AgentId, FunctionName, QueueName, StartId};
use crate::newer::{More, Word};
use crate::quantity::Bytes;
use crate::record::TaskError;
use crate::strict::InvalidTask;
use crate::task::{Container, Limits, PullPolicy, check_env};
use crate::time::{HumanDuration, Timestamp};

/// Path of the Lambda runtime interface emulator: what is called unless a function says otherwise.
pub const LAMBDA_PATH: &str = "/2015-03-31/functions/function/invocations";
/// Port of the Lambda runtime interface emulator.
pub const LAMBDA_PORT: u16 = 8080;
/// Longest wait for a connection to an instance.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest `request_timeout` and `acquire_timeout`: a caller of a lost worker must hear some time.
pub const LONGEST_CALL: HumanDuration = HumanDuration::seconds(3_600);
/// Most instances of one function.
pub const MOST_INSTANCES: u32 = 1_000;
/// The queue that logs of instances are kept under: `shoal logs _functions.<function>`. No task can be sent to it.
pub const LOG_QUEUE: &str = "_functions";

/// The definition of a function: `shoal_functions/<function>`. Only `image` is required.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Function {
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
    /// User and group as `name`, `uid`, `name:group` or `uid:gid`; default the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `bridge`, or a network of the engine; what the worker must also allow. It must give an address: never `none`,
    /// `shared` or `host`.
    #[serde(default = "bridge", skip_serializing_if = "is_bridge")]
    pub network: String,
    /// When the image is pulled; default the worker's, which is `if_not_present` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Bounds of one instance; what is not named here is the worker's default. `logs` bounds the output of one instance.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// The image's files cannot be changed; `/tmp` can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Port that it listens on; default 8080, the Lambda runtime interface emulator's.
    #[serde(default = "lambda_port", skip_serializing_if = "is_lambda_port")]
    pub port: u16,
    /// Path that calls are posted to; default the Lambda runtime interface emulator's.
    #[serde(default = "lambda_path", skip_serializing_if = "is_lambda_path")]
    pub path: String,
    /// When an instance may be called.
    #[serde(default, skip_serializing_if = "Health::is_default")]
    pub health: Health,
    /// Instances kept warm, also without calls; default 0: down to none when idle.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min: u32,
    /// Most instances, fleet-wide; default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub max: u32,
    /// Calls that one instance takes at once; default 1, as Lambda does.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub concurrency: u32,
    /// An instance above `min` that was not called for this long is removed; default 5m.
    #[serde(default = "idle_timeout", skip_serializing_if = "is_idle_timeout")]
    pub idle_timeout: HumanDuration,
    /// An instance that was not called for this long is paused, and goes on with the next call; default never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after: Option<HumanDuration>,
    /// Longest time of one call, from the request sent to the last byte of the response; default 30s.
    #[serde(default = "half_minute", skip_serializing_if = "is_half_minute")]
    pub request_timeout: HumanDuration,
    /// Longest wait of a call for an instance that has room, starts included; default 30s.
    #[serde(default = "half_minute", skip_serializing_if = "is_half_minute")]
    pub acquire_timeout: HumanDuration,
    /// Largest response; default 10Mi, at most 64Mi. One above the server's payload limit travels as an object.
    #[serde(default = "response_limit", skip_serializing_if = "is_response_limit")]
    pub response_limit: Bytes,
    /// A call may be sent again though it may have been received: it does the same twice as once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
    /// Who alone may call it; default anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The workers that hold its instances: those that serve this queue; default `default`.
    #[serde(default = "pool", skip_serializing_if = "is_pool")]
    pub pool: QueueName,
    /// Free words for people and filters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// When an instance may be called: not before its port is open and this is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Health {
    /// Path of a GET that is answered with 2xx by an instance that is well. Without one any HTTP answer will do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Longest time from its start to the first good answer; default 30s.
    pub start_timeout: HumanDuration,
    /// Time between two looks at one that serves; default 10s. Three bad ones in a row, and it is replaced.
    pub interval: HumanDuration,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: None,
            start_timeout: HumanDuration::seconds(30),
            interval: HumanDuration::seconds(10),
            more: More::default(),
        }
    }
}

impl Health {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn bridge() -> String {
    "bridge".to_owned()
}
fn is_bridge(network: &String) -> bool {
    network == "bridge"
}
fn lambda_port() -> u16 {
    LAMBDA_PORT
}
fn is_lambda_port(port: &u16) -> bool {
    *port == LAMBDA_PORT
}
fn lambda_path() -> String {
    LAMBDA_PATH.to_owned()
}
fn is_lambda_path(path: &String) -> bool {
    path == LAMBDA_PATH
}
fn one() -> u32 {
    1
}
fn is_one(number: &u32) -> bool {
    *number == 1
}
fn is_zero(number: &u32) -> bool {
    *number == 0
}
fn idle_timeout() -> HumanDuration {
    HumanDuration::seconds(300)
}
fn is_idle_timeout(duration: &HumanDuration) -> bool {
    *duration == idle_timeout()
}
fn half_minute() -> HumanDuration {
    HumanDuration::seconds(30)
}
fn is_half_minute(duration: &HumanDuration) -> bool {
    *duration == half_minute()
}
/// Default of `response_limit`.
pub const RESPONSE_LIMIT: Bytes = Bytes::mebi(10);
/// Largest `response_limit`: a response is in memory once.
pub const MOST_RESPONSE: Bytes = Bytes::mebi(64);
fn response_limit() -> Bytes {
    RESPONSE_LIMIT
}
fn is_response_limit(bytes: &Bytes) -> bool {
    *bytes == RESPONSE_LIMIT
}
fn pool() -> QueueName {
    QueueName::new("default").expect("a literal of allowed characters")
}
fn is_pool(name: &QueueName) -> bool {
    name.as_str() == "default"
}

impl Function {
    /// One of nothing but an image.
    pub fn new(image: impl Into<String>) -> Self {
        serde_json::from_value(serde_json::json!({"image": image.into()})).expect("only the image is required")
    }

    /// Reads a definition leniently, as workers do: unknown fields pass, wrong values do not.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidTask> {
        let function: Self = serde_json::from_slice(bytes).map_err(|error| InvalidTask::undecodable(&error))?;
        function.check()?;
        Ok(function)
    }

    /// The rules between fields that types do not hold.
    pub fn check(&self) -> Result<(), InvalidTask> {
        let wrong = |field: &str, value: &dyn ToString, allowed: &str| {
            Err(InvalidTask::value(field, &value.to_string(), allowed))
        };
        self.container().check("workload").map_err(|error| InvalidTask {
            field: error.field.trim_start_matches("workload.").to_owned(),
            problem: error.problem,
        })?;
        check_env("env", &self.env)?;
        if self.command.iter().any(|argument| argument.contains('\0')) {
            return wrong("command", &"", "arguments without a zero byte");
        }
        if ["none", "shared", "host"].contains(&self.network.as_str()) {
            return wrong("network", &self.network, "`bridge` or the name of a network that gives each an address");
        }
        for (field, path) in [("path", Some(&self.path)), ("health.path", self.health.path.as_ref())] {
            let Some(path) = path else { continue };
            if !path.starts_with('/') || path.len() > 2_048 || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
            {
                return wrong(field, path, "a path that begins with `/`, of printable ASCII without `#`");
            }
        }
        if self.port == 0 {
            return wrong("port", &self.port, "1 to 65535");
        }
        if self.max == 0 || self.max > MOST_INSTANCES {
            return wrong("max", &self.max, "1 to 1000");
        }
        if self.min > self.max {
            return wrong("min", &self.min, "no more than `max`");
        }
        if self.concurrency == 0 || self.concurrency > 10_000 {
            return wrong("concurrency", &self.concurrency, "1 to 10000");
        }
        if self.response_limit.0 == 0 || self.response_limit > MOST_RESPONSE {
            return wrong("response_limit", &self.response_limit, "1 byte to 64Mi");
        }
        for (field, duration) in [
            ("idle_timeout", Some(self.idle_timeout)),
            ("pause_after", self.pause_after),
            ("request_timeout", Some(self.request_timeout)),
            ("acquire_timeout", Some(self.acquire_timeout)),
            ("health.start_timeout", Some(self.health.start_timeout)),
            ("health.interval", Some(self.health.interval)),
        ] {
            if duration.is_some_and(|duration| duration.0.is_zero()) {
                return wrong(field, &"0s", "more than zero");
            }
        }
        for (field, duration) in [("request_timeout", self.request_timeout), ("acquire_timeout", self.acquire_timeout)]
        {
            if duration > LONGEST_CALL {
                return wrong(field, &duration, "at most 1h");
            }
        }
        if let Some(owner) = &self.owner
            && (owner.is_empty() || owner.len() > 128 || !owner.bytes().all(|b| b.is_ascii_graphic()))
        {
            return wrong("owner", owner, "a word of at most 128 printable characters");
        }
        Ok(())
    }

    /// The container of one instance.
    pub fn container(&self) -> Container {
        Container {
            image: self.image.clone(),
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            env: self.env.clone(),
            user: self.user.clone(),
            network: Some(self.network.clone()),
            pull: self.pull,
            read_only: self.read_only,
            ..Container::default()
        }
    }

    /// What an instance is made from, as a short word: instances of another word are replaced. How many there are, how
    /// long they idle and who may call them is not in it.
    pub fn spec(&self) -> String {
        let parts = serde_json::json!([
            self.image,
            self.command,
            self.entrypoint,
            self.env,
            self.user,
            self.network,
            self.limits,
            self.read_only,
            self.port,
            self.pool,
        ]);
        let digest = Sha256::digest(parts.to_string().as_bytes());
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether a caller who says to be `owner` may use it.
    pub fn admits(&self, owner: Option<&str>) -> bool {
        self.owner.is_none() || self.owner.as_deref() == owner
    }
}

/// One instance slot of a function: `shoal_instances/<function>.<index>`. At most one container stands behind it, except
/// while one is replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// Whose instance.
    pub function: FunctionName,
    /// Which of them, from 0 to `max` − 1.
    pub index: u32,
    /// How it is.
    pub status: InstanceStatus,
    /// The container's id on its engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The container's name on its engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Address of the container, as its worker sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// Port at that address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The worker that holds it, or tried to.
    pub worker: AgentId,
    /// Which boot of that worker.
    pub boot: String,
    /// The runtime it is in: `docker`, `containerd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The random id of its start; also of its logs. One that failed without it never began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartId>,
    /// Revision of the definition that it was made from.
    pub revision: u64,
    /// [`Function::spec`] of that definition.
    pub spec: String,
    /// Who alone may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was first well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// When it was last called; written at most every few seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
    /// Why it failed, where it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// Starts that failed in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Not started again before, unless somebody calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// How an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::newer::one_of)]
pub enum InstanceStatus {
    /// It takes calls.
    Ready,
    /// It takes calls, and goes on with the first.
    Paused,
    /// Its worker has left it running and is gone; the worker's next boot takes it up again.
    Left,
    /// Somebody wants it gone: its holder ends the calls under way, removes the container, then this record.
    Stopping,
    /// There is none: the start failed, or it died; `error` says why.
    Failed,
    /// A word of a newer version.
    #[serde(untagged)]
    #[schemars(skip)]
    Newer(Word),
}

impl std::fmt::Display for InstanceStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Left => "left",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Newer(word) => word.as_str(),
        })
    }
}

impl Instance {
    /// Whether calls go to it, as far as its record tells.
    pub fn takes_calls(&self) -> bool {
        matches!(self.status, InstanceStatus::Ready | InstanceStatus::Paused)
    }

    /// Whether a container stands behind it.
    pub fn is_there(&self) -> bool {
        self.id.is_some() && self.status != InstanceStatus::Failed
    }
}

/// A message in `SHOAL_ENSURE`, on `shoal.ensure.<pool>.<function>.<index>`: make this instance, unless it is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EnsureRequest {
    /// The start id of an instance that was found not to answer: it is replaced though its record looks well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<StartId>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

/// How one call of a function ended, as the command and the HTTP door tell it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Invocation {
    /// Names the call, in the container's request headers and in logs.
    pub request_id: String,
    /// HTTP status of the container's response.
    pub status: u16,
    /// Its content type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The function says of itself that it failed (`X-Amz-Function-Error`, or a status of 400 or more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_error: Option<String>,
    /// The start id of the instance that was called.
    pub instance: StartId,
    /// The worker that called it.
    pub worker: AgentId,
}
