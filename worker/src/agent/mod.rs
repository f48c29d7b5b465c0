//! Agent jobs on this worker. The craft is the crate `agents`; here it meets the fleet.
//!
//! ```text
//! attempt -- run -+- slot, fetch, rebase, branch   agents::workspace    told of in `shoal_slots` (lease)
//!                 +- implement, test               agents::playbook     commands in a runtime (shell)
//!                 +- commit, push                  agents::workspace    fenced by the record
//!                 +- report                        artifacts, what is kept for a next attempt (keep)
//!                 +- line                          `shoal.agents.<id>.out` and `.in`; the agent protocol (endpoint)
//! ```

mod attempt;
mod endpoint;
mod implementing;
mod keep;
mod keeper;
mod lease;
mod ledger;
mod line;
mod outside;
mod plan;
mod push;
pub mod run;
pub mod settings;
mod shell;
mod standing;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use agents::git::Transport;
use agents::secret::{Mask, Secret};
use agents::workspace::Workspaces;
use schemas::agent::{RuntimeInfo, SKILLS, is_skilled};
use schemas::agent_job::AgentJob;
use schemas::{AgentId, Code, TaskError};

use crate::config::Config;
use crate::worker::Worker;

/// What a worker has for agent jobs.
pub struct Agents {
    workspaces: Workspaces,
    outside: outside::Services,
    /// Transcripts and logs of running jobs, one folder a start.
    jobs: PathBuf,
    /// Of the git found.
    version: String,
}

/// Why a worker cannot run agent jobs.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// No git, or no folder to work in.
    #[error(transparent)]
    Workspaces(#[from] agents::workspace::WorkspaceError),
    /// No folder for what running jobs write.
    #[error("{} cannot be made", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A REST service that cannot be used.
    #[error("{0}")]
    Outside(String),
    /// A secret that would hide too much.
    #[error(transparent)]
    Secret(#[from] agents::secret::TooShort),
}

impl Agents {
    /// Opens the workspaces of this worker, and clears what an earlier boot left.
    pub async fn open(config: &Config, id: &AgentId) -> Result<Self, AgentsError> {
        let settings = &config.agents;
        // Told at the start, not at the first job.
        mask_of(config)?;
        let outside = outside::Services::open(&settings.outside).map_err(AgentsError::Outside)?;
        let root = config.state_dir.join("agents").join(id.as_str());
        let transports: BTreeSet<Transport> = match &settings.repositories {
            None => [Transport::Https, Transport::Ssh].into(),
            Some(_) => [Transport::Https, Transport::Http, Transport::Ssh, Transport::File].into(),
        };
        let git = agents::git::Settings {
            transports,
            ssh_command: settings.git.ssh_command.clone(),
            env: settings.git.env.clone(),
            ..agents::git::Settings::default()
        };
        let places = agents::workspace::Settings {
            slots: config.slots,
            disk_bytes: settings.disk.0,
            prefixes: settings.branch_prefixes.clone(),
            author: author(&settings.git.author),
            ..agents::workspace::Settings::default()
        };
        let workspaces = Workspaces::open(&root, places, git).await?;
        workspaces.sweep().await?;
        let jobs = root.join("jobs");
        let _ = std::fs::remove_dir_all(&jobs);
        std::fs::create_dir_all(&jobs).map_err(|source| AgentsError::Folder { path: jobs.clone(), source })?;
        let version = workspaces.git_version();
        Ok(Self { workspaces, outside, jobs, version })
    }

    /// For the registry.
    pub fn capabilities(&self) -> RuntimeInfo {
        RuntimeInfo { version: Some(format!("git {}", self.version)), ..RuntimeInfo::default() }
    }

    /// What this worker lacks for a job, as far as another may have it.
    pub fn hindrance(&self, worker: &Worker, job: &AgentJob) -> Option<TaskError> {
        let runtime = worker.runtimes.get(job.runtime.name());
        if runtime.is_some_and(|runtime| !runtime.shares_folders()) {
            let message = format!(
                "the worker {} cannot show its workspaces to containers: its engine is elsewhere, or it is not root",
                worker.id
            );
            return Some(TaskError::new(Code::RuntimeNotAllowed, message));
        }
        let skill = job.skill.as_ref()?;
        let queues = worker.queues.iter().map(|queue| &queue.name);
        if is_skilled(skill, queues, worker.config.labels.get(SKILLS)) {
            return None;
        }
        let message = format!(
            "the worker {} has no skill `{skill}`: it is neither the name of one of its queues nor in its label `{SKILLS}`",
            worker.id
        );
        Some(TaskError::new(Code::RuntimeNotAllowed, message))
    }

    fn folder(&self, start: &schemas::StartId) -> PathBuf {
        self.jobs.join(start.as_str())
    }
}

/// Every secret of the worker: what it has for git and models, and what jobs may have.
fn mask_of(config: &Config) -> Result<Mask, agents::secret::TooShort> {
    let settings = &config.agents;
    let own = [("the git token", &settings.git.token), ("the model's key", &settings.model.key)];
    let outside = &settings.outside;
    let services = [
        ("the task registry's token", &outside.task_registry),
        ("the repository pool's token", &outside.repo_pool),
        ("the artifact store's token", &outside.artifact_store),
    ];
    let services = services.into_iter().filter_map(|(name, service)| Some((name, service.as_ref()?.token.as_deref()?)));
    let own = own.into_iter().filter_map(|(name, secret)| Some((name, secret.as_deref()?))).chain(services);
    let named = settings.secrets.iter().map(|(name, secret): (&String, &Arc<Secret>)| (name.as_str(), &**secret));
    let proxies = settings.git.proxy_logins();
    Mask::new(own.chain(named).chain(proxies.iter().map(|login| ("the login of a proxy", login))))
}

/// `Name <mail>`.
fn author(text: &str) -> agents::git::Author {
    let (name, mail) = text.rsplit_once('<').unwrap_or((text, "shoal@localhost"));
    agents::git::Author { name: name.trim().to_owned(), email: mail.trim_end_matches('>').trim().to_owned() }
}
