//! `shoal function`: what functions are defined. Definitions stand in a bucket; no worker need be there.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use dispatcher::client::{Applied, Defined};
use schemas::task::PullPolicy;
use schemas::{Bytes, Cpu, Function, FunctionName, HumanDuration, Limit, QueueName, strict};
use serde_json::{Value, json};

use super::containers::pull;
use super::{Error, Server, pair, submit};
use crate::exit::{self, Exit};
use crate::output::{self, Facts, Format, Table};

/// `shoal function …`.
#[derive(Clone, Debug, Subcommand)]
pub enum FunctionCommand {
    /// Define a function, or change one: from a file, or by flags
    Apply(Box<Apply>),
    /// List functions
    List,
    /// Show one function and its instances
    Show {
        /// Its name
        name: FunctionName,
    },
    /// Delete functions; their instances are stopped
    Delete {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<FunctionName>,
        /// In whose name, where they have an owner
        #[arg(long, value_name = "WORD")]
        owner: Option<String>,
    },
}

/// Flags of `shoal function apply`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "A file holds one function or several, JSON or YAML, each with its `name` (or --name for the only one).\n\n\
    Examples:\n  shoal function apply thumbnail --image acme/thumbnail:3 --max 4\n  \
    shoal function apply functions.yaml\n  echo '{\"image\":\"acme/thumbnail:3\"}' | shoal function apply - --name thumbnail"
)]
pub struct Apply {
    /// A file of functions, `-` for stdin; or, with --image, the name of one
    #[arg(value_name = "FILE|NAME")]
    pub target: String,
    /// Name of the function, where the file holds only one
    #[arg(long, conflicts_with = "image")]
    pub name: Option<FunctionName>,
    /// Image to make instances from
    #[arg(long)]
    pub image: Option<String>,
    /// In whose name it is changed; with --image also who alone may call it
    #[arg(long, value_name = "WORD")]
    pub owner: Option<String>,
    /// What else is said with --image.
    #[command(flatten)]
    pub fields: Fields,
}

/// A definition by flags.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "With --image")]
pub struct Fields {
    /// Port that it listens on [default: 8080]
    #[arg(long, requires = "image", value_name = "PORT")]
    pub port: Option<u16>,
    /// Path that calls are posted to [default: the Lambda runtime interface emulator's]
    #[arg(long, requires = "image", value_name = "PATH")]
    pub path: Option<String>,
    /// Path of a GET that an instance which is well answers with 2xx
    #[arg(long, requires = "image", value_name = "PATH")]
    pub health_path: Option<String>,
    /// Instances kept warm [default: 0]
    #[arg(long, requires = "image", value_name = "N")]
    pub min: Option<u32>,
    /// Most instances [default: 1]
    #[arg(long, requires = "image", value_name = "N")]
    pub max: Option<u32>,
    /// Calls that one instance takes at once [default: 1]
    #[arg(long, requires = "image", value_name = "N")]
    pub concurrency: Option<u32>,
    /// Time without a call after which an instance above --min is removed [default: 5m]
    #[arg(long, requires = "image", value_name = "DURATION")]
    pub idle_timeout: Option<HumanDuration>,
    /// Longest time of one call [default: 30s]
    #[arg(long, requires = "image", value_name = "DURATION")]
    pub request_timeout: Option<HumanDuration>,
    /// Longest wait of a call for an instance with room [default: 30s]
    #[arg(long, requires = "image", value_name = "DURATION")]
    pub acquire_timeout: Option<HumanDuration>,
    /// Largest response [default: 10Mi]
    #[arg(long, requires = "image", value_name = "SIZE")]
    pub response_limit: Option<Bytes>,
    /// A call may be sent again though it may have been received
    #[arg(long, requires = "image")]
    pub idempotent: bool,
    /// Workers of this queue hold its instances [default: default]
    #[arg(long, requires = "image", value_name = "QUEUE")]
    pub pool: Option<QueueName>,
    /// Added to the image's environment; may be repeated
    #[arg(long, short, requires = "image", value_parser = pair, value_name = "NAME=VALUE")]
    pub env: Vec<(String, String)>,
    /// Free words for people and filters; may be repeated
    #[arg(long, requires = "image", value_parser = pair, value_name = "NAME=VALUE")]
    pub label: Vec<(String, String)>,
    /// CPU limit of one instance [default: the worker's]
    #[arg(long, requires = "image", value_name = "CPU")]
    pub cpu: Option<Limit<Cpu>>,
    /// Memory limit of one instance [default: the worker's]
    #[arg(long, requires = "image", value_name = "SIZE")]
    pub memory: Option<Limit<Bytes>>,
    /// bridge, or a network of the engine that gives each an address [default: bridge]
    #[arg(long, requires = "image", value_name = "NAME")]
    pub network: Option<String>,
    /// When the image is pulled: always, if_not_present, never [default: the worker's]
    #[arg(long, requires = "image", value_parser = pull, value_name = "WHEN")]
    pub pull: Option<PullPolicy>,
    /// Replaces the image's command
    #[arg(last = true, requires = "image", value_name = "CMD")]
    pub command: Vec<String>,
}

impl Fields {
    fn function(&self, image: &str, owner: Option<&str>) -> Result<Function, Error> {
        let fields = self.clone();
        let mut function = Function::new(image);
        function.port = fields.port.unwrap_or(function.port);
        function.path = fields.path.unwrap_or(function.path);
        function.health.path = fields.health_path;
        function.min = fields.min.unwrap_or(function.min);
        // Who keeps three warm means at least three.
        function.max = fields.max.unwrap_or(function.max.max(function.min));
        function.concurrency = fields.concurrency.unwrap_or(function.concurrency);
        function.idle_timeout = fields.idle_timeout.unwrap_or(function.idle_timeout);
        function.request_timeout = fields.request_timeout.unwrap_or(function.request_timeout);
        function.acquire_timeout = fields.acquire_timeout.unwrap_or(function.acquire_timeout);
        function.response_limit = fields.response_limit.unwrap_or(function.response_limit);
        function.idempotent = fields.idempotent;
        function.pool = fields.pool.unwrap_or(function.pool);
        function.env = fields.env.into_iter().collect();
        function.labels = fields.label.into_iter().collect();
        function.limits.cpu = fields.cpu;
        function.limits.memory = fields.memory;
        function.network = fields.network.unwrap_or(function.network);
        function.pull = fields.pull;
        function.command = fields.command;
        function.owner = owner.map(str::to_owned);
        function.check().map_err(|error| Error::usage(error.to_string(), "shoal function apply --help"))?;
        Ok(function)
    }
}

/// Runs one of them.
pub async fn run(args: FunctionCommand, on: &Server<'_>) -> Result<Exit, Error> {
    match args {
        FunctionCommand::Apply(args) => apply(*args, on).await,
        FunctionCommand::List => list(on).await,
        FunctionCommand::Show { name } => show(&name, on).await,
        FunctionCommand::Delete { names, owner } => {
            let caller = on.connect().await?.functions(owner);
            let mut deleted = Vec::new();
            for name in &names {
                deleted.push(json!({"name": name, "deleted": caller.delete(name).await?}));
            }
            match on.output() {
                Format::Json => output::json(&deleted),
                Format::Table => {
                    for (name, was) in names.iter().zip(&deleted) {
                        let word = if was["deleted"] == true { "deleted" } else { "was not defined" };
                        output::line(format_args!("{name} {word}"));
                    }
                }
            }
            Ok(exit::DONE)
        }
    }
}

async fn apply(args: Apply, on: &Server<'_>) -> Result<Exit, Error> {
    let functions = match &args.image {
        Some(image) => {
            let name = args
                .target
                .parse::<FunctionName>()
                .map_err(|error| Error::usage(error.to_string(), "shoal function apply my-function --image IMAGE"))?;
            vec![(name, args.fields.function(image, args.owner.as_deref())?)]
        }
        None => from_file(&args.target, args.name.clone())?,
    };
    let client = on.connect().await?;
    let mut applied = Vec::new();
    for (name, function) in functions {
        // Whoever writes a definition of an owner speaks in that name, unless another is given.
        let owner = args.owner.clone().or_else(|| function.owner.clone());
        applied.push(client.functions(owner).apply(&name, function).await?);
    }
    match on.output() {
        Format::Json => output::json(&applied.iter().map(applied_json).collect::<Vec<_>>()),
        Format::Table => {
            for Applied { defined, changed, rolls } in &applied {
                let what = match (changed, rolls) {
                    (false, _) => "is defined like this already",
                    (true, true) => "changed; its instances are replaced",
                    (true, false) => "applied",
                };
                output::line(format_args!("{} {what} (revision {})", defined.name, defined.revision));
            }
        }
    }
    Ok(exit::DONE)
}

/// Every function of a file.
fn from_file(target: &str, name: Option<FunctionName>) -> Result<Vec<(FunctionName, Function)>, Error> {
    const HINT: &str = r#"write it as {"name": "my-function", "image": "acme/my-function:1"}"#;
    let path = PathBuf::from(target);
    if target != "-" && !path.exists() && target.parse::<FunctionName>().is_ok() {
        let problem = format!("there is no file `{target}`, and a function by that name wants an image");
        return Err(Error::usage(problem, format!("shoal function apply {target} --image IMAGE")));
    }
    let values = dispatcher::client::documents::flattened(submit::documents(&submit::read(&path)?)?);
    if values.is_empty() {
        return Err(Error::usage("there is no function in it", HINT));
    }
    if name.is_some() && values.len() != 1 {
        return Err(Error::usage(format!("--name names one function, the file holds {}", values.len()), HINT));
    }
    let many = values.len();
    let one = |(i, mut value): (usize, Value)| {
        let wrong = |problem: String| {
            let which = if many == 1 { String::new() } else { format!("function {} of {many}: ", i + 1) };
            Error::usage(format!("{which}{problem}"), HINT)
        };
        let own = value.as_object_mut().and_then(|fields| fields.remove("name"));
        let name = match (&name, own) {
            (Some(name), _) => name.clone(),
            (None, Some(Value::String(own))) => {
                own.parse::<FunctionName>().map_err(|error| wrong(error.to_string()))?
            }
            (None, Some(_)) => return Err(wrong("`name` must be text".into())),
            (None, None) => return Err(wrong("it has no `name`".into())),
        };
        let function = strict::function(&value).map_err(|error| wrong(error.to_string()))?;
        Ok((name, function))
    };
    values.into_iter().enumerate().map(one).collect()
}

async fn list(on: &Server<'_>) -> Result<Exit, Error> {
    let caller = on.connect().await?.functions(None);
    let (functions, instances) = (caller.definitions().await?, caller.instances(None).await?);
    match on.output() {
        Format::Json => output::json(&functions.iter().map(defined_json).collect::<Vec<_>>()),
        Format::Table => {
            let mut table = Table::new(&["FUNCTION", "IMAGE", "READY", "MIN", "MAX", "CONCURRENCY", "POOL", "OWNER"]);
            for Defined { name, function, .. } in &functions {
                let ready = instances.iter().filter(|it| it.instance.function == *name && it.instance.takes_calls());
                table.row([
                    name.to_string(),
                    function.image.clone(),
                    ready.count().to_string(),
                    function.min.to_string(),
                    function.max.to_string(),
                    function.concurrency.to_string(),
                    function.pool.to_string(),
                    function.owner.clone().unwrap_or_else(|| "-".into()),
                ]);
            }
            table.print();
        }
    }
    Ok(exit::DONE)
}

async fn show(name: &FunctionName, on: &Server<'_>) -> Result<Exit, Error> {
    let caller = on.connect().await?.functions(None);
    let (defined, instances) = (caller.defined(name).await?, caller.instances(Some(name)).await?);
    let instances: Vec<_> = instances.into_iter().map(|known| known.instance).collect();
    match on.output() {
        Format::Json => {
            let mut value = defined_json(&defined);
            value["instances"] = json!(instances);
            output::json(&value);
        }
        Format::Table => {
            let mut facts = Facts::default();
            facts.add("function", defined.name.to_string());
            facts.add("revision", defined.revision.to_string());
            if let Value::Object(fields) = json!(defined.function) {
                for (field, value) in fields {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    facts.add("set", format!("{field}: {text}"));
                }
            }
            facts.print();
            super::instances::table(&instances).print();
        }
    }
    Ok(exit::DONE)
}

fn defined_json(defined: &Defined) -> Value {
    json!({"name": defined.name, "revision": defined.revision, "function": defined.function})
}

fn applied_json(applied: &Applied) -> Value {
    let mut value = defined_json(&applied.defined);
    value["changed"] = applied.changed.into();
    value["rolls"] = applied.rolls.into();
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        apply: Apply,
    }

    #[test]
    fn flags_say_the_same_as_a_file() {
        let words = ["probe", "f", "--image", "a:1", "--min", "2", "--env", "A=b", "--memory", "64Mi", "--", "serve"];
        let apply = Probe::try_parse_from(words).unwrap().apply;
        let by_flags = apply.fields.function("a:1", Some("ann")).unwrap();
        let by_file = strict::function(&json!({
            "image": "a:1", "min": 2, "max": 2, "env": {"A": "b"}, "limits": {"memory": "64Mi"}, "command": ["serve"],
            "owner": "ann",
        }));
        assert_eq!(by_flags, by_file.unwrap());
        assert!(Probe::try_parse_from(["probe", "f", "--min", "2"]).is_err(), "a field without an image");
        let wrong = Probe::try_parse_from(["probe", "f", "--image", "a:1", "--min", "3", "--max", "2"]).unwrap().apply;
        assert_eq!(wrong.fields.function("a:1", None).unwrap_err().exit(), exit::USAGE);
    }
}
