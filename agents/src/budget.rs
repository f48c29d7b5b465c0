//! What a job may use up, and what it has used.

use std::time::Instant;

use schemas::{Code, HumanDuration, TaskError};
use serde::{Deserialize, Serialize};

/// What may be used, over all attempts of a job; a kind without a number is not bounded.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Answers of the model.
    pub turns: u32,
    /// Tokens in and out.
    pub tokens: Option<u64>,
    /// Money in millionths.
    pub cost_micros: Option<u64>,
    /// When implementing must be over, and the length of time that this is of, for people.
    pub until: Option<(Instant, HumanDuration)>,
    /// That is the end of the whole job's time, and no budget of its own.
    pub is_deadline: bool,
}

/// What was used, over all attempts of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Answers of the model.
    pub turns: u32,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Money in millionths, as far as prices are known.
    pub cost_micros: u64,
}

impl Allowance {
    /// Why nothing more may be begun, if so. Asked before each turn, so that a cap can never be passed by a whole turn.
    pub fn exceeded(&self, used: &Used) -> Option<TaskError> {
        let tokens = used.input_tokens + used.output_tokens;
        let message = if used.turns >= self.turns {
            format!("all {} turns are used", self.turns)
        } else if let Some(most) = self.tokens.filter(|most| tokens >= *most) {
            format!("{tokens} tokens are used of {most}")
        } else if let Some(most) = self.cost_micros.filter(|most| used.cost_micros >= *most) {
            let decimal = schemas::Decimal::from_micros;
            format!("{} of {} of money is used", decimal(used.cost_micros), decimal(most))
        } else if let Some((_, time)) = self.until.filter(|(until, _)| Instant::now() >= *until) {
            if self.is_deadline {
                return Some(TaskError::new(Code::TimedOut, format!("the time of the job, {time}, is over")));
            }
            format!("the time for implementing, {time}, is over")
        } else {
            return None;
        };
        Some(TaskError::new(Code::BudgetExceeded, message))
    }
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, more: Self) {
        self.turns += more.turns;
        self.input_tokens += more.input_tokens;
        self.output_tokens += more.output_tokens;
        self.cost_micros += more.cost_micros;
    }
}
