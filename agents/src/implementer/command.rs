//! Any agent program as implementer: a command template, run once a round in the workspace.
//!
//! What the template's placeholders stand for: [`schemas::template`]. There is no stdin: what reads its prompt there is
//! wrapped as `["sh", "-c", "agent < \"$1\"", "sh", "{prompt_file}"]`. Exit code 0 means done; a silent hang ends with the
//! timeout.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::{Finish, ImplementError, Implementer, Room};
use crate::budget::Used;
use crate::line::Progress;
use crate::shell::{Command, Ran};
use crate::tools::output::ending;
pub use schemas::template::{InvalidTemplate, Template};
use schemas::transcript::Event;

/// Longest prompt as an argument: Linux takes no longer ones.
const ARGUMENT_BYTES: usize = 128 << 10;
/// As much of the end of what it wrote is kept as its last words, and told when it fails.
pub(super) const SAID_BYTES: usize = 4 << 10;
/// Without a timeout of its own and without a budget of time, a command is stopped after this; the job ends long before.
pub(super) const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

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
