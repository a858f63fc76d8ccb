use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::providers::prompt_tokens_max;
use crate::providers::testing::{call, holds_sum_rules};
use crate::providers::wire::Extent;

fn partial(text: &str, thinking: &str) -> ResponseAccumulator {
    ResponseAccumulator {
        text: text.into(),
        thinking: thinking.into(),
        ..ResponseAccumulator::default()
    }
}

fn extent(text: usize) -> Extent {
    Extent { text, ..Extent::default() }
}

fn counts(usage: Usage) -> (u64, u64, u64, UsageSource) {
    let Usage { input_tokens, output_tokens, reasoning_tokens, source, .. } = usage;
    (input_tokens, output_tokens, reasoning_tokens, source)
}

fn reported(input_tokens: u64, output_tokens: u64) -> Usage {
    Usage { input_tokens, output_tokens, source: UsageSource::Provider, ..Usage::default() }
}

/// "Be brief." and "Hi" have 3 tokens and 1, and 9 around them.
const PROMPT: u64 = 13;

#[test]
fn token_counts_equal_those_of_gpt_4o() {
    // From <https://platform.openai.com/tokenizer> and tiktoken's own tests.
    for (text, count) in [("", 0), ("hello world", 2), ("Hello, world!", 4), ("Once upon", 2)] {
        assert_eq!(tokens(text), count, "{text}");
    }
}

#[test]
fn token_counts_never_exceed_the_reservation() {
    for piece in ["7\n", "1,2,3\n", "[3,14,15],", "9f3c07", "Q2x+9/z=", "🦀", "ሰላም ", "words "]
    {
        let prompt = piece.repeat(1_000);
        let reserved = prompt_tokens_max(prompt.len() as u64);
        let call = Call { system: None, prompt, ..call("m", false) };
        assert!(prompt_tokens(&call) <= reserved, "{piece}");
    }
}

#[test]
fn missing_counts_are_estimated_for_a_response() {
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
fn only_missing_counts_are_estimated() {
    let call = call("m", true);
    use UsageSource::{Estimated, Provider};
    // (the provider's count, the text before it, the result)
    for (count, after, expected) in [
        // The whole text.
        (reported(7, 9), Some(9), (7, 9, 0, Provider)),
        // A running total, followed by " upon".
        (reported(7, 5), Some(4), (7, 6, 0, Estimated)),
        // As at the start of an Anthropic message.
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
    // For a failure without text, the provider's count is the result.
    let mut nothing = partial("", "");
    nothing.usage = reported(7, 1);
    assert_eq!(usage(&call, &nothing, false), reported(7, 1));
    // For an answer, the same count is only an estimate.
    let (_, output, _, source) = counts(usage(&call, &nothing, true));
    assert_eq!((output, source), (1, Estimated));
    // Known cache counts are kept.
    let mut cached = partial("Once upon", "");
    cached.usage = Usage { cached_input_tokens: 5, ..reported(7, 1) };
    assert_eq!(usage(&call, &cached, false).cached_input_tokens, 5);
}

#[test]
fn non_text_output_is_counted() {
    let call = call("m", true);
    let mut partial = partial("", "");
    partial.other_output = "hello world".into();
    let estimated = |partial: &ResponseAccumulator| counts(usage(&call, partial, false));
    let expected = (PROMPT, 2, 0, UsageSource::Estimated);
    assert_eq!(estimated(&partial), expected);
    partial.note_usage(reported(7, 9), true);
    assert_eq!(estimated(&partial), (7, 9, 0, UsageSource::Provider));
    partial.other_output.push_str(" hello");
    assert_eq!(estimated(&partial), (7, 10, 0, UsageSource::Estimated));
}

#[test]
fn discarded_text_counts_like_the_rest() {
    let line = "The quick brown fox jumps over the lazy dog.\n";
    let text = line.repeat(1_000);
    let (bytes, count) = (text.len(), tokens(&text));
    // (the extra text, the provider's count, the text before it, the result)
    for (beyond, output, counted, expected) in [
        (0, 0, 0, count),
        (bytes, 0, 0, 2 * count),
        // A count of 0 counts as missing, whenever it came.
        (bytes, 0, bytes + 9, 2 * count),
        (bytes, 5, bytes, 5 + count),
        (2 * bytes, 5, 2 * bytes, 5 + count),
        (2 * bytes, 5, 3 * bytes, 5),
    ] {
        let mut partial = partial(&text, "");
        partial.beyond = Some(beyond);
        partial.usage = reported(7, output);
        partial.counted = (counted > 0).then(|| Extent { text: counted, ..Extent::default() });
        let found = usage(&call("m", true), &partial, true);
        assert_eq!(found.output_tokens, expected, "{beyond} {output} {counted}");
        let is_counted = output > 0 && counted == bytes + beyond;
        assert_eq!(found.source == UsageSource::Provider, is_counted);
    }
}

#[test]
fn long_texts_need_little_time_and_stack() {
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
    // Six times a tenth of a second, and much more in an unoptimized build.
    assert!(took < Duration::from_secs(30), "{took:?}");
    let exact = ((4 << 20) / line.len()) as u64 * 17;
    assert!(counts[0].abs_diff(exact) * 50 < exact, "{counts:?} {exact}");
    assert!(counts.iter().all(|count| *count > 1_000), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn counts_never_panic_or_exceed_the_byte_count(text in "(?s).{0,200}", gaps in "[ \t\r\n\u{a0}\u{3000}a']{0,200}") {
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
    fn an_estimate_is_never_below_the_counted_tokens(
        input in 0u64..100, cached in 0u64..100, output in 0u64..100, reasoning in 0u64..100,
        text in "[a-z ]{0,40}", thinking in "[a-z ]{0,40}", other_output in "[a-z ]{0,40}",
        after in prop::option::of((0usize..41, 0usize..41, 0usize..41)), is_answered: bool,
    ) {
        let mut partial = partial(&text, &thinking);
        partial.other_output.clone_from(&other_output);
        partial.usage = Usage {
            cached_input_tokens: cached.min(input),
            reasoning_tokens: reasoning.min(output),
            ..reported(input, output)
        };
        partial.counted = after.map(|after| Extent {
            text: after.0.min(text.len()),
            thinking: after.1.min(thinking.len()),
            other_output: after.2.min(other_output.len()),
        });
        let found = usage(&call("m", true), &partial, is_answered);
        prop_assert!(holds_sum_rules(&found), "{:?}", found);
        prop_assert!(found.input_tokens >= input && found.output_tokens >= output);
        if found.source == UsageSource::Provider {
            prop_assert_eq!(found, partial.usage);
        }
    }
}
