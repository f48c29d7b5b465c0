//! `shoal instances`: the containers behind functions, as their records say.

use clap::Args;
use schemas::{FunctionName, Instance, Timestamp};

use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table, ago};

/// Flags of `shoal instances`.
#[derive(Clone, Debug, Args)]
pub struct Instances {
    /// Only of this function
    pub name: Option<FunctionName>,
}

/// Lists them.
pub async fn run(args: Instances, on: &Server<'_>) -> Result<Exit, Error> {
    let caller = on.connect().await?.functions(None);
    let instances = caller.instances(args.name.as_ref()).await?;
    if let (Some(name), true) = (&args.name, instances.is_empty()) {
        // None of a function that is defined is an answer; none of one that is not is a slip.
        caller.defined(name).await?;
    }
    let instances: Vec<Instance> = instances.into_iter().map(|known| known.instance).collect();
    match on.output() {
        Format::Json => output::json(&instances),
        Format::Table => table(&instances).print(),
    }
    Ok(exit::DONE)
}

/// Instances, one a line.
pub fn table(instances: &[Instance]) -> Table {
    let mut table =
        Table::new(&["FUNCTION", "INDEX", "STATUS", "START", "ID", "ADDRESS", "WORKER", "AGE", "USED", "ERROR"]);
    let now = Timestamp::now();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for it in instances {
        let address = it.ip_address.as_ref().map(|ip| match it.port {
            Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
            Some(port) => format!("{ip}:{port}"),
            None => ip.clone(),
        });
        let error = it.error.as_ref().map(|error| {
            let again = match it.failures {
                0 | 1 => String::new(),
                many => format!("{many} in a row: "),
            };
            format!("{again}{}: {}", error.code, error.message)
        });
        table.row([
            it.function.to_string(),
            it.index.to_string(),
            it.status.to_string(),
            or_dash(it.start.as_ref().map(ToString::to_string)),
            or_dash(it.id.as_ref().map(|id| id.chars().take(12).collect())),
            or_dash(address),
            it.worker.to_string(),
            age(it),
            or_dash(it.last_used.map(|at| format!("{} ago", ago(at, now)))),
            or_dash(error),
        ]);
    }
    table
}

/// How long ago it was made.
pub fn age(instance: &Instance) -> String {
    ago(instance.created_at, Timestamp::now())
}
