//! `shoal dead`: tasks that were given up, why, and once more.

use clap::{Args, Subcommand};
use dispatcher::client::{Client, ClientError, DeadContent, DeadFilter, Submitted};
use schemas::{Code, DeadLetter, QueueName, Timestamp};
use serde_json::json;

use super::filter::code;
use super::{Error, Server, exit_of_client, submit};
use crate::exit::{self, Exit};
use crate::output::{self, Facts, Format, Table, ago};

/// `shoal dead …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Dead {
    /// List dead letters, oldest first
    List(List),
    /// Show one: reason, headers and the message as it came
    Show {
        /// Task id, `queue.id`, or the letter's number in `shoal dead list`
        which: String,
    },
    /// Submit given-up tasks again and remove their dead letters
    Replay(Replay),
}

/// Flags of `shoal dead list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Only of this queue
    #[arg(long)]
    queue: Option<QueueName>,
    /// Only given up for this reason
    #[arg(long, value_parser = code)]
    reason: Option<Code>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
}

/// Flags of `shoal dead replay`.
#[derive(Clone, Debug, Args)]
pub struct Replay {
    /// Task ids, `queue.id`, or numbers in `shoal dead list`
    #[arg(value_name = "ID", required_unless_present_any = ["all", "reason", "queue"], conflicts_with_all = ["all", "reason", "queue"])]
    which: Vec<String>,
    /// All there are
    #[arg(long)]
    all: bool,
    /// All that were given up for this reason
    #[arg(long, value_parser = code)]
    reason: Option<Code>,
    /// All of this queue
    #[arg(long)]
    queue: Option<QueueName>,
}

/// Runs one of them.
pub async fn run(args: Dead, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    match args {
        Dead::List(args) => list(args, &client, on).await,
        Dead::Show { which } => {
            let letter = find(&client, &which).await?;
            show(&letter, on.output());
            Ok(exit::DONE)
        }
        Dead::Replay(args) => replay(args, &client, on).await,
    }
}

async fn list(args: List, client: &Client, on: &Server<'_>) -> Result<Exit, Error> {
    let mut filter = DeadFilter { queue: args.queue, reason: args.reason, ..DeadFilter::default() };
    let mut letters: Vec<DeadLetter> = Vec::new();
    let mut more = false;
    while letters.len() < args.limit {
        filter.limit = (args.limit - letters.len()).min(1_000);
        let page = client.dead_letters(&filter).await?;
        letters.extend(page.letters);
        more = page.next.is_some();
        match page.next {
            Some(next) => filter.from = next,
            None => break,
        }
    }
    match on.output() {
        Format::Json => output::json(&letters),
        Format::Table => {
            let now = Timestamp::now();
            let mut table = Table::new(&["NUMBER", "ID", "QUEUE", "REASON", "ATTEMPTS", "AGE", "MESSAGE"]);
            for letter in letters {
                table.row([
                    letter.dead_sequence.to_string(),
                    letter.id,
                    letter.queue,
                    letter.reason.to_string(),
                    letter.attempts.to_string(),
                    ago(letter.at, now),
                    letter.message,
                ]);
            }
            table.print();
        }
    }
    if more {
        output::talk(format_args!("there are more\n  try: shoal dead list --limit {}", args.limit.saturating_mul(10)));
    }
    Ok(exit::DONE)
}

/// A letter by its number, or the newest of a task.
async fn find(client: &Client, which: &str) -> Result<DeadContent, ClientError> {
    if let Ok(number) = which.parse::<u64>() {
        match client.dead_letter(number).await {
            // An id may be all digits too.
            Err(ClientError::NotFound { .. }) => {}
            other => return other,
        }
    }
    if let Ok(key) = which.parse()
        && let Some(letter) = client.dead_letter_of(&key).await?
    {
        return Ok(letter);
    }
    let not_found = || ClientError::NotFound { kind: "dead letter", name: which.to_owned() };
    match client.find(which).await {
        Ok(key) => return client.dead_letter_of(&key).await?.ok_or_else(not_found),
        Err(ClientError::NotFound { .. } | ClientError::InvalidId(_)) => {}
        Err(error) => return Err(error),
    }
    // Its record is gone, or it never had one: the letters themselves still name it.
    let mut filter = DeadFilter { limit: 1_000, ..DeadFilter::default() };
    let mut found = None;
    loop {
        let page = client.dead_letters(&filter).await?;
        for letter in page.letters {
            if letter.id == which || format!("{}.{}", letter.queue, letter.id) == which {
                found = Some(letter.dead_sequence);
            }
        }
        match page.next {
            Some(next) => filter.from = next,
            None => break,
        }
    }
    client.dead_letter(found.ok_or_else(not_found)?).await
}

fn show(content: &DeadContent, format: Format) {
    let DeadContent { letter, headers, body } = content;
    match format {
        Format::Json => {
            let mut value = serde_json::to_value(letter).expect("a dead letter is JSON");
            value["headers"] = headers.iter().map(|(name, value)| json!([name, value])).collect();
            match std::str::from_utf8(body) {
                Ok(text) => value["text"] = json!(text),
                Err(_) => {
                    use base64::Engine;
                    value["base64"] = json!(base64::engine::general_purpose::STANDARD.encode(body));
                }
            }
            output::json(&value);
        }
        Format::Table => {
            let mut facts = Facts::default();
            facts.add("number", letter.dead_sequence.to_string());
            facts.add("task", format!("{}.{}", letter.queue, letter.id));
            facts.add("reason", letter.reason.to_string());
            facts.add("message", &letter.message);
            facts.add("meaning", letter.reason.meaning());
            facts.add("attempts", letter.attempts.to_string());
            facts.add("sequence", letter.sequence.to_string());
            facts.add("given up", format!("{} ({} ago)", letter.at, ago(letter.at, Timestamp::now())));
            for (name, value) in headers {
                facts.add("header", format!("{name}: {value}"));
            }
            facts.add("as it came", String::from_utf8_lossy(body));
            facts.print();
        }
    }
}

async fn replay(args: Replay, client: &Client, on: &Server<'_>) -> Result<Exit, Error> {
    let mut results: Vec<(String, Result<Submitted, ClientError>)> = Vec::new();
    let asked = args.which.len();
    if args.which.is_empty() {
        let filter = DeadFilter { queue: args.queue, reason: args.reason, ..DeadFilter::default() };
        let replayed = client.replay_all(&filter).await?;
        results.extend(replayed.into_iter().map(|one| (format!("{}.{}", one.letter.queue, one.letter.id), one.result)));
    } else {
        for which in args.which {
            let result = async { client.replay(find(client, &which).await?.letter.dead_sequence).await };
            let result = result.await;
            results.push((which, result));
        }
    }
    let (mut accepted, mut worst) = (Vec::new(), exit::DONE);
    for (name, result) in results {
        match result {
            Ok(submitted) => accepted.push(submitted),
            Err(error) if asked == 1 => return Err(error.into()),
            Err(error) => {
                worst = exit_of_client(&error);
                output::talk(format_args!("{name}: {}", output::chain(&error.into())));
            }
        }
    }
    submit::print(&accepted, asked, on.output());
    if asked == 0 {
        output::talk(format_args!("{} replayed", accepted.len()));
    }
    Ok(worst)
}
