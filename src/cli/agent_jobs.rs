//! What a worker allows agent jobs, and what it has for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agents::model::Prices;
use agents::secret::Secret;
use clap::Args;
use schemas::{Bytes, Decimal, HumanDuration};
use serde::Deserialize;
use worker::agent::settings::{AgentSettings, DEFAULT_ENDPOINT, GitSettings, ModelSettings, Outside, OutsideService};

use super::Error;

/// Flags about agent jobs, the same for `shoal worker` and `shoal up`. Secrets have none: they come by the environment, or
/// from a file, and never stand in a list of processes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What workers allow agent jobs")]
pub struct AgentJobs {
    /// Globs of git remotes that may be worked on; `*` crosses folders [default: all but paths of this machine]
    #[arg(long, env = "SHOAL_ALLOWED_REPOSITORIES", value_delimiter = ',', value_name = "GLOB,…")]
    pub allowed_repositories: Option<Vec<String>>,
    /// What a branch that is pushed begins with
    #[arg(
        long,
        env = "SHOAL_BRANCH_PREFIXES",
        value_delimiter = ',',
        default_value = "feature/",
        value_name = "PREFIX,…"
    )]
    pub branch_prefixes: Vec<String>,
    /// User at https remotes; the token is in GIT_TOKEN, or in --git-token-file
    #[arg(long, env = "SHOAL_GIT_USER", default_value = "x-access-token", value_name = "NAME")]
    pub git_user: String,
    /// File with the token for https remotes [default: GIT_TOKEN]
    #[arg(long, env = "SHOAL_GIT_TOKEN_FILE", value_name = "PATH")]
    pub git_token_file: Option<PathBuf>,
    /// Hosts that are given the token, as github.com or git.local:8443 [default: those of --allowed-repositories, else none]
    #[arg(long, env = "SHOAL_GIT_TOKEN_HOSTS", value_delimiter = ',', value_name = "HOST,…")]
    pub git_token_hosts: Option<Vec<String>>,
    /// How ssh remotes are spoken to [default: ssh, without questions]
    #[arg(long, env = "SHOAL_GIT_SSH_COMMAND", value_name = "COMMAND")]
    pub git_ssh_command: Option<String>,
    /// Whose commits these are
    #[arg(long, env = "SHOAL_GIT_AUTHOR", default_value = "Shoal <shoal@localhost>", value_name = "NAME <MAIL>")]
    pub git_author: String,
    /// Model of a job that names none
    #[arg(long, env = "SHOAL_MODEL", value_name = "NAME")]
    pub model: Option<String>,
    /// Base URL of an OpenAI-compatible API [default: OPENAI_BASE_URL, else https://api.openai.com/v1]
    #[arg(long, env = "SHOAL_MODEL_ENDPOINT", value_name = "URL")]
    pub model_endpoint: Option<String>,
    /// File with the key of that API [default: OPENAI_API_KEY]
    #[arg(long, env = "SHOAL_MODEL_KEY_FILE", value_name = "PATH")]
    pub model_key_file: Option<PathBuf>,
    /// Money per million tokens, as a mapping: {"some-model": {"input": "1.25", "output": "10"}}
    #[arg(long, env = "SHOAL_MODEL_PRICES", default_value = "{}", value_parser = prices, value_name = crate::config::MAPPING)]
    pub model_prices: AllPrices,
    /// Secrets that jobs may have in the environment of their commands, as npm=env:NPM_TOKEN or npm=file:/run/secrets/npm
    #[arg(long, env = "SHOAL_JOB_SECRETS", value_delimiter = ',', value_name = "NAME=SOURCE,…")]
    pub job_secrets: Vec<SecretSource>,
    /// Whether a job may bring an agent program as its implementer
    #[arg(long, env = "SHOAL_AGENT_COMMANDS", default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub agent_commands: bool,
    /// Most of the disk that mirrors and workspaces of agent jobs take
    #[arg(long, env = "SHOAL_AGENT_DISK", default_value = "20Gi", value_name = "SIZE")]
    pub agent_disk: Bytes,
    /// How long a job waits for an answer of people
    #[arg(long, env = "SHOAL_QUESTION_TIMEOUT", default_value = "10m", value_name = "DURATION")]
    pub question_timeout: HumanDuration,
    /// A REST service that hears of states and events of agent jobs [default: TASK_REGISTRY_URL; its bearer is TASK_REGISTRY_TOKEN]
    #[arg(long, env = "SHOAL_TASK_REGISTRY_URL", value_name = "URL")]
    pub task_registry_url: Option<String>,
    /// A REST service that gives slots of repositories [default: REPO_POOL_URL; its bearer is REPO_POOL_TOKEN]
    #[arg(long, env = "SHOAL_REPO_POOL_URL", value_name = "URL")]
    pub repo_pool_url: Option<String>,
    /// A REST service that takes artifacts of agent jobs, too [default: ARTIFACT_STORE_URL; its bearer is ARTIFACT_STORE_TOKEN]
    #[arg(long, env = "SHOAL_ARTIFACT_STORE_URL", value_name = "URL")]
    pub artifact_store_url: Option<String>,
}

/// Money per million tokens, by model.
pub type AllPrices = BTreeMap<String, Prices>;

/// Where a secret comes from.
#[derive(Clone, Debug)]
pub struct SecretSource {
    name: String,
    from: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Env(String),
    File(PathBuf),
}

impl std::str::FromStr for SecretSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Not repeated: what stands there by mistake may be the secret itself.
        let wrong = || "write NAME=env:VARIABLE or NAME=file:/path".to_owned();
        let (name, source) = text.split_once('=').ok_or_else(wrong)?;
        let from = match source.split_once(':').ok_or_else(wrong)? {
            ("env", variable) if !variable.is_empty() => Source::Env(variable.to_owned()),
            ("file", path) if path.starts_with('/') => Source::File(path.into()),
            _ => return Err(wrong()),
        };
        match schemas::agent_job::is_name(name) {
            true => Ok(Self { name: name.to_owned(), from }),
            false => Err(wrong()),
        }
    }
}

fn prices(text: &str) -> Result<AllPrices, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        input: Decimal,
        cached_input: Option<Decimal>,
        output: Decimal,
    }
    let read: BTreeMap<String, Written> = serde_saphyr::from_str(text)
        .map_err(|error| format!("{error}; write {{\"some-model\": {{\"input\": \"1.25\", \"output\": \"10\"}}}}"))?;
    let prices =
        |it: Written| Prices { input: it.input, cached_input: it.cached_input.unwrap_or(it.input), output: it.output };
    Ok(read.into_iter().map(|(name, written)| (name, prices(written))).collect())
}

impl AgentJobs {
    /// Checked, with every secret read.
    pub fn settings(&self) -> Result<AgentSettings, Error> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = |flag: &str, own: &Option<String>, known: &str| {
            let url = own.clone().filter(|url| !url.is_empty()).or_else(|| set(known));
            match url {
                Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => Err(Error::usage(
                    format!("--{flag} is no http or https URL"),
                    format!("--{flag} https://host/path"),
                )),
                url => Ok(url.map(|url| url.trim_end_matches('/').to_owned())),
            }
        };
        if !self.git_author.contains('<') || !self.git_author.ends_with('>') {
            let problem = format!("--git-author is `{}`; it needs a name and a mail address", self.git_author);
            return Err(Error::usage(problem, "--git-author 'Shoal <shoal@example.com>'"));
        }
        if self.question_timeout.0.is_zero() {
            return Err(Error::usage("--question-timeout is 0", "--question-timeout 10m"));
        }
        let words = |words: &[String]| words.iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>();
        let branch_prefixes = words(&self.branch_prefixes);
        if branch_prefixes.is_empty() {
            return Err(Error::usage(
                "--branch-prefixes is empty; no branch could be pushed",
                "--branch-prefixes feature/",
            ));
        }
        let mut secrets = BTreeMap::new();
        for source in &self.job_secrets {
            let secret = match &source.from {
                Source::File(path) => Some(read("job-secrets", path)?),
                Source::Env(variable) => set(variable).map(|value| Arc::new(Secret::new(value))),
            };
            let Some(secret) = secret else {
                let problem = format!("--job-secrets names `{}`, whose variable is not set", source.name);
                return Err(Error::usage(problem, "set the variable, or name a file"));
            };
            secrets.insert(source.name.clone(), secret);
        }
        let secret = |flag: &str, file: &Option<PathBuf>, known: &str| match file {
            Some(path) => read(flag, path).map(Some),
            None => Ok(set(known).map(|value| Arc::new(Secret::new(value)))),
        };
        let service = |flag: &str, own: &Option<String>, known: &str, token: &str| {
            let token = set(token).map(|value| Arc::new(Secret::new(value)));
            Ok::<_, Error>(url(flag, own, known)?.map(|url| OutsideService { url, token }))
        };
        Ok(AgentSettings {
            repositories: self.allowed_repositories.as_deref().map(words),
            branch_prefixes,
            git: GitSettings {
                user: self.git_user.clone(),
                token: secret("git-token-file", &self.git_token_file, "GIT_TOKEN")?,
                token_hosts: self.git_token_hosts.as_deref().map(words),
                ssh_command: self.git_ssh_command.clone().filter(|command| !command.is_empty()),
                env: for_git(set),
                author: self.git_author.clone(),
            },
            model: ModelSettings {
                endpoint: url("model-endpoint", &self.model_endpoint, "OPENAI_BASE_URL")?
                    .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
                key: secret("model-key-file", &self.model_key_file, "OPENAI_API_KEY")?,
                model: self.model.clone().filter(|model| !model.is_empty()),
                prices: self.model_prices.clone(),
            },
            secrets,
            commands: self.agent_commands,
            disk: self.agent_disk,
            question_timeout: self.question_timeout.0,
            outside: Outside {
                task_registry: service(
                    "task-registry-url",
                    &self.task_registry_url,
                    "TASK_REGISTRY_URL",
                    "TASK_REGISTRY_TOKEN",
                )?,
                repo_pool: service("repo-pool-url", &self.repo_pool_url, "REPO_POOL_URL", "REPO_POOL_TOKEN")?,
                artifact_store: service(
                    "artifact-store-url",
                    &self.artifact_store_url,
                    "ARTIFACT_STORE_URL",
                    "ARTIFACT_STORE_TOKEN",
                )?,
            },
        })
    }
}

/// How this machine reaches others, which git has no other way to know. Its certificates are told by names of its own, and
/// it takes one folder of them.
fn for_git(set: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    const KNOWN: [&str; 10] = [
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
        "SSH_AUTH_SOCK",
        "GIT_SSL_CAINFO",
        "GIT_SSL_CAPATH",
    ];
    let same = KNOWN.into_iter().map(|name| (name, name));
    let all = [("SSL_CERT_FILE", "GIT_SSL_CAINFO"), ("SSL_CERT_DIR", "GIT_SSL_CAPATH")].into_iter().chain(same);
    let fits = |from: &str, value: &String| from != "SSL_CERT_DIR" || !value.contains(':');
    all.filter_map(|(from, to)| Some((to.to_owned(), set(from).filter(|value| fits(from, value))?))).collect()
}

fn read(flag: &str, path: &Path) -> Result<Arc<Secret>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::usage(
            format!("--{flag}: {} cannot be read: {error}", path.display()),
            "name a file with the secret alone",
        )
    })?;
    // Editors end a file with a line's end.
    Ok(Arc::new(Secret::new(text.trim_end_matches(['\n', '\r']).to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_and_never_repeated() {
        for bad in ["npm", "npm=hunter2", "=env:A", "npm=env:", "npm=file:a", "a b=env:A"] {
            let error = bad.parse::<SecretSource>().unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        "npm=env:NPM_TOKEN".parse::<SecretSource>().unwrap();
        "npm=file:/run/secrets/npm".parse::<SecretSource>().unwrap();
    }

    #[test]
    fn git_is_told_how_others_are_reached() {
        let told = |all: &[(&str, &str)]| {
            let all: BTreeMap<&str, &str> = all.iter().copied().collect();
            for_git(|name| all.get(name).map(|value| (*value).to_owned()))
        };
        let wanted = |all: &[(&str, &str)]| all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(
            told(&[("SSL_CERT_FILE", "/ca"), ("https_proxy", "http://p"), ("HOME", "/root"), ("GIT_DIR", "/x")]),
            wanted(&[("GIT_SSL_CAINFO", "/ca"), ("https_proxy", "http://p")])
        );
        assert_eq!(told(&[("SSL_CERT_DIR", "/a")]), wanted(&[("GIT_SSL_CAPATH", "/a")]));
        assert_eq!(told(&[("SSL_CERT_DIR", "/a:/b")]), wanted(&[]), "git takes one folder");
        // What is said of git is said of git.
        let both = told(&[("SSL_CERT_FILE", "/all"), ("GIT_SSL_CAINFO", "/git")]);
        assert_eq!(both, wanted(&[("GIT_SSL_CAINFO", "/git")]));
    }

    #[test]
    fn prices_are_read_exactly() {
        let read = prices(r#"{"m": {"input": "1.25", "output": "10"}}"#).unwrap();
        assert_eq!((read["m"].input.micros(), read["m"].output.micros()), (1_250_000, 10_000_000));
        assert!(prices(r#"{"m": {"input": "1.25"}}"#).is_err());
        assert!(prices(r#"{"m": {"input": "-1", "output": "10"}}"#).is_err());
    }
}
