//! The scripted model: `tests/model/server.py` as a child.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

pub const KEY: &str = "sk-scripted-0123456789";
pub const MODEL: &str = "scripted-1";

/// A running one; it ends with this value.
pub struct Scripted {
    child: Child,
    _script: tempfile::NamedTempFile,
    /// The base URL.
    pub endpoint: String,
}

impl Scripted {
    /// One conversation for whoever comes.
    pub fn turns(turns: Value) -> Self {
        Self::conversations(json!([{ "match": "", "turns": turns }]))
    }

    pub fn conversations(conversations: Value) -> Self {
        let mut script = tempfile::NamedTempFile::new().unwrap();
        let text = json!({ "key": KEY, "model": MODEL, "conversations": conversations }).to_string();
        script.write_all(text.as_bytes()).unwrap();
        // This file is part of two packages.
        let server = |root: &std::path::Path| root.join("tests/model/server.py");
        let roots = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let server = roots.map(server).find(|server| server.exists()).expect("the scripted model");
        let mut child = Command::new("python3")
            .arg(server)
            .arg("--script")
            .arg(script.path())
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(endpoint) = line.trim().strip_prefix("ready ").map(str::to_owned) else {
            panic!("the scripted model said {line:?} and ended: {:?}", child.wait())
        };
        Self { child, _script: script, endpoint }
    }

    fn get(&self, path: &str) -> Value {
        let address = self.endpoint.trim_start_matches("http://").trim_end_matches("/v1");
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Sends a request with the right key and model; the status of its answer.
    #[allow(dead_code, reason = "this file is part of two packages")]
    pub fn post(&self, body: &Value) -> u16 {
        let address = self.endpoint.trim_start_matches("http://").trim_end_matches("/v1");
        let mut body = body.clone();
        body["model"] = MODEL.into();
        let body = body.to_string();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// All requests so far: `{authorized, body, turn}`.
    pub fn requests(&self) -> Vec<Value> {
        self.get("/requests").as_array().unwrap().clone()
    }

    /// What a strict endpoint would have called wrong.
    pub fn violations(&self) -> Vec<String> {
        serde_json::from_value(self.get("/violations")).unwrap()
    }

    /// The texts of the last request's messages, each with its role.
    pub fn last_messages(&self) -> Vec<(String, String)> {
        let requests = self.requests();
        let messages = requests.last().unwrap()["body"]["messages"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        messages.iter().map(|message| (text(&message["role"]), text(&message["content"]))).collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
