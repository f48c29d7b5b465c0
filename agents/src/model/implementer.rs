//! The loop: asks the model, does what it calls, until it says that it is done.
//!
//! ```text
//! people's words -> budget -> ask (again, while it may pass) -> what came?
//!   calls             done in order, answered, kept; next turn
//!   words alone       done
//!   declined          Refused
//!   nothing           nudged, three times, then Malformed
//!   cut for length    told to go on, five times, then Malformed
//!   unreadable calls  told what is wrong, five turns, then Malformed
//!   a circle          warned once, then Stuck
//! ```
//!
//! A turn is added to the conversation as a whole once it is over, so that the next request is well-formed wherever one
//! broke off.

mod turn;

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use schemas::agent_job::TOLD_BYTES;
use schemas::transcript::Event;
use serde_json::Value;

use super::answer::{Answer, Call, End};
use super::client::Client;
use super::conversation::{Conversation, Message};
use super::summary::Summary;
use super::watch::{Noticed, Watch};
use crate::budget::Used;
use crate::implementer::{Finish, ImplementError, Implementer, Room};
use crate::line::Progress;
use crate::retry::Retry;
use crate::tools::output::{beginning, middle_cut};
use crate::tools::{Effect, Toolbox};

/// Empty answers in a row.
const EMPTY: u32 = 3;
/// Answers in a row that were cut for their length.
const CUT: u32 = 5;
/// Turns in a row whose calls could not be read.
const UNREADABLE: u32 = 5;
/// Bytes of last words that are passed on.
const SAID_BYTES: usize = 8_000;

/// Bounds beside the budget.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of a conversation beyond which older results are shortened.
    pub context_tokens: u64,
    /// How often a request is tried, and how long apart.
    pub retry: Retry,
}

impl Default for Limits {
    /// 100,000 tokens; three tries.
    fn default() -> Self {
        Self { context_tokens: 100_000, retry: Retry::default() }
    }
}

/// A model that works with [`Toolbox`].
pub struct ModelImplementer {
    client: Client,
    limits: Limits,
    tools: Vec<Value>,
    /// Bytes of them.
    tools_bytes: usize,
    conversation: Conversation,
    /// Of an earlier attempt; told with the first task.
    resume: Option<String>,
    used: Used,
    summary: Summary,
    watch: Watch,
    /// Ids that calls had: some endpoints use the same ones again.
    ids: HashSet<String>,
    /// Tokens read and bytes sent, of the last request that the endpoint counted.
    scale: (u64, u64),
    chances: Chances,
    estimate_told: bool,
}

/// How often in a row something went wrong.
#[derive(Debug, Default)]
struct Chances {
    empty: u32,
    cut: u32,
    unreadable: u32,
}

impl ModelImplementer {
    /// One that goes on from an earlier attempt's progress, if there is one: what was used counts, and what was done is
    /// told to the model.
    pub fn new(client: Client, limits: Limits, resume: Option<Progress>) -> Self {
        let tools = Toolbox::definitions();
        let (used, summary) = resume.map_or_else(Default::default, |progress| (progress.used, progress.summary));
        Self {
            client,
            limits,
            tools_bytes: tools.iter().map(|tool| tool.to_string().len()).sum(),
            tools,
            conversation: Conversation::default(),
            resume: Some(summary.clone()).filter(|summary| !summary.is_empty()),
            used,
            summary: Summary::after(&summary),
            watch: Watch::default(),
            ids: HashSet::new(),
            // Until the endpoint says better.
            scale: (1, 4),
            chances: Chances::default(),
            estimate_told: false,
        }
    }

    async fn worked(&mut self, room: &Room<'_>, told: &str) -> Result<Finish, ImplementError> {
        let toolbox = Toolbox::open(room).map_err(|error| ImplementError::Failed(error.to_string()))?;
        self.begin(room, told);
        loop {
            self.hear(room);
            let answer = self.turn(room).await?;
            let taken = self.take(room, &toolbox, answer).await;
            // Paid is paid, however it ended.
            room.keeper.turn(&self.progress()).await;
            let finish = taken?;
            // Words that came while the model found its last ones are heard first.
            if let Some(finish) = finish
                && !self.hear(room)
            {
                return Ok(finish);
            }
        }
    }

    fn begin(&mut self, room: &Room<'_>, told: &str) {
        if self.conversation.messages().is_empty() {
            let root = room.shell.root().display().to_string();
            self.conversation = Conversation::new(&include_str!("system.md").replace("{root}", &root));
        }
        let told = match self.resume.take() {
            None => told.to_owned(),
            Some(summary) => format!(
                "{told}\n\nAn earlier attempt at this was cut off. What it changed is in the workspace already. \
                 Look at it, and go on from there. What it did:\n\n{summary}"
            ),
        };
        self.chances = Chances::default();
        self.watch.told();
        self.tell(room, &told);
    }

    /// Puts words into the conversation that are the job's, and shows them to people.
    fn tell(&mut self, room: &Room<'_>, text: &str) {
        let text = middle_cut(&room.mask.text(text), TOLD_BYTES);
        room.line.tell(Event::Prompt { text: text.clone() });
        self.conversation.tell(text);
    }

    /// Puts people's words into the conversation, if there are any.
    fn hear(&mut self, room: &Room<'_>) -> bool {
        let words = room.line.heard();
        for words in &words {
            let words = middle_cut(&room.mask.text(words), TOLD_BYTES);
            self.conversation.tell(format!("Someone who follows this task says:\n{words}"));
            self.watch.told();
        }
        !words.is_empty()
    }

    /// Does what an answer asks for. With a finish, the model is done.
    async fn take(
        &mut self,
        room: &Room<'_>,
        toolbox: &Toolbox,
        mut answer: Answer,
    ) -> Result<Option<Finish>, ImplementError> {
        let text = room.mask.text(&answer.text);
        if !text.trim().is_empty() {
            room.line.tell(Event::Text { text: text.clone() });
            self.summary.said(&text);
        }
        let refusal = room.mask.text(beginning(&answer.refusal, SAID_BYTES));
        if !refusal.trim().is_empty() && answer.calls.is_empty() {
            room.line.tell(Event::Text { text: refusal.clone() });
            return Err(ImplementError::Refused(beginning(&refusal, 600).to_owned()));
        }
        if answer.end == End::Filtered {
            return Err(ImplementError::Refused("a content filter of the endpoint ended its answer".to_owned()));
        }
        let was_cut = answer.end == End::Length;
        if was_cut {
            // The last call may be half a one.
            answer.calls.retain(|call| is_object(&call.function.arguments));
            self.chances.cut += 1;
            if self.chances.cut >= CUT {
                let words = format!("{CUT} answers in a row were cut for their length");
                return Err(ImplementError::Malformed(words));
            }
        } else {
            self.chances.cut = 0;
        }
        let content = Some(text.clone()).filter(|text| !text.trim().is_empty());
        if answer.calls.is_empty() {
            if content.is_some() {
                self.conversation.push(Message::Assistant { content, tool_calls: Vec::new() });
                self.chances.empty = 0;
            }
            if was_cut {
                self.tell(
                    room,
                    "Your answer was cut off: it was longer than one answer may be. Go on from where it was cut. Write \
                     large files in several steps.",
                );
                return Ok(None);
            }
            if !text.trim().is_empty() {
                return Ok(Some(Finish { said: middle_cut(text.trim(), SAID_BYTES) }));
            }
            self.chances.empty += 1;
            if self.chances.empty >= EMPTY {
                let words = format!("the model gave {EMPTY} empty answers in a row");
                return Err(ImplementError::Malformed(words));
            }
            self.tell(
                room,
                "Your last answer was empty. Go on with the task by calling a tool, or, if it is done, say what you did.",
            );
            return Ok(None);
        }
        self.chances.empty = 0;
        self.calls(room, toolbox, content, answer.calls).await?;
        if was_cut {
            self.tell(room, "Your last answer was cut off; what could be read of it was done. Go on.");
        }
        Ok(None)
    }

    /// Does calls in order, and answers them.
    async fn calls(
        &mut self,
        room: &Room<'_>,
        toolbox: &Toolbox,
        content: Option<String>,
        calls: Vec<Call>,
    ) -> Result<(), ImplementError> {
        let (mut made, mut results, mut told) = (Vec::new(), Vec::new(), Vec::new());
        let (mut readable, mut changed) = (false, false);
        for call in calls {
            let id = self.own_id(call.id);
            let (name, arguments) = (call.function.name, call.function.arguments);
            let event =
                |name: &str| Event::ToolCall { id: id.clone(), name: name.to_owned(), arguments: arguments.clone() };
            room.line.tell(event(&name));
            let answered = toolbox.call(room, &name, &arguments).await?;
            let (text, failed) = (answered.text.clone(), answered.failed);
            room.line.tell(Event::ToolResult { id: id.clone(), text, failed });
            self.summary.did(&answered.effect);
            readable |= answered.effect != Effect::Malformed;
            changed |= matches!(answered.effect, Effect::Changed(_)) && !answered.failed;
            // A command's time, on the first line, is never the same twice.
            let result = match &answered.effect {
                Effect::Ran(_, how) => {
                    format!("{how}\n{}", answered.text.split_once('\n').map_or("", |(_, rest)| rest))
                }
                Effect::Looked | Effect::Changed(_) | Effect::Malformed => answered.text.clone(),
            };
            told.push((name.clone(), arguments.clone(), result));
            // Endpoints read these again, and fail where they cannot.
            let arguments = if is_object(&arguments) { arguments } else { "{}".to_owned() };
            made.push(Call::new(id.clone(), sendable(&name), arguments));
            results.push(Message::Tool { tool_call_id: id, content: answered.text });
        }
        self.conversation.push(Message::Assistant { content, tool_calls: made });
        results.into_iter().for_each(|result| self.conversation.push(result));
        if !readable {
            self.chances.unreadable += 1;
            if self.chances.unreadable >= UNREADABLE {
                let words = format!("the calls of {UNREADABLE} turns in a row could not be read");
                return Err(ImplementError::Malformed(words));
            }
            return Ok(());
        }
        self.chances.unreadable = 0;
        let calls = told.iter().map(|(name, arguments, result)| (name.as_str(), arguments.as_str(), result.as_str()));
        match self.watch.turn(calls, changed) {
            Noticed::Fine => {}
            Noticed::Warn(why) => {
                let words = format!(
                    "You are going round in circles: {why}. Do something else: think about what you have learned, try \
                     another way, ask people, or, if you cannot go on, say why and call no tool."
                );
                self.tell(room, &words);
            }
            Noticed::Stuck(why) => {
                return Err(ImplementError::Stuck(format!("the model went round in circles, though warned: {why}")));
            }
        }
        Ok(())
    }

    /// An id that no call had before.
    fn own_id(&mut self, id: String) -> String {
        let mut own = id;
        let mut number = self.ids.len();
        while own.is_empty() || own.len() > 200 || self.ids.contains(&own) {
            own = format!("call_shoal_{number}");
            number += 1;
        }
        self.ids.insert(own.clone());
        own
    }

    fn progress(&self) -> Progress {
        Progress { used: self.used, summary: self.summary.text() }
    }
}

fn is_object(arguments: &str) -> bool {
    serde_json::from_str::<serde_json::Map<String, Value>>(arguments).is_ok()
}

/// A name as the protocol allows it.
fn sendable(name: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match name.chars().filter(allowed).take(64).collect::<String>() {
        name if name.is_empty() => "unknown".to_owned(),
        name => name,
    }
}

impl Implementer for ModelImplementer {
    fn work<'a>(&'a mut self, room: &'a Room<'a>, told: &'a str) -> BoxFuture<'a, Result<Finish, ImplementError>> {
        Box::pin(self.worked(room, told))
    }

    fn used(&self) -> Used {
        self.used
    }

    fn model(&self) -> Option<String> {
        Some(self.client.settings().model.clone())
    }
}
