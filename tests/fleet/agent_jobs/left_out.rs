//! One file that may not leave the worker does not throw the rest of the work away.

use schemas::{Code, State};
use serde_json::{Value, json};

use super::{World, report};
use crate::support::repo::{RIGHT, WRONG};

const BRANCH: &str = "feature/task-t-add-do-not-subtract";
const KEEPS_REMOTE: &str = "refs/";

fn command(line: &str) -> Value {
    json!({"name": "run_command", "arguments": {"command": line}})
}
