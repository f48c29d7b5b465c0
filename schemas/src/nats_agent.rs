//! The NATS agent protocol, v0.3 (draft), as we speak it: `agents.<verb>.<agent>.<owner>.<name>`.
//!
//! Ours: the agent token is `shoal`, the owner is the fleet's prefix, the name is that of a queue (its front door) or
//! `task-<id>` of a running job.

use base64::Engine;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::ids::{QueueName, TaskId};
use crate::names::Names;
use crate::time::Timestamp;

/// Name of the service, and of the queue group of its endpoints.
pub const SERVICE: &str = "agents";
/// Version of the protocol; only major and minor count.
pub const PROTOCOL_VERSION: &str = "0.3";
/// Our agent token.
pub const AGENT: &str = "shoal";
/// Longest token.
const TOKEN_BYTES: usize = 63;
/// Time between two beats, and between two signs of life of a stream of replies.
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(30);

/// The front door of a queue.
pub fn queue_token(queue: &QueueName) -> String {
    token(queue.as_str())
}

/// A running job.
pub fn task_token(id: &TaskId) -> String {
    token(&format!("task-{id}"))
}

/// A name as a token: what is too long keeps its beginning, and gets a mark of the whole.
fn token(name: &str) -> String {
    if name.len() <= TOKEN_BYTES {
        return name.to_owned();
    }
    // FNV-1a: it only has to tell names apart, the same in every version.
    let mark = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{}-{mark:016x}", &name[..TOKEN_BYTES - 17])
}

impl Names {
    /// Subject of one verb (`prompt`, `status`, `hb`) of one of our agents.
    pub fn nats_agent_subject(&self, verb: &str, token: &str) -> String {
        format!("agents.{verb}.{AGENT}.{}.{token}", self.prefix())
    }

    /// What a service of ours must say of itself.
    pub fn nats_agent_metadata(&self, token: &str) -> [(String, String); 4] {
        [
            ("agent", AGENT.to_owned()),
            ("owner", self.prefix().to_string()),
            ("session", token.to_owned()),
            ("protocol_version", PROTOCOL_VERSION.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }
}

/// A heartbeat, and the answer of `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Our agent token.
    pub agent: String,
    /// The fleet's prefix.
    pub owner: String,
    /// Token of queue or job.
    pub session: String,
    /// The service's own id.
    pub instance_id: String,
    /// When it was made.
    pub ts: Timestamp,
    /// Seconds to the next.
    pub interval_s: u64,
}

impl Beat {
    /// One of now.
    pub fn now(names: &Names, token: &str, instance_id: &str) -> Self {
        Self {
            agent: AGENT.to_owned(),
            owner: names.prefix().to_string(),
            session: token.to_owned(),
            instance_id: instance_id.to_owned(),
            ts: Timestamp::now(),
            interval_s: BEAT.as_secs(),
        }
    }
}

/// What a caller wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// Files that came with it, by name.
    pub attachments: Vec<(String, Vec<u8>)>,
    /// The whole envelope, where there was one.
    pub fields: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Attachment {
    filename: String,
    content: String,
}

/// Why a request is refused: code and words for the error headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code} {message}")]
pub struct Refusal {
    /// 400, 401, 403, 404, 409, 429 or 500.
    pub code: u16,
    /// One line.
    pub message: String,
}

impl Refusal {
    /// One with these words, made one line.
    pub fn new(code: u16, message: impl AsRef<str>) -> Self {
        Self { code, message: message.as_ref().split_whitespace().collect::<Vec<_>>().join(" ") }
    }
}

impl Prompt {
    /// Reads a request: what begins with `{` is an envelope, everything else is the prompt itself.
    pub fn read(payload: &[u8]) -> Result<Self, Refusal> {
        let wrong = |message: &str| Refusal::new(400, message);
        let begins = payload.iter().position(|byte| !b" \t\r\n".contains(byte)).ok_or_else(|| wrong("empty prompt"))?;
        if payload[begins] != b'{' {
            let text = std::str::from_utf8(payload).map_err(|_| wrong("the prompt is no UTF-8"))?;
            return Ok(Self { text: text.trim().to_owned(), ..Self::default() });
        }
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(payload).map_err(|error| wrong(&format!("the envelope is no JSON: {error}")))?;
        let text = fields.get("prompt").and_then(serde_json::Value::as_str).unwrap_or_default().trim().to_owned();
        if text.is_empty() {
            return Err(wrong("`prompt` must be a non-empty string"));
        }
        let attachments: Vec<Attachment> = match fields.get("attachments") {
            None | Some(serde_json::Value::Null) => Vec::new(),
            Some(attachments) => serde_json::from_value(attachments.clone())
                .map_err(|_| wrong("`attachments` must be a list of {filename, content}"))?,
        };
        let read = |it: Attachment| {
            let path_like = it.filename.is_empty()
                || it.filename.contains(['/', '\\', '\0'])
                || [".", ".."].contains(&it.filename.as_str());
            let content = base64::engine::general_purpose::STANDARD.decode(&it.content);
            match (path_like, content) {
                (false, Ok(content)) => Ok((it.filename, content)),
                (true, _) => Err(wrong("`filename` must be a plain name")),
                (false, Err(_)) => Err(wrong("`content` must be padded base64")),
            }
        };
        Ok(Self { text, attachments: attachments.into_iter().map(read).collect::<Result<_, _>>()?, fields })
    }
}

/// One message of the stream of replies, as JSON.
pub mod chunk {
    use super::json;

    /// The first, at once; and the sign of life.
    pub fn ack() -> Vec<u8> {
        json!({"type": "status", "data": "ack"}).to_string().into_bytes()
    }

    /// Some text: whole lines, for callers put one chunk behind the other.
    pub fn response(text: &str) -> Vec<u8> {
        json!({"type": "response", "data": line(text)}).to_string().into_bytes()
    }

    /// The last text, and the same for programs.
    pub fn end(text: &str, task: &serde_json::Value) -> Vec<u8> {
        json!({"type": "response", "data": {"text": line(text), "task": task}}).to_string().into_bytes()
    }

    fn line(text: &str) -> String {
        format!("{}\n", text.trim_end_matches('\n'))
    }

    /// A question; its answer goes to `reply_subject`.
    pub fn query(id: &str, reply_subject: &str, prompt: &str) -> Vec<u8> {
        json!({"type": "query", "data": {"id": id, "reply_subject": reply_subject, "prompt": prompt}})
            .to_string()
            .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_envelopes_are_read_as_the_protocol_says() {
        assert_eq!(Prompt::read(b" fix it \n").unwrap().text, "fix it");
        assert_eq!(Prompt::read(br#"  {"prompt":"fix it","more":1}"#).unwrap().text, "fix it");
        let with = Prompt::read(br#"{"prompt":"a","attachments":[{"filename":"a.txt","content":"aGk="}]}"#).unwrap();
        assert_eq!(with.attachments, [("a.txt".to_owned(), b"hi".to_vec())]);
        for bad in [
            &b""[..],
            b"  \n",
            b"{}",
            b"{nonsense",
            br#"{"prompt":""}"#,
            br#"{"prompt":1}"#,
            br#"{"prompt":"a","attachments":[{"filename":"../a","content":"aGk="}]}"#,
            br#"{"prompt":"a","attachments":[{"filename":"a","content":"aGk"}]}"#,
            b"\xff\xfe",
        ] {
            assert_eq!(Prompt::read(bad).unwrap_err().code, 400, "{bad:?}");
        }
    }

    #[test]
    fn tokens_stay_within_their_bound_and_apart() {
        let long = |end: &str| TaskId::new(format!("{}{end}", "x".repeat(100))).unwrap();
        let (one, other) = (task_token(&long("1")), task_token(&long("2")));
        assert!(one.len() <= 63 && one != other, "{one} {other}");
        let names = Names::default();
        assert_eq!(
            names.nats_agent_subject("prompt", &task_token(&TaskId::new("t1").unwrap())),
            "agents.prompt.shoal.shoal.task-t1"
        );
    }
}
