//! `shoal agent`: coding-agent jobs: hand one in, follow what it does, speak with it, see its change.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use dispatcher::client::{Client, Submission, Told};
use futures_util::{StreamExt, TryStreamExt};
use schemas::agent_job::{
    AgentJob, AgentProtocol, Budget, CommandImplementer, Implementer, JobContainer, JobRuntime, ModelImplementer,
    PlaybookSource, PushPolicy,
};
use schemas::transcript::Event;
use schemas::{Decimal, HumanDuration, Limit, QueueName, State, Task, TaskId, TaskKey, TaskRecord, Workload};
use serde::Deserialize;
use serde_json::json;

use super::transcript::show;
use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format, printable, printable_lines};

/// `shoal agent …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Agent {
    /// Hand a repository and a task to an agent, follow it, exit with the job's code
    Run(Box<Run>),
    /// Show what a job does and did
    Transcript(Transcript),
    /// Show the change that a job made, as a patch
    Diff(Diff),
    /// List the questions of a running job
    Questions(Questions),
    /// Ask a running job something, and wait for what it says to it
    Ask(Ask),
    /// Answer a question of a running job
    Answer(Answer),
    /// Tell a running job something
    Say(Say),
    /// Playbooks that jobs can use by name
    #[command(subcommand)]
    Playbook(Playbook),
}

/// Flags of `shoal agent run`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Example:\n  shoal agent run --repository https://host/team/app.git --title 'Fix the parser' \\\n    \
    --description 'The last line is lost.' --model some-model\n\nWhat flags do not say, a task file does: docs/agent-jobs.md."
)]
pub struct Run {
    /// Git remote: https://…, ssh://…, user@host:path, or a path that the workers allow
    #[arg(long, value_name = "REMOTE")]
    pub repository: String,
    /// What is to be done, in one line
    #[arg(long)]
    pub title: String,
    /// The same in full
    #[arg(long, default_value = "", conflicts_with = "description_file")]
    pub description: String,
    /// The same, from a file
    #[arg(long, value_name = "PATH")]
    pub description_file: Option<PathBuf>,
    /// What must hold at the end; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub acceptance: Vec<String>,
    /// Branch to begin from [default: the remote's own]
    #[arg(long)]
    pub base: Option<String>,
    /// Branch to push [default: feature/task-ID-TITLE]
    #[arg(long)]
    pub branch: Option<String>,
    /// Model that does it [default: the workers']
    #[arg(long, conflicts_with = "command")]
    pub model: Option<String>,
    /// Image in whose containers its commands run [default: processes of the worker]
    #[arg(long)]
    pub image: Option<String>,
    /// Network of these containers
    #[arg(long, requires = "image")]
    pub network: Option<String>,
    /// Playbook: a file of the repository
    #[arg(long, value_name = "PATH", conflicts_with = "playbook_name")]
    pub playbook: Option<String>,
    /// Playbook: the name of an applied one
    #[arg(long, value_name = "NAME")]
    pub playbook_name: Option<String>,
    /// Do not push; keep the change as a patch
    #[arg(long)]
    pub patch_only: bool,
    /// Most answers of the model
    #[arg(long)]
    pub turns: Option<u32>,
    /// Most tokens, in and out
    #[arg(long)]
    pub tokens: Option<u64>,
    /// Most money
    #[arg(long)]
    pub cost: Option<Decimal>,
    /// What the worker must be skilled in
    #[arg(long)]
    pub skill: Option<String>,
    /// Longest run
    #[arg(long)]
    pub timeout: Option<Limit<HumanDuration>>,
    /// Queue
    #[arg(long, env = "SHOAL_QUEUE", default_value = "default")]
    pub queue: QueueName,
    /// Id of the task
    #[arg(long)]
    pub id: Option<TaskId>,
    /// Do not follow it
    #[arg(long)]
    pub detach: bool,
    /// The agent program speaks the Agent Client Protocol
    #[arg(long, requires = "command")]
    pub acp: bool,
    /// An agent program that does it, in place of a model; {prompt_file}, {prompt} and {workspace} stand for what they say
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Flags of `shoal agent transcript`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "-o json prints one object a line, with `sequence` for --from.")]
pub struct Transcript {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
    /// Go on until the task has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Only what comes after this sequence
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    pub from: u64,
}

/// Flags of `shoal agent diff`.
#[derive(Clone, Debug, Args)]
pub struct Diff {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
}

/// Flags of `shoal agent questions`.
#[derive(Clone, Debug, Args)]
pub struct Questions {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
}

/// Flags of `shoal agent ask`.
#[derive(Clone, Debug, Args)]
pub struct Ask {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
    /// What
    pub text: String,
    /// Wait no longer than this
    #[arg(long, default_value = "5m")]
    pub timeout: HumanDuration,
}

/// Flags of `shoal agent answer`.
#[derive(Clone, Debug, Args)]
pub struct Answer {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
    /// The answer
    pub text: String,
    /// Which question, where several are open
    #[arg(long, value_name = "ID")]
    pub question: Option<String>,
}

/// Flags of `shoal agent say`.
#[derive(Clone, Debug, Args)]
pub struct Say {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
    /// What
    pub text: String,
}

/// `shoal agent playbook …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Playbook {
    /// Check a playbook and keep it under a name
    Apply {
        /// The name
        name: String,
        /// YAML file, `-` for stdin
        file: PathBuf,
    },
    /// Show a kept playbook
    Show {
        /// The name
        name: String,
    },
}

/// Runs one of them.
pub async fn run(args: Agent, on: &Server<'_>) -> Result<Exit, Error> {
    match args {
        Agent::Run(args) => submit(*args, on).await,
        Agent::Transcript(args) => transcript(args, on).await,
        Agent::Diff(args) => diff(args, on).await,
        Agent::Questions(args) => questions(args, on).await,
        Agent::Ask(args) => ask(args, on).await,
        Agent::Answer(args) => answer(args, on).await,
        Agent::Say(args) => {
            let client = on.connect().await?;
            let key = running(&client, &args.id).await?;
            client.say(&key, &args.text, None).await?;
            Ok(exit::DONE)
        }
        Agent::Playbook(args) => playbook(args, on).await,
    }
}

impl Run {
    fn task(&self, description: String) -> Task {
        let implementer = match self.command.is_empty() {
            true => Implementer::Model(ModelImplementer { model: self.model.clone(), ..ModelImplementer::default() }),
            false => Implementer::Command(CommandImplementer {
                command: self.command.clone(),
                protocol: if self.acp { AgentProtocol::Acp } else { AgentProtocol::None },
                timeout: None,
            }),
        };
        let runtime = match &self.image {
            None => JobRuntime::Process,
            Some(image) => {
                JobRuntime::Docker(JobContainer { image: image.clone(), network: self.network.clone(), user: None })
            }
        };
        let of_file = self.playbook.clone().map(|path| PlaybookSource::File { path });
        let named = self.playbook_name.clone().map(|name| PlaybookSource::Named { name });
        let job = AgentJob {
            base: self.base.clone(),
            branch: self.branch.clone(),
            description,
            acceptance: self.acceptance.clone(),
            skill: self.skill.clone(),
            implementer,
            playbook: of_file.or(named),
            budget: Budget { turns: self.turns, tokens: self.tokens, cost: self.cost, time: None },
            push: if self.patch_only { PushPolicy::Patch } else { PushPolicy::Branch },
            runtime,
            ..AgentJob::new(self.repository.clone(), self.title.clone())
        };
        Task { timeout: self.timeout, ..Task::new(Workload::Agent(Box::new(job))) }
    }
}

async fn submit(args: Run, on: &Server<'_>) -> Result<Exit, Error> {
    let description = match &args.description_file {
        None => args.description.clone(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Error::usage(format!("{} cannot be read: {error}", path.display()), "name a text file"))?,
    };
    let submission = Submission::checked(
        args.queue.clone(),
        args.id.clone(),
        serde_json::to_vec(&args.task(description)).expect("a task is JSON"),
    )?;
    let client = on.connect().await?;
    let submitted = client.submit(submission).await?;
    let key = submitted.key.clone();
    if args.detach {
        match on.output() {
            Format::Table => output::line(format_args!("{}", key.id)),
            Format::Json => output::json(&json!({"id": key.id, "queue": key.queue, "sequence": submitted.sequence})),
        }
        return Ok(exit::DONE);
    }
    output::talk(format_args!("{}", key.id));
    let quiet = on.output() == Format::Json;
    let print = async {
        let mut told = client.told(&key, 0, true);
        while let Some(told) = told.next().await {
            if !quiet {
                show(&told?);
            }
        }
        Ok::<(), Error>(())
    };
    let (printed, end) = tokio::join!(print, client.wait(&key, Some(submitted.sequence), None));
    let record = end?.record;
    if let Err(error) = printed {
        output::talk(format_args!("the transcript is not complete: {error}\n  try: shoal agent transcript {key}"));
    }
    if quiet {
        output::json(&record);
    } else {
        summary(&key, &record);
    }
    Ok(exit::of_record(&record).unwrap_or(exit::FAILED))
}

/// The end of a job, in a few lines.
fn summary(key: &TaskKey, record: &TaskRecord) {
    let report = record.attempts.last().and_then(|attempt| attempt.agent.as_ref()?.read());
    if let Some(report) = &report {
        if let (Some(branch), true) = (&report.branch, report.pushed) {
            let commit = report.commit.as_deref().unwrap_or_default();
            output::line(format_args!("{branch} {}", commit.get(..12).unwrap_or(commit)));
        }
        if let Some(tests) = &report.tests {
            let counts = tests.counts.map_or_else(String::new, |counts| {
                format!(": {} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped)
            });
            output::talk(format_args!("tests{counts} ({})", printable(&tests.command)));
        }
    }
    if record.state != State::Succeeded {
        let why = record.error.as_ref().map(|error| format!(": {}", printable(&error.message))).unwrap_or_default();
        output::talk(format_args!("{} {}{why}\n  try: shoal explain {key}", key.id, record.state));
    } else {
        output::talk(format_args!("the change: shoal agent diff {key}"));
    }
}

async fn transcript(args: Transcript, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let key = find(&client, &args.id, "logs").await?;
    let mut told = client.told(&key, args.from, args.follow);
    while let Some(told) = told.next().await {
        let told = told?;
        match on.output() {
            Format::Table => show(&told),
            Format::Json => {
                let mut value = serde_json::to_value(&told.entry).expect("our own types are JSON");
                value["sequence"] = told.sequence.into();
                output::line(format_args!("{value}"));
            }
        }
    }
    Ok(exit::DONE)
}

async fn diff(args: Diff, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let key = find(&client, &args.id, "artifacts list").await?;
    let view = client.get(&key).await?;
    let record = view.current().map(|recorded| recorded.record.clone());
    let record = record.ok_or_else(|| Error::Failed {
        problem: format!("task {key} has not begun, and changed nothing yet"),
        hint: format!("shoal explain {key}"),
        source: None,
    })?;
    let artifact = client.find_artifact(&record, schemas::agent_job::PATCH, None).map_err(|_| match record.state {
        State::Running | State::Retrying => Error::Failed {
            problem: format!("task {key} keeps no change yet"),
            hint: format!("shoal agent transcript -f {key}"),
            source: None,
        },
        _ => Error::Failed {
            problem: format!("task {key} ended without a change"),
            hint: format!("shoal explain {key}"),
            source: None,
        },
    })?;
    let mut out = tokio::io::stdout();
    client.artifact_to(&record, artifact, &mut out).await?;
    tokio::io::AsyncWriteExt::flush(&mut out)
        .await
        .map_err(|error| Error::failed("the patch cannot be written", "name another place for stdout", error))?;
    Ok(exit::DONE)
}

async fn questions(args: Questions, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let key = find(&client, &args.id, "logs").await?;
    let open = client.questions(&key).await?;
    match on.output() {
        Format::Json => {
            let open: Vec<_> = open.iter().map(|it| json!({"id": it.id, "text": it.text, "at": it.at})).collect();
            output::json(&open);
        }
        Format::Table => {
            for question in open {
                let indent = " ".repeat(question.id.len() + 2);
                output::line(format_args!("{}  {}", question.id, printable_lines(&question.text, &indent)));
            }
        }
    }
    Ok(exit::DONE)
}

async fn ask(args: Ask, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let key = running(&client, &args.id).await?;
    // From here on nothing that it says is missed.
    let said_before = client.told(&key, 0, false).try_fold(0, |_, told| async move { Ok(told.sequence) }).await?;
    let mut told = client.told(&key, said_before, true);
    client.say(&key, &args.text, None).await?;
    let answer = async {
        // What is said in a turn that began before it heard is no answer.
        let (mut heard, mut turn) = (false, false);
        while let Some(Told { entry, .. }) = told.try_next().await? {
            match entry.event {
                // An open question takes it for its answer.
                Event::Said { text } | Event::Answer { text, .. } if text == args.text => heard = true,
                Event::Turn { .. } if heard => turn = true,
                Event::Text { text } if turn => return Ok::<_, Error>(Some(text)),
                _ => {}
            }
        }
        Ok(None)
    };
    match tokio::time::timeout(args.timeout.0, answer).await {
        Ok(answer) => match answer? {
            Some(text) => output::line(format_args!("{}", printable(&text))),
            None => {
                return Err(Error::Failed {
                    problem: format!("task {key} ended without a word to it"),
                    hint: format!("shoal agent transcript {key}"),
                    source: None,
                });
            }
        },
        Err(_) => {
            output::talk(format_args!(
                "no answer within {}; it may still come\n  try: shoal agent transcript -f {key}",
                args.timeout
            ));
            return Ok(exit::TIMED_OUT);
        }
    }
    Ok(exit::DONE)
}

async fn answer(args: Answer, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let key = running(&client, &args.id).await?;
    let open = client.questions(&key).await?;
    let hint = || format!("shoal agent questions {key}");
    let question = match (&args.question, open.as_slice()) {
        (Some(id), open) => open.iter().find(|question| question.id == *id).ok_or_else(|| Error::Failed {
            problem: format!("task {key} has no open question `{id}`"),
            hint: hint(),
            source: None,
        })?,
        (None, [one]) => one,
        (None, []) => {
            return Err(Error::Failed {
                problem: format!("task {key} has asked nothing that is open"),
                hint: format!("tell it something all the same: shoal agent say {key} '…'"),
                source: None,
            });
        }
        (None, _) => return Err(Error::usage(format!("task {key} has asked several things; name one"), hint())),
    };
    client.say(&key, &args.text, Some(&question.id)).await?;
    Ok(exit::DONE)
}

/// The agent job that is meant.
async fn find(client: &Client, id: &str, instead: &str) -> Result<TaskKey, Error> {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    #[derive(Deserialize)]
    struct Sort {
        workload: Kind,
    }
    let key = client.find(id).await?;
    let view = client.get(&key).await?;
    let task = view.current().and_then(|recorded| recorded.record.task.as_deref());
    match task.and_then(|task| serde_json::from_str::<Sort>(task.get()).ok()) {
        Some(sort) if sort.workload.kind != "agent" => Err(Error::Failed {
            problem: format!("task {key} is no agent job"),
            hint: format!("shoal {instead} {key}"),
            source: None,
        }),
        _ => Ok(key),
    }
}

/// The agent job, if there is somebody to hear.
async fn running(client: &Client, id: &str) -> Result<TaskKey, Error> {
    let key = find(client, id, "logs").await?;
    let view = client.get(&key).await?;
    match view.status() {
        Some(status) if status.is_terminal() => Err(Error::Failed {
            problem: format!("task {key} has ended; nobody would hear it"),
            hint: format!("shoal agent transcript {key}"),
            source: None,
        }),
        _ => Ok(key),
    }
}

async fn playbook(args: Playbook, on: &Server<'_>) -> Result<Exit, Error> {
    match args {
        Playbook::Apply { name, file } => {
            let yaml = super::submit::read(&file)?;
            let client = on.connect().await?;
            client.apply_playbook(&name, &yaml).await?;
            output::talk(format_args!("the playbook `{name}` is kept"));
        }
        Playbook::Show { name } => {
            let client = on.connect().await?;
            output::line(format_args!("{}", client.playbook(&name).await?.trim_end()));
        }
    }
    Ok(exit::DONE)
}
