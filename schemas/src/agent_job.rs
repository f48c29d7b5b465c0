//! The workload `agent`: a repository and a description, to a tested branch.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, StartId, TaskId};
use crate::newer::More;
use crate::playbook::Playbook;
use crate::quantity::Decimal;
use crate::repository;
use crate::strict::InvalidTask;
use crate::task::check_env;
use crate::template::Template;
use crate::time::{HumanDuration, Timestamp};

/// Longest title: it is the subject line of the commit.
pub const TITLE_BYTES: usize = 200;
/// Longest description.
pub const DESCRIPTION_BYTES: usize = 32 << 10;
/// Longest acceptance criteria, all together.
pub const ACCEPTANCE_BYTES: usize = 16 << 10;
/// Most dependencies.
pub const DEPENDENCIES: usize = 64;
/// As much as an implementer is told at once: all of a job that the bounds above let pass, and 32 KiB besides.
pub const TOLD_BYTES: usize = DESCRIPTION_BYTES + ACCEPTANCE_BYTES + (32 << 10);
/// Turns of a model where the job says nothing.
pub const DEFAULT_TURNS: u32 = 50;
/// Path of the artifact that holds the change.
pub const PATCH: &str = "changes.patch";
/// Work in progress is kept after this many turns, unless the job says otherwise.
pub const DEFAULT_KEEP_EVERY: u32 = 3;

/// A coding-agent job: workspace, implementer, tests, and a branch of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentJob {
    /// The git remote: `https://…`, `ssh://…`, `user@host:path`, or an absolute path. Without a password or a query in it.
    pub repository: String,
    /// Branch to begin from; default the remote's own (`HEAD`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Branch to push; default `feature/task-{id}-{slug of the title}`. It must begin with one of the worker's prefixes,
    /// `feature/` unless set otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The specification that the task comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// One line: what is to be done. The commit's subject.
    pub title: String,
    /// What is to be done, in full; at most 32,768 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What must hold at the end; at most 16,384 bytes in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acceptance: Vec<String>,
    /// Tasks that this one builds on, at most 64. Told to the implementer; nothing waits for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<TaskId>,
    /// What a worker must have: the name of the queue, or a word of its label `skills`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skill: Option<String>,
    /// Who writes the change; default a model, the worker's.
    #[serde(default)]
    pub implementer: Implementer,
    /// What is run around it; default: the implementer, then the tests that the repository's instructions name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub playbook: Option<PlaybookSource>,
    /// What it may use up.
    #[serde(default, skip_serializing_if = "Budget::is_default")]
    pub budget: Budget,
    /// What becomes of a tested change.
    #[serde(default, skip_serializing_if = "PushPolicy::is_branch")]
    pub push: PushPolicy,
    /// Where its commands run.
    #[serde(default)]
    pub runtime: JobRuntime,
    /// How work in progress is kept.
    #[serde(default, skip_serializing_if = "KeepWork::is_default")]
    pub keep: KeepWork,
    /// Added to the environment of its commands.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Secrets of its commands: variable to the name under which the worker knows the secret. The worker must allow each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// Who writes the change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Implementer {
    /// A model behind an OpenAI-compatible endpoint, with Shoal's own tools.
    Model(ModelImplementer),
    /// Any agent program.
    Command(CommandImplementer),
}

impl Default for Implementer {
    fn default() -> Self {
        Self::Model(ModelImplementer::default())
    }
}

/// A model; endpoint and key are the worker's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelImplementer {
    /// Its name at the endpoint; default the worker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// For one request, the whole answer included; default 120s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Most tokens of one answer; default the endpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_output_tokens: Option<u32>,
    /// From 0 to 2; default the endpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Decimal>,
}

/// An agent program, run once in the workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CommandImplementer {
    /// Program and arguments. `{prompt_file}` and `{workspace}` stand for paths, `{prompt}` for the text.
    pub command: Vec<String>,
    /// How it is spoken to.
    #[serde(default, skip_serializing_if = "AgentProtocol::is_none")]
    pub protocol: AgentProtocol,
    /// For its run; default the job's deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
}

/// How an agent program is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentProtocol {
    /// Not at all: it reads its prompt and ends.
    #[default]
    None,
    /// The Agent Client Protocol over its stdin and stdout.
    Acp,
}

impl AgentProtocol {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Where a playbook comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlaybookSource {
    /// The task itself.
    Inline {
        /// It.
        playbook: Playbook,
    },
    /// A YAML file of the repository, as it is at the base.
    File {
        /// Its path below the repository's root.
        path: String,
    },
    /// The bucket `shoal_playbooks`.
    Named {
        /// Its key.
        name: String,
    },
}

/// What a job may use up, over all its attempts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Budget {
    /// Answers of the model; default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub turns: Option<u32>,
    /// Tokens in and out; default any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens: Option<u64>,
    /// Money, in the currency of the worker's prices, as `"1.50"`; the worker must know the model's price. Default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Decimal>,
    /// For implementing; the task's `timeout` bounds the whole run. Default the task's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<HumanDuration>,
}

impl Budget {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a tested change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PushPolicy {
    /// It is pushed to the job's own branch, and kept as a patch.
    #[default]
    Branch,
    /// It is kept as a patch alone.
    Patch,
}

impl PushPolicy {
    fn is_branch(&self) -> bool {
        *self == Self::Branch
    }
}

/// Where a job's commands run. The worker must allow it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobRuntime {
    /// As processes of the worker's machine.
    #[default]
    Process,
    /// Each in a container of a Docker engine, with the workspace in it.
    Docker(JobContainer),
}

impl JobRuntime {
    /// The worker's name for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker(_) => "docker",
        }
    }
}

/// The container of a job's commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobContainer {
    /// Image reference; it brings the tools.
    pub image: String,
    /// As in a `container` workload; default the worker's, which is `none` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// As in a `container` workload; default the worker's own user and group, so that both can write to the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// How work in progress is kept, so that a next attempt goes on from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct KeepWork {
    /// After so many turns of the model, and always at the end of an attempt; default 3.
    #[serde(skip_serializing_if = "is_default_every")]
    #[schemars(range(min = 1))]
    pub every_turns: u32,
    /// Also as `refs/shoal/wip/<task>` on the remote, not only as an object of the fleet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remote: bool,
}

fn is_default_every(every: &u32) -> bool {
    *every == DEFAULT_KEEP_EVERY
}

impl Default for KeepWork {
    fn default() -> Self {
        Self { every_turns: DEFAULT_KEEP_EVERY, remote: false }
    }
}

impl KeepWork {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Who has a workspace: `shoal_slots/<worker>.<slot>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SlotLease {
    /// The task, as `<queue>.<id>`.
    pub task: String,
    /// Which start of it.
    pub start: StartId,
    /// The worker on whose disk it is.
    pub worker: AgentId,
    /// Which boot of that worker.
    pub instance: String,
    /// The repository that is checked out.
    pub repository: String,
    /// Since when.
    pub since: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub more: More,
}

impl AgentJob {
    /// A job of nothing but a repository and a title.
    pub fn new(repository: impl Into<String>, title: impl Into<String>) -> Self {
        Self {
            repository: repository.into(),
            base: None,
            branch: None,
            spec: None,
            title: title.into(),
            description: String::new(),
            acceptance: Vec::new(),
            dependencies: Vec::new(),
            skill: None,
            implementer: Implementer::default(),
            playbook: None,
            budget: Budget::default(),
            push: PushPolicy::default(),
            runtime: JobRuntime::default(),
            keep: KeepWork::default(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        }
    }

    /// The rules between fields that types do not hold.
    pub(crate) fn check(&self) -> Result<(), InvalidTask> {
        let wrong = |field: &str, value: &str, allowed: &str| {
            Err(InvalidTask::value(&format!("workload.{field}"), value, allowed))
        };
        repository::check(&self.repository)?;
        for (field, name) in [("base", &self.base), ("branch", &self.branch)] {
            if let Some(name) = name.as_ref().filter(|name| !is_branch_name(name)) {
                return wrong(field, name, "the name of a git branch");
            }
        }
        let line = |text: &str| !text.trim().is_empty() && !text.chars().any(char::is_control);
        let title = Some(&self.title);
        for (field, text) in [("title", title), ("spec", self.spec.as_ref()), ("skill", self.skill.as_ref())] {
            let Some(text) = text else { continue };
            if text.len() > TITLE_BYTES {
                let problem = format!("it has {} bytes, and at most {TITLE_BYTES} are allowed", text.len());
                return Err(InvalidTask { field: format!("workload.{field}"), problem });
            }
            if !line(text) {
                return wrong(field, text, "one line of at most 200 bytes");
            }
        }
        self.check_told()?;
        match &self.implementer {
            Implementer::Model(model) => {
                if let Some(name) = model.model.as_ref().filter(|name| !line(name)) {
                    return wrong("implementer.model", name, "the name of a model");
                }
                if model.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
                    return wrong("implementer.timeout", "0", "more than zero");
                }
                if model.max_output_tokens == Some(0) {
                    return wrong("implementer.max_output_tokens", "0", "more than zero");
                }
                if let Some(temperature) = model.temperature.filter(|decimal| decimal.micros() > 2_000_000) {
                    return wrong("implementer.temperature", &temperature.to_string(), "0 to 2");
                }
            }
            Implementer::Command(program) => {
                if program.command.first().is_none_or(String::is_empty) {
                    return wrong("implementer.command", "[]", "a program and its arguments");
                }
                if program.command.iter().any(|word| word.contains('\0')) {
                    return wrong("implementer.command", "", "arguments without a zero byte");
                }
                Template::of(program).map_err(|error| InvalidTask {
                    field: "workload.implementer.command".to_owned(),
                    problem: error.to_string(),
                })?;
                if program.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
                    return wrong("implementer.timeout", "0", "more than zero");
                }
            }
        }
        match &self.playbook {
            Some(PlaybookSource::Inline { playbook }) => playbook.check("workload.playbook.playbook")?,
            Some(PlaybookSource::File { path }) if !is_below(path) => {
                return wrong("playbook.path", path, "a path below the repository's root");
            }
            Some(PlaybookSource::Named { name }) if !is_name(name) => {
                return wrong("playbook.name", name, "A-Z a-z 0-9 _ - and at most 128 of them");
            }
            Some(PlaybookSource::File { .. } | PlaybookSource::Named { .. }) | None => {}
        }
        let Budget { turns, tokens, cost, time } = &self.budget;
        for (field, is_zero) in [
            ("budget.turns", *turns == Some(0)),
            ("budget.tokens", *tokens == Some(0)),
            ("budget.cost", cost.is_some_and(|cost| cost.micros() == 0)),
            ("budget.time", time.is_some_and(|time| time.0.is_zero())),
        ] {
            if is_zero {
                return wrong(field, "0", "more than zero");
            }
        }
        if self.keep.every_turns == 0 {
            return wrong("keep.every_turns", "0", "more than zero");
        }
        if let JobRuntime::Docker(container) = &self.runtime {
            self.container(container).check("workload.runtime")?;
        }
        check_env("workload.env", &self.env)?;
        check_env("workload.secrets", &self.secrets)?;
        if let Some(name) = self.secrets.keys().find(|name| self.env.contains_key(*name)) {
            return wrong("secrets", name, "a variable that `env` does not set too");
        }
        Ok(())
    }

    /// What becomes the prompt is told whole or refused, never cut.
    fn check_told(&self) -> Result<(), InvalidTask> {
        let wrong = |field: &str, problem: String| Err(InvalidTask { field: format!("workload.{field}"), problem });
        let too_long = |field: &str, bytes: usize, most: usize| {
            let what = "put what is longer into a file of the repository, and name that here";
            wrong(field, format!("it has {bytes} bytes, and at most {most} are allowed; {what}"))
        };
        if self.description.contains('\0') {
            return wrong("description", "a zero byte is not allowed in it".to_owned());
        }
        if self.description.len() > DESCRIPTION_BYTES {
            return too_long("description", self.description.len(), DESCRIPTION_BYTES);
        }
        if let Some(at) = self.acceptance.iter().position(|text| text.contains('\0')) {
            return wrong(&format!("acceptance[{at}]"), "a zero byte is not allowed in it".to_owned());
        }
        // Each is a line of a list.
        let bytes = self.acceptance.iter().map(|text| text.len() + 3).sum();
        if bytes > ACCEPTANCE_BYTES {
            return too_long("acceptance", bytes, ACCEPTANCE_BYTES);
        }
        if self.dependencies.len() > DEPENDENCIES {
            let problem =
                format!("{} tasks are named, and at most {DEPENDENCIES} are allowed", self.dependencies.len());
            return wrong("dependencies", problem);
        }
        Ok(())
    }

    fn container(&self, container: &JobContainer) -> crate::task::Container {
        crate::task::Container {
            network: container.network.clone(),
            user: container.user.clone(),
            ..crate::task::Container::new(&container.image)
        }
    }

    /// The branch that is pushed.
    pub fn branch_of(&self, id: &TaskId) -> String {
        self.branch.clone().unwrap_or_else(|| match slug(&self.title) {
            slug if slug.is_empty() => format!("feature/task-{id}"),
            slug => format!("feature/task-{id}-{slug}"),
        })
    }
}

/// A title as part of a branch's name: lower case letters and digits, `-` between words, at most 48 bytes.
pub fn slug(title: &str) -> String {
    let mut slug = String::new();
    for letter in title.chars() {
        match letter.to_ascii_lowercase() {
            letter if letter.is_ascii_alphanumeric() => slug.push(letter),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
    }
    slug.truncate(48);
    slug.trim_end_matches('-').to_owned()
}

/// Whether git takes it for a branch: the rules of `git check-ref-format`, and no `-` in front.
pub fn is_branch_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_control() || " ~^:?*[\\\x7f".contains(c);
    !name.is_empty()
        && name.len() <= 200
        && name != "@"
        && name != "HEAD"
        && !name.starts_with(['-', '/'])
        && !name.ends_with(['/', '.'])
        && !name.contains("..")
        && !name.contains("//")
        && !name.contains("@{")
        && !name.chars().any(forbidden)
        && name.split('/').all(|part| !part.starts_with('.') && !part.ends_with(".lock"))
}

fn is_below(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1_024
        && !path.starts_with('/')
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != ".." && part != "." && part != ".git")
}

/// Whether it may be the key of a named playbook.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_named_after_id_and_title() {
        for (title, branch) in [
            ("Fix the parser", "feature/task-t1-fix-the-parser"),
            ("  Größe & “Maß”!! ", "feature/task-t1-gr-e-ma"),
            ("🎉", "feature/task-t1"),
        ] {
            let job: AgentJob =
                serde_json::from_value(serde_json::json!({"repository": "/r", "title": title})).unwrap();
            let branch_of = job.branch_of(&TaskId::new("t1").unwrap());
            assert_eq!(branch_of, branch);
            assert!(is_branch_name(&branch_of));
        }
        assert!(slug(&"long word ".repeat(30)).len() <= 48);
    }

    #[test]
    fn what_git_takes_for_no_branch_is_refused() {
        for good in ["main", "feature/a", "release-1.2", "a/b/c"] {
            assert!(is_branch_name(good), "{good}");
        }
        for bad in [
            "", "-f", "a..b", "a//b", "/a", "a/", "a.", ".a", "a/.b", "a.lock", "a b", "a~1", "a^", "a:b", "@",
            "a@{1}", "HEAD",
        ] {
            assert!(!is_branch_name(bad), "{bad}");
        }
    }
}
