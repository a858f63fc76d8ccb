//! What a call used, where its provider did not say, or not all of it. Pure, but for the tokenizer,
//! which is loaded when it is first needed: most servers never do.
//!
//! An estimate is what GPT-4o's tokenizer makes of the texts. Other makers' differ: by a few percent
//! for English, by up to a third for code and other languages; and what a model thought without
//! showing it is not in it. Hence it is marked, and never takes the place of a count.

use super::Call;
use super::tokenizer;
use super::wire::ResponseAccumulator;
use crate::event::{Usage, UsageSource};

/// What chat models put around each message, and before the answer, in tokens:
/// <https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken>.
const FRAME_TOKENS: u64 = 3;

/// A text up to this length is counted as a whole, bytes; of a longer one as much is, in blocks at
/// even distances, which takes a tenth of a second at most.
const COUNTED_BYTES_MAX: usize = 256 * 1024;

/// How much the tokenizer is given at a time, bytes: on long stretches without a gap its time grows
/// faster than their length. Cutting adds a token at most to each block.
const BLOCK_BYTES_MAX: usize = 4 * 1024;

/// What a call used: the provider's counts as far as they go, the rest estimated.
///
/// - Nothing came back and nothing was counted: nothing is known. What was read then is not known
///   either, as the provider may have refused the request unread.
/// - What came after the last count is added to it. A count from before the first text is none
///   of the answer (Anthropic's `message_start` says 1), unless it is the greater one.
/// - A count of 0 for a text that is there is a missing count, as it is for any prompt.
/// - Text that was not kept is taken to have as many tokens for its length as the text that was.
pub(super) fn usage(call: &Call, partial: &ResponseAccumulator, is_answered: bool) -> Usage {
    let reported = partial.usage;
    let (text, thinking, beside) = (&*partial.text, &*partial.thinking, &*partial.beside);
    if !is_answered && !partial.has_any() {
        return reported;
    }
    let is_reported = reported.source != UsageSource::None;
    let is_input_missing = reported.input_tokens == 0;
    let counted = partial
        .counted
        .filter(|_| is_reported && reported.output_tokens > 0);
    let from = counted.unwrap_or_default();
    let text_after = text.get(from.text..).unwrap_or_default();
    let thinking_after = thinking.get(from.thinking..).unwrap_or_default();
    let beside_after = beside.get(from.beside..).unwrap_or_default();
    let beyond = partial.beyond.unwrap_or_default();
    let beyond_after = (text.len() + beyond).saturating_sub(from.text).min(beyond);
    let is_uncounted = is_answered && partial.counted.is_none();
    let is_output_missing = is_uncounted
        || beyond_after > 0
        || [text_after, thinking_after, beside_after]
            .iter()
            .any(|it| !it.is_empty());
    if is_reported && !is_input_missing && !is_output_missing {
        return reported;
    }
    let mut usage = Usage {
        source: UsageSource::Estimated,
        ..reported
    };
    if is_input_missing {
        usage.input_tokens = prompt_tokens(call);
    }
    if is_output_missing {
        let thought = tokens(thinking_after);
        let text_tokens = tokens(text_after) + tokens_beyond(text, beyond_after);
        let output = text_tokens + tokens(beside_after) + thought;
        if counted.is_some() {
            usage.output_tokens += output;
            usage.reasoning_tokens += thought;
        } else {
            usage.output_tokens = usage.output_tokens.max(output);
            usage.reasoning_tokens = usage.reasoning_tokens.max(thought);
        }
    }
    usage
}

fn prompt_tokens(call: &Call) -> u64 {
    let system = call.system.as_deref();
    let system = system.map_or(0, |system| tokens(system) + FRAME_TOKENS);
    system + tokens(&call.prompt) + 2 * FRAME_TOKENS
}

/// How many tokens so many more bytes of a text have, about.
fn tokens_beyond(text: &str, bytes: usize) -> u64 {
    match bytes {
        0 => 0,
        _ => tokens(text) * bytes as u64 / text.len().max(1) as u64,
    }
}

/// How many tokens a text has, about.
fn tokens(text: &str) -> u64 {
    if text.len() <= COUNTED_BYTES_MAX {
        return blocks(text)
            .map(|block| tokenizer::count(block) as u64)
            .sum();
    }
    let samples = COUNTED_BYTES_MAX / BLOCK_BYTES_MAX;
    let (mut counted, mut bytes) = (0, 0);
    for sample in 0..samples {
        let start = text.floor_char_boundary(text.len() / samples * sample);
        if let Some(block) = blocks(&text[start..]).next() {
            counted += tokenizer::count(block) as u64;
            bytes += block.len() as u64;
        }
    }
    counted * text.len() as u64 / bytes.max(1)
}

/// Cuts a text, before white space where there is any: words have theirs in front.
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
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::super::prompt_tokens_max;
    use super::super::testing::{call, holds_sum_rules};
    use super::super::wire::Extent;
    use super::*;

    fn partial(text: &str, thinking: &str) -> ResponseAccumulator {
        ResponseAccumulator {
            text: text.into(),
            thinking: thinking.into(),
            ..ResponseAccumulator::default()
        }
    }

    fn extent(text: usize) -> Extent {
        Extent {
            text,
            ..Extent::default()
        }
    }

    fn counts(usage: Usage) -> (u64, u64, u64, UsageSource) {
        let Usage {
            input_tokens,
            output_tokens,
            reasoning_tokens,
            source,
            ..
        } = usage;
        (input_tokens, output_tokens, reasoning_tokens, source)
    }

    fn reported(input_tokens: u64, output_tokens: u64) -> Usage {
        Usage {
            input_tokens,
            output_tokens,
            source: UsageSource::Provider,
            ..Usage::default()
        }
    }

    /// "Be brief." and "Hi" have 3 tokens and 1, and 9 around them.
    const PROMPT: u64 = 13;

    #[test]
    fn texts_have_the_tokens_that_the_tokenizer_of_gpt_4o_makes_of_them() {
        // From <https://platform.openai.com/tokenizer> and tiktoken's own tests.
        for (text, count) in [
            ("", 0),
            ("hello world", 2),
            ("Hello, world!", 4),
            ("Once upon", 2),
        ] {
            assert_eq!(tokens(text), count, "{text}");
        }
    }

    #[test]
    fn no_kind_of_text_has_more_tokens_than_are_reserved_for_it() {
        for piece in [
            "7\n",
            "1,2,3\n",
            "[3,14,15],",
            "9f3c07",
            "Q2x+9/z=",
            "🦀",
            "ሰላም ",
            "words ",
        ] {
            let prompt = piece.repeat(1_000);
            let reserved = prompt_tokens_max(prompt.len() as u64);
            let call = Call {
                system: None,
                prompt,
                ..call("m", false)
            };
            assert!(prompt_tokens(&call) <= reserved, "{piece}");
        }
    }

    #[test]
    fn what_nobody_counted_is_estimated_once_something_came() {
        let call = call("m", true);
        use UsageSource::{Estimated, None};
        for (text, thinking, is_answered, expected) in [
            ("Once upon", "", false, (PROMPT, 2, 0, Estimated)),
            ("Once upon", "hello world", true, (PROMPT, 4, 2, Estimated)),
            ("", "hello world", false, (PROMPT, 2, 2, Estimated)),
            ("", "", true, (PROMPT, 0, 0, Estimated)),
            ("", "", false, (0, 0, 0, None)),
        ] {
            let estimated = usage(&call, &partial(text, thinking), is_answered);
            assert_eq!(counts(estimated), expected, "{text} {thinking}");
        }
    }

    #[test]
    fn what_was_counted_stays_and_the_rest_is_added() {
        let call = call("m", true);
        use UsageSource::{Estimated, Provider};
        // (what was counted, after how much text, what it comes to)
        for (count, after, expected) in [
            // All of it.
            (reported(7, 9), Some(9), (7, 9, 0, Provider)),
            // A running total, and " upon" after it.
            (reported(7, 5), Some(4), (7, 6, 0, Estimated)),
            // As Anthropic's beginning of a message.
            (reported(7, 1), None, (7, 2, 0, Estimated)),
            (reported(7, 5), None, (7, 5, 0, Estimated)),
            // One side only.
            (reported(7, 0), Some(9), (7, 2, 0, Estimated)),
            (reported(0, 9), Some(9), (PROMPT, 9, 0, Estimated)),
            (reported(0, 0), Some(9), (PROMPT, 2, 0, Estimated)),
        ] {
            let mut partial = partial("Once upon", "");
            (partial.usage, partial.counted) = (count, after.map(extent));
            let found = usage(&call, &partial, true);
            assert_eq!(counts(found), expected, "{count:?} {after:?}");
        }
        // Of a failure without any text, what was counted is what is known.
        let mut nothing = partial("", "");
        nothing.usage = reported(7, 1);
        assert_eq!(usage(&call, &nothing, false), reported(7, 1));
        // Of an answer, it is not all that is known to be.
        let (_, output, _, source) = counts(usage(&call, &nothing, true));
        assert_eq!((output, source), (1, Estimated));
        // What is known of the cache stays.
        let mut cached = partial("Once upon", "");
        cached.usage = Usage {
            cached_input_tokens: 5,
            ..reported(7, 1)
        };
        assert_eq!(usage(&call, &cached, false).cached_input_tokens, 5);
    }

    #[test]
    fn what_is_written_beside_the_text_is_counted_as_well() {
        let call = call("m", true);
        let mut partial = partial("", "");
        partial.beside = "hello world".into();
        let estimated = |partial: &ResponseAccumulator| counts(usage(&call, partial, false));
        let expected = (PROMPT, 2, 0, UsageSource::Estimated);
        assert_eq!(estimated(&partial), expected);
        partial.note_usage(reported(7, 9), true);
        assert_eq!(estimated(&partial), (7, 9, 0, UsageSource::Provider));
        partial.beside.push_str(" hello");
        assert_eq!(estimated(&partial), (7, 10, 0, UsageSource::Estimated));
    }

    #[test]
    fn text_that_was_not_kept_is_taken_to_be_as_the_rest() {
        let line = "The quick brown fox jumps over the lazy dog.\n";
        let text = line.repeat(1_000);
        let (bytes, count) = (text.len(), tokens(&text));
        // (how much came beyond it, what was counted after how much text, what it comes to)
        for (beyond, output, counted, expected) in [
            (0, 0, 0, count),
            (bytes, 0, 0, 2 * count),
            // A count of 0 is none, whenever it came.
            (bytes, 0, bytes + 9, 2 * count),
            (bytes, 5, bytes, 5 + count),
            (2 * bytes, 5, 2 * bytes, 5 + count),
            (2 * bytes, 5, 3 * bytes, 5),
        ] {
            let mut partial = partial(&text, "");
            partial.beyond = Some(beyond);
            partial.usage = reported(7, output);
            partial.counted = (counted > 0).then(|| Extent {
                text: counted,
                ..Extent::default()
            });
            let found = usage(&call("m", true), &partial, true);
            assert_eq!(found.output_tokens, expected, "{beyond} {output} {counted}");
            let is_counted = output > 0 && counted == bytes + beyond;
            assert_eq!(found.source == UsageSource::Provider, is_counted);
        }
    }

    #[test]
    fn long_texts_take_little_time_and_a_small_stack() {
        let line = "The quick brown fox jumps over the lazy dog, and rests for 12 minutes.\n";
        let texts = [
            line.repeat((4 << 20) / line.len()),
            "a".repeat(4 << 20),
            " ".repeat(1 << 20),
            "\u{a0}\n".repeat(1 << 18),
            "東京は日本の首都です。".repeat(1 << 16),
            "🦀".repeat(1 << 18),
        ];
        let work = move || {
            tokens("loaded before the clock starts");
            let started = Instant::now();
            let counts = texts.map(|text| tokens(&text));
            (counts, started.elapsed())
        };
        let thread = std::thread::Builder::new().stack_size(256 << 10);
        let (counts, took) = thread.spawn(work).unwrap().join().unwrap();
        // Six times a tenth of a second, and much more where the build is not optimised.
        assert!(took < Duration::from_secs(30), "{took:?}");
        let exact = ((4 << 20) / line.len()) as u64 * 17;
        assert!(counts[0].abs_diff(exact) * 50 < exact, "{counts:?} {exact}");
        assert!(counts.iter().all(|count| *count > 1_000), "{counts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_makes_it_panic_or_count_more_than_its_bytes(text in "(?s).{0,200}", gaps in "[ \t\r\n\u{a0}\u{3000}a']{0,200}") {
            for text in [&text, &gaps] {
                prop_assert!(tokens(text) <= text.len() as u64);
                let whole: String = blocks(text).collect();
                prop_assert_eq!(&whole, text);
            }
        }

        #[test]
        fn blocks_are_short_and_make_up_the_text(text in "(?s)[ab \u{20ac}]{0,40}", times in 0usize..400) {
            let text = text.repeat(times);
            prop_assert!(blocks(&text).all(|block| (1..=BLOCK_BYTES_MAX).contains(&block.len())));
            let whole: String = blocks(&text).collect();
            prop_assert_eq!(whole, text);
        }

        #[test]
        fn an_estimate_is_never_less_than_what_was_counted(
            input in 0u64..100, cached in 0u64..100, output in 0u64..100, reasoning in 0u64..100,
            text in "[a-z ]{0,40}", thinking in "[a-z ]{0,40}", beside in "[a-z ]{0,40}",
            after in prop::option::of((0usize..41, 0usize..41, 0usize..41)), is_answered: bool,
        ) {
            let mut partial = partial(&text, &thinking);
            partial.beside.clone_from(&beside);
            partial.usage = Usage {
                cached_input_tokens: cached.min(input),
                reasoning_tokens: reasoning.min(output),
                ..reported(input, output)
            };
            partial.counted = after.map(|after| Extent {
                text: after.0.min(text.len()),
                thinking: after.1.min(thinking.len()),
                beside: after.2.min(beside.len()),
            });
            let found = usage(&call("m", true), &partial, is_answered);
            prop_assert!(holds_sum_rules(&found), "{:?}", found);
            prop_assert!(found.input_tokens >= input && found.output_tokens >= output);
            if found.source == UsageSource::Provider {
                prop_assert_eq!(found, partial.usage);
            }
        }
    }
}
