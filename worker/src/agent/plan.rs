//! What a job runs: its playbook, or the tests that its repository names.

use std::path::Path;

use agents::playbook::{default_playbook, from_yaml, instructions};
use agents::workspace::Slot;
use schemas::agent_job::PlaybookSource;
use schemas::playbook::StepKind;
use schemas::{Code, Playbook, TaskError};

use super::attempt::{Attempt, Failed};

/// Largest playbook and largest file of instructions that is read.
pub(super) const LARGEST_FILE: u64 = 1 << 20;

/// What is run.
pub(super) struct Plan {
    pub(super) playbook: Playbook,
    pub(super) source: String,
    /// The command of its first tests, for the implementer to know.
    pub(super) test: Option<String>,
}

impl Attempt<'_> {
    /// What is run, decided by the task and by the base alone: nothing of the job's own can change it.
    pub(super) async fn plan(&self, slot: &Slot) -> Result<Plan, Failed> {
        let tree = slot.tree();
        let invalid = |message: String| TaskError::new(Code::ContextInvalid, message);
        let (playbook, source) = match &self.job.playbook {
            Some(PlaybookSource::Inline { playbook }) => (playbook.clone(), "playbook".to_owned()),
            Some(PlaybookSource::File { path }) => {
                let bytes = read_plain(&tree, path).map_err(|why| invalid(format!("the playbook `{path}`: {why}")))?;
                (from_yaml(&bytes).map_err(|error| error.to_task_error(path))?, path.clone())
            }
            Some(PlaybookSource::Named { name }) => {
                let stream = format!("KV_{}", self.worker.config.names.playbooks_bucket());
                let subject = self.worker.config.names.playbook_subject(name);
                let found = self.worker.js.last(&stream, &subject).await;
                let found = found.map_err(|error| {
                    TaskError::new(Code::WorkspaceFailed, format!("the playbook `{name}` cannot be read: {error}"))
                })?;
                let found = found.filter(|found| !found.is_marker());
                let found = found.ok_or_else(|| invalid(format!("there is no playbook of the name `{name}`")))?;
                (from_yaml(&found.payload).map_err(|error| error.to_task_error(name))?, "playbook".to_owned())
            }
            None => {
                let mut named = None;
                for file in instructions::FILES {
                    let Ok(bytes) = read_plain(&tree, file) else { continue };
                    if let Some(command) =
                        instructions::test_command(file, &bytes).map_err(|error| error.to_task_error(file))?
                    {
                        named = Some((command, file.to_owned()));
                        break;
                    }
                }
                match named {
                    Some((command, file)) => (default_playbook(Some(&command)), file),
                    None => {
                        self.warn("no tests are run: neither a playbook nor the repository names a command".to_owned());
                        (default_playbook(None), "none".to_owned())
                    }
                }
            }
        };
        let tests = |step: &&schemas::playbook::Step| step.kind == StepKind::Test;
        let test = playbook.steps.iter().find(tests).and_then(|step| step.command.clone());
        Ok(Plan { playbook, source, test })
    }
}

/// A file of the tree that is no link, in folders that are none: what a repository has may lead anywhere.
pub(super) fn read_plain(tree: &Path, path: &str) -> Result<Vec<u8>, String> {
    let mut at = tree.to_owned();
    for part in path.split('/') {
        at.push(part);
        let found = at.symlink_metadata().map_err(|error| error.to_string())?;
        if found.is_symlink() {
            return Err("it is a link, or behind one".to_owned());
        }
    }
    let found = at.symlink_metadata().map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("it is no file".to_owned());
    }
    if found.len() > LARGEST_FILE {
        return Err(format!("it has {} bytes, more than the {LARGEST_FILE} that are read", found.len()));
    }
    std::fs::read(&at).map_err(|error| error.to_string())
}
