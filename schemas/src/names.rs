//! Subjects, streams and buckets of one fleet. All derive from the prefix, so that several fleets share an account.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, FunctionName, InvalidId, QueueName, StartId, TaskId, TaskKey};

/// The first token of every subject of one fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(QueueName);

impl Prefix {
    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self(QueueName::new("shoal").expect("a literal of allowed characters"))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Prefix {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        value.parse().map(Self)
    }
}

/// What an attempt writes log lines to; the last token of a log subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The workload's standard output.
    Stdout,
    /// The workload's standard error.
    Stderr,
    /// What Shoal itself says of this attempt: cuts, warnings.
    System,
}

impl LogSource {
    /// The subject token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::System => "system",
        }
    }

    /// Reads a subject token.
    pub fn from_token(token: &str) -> Option<Self> {
        [Self::Stdout, Self::Stderr, Self::System].into_iter().find(|s| s.as_str() == token)
    }
}

/// Every name on the server that belongs to one fleet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Names {
    prefix: Prefix,
}

impl Names {
    /// The names under `prefix`.
    pub fn new(prefix: Prefix) -> Self {
        Self { prefix }
    }

    /// The prefix itself.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    fn stream(&self, what: &str) -> String {
        format!("{}_{what}", self.prefix.as_str().to_uppercase())
    }

    fn bucket(&self, what: &str) -> String {
        format!("{}_{what}", self.prefix)
    }

    /// Work queue of tasks, one message per subject.
    pub fn tasks_stream(&self) -> String {
        self.stream("TASKS")
    }

    /// All tasks of all queues.
    pub fn tasks_subjects(&self) -> String {
        format!("{}.tasks.*.*", self.prefix)
    }

    /// All tasks of one queue: the filter of its consumer.
    pub fn queue_subjects(&self, queue: &QueueName) -> String {
        format!("{}.tasks.{queue}.*", self.prefix)
    }

    /// Where one task is published to.
    pub fn task_subject(&self, key: &TaskKey) -> String {
        [self.prefix.as_str(), ".tasks.", key.queue.as_str(), ".", key.id.as_str()].concat()
    }

    /// A task by its id alone, whatever its queue.
    pub fn task_subject_any_queue(&self, id: &TaskId) -> String {
        format!("{}.tasks.*.{id}", self.prefix)
    }

    /// The queue and id tokens of a task subject as they stand, valid or not.
    pub fn task_tokens<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".tasks.")?.split_once('.')
    }

    /// Bucket of task records.
    pub fn records_bucket(&self) -> String {
        self.bucket("tasks")
    }

    /// The stream below the bucket of task records.
    pub fn records_stream(&self) -> String {
        format!("KV_{}", self.records_bucket())
    }

    /// The subject of one task's record.
    pub fn record_subject(&self, key: &TaskKey) -> String {
        ["$KV.", self.prefix.as_str(), "_tasks.", key.queue.as_str(), ".", key.id.as_str()].concat()
    }

    /// The key of a record subject.
    pub fn record_key<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix("$KV.")?.strip_prefix(self.prefix.as_str())?.strip_prefix("_tasks.")
    }

    /// Core subject on which a task's record is told after each write.
    pub fn event_subject(&self, key: &TaskKey) -> String {
        [self.prefix.as_str(), ".events.tasks.", key.queue.as_str(), ".", key.id.as_str()].concat()
    }

    /// Core subject on which a superseded end is told.
    pub fn superseded_subject(&self, key: &TaskKey) -> String {
        format!("{}.events.superseded.{key}", self.prefix)
    }

    /// Core subject on which changed settings of a queue are told.
    pub fn queue_event_subject(&self, queue: &QueueName) -> String {
        format!("{}.events.queues.{queue}", self.prefix)
    }

    /// The same of every queue.
    pub fn queues_events(&self) -> String {
        format!("{}.events.queues.*", self.prefix)
    }

    /// Core request to whoever runs the task.
    pub fn cancel_subject(&self, key: &TaskKey) -> String {
        format!("{}.cancel.{key}", self.prefix)
    }

    /// Core request that a worker drain: `shoal.control.<agent>.drain`.
    pub fn drain_subject(&self, agent: &AgentId) -> String {
        format!("{}.control.{agent}.drain", self.prefix)
    }

    /// Core request that a worker take nothing new, or take tasks again: `shoal.control.<agent>.cordon`.
    pub fn cordon_subject(&self, agent: &AgentId) -> String {
        format!("{}.control.{agent}.cordon", self.prefix)
    }

    /// Core request whether a worker still holds a run: `shoal.control.<agent>.holds`.
    pub fn holds_subject(&self, agent: &AgentId) -> String {
        format!("{}.control.{agent}.holds", self.prefix)
    }

    /// Core request for what a worker holds on its engines, and to halt one: `shoal.control.<agent>.containers`.
    pub fn containers_subject(&self, agent: &AgentId) -> String {
        format!("{}.control.{agent}.containers", self.prefix)
    }

    /// Core request for a worker's record, fresh: `shoal.control.<agent>.info`.
    pub fn info_subject(&self, agent: &AgentId) -> String {
        format!("{}.control.{agent}.info", self.prefix)
    }

    /// The micro service of dispatchers: one name for the fleet, any of them answers.
    pub fn service(&self) -> String {
        self.prefix.to_string()
    }

    /// Where that service is asked to do `verb`: `shoal.api.<verb>`.
    pub fn api_subject(&self, verb: &str) -> String {
        format!("{}.api.{verb}", self.prefix)
    }

    /// The micro service of workers: one name, an instance a worker.
    pub fn worker_service(&self) -> String {
        format!("{}-worker", self.prefix)
    }

    /// Stream of log lines.
    pub fn logs_stream(&self) -> String {
        self.stream("LOGS")
    }

    /// All log lines of all tasks.
    pub fn logs_subjects(&self) -> String {
        format!("{}.logs.>", self.prefix)
    }

    /// All log lines of one task, whatever attempt.
    pub fn task_logs_subjects(&self, key: &TaskKey) -> String {
        format!("{}.logs.{key}.*.*", self.prefix)
    }

    /// Log lines of one start from one source.
    pub fn log_subject(&self, key: &TaskKey, start: &StartId, source: LogSource) -> String {
        format!("{}.logs.{key}.{start}.{}", self.prefix, source.as_str())
    }

    /// Start id and source of a log subject.
    pub fn log_tokens(&self, subject: &str) -> Option<(StartId, LogSource)> {
        let mut tokens = subject.rsplit('.');
        let source = LogSource::from_token(tokens.next()?)?;
        Some((StartId::new(tokens.next()?).ok()?, source))
    }

    /// Object store of artifacts and large results.
    pub fn artifacts_bucket(&self) -> String {
        self.bucket("artifacts")
    }

    /// Name of one artifact in that store.
    pub fn artifact_name(&self, key: &TaskKey, start: &StartId, path: &str) -> String {
        format!("{}/{}/{start}/{path}", key.queue, key.id)
    }

    /// KV bucket of the workspaces of agent jobs and who has them.
    pub fn slots_bucket(&self) -> String {
        self.bucket("slots")
    }

    /// Subject of one workspace's lease in that bucket.
    pub fn slot_subject(&self, agent: &AgentId, slot: u32) -> String {
        format!("$KV.{}.{agent}.{slot}", self.slots_bucket())
    }

    /// KV bucket of named playbooks.
    pub fn playbooks_bucket(&self) -> String {
        self.bucket("playbooks")
    }

    /// Subject of one named playbook in that bucket.
    pub fn playbook_subject(&self, name: &str) -> String {
        format!("$KV.{}.{name}", self.playbooks_bucket())
    }

    /// Stream of what running agents say and are told.
    pub fn talk_stream(&self) -> String {
        self.stream("AGENTS")
    }

    /// Everything in it.
    pub fn talk_subjects(&self) -> [String; 2] {
        [self.talk_in_subject("*"), self.talk_out_subject("*")]
    }

    /// What the agent `id` is told. Of a job, its task's id.
    pub fn talk_in_subject(&self, id: &str) -> String {
        format!("{}.agents.{id}.in", self.prefix)
    }

    /// What the agent `id` says.
    pub fn talk_out_subject(&self, id: &str) -> String {
        format!("{}.agents.{id}.out", self.prefix)
    }

    /// Object store of what is kept longer than other artifacts: `days` is 14 or 30.
    pub fn kept_bucket(&self, days: u32) -> String {
        self.bucket(&format!("artifacts_{days}d"))
    }

    /// Stream of dead letters.
    pub fn dead_stream(&self) -> String {
        self.stream("DEAD")
    }

    /// All dead letters. Deeper than two tokens, because a message on a malformed subject ends here too.
    pub fn dead_subjects(&self) -> String {
        format!("{}.dead.>", self.prefix)
    }

    /// Dead letters of one task.
    pub fn dead_subject(&self, key: &TaskKey) -> String {
        self.dead_subject_raw(key.queue.as_str(), key.id.as_str())
    }

    /// The same for tokens that are no valid ids.
    pub fn dead_subject_raw(&self, queue: &str, id: &str) -> String {
        format!("{}.dead.{queue}.{id}", self.prefix)
    }

    /// The queue and id tokens of a dead letter's subject.
    pub fn dead_tokens<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".dead.")?.split_once('.')
    }

    /// Bucket of agents: the registry.
    pub fn agents_bucket(&self) -> String {
        self.bucket("agents")
    }

    /// Every agent's record.
    pub fn agents_subjects(&self) -> String {
        format!("$KV.{}.*", self.agents_bucket())
    }

    /// The subject of one agent's record.
    pub fn agent_subject(&self, agent: &AgentId) -> String {
        format!("$KV.{}.{agent}", self.agents_bucket())
    }

    /// Bucket of queue settings.
    pub fn queues_bucket(&self) -> String {
        self.bucket("queues")
    }

    /// The subject of one queue's settings.
    pub fn queue_subject(&self, queue: &QueueName) -> String {
        format!("$KV.{}.{queue}", self.queues_bucket())
    }

    /// Bucket of function definitions.
    pub fn functions_bucket(&self) -> String {
        self.bucket("functions")
    }

    /// The stream below it.
    pub fn functions_stream(&self) -> String {
        format!("KV_{}", self.functions_bucket())
    }

    /// The subject of one function's definition.
    pub fn function_subject(&self, function: &FunctionName) -> String {
        format!("$KV.{}.{function}", self.functions_bucket())
    }

    /// Every definition.
    pub fn functions_subjects(&self) -> String {
        format!("$KV.{}.*", self.functions_bucket())
    }

    /// Bucket of instances.
    pub fn instances_bucket(&self) -> String {
        self.bucket("instances")
    }

    /// The stream below it.
    pub fn instances_stream(&self) -> String {
        format!("KV_{}", self.instances_bucket())
    }

    /// The subject of one instance's record.
    pub fn instance_subject(&self, function: &FunctionName, index: u32) -> String {
        format!("$KV.{}.{function}.{index}", self.instances_bucket())
    }

    /// Every instance of a function; of all functions without one.
    pub fn instances_subjects(&self, function: Option<&FunctionName>) -> String {
        format!("$KV.{}.{}.*", self.instances_bucket(), function.map_or("*", FunctionName::as_str))
    }

    /// Work queue of wishes for instances, one message per subject.
    pub fn ensure_stream(&self) -> String {
        self.stream("ENSURE")
    }

    /// All of them.
    pub fn ensure_subjects(&self) -> String {
        format!("{}.ensure.*.*.*", self.prefix)
    }

    /// Those of one pool: the filter of its consumer.
    pub fn pool_subjects(&self, pool: &QueueName) -> String {
        format!("{}.ensure.{pool}.*.*", self.prefix)
    }

    /// Where one instance is wished for.
    pub fn ensure_subject(&self, pool: &QueueName, function: &FunctionName, index: u32) -> String {
        format!("{}.ensure.{pool}.{function}.{index}", self.prefix)
    }

    /// Pool, function and index of such a wish, as they stand.
    pub fn ensure_tokens<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
        let mut tokens = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".ensure.")?.splitn(3, '.');
        Some((tokens.next()?, tokens.next()?, tokens.next()?))
    }

    /// Core subject on which an instance's record is told after each write; a removed one as an empty message.
    pub fn instance_event_subject(&self, function: &FunctionName, index: u32) -> String {
        format!("{}.events.instances.{function}.{index}", self.prefix)
    }

    /// All of those of one function; of all functions without one.
    pub fn instance_event_subjects(&self, function: Option<&FunctionName>) -> String {
        format!("{}.events.instances.{}.*", self.prefix, function.map_or("*", FunctionName::as_str))
    }

    /// Core subject on which a changed definition is told, by name; a deleted one as an empty message.
    pub fn function_event_subject(&self, function: &FunctionName) -> String {
        format!("{}.events.functions.{function}", self.prefix)
    }

    /// All of those.
    pub fn function_event_subjects(&self) -> String {
        format!("{}.events.functions.*", self.prefix)
    }

    /// Core request to call a function, answered by any worker that holds a warm instance.
    pub fn invoke_subject(&self, function: &FunctionName) -> String {
        format!("{}.invoke.{function}", self.prefix)
    }

    /// The same, to the one worker that is known to hold one: `shoal.invoke.<function>.<agent>`.
    pub fn invoke_at_subject(&self, function: &FunctionName, agent: &AgentId) -> String {
        format!("{}.invoke.{function}.{agent}", self.prefix)
    }

    /// Name of a response in the artifacts' store that is too large for a message.
    pub fn response_name(&self, function: &FunctionName, request_id: &str) -> String {
        format!("_functions/{function}/{request_id}")
    }

    /// Core subject of a NATS service that handles `call` workloads named `handler`.
    pub fn handler_subject(&self, handler: &str) -> String {
        format!("{}.handlers.{handler}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_design() {
        let names = Names::default();
        let key: TaskKey = "default.order-42".parse().unwrap();
        let start = StartId::new("k3v9x2").unwrap();
        assert_eq!(names.tasks_stream(), "SHOAL_TASKS");
        assert_eq!(names.tasks_subjects(), "shoal.tasks.*.*");
        assert_eq!(names.task_subject(&key), "shoal.tasks.default.order-42");
        assert_eq!(names.record_subject(&key), "$KV.shoal_tasks.default.order-42");
        assert_eq!(names.event_subject(&key), "shoal.events.tasks.default.order-42");
        assert_eq!(names.cancel_subject(&key), "shoal.cancel.default.order-42");
        assert_eq!(names.log_subject(&key, &start, LogSource::Stdout), "shoal.logs.default.order-42.k3v9x2.stdout");
        assert_eq!(names.dead_subject(&key), "shoal.dead.default.order-42");
        assert_eq!(names.artifact_name(&key, &start, "out/a.txt"), "default/order-42/k3v9x2/out/a.txt");
    }

    #[test]
    fn names_of_two_prefixes_share_nothing() {
        let (a, b) = (Names::default(), Names::new("other".parse().unwrap()));
        assert_ne!(a.tasks_stream(), b.tasks_stream());
        assert_ne!(a.tasks_subjects(), b.tasks_subjects());
        assert_ne!(a.records_bucket(), b.records_bucket());
        assert!(b.task_tokens(&a.task_subject(&"q.i".parse().unwrap())).is_none());
    }

    #[test]
    fn tokens_read_back_what_subjects_print() {
        let names = Names::default();
        let key: TaskKey = "q.a-1".parse().unwrap();
        assert_eq!(names.task_tokens(&names.task_subject(&key)), Some(("q", "a-1")));
        assert_eq!(names.record_key(&names.record_subject(&key)), Some("q.a-1"));
        assert_eq!(names.dead_tokens("shoal.dead.q.a:b"), Some(("q", "a:b")));
        let start = StartId::new("k3").unwrap();
        let subject = names.log_subject(&key, &start, LogSource::System);
        assert_eq!(names.log_tokens(&subject), Some((start, LogSource::System)));
    }
}
