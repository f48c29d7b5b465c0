//! `shoal destroy`: removes containers of functions.

use std::time::Duration;

use clap::Args;
use schemas::{FunctionName, HumanDuration};

use super::{Error, Server, instances};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Flags of `shoal destroy`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Calls under way end first. Done again it finds nothing, and is no error. Instances that a function keeps \
    warm (`min`) are made again: delete the function if they must not be."
)]
pub struct Destroy {
    /// A function, for all of its instances; or a container's id, name or start id
    #[arg(value_name = "NAME|CONTAINER")]
    pub target: String,
    /// Longest wait for their end
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    pub timeout: HumanDuration,
    /// In whose name, where the function has an owner
    #[arg(long, value_name = "WORD")]
    pub owner: Option<String>,
}

/// Removes them; exit code 0 once containers and records are gone.
pub async fn run(args: Destroy, on: &Server<'_>) -> Result<Exit, Error> {
    let caller = on.connect().await?.functions(args.owner);
    let within: Duration = args.timeout.0;
    let name = args.target.parse::<FunctionName>().ok();
    let known = match &name {
        Some(name) => caller.definition(name).await?.is_some() || !caller.instances(Some(name)).await?.is_empty(),
        None => false,
    };
    let (destroyed, is_function) = match name {
        Some(name) if known => (caller.destroy(&name, within).await?, true),
        _ => (caller.destroy_one(&args.target, within).await?, false),
    };
    match on.output() {
        Format::Json => output::json(&destroyed),
        Format::Table if destroyed.is_empty() && is_function => {
            output::talk(format_args!("{} has no instances", args.target));
        }
        Format::Table if destroyed.is_empty() => {
            output::talk(format_args!("there is no function and no container `{}`", args.target));
        }
        Format::Table => instances::table(&destroyed).print(),
    }
    Ok(exit::DONE)
}
