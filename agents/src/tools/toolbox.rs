//! Takes a model's calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::files::{self, DeleteFile, EditFile, ListFiles, MoveFile, ReadFile, WriteFile};
use super::output::{RESULT_BYTES, middle_cut};
use super::place::Place;
use super::schema;
use super::search::{self, Search};
use super::tree::{Tree, TreeError};
use super::walk::Bounds;
use crate::implementer::Room;
use crate::shell::{Command, Ran, ShellError};

/// A command's timeout where the model names none.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest that it may name.
const LONGEST_COMMAND: Duration = Duration::from_secs(1200);

/// What `run_command` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RunCommand {
    /// Line for `sh -c`.
    command: String,
    /// Folder to run it in, relative to the workspace's root; default the root.
    #[serde(default)]
    folder: Option<String>,
    /// It is stopped after so many seconds; default 120, at most 1200.
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

/// What `ask_people` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AskPeople {
    /// The question, with all that is needed to answer it.
    question: String,
}

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Names below a folder.
    ListFiles,
    /// Lines of a file.
    ReadFile,
    /// Lines that match.
    Search,
    /// A whole file.
    WriteFile,
    /// One place in a file.
    EditFile,
    /// A file away.
    DeleteFile,
    /// A file elsewhere.
    MoveFile,
    /// A command.
    RunCommand,
    /// A question.
    AskPeople,
}

impl Tool {
    /// In the order in which a model is shown them.
    pub const ALL: [Self; 9] = [
        Self::ListFiles,
        Self::ReadFile,
        Self::Search,
        Self::EditFile,
        Self::WriteFile,
        Self::DeleteFile,
        Self::MoveFile,
        Self::RunCommand,
        Self::AskPeople,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ListFiles => "list_files",
            Self::ReadFile => "read_file",
            Self::Search => "search",
            Self::WriteFile => "write_file",
            Self::EditFile => "edit_file",
            Self::DeleteFile => "delete_file",
            Self::MoveFile => "move_file",
            Self::RunCommand => "run_command",
            Self::AskPeople => "ask_people",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::ListFiles => "Lists files and folders. What .gitignore names is left out; links are not followed.",
            Self::ReadFile => "Reads lines of a text file. Large files are read in ranges of lines.",
            Self::Search => "Searches text files for a regular expression. What .gitignore names is left out.",
            Self::WriteFile => "Writes a whole file, new or in place of what is there.",
            Self::EditFile => "Replaces a piece of text that occurs exactly once in a file.",
            Self::DeleteFile => "Deletes a file.",
            Self::MoveFile => "Moves or renames a file or folder.",
            Self::RunCommand => {
                "Runs a command line in the workspace and answers its exit code and output. It has no terminal and no \
                 input; what it leaves running is stopped when it ends."
            }
            Self::AskPeople => {
                "Asks the people who follow this task, and waits for an answer. Only for what neither the repository \
                 nor the task can answer."
            }
        }
    }

    fn schema(self) -> Value {
        match self {
            Self::ListFiles => schema::of::<ListFiles>(),
            Self::ReadFile => schema::of::<ReadFile>(),
            Self::Search => schema::of::<Search>(),
            Self::WriteFile => schema::of::<WriteFile>(),
            Self::EditFile => schema::of::<EditFile>(),
            Self::DeleteFile => schema::of::<DeleteFile>(),
            Self::MoveFile => schema::of::<MoveFile>(),
            Self::RunCommand => schema::of::<RunCommand>(),
            Self::AskPeople => schema::of::<AskPeople>(),
        }
    }
}

/// What a call did, as far as others must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing was changed.
    Looked,
    /// This file was written, edited, moved or deleted. Masked.
    Changed(String),
    /// This command ended so; what it changed is not known. Masked.
    Ran(String, String),
    /// The call itself was wrong: no such tool, or arguments that cannot be read.
    Malformed,
}

/// What a call is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Masked and bounded.
    pub text: String,
    /// The call failed.
    pub failed: bool,
    /// What it did.
    pub effect: Effect,
}

/// Why a tool did not do what it was asked.
enum Failure {
    /// The model can do something about it.
    Told(String),
    /// The call cannot be read.
    Malformed(String),
    /// Commands cannot be run.
    Shell(Box<ShellError>),
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::Told(error.to_string())
    }
}

impl From<super::place::PlaceError> for Failure {
    fn from(error: super::place::PlaceError) -> Self {
        Self::Told(error.to_string())
    }
}

/// The tools over one open workspace.
pub struct Toolbox {
    tree: Arc<Tree>,
}

/// Tells a walk in another thread that nobody waits for it any more.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Toolbox {
    /// Over a room's workspace.
    pub fn open(room: &Room<'_>) -> Result<Self, TreeError> {
        Ok(Self { tree: Arc::new(Tree::open(room.tree)?) })
    }

    /// The tools as a chat-completions request names them.
    pub fn definitions() -> Vec<Value> {
        let define = |tool: Tool| {
            let function =
                json!({ "name": tool.name(), "description": tool.description(), "parameters": tool.schema() });
            json!({ "type": "function", "function": function })
        };
        Tool::ALL.into_iter().map(define).collect()
    }

    /// Does what a call asks for. Fails only where commands cannot be run at all; everything else is told to the model.
    ///
    /// Cancel safe: files are written in one step, and what runs is stopped by whoever owns the shell.
    pub async fn call(&self, room: &Room<'_>, name: &str, arguments: &str) -> Result<Answer, ShellError> {
        let done = match Tool::ALL.into_iter().find(|tool| tool.name() == name) {
            Some(tool) => self.used(room, tool, arguments).await,
            None => {
                let names = Tool::ALL.map(Tool::name).join(", ");
                Err(Failure::Malformed(format!("there is no tool {:?}; there are {names}", super::output::line(name))))
            }
        };
        let (text, failed, effect) = match done {
            Ok((text, effect)) => (text, matches!(&effect, Effect::Ran(_, how) if how != "exit code 0"), effect),
            Err(Failure::Told(text)) => (text, true, Effect::Looked),
            Err(Failure::Malformed(text)) => (text, true, Effect::Malformed),
            Err(Failure::Shell(error)) => return Err(*error),
        };
        // What was done is kept for a next attempt.
        let effect = match effect {
            Effect::Changed(file) => Effect::Changed(room.mask.text(&file)),
            Effect::Ran(command, how) => Effect::Ran(room.mask.text(&command), how),
            effect @ (Effect::Looked | Effect::Malformed) => effect,
        };
        Ok(Answer { text: middle_cut(&room.mask.text(&text), RESULT_BYTES), failed, effect })
    }

    async fn used(&self, room: &Room<'_>, tool: Tool, arguments: &str) -> Result<(String, Effect), Failure> {
        let root = room.shell.root();
        let file = |path: &str| Place::file(path, root);
        let changed = |place: &Place| Effect::Changed(place.to_string());
        match tool {
            Tool::ListFiles => {
                let args: ListFiles = parsed(tool, arguments)?;
                let start = Place::parse(args.path.as_deref().unwrap_or("."), root)?;
                let depth = args.depth.unwrap_or(3);
                let list = move |tree: &Tree, bounds: Bounds<'_>| files::list(tree, &start, depth, bounds);
                Ok((self.aside(list).await?, Effect::Looked))
            }
            Tool::ReadFile => {
                let args: ReadFile = parsed(tool, arguments)?;
                let (place, mask) = (file(&args.path)?, room.mask.clone());
                let read = move |tree: &Tree, bounds: Bounds<'_>| files::read(tree, &place, &args, &mask, &bounds);
                Ok((self.aside(read).await?, Effect::Looked))
            }
            Tool::Search => {
                let args: Search = parsed(tool, arguments)?;
                let start = Place::parse(args.path.as_deref().unwrap_or("."), root)?;
                let mask = room.mask.clone();
                let search = move |tree: &Tree, bounds: Bounds<'_>| search::search(tree, &start, &args, &mask, &bounds);
                self.aside(search).await?.map(|text| (text, Effect::Looked)).map_err(Failure::Told)
            }
            // Changes are small and made here and now: dropped half way, nothing goes on in another thread.
            Tool::WriteFile => {
                let args: WriteFile = parsed(tool, arguments)?;
                let place = file(&args.path)?;
                self.tree.write(&place, args.content.as_bytes())?;
                Ok((format!("wrote {} bytes to {}", args.content.len(), files::shown(&place)), changed(&place)))
            }
            Tool::EditFile => {
                let args: EditFile = parsed(tool, arguments)?;
                let place = file(&args.path)?;
                files::edit(&self.tree, &place, &args)?.map(|text| (text, changed(&place))).map_err(Failure::Told)
            }
            Tool::DeleteFile => {
                let args: DeleteFile = parsed(tool, arguments)?;
                let place = file(&args.path)?;
                self.tree.remove(&place)?;
                Ok((format!("deleted {}", files::shown(&place)), changed(&place)))
            }
            Tool::MoveFile => {
                let args: MoveFile = parsed(tool, arguments)?;
                let (from, to) = (file(&args.from)?, file(&args.to)?);
                self.tree.rename(&from, &to)?;
                Ok((format!("moved {} to {}", files::shown(&from), files::shown(&to)), changed(&to)))
            }
            Tool::RunCommand => run(room, parsed(tool, arguments)?).await,
            Tool::AskPeople => {
                let args: AskPeople = parsed(tool, arguments)?;
                let ask = room.line.ask(&args.question);
                let asked = match room.allowance.until {
                    None => Ok(ask.await),
                    Some((until, _)) => tokio::time::timeout_at(until.into(), ask).await,
                };
                match asked {
                    Ok(Ok(answer)) => Ok((answer, Effect::Looked)),
                    Ok(Err(unanswered)) => Err(Failure::Told(format!("{unanswered}; go on as you think best"))),
                    Err(_) => Err(Failure::Told("nobody answered, and no time is left to wait".to_owned())),
                }
            }
        }
    }

    /// Looks at files in a thread of its own, for as long as somebody waits for it.
    async fn aside<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Tree, Bounds<'_>) -> Result<T, TreeError> + Send + 'static,
    ) -> Result<T, Failure> {
        let (tree, gone) = (self.tree.clone(), Arc::new(AtomicBool::new(false)));
        let _gone = Gone(gone.clone());
        let looked = tokio::task::spawn_blocking(move || look(&tree, Bounds::new(&gone))).await;
        Ok(looked.map_err(|error| Failure::Told(format!("the tool failed: {error}")))??)
    }
}

fn parsed<T: JsonSchema + serde::de::DeserializeOwned>(tool: Tool, arguments: &str) -> Result<T, Failure> {
    schema::parsed(tool.name(), arguments).map_err(Failure::Malformed)
}

async fn run(room: &Room<'_>, args: RunCommand) -> Result<(String, Effect), Failure> {
    let folder = Place::parse(args.folder.as_deref().unwrap_or("."), room.shell.root())?;
    let mut timeout = args.timeout_seconds.map_or(COMMAND_TIMEOUT, Duration::from_secs).min(LONGEST_COMMAND);
    if let Some((until, _)) = room.allowance.until {
        timeout = timeout.min(until.saturating_duration_since(Instant::now()));
    }
    if timeout.is_zero() {
        return Err(Failure::Told("no time is left to run a command".to_owned()));
    }
    let mut command = Command::line(&args.command, timeout);
    command.folder = folder.path().to_owned();
    let ran = room.shell.run(command).await.map_err(|error| Failure::Shell(Box::new(error)))?;
    Ok((told(&ran), Effect::Ran(args.command, ran.how())))
}

/// A command's end as a model sees it. Stderr is shown whole as long as it fits into half.
fn told(ran: &Ran) -> String {
    let mut text = format!("{} ({:.1}s)\n", ran.how(), ran.wall.as_secs_f64());
    let stderr = middle_cut(ran.stderr.text().trim_end(), RESULT_BYTES / 2);
    let stdout = middle_cut(ran.stdout.text().trim_end(), RESULT_BYTES - 200 - stderr.len());
    for (name, stream) in [("stdout", stdout), ("stderr", stderr)] {
        if !stream.is_empty() {
            text.push_str(&format!("{name}:\n{stream}\n"));
        }
    }
    text
}
