//! `shoal invoke`: calls a function. What it answers goes to stdout as it is; what Shoal has to say goes to stderr.

use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use clap::Args;
use dispatcher::client::{Call, CallError, Later, Response};
use schemas::{Code, FunctionName, HumanDuration, QueueName, TaskError, TaskId};
use serde_json::{Value, json};

use super::{Error, Server, submit};
use crate::exit::{self, Exit};
use crate::output::{self, Format};

/// Flags of `shoal invoke`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The response goes to stdout as it came. Exit code 1 if the function says that it failed, 124 if no \
    instance had room in time.\n\nExamples:\n  shoal invoke thumbnail '{\"width\":200}'\n  \
    shoal invoke thumbnail --file cat.jpg --content-type image/jpeg > small.jpg\n  \
    shoal wait $(shoal invoke thumbnail --async '{\"width\":200}')"
)]
pub struct Invoke {
    /// The function
    pub name: FunctionName,
    /// The body of the call; `-` takes stdin [default: an empty one]
    #[arg(conflicts_with = "file")]
    pub payload: Option<String>,
    /// File that holds the body
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Submit the call as a task: durable, retried; prints its key
    #[arg(long = "async")]
    pub later: bool,
    /// Queue of the task [default: the function's pool]
    #[arg(long, requires = "later")]
    pub queue: Option<QueueName>,
    /// Id of the task, which is a lock while it is queued or running [default: a new one]
    #[arg(long, requires = "later")]
    pub id: Option<TaskId>,
    /// Type of the body [default: application/json]
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// In whose name, where the function has an owner
    #[arg(long, value_name = "WORD")]
    pub owner: Option<String>,
    /// Give up after this, whatever the function's own limits [default: those]
    #[arg(long, value_name = "DURATION", conflicts_with = "later")]
    pub timeout: Option<HumanDuration>,
}

/// Calls it.
pub async fn run(args: Invoke, on: &Server<'_>) -> Result<Exit, Error> {
    let call = Call {
        body: body(&args)?.into(),
        content_type: Some(args.content_type.clone().unwrap_or_else(|| "application/json".into())),
        acquire_timeout: args.timeout.map(|timeout| timeout.0),
        ..Call::default()
    };
    let client = on.connect().await?;
    if args.later {
        let later = Later { queue: args.queue, id: args.id, owner: args.owner };
        let submitted = client.invoke_later(&args.name, &call, later).await?;
        match on.output() {
            Format::Json => submit::print(&[submitted], 1, Format::Json),
            Format::Table => output::line(format_args!("{}", submitted.key)),
        }
        return Ok(exit::DONE);
    }
    let caller = client.functions(args.owner);
    let calling = caller.invoke(&args.name, &call);
    let response = match args.timeout {
        None => calling.await?,
        Some(timeout) => tokio::time::timeout(timeout.0, calling).await.unwrap_or_else(|_| {
            let message = format!("`{}` did not answer within {timeout}; it may be at work still", args.name);
            Err(CallError::Failed(TaskError::new(Code::TimedOut, message)))
        })?,
    };
    match on.output() {
        Format::Json => output::json(&as_json(&response)),
        Format::Table => output::data(&response.body),
    }
    match &response.function_error {
        None => Ok(exit::DONE),
        Some(error) => {
            let start = response.instance.as_ref().map_or(String::new(), |start| format!(" by its instance {start}"));
            output::talk(format_args!(
                "error: {}: `{}` answered {} ({}){start}\n  try: shoal logs _functions.{}",
                Code::FunctionFailed,
                args.name,
                response.status,
                output::printable(error),
                args.name
            ));
            Ok(exit::FAILED)
        }
    }
}

fn body(args: &Invoke) -> Result<Vec<u8>, Error> {
    let path = match (&args.payload, &args.file) {
        (Some(payload), _) if payload != "-" => return Ok(payload.clone().into_bytes()),
        (Some(_), _) => PathBuf::from("-"),
        (None, Some(file)) => file.clone(),
        (None, None) => return Ok(Vec::new()),
    };
    let read = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(&path)
    };
    read.map_err(|error| {
        Error::usage(format!("cannot read {}: {error}", path.display()), "name a file with --file, or `-` for stdin")
    })
}

/// All that is known of the call; the body as JSON where it is JSON, else as text, else in base64.
fn as_json(response: &Response) -> Value {
    let mut value = json!({"request_id": response.request_id, "status": response.status});
    for (field, known) in [
        ("content_type", json!(response.content_type)),
        ("function_error", json!(response.function_error)),
        ("instance", json!(response.instance)),
        ("worker", json!(response.worker)),
    ] {
        if !known.is_null() {
            value[field] = known;
        }
    }
    match serde_json::from_slice::<Value>(&response.body) {
        Ok(body) => value["body"] = body,
        Err(_) => match std::str::from_utf8(&response.body) {
            Ok(text) => value["body"] = text.into(),
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(&response.body);
                value["body_base64"] = text.into();
            }
        },
    }
    value
}
