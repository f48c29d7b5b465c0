//! The playbook: read from YAML, run step by step around the implementer.

pub mod instructions;
mod run;
mod told;

pub use run::{Author, Ended, Run};

use schemas::playbook::Step;
use schemas::strict::InvalidTask;
use schemas::{Code, Playbook, TaskError, strict};

/// Largest text of a playbook.
pub const PLAYBOOK_BYTES: usize = 64 << 10;

/// Why a text is no playbook.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlaybook {
    /// It is larger than a playbook may be.
    #[error("larger than {PLAYBOOK_BYTES} bytes")]
    TooLarge,
    /// It cannot be read.
    #[error("no YAML: {0}")]
    Yaml(String),
    /// A field of it is wrong.
    #[error(transparent)]
    Field(#[from] InvalidTask),
}

impl InvalidPlaybook {
    /// The same for the record. `source`: where the playbook is from.
    pub fn to_task_error(&self, source: &str) -> TaskError {
        TaskError::new(Code::ContextInvalid, format!("the playbook of {source}: {self}"))
    }
}

/// Reads a playbook as a submitter's: nothing unknown, nothing twice, nothing wrong.
pub fn from_yaml(text: &[u8]) -> Result<Playbook, InvalidPlaybook> {
    Ok(strict::playbook(&yaml(text)?, "")?)
}

/// A bounded YAML document of one file.
fn yaml(text: &[u8]) -> Result<serde_json::Value, InvalidPlaybook> {
    if text.len() > PLAYBOOK_BYTES {
        return Err(InvalidPlaybook::TooLarge);
    }
    let text = std::str::from_utf8(text).map_err(|error| InvalidPlaybook::Yaml(error.to_string()))?;
    // Aliases may make much of little; a playbook has no use for more than these.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: 16,
            max_nodes: 10_000,
            max_events: 40_000,
            max_aliases: 200,
            max_total_scalar_bytes: 4 * PLAYBOOK_BYTES,
        },
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| InvalidPlaybook::Yaml(error.to_string().chars().take(500).collect()))
}

/// What is run where the job names no playbook: the implementer, then the tests that the repository's instructions name.
pub fn default_playbook(test: Option<&str>) -> Playbook {
    let steps = [Some(Step::implement()), test.map(Step::test)];
    Playbook { name: "default".to_owned(), steps: steps.into_iter().flatten().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_playbook_is_read_from_yaml() {
        let playbook = from_yaml(
            b"# the service\nname: rust\nsteps:\n  - name: lint\n    command: |\n      cargo clippy\n      cargo fmt --check\n    \
              timeout: 5m\n    fail_fast: false\n  - {name: test, kind: test, command: cargo test, retry_count: 1, \
              condition: \"steps.lint.outcome == 'passed'\"}\n",
        )
        .unwrap();
        assert_eq!(playbook.steps[0].command.as_deref(), Some("cargo clippy\ncargo fmt --check\n"));
        assert!(!playbook.steps[0].fail_fast && playbook.steps[1].retry_count == 1);
    }

    #[test]
    fn the_playbook_of_the_docs_is_one() {
        let page = include_str!("../../../docs/playbooks.md");
        let (_, rest) = page.split_once("```yaml\n").unwrap();
        let playbook = from_yaml(rest.split_once("```").unwrap().0.as_bytes()).unwrap();
        assert_eq!(playbook.steps.len(), 4);
    }

    #[test]
    fn a_mistake_in_yaml_is_told() {
        let bomb = {
            let mut text = String::from("a0: &a0 [x, x]\n");
            (1..30).for_each(|i| text.push_str(&format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1)));
            text
        };
        for (text, words) in [
            ("name: a\nname: b\nsteps: []\n", "name"),
            ("name: [", "no YAML"),
            (
                "name: a\nsteps:\n  - {name: t, command: x, comand: y}\n",
                "steps[0].comand`: unknown field; did you mean `command`?",
            ),
            ("name: a\nsteps:\n  - {name: t, command: x, condition: attempt}\n", "steps[0].condition"),
            ("name: a\nsteps: {}\n", "steps"),
            ("- a\n", "object"),
            ("", "object"),
            ("name: a\nsteps: []\n---\nname: b\n", "no YAML"),
            (&bomb, "no YAML"),
        ] {
            let error = from_yaml(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert_eq!(from_yaml(&vec![b' '; PLAYBOOK_BYTES + 1]), Err(InvalidPlaybook::TooLarge));
        assert!(matches!(from_yaml(b"name: \xff"), Err(InvalidPlaybook::Yaml(_))));
    }

    #[test]
    fn the_default_playbook_passes_the_door() {
        for playbook in [default_playbook(None), default_playbook(Some("make check"))] {
            assert_eq!(strict::playbook(&serde_json::to_value(&playbook).unwrap(), ""), Ok(playbook));
        }
    }
}
