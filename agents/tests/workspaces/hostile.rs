//! Hostile repositories, and hostile commands that ran in a slot: they harm nothing.

use std::os::unix::fs::symlink;
use std::path::Path;

use shoal_agents::git::Pushed;
use shoal_agents::workspace::Slot;

use crate::support::{BRANCH, Origin, Worker, change, executable, git, listing, order, write};

/// A program that leaves a mark where it runs.
struct Mark(tempfile::TempDir);

impl Mark {
    fn new() -> Self {
        let mark = Self(tempfile::tempdir().unwrap());
        executable(&mark.program(), &format!("#!/bin/sh\ntouch {}\ncat\n", mark.0.path().join("ran").display()));
        mark
    }

    fn program(&self) -> std::path::PathBuf {
        self.0.path().join("evil")
    }

    fn config(&self) -> String {
        let evil = self.program().display().to_string();
        format!(
            "[core]\n\tfsmonitor = {evil}\n\thooksPath = {hooks}\n\tsshCommand = {evil}\n\tpager = {evil}\n\tworktree = /\n\
             [filter \"evil\"]\n\tclean = {evil}\n\tsmudge = {evil}\n\tprocess = {evil}\n\trequired = true\n\
             [diff \"evil\"]\n\ttextconv = {evil}\n\tcommand = {evil}\n[merge \"evil\"]\n\tdriver = {evil}\n\
             [credential]\n\thelper = !{evil}\n[gpg]\n\tprogram = {evil}\n[commit]\n\tgpgSign = true\n\
             [url \"/elsewhere\"]\n\tinsteadOf = /\n[uploadpack]\n\tpackObjectsHook = {evil}\n",
            hooks = self.0.path().join("hooks").display()
        )
    }

    fn hooks(&self, folder: &Path) {
        for hook in [
            "pre-commit",
            "commit-msg",
            "post-checkout",
            "post-merge",
            "pre-push",
            "reference-transaction",
            "post-index-change",
        ] {
            executable(&folder.join(hook), &std::fs::read_to_string(self.program()).unwrap());
        }
    }

    fn never_ran(&self) {
        assert!(!self.0.path().join("ran").exists());
    }
}

/// Everything that is done with a slot.
async fn all_of_it(slot: &mut Slot, fetched: &shoal_agents::workspace::Fetched) {
    let found = change(slot).await;
    slot.patch(&found).await.unwrap();
    slot.keep(&found, "t1", true).await.unwrap();
    let order = order(slot, fetched).await;
    assert_eq!(slot.push(&order).await.unwrap(), Pushed::Done);
    slot.stand(&order.commit, BRANCH, &order.base).await.unwrap();
    slot.forget("t1", true).await.unwrap();
}

#[tokio::test]
async fn a_git_directory_that_the_tree_brings_is_never_believed() {
    for kind in ["config", "repository", "link", "file"] {
        let (origin, worker, mark) = (Origin::new(), Worker::new().await, Mark::new());
        mark.hooks(&mark.0.path().join("hooks"));
        let (mut slot, fetched) = worker.begin(&origin.remote()).await;
        let dot = slot.tree().join(".git");
        let elsewhere = mark.0.path().join("elsewhere");
        git(mark.0.path(), ["init", "-q", "elsewhere"]);
        write(&elsewhere.join(".git"), "config", mark.config());
        mark.hooks(&elsewhere.join(".git/hooks"));
        if kind != "config" {
            std::fs::remove_dir_all(&dot).unwrap();
        }
        match kind {
            "config" => {
                write(&dot, "config", mark.config());
                write(&dot, "info/attributes", "* filter=evil diff=evil merge=evil\n");
                write(&dot, "info/exclude", "*\n");
                mark.hooks(&dot.join("hooks"));
            }
            "repository" => std::fs::rename(elsewhere.join(".git"), &dot).unwrap(),
            "link" => symlink(elsewhere.join(".git"), &dot).unwrap(),
            _ => write(&slot.tree(), ".git", format!("gitdir: {}\n", elsewhere.join(".git").display())),
        }
        write(&slot.tree(), ".gitattributes", "* filter=evil diff=evil merge=evil\n");
        write(&slot.tree(), "new", "x\n");
        all_of_it(&mut slot, &fetched).await;
        slot.release().await.unwrap();
        let (slot, _) = worker.begin(&origin.remote()).await;
        assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
        assert_eq!(origin.show(BRANCH, "new"), "x", "{kind}");
        assert!(kind != "link" || elsewhere.join(".git/config").exists(), "what a link leads to stays");
        mark.never_ran();
    }
}

#[tokio::test]
async fn filters_and_drivers_that_a_repository_names_do_not_run() {
    let (origin, worker, mark) = (Origin::new(), Worker::new().await, Mark::new());
    origin.write(".gitattributes", "* filter=evil diff=evil merge=evil\n*.big filter=lfs diff=lfs merge=lfs -text\n");
    origin.write(".lfsconfig", "[lfs]\n\turl = https://evil/\n");
    origin.write("a.big", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
    origin.write("hooks/post-checkout", std::fs::read_to_string(mark.program()).unwrap());
    origin.write(".gitconfig", mark.config());
    origin.commit("evil");
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    assert!(slot.tree().join("a.big").metadata().unwrap().len() > 1, "as it is in the repository");
    write(&slot.tree(), "README", "changed\n");
    all_of_it(&mut slot, &fetched).await;
    mark.never_ran();
}

#[tokio::test]
async fn submodules_are_never_entered() {
    let (origin, worker, mark) = (Origin::new(), Worker::new().await, Mark::new());
    let evil = format!(
        "[submodule \"a\"]\n\tpath = sub\n\turl = ext::{0}\n[submodule \"b\"]\n\tpath = -u\n\turl = -u{0}\n\tupdate = !{0}\n\
         [submodule \"../../x\"]\n\tpath = other\n\turl = /etc\n\tfetchRecurseSubmodules = true\n",
        mark.program().display()
    );
    origin.write(".gitmodules", evil);
    let head = git(&origin.dev(), ["rev-parse", "HEAD"]);
    for path in ["sub", "other"] {
        git(&origin.dev(), ["update-index", "--add", "--cacheinfo", &format!("160000,{head},{path}")]);
    }
    git(&origin.dev(), ["add", ".gitmodules"]);
    git(&origin.dev(), ["commit", "-qm", "submodules"]);
    git(&origin.dev(), ["push", "-q", "../origin.git", "HEAD:main"]);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    assert!(listing(&slot.tree()).iter().all(|path| !path.starts_with("sub/")), "nothing in it");
    assert!(change(&slot).await.is_empty());
    // A command fills one of them with a repository of its own.
    git(&slot.tree(), ["init", "-q", "sub"]);
    write(&slot.tree(), "sub/.git/config", mark.config());
    write(&slot.tree(), "sub/file", "x\n");
    mark.hooks(&slot.tree().join("sub/.git/hooks"));
    write(&slot.tree(), "new", "x\n");
    assert_eq!(change(&slot).await.report.files, 1);
    all_of_it(&mut slot, &fetched).await;
    slot.release().await.unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert!(!slot.tree().join("sub/file").exists());
    mark.never_ran();
}

#[tokio::test]
async fn links_out_of_the_tree_are_links_and_are_not_written_through() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "lib.txt", "mine\n");
    symlink(outside.path(), origin.dev().join("out")).unwrap();
    symlink("../../../../../../etc/passwd", origin.dev().join("up")).unwrap();
    origin.commit("links");
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    assert!(slot.tree().join("out").symlink_metadata().unwrap().is_symlink());
    // A command puts a link in the place of a folder that the base has files in.
    std::fs::remove_dir_all(slot.tree().join("src")).unwrap();
    symlink(outside.path(), slot.tree().join("src")).unwrap();
    let found = change(&slot).await;
    let listed: Vec<_> = found.files.iter().map(|file| file.path.to_str().unwrap()).collect();
    assert_eq!(listed, ["src", "src/lib.txt"], "a link, and a file that is gone");
    let kept = slot.keep(&found, "t1", false).await.unwrap();
    slot.stand(&fetched.base, BRANCH, "main").await.unwrap();
    assert!(slot.tree().join("src").symlink_metadata().unwrap().is_dir());
    slot.resume(&shoal_agents::workspace::Kept::Commit(kept)).await.unwrap();
    slot.release().await.unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(listing(&slot.tree()), ["README", "out", "src", "src/lib.txt", "up"]);
    assert_eq!(std::fs::read_to_string(outside.path().join("lib.txt")).unwrap(), "mine\n");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_tree_that_is_a_link_itself_is_not_followed() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "README", "mine\n");
    let (slot, _) = worker.begin(&origin.remote()).await;
    for name in [slot.tree(), slot.home(), slot.aside()] {
        std::fs::remove_dir_all(&name).unwrap();
        symlink(outside.path(), &name).unwrap();
    }
    assert!(slot.change(&crate::support::clean).await.is_err());
    slot.release().await.unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
    assert_eq!(std::fs::read_to_string(outside.path().join("README")).unwrap(), "mine\n");
}

#[tokio::test]
async fn a_forest_of_deep_and_read_only_folders_is_cleaned_away() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    {
        use nix::fcntl::OFlag;
        use nix::sys::stat::{Mode, fchmod, mkdirat};
        let name = "d".repeat(100);
        let mut at = nix::dir::Dir::open(&slot.tree().join("src"), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..300 {
            mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            let next = nix::dir::Dir::openat(&at, name.as_str(), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
            fchmod(&at, Mode::S_IRUSR | Mode::S_IXUSR).unwrap();
            at = next;
        }
        nix::fcntl::openat(&at, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap();
        fchmod(&at, Mode::empty()).unwrap();
    }
    let error = slot.change(&crate::support::clean).await.unwrap_err();
    assert_eq!(
        error.to_task_error().code,
        schemas::Code::ChangeRefused,
        "{error}: what git cannot see is not left out in silence"
    );
    slot.release().await.unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
    assert_eq!(worker.troubles(), Vec::<String>::new());
}
