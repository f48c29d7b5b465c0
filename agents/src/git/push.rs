//! The push: one commit to one branch of the job's own, never by force.
//!
//! What the remote's branch is, and what is done:
//!
//! | remote's branch | |
//! | --- | --- |
//! | at our commit | success: an earlier try was not heard of |
//! | absent, or in our commit's history | pushed, unless the base has moved meanwhile: then first rebased |
//! | goes on from where we began on it, or all its commits are this job's | our commit rebased onto it |
//! | anything else | refused: it is somebody else's |
//!
//! Whatever is rebased has to be tested again, so it is given back and not pushed. A race that is lost between looking and
//! pushing is found out by the remote itself; looking again tells which case it is.

use super::repo::{Repo, WIP};
use super::{Author, Commit, GitError};

/// What is to be pushed.
#[derive(Clone, Debug)]
pub struct Order {
    /// The one commit; its parent is `base`, or where the branch was.
    pub commit: Commit,
    /// The branch that it began from.
    pub base: String,
    /// The branch to push.
    pub branch: String,
    /// Where that branch was at the remote when the job began, if it was there.
    pub began: Option<Commit>,
    /// A line that every commit of this job has in its message, and no other's: `Shoal-Task: default.t1`.
    pub mark: String,
    /// Whoever makes the rebased commit.
    pub author: Author,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The remote's branch is at our commit.
    Done,
    /// Base or branch has moved; this is the commit on top of it. It wants to be tested, and pushed.
    Moved {
        /// The new commit.
        commit: Commit,
        /// Its parent.
        onto: Commit,
    },
}

/// Checks that a branch is a job's to push. Before anything goes over the network.
pub fn check_branch(branch: &str, base: &str, prefixes: &[String]) -> Result<(), GitError> {
    if !schemas::agent_job::is_branch_name(branch) {
        return Err(GitError::PushRefused(format!("{branch:?} is no name of a branch")));
    }
    if branch == base {
        return Err(GitError::PushRefused(format!("{branch:?} is the base")));
    }
    if !prefixes.iter().any(|prefix| !prefix.is_empty() && branch.len() > prefix.len() && branch.starts_with(prefix)) {
        return Err(GitError::PushRefused(format!("{branch:?} begins with none of {}", prefixes.join(", "))));
    }
    Ok(())
}

impl Repo {
    /// Decides what is to be done, from what the remote has now. `None`: push.
    pub(crate) async fn decide(
        &self,
        order: &Order,
        base: &Commit,
        branch: Option<&Commit>,
    ) -> Result<Option<Pushed>, GitError> {
        let onto = match branch {
            Some(tip) if *tip == order.commit => return Ok(Some(Pushed::Done)),
            Some(tip) if self.is_ancestor(tip, &order.commit).await? => return Ok(None),
            Some(tip) if self.is_ours(order, base, tip).await? => tip,
            Some(tip) => {
                let why = format!("branch {:?} is at {tip} at the remote, which is not this job's work", order.branch);
                return Err(GitError::PushRefused(why));
            }
            None if self.is_ancestor(base, &order.commit).await? => return Ok(None),
            None => base,
        };
        let commit = self.rebased(&order.commit, onto, &order.author).await?;
        if self.tree_of(&commit).await? == self.tree_of(onto).await? && branch.is_some() {
            // All of it is there already, by another start of the same job.
            return Ok(Some(Pushed::Moved { commit: onto.clone(), onto: onto.clone() }));
        }
        Ok(Some(Pushed::Moved { commit, onto: onto.clone() }))
    }

    async fn is_ours(&self, order: &Order, base: &Commit, tip: &Commit) -> Result<bool, GitError> {
        if let Some(began) = &order.began
            && self.is_ancestor(began, tip).await?
        {
            return Ok(true);
        }
        let parent = self.resolve(&format!("{}^", order.commit)).await?;
        let marked = self.marked(tip, &[Some(base), parent.as_ref()], &order.mark).await?;
        Ok(!marked.is_empty() && marked.into_iter().all(|is_marked| is_marked))
    }

    /// Whether a branch that was there before the job is one that it may go on from: an earlier run of it has committed
    /// there, or nobody has.
    pub(crate) async fn may_go_on(&self, base: &Commit, tip: &Commit, mark: &str) -> Result<bool, GitError> {
        let marked = self.marked(tip, &[Some(base)], mark).await?;
        Ok(marked.is_empty() || marked.contains(&true))
    }

    /// Of each of the newest commits of `tip` that none of `not` has: whether it is marked as the job's own.
    async fn marked(&self, tip: &Commit, not: &[Option<&Commit>], mark: &str) -> Result<Vec<bool>, GitError> {
        let args = ["log", "--max-count=100", "-z", "--format=%B", tip.as_str(), "--not"];
        let output = self.call().args(args).args(not.iter().flatten().map(|commit| commit.as_str())).ok().await?;
        let is_marked = |message: &[u8]| message.split(|byte| *byte == b'\n').any(|line| line == mark.as_bytes());
        Ok(output.pieces().map(is_marked).collect())
    }

    /// Deletes one reference of the remote's, if it is still at this commit.
    pub(crate) async fn withdraw(&self, commit: &Commit, name: &str) -> Result<(), GitError> {
        self.transport()?;
        let lease = format!("--force-with-lease={name}:{commit}");
        let args = ["push", "--porcelain", "--no-verify", "--no-signed", "--recurse-submodules=no", &lease, "--"];
        let call = self.call().network().args(args).args([self.remote.url.as_str(), &format!(":{name}")]);
        let output = call.run().await.map_err(GitError::of_push)?;
        let said = String::from_utf8_lossy(&output.stdout);
        // Not there, or at another commit by now: nothing of ours.
        let is_gone = said.contains("stale info") || said.contains("remote ref does not exist");
        if output.status.success() || is_gone {
            return Ok(());
        }
        Err(output.error("push").of_push())
    }

    /// Pushes one commit to one reference. By force only where the reference is kept work.
    pub(crate) async fn push(&self, commit: Option<&Commit>, name: &str) -> Result<(), GitError> {
        self.transport()?;
        let ours = name.starts_with(WIP);
        let refspec = match commit {
            Some(commit) => format!("{}{commit}:{name}", if ours { "+" } else { "" }),
            None if ours => format!(":{name}"),
            None => return Err(GitError::PushRefused(format!("{name} is not deleted"))),
        };
        let args =
            ["push", "--porcelain", "--no-verify", "--no-signed", "--no-follow-tags", "--recurse-submodules=no", "--"];
        let call = self.call().network().args(args).args([self.remote.url.as_str(), refspec.as_str()]);
        let output = call.run().await.map_err(GitError::of_push)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let Some(line) = said.lines().find(|line| line.starts_with('!')) else {
            return Err(output.error("push").of_push());
        };
        let why = self.remote.mask.text(line.rsplit('\t').next().unwrap_or(line));
        let told = super::error::message(&output.stderr);
        let raced = [
            "non-fast-forward",
            "fetch first",
            "stale info",
            "failed to update ref",
            "cannot lock ref",
            "incorrect old value",
        ];
        if line.contains("[rejected]") || raced.iter().any(|word| why.contains(word)) {
            return Err(GitError::NotFastForward(why));
        }
        match line.contains("[remote rejected]") {
            true => Err(GitError::PushRefused(format!("{why} ({told})"))),
            false => Err(GitError::PushFailed(format!("{why} ({told})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_branch_of_the_jobs_own_may_be_pushed() {
        let prefixes = ["feature/".to_owned(), "fix/".to_owned()];
        for good in ["feature/a", "fix/b"] {
            check_branch(good, "main", &prefixes).unwrap();
        }
        for (bad, base) in [
            ("main", "main"),
            ("feature/a", "feature/a"),
            ("other/a", "main"),
            ("feature/", "main"),
            ("feature", "main"),
            ("-f", "main"),
            ("feature/a:refs/heads/main", "main"),
            ("+feature/a", "main"),
            ("feature/../main", "main"),
        ] {
            assert!(matches!(check_branch(bad, base, &prefixes), Err(GitError::PushRefused(_))), "{bad}");
        }
        assert!(check_branch("feature/a", "main", &[String::new()]).is_err(), "an empty prefix allows nothing");
    }
}
