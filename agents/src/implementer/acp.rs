//! An agent program that speaks the Agent Client Protocol, version 1, over its stdin and stdout.
//!
//! One process and one session live through all rounds. The connection has no task of its own: it is driven while the
//! implementer works, and dropped half way the process is stopped with it. What the agent asks comes over a channel to
//! whoever works, where the room is: files are served from the workspace alone, permissions by policy or by people.

mod files;
mod session;

use std::time::{Duration, Instant};

use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::v1::schema::{
    CancelNotification, ClientCapabilities, ContentBlock, FileSystemCapabilities, Implementation, InitializeRequest,
    NewSessionRequest, PermissionOption, PermissionOptionKind, PromptRequest, RequestPermissionOutcome,
    RequestPermissionRequest, RequestPermissionResponse, SelectedPermissionOutcome, SessionId, StopReason, TextContent,
};
use agent_client_protocol::{Agent, Error, ErrorCode};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use schemas::transcript::Event;

use super::command::{LONGEST, SAID_BYTES, Template};
use super::{Finish, ImplementError, Implementer, Room};
use crate::budget::Used;
use crate::line::Progress;
use crate::shell::{Command, Ran, ShellError};
use crate::tools::output::ending;
use crate::tools::tree::Tree;
use session::{Asked, Live, Saying, lost};

/// An agent that was told to stop may take so long to say that it has.
const CANCEL: Duration = Duration::from_secs(5);
/// A process that broke off its conversation may take so long to end.
const END: Duration = Duration::from_secs(5);

/// What becomes of a request for permission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permissions {
    /// Granted, for this once where that is offered: the workspace and its shell are the bounds.
    #[default]
    Allow,
    /// People are asked; without an answer it is declined.
    Ask,
}

/// Speaks to an agent program.
pub struct AcpAgent {
    template: Template,
    timeout: Option<Duration>,
    permissions: Permissions,
    used: Used,
    live: Option<Live>,
}

/// Why a prompt was not answered by its end.
enum Broken {
    /// By the peer, or by the connection.
    Protocol(Error),
    /// It has this much time and no more.
    TimedOut,
    /// The process could not be run on.
    Shell(ShellError),
    /// The process ended.
    Ended(Ran),
}

impl AcpAgent {
    /// `timeout`: for one prompt; `used`: what earlier attempts used.
    pub fn new(template: Template, timeout: Option<Duration>, permissions: Permissions, used: Used) -> Self {
        Self { template, timeout, permissions, used, live: None }
    }

    async fn run(&mut self, room: &Room<'_>, told: &str) -> Result<Finish, ImplementError> {
        if let Some(error) = room.allowance.exceeded(&self.used) {
            return Err(ImplementError::Budget(error));
        }
        let told = room.mask.text(told);
        // Out of its place while it works: dropped half way, process and session are gone.
        let mut live = match self.live.take() {
            Some(live) => live,
            None => start(&self.template, room).await?,
        };
        self.used.turns += 1;
        room.line.tell(Event::Prompt { text: told.clone() });
        let left = room.allowance.until.map(|(until, _)| until.saturating_duration_since(Instant::now()));
        let limit = [self.timeout, left].into_iter().flatten().min().unwrap_or(LONGEST);
        let mut saying = Saying::default();
        let ended = converse(&mut live, room, &told, limit, self.permissions, &mut saying).await;
        let said = saying.finish(room.line);
        let said = room.mask.text(ending(&said, SAID_BYTES));
        room.keeper.turn(&Progress { used: self.used, summary: said.clone() }).await;
        match ended {
            Ok(StopReason::EndTurn) => {
                self.live = Some(live);
                Ok(Finish { said })
            }
            Ok(StopReason::Refusal) => {
                Err(ImplementError::Refused(if said.is_empty() { "without a word".into() } else { said }))
            }
            Ok(StopReason::MaxTokens) => Err(failed("it reached its most tokens")),
            Ok(StopReason::MaxTurnRequests) => Err(failed("it reached its most requests of one turn")),
            Ok(StopReason::Cancelled) => Err(failed("it says that it was cancelled")),
            Ok(other) => Err(failed(&format!("it stopped for a reason that is not known: {other:?}"))),
            Err(Broken::TimedOut) => {
                match room.allowance.exceeded(&self.used).filter(|_| left.is_some_and(|left| left <= limit)) {
                    Some(error) => Err(ImplementError::Budget(error)),
                    None => Err(failed(&format!("it was not done after {}", schemas::HumanDuration(limit)))),
                }
            }
            Err(Broken::Shell(error)) => Err(error.into()),
            Err(Broken::Ended(ran)) => Err(failed(&ended_with(&ran, room))),
            Err(Broken::Protocol(error)) => Err(broken(error, live, room).await),
        }
    }
}

async fn start(template: &Template, room: &Room<'_>) -> Result<Live, ImplementError> {
    let words = template.words("", "", &room.shell.root().to_string_lossy());
    let left = room.allowance.until.map(|(until, _)| until.saturating_duration_since(Instant::now()));
    let command = Command::new(words, left.unwrap_or(LONGEST) + CANCEL);
    Ok(Live::new(room.shell.open(command).await?))
}

/// Sends the prompt and serves the agent until it has answered.
async fn converse(
    live: &mut Live,
    room: &Room<'_>,
    told: &str,
    limit: Duration,
    permissions: Permissions,
    saying: &mut Saying,
) -> Result<StopReason, Broken> {
    let tree = Tree::open(room.tree).map_err(|error| Broken::Protocol(lost(error)))?;
    let deadline = tokio::time::sleep(limit);
    let mut deadline = std::pin::pin!(deadline);
    let (mut late, mut ran) = (false, None);
    let root = room.shell.root().to_owned();
    let session = &mut live.session;
    let connected = &mut live.connected;
    let sent = std::sync::Mutex::new(None);
    let talk = talk(connected, session, &root, told, &sent);
    let mut talk = std::pin::pin!(talk);
    let mut deciding: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    let stopped = loop {
        tokio::select! {
            biased;
            Some(asked) = live.asked.recv() => match asked {
                Asked::Update(update) => saying.hear(*update, room.line),
                Asked::Read(request, responder) => drop(responder.respond_with_result(files::read(&tree, &root, &request))),
                Asked::Write(request, responder) => drop(responder.respond_with_result(files::write(&tree, &root, &request))),
                Asked::Permission(request, responder) => {
                    let cancelled = late;
                    deciding.push(Box::pin(async move {
                        let outcome = match cancelled {
                            true => RequestPermissionOutcome::Cancelled,
                            false => decide(&request, permissions, room).await,
                        };
                        // The agent may have gone.
                        drop(responder.respond(RequestPermissionResponse::new(outcome)));
                    }));
                }
            },
            stopped = &mut talk => break stopped,
            Some(()) = deciding.next(), if !deciding.is_empty() => {}
            ended = &mut live.connection => break Err(Broken::Protocol(match ended {
                Ok(()) => lost("the connection is closed"),
                Err(error) => error,
            })),
            ended = &mut live.end, if ran.is_none() => {
                // What it wrote last may still be on its way.
                ran = Some(ended.map_err(Broken::Shell)?);
                deadline.as_mut().reset(tokio::time::Instant::now() + Duration::from_secs(1));
            }
            () = &mut deadline => match (&ran, late) {
                (Some(ran), _) => break Err(Broken::Ended(ran.clone())),
                (None, true) => break Err(Broken::TimedOut),
                (None, false) => {
                    late = true;
                    deciding.clear();
                    let sent = sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                    let Some((connection, session)) = sent else { break Err(Broken::TimedOut) };
                    if connection.send_notification(CancelNotification::new(session)).is_err() {
                        break Err(Broken::TimedOut);
                    }
                    deadline.as_mut().reset(tokio::time::Instant::now() + CANCEL);
                }
            },
        }
    };
    while let Ok(asked) = live.asked.try_recv() {
        if let Asked::Update(update) = asked {
            saying.hear(*update, room.line);
        }
    }
    match stopped {
        Ok(_) | Err(Broken::Protocol(_)) if late => Err(Broken::TimedOut),
        Err(Broken::Protocol(error)) => Err(ran.map_or(Broken::Protocol(error), Broken::Ended)),
        stopped => stopped,
    }
}

async fn decide(
    request: &RequestPermissionRequest,
    permissions: Permissions,
    room: &Room<'_>,
) -> RequestPermissionOutcome {
    let of_kind = |kinds: [PermissionOptionKind; 2]| {
        kinds.iter().find_map(|kind| request.options.iter().find(|option| option.kind == *kind))
    };
    let allow = of_kind([PermissionOptionKind::AllowOnce, PermissionOptionKind::AllowAlways]);
    let decline = of_kind([PermissionOptionKind::RejectOnce, PermissionOptionKind::RejectAlways]);
    let what = request.tool_call.fields.title.clone().unwrap_or_else(|| request.tool_call.tool_call_id.to_string());
    let chosen = match permissions {
        Permissions::Allow => allow,
        Permissions::Ask => {
            let names: Vec<String> = request.options.iter().map(|option| format!("`{}`", option.name)).collect();
            let question = format!(
                "The agent asks for permission: {what}\nAnswer with one of {}, `yes` or `no`.",
                names.join(", ")
            );
            let answer = room.line.ask(&room.mask.text(&question)).await.unwrap_or_default();
            answered(&answer, &request.options, allow).or(decline)
        }
    };
    let word = chosen.map_or("declined", |option| option.name.as_str());
    room.line.tell(Event::Note { text: format!("permission for {what}: {word}") });
    match chosen {
        Some(option) => RequestPermissionOutcome::Selected(SelectedPermissionOutcome::new(option.option_id.clone())),
        None => RequestPermissionOutcome::Cancelled,
    }
}

/// The connection broke; the process says best why.
async fn broken(error: Error, mut live: Live, room: &Room<'_>) -> ImplementError {
    if error.code == ErrorCode::AUTH_REQUIRED {
        return ImplementError::Rejected("the agent program wants to be logged in first".into());
    }
    let is_answer = live.is_open();
    if !is_answer && let Ok(Ok(ran)) = tokio::time::timeout(END, &mut live.end).await {
        return failed(&ended_with(&ran, room));
    }
    let data = error.data.as_ref().map(|data| format!(": {data}")).unwrap_or_default();
    failed(&room.mask.text(ending(&format!("{}{data}", error.message), SAID_BYTES)))
}

fn failed(why: &str) -> ImplementError {
    ImplementError::Failed(format!("the agent program: {why}"))
}

fn ended_with(ran: &Ran, room: &Room<'_>) -> String {
    let said = room.mask.text(&ran.stderr.text());
    match ending(said.trim(), SAID_BYTES) {
        "" => format!("it ended with {}", ran.how()),
        said => format!("it ended with {}: {said}", ran.how()),
    }
}

/// The option that an answer of people means.
fn answered<'a>(
    answer: &str,
    options: &'a [PermissionOption],
    allow: Option<&'a PermissionOption>,
) -> Option<&'a PermissionOption> {
    let answer = answer.trim().trim_matches('`').to_lowercase();
    let named =
        options.iter().find(|option| option.name.to_lowercase() == answer || option.option_id.to_string() == answer);
    named.or(allow.filter(|_| ["yes", "y", "ok", "allow"].contains(&answer.as_str())))
}

/// The handshake where there was none yet, then the prompt.
async fn talk(
    connected: &mut session::Connected,
    session: &mut Option<SessionId>,
    root: &std::path::Path,
    told: &str,
    sent: &std::sync::Mutex<Option<(ConnectionTo<Agent>, SessionId)>>,
) -> Result<StopReason, Broken> {
    let connection = connected.get().await.map_err(Broken::Protocol)?;
    let id = match session {
        Some(id) => id.clone(),
        None => {
            let files = FileSystemCapabilities::new().read_text_file(true).write_text_file(true);
            let hello = InitializeRequest::new(agent_client_protocol::schema::ProtocolVersion::V1)
                .client_capabilities(ClientCapabilities::new().fs(files))
                .client_info(Implementation::new("shoal", env!("CARGO_PKG_VERSION")));
            // An agent of another version is refused by the connection itself.
            connection.send_request(hello).block_task().await.map_err(Broken::Protocol)?;
            let new = connection.send_request(NewSessionRequest::new(root)).block_task().await;
            session.insert(new.map_err(Broken::Protocol)?.session_id).clone()
        }
    };
    *sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((connection.clone(), id.clone()));
    let prompt = PromptRequest::new(id, vec![ContentBlock::Text(TextContent::new(told))]);
    let answer = connection.send_request(prompt).block_task().await.map_err(Broken::Protocol)?;
    Ok(answer.stop_reason)
}

impl Implementer for AcpAgent {
    fn work<'a>(&'a mut self, room: &'a Room<'a>, told: &'a str) -> BoxFuture<'a, Result<Finish, ImplementError>> {
        Box::pin(self.run(room, told))
    }

    fn used(&self) -> Used {
        self.used
    }
}
