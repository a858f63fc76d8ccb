//! The output limit of a client's request, which budgets may lower. Pure.

use std::ops::Range;

use serde_json::value::RawValue;

use super::json::each_field;
use crate::budget::OutputLimit;
use crate::providers::ANSWER_TOKENS_ASSUMED;

/// The response header with the lowered limit.
pub const MAX_TOKENS_HEADER: &str = "x-flowledger-max-tokens";
/// The fields that reserve a part of the output for thinking: Anthropic's `thinking` and
/// OpenRouter's `reasoning`. Both reject a limit that is not above it
/// (<https://platform.claude.com/docs/en/build-with-claude/extended-thinking>,
/// <https://openrouter.ai/docs/use-cases/reasoning-tokens>). Gemini's thoughts leave nothing for the
/// answer then (<https://ai.google.dev/gemini-api/docs/thinking>).
const THINKING_FIELDS: [&str; 4] =
    ["budget_tokens", "max_tokens", "thinkingBudget", "thinking_budget"];

/// The limits that a request contains.
#[derive(Clone, Debug, Default)]
pub struct RequestLimit {
    /// Where the limits are in the body, each in tokens for one choice.
    places: Vec<(Range<usize>, u32)>,
    /// Where a limit may be added if there is none.
    added_at: Option<usize>,
    choices: u32,
    thinking_tokens: u32,
}

impl RequestLimit {
    pub fn new(choices: u32, added_at: Option<usize>) -> Self {
        Self { choices, added_at, ..Self::default() }
    }

    pub fn add(&mut self, place: Range<usize>, tokens: u32) {
        self.places.push((place, tokens));
    }

    /// Reads the tokens that the value of a field such as `thinking` reserves.
    pub fn reserve_thinking(&mut self, thinking: &RawValue) {
        // Fails if it is not an object; then it reserves nothing.
        let _ = each_field(thinking.get(), |name, value| {
            let tokens = serde_json::from_str::<f64>(value.get());
            if let (true, Ok(tokens)) = (THINKING_FIELDS.contains(&name), tokens) {
                self.thinking_tokens = self.thinking_tokens.max(tokens.ceil() as u32);
            }
        });
    }

    /// Returns the highest limit of each choice, if there is one.
    pub fn highest(&self) -> Option<u32> {
        self.places.iter().map(|(_, tokens)| *tokens).max()
    }

    /// Returns the limit of each choice, if budgets may lower it.
    pub fn output(&self) -> Option<OutputLimit> {
        let tokens = self.highest().or(self.added_at.map(|_| ANSWER_TOKENS_ASSUMED))?;
        // Beyond the range of a limit, the reservation does not grow with the limit.
        tokens.checked_mul(self.choices)?;
        Some(OutputLimit { tokens, thinking_tokens: self.thinking_tokens })
    }

    /// Returns the edits that lower the limit: ranges of the body and their new texts. `name` is the
    /// name of a limit that is added.
    pub fn edits(&self, limit: u32, name: &str) -> Vec<(Range<usize>, String)> {
        if self.places.is_empty() {
            let added = self.added_at.map(|at| (at..at, format!(r#","{name}":{limit}"#)));
            return added.into_iter().collect();
        }
        let higher = self.places.iter().filter(|(_, tokens)| *tokens > limit);
        higher.map(|(place, _)| (place.clone(), limit.to_string())).collect()
    }
}
