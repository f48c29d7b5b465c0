//! What a workload needs of a worker, as far as the registry shows it: its kind, and for agent jobs the runtime of their
//! commands, and a skill.

use std::fmt;

use crate::{AgentRecord, Workload};

/// What one workload needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Need {
    /// The word of its kind.
    pub kind: &'static str,
    /// The runtime of an agent job's commands.
    pub runtime: Option<&'static str>,
    /// What an agent job's worker must be skilled in.
    pub skill: Option<String>,
}

impl Need {
    /// Of this workload.
    pub fn of(workload: &Workload) -> Self {
        let (runtime, skill) = match workload {
            Workload::Agent(job) => (Some(job.runtime.name()), job.skill.clone()),
            Workload::Call(_) | Workload::Invoke(_) | Workload::Process(_) | Workload::Container(_) => (None, None),
        };
        Self { kind: workload.kind(), runtime, skill }
    }

    /// Whether this worker has all of it now.
    pub fn is_met(&self, agent: &AgentRecord) -> bool {
        agent.runs(self.kind)
            && self.runtime.is_none_or(|runtime| agent.runs_in(runtime))
            && self.skill.as_ref().is_none_or(|skill| agent.is_skilled(skill))
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
