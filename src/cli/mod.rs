//! The commands, one file each. Here: what there is, what all share, and how an error ends.

pub mod admin;
pub mod agent;
pub mod agent_jobs;
pub mod agents;
pub mod artifacts;
pub mod bench;
pub mod bulk;
pub mod cancel;
pub mod completions;
pub mod config;
pub mod containers;
pub mod dead;
pub mod destroy;
pub mod dispatcher;
pub mod doctor;
pub mod ensure;
pub mod explain;
pub mod filter;
pub mod function;
pub mod get;
pub mod global;
pub mod held;
pub mod http;
pub mod instances;
pub mod invoke;
pub mod list;
pub mod logs;
pub mod printer;
pub mod queues;
pub mod retry;
pub mod run;
pub mod stores;
pub mod submit;
pub mod transcript;
pub mod view;
pub mod wait;
pub mod worker;

use ::dispatcher::client::{CallError, Client, ClientError, SubmitError};
use ::dispatcher::topology::TopologyError;
use clap::{Parser, Subcommand};
use jetstream::{ApiError, ConnectError, Connection, PublishError};
use schemas::{Code, Names};

use crate::config::Invocation;
use crate::exit::{self, Exit};
use crate::output::Format;

/// A worker fleet on NATS JetStream: publish jobs, start workers, look at everything.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    max_term_width = 110,
    after_help = "Every flag has a SHOAL_… variable and a key in one YAML file; `shoal config show` lists them all.\n\
                  Exit codes: 0 done, 1 failed (run and wait: the job's own), 2 usage, 3 cannot reach NATS, \
                  124 timed out, 125 the job could not be started, 130 cancelled."
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: global::Global,
    /// Which one.
    #[command(subcommand)]
    pub command: Command,
}

/// Everything this program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole fleet here: a nats-server, a dispatcher and workers, until Ctrl-C
    Up(crate::up::Up),
    /// Run a worker until it is told to stop
    Worker(worker::Worker),
    /// Run a dispatcher until it is told to stop
    Dispatcher(dispatcher::Dispatcher),
    /// Run one command in the fleet, follow its output, exit with its code
    Run(run::Run),
    /// Submit tasks from a JSON or YAML file
    Submit(submit::Submit),
    /// Wait until tasks have ended; exit with their code
    Wait(wait::Wait),
    /// Show a task: state, attempts, result
    Get(get::Get),
    /// Tell why a task waits, or what it does, and what to try
    Explain(explain::Explain),
    /// List tasks, newest change first
    List(list::List),
    /// Show a task's log
    Logs(logs::Logs),
    /// Files and large results that tasks left
    #[command(subcommand)]
    Artifacts(artifacts::Artifacts),
    /// Cancel tasks, wherever they stand
    Cancel(cancel::Cancel),
    /// Submit finished tasks again, under the same ids
    Retry(retry::Retry),
    /// Tasks that were given up
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Functions: containers kept ready for calls
    #[command(subcommand)]
    Function(function::FunctionCommand),
    /// Have an instance of a function ready, and tell where it is
    Ensure(ensure::Ensure),
    /// Call a function
    Invoke(invoke::Invoke),
    /// Remove instances of a function
    Destroy(destroy::Destroy),
    /// List the instances of functions
    Instances(instances::Instances),
    /// The containers of functions, as the engines know them
    #[command(subcommand)]
    Containers(held::Containers),
    /// What waits and runs by queue; caps, pauses, defaults
    Queues(queues::Queues),
    /// Coding-agent jobs: hand one in, follow it, speak with it, see its change
    #[command(subcommand)]
    Agent(agent::Agent),
    /// The registry of workers
    #[command(subcommand)]
    Agents(agents::Agents),
    /// Check the whole fleet and tell what is wrong, the worst first
    Doctor(doctor::Doctor),
    /// Where settings come from
    #[command(subcommand)]
    Config(config::Config),
    /// Set the server up
    #[command(subcommand)]
    Admin(admin::Admin),
    /// Measure what a fleet does on this machine
    Bench(bench::Bench),
    /// Print a completion script
    Completions(completions::Completions),
}

impl Command {
    /// Whether it runs until it is told to stop, and tells in its log what it does.
    pub fn is_role(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Worker(_) | Self::Dispatcher(_))
    }

    /// Whether it does more than wait for others. A dispatcher does not: handing each call from thread to thread would cost
    /// it a quarter more CPU, and where one is too slow, two share the work.
    pub fn needs_threads(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Worker(_) | Self::Bench(_))
    }
}

/// Runs one command to its end.
pub async fn run(invocation: Invocation) -> Result<Exit, Error> {
    let Invocation { cli: Cli { global, command }, settings, file } = invocation;
    global.check()?;
    let on = Server { global: &global };
    match command {
        Command::Up(up) => crate::up::run(up, &global).await,
        Command::Worker(worker) => worker::run(worker, &global).await,
        Command::Dispatcher(dispatcher) => dispatcher::run(dispatcher, &global).await,
        Command::Run(args) => run::run(args, &on).await,
        Command::Submit(args) => submit::run(args, &on).await,
        Command::Wait(args) => wait::run(args, &on).await,
        Command::Get(args) => get::run(args, &on).await,
        Command::Explain(args) => explain::run(args, &on).await,
        Command::List(args) => list::run(args, &on).await,
        Command::Logs(args) => logs::run(args, &on).await,
        Command::Artifacts(args) => artifacts::run(args, &on).await,
        Command::Cancel(args) => cancel::run(args, &on).await,
        Command::Retry(args) => retry::run(args, &on).await,
        Command::Dead(args) => dead::run(args, &on).await,
        Command::Function(args) => function::run(args, &on).await,
        Command::Ensure(args) => ensure::run(args, &on).await,
        Command::Invoke(args) => invoke::run(args, &on).await,
        Command::Destroy(args) => destroy::run(args, &on).await,
        Command::Instances(args) => instances::run(args, &on).await,
        Command::Containers(args) => held::run(args, &on).await,
        Command::Queues(args) => queues::run(args, &on).await,
        Command::Agent(args) => agent::run(args, &on).await,
        Command::Agents(args) => agents::run(args, &on).await,
        Command::Doctor(args) => doctor::run(args, &on).await,
        Command::Config(args) => Ok(config::run(&args, settings, file, global.output)),
        Command::Admin(args) => admin::run(args, &on).await,
        Command::Bench(args) => bench::run(args, &on).await,
        Command::Completions(args) => Ok(completions::run(&args)),
    }
}

/// The server of a one-shot command; nothing is connected before the command's own arguments are checked.
pub struct Server<'a> {
    global: &'a global::Global,
}

impl Server<'_> {
    /// The fleet, connected.
    pub async fn connect(&self) -> Result<Client, Error> {
        let connection: Connection = self.global.connect_settings().connect("shoal cli").await?;
        Ok(Client::new(connection, self.names()))
    }

    /// Names of the fleet.
    pub fn names(&self) -> Names {
        Names::new(self.global.prefix.clone())
    }

    /// How to print.
    pub fn output(&self) -> Format {
        self.global.output
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The fleet or the server said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server could not be set up.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A setting, an argument or a file is wrong.
    #[error("{problem}")]
    Usage {
        /// What, and what is allowed.
        problem: String,
        /// What to try.
        hint: String,
    },
    /// Anything else that ended a command.
    #[error("{problem}")]
    Failed {
        /// What.
        problem: String,
        /// What to try.
        hint: String,
        /// Why.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        Self::Client(error.into())
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        Self::Client(error.into())
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Self::Client(error.into())
    }
}

impl Error {
    /// A usage error.
    pub fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: hint.into() }
    }

    /// A failure with its cause.
    pub fn failed(
        problem: impl Into<String>,
        hint: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { problem: problem.into(), hint: hint.into(), source: Some(source.into()) }
    }

    /// The exit code it ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Connect(error) => match error {
                ConnectError::Unreachable { .. } | ConnectError::Denied { .. } => exit::UNREACHABLE,
                ConnectError::File { .. } => exit::USAGE,
                ConnectError::TooOld { .. } => exit::FAILED,
            },
            Self::Client(error) => exit_of_client(error),
            Self::Topology(error) => match error {
                TopologyError::Api { source, .. } | TopologyError::NoJetStream { source } => exit_of_api(source),
                _ => exit::FAILED,
            },
            Self::Usage { .. } => exit::USAGE,
            Self::Failed { .. } => exit::FAILED,
        }
    }

    /// The next thing to try.
    pub fn hint(&self) -> String {
        let own = match self {
            Self::Connect(error) => Some(match error {
                ConnectError::Unreachable { .. } => {
                    "start a fleet with `shoal up`, or name your server with --nats-url".to_owned()
                }
                ConnectError::Denied { .. } => {
                    "name credentials with --nats-creds or --nats-nkey, or put user and password into --nats-url".into()
                }
                ConnectError::File { .. } => "check the path and its permissions: `shoal config show`".into(),
                ConnectError::TooOld { .. } => {
                    "install a newer nats-server: https://github.com/nats-io/nats-server".into()
                }
            }),
            Self::Client(ClientError::Submit(error)) if exit_of_submit(error) == exit::USAGE => Some(
                error
                    .hint()
                    .unwrap_or_else(|| "correct it and submit again; docs/submitting.md has every field".into()),
            ),
            Self::Client(error) => error.hint(),
            Self::Topology(error) => error.hint(),
            Self::Usage { hint, .. } | Self::Failed { hint, .. } => Some(hint.clone()),
        };
        own.filter(|hint| !hint.is_empty()).unwrap_or_else(|| match self.exit() {
            exit::UNREACHABLE => "look at the server: `nats server check jetstream`, or its log".into(),
            _ => "shoal help".into(),
        })
    }
}

fn exit_of_api(error: &ApiError) -> Exit {
    match error {
        ApiError::NoResponders { .. } | ApiError::TimedOut { .. } | ApiError::Failed { .. } => exit::UNREACHABLE,
        ApiError::Refused { .. } | ApiError::Unreadable { .. } => exit::FAILED,
    }
}

/// The exit code of a client error.
pub fn exit_of_client(error: &ClientError) -> Exit {
    match error {
        ClientError::Api(error) => exit_of_api(error),
        ClientError::Submit(error) => exit_of_submit(error),
        ClientError::Function(CallError::Api(error)) => exit_of_api(error),
        ClientError::Function(CallError::Publish(PublishError::NotStored { .. } | PublishError::Unknown { .. })) => {
            exit::UNREACHABLE
        }
        ClientError::Function(CallError::Failed(error)) => exit_of_code(error.code),
        ClientError::Closed => exit::UNREACHABLE,
        ClientError::TimedOut { .. } => exit::TIMED_OUT,
        ClientError::InvalidId(_) | ClientError::Invalid(_) | ClientError::Ambiguous { .. } => exit::USAGE,
        _ => exit::FAILED,
    }
}

/// The exit code of a function that could not be had or called.
fn exit_of_code(code: Code) -> Exit {
    match code {
        Code::InvalidArgument | Code::TooLarge | Code::Ambiguous => exit::USAGE,
        Code::TimedOut | Code::NoInstance => exit::TIMED_OUT,
        Code::Unavailable => exit::UNREACHABLE,
        Code::ImageNotFound
        | Code::ImagePullFailed
        | Code::InvalidImage
        | Code::PolicyForbidden
        | Code::UserNotFound
        | Code::LimitUnsupported
        | Code::StartFailed
        | Code::EngineUnavailable
        | Code::IpUnavailable
        | Code::NotHealthy => exit::NOT_STARTED,
        _ => exit::FAILED,
    }
}

/// The exit code of a refused submission.
pub fn exit_of_submit(error: &SubmitError) -> Exit {
    match error {
        SubmitError::Invalid(_)
        | SubmitError::InvalidId(_)
        | SubmitError::Header { .. }
        | SubmitError::TooLarge { .. } => exit::USAGE,
        SubmitError::NotStored { .. } | SubmitError::Unknown { .. } => exit::UNREACHABLE,
        SubmitError::Read { source, .. } => exit_of_client(source),
        SubmitError::Locked { .. } | SubmitError::NotSetUp { .. } | SubmitError::Refused { .. } => exit::FAILED,
    }
}

/// `name=value`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as name=value".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_usage_from_reach_from_failure() {
        let api = || ApiError::TimedOut { subject: "s".into() };
        let locked = SubmitError::Locked { key: "q.a".parse().unwrap(), holder: None };
        for (error, code) in [
            (Error::usage("p", "h"), exit::USAGE),
            (Error::from(api()), exit::UNREACHABLE),
            (Error::from(ApiError::Refused { err_code: 1, description: "no".into() }), exit::FAILED),
            (Error::from(locked), exit::FAILED),
            (
                Error::from(ClientError::TimedOut { what: "w".into(), after: std::time::Duration::ZERO }),
                exit::TIMED_OUT,
            ),
            (Error::from(ClientError::NotFound { kind: "task", name: "a".into() }), exit::FAILED),
        ] {
            assert_eq!(error.exit(), code, "{error:?}");
        }
    }
}
