//! `shoal admin apply`: makes and upgrades what must exist on the server, without a fleet.

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
}

/// Runs it.
pub async fn run(args: Admin, on: &Server<'_>) -> Result<Exit, Error> {
    let Admin::Apply { stores } = args;
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
