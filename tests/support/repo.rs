//! A git remote: a bare repository of this machine, and what is on it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A remote with a small project: a program that adds wrongly, and a test that says so.
pub struct Repo {
    path: PathBuf,
}

/// The program with its fault.
pub const WRONG: &str = "echo $(($1 - $2))\n";
/// The same without.
pub const RIGHT: &str = "echo $(($1 + $2))\n";
/// What the repository's instructions name as its test.
pub const TEST: &str = "sh test.sh";

impl Repo {
    /// A new one, `name` below `folder`, with one commit on `main`.
    pub fn new(folder: &Path, name: &str) -> Self {
        let repo = Self { path: folder.join(format!("{name}.git")) };
        git(folder, &["init", "-q", "--bare", "-b", "main", &repo.url()]);
        let test = "echo 1..1\nif [ \"$(sh add.sh 2 3)\" = 5 ]; then echo 'ok 1 - adds'\n\
                    else echo 'not ok 1 - adds'; exit 1; fi\n";
        let instructions = format!("# Adder\n\n## Tests\n\n```sh\n{TEST}\n```\n");
        repo.commit("main", &[("add.sh", WRONG), ("test.sh", test), ("AGENTS.md", &instructions)]);
        repo
    }

    /// Where it is, as a remote.
    pub fn url(&self) -> String {
        self.path.display().to_string()
    }

    /// One more commit on `branch` with these files; returns its name.
    pub fn commit(&self, branch: &str, files: &[(&str, &str)]) -> String {
        let files: Vec<(&str, Option<&[u8]>)> =
            files.iter().map(|(path, text)| (*path, Some(text.as_bytes()))).collect();
        self.change(branch, &files, "a change by somebody")
    }

    /// The same of bytes; `None` removes a file.
    pub fn change(&self, branch: &str, files: &[(&str, Option<&[u8]>)], message: &str) -> String {
        let work = tempfile::tempdir().expect("a folder");
        let work = work.path();
        git(work, &["init", "-q", "-b", branch, "."]);
        if self.tip(branch).is_some() {
            git(work, &["pull", "-q", &self.url(), branch]);
        }
        for (path, bytes) in files {
            let path = work.join(path);
            match bytes {
                None => std::fs::remove_file(path).expect("it is there"),
                Some(bytes) => {
                    std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
                    std::fs::write(path, bytes).expect("it can be written");
                }
            }
        }
        git(work, &["add", "-A", "."]);
        git(work, &["commit", "-q", "--allow-empty", "-m", message]);
        git(work, &["push", "-q", &self.url(), &format!("HEAD:{branch}")]);
        self.tip(branch).expect("it was pushed")
    }

    /// A hook of the remote's own.
    pub fn hook(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path.join("hooks").join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for hooks");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a hook");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it can be run");
    }

    /// Commit of a branch.
    pub fn tip(&self, branch: &str) -> Option<String> {
        let reference = format!("refs/heads/{branch}");
        let found = Command::new("git")
            .args(["-C", &self.url(), "rev-parse", "-q", "--verify", &reference])
            .output()
            .expect("git runs");
        found.status.success().then(|| String::from_utf8_lossy(&found.stdout).trim().to_owned())
    }

    /// Every reference, in order.
    pub fn refs(&self) -> Vec<String> {
        let text = git(&self.path, &["for-each-ref", "--format=%(refname)"]);
        text.lines().map(str::to_owned).collect()
    }

    /// Every branch but `main`, in order.
    pub fn branches(&self) -> Vec<String> {
        let names = self.refs().into_iter().filter_map(|name| Some(name.strip_prefix("refs/heads/")?.to_owned()));
        names.filter(|name| name != "main").collect()
    }

    /// A file as it is on a branch.
    pub fn file(&self, branch: &str, path: &str) -> Option<String> {
        let found = Command::new("git").args(["-C", &self.url(), "show", &format!("{branch}:{path}")]).output();
        let found = found.expect("git runs");
        found.status.success().then(|| String::from_utf8_lossy(&found.stdout).into_owned())
    }

    /// What git says of it.
    pub fn git(&self, args: &[&str]) -> String {
        git(&self.path, args)
    }
}

/// Runs git in `folder`, without anybody's settings.
pub fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs(["AUTHOR", "COMMITTER"].into_iter().flat_map(|who| {
            [(format!("GIT_{who}_NAME"), "Somebody"), (format!("GIT_{who}_EMAIL"), "somebody@example.com")]
        }))
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
