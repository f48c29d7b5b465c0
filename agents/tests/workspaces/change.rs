//! What a change is, and what may not leave.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use schemas::Code;
use shoal_agents::git::{Bounds, How, Kind};
use shoal_agents::secret::{Mask, Secret, find_all};
use shoal_agents::workspace::{Settings, Slot};

use crate::support::{BRANCH, Origin, Worker, allowed, change, git, order, write};

async fn refused(slot: &Slot) -> String {
    let error = slot.change(&crate::support::clean).await.unwrap_err();
    assert_eq!(error.to_task_error().code, Code::ChangeRefused, "{error}");
    error.to_string()
}

/// Git compares times by the second: what is written into a file in the second of its checkout, and is as long as what it
/// was, looks as it did.
#[tokio::test]
async fn a_change_of_the_same_length_in_the_second_of_the_checkout_is_seen() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let times = |path: &Path| {
        let found = path.metadata().unwrap();
        (found.mtime(), found.ctime())
    };
    for _ in 0..20 {
        let (slot, _) = worker.begin(&origin.remote()).await;
        let file = slot.tree().join("README");
        let (before, mut text) = (times(&file), std::fs::read(&file).unwrap());
        text[0] ^= 1;
        std::fs::write(&file, &text).unwrap();
        if times(&file) == before {
            // Looked at in a later one.
            while std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
                <= before.0
            {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            assert_eq!(change(&slot).await.report.files, 1);
            assert_eq!(git(&slot.tree(), ["status", "--porcelain"]), " M README", "by the job's own git too");
            slot.release().await.unwrap();
            let (slot, _) = worker.begin(&origin.remote()).await;
            assert_ne!(std::fs::read(slot.tree().join("README")).unwrap(), text, "the next one finds the base");
            return;
        }
        slot.release().await.unwrap();
        // A new checkout, of another commit.
        origin.write("README", format!("{before:?}\n"));
        origin.commit("again");
    }
    panic!("twenty times the second was over just then");
}

#[tokio::test]
async fn a_change_lists_each_path_and_how_it_changed() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    origin.write(".gitignore", "*.log\n");
    for path in ["gone", "run.sh", "data.bin", "becomes-link", "becomes-folder"] {
        origin.write(path, "old\n");
    }
    origin.commit("files");
    let (slot, _) = worker.begin(&origin.remote()).await;
    let tree = slot.tree();
    assert!(change(&slot).await.is_empty());
    write(&tree, "README", "hello\nworld\n");
    write(&tree, "added", "a\nb\n");
    write(&tree, "ignored.log", "x");
    std::fs::remove_file(tree.join("gone")).unwrap();
    std::fs::set_permissions(tree.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    write(&tree, "data.bin", [0, 159, 146, 150, 0, 1]);
    for path in ["becomes-link", "becomes-folder"] {
        std::fs::remove_file(tree.join(path)).unwrap();
    }
    symlink("README", tree.join("becomes-link")).unwrap();
    write(&tree, "becomes-folder/file", "x\n");
    let found = change(&slot).await;
    let listed: Vec<_> =
        found.files.iter().map(|file| (file.path.to_str().unwrap(), file.how, file.kind, file.lines)).collect();
    let expected = [
        ("README", How::Modified, Kind::File, Some((1, 0))),
        ("added", How::Added, Kind::File, Some((2, 0))),
        ("becomes-folder", How::Deleted, Kind::File, Some((0, 1))),
        ("becomes-folder/file", How::Added, Kind::File, Some((1, 0))),
        ("becomes-link", How::Kind, Kind::Link, Some((1, 1))),
        ("data.bin", How::Modified, Kind::File, None),
        ("gone", How::Deleted, Kind::File, Some((0, 1))),
        ("run.sh", How::Mode, Kind::Executable, Some((0, 0))),
    ];
    assert_eq!(listed, expected);
    assert_eq!((found.report.files, found.report.insertions, found.report.deletions), (8, 5, 3));
    assert_eq!(change(&slot).await, found, "reading changes nothing");

    // The patch is the whole of it.
    let patch = slot.patch(&found).await.unwrap();
    let dev = origin.dev();
    std::fs::write(dev.join("../patch"), &patch).unwrap();
    git(&dev, ["apply", "--index", "--binary", "../patch"]);
    assert_eq!(git(&dev, ["write-tree"]), found.tree.as_str());
}

#[tokio::test]
async fn odd_names_are_names() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let (mut slot, fetched) = worker.begin(&origin.remote()).await;
    let names: [&[u8]; 9] = [
        b"new\nline",
        b"tab\there",
        b"\"quoted\"",
        b"back\\slash",
        b"-rf",
        b"--force",
        b"*",
        b":(exclude)x",
        b"non-\xff\xfe-utf8",
    ];
    for name in names {
        std::fs::write(slot.tree().join(OsStr::from_bytes(name)), "x\n").unwrap();
    }
    std::fs::create_dir(slot.tree().join("-folder")).unwrap();
    std::fs::write(slot.tree().join("-folder").join(OsStr::from_bytes(b" \xff\n")), "x\n").unwrap();
    let found = change(&slot).await;
    assert_eq!(found.files.len(), names.len() + 1);
    for name in names {
        assert!(
            found
                .files
                .iter()
                .any(|file| file.path == Path::new(OsStr::from_bytes(name)) && file.lines == Some((1, 0)))
        );
    }
    let order = order(&slot, &fetched).await;
    slot.push(&order).await.unwrap();
    assert_eq!(origin.show(BRANCH, "new\nline"), "x");
}

#[tokio::test]
async fn what_may_not_leave_is_refused_by_its_path() {
    let (origin, bounds) =
        (Origin::new(), Bounds { file_bytes: 1_000, all_bytes: 10_000, files: 50, patch_bytes: 1 << 20 });
    origin.write("big-before", "x".repeat(2_000));
    origin.commit("big");
    let worker = Worker::with(Settings { bounds, ..Settings::default() }, allowed()).await;
    let (slot, _) = worker.begin(&origin.remote()).await;
    let tree = slot.tree();

    write(&tree, "big", "x".repeat(1_001));
    assert!(refused(&slot).await.contains("big: 1001 bytes, of at most 1000"));
    // Nobody reads what is too large: this would take for ever.
    std::fs::File::create(tree.join("big")).unwrap().set_len(1 << 50).unwrap_or(());
    std::fs::File::options().write(true).open(tree.join("big")).unwrap().set_len(8 << 40).unwrap();
    assert!(refused(&slot).await.contains("big: 8796093022208 bytes"));
    std::fs::remove_file(tree.join("big")).unwrap();
    // What the base has is only touched.
    write(&tree, "big-before", "x".repeat(2_000));
    assert!(change(&slot).await.is_empty());
    write(&tree, "big-before", "y".repeat(2_001));
    assert!(refused(&slot).await.contains("big-before"));
    write(&tree, "big-before", "x".repeat(2_000));

    git(&tree, ["init", "-q", "nested"]);
    assert!(refused(&slot).await.contains("nested/: another repository"));
    write(&tree.join("nested"), "file", "x");
    git(&tree.join("nested"), ["add", "-A"]);
    git(&tree.join("nested"), ["commit", "-qm", "x"]);
    assert!(refused(&slot).await.contains("nested/: another repository"));
    std::fs::remove_dir_all(tree.join("nested")).unwrap();

    write(&tree, "sub/.GIT/config", "x");
    assert!(refused(&slot).await.contains("a path inside of `.git`"));
    std::fs::remove_dir_all(tree.join("sub")).unwrap();

    std::fs::remove_file(tree.join("README")).unwrap();
    nix::unistd::mkfifo(&tree.join("README"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refused(&slot).await.contains("README: neither a file nor a link"));
    std::fs::remove_file(tree.join("README")).unwrap();

    for number in 0..60 {
        write(&tree, &format!("many/{number}"), "x");
    }
    assert!(refused(&slot).await.contains("61 files changed, of at most 50"));
}

#[tokio::test]
async fn a_secret_in_a_change_is_refused_by_its_name_and_never_told() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    let first = format!("ghp_{}", "Z9y8".repeat(9));
    origin.write("leaked-before", format!("key = hunter2\n{first}\n"));
    origin.commit("leak");
    let (slot, _) = worker.begin(&origin.remote()).await;
    let other = format!("ghp_{}", "a1B2".repeat(9));
    let mask = Mask::new([("DB_PASSWORD", &Secret::new("hunter2".to_owned()))]).unwrap();
    let scan = |bytes: &[u8]| find_all(&mask, bytes);
    write(&slot.tree(), "leaked-before", format!("key = hunter2\n{first}\nmore\n"));
    assert_eq!(slot.change(&scan).await.unwrap().report.files, 1, "it brings nothing out that was not out");
    for (new, kind) in [(other.as_str(), "GitHub token"), ("AKIAIOSFODNN7EXAMPLE", "AWS access key")] {
        write(&slot.tree(), "leaked-before", format!("key = hunter2\n{first}\n{new}\n"));
        let error = slot.change(&scan).await.unwrap_err().to_string();
        assert!(error.contains(&format!("leaked-before: the secret {kind} is in it")), "beside an old one: {error}");
    }
    write(&slot.tree(), "leaked-before", format!("key = hunter2\n{first}\n"));
    for (path, text, said) in [
        ("src/config", "password: hunter2", "src/config: the secret DB_PASSWORD is in it"),
        ("hunter2", "x", "the name of a file has the secret DB_PASSWORD in it"),
    ] {
        write(&slot.tree(), path, text);
        let error = slot.change(&scan).await.unwrap_err().to_task_error();
        assert_eq!((error.code, error.message.as_str()), (Code::ChangeRefused, said));
        std::fs::remove_file(slot.tree().join(path)).unwrap();
    }
    symlink("/run/hunter2", slot.tree().join("link")).unwrap();
    assert!(slot.change(&scan).await.is_err(), "a link's target is content");
    // Nothing that was refused is anywhere but in the slot.
    let mirror = git(&worker.mirror(), ["cat-file", "--batch-all-objects", "--batch"]);
    assert_eq!(mirror.matches("hunter2").count(), 1, "the base's own");
}

#[tokio::test]
async fn what_was_only_touched_is_no_change_and_counts_for_no_bound() {
    let (origin, bounds) = (Origin::new(), Bounds { file_bytes: 100, files: 5, all_bytes: 1_000, ..Bounds::default() });
    for number in 0..20 {
        origin.write(&format!("many/{number}"), "x".repeat(200));
    }
    origin.commit("many");
    let worker = Worker::with(Settings { bounds, ..Settings::default() }, allowed()).await;
    let (slot, _) = worker.begin(&origin.remote()).await;
    for number in 0..20 {
        let path = slot.tree().join(format!("many/{number}"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x".repeat(200)).unwrap();
    }
    assert!(change(&slot).await.is_empty());
    write(&slot.tree(), "many/1", "y");
    assert_eq!(change(&slot).await.report.files, 1);
}

/// Git compares times in whole seconds: what is changed in the second of the checkout, and is as long as before, is seen
/// only where git can tell that its index is of that second too.
#[tokio::test]
async fn a_change_in_the_second_of_the_checkout_is_seen() {
    let (origin, worker) = (Origin::new(), Worker::new().await);
    origin.write("sign", "-\n");
    origin.commit("a sign");
    let second = |path: &Path| {
        let time = std::fs::metadata(path).unwrap().modified().unwrap();
        time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    };
    loop {
        let (slot, _) = worker.begin(&origin.remote()).await;
        let path = slot.tree().join("sign");
        let checked_out = second(&path);
        write(&slot.tree(), "sign", "+\n");
        if second(&path) != checked_out {
            slot.release().await.unwrap();
            continue;
        }
        let probe = slot.tree().join(".git/now");
        while second(&path) == checked_out {
            std::fs::write(&probe, "").unwrap();
            if second(&probe) > checked_out {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(change(&slot).await.files.len(), 1);
        return;
    }
}
