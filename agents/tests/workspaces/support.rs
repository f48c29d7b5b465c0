//! A remote, and the workspaces of one worker.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_agents::git::{self, Change, Commit, Order, Transport};
use shoal_agents::workspace::{Fetched, Kept, Remote, Settings, Slot, Trouble, Want, WorkspaceError, Workspaces};

pub const BRANCH: &str = "feature/task-t1-work";

/// Of every commit.
const MESSAGE: &str = "feat(task-t1): work\n\nIn full.\n\nShoal-Task: q.t1\n";

/// Runs git as a developer would, on a machine without settings of its own.
pub fn git(folder: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .args(["-c", "user.name=dev", "-c", "user.email=dev@host", "-c", "protocol.file.allow=always"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A bare repository, and a clone of it that a developer works in.
pub struct Origin {
    pub folder: tempfile::TempDir,
}

impl Origin {
    /// With `README` and `src/lib.txt` on `main`.
    pub fn new() -> Self {
        let origin = Self { folder: tempfile::tempdir().unwrap() };
        git(origin.folder.path(), ["init", "-q", "--bare", "-b", "main", "origin.git"]);
        git(origin.folder.path(), ["init", "-q", "-b", "main", "dev"]);
        origin.write("README", "hello\n");
        origin.write("src/lib.txt", "one\ntwo\nthree\nfour\nfive\nsix\nseven\n");
        origin.commit("begin");
        origin
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("origin.git")
    }

    pub fn dev(&self) -> PathBuf {
        self.folder.path().join("dev")
    }

    pub fn remote(&self) -> Remote {
        Remote { url: self.path().to_str().unwrap().to_owned(), ..Remote::default() }
    }

    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        write(&self.dev(), path, text);
    }

    /// Commits all of the clone and pushes `main`.
    pub fn commit(&self, message: &str) -> Commit {
        git(&self.dev(), ["add", "-A"]);
        git(&self.dev(), ["commit", "-qm", message]);
        git(&self.dev(), ["push", "-q", "../origin.git", "HEAD:main"]);
        Commit::parse(&git(&self.dev(), ["rev-parse", "HEAD"])).unwrap()
    }

    /// What a reference of the remote is.
    pub fn tip(&self, name: &str) -> Option<String> {
        let found = git(&self.path(), ["for-each-ref", "--format=%(objectname)", name]);
        (!found.is_empty()).then_some(found)
    }

    /// A file at the remote.
    pub fn show(&self, branch: &str, path: &str) -> String {
        git(&self.path(), ["show", &format!("{branch}:{path}")])
    }

    pub fn hook(&self, script: &str) {
        executable(&self.path().join("hooks/pre-receive"), script);
    }
}

pub fn write(root: &Path, path: &str, text: impl AsRef<[u8]>) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

pub fn executable(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A worker's workspaces.
pub struct Worker {
    pub root: tempfile::TempDir,
    pub all: Workspaces,
    pub troubles: Arc<Mutex<Vec<Trouble>>>,
}

pub fn allowed() -> git::Settings {
    git::Settings {
        transports: [Transport::File, Transport::Http, Transport::Https].into(),
        network_timeout: Duration::from_secs(30),
        ..git::Settings::default()
    }
}

impl Worker {
    pub async fn new() -> Self {
        Self::with(Settings { slots: 2, ..Settings::default() }, allowed()).await
    }

    pub async fn with(settings: Settings, git: git::Settings) -> Self {
        Self::at(tempfile::tempdir().unwrap(), settings, git).await
    }

    pub async fn at(root: tempfile::TempDir, settings: Settings, git: git::Settings) -> Self {
        let troubles: Arc<Mutex<Vec<Trouble>>> = Arc::default();
        let told = troubles.clone();
        let tell = Arc::new(move |trouble| told.lock().unwrap().push(trouble));
        let all = Workspaces::open(root.path(), Settings { tell, ..settings }, git).await.unwrap();
        Self { root, all, troubles }
    }

    /// A slot at the tip of the remote's own branch.
    pub async fn begin(&self, remote: &Remote) -> (Slot, Fetched) {
        self.try_begin(remote).await.unwrap()
    }

    pub async fn try_begin(&self, remote: &Remote) -> Result<(Slot, Fetched), WorkspaceError> {
        let mut slot = self.all.take(remote).await?;
        let fetched = slot.fetch(&want()).await?;
        slot.stand(&fetched.base, BRANCH, &fetched.base_name).await?;
        Ok((slot, fetched))
    }

    pub fn troubles(&self) -> Vec<String> {
        self.troubles.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    pub fn mirror(&self) -> PathBuf {
        let mut found = std::fs::read_dir(self.root.path().join("mirrors")).unwrap().map(|entry| entry.unwrap().path());
        found.find(|path| !path.to_str().unwrap().contains(".broken-")).unwrap()
    }
}

pub fn want() -> Want {
    Want { base: None, branch: Some(BRANCH.to_owned()), kept: Some("t1".to_owned()) }
}

/// No secrets anywhere.
pub fn clean(_: &[u8]) -> std::collections::BTreeSet<shoal_agents::secret::Found> {
    Default::default()
}

pub async fn change(slot: &Slot) -> Change {
    slot.change(&clean).await.unwrap()
}

/// The change of the slot as a commit, and the order to push it.
pub async fn order(slot: &Slot, fetched: &Fetched) -> Order {
    Order {
        commit: slot.commit(&change(slot).await, MESSAGE).await.unwrap(),
        base: fetched.base_name.clone(),
        branch: BRANCH.to_owned(),
        began: fetched.branch.clone(),
        mark: "Shoal-Task: q.t1".to_owned(),
        author: git::Author::default(),
    }
}

/// The same work on top of where the remote is by now, as a worker goes on with it.
pub async fn again(slot: &mut Slot, order: &Order, commit: Commit, onto: &Commit) -> Order {
    slot.stand(onto, BRANCH, &order.base).await.unwrap();
    slot.resume(&Kept::Commit(commit)).await.unwrap();
    Order { commit: slot.commit(&change(slot).await, MESSAGE).await.unwrap(), ..order.clone() }
}

/// Every path below a folder but `.git`, with what it is.
pub fn listing(tree: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if entry.path() == tree.join(".git") {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path().strip_prefix(tree).unwrap().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}
