//! What only one machine can tell: containers on its engine, work folders below its state folder. Whoever runs doctor
//! there names them; reading them is a [`HostSource`]'s, judging is done here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::{AgentId, AgentStatus, StartId};

use super::agents::Seen;
use super::{millis, time};

/// Younger than this, its worker may not have told of it yet.
const YOUNG: Duration = Duration::from_secs(15);

/// Something that a worker made on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct HostObject {
    /// `container`, `network`, `volume`, `work folder`.
    pub kind: &'static str,
    /// Its name, id or path.
    pub name: String,
    /// Which worker made it.
    pub worker: AgentId,
    /// Which boot of it, where that is known.
    pub instance: Option<String>,
    /// The task as `<queue>.<id>`, where that is known.
    pub task: Option<String>,
    /// The start that it is of; none for what outlives starts.
    pub start: Option<StartId>,
    /// How old it is, where that is known.
    pub age: Option<Duration>,
    /// How to remove it.
    pub remove: String,
}

/// What was read: objects of this fleet, and what was left out.
#[derive(Clone, Debug, Default)]
pub struct HostLook {
    /// Those of this fleet.
    pub objects: Vec<HostObject>,
    /// Of how many others nothing is said: another fleet's.
    pub others: usize,
}

/// Reads what is there, given when the tasks' stream was made, in milliseconds: that is what tells fleets apart.
pub type Read = Arc<dyn Fn(i64) -> BoxFuture<'static, Result<HostLook, String>> + Send + Sync>;

/// Something of this machine to look at.
#[derive(Clone)]
pub struct HostSource {
    /// For people: `the engine unix:///var/run/docker.sock`.
    pub name: String,
    /// Reads it.
    pub read: Read,
}

impl std::fmt::Debug for HostSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostSource").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What was there in both looks, judged by what their workers say. `starts`: of each worker that named all that it runs,
/// the starts of these.
pub(super) fn judge(
    first: &HostLook,
    second: &HostLook,
    agents: &Seen,
    starts: &BTreeMap<AgentId, Vec<StartId>>,
) -> Vec<Finding> {
    let stayed = second.objects.iter().filter(|it| first.objects.iter().any(|before| before.name == it.name));
    stayed.filter_map(|it| orphan(it, agents, starts).map(|why| tell(it, &why))).collect()
}

/// Why nobody owns it, if so.
fn orphan(it: &HostObject, agents: &Seen, starts: &BTreeMap<AgentId, Vec<StartId>>) -> Option<String> {
    if it.age.is_none_or(|age| age < YOUNG) {
        return None;
    }
    let worker = &it.worker;
    if let Some((before, now)) = agents.answered_twice(worker) {
        if it.instance.as_ref().is_some_and(|instance| *instance != now.instance) {
            return Some(format!("an earlier boot of {worker} made it"));
        }
        let start = it.start.as_ref()?;
        let named = |task: &String| before.running.contains(task) || now.running.contains(task);
        let whole = now.running.len() == now.running_count as usize;
        let owned = match (&it.task, starts.get(worker)) {
            (Some(task), _) => !whole || named(task),
            (None, Some(starts)) => starts.contains(start),
            // It did not name all that it runs.
            (None, None) => true,
        };
        return (!owned).then(|| format!("{worker} lives and does not run what it is of"));
    }
    match agents.status(worker) {
        None => Some(format!("{worker} is not in the registry")),
        Some(AgentStatus::Offline) => Some(format!("{worker} is offline")),
        // It beats but does not answer; that is told of it, and this is its own as far as anybody knows.
        Some(AgentStatus::Starting | AgentStatus::Ready | AgentStatus::Draining | AgentStatus::Newer(_)) => None,
    }
}

fn tell(it: &HostObject, why: &str) -> Finding {
    let code = match it.kind {
        "work folder" => FindingCode::WorkspaceWithoutOwner,
        _ => FindingCode::ContainerWithoutOwner,
    };
    let task = it.task.as_ref().map(|task| format!(" of task {task}")).unwrap_or_default();
    let mut finding = Finding::new(Severity::Warning, code, format!("{} {}", it.kind, it.name))
        .says(format!("nobody owns this {}{task}, {} old: {why}", it.kind, time(it.age.unwrap_or_default())))
        .seen("worker", it.worker.as_str())
        .seen("age_ms", millis(it.age.unwrap_or_default()))
        .next(format!("start {} here again, it sweeps its own; or: {}", it.worker, it.remove));
    if let Some(start) = &it.start {
        finding = finding.seen("start", start.as_str());
    }
    if let Some(task) = &it.task {
        finding = finding.seen("task", task.as_str());
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::doctor::agents::tests::seen;

    fn object(worker: &str, instance: &str, task: Option<&str>, age: u64) -> HostObject {
        HostObject {
            kind: if task.is_some() { "container" } else { "work folder" },
            name: "x".into(),
            worker: worker.parse().unwrap(),
            instance: task.map(|_| instance.to_owned()),
            task: task.map(str::to_owned),
            start: Some(StartId::new("s1").unwrap()),
            age: Some(Duration::from_secs(age)),
            remove: "rm".into(),
        }
    }

    fn orphans(it: HostObject, starts: &[&str]) -> bool {
        let worker: AgentId = "w".parse().unwrap();
        let starts = starts.iter().map(|start| StartId::new(start).unwrap()).collect();
        let look = HostLook { objects: vec![it], others: 0 };
        !judge(&look, &look, &seen("w", "i1", &["q.a"]), &[(worker, starts)].into()).is_empty()
    }

    #[test]
    fn what_a_living_worker_runs_is_its_own() {
        assert!(!orphans(object("w", "i1", Some("q.a"), 60), &["s1"]));
        assert!(!orphans(object("w", "i1", None, 60), &["s1"]));
        assert!(orphans(object("w", "i1", Some("q.b"), 60), &["s1"]), "it runs another");
        assert!(orphans(object("w", "i1", None, 60), &["s2"]), "another start");
        assert!(orphans(object("w", "i0", Some("q.a"), 60), &["s1"]), "an earlier boot");
        assert!(orphans(object("v", "i1", Some("q.a"), 60), &[]), "nobody knows it");
        assert!(!orphans(object("v", "i1", Some("q.a"), 5), &[]), "young");
    }

    #[test]
    fn what_came_or_went_between_the_looks_is_nobodys_business() {
        let look = HostLook { objects: vec![object("v", "i", None, 60)], others: 0 };
        let agents = seen("w", "i1", &[]);
        assert!(judge(&HostLook::default(), &look, &agents, &BTreeMap::new()).is_empty());
        assert!(judge(&look, &HostLook::default(), &agents, &BTreeMap::new()).is_empty());
        assert_eq!(judge(&look, &look, &agents, &BTreeMap::new()).len(), 1);
    }
}
