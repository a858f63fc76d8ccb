use std::sync::LazyLock;

use proptest::prelude::*;
use regex::Regex;
use tiktoken_rs::CoreBPE;

use super::*;

static REFERENCE: LazyLock<CoreBPE> = LazyLock::new(|| tiktoken_rs::o200k_base().unwrap());

fn reference_count(text: &str) -> u64 {
    REFERENCE.encode_ordinary(text).len() as u64
}

#[track_caller]
fn assert_exact(text: &str) {
    assert_eq!(count(text), reference_count(text), "{text:?}");
    assert_eq!(pieces(text).collect::<String>(), text);
}

#[test]
fn the_vocabulary_loads_into_little_memory() {
    assert_eq!(VOCABULARY.ranks.len(), 199_998);
    let offsets = size_of_val(&*VOCABULARY.offsets);
    let memory = VOCABULARY.bytes.len() + offsets + VOCABULARY.ranks.allocation_size();
    assert!(memory < 4 << 20, "{memory}");
    for rank in [0, 255, 256, 100_000, 199_997] {
        let token = REFERENCE.decode_bytes(&[rank]).unwrap();
        assert_eq!(VOCABULARY.rank(&token), Some(rank));
    }
    assert!(Vocabulary::read(&[]).is_none());
    assert!(Vocabulary::read(&[9, 0, 0, 0, 1, 2, 3]).is_none());
}

#[test]
fn counts_equal_those_of_tiktoken() {
    for text in [
        include_str!("tests.rs"),
        include_str!("../../../README.md"),
        include_str!("../../../assets/page/style.css"),
        &include_str!("../../../assets/prices.json")[..40_000],
        "I'LL say it's we’ve they'RE I'm you'd isn't SHE'S O'Reilly 'ſ a'ſ",
        "HTTPServer parseJSON XMLHttpRequest ABCdef aBC ǅungla ᾈΩ",
        "Größe, naïve café, cafe\u{301}, \u{301}A, \u{301}\u{301} !\u{301}, a\u{301}\u{301}B",
        "Привет, мир! Ёжик. ΑΒΓ αβγ Ωμέγα",
        "東京は日本の首都です。一二三四五 한국어 문장",
        "مرحبا بالعالم ١٢٣٤٥ שלום עולם हिन्दी में १२३ ไทย",
        "🦀👩‍👩‍👧‍👦🇫🇷 ✨✨✨ ❤️ ½ Ⅻ ⓐ ²³",
        "1234567890 3.14159 0xDEADBEEF 1,000,000",
        "  a   b\t\tc \t d\n\n  e \r\n\r\n\tf  \n  ",
        " \u{a0}x\u{3000}\u{3000}y \u{2028}z\u{85}",
        "https://example.com/a/b?c=d&e=%20#f //\n/\r\n/ ?!\n",
        "\u{0}\u{1}\u{7f}\u{feff}\u{200b}\u{e000}\u{10ffff}",
    ] {
        assert_exact(text);
    }
}

#[test]
fn long_words_are_merged_as_by_tiktoken() {
    for piece in ["a", "ab", "=", " ", "\u{a0}", "のです", "🦀", "A", "\n"] {
        for length in [99, 100, 101, 1_000, 4_000] {
            let text: String = piece.chars().cycle().take(length).collect();
            assert_exact(&text);
            assert_exact(&format!("{text}x"));
        }
    }
}

#[test]
fn character_classes_match_tiktoken() {
    // A later version of Unicode assigns more.
    let is_unassigned = Regex::new(r"^\p{Cn}$").unwrap();
    // The last two planes are for private use.
    for c in ('\0'..'\u{f0000}').chain(('\u{f0000}'..=char::MAX).step_by(997)) {
        if is_unassigned.is_match(c.encode_utf8(&mut [0; 4])) {
            continue;
        }
        // Each class splits differently from these neighbours.
        let text = format!("a{c}B{c}{c}b1{c} {c}{c}!{c}\n{c}");
        if count(&text) != reference_count(&text) {
            panic!("{text:?} is split into {:?}", pieces(&text).collect::<Vec<_>>());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn token_counts_match_tiktoken_for_any_text(
        any in "\\PC{0,60}",
        mixed in "[a-cA-CéÉǅªʰ中字\u{301}\u{903}1²Ⅻ \t\r\n\u{a0}\u{3000}'sSſltredvm!/.🦀]{0,60}",
        words in "([ \n]?[A-Za-z]{1,12}('[a-zA-Z]{1,3})?[,.!]?){0,12}",
    ) {
        for text in [any, mixed, words] {
            prop_assert_eq!(count(&text), reference_count(&text));
            prop_assert_eq!(pieces(&text).collect::<String>(), text);
        }
    }
}
