//! GPT-4o's tokenizer (o200k_base), as far as counting needs it.
//!
//! The vocabulary is deflated in the binary (0.8 MB; `assets/make-vocabulary.py` writes it) and takes
//! 4 MB once loaded. Texts are split by hand, because the engine for tiktoken's regular expression would
//! add more to the binary than the vocabulary.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::sync::LazyLock;

use hashbrown::{DefaultHashBuilder, HashTable};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

const COMPRESSED: &[u8] = include_bytes!("../../assets/o200k_base.bin");
/// The rank of a pair of parts that is no token.
const NO_TOKEN: u32 = u32::MAX;

/// Loaded in some 10 ms when an estimate first needs it: most servers never do.
static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let plain = miniz_oxide::inflate::decompress_to_vec(COMPRESSED).unwrap_or_default();
    Vocabulary::read(&plain).unwrap_or_default()
});

/// Returns how many tokens a text has.
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
    /// Where each token starts in `bytes`, and the last one ends.
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
            // The capacity suffices, so that no token is hashed again.
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

/// A stretch of a piece that is a token.
struct Part {
    /// Where the part before starts.
    previous: usize,
    /// Where the part after starts.
    next: usize,
    /// That of this part and the one after together.
    pair_rank: u32,
}

/// Merges bytes into tokens; keeps its buffers from piece to piece.
#[derive(Default)]
struct Merger {
    /// By the byte that a part starts with.
    parts: Vec<Part>,
    /// Rank and start of pairs. Those of parts that were merged since are skipped.
    pairs: BinaryHeap<Reverse<(u32, usize)>>,
}

impl Merger {
    /// Returns how many parts stay after each pair that is a token was merged, the lowest rank first.
    /// Takes n log n time: a 4 KiB piece must not take longer than as much prose.
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
    /// `\p{Lm}\p{Lo}`, letters of scripts that have one case.
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

/// Splits a text as o200k_base's regular expression does; no token crosses the border of a piece.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let first = text.chars().next()?;
        let (piece, rest) = text.split_at(piece_end(text, first));
        text = rest;
        Some(piece)
    })
}

/// The first alternative of the expression that matches decides, as there. Each is quoted.
fn piece_end(text: &str, first: char) -> usize {
    let class = Class::of(first);
    let after = first.len_utf8();
    // `[^\r\n\p{L}\p{N}]?` and a word, of which a mark may be either.
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

/// `\s*[\r\n]+|\s+(?!\S)|\s+`: up to the last line break, else without the space that the next word
/// takes. `first_end` is where the first space ends.
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

/// Returns the end of a word from `start` on, in either of its forms.
fn word_end(text: &str, start: usize) -> Option<usize> {
    cased_word_end(text, start).or_else(|| {
        // `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`, where nothing but capitals is left.
        let end = run_end(text, start, usize::MAX, |c| Class::of(c).begins_word());
        (end > start).then_some(end)
    })
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`: where no small letter follows, the
/// first run is cut short so that it leaves one character for the second.
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

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)?`, the length of it.
fn contraction(text: &str) -> usize {
    let mut chars = text.chars().map(|c| c.to_ascii_lowercase());
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('s' | 't' | 'm' | 'd'), _) => 2,
        // It is an `s` in lower case.
        (Some('\''), Some('ſ'), _) => 1 + 'ſ'.len_utf8(),
        (Some('\''), Some('r' | 'v'), Some('e')) | (Some('\''), Some('l'), Some('l')) => 3,
        _ => 0,
    }
}

/// Returns where a run of at most `count` such characters ends that starts at `start`.
fn run_end(text: &str, start: usize, count: usize, is_in: impl Fn(char) -> bool) -> usize {
    let run = text[start..].chars().take(count).take_while(|c| is_in(*c));
    start + run.map(char::len_utf8).sum::<usize>()
}

#[cfg(test)]
mod tests;
