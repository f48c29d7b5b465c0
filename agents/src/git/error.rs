//! What goes wrong with git, told apart.

use std::time::Duration;

use schemas::{Code, HumanDuration, TaskError};

use crate::retry::Again;

/// Why git did not do it. Messages are masked, and bounded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitError {
    /// There is no such program, or it does not run.
    #[error("git is not usable: {0}")]
    NotUsable(String),
    /// The program is older than [`OLDEST`](super::OLDEST).
    #[error("{} is too old: 2.38 is the oldest that will do", .found.trim())]
    TooOld {
        /// What it calls itself.
        found: String,
    },
    /// The remote has none of this name, or the worker does not allow it.
    #[error("no such repository: {0}")]
    RepositoryNotFound(String),
    /// The remote does not take the credentials, or wants some and there are none.
    #[error("the remote does not take the credentials: {0}")]
    LoginRefused(String),
    /// No way to it now, or it broke off.
    #[error("the remote cannot be reached: {0}")]
    Unreachable(String),
    /// The remote has no such branch to begin from.
    #[error("the repository has no branch {0:?}")]
    BaseNotFound(String),
    /// The work does not fit onto what is there now.
    #[error("conflicts in {}", list(.paths))]
    Conflict {
        /// The files.
        paths: Vec<String>,
    },
    /// Somebody was quicker with the remote's branch.
    #[error("the remote's branch is not where it was: {0}")]
    NotFastForward(String),
    /// The remote's own rules: a hook, a protected branch. Or ours: a branch that is none of ours to push.
    #[error("push refused: {0}")]
    PushRefused(String),
    /// The push failed for a reason that may pass.
    #[error("push failed: {0}")]
    PushFailed(String),
    /// The change may not leave the worker.
    #[error("{0}")]
    ChangeRefused(String),
    /// Another git works in the same place, or was killed there.
    #[error("locked: {0}")]
    LockHeld(String),
    /// Objects are missing or broken.
    #[error("the local repository is broken: {0}")]
    Corrupt(String),
    /// No room on the disk.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// It ran longer than it may.
    #[error("git {what} took longer than {}", HumanDuration(*.after))]
    TimedOut {
        /// Git's command.
        what: String,
        /// The timeout.
        after: Duration,
        /// It was speaking to a remote.
        remote: bool,
    },
    /// It wrote more than is taken.
    #[error("git {what} wrote more than {most} bytes")]
    TooMuch {
        /// Git's command.
        what: String,
        /// The bound.
        most: usize,
    },
    /// Anything else.
    #[error("git {what}: {message}")]
    Failed {
        /// Git's command.
        what: String,
        /// Its words.
        message: String,
    },
}

fn list(paths: &[String]) -> String {
    match paths {
        [] => "the change".to_owned(),
        _ if paths.len() <= 10 => paths.join(", "),
        _ => format!("{} and {} more", paths[..10].join(", "), paths.len() - 10),
    }
}

impl GitError {
    /// Whether the same may succeed in a while.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::PushFailed(_)
            | Self::NotFastForward(_)
            | Self::LockHeld(_)
            | Self::TimedOut { remote: true, .. } => true,
            Self::NotUsable(_)
            | Self::TooOld { .. }
            | Self::RepositoryNotFound(_)
            | Self::LoginRefused(_)
            | Self::BaseNotFound(_)
            | Self::Conflict { .. }
            | Self::PushRefused(_)
            | Self::ChangeRefused(_)
            | Self::Corrupt(_)
            | Self::NoSpace(_)
            | Self::TimedOut { remote: false, .. }
            | Self::TooMuch { .. }
            | Self::Failed { .. } => false,
        }
    }

    /// For [`retried`](crate::retry::retried).
    pub fn again(&self) -> Again {
        self.retryable().into()
    }

    /// The same for the record.
    pub fn to_task_error(&self) -> TaskError {
        let code = match self {
            Self::RepositoryNotFound(_) => Code::RepositoryNotFound,
            Self::LoginRefused(_) => Code::GitLoginRefused,
            Self::Unreachable(_) | Self::TimedOut { remote: true, .. } => Code::RepositoryUnreachable,
            Self::BaseNotFound(_) => Code::BaseNotFound,
            Self::Conflict { .. } => Code::RebaseConflict,
            Self::PushRefused(_) => Code::PushRefused,
            Self::NotFastForward(_) | Self::PushFailed(_) => Code::PushFailed,
            Self::ChangeRefused(_) => Code::ChangeRefused,
            Self::NotUsable(_)
            | Self::TooOld { .. }
            | Self::LockHeld(_)
            | Self::Corrupt(_)
            | Self::NoSpace(_)
            | Self::TimedOut { remote: false, .. }
            | Self::TooMuch { .. }
            | Self::Failed { .. } => Code::WorkspaceFailed,
        };
        TaskError::new(code, self.to_string())
    }

    /// The same, as the failure of a push: whatever may pass is a push that failed.
    pub(crate) fn of_push(self) -> Self {
        match self {
            Self::Unreachable(_) | Self::LockHeld(_) | Self::TimedOut { .. } | Self::Failed { .. } => {
                Self::PushFailed(self.to_string())
            }
            other => other,
        }
    }
}

/// Words of one line, and the error that they mean.
type Meaning = (&'static [&'static str], fn(String) -> GitError);

/// Git's words, and what they mean. The first that fits.
const WORDS: &[Meaning] = &[
    (&["No space left on device", "Disk quota exceeded", "disk quota exceeded"], GitError::NoSpace),
    (&["transport '", "' not allowed"], GitError::RepositoryNotFound),
    (&["Authentication failed"], GitError::LoginRefused),
    (&["could not read Username"], GitError::LoginRefused),
    (&["could not read Password"], GitError::LoginRefused),
    (&["Permission denied (publickey"], GitError::LoginRefused),
    (&["Permission denied (", "password"], GitError::LoginRefused),
    (&["Host key verification failed"], GitError::LoginRefused),
    (&["returned error: 401"], GitError::LoginRefused),
    (&["returned error: 403"], GitError::LoginRefused),
    (&["returned error: 404"], GitError::RepositoryNotFound),
    (&["fatal: repository '", "' not found"], GitError::RepositoryNotFound),
    (&["fatal: repository '", "' does not exist"], GitError::RepositoryNotFound),
    (&["does not appear to be a git repository"], GitError::RepositoryNotFound),
    (&["ERROR: Repository not found"], GitError::RepositoryNotFound),
    (&["detected dubious ownership"], GitError::RepositoryNotFound),
    (&["unable to access '"], GitError::Unreachable),
    (&["Could not resolve host"], GitError::Unreachable),
    (&["Connection refused"], GitError::Unreachable),
    (&["Connection timed out"], GitError::Unreachable),
    (&["Connection reset"], GitError::Unreachable),
    (&["Connection closed"], GitError::Unreachable),
    (&["Network is unreachable"], GitError::Unreachable),
    (&["No route to host"], GitError::Unreachable),
    (&["hung up unexpectedly"], GitError::Unreachable),
    (&["unexpected disconnect"], GitError::Unreachable),
    (&["RPC failed"], GitError::Unreachable),
    (&["early EOF"], GitError::Unreachable),
    (&["expected flush after"], GitError::Unreachable),
    (&["protocol error"], GitError::Unreachable),
    (&["not valid: is this a git repository?"], GitError::Unreachable),
    (&["Unable to create '", ".lock': File exists"], GitError::LockHeld),
    (&["Unable to create", ".lock", "File exists"], GitError::LockHeld),
    (&["not a git repository"], GitError::Corrupt),
    (&["bad object"], GitError::Corrupt),
    (&["is corrupt"], GitError::Corrupt),
    (&["index file corrupt"], GitError::Corrupt),
    (&["bad signature"], GitError::Corrupt),
    (&["index file smaller than expected"], GitError::Corrupt),
    (&["object file ", " is empty"], GitError::Corrupt),
    (&["unable to unpack"], GitError::Corrupt),
    (&["inflate: "], GitError::Corrupt),
    (&["unable to read tree"], GitError::Corrupt),
    (&["unable to read sha1 file"], GitError::Corrupt),
    (&["invalid sha1 file"], GitError::Corrupt),
    (&["unable to parse commit"], GitError::Corrupt),
    (&["packfile ", " cannot be accessed"], GitError::Corrupt),
    (&["packfile ", " does not match index"], GitError::Corrupt),
    (&["is far too short to be a packfile"], GitError::Corrupt),
    (&["failed to read object"], GitError::Corrupt),
    (&["could not read object"], GitError::Corrupt),
    (&["Could not read "], GitError::Corrupt),
    (&["missing blob"], GitError::Corrupt),
    (&["missing tree"], GitError::Corrupt),
    (&["did not send all necessary objects"], GitError::Corrupt),
    (&["does not point to a valid object"], GitError::Corrupt),
    (&["unable to find "], GitError::Corrupt),
    (&["failed to unpack tree object"], GitError::Corrupt),
    (&["not a tree object"], GitError::Corrupt),
    (&["not a valid object name"], GitError::Corrupt),
    (&["invalid object "], GitError::Corrupt),
];

/// What git's stderr (masked already) means. What the remote says (`remote: …`) decides nothing, but people read it.
pub(super) fn told_apart(what: &str, stderr: &str) -> GitError {
    let own: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("remote:")).collect();
    let message = message(stderr);
    let fits = |words: &[&str]| own.iter().any(|line| words.iter().all(|word| line.contains(word)));
    match WORDS.iter().find(|(words, _)| fits(words)) {
        Some((_, kind)) => kind(message),
        None => GitError::Failed { what: what.to_owned(), message },
    }
}

/// The lines that say something, in one, at most 1 KiB of them.
pub(super) fn message(stderr: &str) -> String {
    let mut message = String::new();
    for line in stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("hint:")) {
        if message.len() + line.len() > 1_024 {
            break;
        }
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(line);
    }
    match message.is_empty() {
        true => "it says nothing".to_owned(),
        false => message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        for (stderr, code, retryable) in [
            ("fatal: repository 'https://h/a.git/' not found", Code::RepositoryNotFound, false),
            (
                "fatal: '/srv/none' does not appear to be a git repository\nfatal: Could not read from remote repository.",
                Code::RepositoryNotFound,
                false,
            ),
            (
                "remote: Invalid username\nfatal: Authentication failed for 'https://h/a.git/'",
                Code::GitLoginRefused,
                false,
            ),
            ("fatal: could not read Username for 'https://h': terminal prompts disabled", Code::GitLoginRefused, false),
            (
                "fatal: unable to access 'https://h/': The requested URL returned error: 403",
                Code::GitLoginRefused,
                false,
            ),
            (
                "fatal: unable to access 'https://h/': The requested URL returned error: 502",
                Code::RepositoryUnreachable,
                true,
            ),
            ("fatal: unable to access 'https://h/': Could not resolve host: h", Code::RepositoryUnreachable, true),
            (
                "ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote repository.",
                Code::RepositoryUnreachable,
                true,
            ),
            (
                "git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.",
                Code::GitLoginRefused,
                false,
            ),
            ("fatal: write error: No space left on device", Code::WorkspaceFailed, false),
            ("fatal: Unable to create '/m/index.lock': File exists.", Code::WorkspaceFailed, true),
            ("error: packfile ./objects/pack/a.pack cannot be accessed", Code::WorkspaceFailed, false),
            ("fatal: transport 'file' not allowed", Code::RepositoryNotFound, false),
        ] {
            let error = told_apart("fetch", stderr);
            assert_eq!((error.to_task_error().code, error.retryable()), (code, retryable), "{stderr}: {error:?}");
        }
    }

    #[test]
    fn what_a_remote_says_decides_nothing() {
        let error = told_apart("fetch", "remote: fatal: Authentication failed\nfatal: bad object 1234");
        assert!(matches!(error, GitError::Corrupt(_)), "{error:?}");
    }
}
