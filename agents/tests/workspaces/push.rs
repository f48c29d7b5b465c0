//! Pushes: one branch of the job's own, never by force.

use schemas::Code;
use shoal_agents::git::{Commit, GitError, Order, Pushed};
use shoal_agents::workspace::{Settings, WorkspaceError};

use crate::support::{BRANCH, Origin, Worker, again, allowed, change, git, listing, order, want, write};

fn reference() -> String {
    format!("refs/heads/{BRANCH}")
}

#[tokio::test]
async fn one_commit_becomes_the_remotes_branch_and_a_second_push_is_no_other() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x\n");
    let order = order(&slot, &fetched).await;
    assert_eq!(slot.push(&order).await.unwrap(), Pushed::Done);
    assert_eq!(origin.tip(&reference()).as_deref(), Some(order.commit.as_str()));
    assert_eq!(slot.push(&order).await.unwrap(), Pushed::Done, "as after a crash before the push was heard of");
    let log = git(&origin.path(), ["log", "--format=%an|%s|%b", "-1", BRANCH]);
    assert_eq!(log, "Shoal|feat(task-t1): work|In full.\n\nShoal-Task: q.t1");
    assert_eq!(
        git(&origin.path(), ["for-each-ref", "--format=%(refname)"]),
        format!("{}\nrefs/heads/main", reference())
    );
    assert_eq!(origin.tip("refs/heads/main").as_deref(), Some(fetched.base.as_str()));
}

#[tokio::test]
async fn a_base_that_moved_is_rebased_onto_and_given_back_to_be_tested() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    origin.write(".gitignore", "built\n");
    origin.commit("ignore");
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "src/lib.txt", "one\ntwo\nthree\nfour\nfive\nsix\nSEVEN\n");
    write(&slot.tree(), "new", "x\n");
    write(&slot.tree(), "built", "by a test\n");
    let first = order(&slot, &fetched).await;
    origin.write("src/lib.txt", "ONE\ntwo\nthree\nfour\nfive\nsix\nseven\n");
    origin.write("theirs", "x\n");
    let moved = origin.commit("moved");
    let Pushed::Moved { commit, onto } = slot.push(&first).await.unwrap() else { panic!("the base has moved") };
    assert_eq!(onto, moved);
    assert_eq!(origin.tip(&reference()), None, "nothing is pushed that was not tested");
    let tested = again(&mut slot, &first, commit, &onto).await;
    let text = std::fs::read_to_string(slot.tree().join("src/lib.txt")).unwrap();
    assert_eq!(text, "ONE\ntwo\nthree\nfour\nfive\nsix\nSEVEN\n");
    assert_eq!(listing(&slot.tree()), [".gitignore", "README", "new", "src", "src/lib.txt", "theirs"]);
    assert_eq!(slot.push(&tested).await.unwrap(), Pushed::Done);
    assert_eq!(git(&origin.path(), ["log", "--format=%s", BRANCH]), "feat(task-t1): work\nmoved\nignore\nbegin");
    slot.release().await.unwrap();
    let (slot, _) = worker.begin(&origin.remote()).await;
    assert_eq!(listing(&slot.tree()), [".gitignore", "README", "src", "src/lib.txt", "theirs"]);
}

#[tokio::test]
async fn work_that_does_not_fit_the_moved_base_is_a_conflict_with_its_paths() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "README", "mine\n");
    let order = order(&slot, &fetched).await;
    origin.write("README", "theirs\n");
    origin.commit("moved");
    let error = slot.push(&order).await.unwrap_err();
    assert_eq!(error, WorkspaceError::Git(GitError::Conflict { paths: vec!["README".to_owned()] }));
    assert_eq!(error.to_task_error().code, Code::RebaseConflict);
    assert_eq!(origin.tip(&reference()), None);
    assert_eq!(std::fs::read_to_string(slot.tree().join("README")).unwrap(), "mine\n", "the work is where it was");
}

#[tokio::test]
async fn a_base_whose_history_was_rewritten_takes_the_job_s_change_alone() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    origin.write("dropped", "x\n");
    origin.commit("dropped");
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x\n");
    let order = order(&slot, &fetched).await;
    git(&origin.dev(), ["reset", "-q", "--hard", "HEAD^"]);
    origin.write("other", "x\n");
    git(&origin.dev(), ["add", "-A"]);
    git(&origin.dev(), ["commit", "-qm", "other"]);
    git(&origin.dev(), ["push", "-qf", "../origin.git", "HEAD:main"]);
    let Pushed::Moved { commit, onto } = slot.push(&order).await.unwrap() else { panic!("the base has moved") };
    again(&mut slot, &order, commit, &onto).await;
    assert_eq!(
        listing(&slot.tree()),
        ["README", "new", "other", "src", "src/lib.txt"],
        "what was dropped stays dropped"
    );
}

#[tokio::test]
async fn an_earlier_attempts_branch_is_built_upon() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut first, fetched) = worker.begin(&origin.remote()).await;
    write(&first.tree(), "a", "x\n");
    let done = order(&first, &fetched).await;
    first.push(&done).await.unwrap();
    first.release().await.unwrap();
    // A second start that knew nothing of it.
    let (mut second, fetched) = worker.begin(&origin.remote()).await;
    assert_eq!(fetched.branch.as_ref(), Some(&done.commit));
    write(&second.tree(), "a", "x\n");
    write(&second.tree(), "b", "x\n");
    let more = Order { began: None, ..order(&second, &fetched).await };
    let Pushed::Moved { commit, onto } = second.push(&more).await.unwrap() else { panic!("the branch is there") };
    assert_eq!(onto, done.commit);
    let more = again(&mut second, &more, commit, &onto).await;
    assert_eq!(second.push(&more).await.unwrap(), Pushed::Done);
    assert_eq!(git(&origin.path(), ["log", "--format=%s", BRANCH]), "feat(task-t1): work\nfeat(task-t1): work\nbegin");
    second.release().await.unwrap();
    // A third one with nothing new finds all of it done.
    let (mut third, fetched) = worker.begin(&origin.remote()).await;
    write(&third.tree(), "a", "x\n");
    let same = order(&third, &fetched).await;
    let Pushed::Moved { commit, onto } = third.push(&same).await.unwrap() else { panic!("the branch is there") };
    assert_eq!(commit, onto);
}

#[tokio::test]
async fn somebody_elses_branch_of_this_name_is_left_alone() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x\n");
    let order = order(&slot, &fetched).await;
    origin.write("theirs", "x\n");
    git(&origin.dev(), ["add", "-A"]);
    git(&origin.dev(), ["commit", "-qm", "my own work"]);
    git(&origin.dev(), ["push", "-q", "../origin.git", &format!("HEAD:{BRANCH}")]);
    let theirs = origin.tip(&reference());
    let error = slot.push(&order).await.unwrap_err();
    assert_eq!(error.to_task_error().code, Code::PushRefused, "{error}");
    assert!(!error.retryable());
    assert_eq!(origin.tip(&reference()), theirs);
}

#[tokio::test]
async fn a_persons_commit_on_the_jobs_branch_is_kept_and_built_upon() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "a", "x\n");
    let first = order(&slot, &fetched).await;
    slot.push(&first).await.unwrap();
    slot.release().await.unwrap();
    // A next job on the same branch begins there; meanwhile a person adds to it.
    let mut slot = worker.all.take(&origin.remote()).await.unwrap();
    let fetched = slot.fetch(&want()).await.unwrap();
    slot.stand(fetched.branch.as_ref().unwrap(), BRANCH, "main").await.unwrap();
    write(&slot.tree(), "b", "x\n");
    let second = order(&slot, &fetched).await;
    git(&origin.dev(), ["fetch", "-q", "../origin.git", BRANCH]);
    git(&origin.dev(), ["checkout", "-q", "FETCH_HEAD"]);
    origin.write("person", "x\n");
    git(&origin.dev(), ["add", "-A"]);
    git(&origin.dev(), ["commit", "-qm", "by hand"]);
    git(&origin.dev(), ["push", "-q", "../origin.git", &format!("HEAD:refs/heads/{BRANCH}")]);
    let Pushed::Moved { commit, onto } = slot.push(&second).await.unwrap() else { panic!("the branch has moved") };
    let second = again(&mut slot, &second, commit, &onto).await;
    slot.push(&second).await.unwrap();
    let log = git(&origin.path(), ["log", "--format=%s", BRANCH]);
    assert_eq!(log, "feat(task-t1): work\nby hand\nfeat(task-t1): work\nbegin");
}

#[tokio::test]
async fn a_race_that_the_remote_finds_is_not_won_by_force() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x\n");
    let order = order(&slot, &fetched).await;
    // Between our look and our push the branch comes into being.
    let racer = format!(
        "#!/bin/sh\nunset GIT_QUARANTINE_PATH\n[ -e raced ] && exit 0\ntouch raced\ngit update-ref {} {}\n",
        reference(),
        fetched.base
    );
    origin.hook(&racer);
    let error = slot.push(&order).await.unwrap_err();
    assert!(error.retryable(), "{error:?}");
    assert_eq!(error.to_task_error().code, Code::PushFailed);
    assert_eq!(slot.push(&order).await.unwrap(), Pushed::Done, "it was in our history");
}

#[tokio::test]
async fn a_remote_that_protects_itself_refuses_with_its_reason() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    origin.hook("#!/bin/sh\necho 'commits need a ticket' >&2\nexit 1\n");
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x\n");
    let order = order(&slot, &fetched).await;
    let error = slot.push(&order).await.unwrap_err().to_task_error();
    assert_eq!((error.code, error.retryable), (Code::PushRefused, false));
    assert!(
        error.message.contains("pre-receive hook declined") && error.message.contains("commits need a ticket"),
        "{error:?}"
    );
}

#[tokio::test]
async fn no_branch_but_the_jobs_own_is_ever_pushed() {
    let (origin, worker) = (Origin::new(), Worker::with(Settings { slots: 1, ..Settings::default() }, allowed()).await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x\n");
    let own = order(&slot, &fetched).await;
    // Before anything goes over the network: there is no remote any more.
    std::fs::rename(origin.path(), origin.folder.path().join("away")).unwrap();
    for branch in ["main", "other/x", "feature/a:main", "-f", "+feature/x", "feature/", "HEAD"] {
        let error = slot.push(&Order { branch: branch.to_owned(), ..own.clone() }).await.unwrap_err();
        assert_eq!(error.to_task_error().code, Code::PushRefused, "{branch}: {error}");
    }
    let error = slot.push(&own).await.unwrap_err();
    assert_eq!(error.to_task_error().code, Code::RepositoryNotFound);
}

#[tokio::test]
async fn an_empty_change_is_empty() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "README", "hello\n");
    let found = change(&slot).await;
    assert!(found.is_empty() && found.report.files == 0);
    assert_eq!(found.base, fetched.base);
    assert!(Commit::parse(found.tree.as_str()).is_some());
}
