//! A running agent: its process, the connection to it, and what comes from there.

use std::pin::Pin;
use std::task::{Context, Poll};

use agent_client_protocol::v1::schema::{
    ContentBlock, ReadTextFileRequest, ReadTextFileResponse, RequestPermissionRequest, RequestPermissionResponse,
    SessionId, SessionNotification, SessionUpdate, ToolCallContent, ToolCallStatus, WriteTextFileRequest,
    WriteTextFileResponse,
};
use agent_client_protocol::v1::{ConnectionTo, Responder};
use agent_client_protocol::{Agent, ByteStreams, Client, Error, on_receive_notification, on_receive_request};
use futures_util::future::BoxFuture;
use schemas::transcript::Event;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::line::Line;
use crate::shell::{Conversation, Ran, ShellError};
use crate::tools::output::{beginning, ending};

/// What the agent may ask before anybody answers.
const WAITING: usize = 64;
/// Longest message of the agent.
const MESSAGE_BYTES: usize = 64 << 20;
/// Words of the agent are told in pieces of about this size.
const PIECE_BYTES: usize = 8 << 10;
/// As much of a tool's arguments and answer is told.
const TOOL_BYTES: usize = 16 << 10;

/// What comes from the agent.
pub(super) enum Asked {
    Update(Box<SessionNotification>),
    Read(Box<ReadTextFileRequest>, Responder<ReadTextFileResponse>),
    Write(Box<WriteTextFileRequest>, Responder<WriteTextFileResponse>),
    Permission(Box<RequestPermissionRequest>, Responder<RequestPermissionResponse>),
}

/// What is wrong on our side of the connection.
pub(super) fn lost(why: impl ToString) -> Error {
    Error::internal_error().data(serde_json::Value::from(why.to_string()))
}

/// A running agent. Dropped, its process is stopped.
pub(super) struct Live {
    pub(super) connection: BoxFuture<'static, Result<(), Error>>,
    pub(super) end: BoxFuture<'static, Result<Ran, ShellError>>,
    pub(super) asked: mpsc::Receiver<Asked>,
    pub(super) connected: Connected,
    pub(super) session: Option<SessionId>,
}

/// The connection's handle, once it is there.
pub(super) enum Connected {
    Soon(oneshot::Receiver<ConnectionTo<Agent>>),
    Now(ConnectionTo<Agent>),
}

impl Connected {
    pub(super) async fn get(&mut self) -> Result<ConnectionTo<Agent>, Error> {
        if let Self::Soon(soon) = self {
            let gone = |_| lost("the connection is closed");
            *self = Self::Now(soon.await.map_err(gone)?);
        }
        match self {
            Self::Now(connection) => Ok(connection.clone()),
            Self::Soon(_) => Err(lost("the connection is not open yet")),
        }
    }
}

impl Live {
    pub(super) fn new(conversation: Conversation) -> Self {
        let (ask, asked) = mpsc::channel(WAITING);
        let (connect, soon) = oneshot::channel();
        let incoming = Lines { from: conversation.stdout, since_line: 0 };
        let streams = ByteStreams::new(conversation.stdin.compat_write(), incoming.compat());
        let updates = ask.clone();
        let (reads, writes) = (ask.clone(), ask.clone());
        // A full channel holds the agent back; a closed one is the end of the work, and then nobody listens.
        let client = Client
            .v1()
            .name("shoal")
            .on_receive_notification(
                async move |update: SessionNotification, _| {
                    drop(updates.send(Asked::Update(Box::new(update))).await);
                    Ok(())
                },
                on_receive_notification!(),
            )
            .on_receive_request(
                async move |request: ReadTextFileRequest, responder, _| {
                    drop(reads.send(Asked::Read(Box::new(request), responder)).await);
                    Ok(())
                },
                on_receive_request!(),
            )
            .on_receive_request(
                async move |request: WriteTextFileRequest, responder, _| {
                    drop(writes.send(Asked::Write(Box::new(request), responder)).await);
                    Ok(())
                },
                on_receive_request!(),
            )
            .on_receive_request(
                async move |request: RequestPermissionRequest, responder, _| {
                    drop(ask.send(Asked::Permission(Box::new(request), responder)).await);
                    Ok(())
                },
                on_receive_request!(),
            );
        let connection = client.connect_with(streams, async move |connection: ConnectionTo<Agent>| {
            drop(connect.send(connection.clone()));
            connection.incoming_closed().await;
            Ok(())
        });
        Self {
            connection: Box::pin(connection),
            end: conversation.end,
            asked,
            connected: Connected::Soon(soon),
            session: None,
        }
    }

    /// Whether the agent may still say something.
    pub(super) fn is_open(&self) -> bool {
        matches!(&self.connected, Connected::Now(connection) if !connection.is_incoming_closed())
    }
}

/// What the agent says, gathered from its pieces.
#[derive(Default)]
pub(super) struct Saying {
    piece: String,
    /// The end of its last message.
    last: String,
    /// A message begins anew.
    over: bool,
}

impl Saying {
    pub(super) fn hear(&mut self, update: SessionNotification, line: &dyn Line) {
        match update.update {
            SessionUpdate::AgentMessageChunk(chunk) => {
                if let ContentBlock::Text(text) = chunk.content {
                    if std::mem::take(&mut self.over) {
                        self.last.clear();
                    }
                    self.piece.push_str(&text.text);
                    self.last.push_str(&text.text);
                    let over = self.last.len() - ending(&self.last, PIECE_BYTES).len();
                    self.last.drain(..over);
                    if self.piece.len() >= PIECE_BYTES {
                        self.tell(line);
                    }
                }
            }
            SessionUpdate::ToolCall(call) => {
                self.end_message(line);
                let id = bounded(&call.tool_call_id.to_string(), 200);
                let arguments = call.raw_input.map(|input| input.to_string()).unwrap_or_default();
                line.tell(Event::ToolCall {
                    id: id.clone(),
                    name: bounded(call.name.as_ref().unwrap_or(&call.title), 200),
                    arguments: bounded(&arguments, TOOL_BYTES),
                });
                result(id, Some(call.status), Some(&call.content), call.raw_output.as_ref(), line);
            }
            SessionUpdate::ToolCallUpdate(update) => {
                self.end_message(line);
                let id = bounded(&update.tool_call_id.to_string(), 200);
                let fields = update.fields;
                result(id, fields.status, fields.content.as_deref(), fields.raw_output.as_ref(), line);
            }
            // Thoughts, plans, modes and commands are the agent's own.
            _ => self.tell(line),
        }
    }

    fn end_message(&mut self, line: &dyn Line) {
        self.tell(line);
        self.over = true;
    }

    fn tell(&mut self, line: &dyn Line) {
        let text = std::mem::take(&mut self.piece);
        if !text.trim().is_empty() {
            line.tell(Event::Text { text });
        }
    }

    /// Its last words.
    pub(super) fn finish(mut self, line: &dyn Line) -> String {
        self.tell(line);
        self.last.trim().to_owned()
    }
}

fn result(
    id: String,
    status: Option<ToolCallStatus>,
    content: Option<&[ToolCallContent]>,
    raw: Option<&serde_json::Value>,
    line: &dyn Line,
) {
    let failed = match status {
        Some(ToolCallStatus::Completed) => false,
        Some(ToolCallStatus::Failed) => true,
        _ => return,
    };
    let mut text = String::new();
    for piece in content.unwrap_or_default() {
        match piece {
            ToolCallContent::Content(content) => match &content.content {
                ContentBlock::Text(shown) => text.push_str(&shown.text),
                _ => text.push_str("[no text]"),
            },
            ToolCallContent::Diff(diff) => text.push_str(&format!("[changed {}]", diff.path.display())),
            _ => {}
        }
        text.push('\n');
    }
    if let (true, Some(raw)) = (text.is_empty(), raw) {
        text = raw.to_string();
    }
    line.tell(Event::ToolResult { id, text: bounded(text.trim_end(), TOOL_BYTES), failed });
}

/// The first `bytes` of a text, in whole characters; a cut is told.
fn bounded(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let shown = beginning(text, bytes);
    format!("{shown}[… {} bytes left out …]", text.len() - shown.len())
}

/// Fails a stream whose lines have no end, before they fill the memory.
struct Lines<R> {
    from: R,
    since_line: usize,
}

impl<R: AsyncRead + Unpin> AsyncRead for Lines<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.from).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        self.since_line = match new.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => new.len() - end - 1,
            None => self.since_line + new.len(),
        };
        if self.since_line > MESSAGE_BYTES {
            return Poll::Ready(Err(std::io::Error::other("a message of the agent is longer than 64 MiB")));
        }
        read
    }
}
