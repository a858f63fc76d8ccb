//! GPT-4o's tokenizer (o200k_base), reduced to counting.
//!
//! The binary contains the deflated vocabulary (0.8 MB; `assets/make-vocabulary.py` writes it),
//! which takes 4 MB once loaded. Texts are split by hand, because the engine for tiktoken's regular
//! expression would add more to the binary than the vocabulary.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::sync::LazyLock;

use hashbrown::{DefaultHashBuilder, HashTable};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

const COMPRESSED: &[u8] = include_bytes!("../../assets/o200k_base.bin");
/// The rank of a pair of parts that is not a token.
const NO_TOKEN: u32 = u32::MAX;

/// Loaded in about 10 ms by the first estimate: most servers never need it.
static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let plain = miniz_oxide::inflate::decompress_to_vec(COMPRESSED).unwrap_or_default();
    Vocabulary::read(&plain).unwrap_or_default()
});

/// The first parts of the names of models with this tokenizer, as in `model.py` of tiktoken 0.12.
const MODELS: [&str; 9] =
    ["gpt-4o", "chatgpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "gpt-oss", "o1", "o3", "o4-mini"];

/// Returns whether a model, with or without the path of its maker, has this tokenizer.
pub fn has_known_tokenizer(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let name = name.strip_prefix("ft:").unwrap_or(&name);
    MODELS.iter().any(|start| {
        let rest = name.strip_prefix(start);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    })
}

/// Returns the number of tokens in a text.
pub(super) fn count(text: &str) -> u64 {
    let vocabulary = &*VOCABULARY;
    let mut merger = Merger::default();
    let tokens = |piece: &str| match vocabulary.rank(piece.as_bytes()) {
        Some(_) => 1,
        None => merger.count(vocabulary, piece.as_bytes()) as u64,
    };
    pieces(text).map(tokens).sum()
}

/// All tokens. A lower rank is merged earlier.
#[derive(Default)]
struct Vocabulary {
    /// The tokens' bytes, by rank.
    bytes: Vec<u8>,
    /// The start of each token in `bytes`, and the end of the last one.
    offsets: Vec<u32>,
    ranks: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Vocabulary {
    fn read(plain: &[u8]) -> Option<Self> {
        let (count, plain) = plain.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        let mut plane = plain.chunks(count.max(1));
        let (shared, added) = (plane.next()?, plane.next()?);
        let (low, middle, high) = (plane.next()?, plane.next()?, plane.next()?);
        let mut suffixes = plain.get(5 * count..)?;
        let rank_at =
            |at: usize| u32::from_le_bytes([low[at], middle[at], *high.get(at)?, 0]).into();
        let ranks: Vec<u32> = (0..count).map(rank_at).collect::<Option<_>>()?;
        let mut offsets = vec![0; count + 1];
        for (at, rank) in ranks.iter().enumerate() {
            let length = u32::from(shared[at]) + u32::from(added[at]);
            *offsets.get_mut(*rank as usize + 1)? = length;
        }
        let mut total = 0;
        for offset in &mut offsets {
            total += *offset;
            *offset = total;
        }
        let hasher = DefaultHashBuilder::default();
        let mut vocabulary = Self {
            bytes: vec![0; total as usize],
            ranks: HashTable::with_capacity(count),
            offsets,
            hasher,
        };
        let mut token = Vec::new();
        for (at, rank) in ranks.into_iter().enumerate() {
            let (suffix, rest) = suffixes.split_at_checked(usize::from(added[at]))?;
            suffixes = rest;
            token.truncate(usize::from(shared[at]));
            token.extend_from_slice(suffix);
            let start = vocabulary.offsets[rank as usize] as usize;
            vocabulary.bytes.get_mut(start..start + token.len())?.copy_from_slice(&token);
            let hash = vocabulary.hasher.hash_one(&*token);
            // The capacity suffices, so no token is hashed again.
            vocabulary.ranks.insert_unique(hash, rank, |_| hash);
        }
        Some(vocabulary)
    }

    fn rank(&self, token: &[u8]) -> Option<u32> {
        let is_token = |rank: &u32| {
            let rank = *rank as usize;
            let range = self.offsets[rank] as usize..self.offsets[rank + 1] as usize;
            &self.bytes[range] == token
        };
        self.ranks.find(self.hasher.hash_one(token), is_token).copied()
    }
}

/// A part of a piece that is a token.
struct Part {
    /// The start of the previous part.
    previous: usize,
    /// The start of the next part.
    next: usize,
    /// The rank of this part joined with the next one.
    pair_rank: u32,
}

/// Merges bytes into tokens; reuses its buffers for each piece.
#[derive(Default)]
struct Merger {
    /// Indexed by the first byte of a part.
    parts: Vec<Part>,
    /// Rank and start of pairs. Entries whose parts have since been merged are skipped.
    pairs: BinaryHeap<Reverse<(u32, usize)>>,
}

impl Merger {
    /// Returns the number of parts after all merges of pairs that are tokens, the lowest rank
    /// first. Takes n log n time, so that a 4 KiB piece takes no longer than the same length of
    /// prose.
    fn count(&mut self, vocabulary: &Vocabulary, piece: &[u8]) -> usize {
        self.pairs.clear();
        self.parts.clear();
        self.parts.extend((0..piece.len()).map(|start| Part {
            previous: start.wrapping_sub(1),
            next: start + 1,
            pair_rank: NO_TOKEN,
        }));
        for start in 0..piece.len() {
            self.rank_pair(vocabulary, piece, start);
        }
        let mut count = piece.len();
        while let Some(Reverse((rank, start))) = self.pairs.pop() {
            if self.parts[start].pair_rank != rank {
                continue;
            }
            let merged = self.parts[start].next;
            let next = self.parts[merged].next;
            self.parts[merged].pair_rank = NO_TOKEN;
            self.parts[start].next = next;
            if let Some(after) = self.parts.get_mut(next) {
                after.previous = start;
            }
            count -= 1;
            self.rank_pair(vocabulary, piece, start);
            if start > 0 {
                self.rank_pair(vocabulary, piece, self.parts[start].previous);
            }
        }
        count
    }

    fn rank_pair(&mut self, vocabulary: &Vocabulary, piece: &[u8], start: usize) {
        let end = self.parts.get(self.parts[start].next).map(|after| after.next);
        let rank = end.and_then(|end| vocabulary.rank(&piece[start..end]));
        self.parts[start].pair_rank = rank.unwrap_or(NO_TOKEN);
        self.pairs.extend(rank.map(|rank| Reverse((rank, start))));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{Lu}\p{Lt}`
    Upper,
    /// `\p{Ll}`
    Lower,
    /// `\p{Lm}\p{Lo}`, letters without case.
    Letter,
    /// `\p{M}`
    Mark,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        match c {
            'a'..='z' => Self::Lower,
            'A'..='Z' => Self::Upper,
            '0'..='9' => Self::Number,
            _ if c.is_whitespace() => Self::Space,
            _ if c.is_ascii() => Self::Other,
            _ => match c.general_category() {
                GeneralCategory::UppercaseLetter | GeneralCategory::TitlecaseLetter => Self::Upper,
                GeneralCategory::LowercaseLetter => Self::Lower,
                GeneralCategory::ModifierLetter | GeneralCategory::OtherLetter => Self::Letter,
                GeneralCategory::NonspacingMark
                | GeneralCategory::SpacingMark
                | GeneralCategory::EnclosingMark => Self::Mark,
                GeneralCategory::DecimalNumber
                | GeneralCategory::LetterNumber
                | GeneralCategory::OtherNumber => Self::Number,
                _ => Self::Other,
            },
        }
    }

    fn begins_word(self) -> bool {
        matches!(self, Self::Upper | Self::Letter | Self::Mark)
    }

    fn ends_word(self) -> bool {
        matches!(self, Self::Lower | Self::Letter | Self::Mark)
    }
}

/// Splits a text like o200k_base's regular expression; no token crosses the border of a piece.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let first = text.chars().next()?;
        let (piece, rest) = text.split_at(piece_end(text, first));
        text = rest;
        Some(piece)
    })
}

/// Returns the end of the first piece. As in the expression, the first matching alternative
/// applies; a comment quotes each.
fn piece_end(text: &str, first: char) -> usize {
    let class = Class::of(first);
    let after = first.len_utf8();
    // `[^\r\n\p{L}\p{N}]?` and a word; a mark may be either.
    let word = match class {
        Class::Upper | Class::Lower | Class::Letter => word_end(text, 0),
        Class::Mark => cased_word_end(text, after).or_else(|| cased_word_end(text, 0)),
        Class::Space | Class::Other if !matches!(first, '\r' | '\n') => word_end(text, after),
        _ => None,
    };
    if let Some(end) = word {
        return end + contraction(&text[end..]);
    }
    if class == Class::Number {
        // `\p{N}{1,3}`
        return run_end(text, 0, 3, |c| Class::of(c) == Class::Number);
    }
    // ` ?[^\s\p{L}\p{N}]+[\r\n/]*`
    let start = usize::from(first == ' ');
    let is_symbol = |c: char| matches!(Class::of(c), Class::Other | Class::Mark);
    let end = run_end(text, start, usize::MAX, is_symbol);
    if end > start {
        return run_end(text, end, usize::MAX, |c| matches!(c, '\r' | '\n' | '/'));
    }
    spaces_end(text, after)
}

/// Returns the end of white space: `\s*[\r\n]+|\s+(?!\S)|\s+`, up to the last line break, or else
/// without the space before the next word. `first_end` is the end of the first space.
fn spaces_end(text: &str, first_end: usize) -> usize {
    let end = run_end(text, 0, usize::MAX, char::is_whitespace);
    if let Some(at) = text[..end].rfind(['\r', '\n']) {
        return at + 1;
    }
    if end == text.len() {
        return end;
    }
    let last = text[..end].char_indices().next_back();
    last.map_or(end, |(at, _)| at.max(first_end))
}

/// Returns the end of a word at `start`, in either of its forms.
fn word_end(text: &str, start: usize) -> Option<usize> {
    cased_word_end(text, start).or_else(|| {
        // `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`, if only capitals are left.
        let end = run_end(text, start, usize::MAX, |c| Class::of(c).begins_word());
        (end > start).then_some(end)
    })
}

/// Matches `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`: if no small letter
/// follows, the first run is shortened to leave one character for the second.
fn cased_word_end(text: &str, start: usize) -> Option<usize> {
    let capitals = run_end(text, start, usize::MAX, |c| Class::of(c).begins_word());
    let end = run_end(text, capitals, usize::MAX, |c| Class::of(c).ends_word());
    if end > capitals {
        return Some(end);
    }
    let mut run = text[start..capitals].char_indices().rev();
    let (at, c) = run.find(|(_, c)| Class::of(*c).ends_word())?;
    Some(start + at + c.len_utf8())
}

/// Returns the length of `(?i:'s|'t|'re|'ve|'m|'ll|'d)?`.
fn contraction(text: &str) -> usize {
    let mut chars = text.chars().map(|c| c.to_ascii_lowercase());
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('s' | 't' | 'm' | 'd'), _) => 2,
        // The regular expression treats `ſ` as an `s` when it ignores case.
        (Some('\''), Some('ſ'), _) => 1 + 'ſ'.len_utf8(),
        (Some('\''), Some('r' | 'v'), Some('e')) | (Some('\''), Some('l'), Some('l')) => 3,
        _ => 0,
    }
}

/// Returns the end of a run of at most `count` such characters from `start`.
fn run_end(text: &str, start: usize, count: usize, is_in: impl Fn(char) -> bool) -> usize {
    let run = text[start..].chars().take(count).take_while(|c| is_in(*c));
    start + run.map(char::len_utf8).sum::<usize>()
}

#[cfg(test)]
mod tests;
