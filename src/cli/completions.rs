//! `shoal completions`: a script for the shell.

use clap::Args;
use clap_complete::Shell;

use crate::exit::{self, Exit};
use crate::output;

/// Flags of `shoal completions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  shoal completions bash > ~/.local/share/bash-completion/completions/shoal")]
pub struct Completions {
    /// Which shell
    pub shell: Shell,
}

/// Prints it.
pub fn run(args: &Completions) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::config::command(), "shoal", &mut script);
    output::data(&script);
    exit::DONE
}
