//! Estimates the usage of a call if its provider reports none, or only a part.
//!
//! An estimate is the count of GPT-4o's tokenizer. Tokenizers of other makers differ by a few
//! percent for English, by up to a third for code and other languages, and hidden reasoning is not
//! included. So an estimate is marked, and never replaces a count.

use super::Call;
use super::tokenizer;
use super::wire::ResponseAccumulator;
use crate::event::{Usage, UsageSource};

/// The tokens that chat models add to each message and before the answer:
/// <https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken>.
const FRAME_TOKENS: u64 = 3;

/// Limits the bytes of a text that are counted, in at most a tenth of a second. A longer text is
/// sampled in evenly spaced blocks.
const COUNTED_BYTES_MAX: usize = 256 * 1024;

/// Limits the tokenizer's memory for long stretches without a gap. Each cut adds at most one token
/// to a block.
const BLOCK_BYTES_MAX: usize = 4 * 1024;

/// Returns the provider's counts, completed by estimates.
///
/// - Without an answer and a count, nothing is known. The prompt is not estimated either, because the
///   provider may have rejected the request unread.
/// - Text after the last count is estimated and added to it. A count from before the first text (the
///   1 in Anthropic's `message_start`) does not include the answer; the greater one applies.
/// - A count of 0 for a prompt or an existing text is a missing count.
/// - Text that was not kept is assumed to have as many tokens per byte as the kept text.
pub(super) fn usage(call: &Call, partial: &ResponseAccumulator, is_answered: bool) -> Usage {
    let reported = partial.usage;
    let (text, thinking, other_output) =
        (&*partial.text, &*partial.thinking, &*partial.other_output);
    if !is_answered && !partial.has_any() {
        return reported;
    }
    let is_reported = reported.source != UsageSource::None;
    let is_input_missing = reported.input_tokens == 0;
    let has_count = is_reported && reported.output_tokens > 0;
    let counted = partial.counted.filter(|_| has_count);
    let from = counted.unwrap_or_default();
    let text_after = text.get(from.text..).unwrap_or_default();
    let thinking_after = thinking.get(from.thinking..).unwrap_or_default();
    let other_after = other_output.get(from.other_output..).unwrap_or_default();
    let beyond = partial.beyond.unwrap_or_default();
    let beyond_after = (text.len() + beyond).saturating_sub(from.text).min(beyond);
    let is_uncounted = is_answered && partial.counted.is_none();
    let is_output_missing =
        is_uncounted || beyond_after > 0 || [text_after, thinking_after, other_after] != [""; 3];
    if is_reported && !is_input_missing && !is_output_missing {
        return reported;
    }
    let mut usage = Usage { source: UsageSource::Estimated, ..reported };
    if is_input_missing {
        usage.input_tokens = prompt_tokens(call);
    }
    if is_output_missing {
        let thinking_tokens = tokens(thinking_after);
        let text_tokens = tokens(text_after) + tokens_beyond(text, beyond_after);
        let output = text_tokens + tokens(other_after) + thinking_tokens;
        if counted.is_some() {
            usage.output_tokens += output;
            usage.reasoning_tokens += thinking_tokens;
        } else {
            usage.output_tokens = usage.output_tokens.max(output);
            usage.reasoning_tokens = usage.reasoning_tokens.max(thinking_tokens);
        }
    }
    usage
}

fn prompt_tokens(call: &Call) -> u64 {
    let system = call.system.as_deref();
    let system = system.map_or(0, |system| tokens(system) + FRAME_TOKENS);
    system + tokens(&call.prompt) + 2 * FRAME_TOKENS
}

/// Estimates the tokens of `bytes` further bytes, from the average of the text.
fn tokens_beyond(text: &str, bytes: usize) -> u64 {
    match bytes {
        0 => 0,
        _ => tokens(text) * bytes as u64 / text.len().max(1) as u64,
    }
}

fn tokens(text: &str) -> u64 {
    if text.len() <= COUNTED_BYTES_MAX {
        return count(text);
    }
    let samples = COUNTED_BYTES_MAX / BLOCK_BYTES_MAX;
    let (mut counted, mut bytes) = (0, 0);
    for sample in 0..samples {
        let start = text.floor_char_boundary(text.len() / samples * sample);
        if let Some(block) = blocks(&text[start..]).next() {
            counted += tokenizer::count(block);
            bytes += block.len() as u64;
        }
    }
    counted * text.len() as u64 / bytes.max(1)
}

/// Counts the tokens of a text.
pub fn count(text: &str) -> u64 {
    blocks(text).map(tokenizer::count).sum()
}

/// Cuts a text before white space if possible, because word tokens include the space before.
fn blocks(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let most = text.floor_char_boundary(BLOCK_BYTES_MAX);
        let gap = text[..most].rfind(char::is_whitespace);
        let end = match gap.filter(|gap| *gap > 0) {
            Some(gap) if most < text.len() => gap,
            _ => most,
        };
        let (block, rest) = text.split_at(end);
        text = rest;
        (!block.is_empty()).then_some(block)
    })
}

#[cfg(test)]
mod tests;
