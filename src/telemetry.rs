//! Logs: one emit point, on stderr, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::Cli;
use crate::cli::global::LogFormat;

/// Sets the process's subscriber up. Roles tell what they do; the other commands only what goes wrong.
pub fn start(cli: &Cli) {
    let default = if cli.command.is_role() { "info" } else { "error" };
    let level = cli.global.log_level.as_ref().map_or(default, |level| level.0.as_str());
    // One client crate repeats what we say of the connection ourselves, the other what a model's endpoint sent, unmasked.
    let quiet = if level.contains(',') { String::new() } else { ",async_nats=off,async_openai=off".to_owned() };
    let filter = EnvFilter::new(format!("{level}{quiet}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.global.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
