//! One run of git, from its environment to its end.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Git, GitError, Remote, Transport, askpass, error};
use crate::secret::Mask;

/// Most that is taken of stdout, unless said otherwise.
const STDOUT: usize = 64 << 20;
/// Most that is kept of stderr; the rest is read and forgotten.
const STDERR: usize = 64 << 10;

/// Said to every run. What hooks, filters, helpers or programs a repository wishes for: none.
const SAID: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.pager=cat",
    "core.editor=false",
    "core.autocrlf=false",
    "core.safecrlf=false",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.precomposeUnicode=false",
    "core.quotePath=false",
    "protocol.allow=never",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "diff.ignoreSubmodules=all",
    "diff.renames=false",
    "diff.noprefix=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "credential.helper=",
    "credential.useHttpPath=false",
    "http.followRedirects=initial",
    "http.lowSpeedLimit=100",
    "http.lowSpeedTime=60",
    "commit.gpgSign=false",
    "push.gpgSign=false",
    "advice.detachedHead=false",
];

/// A run that is being described.
pub(crate) struct Call<'a> {
    git: &'a Git,
    remote: Option<&'a Remote>,
    dir: Option<&'a Path>,
    tree: Option<&'a Path>,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    stdin: Option<Vec<u8>>,
    transports: Vec<Transport>,
    login: bool,
    most: usize,
    timeout: Duration,
}

/// What a run wrote, and how it ended.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// Masked.
    pub(crate) stderr: String,
}

impl<'a> Call<'a> {
    pub(super) fn new(git: &'a Git, remote: Option<&'a Remote>) -> Self {
        Self {
            git,
            remote,
            dir: None,
            tree: None,
            args: Vec::new(),
            env: Vec::new(),
            stdin: None,
            transports: Vec::new(),
            login: false,
            most: STDOUT,
            timeout: git.settings().local_timeout,
        }
    }

    /// The git directory.
    pub(crate) fn dir(mut self, dir: &'a Path) -> Self {
        self.dir = Some(dir);
        self
    }

    /// The work tree; git stands in it.
    pub(crate) fn tree(mut self, tree: &'a Path) -> Self {
        self.tree = Some(tree);
        self
    }

    /// Another index than the git directory's own.
    pub(crate) fn index(self, index: &Path) -> Self {
        self.env("GIT_INDEX_FILE", index)
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// Bytes of stdout that are taken; more is an error.
    pub(crate) fn most(mut self, bytes: usize) -> Self {
        self.most = bytes;
        self
    }

    /// Speaks to the remote: by the allowed transports, with its login.
    pub(crate) fn network(mut self) -> Self {
        self.transports = self.git.settings().transports.iter().copied().collect();
        self.login = true;
        self.timeout = self.git.settings().network_timeout;
        self
    }

    /// Speaks to another folder of ours.
    pub(crate) fn between_folders(mut self) -> Self {
        self.transports = vec![Transport::File];
        self
    }

    /// The same with exit code 0, or what its words mean.
    pub(crate) async fn ok(self) -> Result<Output, GitError> {
        let what = self.what();
        let output = self.run().await?;
        match output.status.success() {
            true => Ok(output),
            false => Err(output.error(&what)),
        }
    }

    /// The same, and its stdout as text without the last line's end.
    pub(crate) async fn text(self) -> Result<String, GitError> {
        let output = self.ok().await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    }

    fn what(&self) -> String {
        self.args.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let (inner, settings) = (&self.git.0, self.git.settings());
        let mut command = Command::new(&settings.program);
        command.env_clear().envs(&settings.env).env("PATH", &inner.path).env("HOME", &inner.home);
        for (name, value) in [
            ("LC_ALL", "C"),
            ("LANGUAGE", "C"),
            ("TZ", "UTC"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_COUNT", "0"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_LITERAL_PATHSPECS", "1"),
            ("GIT_PAGER", "cat"),
            ("GIT_EDITOR", "false"),
            ("GIT_MERGE_AUTOEDIT", "no"),
            ("GIT_PROTOCOL_FROM_USER", "0"),
            ("GIT_ADVICE", "0"),
        ] {
            command.env(name, value);
        }
        let ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=30 \
                   -o ServerAliveInterval=15 -o ServerAliveCountMax=4";
        command.env("GIT_SSH_COMMAND", settings.ssh_command.as_deref().unwrap_or(ssh));
        command.env("GIT_ASKPASS", &inner.askpass).env("SSH_ASKPASS", &inner.askpass);
        if self.login
            && let Some(remote) = self.remote
            && let Some(login) = &remote.login
            && let Some((scheme, origin)) = askpass::origin(&remote.url)
        {
            command.env(askpass::SCHEME, scheme).env(askpass::ORIGIN, origin);
            command.env(askpass::USER, &login.user).env(askpass::TOKEN, login.token.expose());
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        for said in SAID {
            command.arg("-c").arg(said);
        }
        for transport in &self.transports {
            command.arg("-c").arg(format!("protocol.{}.allow=always", transport.as_str()));
        }
        if let Some(dir) = self.dir {
            command.arg("--git-dir").arg(dir);
        }
        match self.tree {
            Some(tree) => command.arg("--work-tree").arg(tree).current_dir(tree),
            None => command.current_dir(&inner.home),
        };
        command.args(&self.args);
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        command
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// Cancel safe: dropped, all that it started is killed.
    pub(crate) async fn run(self) -> Result<Output, GitError> {
        let what = self.what();
        let mut child = self.command().spawn().map_err(|error| match error.raw_os_error() {
            Some(nix::libc::ENOSPC) => GitError::NoSpace(error.to_string()),
            _ => GitError::NotUsable(error.to_string()),
        })?;
        // Dropped before `child` where the run is broken off: its number cannot be anybody else's then.
        let _group = Group(child.id());
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let bytes = self.stdin.unwrap_or_default();
        let written = async {
            if let Some(mut stdin) = stdin {
                // It may end without reading all; its exit code tells.
                let _ = stdin.write_all(&bytes).await;
            }
        };
        let ended = async {
            let (_, stdout, stderr) = tokio::join!(written, taken(stdout, self.most), taken(stderr, STDERR));
            child.wait().await.map(|status| (status, stdout, stderr))
        };
        let (status, (stdout, cut), (stderr, _)) = match tokio::time::timeout(self.timeout, ended).await {
            Ok(ended) => ended.map_err(|error| GitError::NotUsable(error.to_string()))?,
            Err(_) => {
                return Err(GitError::TimedOut { what, after: self.timeout, remote: self.login });
            }
        };
        if cut {
            return Err(GitError::TooMuch { what, most: self.most });
        }
        Ok(Output { status, stdout, stderr: masked(self.remote, &String::from_utf8_lossy(&stderr)) })
    }
}

impl Output {
    /// What its words mean.
    pub(crate) fn error(&self, what: &str) -> GitError {
        match std::os::unix::process::ExitStatusExt::signal(&self.status) {
            Some(signal) if self.stderr.trim().is_empty() => {
                GitError::Failed { what: what.to_owned(), message: format!("signal {signal}") }
            }
            _ => error::told_apart(what, &self.stderr),
        }
    }

    /// The pieces of a `-z` output.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.stdout.split(|byte| *byte == 0).filter(|piece| !piece.is_empty())
    }
}

fn masked(remote: Option<&Remote>, text: &str) -> String {
    let Some(remote) = remote else { return text.to_owned() };
    let text = remote.mask.text(text);
    match &remote.login {
        // One that is too short to be hidden is refused where a worker is set up.
        Some(login) => Mask::new([("git", &*login.token)]).unwrap_or_default().text(&text),
        None => text,
    }
}

/// What comes, as far as it is kept; all is read. And whether there was more.
async fn taken(stream: Option<impl AsyncRead + Unpin>, most: usize) -> (Vec<u8>, bool) {
    let (mut kept, mut cut) = (Vec::new(), false);
    let Some(mut stream) = stream else { return (kept, cut) };
    let mut chunk = vec![0; 32 << 10];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        let room = most - kept.len();
        kept.extend_from_slice(&chunk[..count.min(room)]);
        cut |= count > room;
    }
    (kept, cut)
}

/// All that a run started; killed on drop. After a good end nobody is left in it.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
