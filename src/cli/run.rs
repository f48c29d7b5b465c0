//! `shoal run`: one command in the fleet, as if it ran here: its output, its exit code, Ctrl-C cancels it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::num::NonZeroU32;

use clap::Args;
use dispatcher::client::{CancelEnd, CancelOptions, Client, LogChunk, LogOptions, Submission, Submitted};
use futures_util::StreamExt;
use schemas::names::LogSource;
use schemas::task::{Container, Process, RetryPolicy};
use schemas::{Bytes, Cpu, HumanDuration, Limit, QueueName, State, Task, TaskId, Timestamp, Workload};
use serde_json::json;

use super::{Error, Server, pair};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Flags of `shoal run`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  shoal run -- make test\n  shoal run --timeout 5m --env CI=1 -- sh -c 'make && make test'\n  \
    id=$(shoal run --detach -- ./nightly)"
)]
pub struct Run {
    /// Queue to submit to
    #[arg(long, env = "SHOAL_QUEUE", default_value = "default")]
    pub queue: QueueName,
    /// Run in a container of this image instead of as a process of the worker
    #[arg(long)]
    pub image: Option<String>,
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

impl Run {
    /// The task that these flags describe.
    fn task(&self, stdin: Option<String>) -> Result<Task, Error> {
        let env: BTreeMap<String, String> = self.env.iter().cloned().collect();
        let command = self.command.clone();
        let workload = match &self.image {
            Some(image) => Workload::Container(Container { command, env, stdin, ..Container::new(image) }),
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
            while let Some(chunk) = logs.next().await {
                let chunk = chunk?;
                if !quiet {
                    print_chunk(&chunk);
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

/// Writes what a job wrote to where it would have written it.
pub fn print_chunk(chunk: &LogChunk) {
    match chunk.source {
        LogSource::Stdout => output::data(&chunk.bytes),
        // Whoever closed stderr does not want to hear of it.
        LogSource::Stderr => drop(std::io::stderr().write_all(&chunk.bytes)),
        LogSource::System => {
            for line in String::from_utf8_lossy(&chunk.bytes).lines() {
                output::talk(format_args!("shoal: {line}"));
            }
        }
    }
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
