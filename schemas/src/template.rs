//! The command of an agent program, with places for what it is told.
//!
//! `{prompt_file}` is the path of a file that holds the text, `{workspace}` the workspace's root, both as the command sees
//! them; `{prompt}` is the text itself. `{{` and `}}` stand for one brace.

use crate::agent_job::{AgentProtocol, CommandImplementer};
use crate::strict::did_you_mean;

/// What stands for something.
const PLACEHOLDERS: [&str; 3] = ["prompt_file", "workspace", "prompt"];

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
    pub fn takes_prompt(&self) -> bool {
        self.0.iter().flatten().any(|piece| *piece == Piece::Prompt)
    }

    /// The words with everything in its place.
    pub fn words(&self, prompt: &str, prompt_file: &str, workspace: &str) -> Vec<String> {
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
