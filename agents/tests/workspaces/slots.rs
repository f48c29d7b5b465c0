//! Slots and mirrors.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

use schemas::Code;
use shoal_agents::git::GitError;
use shoal_agents::workspace::{Remote, Settings, Want, WorkspaceError, Workspaces};

use crate::support::{BRANCH, Origin, Worker, allowed, change, executable, git, listing, want, write};

#[tokio::test]
async fn a_slot_stands_at_the_base_and_the_jobs_own_git_works_in_it() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, fetched) = worker.begin(&origin.remote()).await;
    assert_eq!((fetched.base_name.as_str(), fetched.branch.as_ref()), ("main", None));
    assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
    assert_eq!(git(&slot.tree(), ["status", "--porcelain"]), "");
    assert_eq!(git(&slot.tree(), ["rev-parse", "--abbrev-ref", "HEAD"]), BRANCH);
    assert_eq!(git(&slot.tree(), ["log", "--format=%s", "main"]), "begin");
    assert_eq!(git(&slot.tree(), ["remote"]), "", "its push has nowhere to go");
    write(&slot.tree(), "new", "x");
    git(&slot.tree(), ["add", "new"]);
    git(&slot.tree(), ["commit", "-qm", "by the agent"]);
    let files: Vec<_> = change(&slot).await.files.into_iter().map(|file| file.path).collect();
    assert_eq!(files, [std::path::Path::new("new")], "its own commits count by their content");
    assert_eq!(git(&worker.mirror(), ["log", "--all", "--format=%s"]), "begin", "and never come into the mirror");
    slot.release().await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_job_is_left_for_the_next() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    origin.write(".gitignore", "target\n");
    origin.commit("ignore");
    let (slot, _) = worker.begin(&origin.remote()).await;
    let number = slot.number();
    for (path, text) in [
        ("untracked", "x"),
        ("target/built", "x"),
        ("src/.git/config", "[core]\n\tfsmonitor = /bin/evil\n"),
        ("README", "changed"),
        ("a/b/c/d", "x"),
        ("-rf", "x"),
        ("new\nline", "x"),
        ("../home/.ssh/id", "x"),
        ("../aside/prompt", "x"),
    ] {
        write(&slot.tree(), path, text);
    }
    std::fs::remove_file(slot.tree().join("src/lib.txt")).unwrap();
    symlink("/etc", slot.tree().join("src/lib.txt")).unwrap();
    git(&slot.tree(), ["init", "-q", "nested"]);
    std::fs::create_dir_all(slot.tree().join("locked/in")).unwrap();
    std::fs::set_permissions(slot.tree().join("locked"), std::fs::Permissions::from_mode(0o500)).unwrap();
    slot.release().await.unwrap();

    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(slot.number(), number, "the warm one");
    assert_eq!(listing(&slot.tree()), [".gitignore", "README", "src", "src/lib.txt"]);
    assert_eq!(std::fs::read_to_string(slot.tree().join("README")).unwrap(), "hello\n");
    assert!(slot.tree().join("src/lib.txt").symlink_metadata().unwrap().is_file());
    assert!(listing(&slot.home()).is_empty() && listing(&slot.aside()).is_empty());
    assert!(change(&slot).await.is_empty());
    assert_eq!(worker.troubles(), Vec::<String>::new());
}

#[tokio::test]
async fn a_slot_that_was_dropped_is_cleaned_for_the_next() {
    let (origin, worker) = (Origin::new(), Worker::with(Settings { slots: 1, ..Settings::default() }, allowed()).await);
    for _ in 0..3 {
        let (slot, _) = worker.begin(&origin.remote()).await;
        assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
        write(&slot.tree(), "left", "x");
        write(&slot.tree(), "README", "left");
        write(&slot.home(), "left", "x");
        // A git that was killed half way.
        write(&slot.tree(), "../index.lock", "");
        write(&slot.tree(), "../git/HEAD.lock", "");
    }
}

#[tokio::test]
async fn jobs_wait_for_a_free_slot() {
    let (origin, worker) = (Origin::new(), Worker::with(Settings { slots: 1, ..Settings::default() }, allowed()).await);
    let slot = worker.all.take(&origin.remote()).await.unwrap();
    let (all, remote) = (worker.all.clone(), origin.remote());
    let waiting = tokio::spawn(async move { all.take(&remote).await.unwrap().number() });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(slot);
    assert_eq!(waiting.await.unwrap(), 0);
}

#[tokio::test]
async fn a_slot_of_another_repository_is_taken_last() {
    let (one, other, worker) = (Origin::new(), Origin::new(), Worker::new().await);
    other.write("other", "x");
    other.commit("other");
    let (first, _) = worker.begin(&one.remote()).await;
    let number = first.number();
    first.release().await.unwrap();
    let (second, _) = worker.begin(&other.remote()).await;
    assert_ne!(second.number(), number, "the unused one");
    second.release().await.unwrap();
    let (again, _) = worker.begin(&one.remote()).await;
    assert_eq!(again.number(), number);
    let (third, _) = worker.begin(&one.remote()).await;
    assert_eq!(listing(&third.tree()), ["README", "src", "src/lib.txt"], "made anew from another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_jobs_on_one_repository_ask_the_remote_once_or_twice() {
    let origin = Origin::new();
    let worker = Worker::with(Settings { slots: 20, ..Settings::default() }, counting(&origin)).await;
    let jobs = (0..20).map(|job| {
        let (all, remote) = (worker.all.clone(), origin.remote());
        tokio::spawn(async move {
            let mut slot = all.take(&remote).await.unwrap();
            let branch = format!("feature/task-{job}");
            let want = Want { base: Some("main".to_owned()), branch: Some(branch.clone()), kept: None };
            let fetched = slot.fetch(&want).await.unwrap();
            slot.stand(&fetched.base, &branch, "main").await.unwrap();
            write(&slot.tree(), &format!("file-{job}"), "x");
            assert_eq!(change(&slot).await.report.files, 1);
            let number = slot.number();
            slot.release().await.unwrap();
            number
        })
    });
    let jobs: Vec<_> = jobs.collect();
    let mut numbers = BTreeSet::new();
    for job in jobs {
        numbers.insert(job.await.unwrap());
    }
    let asked = std::fs::read_to_string(origin.folder.path().join("asked")).unwrap();
    let fetches = asked.lines().filter(|line| *line == "fetch").count();
    assert_eq!(fetches, 1, "{asked}");
    assert!(asked.lines().filter(|line| *line == "ls-remote").count() <= 20, "{asked}");
    assert!(numbers.len() > 1);
}

/// A git that writes down what goes to a remote.
fn counting(origin: &Origin) -> shoal_agents::git::Settings {
    let program = origin.folder.path().join("git");
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in fetch|ls-remote|push) echo $word >> {}/asked;; esac; done\nexec git \"$@\"\n",
        origin.folder.path().display()
    );
    executable(&program, &script);
    shoal_agents::git::Settings { program, ..allowed() }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_for_a_fetch_share_its_result() {
    let origin = Origin::new();
    let mut settings = counting(&origin);
    // The first question stays open until all have come.
    let gate = origin.folder.path().join("gate");
    let script = std::fs::read_to_string(&settings.program).unwrap();
    let held =
        format!("case \"$*\" in *ls-remote*) while ! [ -e {} ]; do sleep 0.01; done;; esac\nexec git", gate.display());
    executable(&settings.program, &script.replace("exec git", &held));
    settings.network_timeout = Duration::from_secs(60);
    let worker = Worker::with(Settings { slots: 20, ..Settings::default() }, settings).await;
    let mut jobs = tokio::task::JoinSet::new();
    let (came, mut coming) = tokio::sync::mpsc::unbounded_channel();
    for job in 0..20 {
        let (all, remote, came) = (worker.all.clone(), origin.remote(), came.clone());
        jobs.spawn(async move {
            let mut slot = all.take(&remote).await.unwrap();
            let want = Want { branch: Some(format!("feature/{job}")), ..want() };
            let mut fetch = std::pin::pin!(slot.fetch(&want));
            // In the queue from its first poll on.
            let first = futures_util::poll!(&mut fetch);
            assert!(first.is_pending());
            came.send(()).unwrap();
            fetch.await.unwrap()
        });
    }
    for _ in 0..20 {
        coming.recv().await.unwrap();
    }
    std::fs::write(gate, "").unwrap();
    let found: Vec<_> = jobs.join_all().await;
    assert!(found.iter().all(|fetched| *fetched == found[0]));
    let asked = std::fs::read_to_string(origin.folder.path().join("asked")).unwrap();
    assert_eq!(asked.lines().filter(|line| *line == "ls-remote").count(), 2, "{asked}");
    assert_eq!(asked.lines().filter(|line| *line == "fetch").count(), 1, "{asked}");
}

#[tokio::test]
async fn a_base_that_moves_is_fetched_and_only_the_difference_checked_out() {
    use std::os::unix::fs::MetadataExt;
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, before) = worker.begin(&origin.remote()).await;
    let inode = slot.tree().join("src/lib.txt").metadata().unwrap().ino();
    slot.release().await.unwrap();
    origin.write("README", "moved\n");
    let moved = origin.commit("moved");
    let (slot, after) = worker.begin(&origin.remote()).await;
    assert_eq!(after.base, moved);
    assert_ne!(after.base, before.base);
    assert_eq!(std::fs::read_to_string(slot.tree().join("README")).unwrap(), "moved\n");
    assert_eq!(slot.tree().join("src/lib.txt").metadata().unwrap().ino(), inode, "not touched");
}

#[tokio::test]
async fn failures_of_a_remote_are_told_apart() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let fetch = async |remote: Remote, base: Option<&str>| {
        let mut slot = worker.all.take(&remote).await?;
        slot.fetch(&Want { base: base.map(str::to_owned), ..Want::default() }).await
    };
    let code = |result: Result<_, WorkspaceError>| result.unwrap_err().to_task_error().code;
    assert_eq!(code(fetch(origin.remote(), Some("none")).await), Code::BaseNotFound);
    assert_eq!(code(fetch(origin.remote(), Some("--upload-pack=touch /tmp/x")).await), Code::BaseNotFound);
    let none = |url: &str| Remote { url: url.to_owned(), ..Remote::default() };
    assert_eq!(code(fetch(none("/no/such/thing"), None).await), Code::RepositoryNotFound);
    assert_eq!(code(fetch(none("ext::sh -c 'touch /tmp/x'"), None).await), Code::RepositoryNotFound);
    assert_eq!(
        code(fetch(none("git@host:a"), None).await),
        Code::RepositoryNotFound,
        "a transport that is not allowed"
    );
    let refused = fetch(none("http://127.0.0.1:1/a.git"), None).await.unwrap_err();
    assert!(refused.retryable(), "{refused}");
    assert_eq!(refused.to_task_error().code, Code::RepositoryUnreachable);
    let empty = Origin { folder: tempfile::tempdir().unwrap() };
    git(empty.folder.path(), ["init", "-q", "--bare", "origin.git"]);
    assert_eq!(code(fetch(empty.remote(), None).await), Code::BaseNotFound);
}

#[tokio::test]
async fn a_broken_mirror_is_set_aside_and_made_anew() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    slot.release().await.unwrap();
    let mirror = worker.mirror();
    // The commit is gone.
    std::fs::remove_dir_all(mirror.join("objects")).unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
    slot.release().await.unwrap();
    assert!(worker.troubles()[0].starts_with("set aside as "), "{:?}", worker.troubles());
    // Only a file's content is gone.
    origin.write("src/more.txt", "more\n");
    origin.commit("more");
    let mut slot = worker.all.take(&origin.remote()).await.unwrap();
    let fetched = slot.fetch(&want()).await.unwrap();
    let blob = git(&mirror, ["rev-parse", &format!("{}:src/more.txt", fetched.base)]);
    unpack(&mirror);
    std::fs::remove_file(mirror.join("objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    slot.stand(&fetched.base, BRANCH, "main").await.unwrap();
    assert_eq!(std::fs::read_to_string(slot.tree().join("src/more.txt")).unwrap(), "more\n");
    assert_eq!(worker.troubles().len(), 2, "{:?}", worker.troubles());
}

/// All packs as loose objects.
fn unpack(mirror: &std::path::Path) {
    let away = mirror.join("away");
    std::fs::create_dir_all(&away).unwrap();
    for entry in std::fs::read_dir(mirror.join("objects/pack")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::rename(&path, away.join(path.file_name().unwrap())).unwrap();
    }
    for entry in std::fs::read_dir(&away).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|end| end == "pack") {
            let pack = std::fs::File::open(&entry).unwrap();
            let done = std::process::Command::new("git")
                .arg("--git-dir")
                .arg(mirror)
                .args(["unpack-objects", "-q"])
                .stdin(pack)
                .status();
            assert!(done.unwrap().success());
        }
    }
}

#[tokio::test]
async fn locks_of_a_killed_git_hinder_nobody() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    worker.begin(&origin.remote()).await.0.release().await.unwrap();
    origin.write("README", "moved\n");
    origin.commit("moved");
    let mirror = worker.mirror();
    let names = git(&mirror, ["for-each-ref", "--format=%(refname)"]);
    for lock in names.lines().map(|name| format!("{name}.lock")).chain(
        ["packed-refs.lock", "config.lock", "HEAD.lock", "shallow.lock", "objects/pack/tmp_pack_x"].map(str::to_owned),
    ) {
        std::fs::write(mirror.join(lock), "").unwrap();
    }
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(std::fs::read_to_string(slot.tree().join("README")).unwrap(), "moved\n");
    assert_eq!(worker.troubles(), Vec::<String>::new());
}

#[tokio::test]
async fn a_git_that_was_killed_in_a_slot_hinders_the_job_no_further() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x");
    slot.keep(&change(&slot).await, "t1", false).await.unwrap();
    let locks = ["index.lock", "index.change.lock", "index.resume.lock", "git/HEAD.lock", "git/refs/shoal/wip/t1.lock"];
    for lock in locks {
        write(&slot.tree().join(".."), lock, "");
    }
    write(&worker.mirror(), "refs/shoal/wip/t1.lock", "");
    write(&slot.tree(), "newer", "x");
    let kept = slot.keep(&change(&slot).await, "t1", false).await.unwrap();
    slot.stand(&fetched.base, BRANCH, "main").await.unwrap();
    write(&slot.tree().join(".."), "index.resume.lock", "");
    slot.resume(&shoal_agents::workspace::Kept::Commit(kept)).await.unwrap();
    assert_eq!(change(&slot).await.report.files, 2);
}

#[tokio::test]
async fn a_remote_that_was_away_costs_no_warm_slot() {
    use std::os::unix::fs::MetadataExt;
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    let inode = slot.tree().join("README").metadata().unwrap().ino();
    slot.release().await.unwrap();
    let away = origin.folder.path().join("away");
    std::fs::rename(origin.path(), &away).unwrap();
    for released in [true, false] {
        let mut slot = worker.all.take(&origin.remote()).await.unwrap();
        slot.fetch(&want()).await.unwrap_err();
        if released {
            slot.release().await.unwrap();
        }
    }
    std::fs::rename(&away, origin.path()).unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(slot.tree().join("README").metadata().unwrap().ino(), inode);
}

#[tokio::test]
async fn a_mirrors_configuration_is_ours_whoever_wrote_it() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    let mark = worker.root.path().join("mark");
    let evil = format!("touch {}", mark.display());
    for dir in [worker.mirror(), slot.tree().join("../git")] {
        git(&dir, ["config", "core.fsmonitor", &evil]);
        git(&dir, ["config", "core.sshCommand", &evil]);
        git(&dir, ["config", "uploadpack.packObjectsHook", &evil]);
        git(&dir, ["config", "core.worktree", "/"]);
        executable(&dir.join("hooks/reference-transaction"), &format!("#!/bin/sh\n{evil}\n"));
        write(&dir, "info/attributes", "* filter=evil\n");
        write(&dir, "config.worktree", "[core]\n\tbare = true\n");
        write(&dir, "commondir", "/elsewhere\n");
    }
    origin.write("README", "moved\n");
    origin.commit("moved");
    write(&slot.tree(), "new", "x");
    assert_eq!(change(&slot).await.report.files, 1);
    slot.release().await.unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(std::fs::read_to_string(slot.tree().join("README")).unwrap(), "moved\n");
    assert!(!mark.exists());
    assert!(!worker.mirror().join("hooks").exists());
    slot.release().await.unwrap();
}

#[tokio::test]
async fn a_slot_that_cannot_be_cleaned_is_set_aside_and_told() {
    let (origin, worker) = (Origin::new(), Worker::with(Settings { slots: 1, ..Settings::default() }, allowed()).await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "stuck/file", "x");
    // What may not be removed whoever one is: a folder that something is mounted on.
    let stuck = slot.tree().join("stuck");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&stuck)
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        eprintln!("not allowed to mount: not tried");
        return;
    }
    drop(slot);
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
    let troubles = worker.troubles();
    assert!(
        troubles.iter().any(|trouble| trouble.starts_with("set aside as ") && trouble.contains("busy")),
        "{troubles:?}"
    );
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let root = worker.root.path().canonicalize().unwrap();
    let mut left = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(root.to_str().unwrap()));
    let found = std::process::Command::new("umount").arg(left.next().unwrap()).status().unwrap();
    assert!(found.success(), "{troubles:?}");
}

#[tokio::test]
async fn a_root_belongs_to_one_process_and_what_a_dead_one_left_is_cleared() {
    let (origin, worker) = (Origin::new(), Worker::with(Settings { slots: 2, ..Settings::default() }, allowed()).await);
    let again = Workspaces::open(worker.root.path(), Settings::default(), allowed()).await;
    assert!(matches!(again, Err(WorkspaceError::Taken(_))));
    let (kept, _) = worker.begin(&origin.remote()).await;
    kept.release().await.unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    write(&slot.home(), "secret", "x");
    write(&slot.tree(), "left", "x");
    write(worker.root.path(), "slots/0.broken-1/tree/x", "x");
    write(worker.root.path(), "mirrors/a.broken-1/x", "x");
    write(worker.root.path(), "pits/0/7/x", "x");
    let (number, root) = (slot.number(), worker.root);
    drop((slot, worker.all));
    let worker = Worker::at(root, Settings { slots: 2, ..Settings::default() }, allowed()).await;
    worker.all.sweep().await.unwrap();
    let root = worker.root.path();
    assert!(!root.join(format!("slots/{number}/home")).exists());
    assert!(!root.join("slots/0.broken-1").exists() && !root.join("mirrors/a.broken-1").exists());
    assert!(!root.join("pits/0").exists());
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(slot.number(), number, "still the warm one");
    assert_eq!(listing(&slot.tree()), ["README", "src", "src/lib.txt"]);
    assert!(listing(&slot.home()).is_empty());
}

#[tokio::test]
async fn git_is_looked_for_and_must_be_new_enough() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("git");
    executable(&old, "#!/bin/sh\necho git version 2.30.2\n");
    let found = async |program| {
        let settings = shoal_agents::git::Settings { program, ..allowed() };
        shoal_agents::git::Git::new(settings, &folder.path().join("own")).await.unwrap_err()
    };
    assert!(matches!(found(old).await, GitError::TooOld { .. }));
    assert!(matches!(found("/no/such/git".into()).await, GitError::NotUsable(_)));
}

#[tokio::test]
async fn a_remote_that_hangs_ends_with_its_timeout_and_leaves_no_process() {
    let origin = Origin::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/a.git", listener.local_addr().unwrap());
    let settings = shoal_agents::git::Settings { network_timeout: Duration::from_millis(300), ..allowed() };
    let worker = Worker::with(Settings::default(), settings).await;
    let began = Instant::now();
    let remote = Remote { url: url.clone(), ..origin.remote() };
    let mut slot = worker.all.take(&remote).await.unwrap();
    let error = slot.fetch(&want()).await.unwrap_err();
    assert!(matches!(error, WorkspaceError::Git(GitError::TimedOut { .. })), "{error:?}");
    assert_eq!((error.to_task_error().code, error.retryable()), (Code::RepositoryUnreachable, true));
    assert!(began.elapsed() < Duration::from_secs(20));
    // Dropped half way, too.
    let want = want();
    let mut fetch = Box::pin(slot.fetch(&want));
    let (accepted, _) = tokio::select! {
        accepted = listener.accept() => accepted.unwrap(),
        _ = &mut fetch => panic!("nobody answered"),
    };
    drop(fetch);
    drop(accepted);
    let gone = || {
        let all = std::process::Command::new("ps").args(["-eo", "args"]).output().unwrap();
        !String::from_utf8_lossy(&all.stdout).contains(&url)
    };
    while !gone() {
        assert!(began.elapsed() < Duration::from_secs(20), "a process is left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
