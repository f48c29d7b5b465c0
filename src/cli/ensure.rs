//! `shoal ensure`: a running container of a function, made if there is none.

use clap::Args;
use schemas::{FunctionName, HumanDuration};

use super::{Error, Server, instances};
use crate::exit::{self, Exit};
use crate::output::{self, Facts, Format};

/// Flags of `shoal ensure`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Prints where it is once it takes calls. It is removed when it was not called for the function's \
    `idle_timeout`.\n\nExample:\n  curl \"$(shoal ensure thumbnail -o json | jq -r '\"http://\\(.ip_address):\\(.port)\"')/\""
)]
pub struct Ensure {
    /// The function
    pub name: FunctionName,
    /// Longest wait for one that is made [default: the function's acquire_timeout]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<HumanDuration>,
    /// In whose name, where it has an owner
    #[arg(long, value_name = "WORD")]
    pub owner: Option<String>,
}

/// Has it made, or finds it.
pub async fn run(args: Ensure, on: &Server<'_>) -> Result<Exit, Error> {
    let caller = on.connect().await?.functions(args.owner);
    let ensured = caller.ensure(&args.name, args.timeout.map(|timeout| timeout.0)).await?;
    let instance = ensured.instance;
    match on.output() {
        Format::Json => output::json(&instance),
        Format::Table => {
            let mut facts = Facts::default();
            facts.add("id", instance.id.clone().unwrap_or_default());
            facts.add("name", instance.name.clone().unwrap_or_default());
            facts.add("ip_address", instance.ip_address.clone().unwrap_or_default());
            facts.add("port", instance.port.map(|port| port.to_string()).unwrap_or_default());
            facts.add("worker", instance.worker.to_string());
            facts.add("revision", instance.revision.to_string());
            facts.add("start", instance.start.as_ref().map(ToString::to_string).unwrap_or_default());
            facts.add("was there", if ensured.reused { "yes" } else { "no" });
            facts.add("age", instances::age(&instance));
            facts.print();
        }
    }
    Ok(exit::DONE)
}
