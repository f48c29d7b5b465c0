//! Whose an object on the engine is: labels tell, names only help people.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::{AgentId, StartId};

use crate::runtime::Job;
use crate::runtime::instances::Launch;

/// The fleet: what tells it from every other one.
pub const FLEET: &str = "shoal.fleet";
/// The worker's id.
pub const WORKER: &str = "shoal.worker";
/// Which life of that worker.
pub const INSTANCE: &str = "shoal.instance";
/// The task's queue.
pub const QUEUE: &str = "shoal.queue";
/// The task's id.
pub const TASK: &str = "shoal.task";
/// Which attempt, from 1.
pub const ATTEMPT: &str = "shoal.attempt";
/// The start id.
pub const START: &str = "shoal.start";
/// For people: `<queue>.<id>`, uncut.
pub const NAME: &str = "shoal.name";
/// What it is for: [`TASK_KIND`], or a word of the runtime's own.
pub const KIND: &str = "shoal.kind";
/// `true` where it may be killed once nobody keeps it alive.
pub const MORTAL: &str = "shoal.mortal";

/// The function of an instance.
pub const FUNCTION: &str = "shoal.function";
/// Which of the function's instances.
pub const INDEX: &str = "shoal.index";
/// What the instance was made of: [`schemas::Function::spec`].
pub const SPEC: &str = "shoal.spec";

/// [`KIND`] of what runs a task.
pub const TASK_KIND: &str = "task";
/// [`KIND`] of an instance of a function. It is of no life of the worker: guard, sweeps and the worker's end leave it alone.
pub const FUNCTION_KIND: &str = "function";

/// Longest name that is made; engines take more, host names and people do not.
const LONGEST_NAME: usize = 128;

/// Whose objects are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The fleet.
    pub fleet: String,
    /// The worker, the same over restarts.
    pub worker: AgentId,
    /// This life of it.
    pub instance: String,
}

impl Owner {
    /// The filter of a list for what this worker made, in this life or an earlier one.
    pub fn filters(&self) -> HashMap<String, Vec<String>> {
        let labels = vec![format!("{FLEET}={}", self.fleet), format!("{WORKER}={}", self.worker)];
        HashMap::from([("label".to_owned(), labels)])
    }

    /// Whether this worker made it, in this life or an earlier one. Engines filter well, but removing is for good.
    pub fn owns(&self, labels: &HashMap<String, String>) -> bool {
        labels.get(FLEET) == Some(&self.fleet) && labels.get(WORKER).is_some_and(|w| w == self.worker.as_str())
    }

    /// The same for instances of functions alone.
    pub fn instance_filters(&self) -> HashMap<String, Vec<String>> {
        let mut filters = self.filters();
        filters.entry("label".to_owned()).or_default().push(format!("{KIND}={FUNCTION_KIND}"));
        filters
    }

    /// Whether it is an instance of a function that this worker made.
    pub fn owns_instance(&self, labels: &HashMap<String, String>) -> bool {
        self.owns(labels) && labels.get(KIND).is_some_and(|kind| kind == FUNCTION_KIND)
    }

    /// Whether it is of this life.
    pub fn is_of_this_life(&self, labels: &HashMap<String, String>) -> bool {
        labels.get(INSTANCE) == Some(&self.instance)
    }

    /// Whether nobody owns an object with these labels, made at `created` (seconds since 1970). Pure but for the clock.
    pub(in crate::runtime) fn is_left(
        &self,
        live: &(dyn Fn(&StartId) -> bool + Sync),
        grace: Duration,
        labels: &HashMap<String, String>,
        created: Option<i64>,
    ) -> bool {
        if !self.owns(labels) || self.owns_instance(labels) {
            return false;
        }
        if !self.is_of_this_life(labels) {
            return true;
        }
        let is_task = labels.get(KIND).is_some_and(|kind| kind == TASK_KIND);
        let start = labels.get(START).and_then(|start| StartId::new(start).ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Of what tells no age, nothing is known to be old.
        let age = created
            .and_then(|created| u64::try_from(created).ok())
            .map(|made| now.saturating_sub(Duration::from_secs(made)));
        is_task && !start.is_some_and(|start| live(&start)) && age.is_some_and(|age| age >= grace)
    }
}

/// Labels of a task's container. `mortal`: it may be killed once nobody keeps it alive.
pub fn task_labels(owner: &Owner, job: &Job, mortal: bool) -> HashMap<String, String> {
    let mut labels = own_labels(owner, TASK_KIND);
    let of_job = [
        (QUEUE, job.key.queue.to_string()),
        (TASK, job.key.id.to_string()),
        (ATTEMPT, job.attempt.to_string()),
        (START, job.start.to_string()),
        (NAME, job.key.to_string()),
        (MORTAL, mortal.to_string()),
    ];
    labels.extend(of_job.map(|(name, value)| (name.to_owned(), value)));
    labels
}

/// Labels of a function's instance. It has no [`INSTANCE`]: it outlives the life that made it.
pub fn instance_labels(owner: &Owner, launch: &Launch) -> HashMap<String, String> {
    let mut labels = own_labels(owner, FUNCTION_KIND);
    labels.remove(INSTANCE);
    let of_launch = [
        (FUNCTION, launch.function.to_string()),
        (INDEX, launch.index.to_string()),
        (START, launch.start.to_string()),
        (SPEC, launch.spec.clone()),
        (NAME, format!("{}.{}", launch.function, launch.index)),
        (MORTAL, false.to_string()),
    ];
    labels.extend(of_launch.map(|(name, value)| (name.to_owned(), value)));
    labels
}

/// Labels of anything else that the worker makes.
pub fn own_labels(owner: &Owner, kind: &str) -> HashMap<String, String> {
    let labels = [
        (FLEET, owner.fleet.clone()),
        (WORKER, owner.worker.to_string()),
        (INSTANCE, owner.instance.clone()),
        (KIND, kind.to_owned()),
    ];
    HashMap::from(labels.map(|(name, value)| (name.to_owned(), value)))
}

/// `shoal-<queue>-<id>-<start>`: by the engine's rules, and unique by the start; a long id is cut.
pub fn container_name(job: &Job) -> String {
    let start = clean(job.start.as_str());
    let mut name = clean(&format!("shoal-{}-{}", job.key.queue, job.key.id));
    // All of it is ASCII by now.
    name.truncate(LONGEST_NAME - 1 - start.len());
    format!("{name}-{start}")
}

/// `shoal-<function>-<index>-<start>`.
pub fn instance_name(launch: &Launch) -> String {
    // Of bounded length, each of them.
    clean(&format!("shoal-{}-{}-{}", launch.function, launch.index, launch.start))
}

/// Only what engines take in names, whatever ids may one day hold.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Notes;
    use crate::runtime::Bounds;
    use schemas::{Limit, QueueName, TaskId, TaskKey, Workload};

    fn job(queue: &str, id: &str, start: &str) -> Job {
        Job {
            start: StartId::new(start).unwrap(),
            key: TaskKey::new(QueueName::new(queue).unwrap(), TaskId::new(id).unwrap()),
            attempt: 2,
            workload: Workload::Container(schemas::task::Container::new("a")),
            env: Default::default(),
            folder: Default::default(),
            result_file: Default::default(),
            artifacts: Vec::new(),
            notes: Notes::nowhere(),
            limits: Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited },
            alive_until: None,
            binds: Vec::new(),
        }
    }

    fn owner() -> Owner {
        Owner { fleet: "shoal-1".into(), worker: AgentId::new("w").unwrap(), instance: "i".into() }
    }

    #[test]
    fn a_name_tells_the_task_and_is_unique_by_the_start() {
        assert_eq!(container_name(&job("mail", "A_b-1", "s1")), "shoal-mail-A_b-1-s1");
        let longest = container_name(&job(&"q".repeat(64), &"i".repeat(128), &"s".repeat(32)));
        assert_eq!(longest.len(), 128);
        assert!(longest.ends_with(&format!("-{}", "s".repeat(32))), "{longest}");
    }

    #[test]
    fn what_engines_do_not_take_in_names_is_replaced() {
        assert_eq!(clean("a/b c:ü.d"), "a_b_c__.d");
    }

    #[test]
    fn labels_tell_the_whole_task() {
        let labels = task_labels(&owner(), &job("mail", "A", "s1"), true);
        let of = |name: &str| labels[name].as_str();
        assert_eq!([of(FLEET), of(WORKER), of(INSTANCE), of(KIND)], ["shoal-1", "w", "i", "task"]);
        let expected = ["mail", "A", "2", "s1", "mail.A", "true"];
        assert_eq!([of(QUEUE), of(TASK), of(ATTEMPT), of(START), of(NAME), of(MORTAL)], expected);
    }

    #[test]
    fn an_instance_is_of_its_worker_but_of_no_life_of_it() {
        let launch = Launch {
            start: StartId::new("s1").unwrap(),
            function: schemas::FunctionName::new("f".repeat(64)).unwrap(),
            index: u32::MAX,
            spec: "abc".to_owned(),
            container: schemas::task::Container::new("a"),
            env: Vec::new(),
            limits: Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited },
            notes: Notes::nowhere(),
        };
        let labels = instance_labels(&owner(), &launch);
        let of = |name: &str| labels[name].as_str();
        assert_eq!([of(FLEET), of(WORKER), of(KIND), of(START)], ["shoal-1", "w", "function", "s1"]);
        assert_eq!([of(FUNCTION), of(INDEX), of(SPEC), of(MORTAL)], [&*"f".repeat(64), "4294967295", "abc", "false"]);
        assert!(owner().owns_instance(&labels) && !owner().is_of_this_life(&labels));
        assert!(!owner().owns_instance(&own_labels(&owner(), TASK_KIND)));
        assert_eq!(instance_name(&launch), format!("shoal-{}-4294967295-s1", "f".repeat(64)));
    }

    #[test]
    fn only_the_same_fleet_and_worker_own_it() {
        let mine = own_labels(&owner(), "holder");
        assert!(owner().owns(&mine) && owner().is_of_this_life(&mine));
        let next = Owner { instance: "j".into(), ..owner() };
        assert!(next.owns(&mine) && !next.is_of_this_life(&mine));
        assert!(!Owner { fleet: "shoal-2".into(), ..owner() }.owns(&mine));
        assert!(!Owner { worker: AgentId::new("v").unwrap(), ..owner() }.owns(&mine));
        assert!(!owner().owns(&HashMap::new()));
    }
}
