//! `shoal config show`: every setting, what holds, and where that is from.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use crate::config::Setting;
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table};

/// `shoal config …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Config {
    /// Print every setting with its value and origin; secrets are ***
    Show,
}

/// Prints them.
pub fn run(args: &Config, settings: Vec<Setting>, file: Option<PathBuf>, format: Format) -> Exit {
    match args {
        Config::Show => {}
    }
    match format {
        Format::Json => {
            let value = |setting: &Setting| {
                json!({
                    "key": setting.key, "value": setting.value, "origin": setting.origin, "flag": setting.flag,
                    "variable": setting.variable, "commands": setting.commands, "help": setting.help,
                })
            };
            output::json(&settings.iter().map(value).collect::<Vec<_>>());
        }
        Format::Table => {
            let mut table = Table::new(&["KEY", "VALUE", "ORIGIN", "VARIABLE"]);
            for setting in settings {
                let value = setting.value.unwrap_or_else(|| "-".into());
                table.row([setting.key, value, setting.origin.into(), setting.variable]);
            }
            table.print();
        }
    }
    match file {
        Some(file) => output::talk(format_args!("file: {}", file.display())),
        None => output::talk(format_args!("no configuration file; name one with --config")),
    }
    exit::DONE
}
