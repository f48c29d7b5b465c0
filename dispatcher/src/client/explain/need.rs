//! What a task needs of a worker: its kind, and for agent jobs the runtime of their commands, and a skill.

use schemas::agent::{CONTAINER_RUNTIMES, RuntimeInfo, SKILLS};
use schemas::{AgentRecord, Task, Workload};

/// What one task needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    kind: &'static str,
    runtime: Option<&'static str>,
    skill: Option<String>,
}

/// Why a worker does not have it.
pub(super) enum Lack {
    /// It would, but the engine is down.
    Down(String),
    /// It was not made for that.
    Incapable(String),
}

impl Need {
    /// Of this task.
    pub(super) fn of(task: &Task) -> Self {
        let kind = task.workload.kind();
        match &task.workload {
            Workload::Agent(job) => Self { kind, runtime: Some(job.runtime.name()), skill: job.skill.clone() },
            Workload::Call(_) | Workload::Process(_) | Workload::Container(_) | Workload::Invoke(_) => {
                Self { kind, runtime: None, skill: None }
            }
        }
    }

    /// What this worker does not have of it.
    pub(super) fn lacks(&self, record: &AgentRecord) -> Option<Lack> {
        if !record.runs(self.kind) {
            return Some(without(record, &runtimes(self.kind)));
        }
        if let Some(runtime) = self.runtime.filter(|runtime| !record.runs_in(runtime)) {
            return Some(without(record, &[runtime]));
        }
        let skill = self.skill.as_ref().filter(|skill| !record.is_skilled(skill))?;
        Some(Lack::Incapable(format!("has no skill `{skill}`")))
    }

    /// What a worker is started with to have it.
    pub(super) fn flags(&self) -> String {
        let mut flags = format!(" --runtimes {}", runtimes(self.kind)[0]);
        if let Some(runtime) = self.runtime {
            flags.push_str(&format!(",{runtime}"));
        }
        if let Some(skill) = &self.skill {
            flags.push_str(&format!(" --label {SKILLS}={skill}"));
        }
        flags
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` workloads", self.kind)?;
        if let Some(runtime) = self.runtime {
            write!(f, " in the runtime `{runtime}`")?;
        }
        match &self.skill {
            Some(skill) => write!(f, " with the skill `{skill}`"),
            None => Ok(()),
        }
    }
}

/// A worker without one that works of these runtimes.
fn without(record: &AgentRecord, names: &[&str]) -> Lack {
    let there = record.runtimes.iter().filter(|(name, _)| names.contains(&name.as_str()));
    let down =
        |(name, runtime): (&String, &RuntimeInfo)| Some(format!("`{name}` is down: {}", runtime.reason.as_ref()?));
    let down: Vec<String> = there.filter_map(down).collect();
    if !down.is_empty() {
        return Lack::Down(down.join(", "));
    }
    let runs: Vec<&str> = record.runtimes.keys().map(String::as_str).collect();
    Lack::Incapable(format!("runs {}", if runs.is_empty() { "nothing".to_owned() } else { runs.join(", ") }))
}

/// The runtimes that run this kind, the first one first.
fn runtimes(kind: &'static str) -> Vec<&'static str> {
    match kind {
        "container" => CONTAINER_RUNTIMES.to_vec(),
        "invoke" => vec!["call"],
        kind => vec![kind],
    }
}
