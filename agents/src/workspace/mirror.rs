//! A bare repository a remote, fetched into by one at a time for all who wait.
//!
//! Its references are named after the hash of the remote's: whatever a remote calls its branches (`a`, then `a/b`; `A` and
//! `a`), they cannot get into each other's way. Its configuration knows no remote.
//!
//! A round asks the remote once (`ls-remote`) for all the names that are wanted by those who came before it began, and
//! fetches only what is not here yet. Those who waited for it share its result, a failure too: twenty jobs do not each wait
//! for the same dead remote in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::{Inner, WorkspaceError, blocking, now};
use crate::git::repo::{Repo, WIP};
use crate::git::{Commit, GitError, Remote};

/// Packs in a mirror before they are brought together.
const PACKS: usize = 40;

/// What a job needs of a remote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The branch to begin from; default the remote's own.
    pub base: Option<String>,
    /// The job's own branch, if it may be there already.
    pub branch: Option<String>,
    /// The name under which its work was kept, if it may be at the remote.
    pub kept: Option<String>,
}

/// What the remote has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The branch to begin from, by name.
    pub base_name: String,
    /// Its tip.
    pub base: Commit,
    /// The tip of the job's own branch, if it is there.
    pub branch: Option<Commit>,
    /// Its kept work, if there is some.
    pub kept: Option<Commit>,
}

/// The name of the reference that keeps a job's work.
pub(super) fn kept(name: &str) -> String {
    match schemas::agent_job::is_branch_name(name) && !name.contains('/') {
        true => format!("{WIP}{name}"),
        false => format!("{WIP}{}", hash(name)),
    }
}

impl Want {
    fn names(&self) -> Result<BTreeSet<String>, GitError> {
        let branches: Vec<&String> = self.base.iter().chain(&self.branch).collect();
        if let Some(bad) = branches.iter().find(|name| !schemas::agent_job::is_branch_name(name)) {
            return Err(GitError::BaseNotFound((*bad).clone()));
        }
        let mut names: BTreeSet<String> = branches.into_iter().map(|name| format!("refs/heads/{name}")).collect();
        if self.base.is_none() {
            names.insert("HEAD".to_owned());
        }
        names.extend(self.kept.as_deref().map(kept));
        Ok(names)
    }

    fn answer(&self, refs: &Refs) -> Result<Fetched, GitError> {
        let branch = |name: &Option<String>| {
            name.as_ref().and_then(|name| refs.found.get(&format!("refs/heads/{name}"))?.clone())
        };
        let (base_name, base) = match &self.base {
            Some(name) => (name.clone(), branch(&self.base)),
            None => (refs.head.clone().unwrap_or("HEAD".to_owned()), refs.found.get("HEAD").cloned().flatten()),
        };
        let base = base.ok_or_else(|| GitError::BaseNotFound(base_name.clone()))?;
        let kept = self.kept.as_deref().and_then(|name| refs.found.get(&kept(name))?.clone());
        Ok(Fetched { base_name, base, branch: branch(&self.branch), kept })
    }
}

/// What a round found.
#[derive(Clone, Debug, Default)]
struct Refs {
    /// The branch that the remote's `HEAD` is.
    head: Option<String>,
    /// Every name that was asked for.
    found: BTreeMap<String, Option<Commit>>,
}

/// One mirror.
pub(crate) struct Mirror {
    pub(super) name: String,
    pub(super) path: PathBuf,
    waiting: Mutex<Waiting>,
    last: tokio::sync::Mutex<Last>,
    /// Used last, in milliseconds since 1970, and bytes.
    pub(super) tally: Mutex<(u64, u64)>,
}

#[derive(Default)]
struct Waiting {
    tickets: u64,
    names: BTreeSet<String>,
}

/// The last round: who was served, and with what. Whoever holds it may work on the mirror.
#[derive(Default)]
pub(super) struct Last {
    served: u64,
    result: Option<Result<Refs, WorkspaceError>>,
}

/// The name of a mirror's folder: something to read, and the URL's hash.
pub(super) fn name(url: &str) -> String {
    let last = url.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default().trim_end_matches(".git");
    let plain: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_').take(40).collect();
    format!("{}-{}", if plain.is_empty() { "repository" } else { &plain }, &hash(url)[..16])
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn local(name: &str) -> String {
    format!("refs/shoal/remote/{}", hash(name))
}

impl Mirror {
    pub(super) fn new(name: String, path: PathBuf) -> Self {
        Self { name, path, waiting: Mutex::default(), last: Default::default(), tally: Mutex::new((now(), 0)) }
    }

    /// Brings what a job wants here.
    pub(super) async fn fetch(
        &self,
        inner: &Arc<Inner>,
        remote: &Remote,
        want: &Want,
    ) -> Result<Fetched, WorkspaceError> {
        let names = want.names()?;
        let ticket = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.tickets += 1;
            waiting.names.extend(names.iter().cloned());
            waiting.tickets
        };
        let mut last = self.last.lock().await;
        if last.served >= ticket {
            match &last.result {
                Some(Ok(refs)) if names.iter().all(|name| refs.found.contains_key(name)) => {
                    return Ok(want.answer(refs)?);
                }
                Some(Err(error)) => return Err(error.clone()),
                _ => {}
            }
        }
        let (upto, mut all) = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            (waiting.tickets, std::mem::take(&mut waiting.names))
        };
        all.extend(names);
        // Dropped half way, nobody was served: the next one begins anew.
        let mut result = self.round(inner, remote, &all).await;
        if let Err(WorkspaceError::Git(GitError::Corrupt(why))) = &result {
            inner.set_aside(&self.path, why).map_err(WorkspaceError::folder(&self.path))?;
            result = self.round(inner, remote, &all).await;
        }
        *last = Last { served: upto, result: Some(result.clone()) };
        drop(last);
        Ok(want.answer(&result?)?)
    }

    /// Nobody fetches meanwhile.
    pub(super) async fn hold(&self) -> tokio::sync::MutexGuard<'_, Last> {
        self.last.lock().await
    }

    pub(super) fn repo(&self, inner: &Inner, remote: &Remote) -> Repo {
        Repo { git: inner.git.clone(), dir: self.path.clone(), remote: remote.clone() }
    }

    async fn round(
        &self,
        inner: &Arc<Inner>,
        remote: &Remote,
        names: &BTreeSet<String>,
    ) -> Result<Refs, WorkspaceError> {
        let repo = self.repo(inner, remote);
        let ensured = repo.clone();
        blocking(move || {
            ensured.ensure(None)?;
            ensured.unlock()
        })
        .await
        .map_err(WorkspaceError::folder(&self.path))?;
        let (head, remote_refs) = asked(&repo, names).await?;
        let here = listed(&repo).await?;
        let mut args: Vec<OsString> = Vec::new();
        for (name, there) in names.iter().map(|name| (name, remote_refs.get(name))) {
            match (there, here.get(&local(name))) {
                (Some(there), Some(here)) if there == here => {}
                (Some(_), _) => args.push(format!("+{name}:{}", local(name)).into()),
                (None, Some(_)) => repo.set_ref(&local(name), None).await?,
                (None, None) => {}
            }
        }
        let fetched = !args.is_empty();
        if fetched {
            let how =
                ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--force", "--"];
            let how = how.map(OsString::from).into_iter().chain([remote.url.clone().into()]);
            let output = repo.call().network().args(how).args(args).run().await?;
            if !output.status.success() {
                // Gone between the question and the fetch: ask again.
                if output.stderr.contains("couldn't find remote ref") {
                    return Err(GitError::Unreachable(output.stderr.trim().to_owned()).into());
                }
                return Err(output.error("fetch").into());
            }
        }
        let here = listed(&repo).await?;
        let found: BTreeMap<String, Option<Commit>> = names
            .iter()
            .map(|name| (name.clone(), remote_refs.get(name).and_then(|_| here.get(&local(name)).cloned())))
            .collect();
        whole(&repo, found.values().flatten()).await?;
        let path = self.path.clone();
        let (packs, bytes) = blocking(move || Ok((packs(&path), super::clean::bytes(&path))))
            .await
            .map_err(WorkspaceError::folder(&self.path))?;
        if fetched && packs > PACKS {
            // Nothing is lost by it, and nothing depends on it.
            let _ = repo.call().args(["repack", "-d", "-l", "-q", "--geometric=2"]).run().await?;
        }
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = (now(), bytes);
        Ok(Refs { head, found })
    }
}

/// What the remote has of these.
async fn asked(repo: &Repo, names: &BTreeSet<String>) -> Result<(Option<String>, BTreeMap<String, Commit>), GitError> {
    repo.transport()?;
    let args = ["ls-remote", "--symref", "--", &repo.remote.url];
    let output = repo.call().network().args(args).args(names.iter().map(String::as_str)).ok().await?;
    let (mut head, mut found) = (None, BTreeMap::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((what, name)) = line.split_once('\t') else { continue };
        match what.strip_prefix("ref: ") {
            Some(target) if name == "HEAD" => head = target.strip_prefix("refs/heads/").map(str::to_owned),
            Some(_) => {}
            // It lists whatever ends in such a name, too.
            None if names.contains(name) => found.extend(Commit::parse(what).map(|commit| (name.to_owned(), commit))),
            None => {}
        }
    }
    Ok((head, found))
}

/// Our references.
async fn listed(repo: &Repo) -> Result<BTreeMap<String, Commit>, GitError> {
    let args = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/shoal/remote/"];
    let text = repo.call().args(args).text().await?;
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    Ok(lines.filter_map(|(commit, name)| Some((name.to_owned(), Commit::parse(commit)?))).collect())
}

/// Whether the commits and their trees are here.
async fn whole(repo: &Repo, commits: impl Iterator<Item = &Commit>) -> Result<(), GitError> {
    let list: String = commits.map(|commit| format!("{commit}^{{tree}}\n")).collect();
    let output = repo.call().args(["cat-file", "--batch-check"]).stdin(list.into_bytes()).ok().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find(|line| !line.contains(" tree ")) {
        Some(line) => Err(GitError::Corrupt(line.to_owned())),
        None => Ok(()),
    }
}

fn packs(path: &Path) -> usize {
    let names = std::fs::read_dir(path.join("objects/pack")).into_iter().flatten().flatten();
    names.filter(|entry| entry.path().extension().is_some_and(|end| end == "pack")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_has_a_name_to_read_that_is_its_urls_alone() {
        let one = name("https://host/team/shop.git");
        assert!(one.starts_with("shop-"), "{one}");
        assert_ne!(one, name("https://host/other/shop.git"));
        assert!(name("/..").starts_with("repository-"));
        assert_eq!(kept("t1"), "refs/shoal/wip/t1");
        assert!(!kept("a..b").contains(".."), "whatever an id is, its reference has a good name");
    }
}
