//! One job's workspace: its tree, what we know of it, and what is done with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mirror::{Fetched, Mirror, Want, kept};
use super::{Hold, Inner, Remote, State, WorkspaceError, blocking, clean, now};
use crate::git::change::{copy_index, keep_time};
use crate::git::repo::{Repo, put};
use crate::git::{Author, Change, Commit, GitError, Order, Pushed, Scan, Sifted, check_branch};

/// A slot, taken. Its owner sees to it that none of the job's commands runs while a method of it does.
pub struct Slot {
    /// Shared with what goes on in the background to its end, though a future is dropped.
    hold: Arc<Hold>,
    path: PathBuf,
    mirror: Arc<Mirror>,
    repo: Repo,
    want: Option<Want>,
    at: Option<Commit>,
}

/// Work that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A commit whose parent is what it was made on: [`Fetched::kept`], or [`Slot::kept`].
    Commit(Commit),
    /// A patch, and the commit that it was made on.
    Patch {
        /// The base.
        base: Commit,
        /// As [`Slot::patch`] gave it.
        patch: Vec<u8>,
    },
}

impl Slot {
    pub(super) fn new(hold: Hold, remote: Remote, mirror: Arc<Mirror>) -> Self {
        let inner = &hold.inner;
        let path = inner.root.join(format!("slots/{}", hold.number));
        let repo = Repo { git: inner.git.clone(), dir: path.join("git"), remote };
        Self { path, mirror, repo, want: None, at: None, hold: Arc::new(hold) }
    }

    /// Which slot; from 0.
    pub fn number(&self) -> usize {
        self.hold.number
    }

    /// The work tree.
    pub fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// The job's own home; empty at first.
    pub fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    /// Files for both sides that are no part of the change; empty at first.
    pub fn aside(&self) -> PathBuf {
        self.path.join("aside")
    }

    /// What the `.git` in the tree borrows from: a container must see it at this very path, read-only, for the job's own
    /// git commands to work.
    pub fn objects(&self) -> PathBuf {
        self.mirror.path.join("objects")
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.hold.inner
    }

    fn index(&self) -> PathBuf {
        self.path.join("index")
    }

    fn pit(&self) -> PathBuf {
        self.inner().root.join(format!("pits/{}", self.number()))
    }

    /// Runs to its end, though this is dropped; the slot is free only then.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, WorkspaceError> {
        let (hold, path, pit) = (self.hold.clone(), self.path.clone(), self.pit());
        let done = blocking(move || {
            let _hold = hold;
            work(&path, &pit)
        });
        done.await.map_err(WorkspaceError::folder(&self.path))
    }

    fn note(&self, bytes: Option<u64>) -> State {
        // Before it stands anywhere, its tree is still what the last job left clean.
        let old = self.inner().book().slots[self.number()].state.clone();
        let commit = self.at.as_ref().map(Commit::to_string).or(old.commit);
        let bytes = bytes.unwrap_or(old.bytes);
        let state = State { mirror: Some(self.mirror.name.clone()), commit, used: now(), bytes };
        self.inner().note(self.number(), state.clone());
        state
    }

    /// Makes it clean, whoever had it before. What cannot be cleaned is set aside.
    pub(super) async fn make_clean(&mut self, before: &State) -> Result<(), WorkspaceError> {
        let keep = before.mirror.as_ref() == Some(&self.mirror.name) && before.commit.is_some();
        if let Err(error) = self.clean(keep).await {
            let (inner, why) = (self.inner().clone(), error.to_string());
            self.blocking(move |path, pit| {
                // What resists may have come as far as the pit.
                inner.set_aside(pit, &why)?;
                inner.set_aside(path, &why)?;
                lay_out(path, pit, false)
            })
            .await?;
            self.ensure().await?;
        }
        Ok(())
    }

    async fn clean(&self, keep: bool) -> Result<(), WorkspaceError> {
        self.blocking(move |path, pit| lay_out(path, pit, keep)).await?;
        self.ensure().await?;
        if keep {
            self.scrub().await?;
        }
        Ok(())
    }

    /// Removes from the tree whatever its index does not know.
    async fn scrub(&self) -> Result<(), WorkspaceError> {
        let listed = self.repo.call().index(&self.index()).args(["ls-files", "-s", "-z"]).ok().await;
        self.blocking(move |path, pit| {
            let scrubbed = listed
                .map_err(io::Error::other)
                .and_then(|listed| clean::scrub(&path.join("tree"), &clean::Known::read(listed.pieces()), pit));
            // A tree that is not worth the trouble.
            match scrubbed {
                Ok(()) => Ok(()),
                Err(_) => {
                    clean::remove(&path.join("index"), pit)?;
                    clean::remove(&path.join("tree"), pit)?;
                    std::fs::create_dir(path.join("tree"))
                }
            }
        })
        .await
    }

    /// Our git directory, as we know it, without the locks of a git that was killed: one works in a slot at a time.
    async fn ensure(&self) -> Result<(), WorkspaceError> {
        let (repo, objects) = (self.repo.clone(), self.objects());
        self.blocking(move |path, _| {
            repo.ensure(Some(&objects))?;
            repo.unlock()?;
            for entry in std::fs::read_dir(path)? {
                let path = entry?.path();
                if path.extension().is_some_and(|end| end == "lock") {
                    std::fs::remove_file(path)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// The mirror, for a moment in which nobody else writes into it.
    async fn in_mirror<T>(&self, work: impl AsyncFnOnce(&Repo) -> Result<T, GitError>) -> Result<T, WorkspaceError> {
        let _held = self.mirror.hold().await;
        let repo = self.mirror.repo(self.inner(), &self.repo.remote);
        let ensured = repo.clone();
        self.blocking(move |_, _| {
            ensured.ensure(None)?;
            ensured.unlock()
        })
        .await?;
        Ok(work(&repo).await?)
    }

    /// Brings what is wanted of the remote into the mirror. Those who come at the same time are served at once. A mirror
    /// that is broken is set aside, told, and made anew.
    ///
    /// Cancel safe.
    pub async fn fetch(&mut self, want: &Want) -> Result<Fetched, WorkspaceError> {
        self.want = Some(want.clone());
        self.mirror.fetch(self.inner(), &self.repo.remote, want).await
    }

    /// Makes the tree this commit, and nothing else; the job finds itself on `branch`, with `base` beside it.
    ///
    /// Dropped half way, it is to be called again.
    pub async fn stand(&mut self, commit: &Commit, branch: &str, base: &str) -> Result<(), WorkspaceError> {
        if self.at.is_some() {
            // A job was here.
            self.scrub().await?;
        }
        let mut tried = 0;
        while let Err(error) = self.check_out(commit).await {
            tried += 1;
            let WorkspaceError::Git(GitError::Corrupt(why)) = error else { return Err(error) };
            match (tried, self.want.clone()) {
                // It may be the slot alone.
                (1, _) => self.blocking(|path, pit| lay_out(path, pit, false)).await?,
                (2, Some(want)) => {
                    let (inner, mirror) = (self.inner().clone(), self.mirror.clone());
                    {
                        let _held = self.mirror.hold().await;
                        self.blocking(move |_, _| inner.set_aside(&mirror.path, &why)).await?;
                    }
                    self.fetch(&want).await?;
                }
                _ => return Err(GitError::Corrupt(why).into()),
            }
            self.ensure().await?;
        }
        self.at = Some(commit.clone());
        let state = self.note(None);
        let (commit, branch, base) = (commit.to_string(), branch.to_owned(), base.to_owned());
        let (objects, author) = (self.objects(), self.inner().settings.author.clone());
        self.blocking(move |path, pit| {
            put(&path.join("state.json"), &serde_json::to_vec(&state)?)?;
            job_git(path, pit, &objects, &commit, [&base, &branch], &author)
        })
        .await
    }

    async fn check_out(&mut self, commit: &Commit) -> Result<(), WorkspaceError> {
        let (tree, index) = (self.tree(), self.index());
        if self.check_tree().is_err() {
            self.blocking(|path, pit| lay_out(path, pit, false)).await?;
            self.ensure().await?;
        }
        self.ensure().await?;
        if !index.exists() && std::fs::read_dir(&tree).is_ok_and(|mut found| found.next().is_some()) {
            // Without an index git would not know what is old.
            self.blocking(|path, pit| lay_out(path, pit, false)).await?;
            self.ensure().await?;
        }
        let call = self.repo.call().tree(&tree).index(&index);
        let checked_out =
            call.args(["read-tree", "--reset", "-u", "--no-recurse-submodules", commit.as_str()]).ok().await;
        match checked_out {
            // It names the object that it does not find in many ways.
            Err(GitError::Failed { message, .. }) if !self.repo.has(commit).await? => {
                Err(GitError::Corrupt(message).into())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// What differs between the commit that the slot stands at and the tree; refused, if something of it may not leave the
    /// worker. Changes nothing in the tree.
    pub async fn change(&self, scan: Scan<'_>) -> Result<Change, WorkspaceError> {
        Ok(self.sift(scan).await?.whole()?)
    }

    /// The same without what may not leave. Changes nothing in the tree.
    pub async fn sift(&self, scan: Scan<'_>) -> Result<Sifted, WorkspaceError> {
        let base = self.at.clone().ok_or_else(|| GitError::BaseNotFound("none".to_owned()))?;
        self.check_tree()?;
        self.ensure().await?;
        let new = self.path.join("index.change");
        Ok(self.repo.sift(&self.tree(), &base, &self.index(), &new, &self.inner().settings.bounds, scan).await?)
    }

    /// The change as a patch that `git apply` takes.
    pub async fn patch(&self, change: &Change) -> Result<Vec<u8>, WorkspaceError> {
        Ok(self.repo.patch(change, &self.inner().settings.bounds).await?)
    }

    /// Makes the change a commit on what it is a change of. The message is a subject, and maybe a body.
    pub async fn commit(&self, change: &Change, message: &str) -> Result<Commit, WorkspaceError> {
        Ok(self.repo.commit_tree(&change.tree, &change.base, message, &self.inner().settings.author).await?)
    }

    /// Pushes one commit to the job's own branch, or says what it has become on what the remote has now. Looks at the
    /// remote first; see [`Order`].
    pub async fn push(&mut self, order: &Order) -> Result<Pushed, WorkspaceError> {
        match self.look(order).await? {
            Some(pushed) => Ok(pushed),
            None => self.send(order).await.map(|()| Pushed::Done),
        }
    }

    /// The first half of a push: looks at the remote. `None`: the commit may be sent.
    pub async fn look(&mut self, order: &Order) -> Result<Option<Pushed>, WorkspaceError> {
        check_branch(&order.branch, &order.base, &self.inner().settings.prefixes)?;
        let base = (order.base != "HEAD").then(|| order.base.clone());
        let want = Want { base, branch: Some(order.branch.clone()), kept: None };
        let there = self.mirror.fetch(self.inner(), &self.repo.remote, &want).await.map_err(|error| match error {
            WorkspaceError::Git(error) => error.of_push().into(),
            other => other,
        })?;
        check_branch(&order.branch, &there.base_name, &self.inner().settings.prefixes)?;
        Ok(self.repo.decide(order, &there.base, there.branch.as_ref()).await?)
    }

    /// Whether the job may go on from its branch as it was found: see [`Order::mark`].
    pub async fn may_go_on(&self, base: &Commit, tip: &Commit, mark: &str) -> Result<bool, WorkspaceError> {
        Ok(self.repo.may_go_on(base, tip, mark).await?)
    }

    /// The second half: sends the commit. What has changed at the remote since the look, the remote itself finds out.
    pub async fn send(&self, order: &Order) -> Result<(), WorkspaceError> {
        check_branch(&order.branch, &order.base, &self.inner().settings.prefixes)?;
        Ok(self.repo.push(Some(&order.commit), &format!("refs/heads/{}", order.branch)).await?)
    }

    /// Takes a branch back that this job has just made, or was making: it goes from the remote if it is at `commit`.
    pub async fn take_back(&self, branch: &str, commit: &Commit) -> Result<(), WorkspaceError> {
        check_branch(branch, "", &self.inner().settings.prefixes)?;
        Ok(self.repo.withdraw(commit, &format!("refs/heads/{branch}")).await?)
    }

    /// Keeps the change as a commit under `name`, in the mirror, and at the remote if asked to.
    pub async fn keep(&self, change: &Change, name: &str, remote: bool) -> Result<Commit, WorkspaceError> {
        let reference = kept(name);
        self.ensure().await?;
        let commit = self.commit(change, &format!("wip(task-{name})\n")).await?;
        self.repo.set_ref(&reference, Some(&commit)).await?;
        self.in_mirror(async |mirror| mirror.take_over(&self.repo.dir, &reference).await).await?;
        if remote {
            self.repo.push(Some(&commit), &reference).await?;
        }
        Ok(commit)
    }

    /// What an earlier attempt on this worker kept under `name`.
    pub async fn kept(&self, name: &str) -> Result<Option<Commit>, WorkspaceError> {
        self.in_mirror(async |mirror| mirror.resolve(&kept(name)).await).await
    }

    /// Forgets what was kept under `name`, here, and at the remote if it may be there.
    pub async fn forget(&self, name: &str, remote: bool) -> Result<(), WorkspaceError> {
        let reference = kept(name);
        self.in_mirror(async |mirror| mirror.set_ref(&reference, None).await).await?;
        if remote && self.is_kept_there(&reference).await? {
            self.repo.push(None, &reference).await?;
        }
        Ok(())
    }

    async fn is_kept_there(&self, reference: &str) -> Result<bool, WorkspaceError> {
        let args = ["ls-remote", "--", &self.repo.remote.url, reference];
        let text = self.repo.call().network().args(args).text().await?;
        Ok(text.lines().any(|line| line.split_once('\t').is_some_and(|(_, name)| name == reference)))
    }

    /// Brings kept work into the tree, on the commit that the slot stands at, as changes that are not committed. What
    /// conflicts is told, the tree stays as it is, and the work where it was.
    pub async fn resume(&mut self, work: &Kept) -> Result<(), WorkspaceError> {
        let onto = self.at.clone().ok_or_else(|| GitError::BaseNotFound("none".to_owned()))?;
        self.check_tree()?;
        self.ensure().await?;
        let index = self.path.join("index.resume");
        let (from, theirs) = match work {
            Kept::Commit(commit) => {
                let missing = || GitError::Corrupt(format!("kept work {commit} has no parent"));
                (self.repo.resolve(&format!("{commit}^")).await?.ok_or_else(missing)?, commit.clone())
            }
            Kept::Patch { base, patch } if self.repo.has(base).await? => {
                let tree = self.repo.patched(base, patch, &index).await?;
                (base.clone(), self.repo.commit_tree(&tree, base, "wip\n", &Author::default()).await?)
            }
            Kept::Patch { base, .. } => {
                let why = GitError::Conflict { paths: vec![format!("all: its base {base} is gone from the remote")] };
                return Err(why.into());
            }
        };
        let merged = self.repo.merged(&from, &theirs, &onto).await?;
        copy_index(&self.index(), &index).await.map_err(WorkspaceError::folder(&index))?;
        let (tree, base) = (self.tree(), onto.as_str());
        let call = self.repo.call().tree(&tree).index(&index);
        // The index stays at the base: what differs is the change.
        call.args(["read-tree", "-m", "-u", "--no-recurse-submodules", base, merged.as_str()]).ok().await?;
        Ok(())
    }

    /// Ends it: nothing of the job stays but the tree as the base has it, for the next job of this repository.
    pub async fn release(mut self) -> Result<(), WorkspaceError> {
        let state = self.note(None);
        self.make_clean(&state).await?;
        if let Some(commit) = self.at.clone()
            && self.check_out(&commit).await.is_err()
        {
            self.at = None;
            self.blocking(|path, pit| lay_out(path, pit, false)).await?;
        }
        let bytes = self.blocking(|path, _| Ok(clean::bytes(path))).await?;
        let state = self.note(Some(bytes));
        self.blocking(move |path, _| put(&path.join("state.json"), &serde_json::to_vec(&state)?)).await?;
        let Self { hold, .. } = self;
        let inner = hold.inner.clone();
        // The slot is free, its permit not yet: whoever removes something has one.
        let permit = Arc::into_inner(hold).and_then(|mut hold| hold.permit.take());
        // That it is too much was told.
        let _ = inner.make_room().await;
        drop(permit);
        Ok(())
    }

    /// A tree that is no folder (any more) leads elsewhere.
    fn check_tree(&self) -> Result<(), GitError> {
        match self.tree().symlink_metadata() {
            Ok(found) if found.is_dir() => Ok(()),
            _ => Err(GitError::ChangeRefused("the root of the tree is no folder any more".to_owned())),
        }
    }
}

/// Empty folders; the tree and its index stay if they may be of use.
fn lay_out(path: &Path, pit: &Path, keep: bool) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => {}
        _ => {
            clean::remove(path, pit)?;
            std::fs::create_dir_all(path)?;
        }
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if !(name == "state.json" || keep && (name == "tree" && entry.file_type()?.is_dir() || name == "index")) {
            clean::remove(&entry.path(), pit)?;
        }
    }
    for name in ["tree", "home", "aside"] {
        match std::fs::create_dir(path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    clean::remove(&path.join("tree/.git"), pit)
}

/// The `.git` that a job finds: a repository of its own, without a remote, that borrows the mirror's objects.
fn job_git(
    path: &Path,
    pit: &Path,
    objects: &Path,
    commit: &str,
    [base, branch]: [&String; 2],
    author: &Author,
) -> io::Result<()> {
    let git = path.join("tree/.git");
    clean::remove(&git, pit)?;
    for folder in ["objects/info", "objects/pack", "refs/heads", "info"] {
        std::fs::create_dir_all(git.join(folder))?;
    }
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace(char::is_control, " ");
    let config = format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         [user]\n\tname = \"{}\"\n\temail = \"{}\"\n[gc]\n\tauto = 0\n",
        quoted(&author.name),
        quoted(&author.email)
    );
    std::fs::write(git.join("config"), config)?;
    let mut line = objects.as_os_str().as_encoded_bytes().to_vec();
    line.push(b'\n');
    std::fs::write(git.join("objects/info/alternates"), line)?;
    // Packed, so that no two names can be in each other's way.
    let mut names = vec![format!("refs/heads/{base}"), format!("refs/heads/{branch}")];
    names.sort();
    names.dedup();
    let packed: String = names.iter().map(|name| format!("{commit} {name}\n")).collect();
    std::fs::write(git.join("packed-refs"), format!("# pack-refs with: peeled fully-peeled sorted \n{packed}"))?;
    std::fs::write(git.join("HEAD"), format!("ref: refs/heads/{branch}\n"))?;
    std::fs::copy(path.join("index"), git.join("index"))?;
    keep_time(&path.join("index"), &git.join("index"))
}
