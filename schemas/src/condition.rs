//! Conditions of playbook steps: a small language over facts of the run. Parsed and type-checked as a whole before anything
//! runs; evaluating cannot fail.
//!
//! ```text
//! condition  = all { "or" all }
//! all        = negation { "and" negation }
//! negation   = "not" negation | comparison
//! comparison = operand [ ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) operand ]
//! operand    = name | text | number | "true" | "false" | "(" condition ")"
//! ```
//!
//! Texts stand in `"…"` or `'…'` with `\` before a quote or a `\`; numbers are whole. Numbers compare with numbers in each
//! way, texts with texts and truths with truths by `==` and `!=` alone. [`NAMES`] lists the names.

use std::collections::BTreeMap;
use std::fmt;

use crate::strict::did_you_mean;
use crate::transcript::{ChangeReport, StepOutcome, TestCounts};

mod parse;

/// Longest condition.
pub const CONDITION_BYTES: usize = 1_000;
/// Deepest nesting of parentheses and `not`.
pub const CONDITION_DEPTH: u32 = 32;

/// Every name, its type, what it says. A text that the task does not set is empty; a number that is not known is 0.
pub const NAMES: [(&str, Type, &str); 17] = [
    ("task.id", Type::Text, "id of the task"),
    ("task.queue", Type::Text, "its queue"),
    ("task.title", Type::Text, "its title"),
    ("task.spec", Type::Text, "its specification"),
    ("task.skill", Type::Text, "the skill that it needs"),
    ("task.repository", Type::Text, "its repository"),
    ("task.base", Type::Text, "the branch that it begins from"),
    ("task.branch", Type::Text, "the branch that it makes"),
    ("attempt", Type::Number, "attempt of the task, from 1"),
    ("round", Type::Number, "how often the implementer has worked in this attempt"),
    ("tests.passed", Type::Number, "tests of the last `test` step that passed"),
    ("tests.failed", Type::Number, "that failed"),
    ("tests.skipped", Type::Number, "that were skipped"),
    ("change.files", Type::Number, "files that the change touches, as it is now"),
    ("change.insertions", Type::Number, "lines that it adds"),
    ("change.deletions", Type::Number, "lines that it removes"),
    (
        "steps.<name>.…",
        Type::Text,
        "an earlier step: `outcome` (\"passed\", \"failed\", \"skipped\"), `exit_code` (-1 for none)",
    ),
];

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `true` or `false`.
    Truth,
    /// A whole number.
    Number,
    /// A text.
    Text,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Truth => "a truth",
            Self::Number => "a number",
            Self::Text => "a text",
        })
    }
}

/// A condition that is well formed, and whose names are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition(Expression);

/// Why a text is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {problem}")]
pub struct InvalidCondition {
    /// Where, in characters from 1.
    pub at: usize,
    /// What is there, and what was expected.
    pub problem: String,
}

/// What conditions are asked about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Texts of the task by their full name, as `task.id`; one that is absent is empty.
    pub task: BTreeMap<String, String>,
    /// Attempt of the task.
    pub attempt: u64,
    /// How often the implementer has worked in this attempt.
    pub round: u64,
    /// Steps that ended, with their exit code.
    pub steps: BTreeMap<String, (StepOutcome, Option<i32>)>,
    /// Of the last test step.
    pub tests: TestCounts,
    /// As it is now.
    pub change: ChangeReport,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    Truth(bool),
    Number(i64),
    Text(String),
    Name(Name),
    Not(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Compare(Box<Expression>, Comparison, Box<Expression>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Plain(&'static str, Type),
    Outcome(String),
    ExitCode(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

#[derive(PartialEq, PartialOrd)]
enum Value<'a> {
    Truth(bool),
    Number(i64),
    Text(&'a str),
}

impl Condition {
    /// Reads a condition. `earlier`: the steps that it may name.
    pub fn parse(text: &str, earlier: &[&str]) -> Result<Self, InvalidCondition> {
        parse::condition(text, earlier).map(Self)
    }

    /// Whether it holds.
    pub fn holds(&self, facts: &Facts) -> bool {
        self.0.value(facts) == Value::Truth(true)
    }

    /// Whether it asks about the change, which takes a while to find out.
    pub fn asks_about_change(&self) -> bool {
        self.0.any_name(&|name| matches!(name, Name::Plain(name, _) if name.starts_with("change.")))
    }
}

impl Expression {
    fn value<'a>(&'a self, facts: &'a Facts) -> Value<'a> {
        let truth = |expression: &Self| expression.value(facts) == Value::Truth(true);
        match self {
            Self::Truth(truth) => Value::Truth(*truth),
            Self::Number(number) => Value::Number(*number),
            Self::Text(text) => Value::Text(text),
            Self::Name(name) => name.value(facts),
            Self::Not(inner) => Value::Truth(!truth(inner)),
            Self::And(all) => Value::Truth(all.iter().all(truth)),
            Self::Or(any) => Value::Truth(any.iter().any(truth)),
            Self::Compare(left, comparison, right) => {
                let (left, right) = (left.value(facts), right.value(facts));
                Value::Truth(match comparison {
                    Comparison::Equal => left == right,
                    Comparison::Unequal => left != right,
                    Comparison::Less => left < right,
                    Comparison::AtMost => left <= right,
                    Comparison::More => left > right,
                    Comparison::AtLeast => left >= right,
                })
            }
        }
    }

    fn kind(&self) -> Type {
        match self {
            Self::Number(_) | Self::Name(Name::ExitCode(_)) => Type::Number,
            Self::Text(_) | Self::Name(Name::Outcome(_)) => Type::Text,
            Self::Name(Name::Plain(_, kind)) => *kind,
            Self::Truth(_) | Self::Not(_) | Self::And(_) | Self::Or(_) | Self::Compare(..) => Type::Truth,
        }
    }

    fn any_name(&self, asked: &dyn Fn(&Name) -> bool) -> bool {
        match self {
            Self::Name(name) => asked(name),
            Self::Not(inner) => inner.any_name(asked),
            Self::And(all) | Self::Or(all) => all.iter().any(|one| one.any_name(asked)),
            Self::Compare(left, _, right) => left.any_name(asked) || right.any_name(asked),
            Self::Truth(_) | Self::Number(_) | Self::Text(_) => false,
        }
    }
}

impl Name {
    fn read(text: &str, earlier: &[&str]) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("steps.") {
            let (step, field) = rest.rsplit_once('.').unwrap_or((rest, ""));
            if !earlier.contains(&step) {
                return Err(match earlier {
                    [] => format!("`{text}` names a step, and none comes earlier"),
                    _ => format!("`{text}`: no earlier step is called `{step}`; {}", did_you_mean(step, earlier)),
                });
            }
            return match field {
                "outcome" => Ok(Self::Outcome(step.to_owned())),
                "exit_code" => Ok(Self::ExitCode(step.to_owned())),
                _ => Err(format!("`{text}`: a step has an `outcome` and an `exit_code`")),
            };
        }
        match NAMES.iter().find(|(name, ..)| *name == text) {
            Some((name, kind, _)) => Ok(Self::Plain(name, *kind)),
            None => {
                let known: Vec<&str> = NAMES.iter().map(|(name, ..)| *name).collect();
                Err(format!("unknown name `{text}`; {}", did_you_mean(text, &known)))
            }
        }
    }

    fn value<'a>(&self, facts: &'a Facts) -> Value<'a> {
        let number = |number: u64| Value::Number(i64::try_from(number).unwrap_or(i64::MAX));
        let step = |name: &str| facts.steps.get(name);
        match self {
            // A step that has not run yet cannot be named; one that is missing all the same was skipped.
            Self::Outcome(name) => Value::Text(match step(name) {
                Some((StepOutcome::Passed, _)) => "passed",
                Some((StepOutcome::Failed, _)) => "failed",
                Some((StepOutcome::Skipped, _)) | None => "skipped",
                Some((StepOutcome::Newer(word), _)) => word.as_str(),
            }),
            Self::ExitCode(name) => Value::Number(step(name).and_then(|(_, code)| *code).unwrap_or(-1).into()),
            Self::Plain("attempt", _) => number(facts.attempt),
            Self::Plain("round", _) => number(facts.round),
            Self::Plain("tests.passed", _) => number(facts.tests.passed),
            Self::Plain("tests.failed", _) => number(facts.tests.failed),
            Self::Plain("tests.skipped", _) => number(facts.tests.skipped),
            Self::Plain("change.files", _) => number(facts.change.files.into()),
            Self::Plain("change.insertions", _) => number(facts.change.insertions),
            Self::Plain("change.deletions", _) => number(facts.change.deletions),
            Self::Plain(text, _) => Value::Text(facts.task.get(*text).map_or("", String::as_str)),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.print(f, 0)
    }
}

impl Expression {
    /// `place`: 0 where everything may stand, 1 inside `or`, 2 inside `and`, 3 after `not`, 4 beside a comparison.
    fn print(&self, f: &mut fmt::Formatter<'_>, place: u8) -> fmt::Result {
        let own = match self {
            Self::Or(_) => 0,
            Self::And(_) => 1,
            Self::Not(_) => 2,
            Self::Compare(..) => 3,
            Self::Truth(_) | Self::Number(_) | Self::Text(_) | Self::Name(_) => 4,
        };
        if own < place {
            f.write_str("(")?;
        }
        let chain = |f: &mut fmt::Formatter<'_>, all: &[Self], word: &str| {
            all.iter().enumerate().try_for_each(|(i, one)| {
                f.write_str(if i == 0 { "" } else { word })?;
                one.print(f, own + 1)
            })
        };
        match self {
            Self::Or(any) => chain(f, any, " or ")?,
            Self::And(all) => chain(f, all, " and ")?,
            Self::Not(inner) => {
                f.write_str("not ")?;
                inner.print(f, own)?;
            }
            Self::Compare(left, comparison, right) => {
                left.print(f, 4)?;
                write!(f, " {comparison} ")?;
                right.print(f, 4)?;
            }
            Self::Truth(truth) => write!(f, "{truth}")?,
            Self::Number(number) => write!(f, "{number}")?,
            Self::Text(text) => write!(f, "\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))?,
            Self::Name(Name::Plain(name, _)) => f.write_str(name)?,
            Self::Name(Name::Outcome(step)) => write!(f, "steps.{step}.outcome")?,
            Self::Name(Name::ExitCode(step)) => write!(f, "steps.{step}.exit_code")?,
        }
        if own < place {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Equal => "==",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
        })
    }
}

#[cfg(test)]
mod tests;
