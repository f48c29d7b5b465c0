//! What a worker allows agent jobs, and what it has for them. Secrets are the worker's; a job names them at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agents::model::Prices;
use agents::secret::{LEAST_BYTES, Secret};
use globset::GlobBuilder;
use schemas::agent_job::{AgentJob, Implementer};
use schemas::{Bytes, Code, TaskError};

/// The endpoint where a worker is told of none.
pub const DEFAULT_ENDPOINT: &str = "https://api.openai.com/v1";

/// How and what a worker runs for agent jobs.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Globs of remotes. `None`: every remote that is no path of this machine; an empty list: none.
    pub repositories: Option<Vec<String>>,
    /// A branch that is pushed begins with one of these.
    pub branch_prefixes: Vec<String>,
    /// How it speaks to git remotes.
    pub git: GitSettings,
    /// How it speaks to models.
    pub model: ModelSettings,
    /// Secrets that jobs may name for their commands.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// Whether commands may be agent programs, beside models.
    pub commands: bool,
    /// Most of the disk that mirrors and workspaces take.
    pub disk: Bytes,
    /// A question to people is open for so long.
    pub question_timeout: Duration,
    /// REST services beside NATS.
    pub outside: Outside,
}

/// How it speaks to git remotes.
#[derive(Clone, Debug)]
pub struct GitSettings {
    /// For https remotes.
    pub user: String,
    /// For https remotes.
    pub token: Option<Arc<Secret>>,
    /// Hosts that are given the token. `None`: those of the remotes that [`AgentSettings::repositories`] names, and where
    /// it names none, no host at all: whoever may submit a job names its remote.
    pub token_hosts: Option<Vec<String>>,
    /// For ssh remotes; default `ssh` without questions.
    pub ssh_command: Option<String>,
    /// Of the worker's environment, for git alone: proxies, certificates, an ssh agent.
    pub env: BTreeMap<String, String>,
    /// Whose commits these are, as `Name <mail>`.
    pub author: String,
}

impl GitSettings {
    /// The logins in what git is told of proxies, which it quotes where it cannot read them: each URL as a whole, and its
    /// password by itself.
    pub(super) fn proxy_logins(&self) -> Vec<Secret> {
        let urls = self.env.iter().filter(|(name, _)| name.to_lowercase().ends_with("_proxy")).map(|(_, url)| url);
        let logins = urls.filter_map(|url| {
            let (login, _) = url.rsplit_once('@')?;
            let login = login.split_once("://").map_or(login, |(_, login)| login);
            Some((url, login.split_once(':').map_or(login, |(_, password)| password)))
        });
        let texts = logins.flat_map(|(url, password)| [url.as_str(), password]);
        // What is shorter would hide everything.
        texts.filter(|text| text.len() >= LEAST_BYTES).map(|text| Secret::new(text.to_owned())).collect()
    }
}

/// How it speaks to models.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// Base URL of an OpenAI-compatible API.
    pub endpoint: String,
    /// Its key.
    pub key: Option<Arc<Secret>>,
    /// The model of a job that names none.
    pub model: Option<String>,
    /// Money per million tokens, by model.
    pub prices: BTreeMap<String, Prices>,
}

/// REST services beside NATS, for fleets that have them. Unset means NATS alone.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Hears of states and events.
    pub task_registry: Option<OutsideService>,
    /// Gives slots.
    pub repo_pool: Option<OutsideService>,
    /// Takes artifacts.
    pub artifact_store: Option<OutsideService>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct OutsideService {
    /// Its base URL.
    pub url: String,
    /// Sent as bearer.
    pub token: Option<Arc<Secret>>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            repositories: None,
            branch_prefixes: vec!["feature/".to_owned()],
            git: GitSettings {
                user: "x-access-token".to_owned(),
                token: None,
                token_hosts: None,
                ssh_command: None,
                env: BTreeMap::new(),
                author: "Shoal <shoal@localhost>".to_owned(),
            },
            model: ModelSettings {
                endpoint: DEFAULT_ENDPOINT.to_owned(),
                key: None,
                model: None,
                prices: BTreeMap::new(),
            },
            secrets: BTreeMap::new(),
            commands: true,
            disk: Bytes(20 << 30),
            question_timeout: Duration::from_secs(600),
            outside: Outside::default(),
        }
    }
}

impl AgentSettings {
    /// Whether a job may run here, as far as settings tell; the refusal names the setting that would allow it.
    pub fn check(&self, job: &AgentJob, branch: &str) -> Result<(), TaskError> {
        let forbidden = |message: String| Err(TaskError::new(Code::PolicyForbidden, message));
        if !self.allows_repository(&job.repository) {
            return forbidden(format!(
                "this worker does not work on `{}`; its setting `allowed-repositories` would have to name it",
                job.repository
            ));
        }
        if !self.branch_prefixes.iter().any(|prefix| branch.starts_with(prefix.as_str())) {
            return forbidden(format!(
                "the branch `{branch}` begins with none of {}; its setting `branch-prefixes` would have to name it",
                self.branch_prefixes.join(", ")
            ));
        }
        match &job.implementer {
            Implementer::Command(_) if !self.commands => {
                return forbidden("this worker runs no agent programs (`agent-commands`), only models".to_owned());
            }
            Implementer::Command(_) | Implementer::Model(_) => {}
        }
        for (variable, name) in &job.secrets {
            if !self.secrets.contains_key(name) {
                return forbidden(format!(
                    "`{variable}` asks for the secret `{name}`; this worker allows jobs no secret of that name (`job-secrets`)"
                ));
            }
        }
        Ok(())
    }

    /// The token for a remote, if its host is to have it.
    pub fn token_for(&self, repository: &str) -> Option<&Arc<Secret>> {
        let (_, rest) = repository.split_once("://")?;
        let authority = rest.split('/').next().unwrap_or_default();
        let is_named = match &self.git.token_hosts {
            Some(hosts) => hosts.iter().any(|host| host.eq_ignore_ascii_case(authority)),
            // The job would not run if none of them named it.
            None => self.repositories.is_some(),
        };
        self.git.token.as_ref().filter(|_| is_named)
    }

    fn allows_repository(&self, repository: &str) -> bool {
        match &self.repositories {
            // Whoever may name a path reads what the worker can read.
            None => !repository.starts_with('/') && !repository.starts_with("file:"),
            Some(globs) => globs.iter().any(|glob| {
                GlobBuilder::new(glob).build().is_ok_and(|glob| glob.compile_matcher().is_match(repository))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(repository: &str) -> AgentJob {
        serde_json::from_value(serde_json::json!({"repository": repository, "title": "a"})).unwrap()
    }

    #[test]
    fn the_login_of_a_proxy_is_hidden_however_it_is_written() {
        let mut settings = AgentSettings::default();
        for (name, url) in [
            ("https_proxy", "http://user:p#ss/w@rd@proxy:3128"),
            ("ALL_PROXY", "user:secret-2@proxy"),
            ("http_proxy", "http://user:ab@proxy"),
            ("NO_PROXY", "a@b.c"),
            ("SSH_AUTH_SOCK", "/run/a@b"),
        ] {
            settings.git.env.insert(name.to_owned(), url.to_owned());
        }
        let logins = settings.git.proxy_logins();
        let mask =
            agents::secret::Mask::new(logins.iter().map(|login| ("the login of a proxy", login))).expect("long enough");
        let said =
            "fatal: Invalid proxy URL 'http://user:p#ss/w@rd@proxy:3128', p#ss/w@rd, secret-2, http://user:ab@proxy";
        let shown = mask.text(said);
        for secret in ["p#ss", "w@rd", "secret-2", ":ab@"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn paths_of_the_machine_are_worked_on_only_where_they_are_named() {
        let mut settings = AgentSettings::default();
        settings.check(&job("https://host/a.git"), "feature/a").unwrap();
        let refused = settings.check(&job("/srv/a.git"), "feature/a").unwrap_err();
        assert!(refused.message.contains("allowed-repositories"), "{refused:?}");
        assert!(settings.check(&job("file:///srv/a.git"), "feature/a").is_err());
        settings.repositories = Some(vec!["/srv/**".to_owned()]);
        settings.check(&job("/srv/a.git"), "feature/a").unwrap();
        assert!(settings.check(&job("https://host/a.git"), "feature/a").is_err());
        settings.repositories = Some(Vec::new());
        assert!(settings.check(&job("/srv/a.git"), "feature/a").is_err());
    }

    #[test]
    fn the_token_goes_to_no_host_that_only_a_job_names() {
        let token = Some(Arc::new(Secret::new("t".repeat(20))));
        let mut settings = AgentSettings::default();
        settings.git.token = token;
        let has = |settings: &AgentSettings, url: &str| settings.token_for(url).is_some();
        assert!(!has(&settings, "https://evil.example/a.git"));
        settings.git.token_hosts = Some(vec!["git.example".to_owned()]);
        assert!(has(&settings, "https://Git.example/a.git"));
        for other in [
            "https://evil.example/git.example",
            "https://git.example.evil/a",
            "https://git.example:444/a",
            "/git.example",
        ] {
            assert!(!has(&settings, other), "{other}");
        }
        settings.git.token_hosts = None;
        settings.repositories = Some(vec!["https://git.example/**".to_owned()]);
        assert!(has(&settings, "https://git.example/a.git"));
    }

    #[test]
    fn branches_programs_and_secrets_are_the_workers_decision() {
        let mut settings = AgentSettings { commands: false, ..AgentSettings::default() };
        let mut job = job("https://host/a.git");
        assert!(settings.check(&job, "main").is_err());
        job.secrets.insert("TOKEN".to_owned(), "npm".to_owned());
        assert!(settings.check(&job, "feature/a").unwrap_err().message.contains("job-secrets"));
        settings.secrets.insert("npm".to_owned(), Arc::new(Secret::new("x".repeat(9))));
        settings.check(&job, "feature/a").unwrap();
        job.implementer = serde_json::from_value(serde_json::json!({"kind": "command", "command": ["a"]})).unwrap();
        assert!(settings.check(&job, "feature/a").is_err());
    }
}
