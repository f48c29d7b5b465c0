//! A repository of ours: a git directory whose configuration is what we say, and maybe a work tree.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::{Author, Call, Commit, Git, GitError, Remote, Transport};

/// All that a repository of ours is configured to be.
const CONFIG: &str =
    "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n\tlogallrefupdates = false\n";

/// Where the reference of kept work is, here and at the remote.
pub(crate) const WIP: &str = "refs/shoal/wip/";

/// A git directory, with the remote that its work is for.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    pub(crate) git: Git,
    pub(crate) dir: PathBuf,
    pub(crate) remote: Remote,
}

impl Repo {
    pub(crate) fn call(&self) -> Call<'_> {
        self.git.call(Some(&self.remote)).dir(&self.dir)
    }

    /// Makes it, if it is not there; and makes it what we know, if it is: whoever runs as our user could have written
    /// into it. `alternates` are the objects of another one, that are as good as its own.
    pub(crate) fn ensure(&self, alternates: Option<&Path>) -> io::Result<()> {
        for folder in ["objects/info", "objects/pack", "refs/heads"] {
            std::fs::create_dir_all(self.dir.join(folder))?;
        }
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let known = ["HEAD", "config", "objects", "refs", "packed-refs", "index", "FETCH_HEAD"];
            if !known.iter().any(|known| entry.file_name() == *known) {
                match entry.file_type()?.is_dir() {
                    true => std::fs::remove_dir_all(entry.path())?,
                    false => std::fs::remove_file(entry.path())?,
                }
            }
        }
        put(&self.dir.join("config"), CONFIG.as_bytes())?;
        put(&self.dir.join("HEAD"), b"ref: refs/heads/none\n")?;
        let path = self.dir.join("objects/info/alternates");
        match alternates {
            Some(objects) => {
                let mut line = objects.as_os_str().as_encoded_bytes().to_vec();
                line.push(b'\n');
                put(&path, &line)
            }
            None => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Clears the locks that a killed git left. Only where none runs.
    pub(crate) fn unlock(&self) -> io::Result<()> {
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.as_encoded_bytes();
                if entry.file_type()?.is_dir() {
                    // Loose objects have no locks, and there may be very many.
                    if !(name.len() == 2 && folder.ends_with("objects")) {
                        folders.push(entry.path());
                    }
                } else if name.ends_with(b".lock") || name.starts_with(b"tmp_") || name.starts_with(b".tmp-") {
                    std::fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// The commit, if it is here with its tree.
    pub(crate) async fn has(&self, commit: &Commit) -> Result<bool, GitError> {
        let output = self.call().args(["cat-file", "-e", &format!("{commit}^{{tree}}")]).run().await?;
        Ok(output.status.success())
    }

    /// What `name` is, as a commit.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Option<Commit>, GitError> {
        let name = format!("{name}^{{commit}}");
        let output = self.call().args(["rev-parse", "--quiet", "--verify", "--end-of-options", &name]).run().await?;
        if !output.status.success() && !output.stderr.trim().is_empty() {
            return Err(output.error("rev-parse"));
        }
        Ok(Commit::parse(String::from_utf8_lossy(&output.stdout).trim()))
    }

    /// The tree of a commit.
    pub(crate) async fn tree_of(&self, commit: &Commit) -> Result<Commit, GitError> {
        self.parse(self.call().args(["rev-parse", "--verify", &format!("{commit}^{{tree}}")]).text().await?)
    }

    /// Whether `old` is in the history of `new`.
    pub(crate) async fn is_ancestor(&self, old: &Commit, new: &Commit) -> Result<bool, GitError> {
        let output = self.call().args(["merge-base", "--is-ancestor", old.as_str(), new.as_str()]).run().await?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(output.error("merge-base")),
        }
    }

    /// A commit by plumbing: no hook, no signature, no editor.
    pub(crate) async fn commit_tree(
        &self,
        tree: &Commit,
        parent: &Commit,
        message: &str,
        author: &Author,
    ) -> Result<Commit, GitError> {
        let call = self.call().args(["commit-tree", "--no-gpg-sign", tree.as_str(), "-p", parent.as_str(), "-F", "-"]);
        self.parse(signed(call, author).stdin(message.as_bytes().to_vec()).text().await?)
    }

    /// What `theirs` (made on `from`) is on `onto`: the tree of a three-way merge with `from` as the common ground.
    /// `from` and `theirs` are commits; `onto` need not have anything to do with them.
    pub(crate) async fn merged(&self, from: &Commit, theirs: &Commit, onto: &Commit) -> Result<Commit, GitError> {
        // `--merge-base` is newer than the oldest git that will do. Two commits with `from` as their only parent say
        // the same, also where history was rewritten.
        let author = Author::default();
        let (one, other) = (self.tree_of(onto).await?, self.tree_of(theirs).await?);
        let one = self.commit_tree(&one, from, "onto", &author).await?;
        let other = self.commit_tree(&other, from, "theirs", &author).await?;
        let args = ["merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", one.as_str(), other.as_str()];
        let output = self.call().args(args).run().await?;
        let mut pieces = output.pieces().map(|piece| String::from_utf8_lossy(piece).into_owned());
        match output.status.code() {
            Some(0) => self.parse(pieces.next().unwrap_or_default()),
            Some(1) => {
                let mut paths: Vec<_> = pieces.skip(1).collect();
                paths.dedup();
                Err(GitError::Conflict { paths })
            }
            _ => Err(output.error("merge-tree")),
        }
    }

    /// One commit, `theirs`, anew on `onto`, with its message and its author.
    pub(crate) async fn rebased(&self, theirs: &Commit, onto: &Commit, author: &Author) -> Result<Commit, GitError> {
        let from = self
            .resolve(&format!("{theirs}^"))
            .await?
            .ok_or_else(|| GitError::Corrupt(format!("{theirs} has no parent")))?;
        let tree = self.merged(&from, theirs, onto).await?;
        let message =
            self.call().args(["log", "-1", "--format=%B", "--end-of-options", theirs.as_str()]).text().await?;
        self.commit_tree(&tree, onto, &format!("{}\n", message.trim_end()), author).await
    }

    /// Takes a commit over from another repository of ours, under a name here.
    pub(crate) async fn take_over(&self, from: &Path, name: &str) -> Result<(), GitError> {
        let refspec = format!("+{name}:{name}");
        let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--"];
        let args = args.map(OsString::from).into_iter().chain([from.as_os_str().to_owned(), refspec.into()]);
        self.call().between_folders().args(args).ok().await.map(drop)
    }

    pub(crate) async fn set_ref(&self, name: &str, commit: Option<&Commit>) -> Result<(), GitError> {
        let call = match commit {
            Some(commit) => self.call().args(["update-ref", name, commit.as_str()]),
            None => self.call().args(["update-ref", "-d", name]),
        };
        call.ok().await.map(drop)
    }

    pub(crate) fn transport(&self) -> Result<Transport, GitError> {
        self.git.allows(&self.remote)
    }

    pub(crate) fn parse(&self, text: String) -> Result<Commit, GitError> {
        let what = || GitError::Failed { what: "plumbing".to_owned(), message: format!("no object's name: {text:?}") };
        Commit::parse(text.trim()).ok_or_else(what)
    }
}

/// A call with author and committer.
fn signed<'a>(call: Call<'a>, author: &Author) -> Call<'a> {
    call.env("GIT_AUTHOR_NAME", &author.name)
        .env("GIT_AUTHOR_EMAIL", &author.email)
        .env("GIT_COMMITTER_NAME", &author.name)
        .env("GIT_COMMITTER_EMAIL", &author.email)
}

/// Makes a file this, by a rename, unless it is.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|found| found.is_file()) && std::fs::read(path)? == bytes {
        return Ok(());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    std::fs::write(&new, bytes)?;
    std::fs::rename(&new, path)
}
