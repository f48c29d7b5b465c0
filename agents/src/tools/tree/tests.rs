use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn both(root: &Path) -> [Tree; 2] {
    [Tree::open(root).unwrap(), Tree::open(root).unwrap().without_openat2()]
}

fn place(text: &str) -> Place {
    Place::parse(text, Path::new("/nowhere")).unwrap()
}

#[test]
fn no_link_leads_out_whether_it_is_the_file_or_a_folder_on_the_way() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = tempfile::tempdir().unwrap();
    symlink(outside.path(), root.path().join("folder")).unwrap();
    symlink(outside.path().join("secret"), root.path().join("file")).unwrap();
    symlink("/proc/self/root", root.path().join("magic")).unwrap();
    symlink("real", root.path().join("inner")).unwrap();
    std::fs::write(root.path().join("real"), "x").unwrap();
    for tree in both(root.path()) {
        for name in ["file", "folder/secret", "magic/etc/passwd", "inner"] {
            let link = Err(TreeError::Link(name.to_owned()));
            assert_eq!(tree.file(&place(name)).map(|_| ()), link, "{tree:?}");
            assert_eq!(tree.write(&place(name), b"x").map_err(|_| ()), Err(()), "{name}");
        }
        assert!(matches!(tree.list(&place("folder"), 10), Err(TreeError::Link(_))));
        assert!(matches!(tree.write(&place("folder/new/deep"), b"x"), Err(TreeError::Link(_) | TreeError::Kind(..))));
        assert!(tree.remove(&place("folder/secret")).is_err());
        assert!(tree.rename(&place("folder/secret"), &place("stolen")).is_err());
        assert!(tree.rename(&place("real"), &place("folder/given")).is_err());
    }
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_regular_file_is_refused_and_never_blocks() {
    let root = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&root.path().join("fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    std::fs::create_dir(root.path().join("folder")).unwrap();
    for tree in both(root.path()) {
        for name in ["fifo", "socket", "folder"] {
            assert!(matches!(tree.file(&place(name)), Err(TreeError::Kind(..))), "{name}");
            assert!(matches!(tree.write(&place(name), b"x"), Err(TreeError::Kind(..))), "{name}");
        }
        assert!(matches!(tree.remove(&place("folder")), Err(TreeError::Kind(..))));
        assert!(matches!(tree.file(&place("fifo/x")), Err(TreeError::Kind(..))));
        assert!(matches!(tree.file(&place("none")), Err(TreeError::Missing(_))));
    }
}

#[test]
fn a_file_is_written_with_its_folders_and_keeps_its_mode() {
    for at in 0..2 {
        let root = tempfile::tempdir().unwrap();
        let tree = &both(root.path())[at];
        tree.write(&place("a/b/c.sh"), b"one").unwrap();
        let file = root.path().join("a/b/c.sh");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        tree.write(&place("a/b/c.sh"), b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(tree.list(&place("a/b"), 10).unwrap().0.len(), 1, "nothing is left beside it");
        tree.rename(&place("a/b/c.sh"), &place("d/e.sh")).unwrap();
        tree.write(&place("f"), b"f").unwrap();
        assert_eq!(tree.rename(&place("f"), &place("d/e.sh")), Err(TreeError::Exists("d/e.sh".to_owned())));
        tree.remove(&place("d/e.sh")).unwrap();
        assert_eq!(tree.remove(&place("d/e.sh")), Err(TreeError::Missing("d/e.sh".to_owned())));
    }
}

#[test]
fn a_hard_link_is_broken_not_written_through() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), "a").unwrap();
    std::fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
    Tree::open(root.path()).unwrap().write(&place("b"), b"b").unwrap();
    assert_eq!(std::fs::read(root.path().join("a")).unwrap(), b"a");
}

/// Somebody swaps a folder and a link to the outside as fast as it goes, while files below it are read and written.
#[test]
fn a_race_never_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "outside").unwrap();
    let root = tempfile::tempdir().unwrap();
    let [a, b] = ["folder", "link"].map(|name| root.path().join(name));
    std::fs::create_dir(&a).unwrap();
    std::fs::write(a.join("file"), "inside").unwrap();
    symlink(outside.path(), &b).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &a, nix::fcntl::AT_FDCWD, &b, flags).unwrap();
            }
        });
        let (mut inside, mut refused) = (0, 0);
        for tree in both(root.path()).iter().cycle().take(4_000) {
            match tree.read(&place("folder/file"), 100) {
                Ok(text) => {
                    assert_eq!(String::from_utf8(text).unwrap(), "inside");
                    inside += 1;
                }
                Err(_) => refused += 1,
            }
            let _ = tree.write(&place("folder/file"), b"inside");
            let _ = tree.write(&place("folder/deep/new"), b"inside");
        }
        over.store(true, Ordering::Relaxed);
        assert!(inside > 0 && refused > 0, "both were met: {inside} inside, {refused} refused");
    });
    assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "outside");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was made outside");
}
