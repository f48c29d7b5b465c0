//! What answers cost.

use schemas::Decimal;

use super::answer::Usage;

/// Prices of a model, a million tokens each, in whatever currency the operator thinks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// Tokens read.
    pub input: Decimal,
    /// Tokens read that the endpoint had cached.
    pub cached_input: Decimal,
    /// Tokens written.
    pub output: Decimal,
}

impl Prices {
    /// In millionths, rounded up: a budget is never undercounted.
    pub fn cost_micros(&self, usage: &Usage) -> u64 {
        let cached = usage.cached_tokens.min(usage.input_tokens);
        let part = |tokens: u64, price: Decimal| u128::from(tokens) * u128::from(price.micros());
        let all = part(usage.input_tokens - cached, self.input)
            + part(cached, self.cached_input)
            + part(usage.output_tokens, self.output);
        u64::try_from(all.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Tokens that can be written for so much; none where writing is free.
    pub fn affordable_output(&self, cost_micros: u64) -> Option<u64> {
        (u128::from(cost_micros) * 1_000_000)
            .checked_div(u128::from(self.output.micros()))
            .map(|tokens| u64::try_from(tokens).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_rounded_up_and_cached_tokens_have_a_price_of_their_own() {
        let decimal = |text: &str| text.parse::<Decimal>().unwrap();
        let prices = Prices { input: decimal("3"), cached_input: decimal("0.3"), output: decimal("15") };
        let usage = Usage { input_tokens: 1_000_000, cached_tokens: 500_000, output_tokens: 100_000 };
        assert_eq!(prices.cost_micros(&usage), 1_500_000 + 150_000 + 1_500_000);
        let one = Usage { input_tokens: 0, cached_tokens: 9, output_tokens: 0 };
        assert_eq!(prices.cost_micros(&one), 0, "more cached than read is not believed");
        assert_eq!(prices.cost_micros(&Usage { input_tokens: 1, cached_tokens: 1, output_tokens: 0 }), 1);
        assert_eq!(prices.affordable_output(1_500_000), Some(100_000));
        assert_eq!(Prices { output: decimal("0"), ..prices }.affordable_output(5), None);
    }
}
