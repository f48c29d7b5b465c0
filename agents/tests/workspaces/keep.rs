//! Work in progress, from one attempt to the next.

use schemas::Code;
use shoal_agents::workspace::{Kept, Want};

use crate::support::{BRANCH, Origin, Worker, change, git, listing, want, write};

#[tokio::test(flavor = "multi_thread")]
async fn kept_work_goes_on_where_it_was_on_the_same_worker() {
    // Spawned, as a worker does.
    tokio::spawn(goes_on()).await.unwrap();
}

async fn goes_on() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "new", "x\n");
    std::fs::remove_file(slot.tree().join("README")).unwrap();
    let before = change(&slot).await;
    slot.keep(&before, "t1", false).await.unwrap();
    write(&slot.tree(), "newer", "x\n");
    slot.keep(&change(&slot).await, "t1", false).await.unwrap();
    assert_eq!(git(&origin.path(), ["for-each-ref", "--format=%(refname)"]), "refs/heads/main", "not at the remote");
    drop(slot);

    let (mut slot, _) = worker.begin(&origin.remote()).await;
    let kept = slot.kept("t1").await.unwrap().unwrap();
    slot.resume(&Kept::Commit(kept)).await.unwrap();
    assert_eq!(listing(&slot.tree()), ["new", "newer", "src", "src/lib.txt"]);
    assert_eq!(change(&slot).await.files.len(), 3);
    assert_eq!(git(&slot.tree(), ["status", "--porcelain"]), " D README\n?? new\n?? newer", "the job sees it, too");
    slot.forget("t1", true).await.unwrap();
    assert_eq!(slot.kept("t1").await.unwrap(), None);
}

#[tokio::test]
async fn kept_work_goes_by_the_remote_to_another_worker_onto_a_base_that_moved() {
    let (origin, worker, other) = (Origin::new(), Worker::new().await, Worker::new().await);
    let (slot, fetched) = worker.begin(&origin.remote()).await;
    assert_eq!(fetched.kept, None);
    write(&slot.tree(), "new", "1\n");
    slot.keep(&change(&slot).await, "t1", true).await.unwrap();
    write(&slot.tree(), "new", "2\n");
    let kept = slot.keep(&change(&slot).await, "t1", true).await.unwrap();
    assert_eq!(origin.tip("refs/shoal/wip/t1").as_deref(), Some(kept.as_str()), "its own reference may be moved");
    origin.write("theirs", "x\n");
    origin.commit("moved");

    let (mut slot, fetched) = other.begin(&origin.remote()).await;
    assert_eq!(fetched.kept.as_ref(), Some(&kept));
    slot.resume(&Kept::Commit(kept)).await.unwrap();
    assert_eq!(listing(&slot.tree()), ["README", "new", "src", "src/lib.txt", "theirs"]);
    assert_eq!(std::fs::read_to_string(slot.tree().join("new")).unwrap(), "2\n");
    assert_eq!(change(&slot).await.report.files, 1);
    slot.forget("t1", true).await.unwrap();
    assert_eq!(origin.tip("refs/shoal/wip/t1"), None);
    slot.forget("t1", true).await.unwrap();
    assert_eq!(slot.fetch(&want()).await.unwrap().kept, None);
}

#[tokio::test]
async fn a_patch_goes_on_where_it_was_and_binary_files_with_it() {
    let (origin, worker, other) = (Origin::new(), Worker::new().await, Worker::new().await);
    let (slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "data", [0, 255, 1, 0]);
    write(&slot.tree(), "new\nline", "x\n");
    let found = change(&slot).await;
    let work = Kept::Patch { base: fetched.base, patch: slot.patch(&found).await.unwrap() };
    origin.write("theirs", "x\n");
    origin.commit("moved");
    let (mut slot, _) = other.begin(&origin.remote()).await;
    slot.resume(&work).await.unwrap();
    assert_eq!(std::fs::read(slot.tree().join("data")).unwrap(), [0, 255, 1, 0]);
    assert_eq!(change(&slot).await.report.files, 2);
    let (mut slot, fetched) = other.begin(&origin.remote()).await;
    slot.resume(&Kept::Patch { base: fetched.base, patch: Vec::new() }).await.unwrap();
    assert!(change(&slot).await.is_empty(), "nothing was kept");
}

#[tokio::test]
async fn kept_work_that_does_not_fit_any_more_is_a_conflict_and_stays_where_it_was() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, fetched) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "README", "mine\n");
    let found = change(&slot).await;
    let patch = Kept::Patch { base: fetched.base, patch: slot.patch(&found).await.unwrap() };
    let kept = slot.keep(&found, "t1", false).await.unwrap();
    drop(slot);
    origin.write("README", "theirs\n");
    origin.commit("moved");
    let (mut slot, _) = worker.begin(&origin.remote()).await;
    for work in [Kept::Commit(kept.clone()), patch] {
        let error = slot.resume(&work).await.unwrap_err().to_task_error();
        assert_eq!((error.code, error.message.as_str()), (Code::RebaseConflict, "conflicts in README"));
        assert!(change(&slot).await.is_empty());
    }
    assert_eq!(slot.kept("t1").await.unwrap(), Some(kept));
}

#[tokio::test]
async fn a_patch_that_reaches_out_of_the_tree_does_nothing() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    for path in ["../../evil", ".git/config", "/tmp/evil"] {
        let patch = format!(
            "diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+evil\n"
        );
        slot.resume(&Kept::Patch { base: fetched.base.clone(), patch: patch.into_bytes() }).await.unwrap_err();
        assert!(change(&slot).await.is_empty());
    }
}

#[tokio::test]
async fn an_id_that_is_no_reference_keeps_its_work_all_the_same() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    for name in ["a..b", "x.lock", "..", "ü", "a/b", "--x"] {
        let (mut slot, fetched) = worker.begin(&origin.remote()).await;
        write(&slot.tree(), "new", name);
        let kept = slot.keep(&change(&slot).await, name, true).await.unwrap();
        let want = Want { kept: Some(name.to_owned()), ..Want::default() };
        assert_eq!(slot.fetch(&want).await.unwrap().kept, Some(kept));
        slot.forget(name, true).await.unwrap();
        assert_eq!(slot.fetch(&want).await.unwrap().kept, None);
        slot.stand(&fetched.base, BRANCH, "main").await.unwrap();
        slot.release().await.unwrap();
    }
}
