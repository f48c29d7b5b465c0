//! `shoal queues`: what waits and runs; caps, pauses and defaults, which act on the server.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use dispatcher::client::QueueView;
use schemas::http::QueueInfo;
use schemas::queue::{OnDisconnect, PromptJob};
use schemas::task::RetryPolicy;
use schemas::{HumanDuration, Limit, QueueName, QueueSettings, Timestamp, strict};
use serde_json::json;

use super::stores::Stores;
use super::{Error, Server, submit};
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table};

/// `shoal queues …`.
#[derive(Clone, Debug, Args)]
pub struct Queues {
    /// Which.
    #[command(subcommand)]
    command: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// List queues with what waits, what is out, and what is set
    List,
    /// Hand out nothing of a queue; what runs goes on
    Pause {
        /// The queue
        queue: QueueName,
        /// Only for so long
        #[arg(long = "for", value_name = "DURATION", conflicts_with = "until")]
        for_: Option<HumanDuration>,
        /// Only until this moment
        #[arg(long, value_name = "TIME")]
        until: Option<Timestamp>,
        #[command(flatten)]
        stores: Stores,
    },
    /// Hand out again
    Resume {
        /// The queue
        queue: QueueName,
        #[command(flatten)]
        stores: Stores,
    },
    /// Set the cap and the defaults of a queue; what is not named stays
    Set(Box<Set>),
}

#[derive(Clone, Debug, Args)]
struct Set {
    /// The queue
    queue: QueueName,
    /// Most tasks handed out at once over the whole fleet, retries that wait included; or `unlimited`
    #[arg(long, value_name = "N")]
    cap: Option<Limit<NonZeroU32>>,
    /// What a worker cut off from the server does with what it runs: stop or continue
    #[arg(long, value_parser = on_disconnect, value_name = "WHAT")]
    on_disconnect: Option<OnDisconnect>,
    /// Timeout of tasks that name none, or `unlimited`
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Limit<HumanDuration>>,
    /// Longest silence of tasks that name none, or `unlimited`
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<Limit<HumanDuration>>,
    /// Attempts of tasks that name none
    #[arg(long, value_name = "N")]
    max_attempts: Option<NonZeroU32>,
    /// First pause before a retry, of tasks that name none
    #[arg(long, value_name = "DURATION")]
    backoff: Option<HumanDuration>,
    /// Longest pause before a retry, of tasks that name none
    #[arg(long, value_name = "DURATION")]
    max_backoff: Option<HumanDuration>,
    /// Time between the polite signal and the kill, of tasks that name none
    #[arg(long, value_name = "DURATION")]
    stop_grace: Option<HumanDuration>,
    /// The job that a prompt of the NATS agent protocol becomes, a JSON or YAML file, `-` for stdin; or `none`
    #[arg(long, value_name = "FILE|none")]
    agent_job: Option<PathBuf>,
    /// Take all settings from a JSON or YAML file instead, `-` for stdin
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["cap", "on_disconnect", "timeout", "idle_timeout", "max_attempts", "backoff", "max_backoff", "stop_grace", "agent_job"]
    )]
    file: Option<PathBuf>,
    #[command(flatten)]
    stores: Stores,
}

fn on_disconnect(word: &str) -> Result<OnDisconnect, String> {
    match word {
        "stop" => Ok(OnDisconnect::Stop),
        "continue" => Ok(OnDisconnect::Continue),
        _ => Err("allowed is stop or continue".into()),
    }
}

impl Set {
    fn names_nothing(&self) -> bool {
        self.cap.is_none()
            && self.on_disconnect.is_none()
            && self.timeout.is_none()
            && self.idle_timeout.is_none()
            && self.max_attempts.is_none()
            && self.backoff.is_none()
            && self.max_backoff.is_none()
            && self.stop_grace.is_none()
            && self.agent_job.is_none()
    }

    /// The job for prompts, where one is named: `Some(None)` takes it away.
    fn job(&self) -> Result<Option<Option<PromptJob>>, Error> {
        match &self.agent_job {
            None => Ok(None),
            Some(word) if word.as_os_str() == "none" => Ok(Some(None)),
            Some(path) => job_from_file(path).map(|job| Some(Some(job))),
        }
    }

    fn apply(&self, settings: &mut QueueSettings) {
        if let Some(cap) = self.cap {
            settings.cap = cap.bound().map(NonZeroU32::get);
        }
        if let Some(what) = self.on_disconnect {
            settings.on_disconnect = what;
        }
        let defaults = &mut settings.defaults;
        if self.timeout.is_some() {
            defaults.timeout = self.timeout;
        }
        if let Some(limit) = self.idle_timeout {
            defaults.idle_timeout = limit.bound();
        }
        if self.stop_grace.is_some() {
            defaults.stop_grace = self.stop_grace;
        }
        if self.max_attempts.is_some() || self.backoff.is_some() || self.max_backoff.is_some() {
            let retry = defaults.retry.get_or_insert_with(RetryPolicy::default);
            retry.max_attempts = self.max_attempts.unwrap_or(retry.max_attempts);
            retry.backoff.initial = self.backoff.unwrap_or(retry.backoff.initial);
            retry.backoff.max = self.max_backoff.unwrap_or(retry.backoff.max);
        }
    }
}

/// Runs one of them.
pub async fn run(args: Queues, on: &Server<'_>) -> Result<Exit, Error> {
    match args.command {
        Verb::List => {
            let queues = on.connect().await?.queues().await?;
            match on.output() {
                Format::Json => output::json(&queues.into_iter().map(QueueInfo::from).collect::<Vec<_>>()),
                Format::Table => table(&queues).print(),
            }
        }
        Verb::Pause { queue, for_, until, stores } => {
            let stores = stores.settings()?;
            let until = until.or_else(|| for_.map(|time| Timestamp::now().plus(time.0)));
            let client = on.connect().await?.with_stores(stores);
            show(&queue, &client.pause_queue(&queue, until).await?, on);
        }
        Verb::Resume { queue, stores } => {
            let client = on.connect().await?.with_stores(stores.settings()?);
            show(&queue, &client.resume_queue(&queue).await?, on);
        }
        Verb::Set(set) => {
            if set.file.is_none() && set.names_nothing() {
                return Err(Error::usage(
                    "there is nothing to set",
                    format!("shoal queues set {} --cap 10", set.queue),
                ));
            }
            let whole = set.file.as_ref().map(from_file).transpose()?;
            let job = set.job()?;
            let client = on.connect().await?.with_stores(set.stores.settings()?);
            let change = |settings: &mut QueueSettings| match &whole {
                Some(whole) => *settings = whole.clone(),
                None => {
                    set.apply(settings);
                    if let Some(job) = &job {
                        settings.agent.clone_from(job);
                    }
                }
            };
            show(&set.queue, &client.set_queue(&set.queue, change).await?, on);
        }
    }
    Ok(exit::DONE)
}

fn from_file(path: &PathBuf) -> Result<QueueSettings, Error> {
    let hint = r#"write it as {"cap": 10, "defaults": {"timeout": "5m"}}"#;
    let mut documents = submit::documents(&submit::read(path)?)?;
    match (documents.pop(), documents.len()) {
        (Some(value), 0) => strict::queue_settings(&value).map_err(|error| Error::usage(error.to_string(), hint)),
        _ => Err(Error::usage("the file must hold the settings of one queue", hint)),
    }
}

fn job_from_file(path: &PathBuf) -> Result<PromptJob, Error> {
    let hint =
        "write it as the workload `agent` of a task, without title and description: repository: https://host/app.git";
    let mut documents = submit::documents(&submit::read(path)?)?;
    match (documents.pop(), documents.len()) {
        (Some(value), 0) => {
            let job = strict::agent_job(&value).map_err(|error| Error::usage(error.to_string(), hint))?;
            Ok(job.into())
        }
        _ => Err(Error::usage("the file must hold one agent job", hint)),
    }
}

fn show(queue: &QueueName, settings: &QueueSettings, on: &Server<'_>) {
    match on.output() {
        Format::Json => output::json(&json!({"name": queue, "settings": settings})),
        Format::Table => {
            let text = serde_json::to_string(settings).expect("settings are JSON");
            output::line(format_args!("{queue} {text}"));
        }
    }
}

fn table(queues: &[QueueView]) -> Table {
    let mut table = Table::new(&["QUEUE", "WAITING", "OUT", "PULLS", "CAP", "PAUSED UNTIL"]);
    for queue in queues {
        table.row([
            queue.name.to_string(),
            queue.waiting.to_string(),
            queue.in_flight.to_string(),
            queue.pulls.to_string(),
            queue.cap.map_or("-".into(), |cap| cap.to_string()),
            queue.paused_until.map_or("-".into(), |until| until.to_string()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        set: Set,
    }

    #[test]
    fn what_is_not_named_stays() {
        let set = Probe::try_parse_from(["probe", "q", "--cap", "3", "--backoff", "5s"]).unwrap().set;
        let mut settings = QueueSettings { paused_until: Some(Timestamp::from_millis(5)), ..QueueSettings::default() };
        set.apply(&mut settings);
        assert_eq!(settings.cap, Some(3));
        assert_eq!(settings.paused_until, Some(Timestamp::from_millis(5)));
        let retry = settings.defaults.retry.as_ref().unwrap();
        assert_eq!((retry.max_attempts.get(), retry.backoff.initial), (1, HumanDuration::seconds(5)));
        let unset = Probe::try_parse_from(["probe", "q", "--cap", "unlimited"]).unwrap().set;
        unset.apply(&mut settings);
        assert_eq!(settings.cap, None);
    }

    #[test]
    fn a_cap_of_nothing_is_refused() {
        assert!(Probe::try_parse_from(["probe", "q", "--cap", "0"]).is_err());
    }
}
