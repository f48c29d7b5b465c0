//! The `curl` program: HTTP as anybody speaks it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Program, in_time};

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Vec<u8>,
}

/// Asks once.
pub async fn curl(args: &[&str]) -> Answer {
    let output = in_time(format!("curl {args:?}"), tokio::process::Command::from(command(args, "-i")).output()).await;
    let output = output.expect("curl runs");
    assert!(output.status.success(), "curl {args:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
    Answer::read(&output.stdout)
}

/// Starts one that goes on reading.
pub fn curl_stream(folder: &Path, args: &[&str]) -> Program {
    Program::spawn("curl", folder, command(args, "-N"), Stdio::null())
}

fn command(args: &[&str], how: &str) -> Command {
    let mut command = Command::new("curl");
    // Neither somebody's settings nor a proxy; no wait for `100 Continue`.
    command.args(["-q", "-sS", how, "--noproxy", "*", "-H", "Expect:"]).args(args).stdin(Stdio::null());
    super::system::dies_with_us(&mut command);
    command
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let headers = pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: bytes[end + 4..].to_vec() }
    }

    /// Fails unless it has this status.
    #[track_caller]
    pub fn status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON: {e}\n{self:?}"))
    }

    /// The problem with this status and code.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Value {
        let answer = self.status(status);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let problem = answer.json();
        assert_eq!(
            (problem["status"].as_u64(), problem["code"].as_str()),
            (Some(status.into()), Some(code)),
            "{problem}"
        );
        problem
    }
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its id, if it has one.
    pub id: Option<u64>,
    /// Its data.
    pub data: Value,
}

/// The whole events of a stream so far; comments and the rest left out.
pub fn events(text: &str) -> Vec<Event> {
    let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
    let mut found = Vec::new();
    for block in whole.split("\n\n") {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if let (Some(name), Some(data)) = (field("event"), field("data")) {
            let data = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e} in {data}"));
            found.push(Event { name: name.into(), id: field("id").map(|id| id.parse().expect("a number")), data });
        }
    }
    found
}
