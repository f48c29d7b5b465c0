//! One turn: asks, again where that may help, within what may be used; and counts.

use schemas::transcript::Event;
use schemas::{Code, TaskError};
use tokio::time::Instant;

use super::ModelImplementer;
use crate::budget::Used;
use crate::implementer::{ImplementError, Room};
use crate::model::answer::{Answer, Usage};
use crate::model::client::{Failed, Failure};

/// Fewer tokens than this are not worth a request.
const LEAST_OUTPUT: u64 = 16;

impl ModelImplementer {
    /// Asks for one answer, again where that may help, and counts it.
    pub(super) async fn turn(&mut self, room: &Room<'_>) -> Result<Answer, ImplementError> {
        self.fit(room);
        let (mut tried, mut shortened) = (0, 0);
        loop {
            let most_output = self.allowed(room).map_err(|error| *error)?;
            if tried == 0 && shortened == 0 {
                let model = self.client.settings().model.clone();
                room.line.tell(Event::Turn { number: self.used.turns + 1, model });
            }
            tried += 1;
            let until = room.allowance.until.map(|(until, _)| Instant::from_std(until));
            let bytes = self.bytes();
            let asked = self.client.ask(self.conversation.messages(), &self.tools, most_output, until).await;
            let Failed { failure, written } = match asked {
                Ok(answer) => {
                    self.used.turns += 1;
                    self.count(room, answer.usage, bytes, wrote(&answer));
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            if written > 0 {
                self.count(room, None, bytes, written);
            }
            let retry = until.map_or(self.limits.retry, |until| self.limits.retry.until(until));
            if let Some(pause) = retry.pause(tried, failure.again()) {
                room.line.tell(Event::Retry {
                    what: "model".to_owned(),
                    why: room.mask.text(&failure.to_string()),
                    after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                });
                tokio::time::sleep(pause).await;
                continue;
            }
            if matches!(failure, Failure::TooLong(_)) && shortened < 3 && self.conversation.shorten(bytes / 2) {
                (shortened, tried) = (shortened + 1, tried - 1);
                let text = format!("{failure}; older results are shortened");
                room.line.tell(Event::Note { text: room.mask.text(&text) });
                continue;
            }
            // Where the time is over, that is what failed.
            if let Some(error) = room.allowance.exceeded(&self.used) {
                return Err(ImplementError::Budget(error));
            }
            let words = room.mask.text(&failure.to_string());
            room.line.tell(Event::Note { text: format!("the model gave no answer: {words}") });
            return Err(match failure {
                Failure::Passing(..) if tried > 1 => {
                    ImplementError::Unavailable(format!("the model gave no answer in {tried} tries; the last: {words}"))
                }
                Failure::Passing(..) => ImplementError::Unavailable(words),
                Failure::TooLong(_) | Failure::Rejected(_) => ImplementError::Rejected(words),
            });
        }
    }

    /// Bytes of the next request that count.
    fn bytes(&self) -> usize {
        self.conversation.bytes() + self.tools_bytes
    }

    /// Tokens that so many bytes are, as the endpoint counted before.
    fn tokens(&self, bytes: usize) -> u64 {
        let (tokens, of_bytes) = self.scale;
        (bytes as u64).saturating_mul(tokens).div_ceil(of_bytes.max(1))
    }

    /// Shortens a conversation that grew too long, to some two thirds, so that it is not done every turn.
    fn fit(&mut self, room: &Room<'_>) {
        let (bytes, most) = (self.bytes(), self.limits.context_tokens);
        let tokens = self.tokens(bytes);
        if tokens > most {
            let left = u128::from(most) * bytes as u128 * 2 / 3 / u128::from(tokens);
            if self.conversation.shorten(usize::try_from(left).unwrap_or(usize::MAX)) {
                let text = format!("the conversation was some {tokens} tokens long; older results are shortened");
                room.line.tell(Event::Note { text });
            }
        }
    }

    /// Whether a request may be made, and how much may be written in answer, so that no cap is passed by it.
    fn allowed(&self, room: &Room<'_>) -> Result<Option<u64>, Box<ImplementError>> {
        let allowance = &room.allowance;
        if let Some(error) = allowance.exceeded(&self.used) {
            return Err(Box::new(ImplementError::Budget(error)));
        }
        let settings = self.client.settings();
        let input = self.tokens(self.bytes());
        let mut most = settings.max_output_tokens.map(u64::from);
        let mut bound = |by: Option<u64>, left: String| match by {
            Some(by) if by < LEAST_OUTPUT => {
                let message = format!("{left}; the next request alone would read some {input} tokens");
                Err(Box::new(ImplementError::Budget(TaskError::new(Code::BudgetExceeded, message))))
            }
            by => {
                most = most.into_iter().chain(by).min();
                Ok(())
            }
        };
        if let Some(tokens) = allowance.tokens {
            let left = tokens.saturating_sub(self.used.input_tokens + self.used.output_tokens);
            bound(Some(left.saturating_sub(input)), format!("{left} of {tokens} tokens are left"))?;
        }
        if let Some(cost) = allowance.cost_micros {
            let Some(prices) = settings.prices else {
                let words =
                    format!("the worker knows no price of {}, so it cannot hold a budget of money", settings.model);
                return Err(Box::new(ImplementError::Rejected(words)));
            };
            let left = cost.saturating_sub(self.used.cost_micros);
            let read = prices.cost_micros(&Usage { input_tokens: input, ..Usage::default() });
            let decimal = schemas::Decimal::from_micros;
            let output = if read > left { Some(0) } else { prices.affordable_output(left - read) };
            bound(output, format!("{} of {} of money is left", decimal(left), decimal(cost)))?;
        }
        Ok(most)
    }

    /// Counts tokens: as the endpoint did, or else as bytes let one guess.
    fn count(&mut self, room: &Room<'_>, usage: Option<Usage>, sent: usize, written: usize) {
        let counted = usage.unwrap_or_else(|| {
            if !std::mem::replace(&mut self.estimate_told, true) {
                let text = "the endpoint did not tell what an answer used: its tokens are an estimate from its bytes";
                room.line.tell(Event::Note { text: text.to_owned() });
            }
            let output_tokens = (written as u64).div_ceil(4);
            Usage { input_tokens: self.tokens(sent), cached_tokens: 0, output_tokens }
        });
        if usage.is_some_and(|usage| usage.input_tokens > 0) {
            self.scale = (counted.input_tokens, sent as u64);
        }
        let cost = self.client.settings().prices.map(|prices| prices.cost_micros(&counted));
        let Usage { input_tokens, output_tokens, .. } = counted;
        self.used += Used { turns: 0, input_tokens, output_tokens, cost_micros: cost.unwrap_or(0) };
        room.line.tell(Event::Used { input_tokens, output_tokens, cost_micros: cost });
    }
}

/// Bytes that an answer is.
fn wrote(answer: &Answer) -> usize {
    let calls = answer.calls.iter().map(|call| call.function.name.len() + call.function.arguments.len()).sum::<usize>();
    answer.text.len() + answer.refusal.len() + calls
}
