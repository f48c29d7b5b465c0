//! Where a setting comes from: its flag, else its `SHOAL_…` variable, else the configuration file, else its default.
//!
//! clap's own argument list is the only list there is. A flag without a variable of its own gets
//! `SHOAL_<COMMAND>_<FLAG>`; the key in the file is the variable without `SHOAL_`, in lower case, which for a setting is
//! the flag in snake case: `--drain-grace`, `SHOAL_DRAIN_GRACE`, `drain_grace: 25s`.
//!
//! The file is the one named by `--config` or `SHOAL_CONFIG`, else `$XDG_CONFIG_HOME/shoal/config.yaml` where that
//! exists. None is taken from the current folder: a file may name programs and credentials, and a folder may be anyone's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use serde_json::Value;

use crate::cli::Cli;
use crate::{exit, output};

/// The value name of a flag that takes a mapping of mappings, as JSON; in the file it is written as one.
pub const MAPPING: &str = "MAPPING";

/// What was asked for, and what `config show` needs to explain it.
pub struct Invocation {
    /// Arguments, every default filled in.
    pub cli: Cli,
    /// Every setting there is.
    pub settings: Vec<Setting>,
    /// The configuration file, if there is one.
    pub file: Option<PathBuf>,
}

/// One setting, as `config show` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Key in the file.
    pub key: String,
    /// The flag.
    pub flag: String,
    /// The variable.
    pub variable: String,
    /// Commands that take it; empty for all.
    pub commands: Vec<String>,
    /// What holds; secrets are `***`.
    pub value: Option<String>,
    /// Where that is from: `flag`, `environment`, `file` or `default`.
    pub origin: &'static str,
    /// One line.
    pub help: String,
}

/// Why nothing is done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// clap's word, help and version included.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not hold what it should.
    #[error("configuration file {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

impl Refusal {
    /// Tells it and names the exit code.
    pub fn print(&self) -> std::process::ExitCode {
        match self {
            Self::Arguments(error) => {
                // Nothing is left to do when even this cannot be written.
                let _ = error.print();
                if error.use_stderr() { exit::USAGE.into() } else { exit::DONE.into() }
            }
            Self::Unreadable { .. } | Self::File { .. } => {
                let hint = "correct it; `shoal config show --config /dev/null` lists every key";
                output::talk(format_args!("error: {self}\n  try: {hint}"));
                exit::USAGE.into()
            }
        }
    }
}

/// Reads arguments, variables and file.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Invocation, Refusal> {
    let arguments: Vec<OsString> = arguments.collect();
    // Nothing that the file may hold is required, so a first reading without it finds the file, and whatever is wrong
    // in that reading is wrong with arguments or variables.
    let first = command().try_get_matches_from(&arguments)?;
    let named = first.get_one::<PathBuf>("config").cloned();
    let path = named.or_else(|| default_file().filter(|path| path.exists()));
    let file = match &path {
        Some(path) => read(path)?,
        None => BTreeMap::new(),
    };
    let with_file = with_defaults(command(), &file);
    let matches = with_file.clone().try_get_matches_from(&arguments)?;
    let settings = settings(&with_file, &file, &matches);
    Ok(Invocation { cli: Cli::from_arg_matches(&matches)?, settings, file: path })
}

/// The whole command with a variable for every flag.
pub fn command() -> Command {
    each_argument(Cli::command(), &mut Vec::new(), &|arg, path| {
        let Some(flag) = flag(&arg) else { return arg };
        let arg = match arg.get_action() {
            // `SHOAL_X=1` is as good as `true`.
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            _ => arg,
        };
        if arg.get_env().is_some() {
            return arg;
        }
        let variable = format!("SHOAL_{}", path.iter().chain([&flag]).cloned().collect::<Vec<_>>().join("_"));
        arg.env(variable.replace('-', "_").to_uppercase()).hide_env(true)
    })
}

/// The long name of an argument that is a setting.
fn flag(arg: &Arg) -> Option<String> {
    let builtin = matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::Version);
    arg.get_long().filter(|_| !builtin).map(str::to_owned)
}

/// Key of an argument in the file.
fn key(arg: &Arg) -> Option<String> {
    flag(arg)?;
    // The file cannot name itself.
    (arg.get_id() != "config").then_some(())?;
    arg.get_env()?.to_str()?.strip_prefix("SHOAL_").map(str::to_lowercase)
}

fn each_argument(command: Command, path: &mut Vec<String>, change: &impl Fn(Arg, &[String]) -> Arg) -> Command {
    let mut command = command.mut_args(|arg| change(arg, path));
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        path.push(name.clone());
        command = command.mut_subcommand(name, |sub| each_argument(sub, path, change));
        path.pop();
    }
    command
}

/// Every argument with the commands that take it, by key.
fn known(command: &Command) -> BTreeMap<String, (Arg, Vec<String>)> {
    fn gather(command: &Command, path: &str, found: &mut BTreeMap<String, (Arg, Vec<String>)>) {
        for arg in command.get_arguments() {
            if let Some(key) = key(arg) {
                let (first, commands) = found.entry(key).or_insert_with(|| (arg.clone(), Vec::new()));
                // Where commands differ, the one that has a default tells more.
                if first.get_default_values().is_empty() {
                    *first = arg.clone();
                }
                if !path.is_empty() {
                    commands.push(path.to_owned());
                }
            }
        }
        for sub in command.get_subcommands() {
            let path = if path.is_empty() { sub.get_name().to_owned() } else { format!("{path} {}", sub.get_name()) };
            gather(sub, &path, found);
        }
    }
    let mut found = BTreeMap::new();
    gather(command, "", &mut found);
    found
}

fn default_file() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|base| !base.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(base.join("shoal/config.yaml"))
}

fn read(path: &PathBuf) -> Result<BTreeMap<String, Vec<String>>, Refusal> {
    let text = std::fs::read_to_string(path).map_err(|source| Refusal::Unreadable { path: path.clone(), source })?;
    from_text(&text, &command()).map_err(|problem| Refusal::File { path: path.clone(), problem })
}

/// The file's values as the flags take them, each checked as its flag would be.
fn from_text(text: &str, command: &Command) -> Result<BTreeMap<String, Vec<String>>, String> {
    let value = match serde_saphyr::from_str::<Option<Value>>(text) {
        Ok(value) => value.unwrap_or(Value::Null),
        Err(error) => return Err(format!("not YAML: {error}")),
    };
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Null => return Ok(BTreeMap::new()),
        _ => return Err("must be a mapping of settings, such as `slots: 8`".into()),
    };
    let known = known(command);
    let mut values = BTreeMap::new();
    for (key, value) in fields {
        let Some((arg, _)) = known.get(&key) else {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(format!("unknown key `{key}`; {}", output::did_you_mean(&key, &names)));
        };
        let many = matches!(arg.get_action(), ArgAction::Append);
        let words = match &value {
            Value::Object(_) if takes_mapping(arg) => Ok(vec![value.to_string()]),
            value => words(value, many),
        };
        let words = words.map_err(|problem| format!("key `{key}`: {problem}"))?;
        check(arg, &words).map_err(|problem| format!("key `{key}`: {problem}"))?;
        if !words.is_empty() {
            values.insert(key, words);
        }
    }
    Ok(values)
}

fn takes_mapping(arg: &Arg) -> bool {
    arg.get_value_names().is_some_and(|names| names == [MAPPING])
}

/// A value as its flag takes it: a list as repeated flags or joined by commas, a mapping as `k=v` or `k:v` of these.
fn words(value: &Value, many: bool) -> Result<Vec<String>, String> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err("must hold plain values".to_owned()),
    };
    let items: Vec<String> = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items.iter().map(scalar).collect::<Result<_, _>>()?,
        Value::Object(fields) => {
            let between = if many { '=' } else { ':' };
            let pair = |(name, value)| scalar(value).map(|value| format!("{name}{between}{value}"));
            fields.iter().map(pair).collect::<Result<_, _>>()?
        }
        plain => vec![scalar(plain)?],
    };
    Ok(if many { items } else { vec![items.join(",")] })
}

/// What clap would say of these words behind their flag.
fn check(arg: &Arg, words: &[String]) -> Result<(), String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match words {
            [word] if word == "true" || word == "false" => Ok(()),
            _ => Err("must be `true` or `false`".into()),
        };
    }
    let alone = arg.clone().required(false).global(false).env(None::<&str>);
    // Names of other arguments mean nothing to this command of one.
    let probe = Command::new("shoal").arg(strip_relations(alone));
    let flag = flag(arg).unwrap_or_default();
    let line = std::iter::once("shoal".to_owned()).chain(words.iter().map(|word| format!("--{flag}={word}")));
    probe.try_get_matches_from(line).map(|_| ()).map_err(|error| {
        let said = error.to_string();
        let line = said.lines().next().unwrap_or_default();
        if takes_mapping(arg) {
            // clap quotes the whole value, in which a password may stand.
            return line.split_once(&format!("<{MAPPING}>': ")).map_or("is not understood", |(_, why)| why).to_owned();
        }
        line.strip_prefix("error: ").unwrap_or(line).to_owned()
    })
}

/// The same argument, by itself.
fn strip_relations(arg: Arg) -> Arg {
    let mut alone =
        Arg::new(arg.get_id().clone()).action(arg.get_action().clone()).value_parser(arg.get_value_parser().clone());
    if let Some(long) = arg.get_long() {
        alone = alone.long(long.to_owned());
    }
    if let Some(delimiter) = arg.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    if takes_mapping(&arg) {
        alone = alone.value_name(MAPPING);
    }
    alone
}

/// The file's values as defaults: below flags and variables, above what is built in.
fn with_defaults(command: Command, file: &BTreeMap<String, Vec<String>>) -> Command {
    each_argument(command, &mut Vec::new(), &|arg, _| match key(&arg).and_then(|key| file.get(&key)) {
        Some(words) => arg.default_values(words.clone()),
        None => arg,
    })
}

fn settings(command: &Command, file: &BTreeMap<String, Vec<String>>, matches: &ArgMatches) -> Vec<Setting> {
    let join = |words: &mut dyn Iterator<Item = String>| {
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| words.join(","))
    };
    let setting = |(key, (arg, commands)): (String, (Arg, Vec<String>))| {
        let variable = arg.get_env().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let id = arg.get_id().as_str();
        // `config show` itself takes the settings of every command, so only these can come from a flag here.
        let by_flag = commands.is_empty() && matches.value_source(id) == Some(ValueSource::CommandLine);
        let given = || {
            let raw = matches.get_raw(id).into_iter().flatten();
            join(&mut raw.map(|word| word.to_string_lossy().into_owned()))
        };
        let built_in = || match arg.get_action() {
            ArgAction::SetTrue => Some("false".to_owned()),
            _ => join(&mut arg.get_default_values().iter().map(|word| word.to_string_lossy().into_owned())),
        };
        let (value, origin) = if by_flag {
            (given(), "flag")
        } else if let Some(value) = std::env::var_os(&variable) {
            (Some(value.to_string_lossy().into_owned()), "environment")
        } else if let Some(words) = file.get(&key) {
            (join(&mut words.iter().cloned()), "file")
        } else {
            (built_in(), "default")
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.lines().next().unwrap_or_default().to_owned();
        let flag = format!("--{}", flag(&arg).unwrap_or_default());
        let value = match key.ends_with("_token") {
            true => value.map(|_| "***".to_owned()),
            false if takes_mapping(&arg) => value.map(|value| without_passwords(&value)),
            false => value.map(|value| without_secret(&value)),
        };
        Setting { value, key, flag, variable, commands, origin, help }
    };
    known(command).into_iter().map(setting).collect()
}

/// User, password or token in a URL become `***`.
fn without_secret(value: &str) -> String {
    let one = |url: &str| match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    };
    if value.contains("://") { value.split(',').map(one).collect::<Vec<_>>().join(",") } else { value.to_owned() }
}

/// What is called `password` anywhere in a mapping becomes `***`; of what is no mapping nothing is shown.
fn without_passwords(mapping: &str) -> String {
    fn mask(value: &mut Value) {
        let Value::Object(fields) = value else { return };
        for (name, value) in fields {
            match name == "password" {
                true => *value = "***".into(),
                false => mask(value),
            }
        }
    }
    match serde_saphyr::from_str::<Value>(mapping) {
        Ok(mut value @ Value::Object(_)) => {
            mask(&mut value);
            value.to_string()
        }
        _ => "***".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker::RuntimeName;

    fn run(file: &str, arguments: &[&str]) -> Result<Invocation, String> {
        let file = from_text(file, &command())?;
        let with_file = with_defaults(command(), &file);
        let matches = with_file.clone().try_get_matches_from(arguments).map_err(|error| error.to_string())?;
        let settings = settings(&with_file, &file, &matches);
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        Ok(Invocation { cli, settings, file: None })
    }

    fn slots(invocation: &Invocation) -> usize {
        match &invocation.cli.command {
            crate::cli::Command::Worker(worker) => worker.slots,
            _ => panic!("not a worker"),
        }
    }

    #[test]
    fn a_mapping_of_mappings_is_written_as_one_in_the_file() {
        let registries = |invocation: &Invocation| match &invocation.cli.command {
            crate::cli::Command::Worker(worker) => worker.containers.registries.clone(),
            _ => panic!("not a worker"),
        };
        let of = |names: &worker::registry::RegistrySettings| names.names().map(str::to_owned).collect::<Vec<_>>();
        let file = "registries:\n  registry.local:5000: {scheme: http}\n  b.example:\n    username: joe\n    password: se,cr:et\n";
        let in_file = run(file, &["shoal", "worker"]).unwrap();
        assert_eq!(of(&registries(&in_file)), ["b.example", "registry.local:5000"]);
        let flag = r#"--registries={"c.example": {"ca": "/etc/ca.pem"}}"#;
        let by_flag = run(file, &["shoal", "worker", flag]).unwrap();
        assert_eq!(of(&registries(&by_flag)), ["c.example"], "a flag wins whole");
        assert_eq!(of(&registries(&run("", &["shoal", "worker"]).unwrap())), Vec::<String>::new());
        let setting = in_file.settings.iter().find(|setting| setting.key == "registries").unwrap();
        let shown = setting.value.clone().unwrap();
        assert!(
            shown.contains(r#""password":"***""#) && !shown.contains("se,cr") && setting.origin == "file",
            "{shown}"
        );
        for (file, words) in [
            ("registries: {a.example: {shceme: http}}", "unknown field `shceme`"),
            ("registries: {a.example: http}", "invalid type"),
            ("registries: [a.example]", "invalid"),
            ("registries: {a.example: {username: joe}}", "`username` with `password`"),
            ("registries: {'https://a.example': {}}", "is no registry"),
            ("registries: {a: {username: joe, password: secret}}", "key `registries`: `a` is no registry"),
            ("labels: {a: {b: c}}", "unknown key"),
            ("label: {a: {b: c}}", "must hold plain values"),
        ] {
            let problem = run(file, &["shoal", "worker"]).err().expect(file);
            assert!(problem.contains(words) && !problem.contains("secret"), "{file}: {problem}");
        }
    }

    #[test]
    fn the_arguments_are_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        assert_eq!(slots(&run("", &["shoal", "worker"]).unwrap()), 16);
        assert_eq!(slots(&run("slots: 8", &["shoal", "worker"]).unwrap()), 8);
        assert_eq!(slots(&run("slots: 8", &["shoal", "worker", "--slots", "4"]).unwrap()), 4);
    }

    #[test]
    fn a_variable_wins_over_the_file() {
        // HOME stands in for a variable that is surely set; nothing is changed in the process's environment.
        let command = command().mut_subcommand("worker", |sub| sub.mut_arg("state_dir", |arg| arg.env("HOME")));
        let command =
            command.mut_subcommand("worker", |sub| sub.mut_arg("state_dir", |arg| arg.default_value("/file")));
        let matches = command.try_get_matches_from(["shoal", "worker"]).unwrap();
        let worker = matches.subcommand_matches("worker").unwrap();
        assert_eq!(worker.value_source("state_dir"), Some(ValueSource::EnvVariable));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_the_nearest_known_one() {
        let error = run("slot: 8", &["shoal", "worker"]).err().unwrap();
        assert!(error.contains("`slot`") && error.contains("`slots`"), "{error}");
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        for (file, words) in [
            ("slots: many", ["slots", "many"]),
            ("drain_grace: 5", ["drain_grace", "1h30m"]),
            ("run_detach: 3", ["run_detach", "true"]),
            ("prefix: A.B", ["prefix", "A.B"]),
            ("- a", ["mapping", "settings"]),
        ] {
            let error = run(file, &["shoal", "worker"]).err().unwrap();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn lists_and_mappings_are_what_the_flags_take() {
        let file = "queues: {critical: 6, low: 1}\nlabel: {zone: a, disk: ssd}\nruntimes: [call, process]";
        let invocation = run(file, &["shoal", "worker"]).unwrap();
        let crate::cli::Command::Worker(worker) = &invocation.cli.command else { panic!("not a worker") };
        assert_eq!(worker.label.len(), 2);
        assert_eq!(worker.runtimes.as_deref(), Some(&[RuntimeName::Call, RuntimeName::Process][..]));
        let queues = invocation.settings.iter().find(|setting| setting.key == "queues").unwrap();
        assert_eq!((queues.value.as_deref(), queues.origin), (Some("critical:6,low:1"), "file"));
    }

    #[test]
    fn every_flag_has_a_variable_and_a_key_of_its_own() {
        let invocation = run("", &["shoal", "config", "show"]).unwrap();
        for key in ["nats_url", "slots", "worker_id", "run_detach", "logs_follow", "replicas"] {
            assert!(invocation.settings.iter().any(|setting| setting.key == key), "{key}");
        }
        assert!(invocation.settings.iter().all(|setting| setting.variable.starts_with("SHOAL_")));
    }

    #[test]
    fn a_secret_is_three_stars() {
        assert_eq!(without_secret("nats://me:secret@host:4222,tls://t@b"), "nats://***@host:4222,tls://***@b");
        let invocation = run("nats_url: nats://me:secret@host", &["shoal", "config", "show"]).unwrap();
        assert!(invocation.settings.iter().all(|s| !s.value.as_deref().unwrap_or_default().contains("secret")));
    }
}
