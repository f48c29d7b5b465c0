//! What a worker lacks of what a task needs, in words, and how one is started that has it.

use schemas::AgentRecord;
use schemas::agent::{CONTAINER_RUNTIMES, RuntimeInfo, SKILLS};
use schemas::need::Need;

/// Why a worker does not have it.
pub(super) enum Lack {
    /// It would, but the engine is down.
    Down(String),
    /// It was not made for that.
    Incapable(String),
}

/// What this worker does not have of it.
pub(super) fn lack(need: &Need, record: &AgentRecord) -> Option<Lack> {
    if !record.runs(need.kind) {
        return Some(without(record, &runtimes(need.kind)));
    }
    if let Some(runtime) = need.runtime.filter(|runtime| !record.runs_in(runtime)) {
        return Some(without(record, &[runtime]));
    }
    let skill = need.skill.as_ref().filter(|skill| !record.is_skilled(skill))?;
    Some(Lack::Incapable(format!("has no skill `{skill}`")))
}

/// What a worker is started with to have all of it.
pub(super) fn flags(need: &Need) -> String {
    let mut flags = format!(" --runtimes {}", runtimes(need.kind)[0]);
    if let Some(runtime) = need.runtime {
        flags.push_str(&format!(",{runtime}"));
    }
    if let Some(skill) = &need.skill {
        flags.push_str(&format!(" --label {SKILLS}={skill}"));
    }
    flags
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
