//! `shoal admin …`: makes and upgrades what must exist on the server, without a fleet, and takes off what was noted there.

use clap::Subcommand;
use dispatcher::topology;
use jetstream::{Ensure, Ensured};
use serde_json::json;

use super::stores::Stores;
use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table};

/// `shoal admin …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Admin {
    /// Make and upgrade streams and buckets; nothing stored is ever dropped
    Apply {
        /// What they are made like.
        #[command(flatten)]
        stores: Stores,
    },
    /// Show what the server's store was seen to lose, and take the note off
    ClearLoss,
}

/// Runs it.
pub async fn run(args: Admin, on: &Server<'_>) -> Result<Exit, Error> {
    match args {
        Admin::Apply { stores } => apply(stores, on).await,
        Admin::ClearLoss => clear_loss(on).await,
    }
}

async fn clear_loss(on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let losses = topology::clear_loss(&client.js, &client.names).await?;
    match on.output() {
        Format::Json => output::json(&losses),
        Format::Table => {
            let mut table = Table::new(&["NOTICED", "STREAM", "FROM", "TO", "WHAT"]);
            for loss in &losses {
                let (from, to) = (loss.from.to_string(), loss.to.to_string());
                table.row([loss.noticed.to_string(), loss.stream.clone(), from, to, loss.what.clone()]);
            }
            table.print();
        }
    }
    if losses.is_empty() {
        output::talk(format_args!("no loss is noted"));
    }
    Ok(exit::DONE)
}

async fn apply(stores: Stores, on: &Server<'_>) -> Result<Exit, Error> {
    let settings = stores.settings()?;
    let client = on.connect().await?;
    let done = topology::ensure(&client.js, &client.names, &settings, Ensure::Upgrade).await?;
    let words = |ensured: &Ensured| match ensured {
        Ensured::Created => ("created", Vec::new()),
        Ensured::Updated(changed) => ("updated", changed.clone()),
        Ensured::Unchanged(left) => ("unchanged", left.clone()),
    };
    match on.output() {
        Format::Json => {
            let value = |(name, ensured): &(String, Ensured)| {
                let (result, settings) = words(ensured);
                json!({"name": name, "result": result, "settings": settings})
            };
            output::json(&done.iter().map(value).collect::<Vec<_>>());
        }
        Format::Table => {
            let mut table = Table::new(&["STORE", "RESULT", "SETTINGS"]);
            for (name, ensured) in &done {
                let (result, settings) = words(ensured);
                table.row([name.clone(), result.to_owned(), settings.join(",")]);
            }
            table.print();
        }
    }
    for (name, ensured) in &done {
        if let Ensured::Unchanged(left) = ensured
            && !left.is_empty()
        {
            let left = left.join(", ");
            output::talk(format_args!("{name} keeps its own {left}: a change would drop messages or is impossible"));
        }
    }
    Ok(exit::DONE)
}
