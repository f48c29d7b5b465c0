//! The real `git` program in surroundings of our own.
//!
//! It runs beside hostile code: what is in a repository, and what an agent's commands left in a tree, was written by
//! anybody. So nothing that git would believe comes from there:
//!
//! * The environment is made anew for each run; of the worker's own only `PATH` (its absolute parts) is in it, and what
//!   the operator names. No system, no user configuration, no hooks, no filters, no helpers, no pager, no prompt.
//! * Git directory, work tree and index are always named; nothing is looked for. A `.git` in a tree is never read.
//! * Only transports that the worker allows; submodules are never entered.
//! * A token goes from us to git's own child by its environment and a script that gives it to the expected host alone:
//!   never into a URL, a configuration or an argument list. Where redirections lead elsewhere, nobody answers.
//! * Each run is a process group, killed whole with the future or its timeout; what it writes is bounded, and masked.
//!
//! Failures are told apart by porcelain output and by git's own words (`LC_ALL=C`), never by what the remote says.
//!
//! Git 2.38 or newer: merges without a work tree (`merge-tree --write-tree`) came with it. One way that is tested beats a
//! second one for programs older than 2022.

mod askpass;
pub(crate) mod change;
mod error;
mod push;
pub(crate) mod repo;
mod run;
mod sift;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use askpass::Login;
pub use change::{Bounds, Change, Changed, How, Kind, Scan};
pub use error::GitError;
pub use push::{Order, Pushed, check_branch};
pub(crate) use run::Call;
pub use sift::Sifted;

use crate::secret::Mask;

/// The oldest version that will do.
pub const OLDEST: (u32, u32) = (2, 38);

/// How a worker lets git run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program, a name that is looked for in `PATH` or an absolute path.
    pub program: PathBuf,
    /// Transports that are allowed.
    pub transports: BTreeSet<Transport>,
    /// Instead of `ssh` with `BatchMode=yes` and `StrictHostKeyChecking=accept-new`. A shell's line.
    pub ssh_command: Option<String>,
    /// Added to git's environment: a proxy, certificates, an ssh agent. What is set by us wins.
    pub env: BTreeMap<String, String>,
    /// For one run that speaks to a remote.
    pub network_timeout: Duration,
    /// For one run that does not.
    pub local_timeout: Duration,
}

impl Default for Settings {
    /// `git` from `PATH`, https and ssh; 10 minutes with a remote, 5 without.
    fn default() -> Self {
        Self {
            program: "git".into(),
            transports: [Transport::Https, Transport::Ssh].into(),
            ssh_command: None,
            env: BTreeMap::new(),
            network_timeout: Duration::from_secs(600),
            local_timeout: Duration::from_secs(300),
        }
    }
}

/// A way to a remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// `https://`.
    Https,
    /// `http://`: whoever is on the way reads the token.
    Http,
    /// `ssh://` and `user@host:path`.
    Ssh,
    /// A folder of this machine.
    File,
}

impl Transport {
    /// Git's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::File => "file",
        }
    }

    /// That of a URL, if it is one of these.
    pub fn of(url: &str) -> Option<Self> {
        if url.starts_with('-') || url.contains("::") || url.contains(|c: char| c.is_control() || c == ' ') {
            return None;
        }
        match url.split_once("://") {
            Some(("https", _)) => Some(Self::Https),
            Some(("http", _)) => Some(Self::Http),
            Some(("ssh", rest)) => (!rest.starts_with('-')).then_some(Self::Ssh),
            Some(("file", rest)) => rest.starts_with('/').then_some(Self::File),
            Some(_) => None,
            None if url.starts_with('/') => Some(Self::File),
            None => {
                let (host, path) = url.split_once(':')?;
                (!host.is_empty() && !host.contains('/') && !path.is_empty()).then_some(Self::Ssh)
            }
        }
    }
}

/// A repository elsewhere, and how to speak to it.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    /// `https://…`, `ssh://…`, `user@host:path`, or an absolute path. No password in it.
    pub url: String,
    /// For `http` and `https`.
    pub login: Option<Login>,
    /// Over everything that git says.
    pub mask: Mask,
}

/// The name of a commit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commit(String);

impl Commit {
    /// Of 40 or 64 lower case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (matches!(text.len(), 40 | 64) && digits && text.bytes().any(|b| b != b'0')).then(|| Self(text.to_owned()))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Who made a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Name.
    pub name: String,
    /// Address.
    pub email: String,
}

impl Default for Author {
    fn default() -> Self {
        Self { name: "Shoal".to_owned(), email: "shoal@localhost".to_owned() }
    }
}

/// The program, checked, with its own home. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Git(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    /// Nothing of the worker's user is in it.
    home: PathBuf,
    askpass: PathBuf,
    path: std::ffi::OsString,
    version: (u32, u32),
}

impl Git {
    /// Looks whether the program is there and new enough, and makes its home, `own`.
    pub async fn new(settings: Settings, own: &Path) -> Result<Self, GitError> {
        let failed = |error: std::io::Error| GitError::NotUsable(format!("{}: {error}", own.display()));
        tokio::fs::create_dir_all(own.join("home")).await.map_err(failed)?;
        let own = tokio::fs::canonicalize(own).await.map_err(failed)?;
        let askpass = askpass::write(&own).await.map_err(failed)?;
        // A relative part of `PATH` would look into whatever folder git stands in, and that is a hostile tree.
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let path = std::env::join_paths(std::env::split_paths(&path).filter(|part| part.is_absolute()))
            .map_err(|error| GitError::NotUsable(error.to_string()))?;
        let mut inner = Inner { settings, home: own.join("home"), askpass, path, version: (0, 0) };
        let said = Self(Arc::new(Inner { settings: inner.settings.clone(), ..inner.copy() }))
            .call(None)
            .args(["version"])
            .text()
            .await?;
        inner.version = version(&said).ok_or_else(|| GitError::NotUsable(format!("it calls itself {said:?}")))?;
        if inner.version < OLDEST {
            return Err(GitError::TooOld { found: said });
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.0.version
    }

    /// A run of it. Its words are masked as `remote` says.
    pub(crate) fn call<'a>(&'a self, remote: Option<&'a Remote>) -> Call<'a> {
        Call::new(self, remote)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Checks that a remote may be spoken to at all.
    pub fn allows(&self, remote: &Remote) -> Result<Transport, GitError> {
        match Transport::of(&remote.url) {
            Some(transport) if self.0.settings.transports.contains(&transport) => Ok(transport),
            Some(transport) => {
                Err(GitError::RepositoryNotFound(format!("this worker allows no {} remotes", transport.as_str())))
            }
            None => Err(GitError::RepositoryNotFound("not a git remote that a worker speaks to".to_owned())),
        }
    }
}

impl Inner {
    fn copy(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            home: self.home.clone(),
            askpass: self.askpass.clone(),
            path: self.path.clone(),
            version: self.version,
        }
    }
}

/// `git version 2.47.3 (Apple Git-1)`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.trim().strip_prefix("git version ")?.split(['.', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("git version 2.47.3\n"), Some((2, 47)));
        assert_eq!(version("git version 2.39.3 (Apple Git-146)"), Some((2, 39)));
        assert_eq!(version("git version 3.0.rc1"), Some((3, 0)));
        assert_eq!(version("hub"), None);
    }

    #[test]
    fn what_is_no_remote_has_no_transport() {
        for (url, transport) in [
            ("https://host/a.git", Some(Transport::Https)),
            ("git@host:a/b", Some(Transport::Ssh)),
            ("ssh://host/a", Some(Transport::Ssh)),
            ("/srv/a b", None),
            ("/srv/a", Some(Transport::File)),
            ("ext::sh -c id", None),
            ("ssh://-oProxyCommand=id/a", None),
            ("-u", None),
            ("git://host/a", None),
            ("a/b", None),
        ] {
            assert_eq!(Transport::of(url), transport, "{url}");
        }
    }
}
