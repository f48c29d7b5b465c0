//! What may not leave is left out and named, and the rest is not lost with it.

use std::collections::BTreeSet;

use shoal_agents::git::{Bounds, Sifted};
use shoal_agents::secret::Found;
use shoal_agents::workspace::{Kept, Settings, Slot};

use crate::support::{Origin, Worker, allowed, executable, git, write};

fn scan(bytes: &[u8]) -> BTreeSet<Found> {
    bytes.windows(7).find(|part| *part == b"hunter2").map(|_| Found::named("DB_PASSWORD")).into_iter().collect()
}

async fn sift(slot: &Slot) -> Sifted {
    slot.sift(&scan).await.unwrap()
}

fn paths(sifted: &Sifted) -> Vec<&str> {
    sifted.change.files.iter().map(|file| file.path.to_str().unwrap()).collect()
}

#[tokio::test]
async fn what_may_not_leave_is_left_out_by_its_path_and_the_rest_is_there() {
    let bounds = Bounds { file_bytes: 1_000, ..Bounds::default() };
    let (origin, worker) = (Origin::new(), Worker::with(Settings { bounds, ..Settings::default() }, allowed()).await);
    origin.write("config", "host = here\n");
    origin.write("fifo", "x\n");
    origin.commit("a config");
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    let tree = slot.tree();
    write(&tree, "README", "the work\n");
    std::fs::remove_file(tree.join("src/lib.txt")).unwrap();
    write(&tree, "big", "x".repeat(1_001));
    write(&tree, "config", "host = here\npassword = hunter2\n");
    write(&tree, "new/leak", "hunter2\n");
    write(&tree, "of-hunter2", "x".repeat(1_001));
    git(&tree, ["init", "-q", "nested"]);
    std::fs::remove_file(tree.join("fifo")).unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let sifted = sift(&slot).await;
    assert_eq!(paths(&sifted), ["README", "src/lib.txt"]);
    assert_eq!(
        (sifted.change.report.files, sifted.change.report.insertions, sifted.change.report.deletions),
        (2, 1, 8)
    );
    let mut left_out = sifted.left_out.clone();
    left_out.sort();
    assert_eq!(
        left_out,
        [
            "big: 1001 bytes, of at most 1000",
            "config: the secret DB_PASSWORD is in it",
            "fifo: neither a file nor a link",
            "nested/: another repository; a submodule is not added by a job",
            "new/leak: the secret DB_PASSWORD is in it",
            "the name of a file has the secret DB_PASSWORD in it",
        ]
    );
    let error = slot.change(&scan).await.unwrap_err().to_string();
    assert!(left_out.iter().all(|one| error.contains(one)), "a push is refused for all of it: {error}");

    // The patch is the rest, and somebody goes on from it.
    let patch = String::from_utf8(slot.patch(&sifted.change).await.unwrap()).unwrap();
    for nowhere in ["hunter2", "big", "config", "leak"] {
        assert!(!patch.contains(nowhere), "{nowhere}: {patch}");
    }
    let commit = slot.keep(&sifted.change, "t1", true).await.unwrap();
    let there = git(&origin.path(), ["cat-file", "--batch-all-objects", "--batch"]);
    assert!(there.contains("the work") && !there.contains("hunter2"), "{there}");
    let mirror = git(&worker.mirror(), ["cat-file", "--batch-all-objects", "--batch"]);
    assert!(!mirror.contains("hunter2"));
    slot.stand(&fetched.base, crate::support::BRANCH, &fetched.base_name).await.unwrap();
    slot.resume(&Kept::Commit(commit)).await.unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("README")).unwrap(), "the work\n");
    assert_eq!(std::fs::read_to_string(tree.join("config")).unwrap(), "host = here\n");
    assert!(!tree.join("src/lib.txt").exists() && !tree.join("big").exists());
}

#[tokio::test]
async fn of_too_much_as_much_as_may_be_is_there_and_what_the_base_had_first() {
    let bounds = Bounds { file_bytes: 100, all_bytes: 1_000, files: 15, ..Bounds::default() };
    let (origin, worker) = (Origin::new(), Worker::with(Settings { bounds, ..Settings::default() }, allowed()).await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "README", "the work\n");
    for number in 0..40 {
        write(&slot.tree(), &format!("many/{number:02}"), "x");
    }
    let sifted = sift(&slot).await;
    assert_eq!((paths(&sifted).len(), paths(&sifted)[0]), (15, "README"));
    let named = "many/14, many/15, many/16, many/17, many/18, many/19, many/20, many/21, many/22, many/23 and 16 more";
    assert_eq!(sifted.left_out, [format!("41 files changed, of at most 15: {named}")]);

    std::fs::remove_dir_all(slot.tree().join("many")).unwrap();
    for number in 0..12 {
        write(&slot.tree(), &format!("all/{number:02}"), "y".repeat(99));
    }
    write(&slot.tree(), "small", "z");
    let sifted = sift(&slot).await;
    assert_eq!((paths(&sifted).len(), paths(&sifted).last().copied()), (12, Some("small")));
    assert_eq!(sifted.left_out, ["more than 1000 bytes in all: all/10, all/11"]);
}

#[tokio::test]
async fn a_place_that_git_cannot_look_into_costs_nothing_else() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (slot, _) = worker.begin(&origin.remote()).await;
    write(&slot.tree(), "README", "the work\n");
    // Deeper than a path may be: nobody can look there, root neither.
    let name = "d".repeat(200);
    let mut at =
        nix::dir::Dir::open(&slot.tree(), nix::fcntl::OFlag::O_DIRECTORY, nix::sys::stat::Mode::empty()).unwrap();
    for _ in 0..40 {
        nix::sys::stat::mkdirat(&at, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (flags, mode) = (nix::fcntl::OFlag::O_DIRECTORY, nix::sys::stat::Mode::empty());
        at = nix::dir::Dir::openat(&at, name.as_str(), flags, mode).unwrap();
    }
    let sifted = sift(&slot).await;
    assert_eq!(paths(&sifted), ["README"]);
    assert!(sifted.left_out.len() == 1 && sifted.left_out[0].contains("could not open directory"), "{sifted:?}");
}

#[tokio::test]
async fn what_git_itself_does_not_take_is_told_apart_from_the_rest() {
    let origin = Origin::new();
    let bin = tempfile::tempdir().unwrap();
    // What git says of a file that its user may not read; root may read them all.
    let script = "#!/bin/sh\ncase \"$*\" in *' --stdin')\n  list=$(mktemp); cat > \"$list\"\n  if tr '\\0' '\\n' < \"$list\" | grep '^closed' >&2; then\n    \
                  echo 'fatal: Unable to process path' >&2; rm \"$list\"; exit 128\n  fi\n  git \"$@\" < \"$list\"; code=$?; rm \"$list\"; exit $code;;\nesac\nexec git \"$@\"\n";
    executable(&bin.path().join("git"), script);
    let settings = shoal_agents::git::Settings { program: bin.path().join("git"), ..allowed() };
    let worker = Worker::with(Settings::default(), settings).await;
    let (slot, _) = worker.begin(&origin.remote()).await;
    for path in ["a/0", "a/1", "b/0", "closed-1", "closed-2", "d/0", "d/1", "e/0"] {
        write(&slot.tree(), path, "x\n");
    }
    write(&slot.tree(), "leak", "hunter2\n");
    // Git reads this file through no link, and passes it over.
    std::os::unix::fs::symlink("/etc/passwd", slot.tree().join("a/.gitmodules")).unwrap();
    let sifted = sift(&slot).await;
    assert_eq!(paths(&sifted), ["a/0", "a/1", "b/0", "d/0", "d/1", "e/0"]);
    let mut left_out = sifted.left_out;
    left_out.sort();
    assert_eq!(left_out.len(), 4, "{left_out:?}");
    assert_eq!(left_out[0], "a/.gitmodules: git does not take it");
    assert!(left_out[1].starts_with("closed-1: ") && left_out[2].starts_with("closed-2: "), "{left_out:?}");
    assert_eq!(left_out[3], "leak: the secret DB_PASSWORD is in it");
}
