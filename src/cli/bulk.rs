//! `shoal cancel` and `shoal retry` by a filter: a line for each task, failures told and counted at the end.

use dispatcher::client::{Client, ClientError, ListFilter, ListItem};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// How it went so far.
#[derive(Debug, Default)]
pub struct Count {
    /// As it was wished.
    pub done: u64,
    /// No longer what had been found.
    pub outrun: u64,
    /// Not as it was wished.
    pub failed: u64,
}

impl Count {
    /// One is done; `word` tells what it is now, as run `sequence`.
    pub fn done(&mut self, item: &ListItem, sequence: u64, word: &str, format: Format) {
        self.done += 1;
        print(item, sequence, json!(word), None, format);
    }

    /// One was left alone.
    pub fn outrun(&mut self, item: &ListItem, word: &str, format: Format) {
        self.outrun += 1;
        if format == Format::Json {
            print(item, item.sequence, json!(word), None, format);
        }
    }

    /// One came to nothing.
    pub fn failed(&mut self, item: &ListItem, error: ClientError, format: Format) {
        self.failed += 1;
        if format == Format::Json {
            print(item, item.sequence, json!("error"), Some(&error), format);
        }
        output::talk(format_args!("{}: {}", item.key, output::chain(&error.into())));
    }

    /// Tells the sum, and the exit code: 1 if one failed.
    pub fn end(&self, done: &str) -> Exit {
        let mut words = vec![format!("{} {done}", self.done)];
        if self.outrun > 0 {
            words.push(format!("{} had changed meanwhile and were left alone", self.outrun));
        }
        if self.failed > 0 {
            words.push(format!("{} failed", self.failed));
        }
        output::talk(format_args!("{}", words.join(", ")));
        if self.failed > 0 { exit::FAILED } else { exit::DONE }
    }
}

/// Only shows what would be meant.
pub async fn rehearse(client: &Client, filter: ListFilter, verb: &str, on: &Server<'_>) -> Result<Exit, Error> {
    let (mut found, mut count) = (client.matching(filter), 0);
    while let Some(item) = found.next().await {
        let item = item?;
        count += 1;
        print(&item, item.sequence, json!(item.status), None, on.output());
    }
    output::talk(format_args!("{count} would be {verb}; nothing was done"));
    Ok(exit::DONE)
}

/// One line for one task.
fn print(item: &ListItem, sequence: u64, result: Value, error: Option<&ClientError>, format: Format) {
    match format {
        Format::Table => output::line(format_args!("{} {}", item.key, result.as_str().unwrap_or_default())),
        Format::Json => {
            let mut line = json!({
                "id": item.key.id, "queue": item.key.queue, "sequence": sequence, "result": result,
            });
            if let Some(error) = error {
                line["error"] = json!(error.to_string());
            }
            output::line(format_args!("{line}"));
        }
    }
}
