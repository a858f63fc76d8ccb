//! Bounds of the tokens of clients' prompts.
//!
//! The strict bound is one token for each byte, about four times the tokens of ordinary text. Budgets
//! reserve by a tighter estimate if they may (see `docs/budgets.md` for its error):
//!
//! - the count of the model's tokenizer, if it is known. The caller adds it only for calls that a
//!   budget would refuse or lower without it, because it takes time.
//! - otherwise the bytes times the highest density, in tokens per byte, of the model's settled calls,
//!   with a margin. Densities are stored, so they survive a restart.
//! - if a settled call measured the tokens of a prefix of the prompt, these, and one of the other two
//!   for the rest. The measurements stay in memory.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::event::{Usage, UsageSource};
use crate::providers::{Call, prompt_tokens_max};
use crate::store::{Change, Store};

/// Shorter prompts keep the strict bound, and are not measured: constant parts that providers add
/// would dominate their density, and the bound matters less.
const MEASURED_BYTES_MIN: u64 = 4 << 10;
/// The margin on densities, in percent.
const MARGIN_PERCENT: u64 = 10;
/// The density of one token for each byte, in tokens per million bytes.
const DENSITY_MAX: u64 = 1_000_000;
/// Limits the models whose densities are known; further ones keep the strict bound.
const DENSITIES_MAX: usize = 10_000;
/// Limits the measured prefixes. When it is reached, the older half is removed.
const PREFIXES_MAX: usize = 4_096;

/// The size of a prompt or of a part of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextSize {
    /// The length of the text in the request's JSON.
    pub bytes: u64,
    /// The maximum tokens of images, documents and references.
    pub media_tokens: u64,
    /// The maximum tokens that the provider adds for tools.
    pub tool_tokens: u64,
}

/// A client's prompt, of which only the length is usually needed.
pub trait PromptText: Debug {
    fn size(&self) -> TextSize;

    /// Hashes the prefixes of the prompt that end with a message, the shortest first.
    fn prefixes(&self, _hasher: &RandomState) -> Vec<u64> {
        Vec::new()
    }

    /// Returns the size of the part after one of the prefixes.
    fn size_after(&self, _prefix: usize) -> TextSize {
        self.size()
    }

    /// Returns whether `count` knows the tokenizer of the model.
    fn can_count(&self, _model: &str) -> bool {
        false
    }

    /// Counts the tokens with the tokenizer of the model; none if it or a part's size is unknown.
    /// Must not be lower than the provider's count.
    fn count(&self, _model: &str) -> Option<u64> {
        None
    }
}

/// A prompt of which only the size is known.
impl PromptText for TextSize {
    fn size(&self) -> TextSize {
        *self
    }
}

/// The measured densities and prefixes of all models.
pub(super) struct PromptMeasures {
    /// Tokens per million bytes, by provider and model.
    densities: Mutex<HashMap<(String, String), u64>>,
    prefixes: Mutex<Prefixes>,
    hasher: RandomState,
}

#[derive(Default)]
struct Prefixes {
    /// Tokens and age by the hash of provider, model and prefix. A higher number is younger.
    tokens: HashMap<u64, (u64, u64)>,
    newest: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TextSize {
    /// Returns the tokens at a density, in tokens per million bytes.
    fn tokens(self, density: Option<u64>) -> u64 {
        let text = density.map_or(self.bytes, |density| {
            let tokens =
                u128::from(self.bytes) * u128::from(density) * u128::from(100 + MARGIN_PERCENT);
            let tokens = tokens.div_ceil(100 * u128::from(DENSITY_MAX));
            u64::try_from(tokens).unwrap_or(u64::MAX).min(self.bytes)
        });
        prompt_tokens_max(text).saturating_add(self.media_tokens).saturating_add(self.tool_tokens)
    }

    pub(super) fn tokens_max(self) -> u64 {
        self.tokens(None)
    }
}

impl PromptMeasures {
    /// Reads the stored densities.
    pub(super) fn load(store: &Store) -> Result<Self> {
        let densities = store.prompt_densities()?;
        let densities = densities
            .into_iter()
            .map(|(provider, model, density)| ((provider, model), density))
            .collect();
        Ok(Self {
            densities: Mutex::new(densities),
            prefixes: Mutex::default(),
            hasher: RandomState::new(),
        })
    }

    /// Returns the hashes of a prompt's prefixes for this model.
    pub(super) fn prefixes(&self, call: &Call, prompt: &dyn PromptText) -> Vec<u64> {
        if prompt.size().bytes < MEASURED_BYTES_MIN {
            return Vec::new();
        }
        let hash = |prefix| self.hasher.hash_one((&call.provider, &call.model, prefix));
        prompt.prefixes(&self.hasher).into_iter().map(hash).collect()
    }

    /// Estimates the tokens of a prompt from above. `counted` is the count of its tokenizer.
    pub(super) fn estimate(
        &self,
        call: &Call,
        prompt: &dyn PromptText,
        prefixes: &[u64],
        counted: Option<u64>,
    ) -> u64 {
        let size = prompt.size();
        let strict = size.tokens_max();
        let counted = counted.map(prompt_tokens_max);
        if size.bytes < MEASURED_BYTES_MIN {
            return counted.map_or(strict, |counted| counted.min(strict));
        }
        let density = {
            let key = (call.provider.clone(), call.model.clone());
            lock(&self.densities).get(&key).copied()
        };
        let whole = counted.unwrap_or_else(|| size.tokens(density));
        let measured = {
            let known = lock(&self.prefixes);
            let mut longest_first = prefixes.iter().enumerate().rev();
            longest_first.find_map(|(at, hash)| Some((at, known.tokens.get(hash)?.0)))
        };
        let from_prefix = measured
            .map(|(at, tokens)| tokens.saturating_add(prompt.size_after(at).tokens(density)));
        whole.min(from_prefix.unwrap_or(u64::MAX)).min(strict)
    }

    /// Measures the prompt of a settled call. Returns the change that stores a higher density.
    pub(super) fn measure(
        &self,
        call: &Call,
        prompt: &dyn PromptText,
        prefixes: &[u64],
        usage: &Usage,
    ) -> Option<Change> {
        let TextSize { bytes, media_tokens, .. } = prompt.size();
        let is_known = usage.source == UsageSource::Provider && usage.input_tokens > 0;
        if !is_known || bytes < MEASURED_BYTES_MIN {
            return None;
        }
        if let Some(whole) = prefixes.last() {
            lock(&self.prefixes).insert(*whole, usage.input_tokens);
        }
        // More tokens than bytes include some that the provider added.
        if media_tokens > 0 || usage.input_tokens > bytes {
            return None;
        }
        let density = (usage.input_tokens * DENSITY_MAX).div_ceil(bytes);
        let mut densities = lock(&self.densities);
        let is_full = densities.len() >= DENSITIES_MAX;
        let (provider, model) = (call.provider.clone(), call.model.clone());
        match densities.get_mut(&(provider.clone(), model.clone())) {
            Some(known) if *known >= density => return None,
            Some(known) => *known = density,
            None if is_full => return None,
            None => drop(densities.insert((provider.clone(), model.clone()), density)),
        }
        Some(Change::RaiseDensity { provider, model, density })
    }
}

impl Prefixes {
    fn insert(&mut self, hash: u64, tokens: u64) {
        if self.tokens.len() >= PREFIXES_MAX {
            let oldest_kept = self.newest - PREFIXES_MAX as u64 / 2;
            self.tokens.retain(|_, (_, age)| *age > oldest_kept);
        }
        self.newest += 1;
        self.tokens.insert(hash, (tokens, self.newest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::CacheMarks;

    /// A prompt of messages of these lengths, which are also their hashes.
    #[derive(Debug)]
    struct Messages(Vec<u64>);

    impl PromptText for Messages {
        fn size(&self) -> TextSize {
            TextSize { bytes: self.0.iter().sum(), ..TextSize::default() }
        }

        fn prefixes(&self, _: &RandomState) -> Vec<u64> {
            self.0.clone()
        }

        fn size_after(&self, prefix: usize) -> TextSize {
            TextSize { bytes: self.0[prefix + 1..].iter().sum(), ..TextSize::default() }
        }
    }

    fn usage(input_tokens: u64) -> Usage {
        Usage { input_tokens, source: UsageSource::Provider, ..Usage::default() }
    }

    struct Rig {
        measures: PromptMeasures,
        call: Call,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (store, _writer) = Store::open(dir.path()).unwrap();
            let call = Call {
                provider: "p".into(),
                model: "m".into(),
                system: None,
                prompt: String::new(),
                max_tokens: None,
                temperature: None,
                stream: false,
                first_byte_timeout: None,
                total_timeout: None,
                cache_marks: CacheMarks::default(),
                key: None,
            };
            Self { measures: PromptMeasures::load(&store).unwrap(), call }
        }

        fn estimate(&self, prompt: &dyn PromptText) -> u64 {
            let prefixes = self.measures.prefixes(&self.call, prompt);
            self.measures.estimate(&self.call, prompt, &prefixes, None)
        }

        fn measure(&self, prompt: &dyn PromptText, tokens: u64) -> Option<Change> {
            let prefixes = self.measures.prefixes(&self.call, prompt);
            self.measures.measure(&self.call, prompt, &prefixes, &usage(tokens))
        }
    }

    fn text(bytes: u64) -> TextSize {
        TextSize { bytes, ..TextSize::default() }
    }

    #[test]
    fn a_prompt_is_estimated_by_the_highest_density() {
        let rig = Rig::new();
        assert_eq!(rig.estimate(&text(100_000)), prompt_tokens_max(100_000));
        assert!(rig.measure(&text(80_000), 16_000).is_some());
        assert!(rig.measure(&text(80_000), 8_000).is_none(), "a lower density");
        assert_eq!(rig.estimate(&text(100_000)), prompt_tokens_max(22_000));
        assert!(rig.measure(&text(10_000), 2_500).is_some());
        assert_eq!(rig.estimate(&text(100_000)), prompt_tokens_max(27_500));
        // Never above one token for each byte, and images in addition.
        assert!(rig.measure(&text(10_000), 9_900).is_some());
        let image = TextSize { media_tokens: 500, ..text(100_000) };
        assert_eq!(rig.estimate(&image), prompt_tokens_max(100_000) + 500);
    }

    #[test]
    fn short_prompts_images_and_added_tokens_are_not_measured() {
        let rig = Rig::new();
        let image = TextSize { media_tokens: 1, ..text(80_000) };
        assert!(rig.measure(&text(4_000), 1_000).is_none());
        assert!(rig.measure(&image, 20_000).is_none());
        assert!(rig.measure(&text(10_000), 10_001).is_none());
        assert_eq!(rig.estimate(&text(100_000)), prompt_tokens_max(100_000));
        assert!(rig.measure(&text(80_000), 20_000).is_some());
        assert_eq!(rig.estimate(&text(4_000)), prompt_tokens_max(4_000));
    }

    #[test]
    fn a_measured_prefix_counts_as_measured() {
        let rig = Rig::new();
        rig.measure(&Messages(vec![50_000, 20_000]), 14_000);
        let longer = Messages(vec![50_000, 20_000, 1_000, 5_000]);
        assert_eq!(rig.estimate(&longer), 14_000 + prompt_tokens_max(6_000 * 22 / 100));
        let other = Messages(vec![50_000, 20_001]);
        assert_eq!(rig.estimate(&other), prompt_tokens_max(70_001 * 22 / 100 + 1));
        // Another model has not measured it.
        let other = Rig { call: Call { model: "other".into(), ..rig.call.clone() }, ..rig };
        assert_eq!(other.estimate(&longer), prompt_tokens_max(76_000));
    }

    #[test]
    fn the_oldest_prefixes_are_removed() {
        let mut prefixes = Prefixes::default();
        for hash in 0..2 * PREFIXES_MAX as u64 {
            prefixes.insert(hash, hash);
            assert!(prefixes.tokens.len() <= PREFIXES_MAX);
            assert!(prefixes.tokens.contains_key(&hash.saturating_sub(1_000)));
        }
    }
}
