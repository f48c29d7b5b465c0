//! Any agent program as implementer: a command template, run once a round in the workspace.
//!
//! `{prompt_file}` is the path of a file that holds what it is told, `{workspace}` the workspace's root, both as the command
//! sees them; `{prompt}` is the text itself. `{{` and `}}` stand for one brace. There is no stdin: what reads its prompt
//! there is wrapped as `["sh", "-c", "agent < \"$1\"", "sh", "{prompt_file}"]`. Exit code 0 means done; a silent hang ends
//! with the timeout.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::{Finish, ImplementError, Implementer, Room};
use crate::budget::Used;
use crate::line::Progress;
use crate::shell::{Command, Ran};
use crate::tools::output::ending;
use schemas::agent_job::{AgentProtocol, CommandImplementer};
use schemas::strict::did_you_mean;
use schemas::transcript::Event;

/// What stands for something.
const PLACEHOLDERS: [&str; 3] = ["prompt_file", "workspace", "prompt"];
/// Longest prompt as an argument: Linux takes no longer ones.
const ARGUMENT_BYTES: usize = 128 << 10;
/// As much of the end of what it wrote is kept as its last words, and told when it fails.
pub(super) const SAID_BYTES: usize = 4 << 10;
/// Without a timeout of its own and without a budget of time, a command is stopped after this; the job ends long before.
pub(super) const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A command template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Vec<Piece>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    PromptFile,
    Workspace,
    Prompt,
}

/// Why words are no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// There is no program.
    #[error("a program and its arguments are needed")]
    Empty,
    /// The program is decided by what it is told.
    #[error("the program itself cannot be `{{prompt}}` or `{{prompt_file}}`")]
    Program,
    /// A program that is spoken to is told its prompt there.
    #[error(
        "`{{prompt}}` and `{{prompt_file}}` have no place with the Agent Client Protocol: the prompt goes over stdin"
    )]
    Spoken,
    /// A name in braces that stands for nothing.
    #[error("word {word}: `{{{name}}}` stands for nothing; {hint}; a brace itself is written `{{{{`")]
    Unknown {
        /// Which word, from 0.
        word: usize,
        /// The name.
        name: String,
        /// What may have been meant.
        hint: String,
    },
    /// A brace without its other one.
    #[error("word {word}: a brace stands alone; a brace itself is written `{{{{` or `}}}}`")]
    Brace {
        /// Which word, from 0.
        word: usize,
    },
}

impl Template {
    /// Reads a template. To be called before anything runs.
    pub fn parse(words: &[String]) -> Result<Self, InvalidTemplate> {
        let words: Vec<Vec<Piece>> =
            words.iter().enumerate().map(|(i, word)| pieces(i, word)).collect::<Result<_, _>>()?;
        match words.first() {
            None => Err(InvalidTemplate::Empty),
            Some(program) if program.is_empty() => Err(InvalidTemplate::Empty),
            Some(program) if program.iter().any(|piece| matches!(piece, Piece::Prompt | Piece::PromptFile)) => {
                Err(InvalidTemplate::Program)
            }
            Some(_) => Ok(Self(words)),
        }
    }

    /// Reads the template of an implementer, by how it is spoken to.
    pub fn of(program: &CommandImplementer) -> Result<Self, InvalidTemplate> {
        let template = Self::parse(&program.command)?;
        let told = |piece: &Piece| matches!(piece, Piece::Prompt | Piece::PromptFile);
        match program.protocol {
            AgentProtocol::Acp if template.0.iter().flatten().any(told) => Err(InvalidTemplate::Spoken),
            AgentProtocol::Acp | AgentProtocol::None => Ok(template),
        }
    }

    /// Whether the prompt's text itself is an argument.
    fn takes_prompt(&self) -> bool {
        self.0.iter().flatten().any(|piece| *piece == Piece::Prompt)
    }

    /// The words with everything in its place.
    pub(super) fn words(&self, prompt: &str, prompt_file: &str, workspace: &str) -> Vec<String> {
        let word = |pieces: &Vec<Piece>| {
            let text = pieces.iter().map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::PromptFile => prompt_file,
                Piece::Workspace => workspace,
                Piece::Prompt => prompt,
            });
            text.collect::<String>()
        };
        self.0.iter().map(word).collect()
    }
}

fn pieces(word: usize, text: &str) -> Result<Vec<Piece>, InvalidTemplate> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            plain.push_str(&rest[..1]);
            rest = after;
            continue;
        }
        let inner = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let Some((name, after)) = inner.filter(|(name, _)| !name.contains('{')) else {
            return Err(InvalidTemplate::Brace { word });
        };
        let piece = match name {
            "prompt_file" => Piece::PromptFile,
            "workspace" => Piece::Workspace,
            "prompt" => Piece::Prompt,
            _ => {
                let hint = did_you_mean(name, &PLACEHOLDERS);
                return Err(InvalidTemplate::Unknown { word, name: name.chars().take(64).collect(), hint });
            }
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(piece);
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// Runs an agent program.
#[derive(Debug)]
pub struct CommandAgent {
    template: Template,
    timeout: Option<Duration>,
    used: Used,
}

impl CommandAgent {
    /// `timeout`: for one run; `used`: what earlier attempts used.
    pub fn new(template: Template, timeout: Option<Duration>, used: Used) -> Self {
        Self { template, timeout, used }
    }

    async fn run(&mut self, room: &Room<'_>, told: &str) -> Result<Finish, ImplementError> {
        if let Some(error) = room.allowance.exceeded(&self.used) {
            return Err(ImplementError::Budget(error));
        }
        let told = room.mask.text(told);
        if self.template.takes_prompt() && told.len() >= ARGUMENT_BYTES {
            let message =
                format!("the prompt has {} bytes, more than one argument can hold; use {{prompt_file}}", told.len());
            return Err(ImplementError::Failed(message));
        }
        // Linux takes no zero byte in an argument.
        let told = told.replace('\0', "\u{fffd}");
        let name = format!("prompt-{}.md", self.used.turns + 1);
        write(&room.shell.aside().join(&name), &told).await?;
        self.used.turns += 1;
        room.line.tell(Event::Prompt { text: told.clone() });
        let words =
            self.template.words(&told, &room.shell.sees(&name).to_string_lossy(), &room.shell.root().to_string_lossy());
        let left = room.allowance.until.map(|(until, _)| until.saturating_duration_since(Instant::now()));
        let limit = [self.timeout, left].into_iter().flatten().min().unwrap_or(LONGEST);
        let ran = room.shell.run(Command::new(words, limit)).await?;
        let said = said(&ran, room);
        room.keeper.turn(&Progress { used: self.used, summary: said.clone() }).await;
        if !said.is_empty() {
            room.line.tell(Event::Text { text: said.clone() });
        }
        if ran.timed_out
            && left.is_some_and(|left| left <= limit)
            && let Some(error) = room.allowance.exceeded(&self.used)
        {
            return Err(ImplementError::Budget(error));
        }
        if !ran.is_ok() {
            let how = format!("the agent program ended with {}", ran.how());
            let how = if ran.timed_out { format!("the agent program {}", ran.how()) } else { how };
            return Err(ImplementError::Failed(if said.is_empty() { how } else { format!("{how}: {said}") }));
        }
        Ok(Finish { said })
    }
}

impl Implementer for CommandAgent {
    fn work<'a>(&'a mut self, room: &'a Room<'a>, told: &'a str) -> BoxFuture<'a, Result<Finish, ImplementError>> {
        Box::pin(self.run(room, told))
    }

    fn used(&self) -> Used {
        self.used
    }
}

/// Replaces the file, never following what a command left in its place.
async fn write(path: &std::path::Path, text: &str) -> Result<(), ImplementError> {
    let wrong = |error: std::io::Error| ImplementError::Failed(format!("cannot write the prompt's file: {error}"));
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(wrong(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await.map_err(wrong)?;
    tokio::io::AsyncWriteExt::write_all(&mut file, text.as_bytes()).await.map_err(wrong)?;
    tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(wrong)
}

/// The end of what it wrote: of stdout, or of stderr where it failed or said nothing else. Masked.
fn said(ran: &Ran, room: &Room<'_>) -> String {
    let text = |kept: &crate::shell::Kept| room.mask.text(&kept.text()).trim().to_owned();
    let (stdout, stderr) = (text(&ran.stdout), text(&ran.stderr));
    let text = match (ran.is_ok(), stdout.is_empty(), stderr.is_empty()) {
        (true, false, _) | (false, _, true) => stdout,
        (true, true, _) | (false, true, false) => stderr,
        (false, false, false) => format!("{}\n{}", ending(&stdout, SAID_BYTES / 2), ending(&stderr, SAID_BYTES / 2)),
    };
    ending(&text, SAID_BYTES).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Template, InvalidTemplate> {
        Template::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn placeholders_become_what_they_stand_for_and_other_braces_stay() {
        let template =
            parse(&["agent", "-C{workspace}", "{prompt_file}", "say: {prompt}!", "{{a}} {{prompt}} ${{x}}"]).unwrap();
        let words = template.words("do {workspace}", "/p/1.md", "/w");
        assert_eq!(words, ["agent", "-C/w", "/p/1.md", "say: do {workspace}!", "{a} {prompt} ${x}"]);
    }

    #[test]
    fn an_agent_that_is_spoken_to_takes_no_prompt_as_argument() {
        let of = |word: &str, protocol| {
            let command = vec!["agent".to_owned(), word.to_owned()];
            Template::of(&CommandImplementer { command, protocol, timeout: None })
        };
        assert_eq!(of("{prompt}", AgentProtocol::Acp), Err(InvalidTemplate::Spoken));
        assert!(of("{workspace}", AgentProtocol::Acp).is_ok() && of("{prompt}", AgentProtocol::None).is_ok());
    }

    #[test]
    fn what_stands_for_nothing_is_refused_with_a_hint() {
        for (words, error) in [
            (
                vec!["a", "{promt}"],
                "word 1: `{promt}` stands for nothing; did you mean `prompt`?; a brace itself is written `{{`",
            ),
            (vec!["a", "{}"], "word 1: `{}` stands for nothing"),
            (vec!["a", "x{"], "word 1: a brace stands alone"),
            (vec!["a", "}"], "word 1: a brace stands alone"),
            (vec!["a", "{a{prompt}"], "word 1: a brace stands alone"),
            (vec!["{prompt}"], "the program itself cannot be"),
            (vec![""], "a program"),
            (vec![], "a program"),
        ] {
            let refused = parse(&words).expect_err(&words.join(" ")).to_string();
            assert!(refused.starts_with(error), "{refused}");
        }
    }
}
