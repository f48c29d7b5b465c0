//! `shoal run`: one command in the fleet, as if it ran here: its output, its exit code, Ctrl-C cancels it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::num::NonZeroU32;

use clap::Args;
use dispatcher::client::{CancelEnd, CancelOptions, Client, LogOptions, Submission, Submitted};
use futures_util::StreamExt;
use schemas::task::{Container, Mount, Process, PullPolicy, RetryPolicy};
use schemas::{Bytes, Cpu, HumanDuration, Limit, QueueName, State, Task, TaskId, Timestamp, Workload};
use serde_json::json;

use super::containers::pull;
use super::printer::Printer;
use super::{Error, Server, pair};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Flags of `shoal run`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  shoal run -- make test\n  shoal run --timeout 5m --env CI=1 -- sh -c 'make && make test'\n  \
    id=$(shoal run --detach -- ./nightly)\n  \
    shoal run --image alpine:3 --memory 64Mi -- sh -c 'echo hi'\n\nExit code: the job's own, 128 + n for signal n; 124 timed \
    out, 125 the container could not be started, 126 its command cannot be executed, 127 is not there, 130 cancelled."
)]
pub struct Run {
    /// Queue to submit to
    #[arg(long, env = "SHOAL_QUEUE", default_value = "default")]
    pub queue: QueueName,
    /// Run in a container of this image instead of as a process of the worker
    #[arg(long)]
    pub image: Option<String>,
    /// How it is contained.
    #[command(flatten)]
    pub contained: Contained,
    /// Longest run of one attempt, or `unlimited` [default: the queue's, else 30m]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Limit<HumanDuration>>,
    /// Longest silence before it is stopped
    #[arg(long, value_name = "DURATION")]
    pub idle_timeout: Option<HumanDuration>,
    /// Not to be started later than this from now
    #[arg(long, value_name = "DURATION")]
    pub expires_in: Option<HumanDuration>,
    /// Attempts in all
    #[arg(long, value_name = "N")]
    pub max_attempts: Option<NonZeroU32>,
    /// Added to the job's environment; may be repeated
    #[arg(long, short, value_parser = pair, value_name = "NAME=VALUE")]
    pub env: Vec<(String, String)>,
    /// Files to keep, as globs below the work folder; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub artifact: Vec<String>,
    /// Free words for people and filters; may be repeated
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    pub label: Vec<(String, String)>,
    /// CPU limit
    #[arg(long, value_name = "CPU")]
    pub cpu: Option<Limit<Cpu>>,
    /// Memory limit
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Limit<Bytes>>,
    /// Limit of processes and threads
    #[arg(long, value_name = "N")]
    pub pids: Option<Limit<u64>>,
    /// Its id, which is a lock while it is queued or running [default: a new one]
    #[arg(long)]
    pub id: Option<TaskId>,
    /// Do not start if the id was ever used; show what it became instead
    #[arg(long, requires = "id")]
    pub once: bool,
    /// Send this command's stdin along, up to its end
    #[arg(long)]
    pub stdin: bool,
    /// Print the id on stdout and leave
    #[arg(long, short)]
    pub detach: bool,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Flags of a container. What loosens its confinement must also be allowed by the worker.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "With --image")]
pub struct Contained {
    /// Program that replaces the image's entrypoint; CMD goes behind it as arguments
    #[arg(long, requires = "image", value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// User and group [default: the image's]
    #[arg(long, requires = "image", value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Working directory [default: the image's, else /shoal]
    #[arg(long, requires = "image", value_name = "PATH")]
    pub workdir: Option<String>,
    /// none, shared, bridge, host, or a network of the engine [default: the worker's, which is none]
    #[arg(long, requires = "image", value_name = "NAME")]
    pub network: Option<String>,
    /// Folder or file of the worker's machine; may be repeated
    #[arg(long, requires = "image", value_parser = mount, value_name = "SRC:DST[:ro]")]
    pub mount: Vec<Mount>,
    /// When the image is pulled: always, if_not_present, never [default: the worker's]
    #[arg(long, requires = "image", value_parser = pull, value_name = "WHEN")]
    pub pull: Option<PullPolicy>,
    /// The image's files cannot be changed; /tmp and the work folder can
    #[arg(long, requires = "image")]
    pub read_only: bool,
    /// A small init before the command, which passes signals on and reaps orphans
    #[arg(long, requires = "image")]
    pub init: bool,
    /// Capability to keep, as NET_BIND_SERVICE; may be repeated
    #[arg(long, requires = "image", value_name = "NAME")]
    pub capability: Vec<String>,
    /// Runtime of the engine, as runsc [default: the engine's]
    #[arg(long, requires = "image", value_name = "NAME")]
    pub engine_runtime: Option<String>,
    /// No confinement at all
    #[arg(long, requires = "image")]
    pub privileged: bool,
}

impl Contained {
    /// A container of this image.
    fn container(&self, image: &str) -> Container {
        let Self { entrypoint, user, workdir, network, mount, pull, read_only, init, .. } = self.clone();
        Container {
            entrypoint: entrypoint.into_iter().collect(),
            user,
            working_dir: workdir,
            network,
            pull,
            mounts: mount,
            capabilities: self.capability.clone(),
            privileged: self.privileged,
            engine_runtime: self.engine_runtime.clone(),
            read_only,
            init,
            ..Container::new(image)
        }
    }
}

/// `SRC:DST`, perhaps with `:ro` or `:rw`.
fn mount(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let read_only = match parts[..] {
        [_, _] | [_, _, "rw"] => false,
        [_, _, "ro"] => true,
        _ => return Err("write it as /on/the/machine:/in/the/container, or with :ro at the end".into()),
    };
    Ok(Mount { source: parts[0].into(), target: parts[1].into(), read_only })
}

impl Run {
    /// The task that these flags describe.
    fn task(&self, stdin: Option<String>) -> Result<Task, Error> {
        let env: BTreeMap<String, String> = self.env.iter().cloned().collect();
        let command = self.command.clone();
        let workload = match &self.image {
            Some(image) => Workload::Container(Container { command, env, stdin, ..self.contained.container(image) }),
            None if command.is_empty() => {
                return Err(Error::usage("there is no command to run", "shoal run -- echo hello"));
            }
            None => Workload::Process(Process { command, env, stdin }),
        };
        let mut task = Task::new(workload);
        task.timeout = self.timeout;
        task.idle_timeout = self.idle_timeout;
        task.expires_at = self.expires_in.map(|after| Timestamp::now().plus(after.0));
        task.retry = self.max_attempts.map(|max_attempts| RetryPolicy { max_attempts, ..RetryPolicy::default() });
        task.artifacts.clone_from(&self.artifact);
        task.labels = self.label.iter().cloned().collect();
        task.limits.cpu = self.cpu;
        task.limits.memory = self.memory;
        task.limits.pids = self.pids;
        Ok(task)
    }
}

/// Submits, follows, ends as the job does.
pub async fn run(args: Run, on: &Server<'_>) -> Result<Exit, Error> {
    let stdin = if args.stdin {
        if std::io::stdin().is_terminal() {
            output::talk(format_args!("reading stdin up to its end (Ctrl-D)"));
        }
        let text = std::io::read_to_string(std::io::stdin()).map_err(|error| {
            Error::failed(
                "cannot send stdin along; it must be UTF-8 text",
                "put the bytes into a file of the job",
                error,
            )
        })?;
        Some(text)
    } else {
        None
    };
    let task = serde_json::to_vec(&args.task(stdin)?).expect("a task is JSON");
    let mut submission = Submission::checked(args.queue.clone(), args.id.clone(), task)?;
    submission.once = args.once;
    let client = on.connect().await?;
    let submitted = client.submit(submission).await?;
    let id = submitted.key.id.clone();
    if args.detach {
        match on.output() {
            Format::Table => output::line(format_args!("{id}")),
            Format::Json => {
                output::json(&json!({"id": id, "queue": submitted.key.queue, "sequence": submitted.sequence}));
            }
        }
        return Ok(exit::DONE);
    }
    output::talk(format_args!("{id}"));
    if let Some(existing) = &submitted.existing {
        output::talk(format_args!("not started: the id exists already and is {}", existing.state));
    }
    follow(&client, &submitted, on.output()).await
}

async fn follow(client: &Client, submitted: &Submitted, format: Format) -> Result<Exit, Error> {
    let Submitted { key, sequence, .. } = submitted;
    let quiet = format == Format::Json;
    let finish = async {
        let mut logs = client.logs(key, LogOptions { follow: true, ..LogOptions::default() });
        let print = async {
            let mut printer = Printer::new();
            while let Some(chunk) = logs.next().await {
                let chunk = chunk?;
                if !quiet {
                    printer.print(&chunk);
                }
            }
            Ok::<(), Error>(())
        };
        let end = client.wait(key, Some(*sequence), None);
        let (printed, end) = tokio::join!(print, end);
        // The end counts more than the lines.
        let end = end?;
        if let Err(error) = printed {
            output::talk(format_args!("the log is not complete: {error}\n  try: shoal logs {}", key));
        }
        Ok::<_, Error>(end)
    };
    let cancel = async {
        let reason = Some("interrupted in `shoal run`".to_owned());
        match client.cancel(key, CancelOptions { sequence: Some(*sequence), reason }).await {
            Ok(outcome) if outcome.end != CancelEnd::Cancelled => {
                output::talk(format_args!("it had ended by itself: {}", outcome.record.record.state));
            }
            Ok(_) => {}
            Err(error) => output::talk(format_args!("cannot cancel: {}", output::chain(&error.into()))),
        }
    };
    tokio::pin!(finish, cancel);
    let mut interrupts = Interrupts::listen()?;
    let mut cancelling = Cancelling::NotAsked;
    let end = loop {
        tokio::select! {
            end = &mut finish => break end?,
            () = &mut cancel, if cancelling == Cancelling::Asked => cancelling = Cancelling::Answered,
            () = interrupts.next() => {
                if cancelling != Cancelling::NotAsked {
                    output::talk(format_args!("left {}; it may still run\n  try: shoal get {key}", key.id));
                    return Ok(exit::CANCELLED);
                }
                output::talk(format_args!("cancelling {}; once more to leave it", key.id));
                cancelling = Cancelling::Asked;
            }
        }
    };
    let record = end.record;
    if quiet {
        output::json(&record);
    }
    let code = exit::of_record(&record).unwrap_or(exit::FAILED);
    if record.state != State::Succeeded {
        let why = record.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
        output::talk(format_args!("{} {}{why}\n  try: shoal get {key}", key.id, record.state));
    }
    Ok(code)
}

/// How far a cancel by Ctrl-C has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancelling {
    NotAsked,
    Asked,
    Answered,
}

/// Ctrl-C, or SIGTERM, as often as it comes.
struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn listen() -> Result<Self, Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |error| Error::failed("cannot listen for signals", "start it again", error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Cancel safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        run: Run,
    }

    fn task(words: &str) -> serde_json::Value {
        let run = Probe::try_parse_from(words.split(' ')).unwrap_or_else(|e| panic!("{e}")).run;
        serde_json::to_value(run.task(None).unwrap()).unwrap()
    }

    #[test]
    fn flags_of_a_container_are_its_fields() {
        let words = "probe --image alpine:3 --entrypoint sh --user 1000:1000 --workdir /w --network bridge --mount /a:/b \
                     --mount /c:/d:ro --pull never --read-only --init --capability CHOWN --engine-runtime runsc --privileged \
                     --cpu 500m --memory 64Mi --pids 8 --env A=b -- -c true";
        let task = task(&words.split_whitespace().collect::<Vec<_>>().join(" "));
        let expected = json!({
            "kind": "container", "image": "alpine:3", "command": ["-c", "true"], "entrypoint": ["sh"], "env": {"A": "b"},
            "user": "1000:1000", "working_dir": "/w", "network": "bridge", "pull": "never",
            "mounts": [{"source": "/a", "target": "/b"}, {"source": "/c", "target": "/d", "read_only": true}],
            "capabilities": ["CHOWN"], "privileged": true, "engine_runtime": "runsc", "read_only": true, "init": true,
        });
        assert_eq!(task["workload"], expected);
        assert_eq!(task["limits"], json!({"cpu": "500m", "memory": "64Mi", "pids": "8"}));
        assert_eq!(self::task("probe --image a")["workload"], json!({"kind": "container", "image": "a"}));
    }

    #[test]
    fn what_is_only_of_containers_wants_an_image() {
        for words in ["probe --network none -- true", "probe --init -- true", "probe --image a --mount /a"] {
            assert!(Probe::try_parse_from(words.split(' ')).is_err(), "{words}");
        }
    }
}
