//! The models that could serve calls: those that the user's flows use, and those that their
//! providers list. A price alone does not show that a model is available: prices outlive their
//! models.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::Value;

use super::call_stats::NodeCalls;
use super::model_catalog::ModelCatalog;
use super::saving::MS_PER_DAY;
use crate::event::Usage;
use crate::flow::Target;
use crate::money::Usd;
use crate::prices::Quote;
use crate::providers::{Kind, Listed, Providers};
use crate::time::Timestamp;

/// Name parts, at OpenAI, OpenRouter and others, of models that do not answer with text or that
/// have other terms of use. `codex` uses another protocol, and `free` allows too few calls.
const OTHER_MODELS: &str = "audio babbage batch codex computer dall davinci embed embedding embeddings \
    extended free guard image imagen live moderation ocr realtime rerank reranker research robotics \
    safeguard search sora transcribe tts veo whisper";
/// Name prefixes of such models.
const OTHER_PREFIXES: &[&str] = &["~", "chatgpt-", "gpt-3.5-turbo-instruct"];
/// Name parts of models that always reason before they answer.
const REASONING_PARTS: &str = "magistral o1 o3 o4 qwq r1 reasoner reasoning thinking";
/// Name prefixes of such models, after the maker.
const REASONING_PREFIXES: &[&str] = &["gpt-5", "gpt-6", "gpt-oss", "gemini-2.5", "gemini-3"];
/// Limits the newest models of a list that are considered; the largest routers list some hundreds.
const LISTED_MAX: usize = 1_000;
/// A number with at least this many digits in a name is a date, or a part of one.
const DATE_DIGITS_MIN: usize = 4;

/// A possible replacement model.
pub struct Candidate {
    pub target: Target,
    pub quote: Quote,
    /// Number of calls of flows that it answered recently.
    pub answered: u64,
    created_at: Option<Timestamp>,
    /// The limit on a prompt and its answer together, if the provider lists it.
    context_tokens: Option<u64>,
    is_listed: bool,
}

pub struct Requirements {
    /// The minimum of answered calls of an unlisted model.
    pub used_min: u64,
    /// The longest prompt with its answer, in tokens.
    pub tokens_max: u64,
    pub has_reasoning: bool,
}

pub struct Models<'a> {
    providers: &'a Providers,
    pub priced_at: Timestamp,
    /// Each model once, under its most used name, or else its shortest name without a date.
    pub candidates: Vec<Candidate>,
    /// Creation times and prices of the listed models.
    dates: BTreeMap<Target, (Timestamp, Quote)>,
}

/// Returns noon UTC: proposals use the prices of this time, so that they do not change with the
/// time of day.
fn priced_at(now: Timestamp) -> Timestamp {
    Timestamp((now.0.div_euclid(MS_PER_DAY) * MS_PER_DAY).saturating_add(MS_PER_DAY / 2))
}

impl<'a> Models<'a> {
    /// Returns the models with a price at usable providers; `answered` are the targets that flows
    /// used recently.
    pub fn new(
        providers: &'a Providers,
        answered: &BTreeMap<Target, u64>,
        catalog: &ModelCatalog,
        now: Timestamp,
    ) -> Self {
        let usable = providers.providers().filter(|(name, provider)| {
            provider.kind != Kind::Echo && providers.check(name).is_ok()
        });
        let mut models = Self {
            providers,
            priced_at: priced_at(now),
            candidates: Vec::new(),
            dates: BTreeMap::new(),
        };
        for (provider, _) in usable {
            let listed = newest(catalog.of(provider), LISTED_MAX).into_iter();
            let used = answered.keys().filter(|it| it.provider == provider);
            let mut names: BTreeMap<&str, Option<&Listed>> =
                used.map(|it| (it.model.as_str(), None)).collect();
            names.extend(listed.map(|it| (it.name.as_str(), Some(it))));
            let mut found: Vec<Candidate> = Vec::new();
            for (name, listed) in names {
                let target = Target { provider: provider.to_owned(), model: name.to_owned() };
                let Some(quote) = models.quote(&target) else {
                    continue;
                };
                let created_at = listed.and_then(|listed| listed.created_at);
                if let Some(at) = created_at {
                    models.dates.insert(target.clone(), (at, quote.clone()));
                }
                // A model without a price for answers does not answer with text.
                if quote.rates(0).output == 0 || !answers_with_text(name) {
                    continue;
                }
                let candidate = Candidate {
                    answered: answered.get(&target).copied().unwrap_or(0),
                    target,
                    created_at,
                    context_tokens: listed.and_then(|listed| listed.context_tokens),
                    is_listed: listed.is_some(),
                    quote,
                };
                let mut same = found.iter_mut();
                match same.find(|it| it.quote.is_same_as(&candidate.quote)) {
                    Some(other) if candidate.rank() > other.rank() => *other = candidate,
                    Some(_) => {}
                    None => found.push(candidate),
                }
            }
            models.candidates.append(&mut found);
        }
        models
    }

    pub fn quote(&self, target: &Target) -> Option<Quote> {
        let (provider, model) = (&target.provider, &target.model);
        self.providers.quote(provider, &[model], self.priced_at)
    }

    /// Returns the creation time of a model, if known; for an unlisted alias, that of the newest
    /// model that it may refer to.
    fn created_at(&self, target: &Target) -> Option<Timestamp> {
        if let Some((at, _)) = self.dates.get(target) {
            return Some(*at);
        }
        let quote = self.quote(target)?;
        let listed = self.dates.iter();
        let same = listed
            .filter(|(it, (_, other))| it.provider == target.provider && other.is_same_as(&quote));
        same.map(|(_, (at, _))| *at).max()
    }

    /// Returns possible replacements of `current`: models that flows use, and listed models of the
    /// same provider and maker that are not older.
    pub fn replacements_for(
        &self,
        current: &Target,
        requirements: Requirements,
    ) -> impl Iterator<Item = &Candidate> {
        let has_reasoning = requirements.has_reasoning || is_reasoning_model(&current.model);
        let current_created_at = self.created_at(current);
        self.candidates.iter().filter(move |it| {
            let dates = it.created_at.zip(current_created_at);
            let is_next = it.is_listed
                && it.target.provider == current.provider
                && maker(&it.target.model) == maker(&current.model)
                && dates.is_some_and(|(its, current)| its >= current);
            it.target != *current
                && (it.answered >= requirements.used_min || is_next)
                && it.context_tokens.is_none_or(|limit| limit >= requirements.tokens_max)
                // A reasoning model would write longer answers than the observed ones.
                && (has_reasoning || !is_reasoning_model(&it.target.model))
        })
    }
}

fn newest(listed: &[Listed], limit: usize) -> Vec<&Listed> {
    let mut listed: Vec<&Listed> = listed.iter().collect();
    listed.sort_by_key(|it| Reverse(it.created_at));
    listed.truncate(limit);
    listed
}

/// Returns the maker of a model, which routers put before its name.
fn maker(name: &str) -> Option<&str> {
    name.split_once('/').map(|(maker, _)| maker)
}

fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_ascii_alphanumeric())
}

fn has_part(name: &str, list: &str) -> bool {
    parts(name).any(|part| list.split(' ').any(|it| it == part))
}

/// Returns whether the name looks like that of a model that answers with text.
fn answers_with_text(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !has_part(&name, OTHER_MODELS) && !OTHER_PREFIXES.iter().any(|start| name.starts_with(start))
}

fn is_reasoning_model(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let own = name.rsplit('/').next().unwrap_or(&name);
    // OpenAI's `-chat` models do not reason.
    let may_reason = !has_part(own, "chat");
    has_part(own, REASONING_PARTS)
        || (may_reason && REASONING_PREFIXES.iter().any(|start| own.starts_with(start)))
}

fn is_dated(name: &str) -> bool {
    parts(name)
        .any(|part| part.len() >= DATE_DIGITS_MIN && part.bytes().all(|b| b.is_ascii_digit()))
}

/// Parses the target under `provider` and `model`.
pub fn target_in(value: &Value) -> Option<Target> {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    Some(Target { provider: text("provider")?, model: text("model")? })
}

/// Returns the usage of a call at another provider, whose prompt cache would be empty.
pub fn usage_at_provider(usage: &Usage, from: &str, to: &str) -> Usage {
    if from == to {
        return *usage;
    }
    uncached_usage(usage)
}

/// Returns the usage with all prompt tokens as uncached ones.
pub fn uncached_usage(usage: &Usage) -> Usage {
    Usage { cached_input_tokens: 0, cache_write_tokens: 0, cache_write_1h_tokens: 0, ..*usage }
}

impl Candidate {
    /// Ranks the names of one model; the highest rank is used.
    fn rank(&self) -> impl Ord + use<> {
        let name = &self.target.model;
        let length = Reverse(name.len());
        (self.answered, !is_dated(name), self.is_listed, length)
    }

    /// Returns the cost of these calls at the candidate instead of `current`.
    pub fn cost(&self, calls: &NodeCalls<'_>, current: &Target) -> Usd {
        calls.by_class().fold(Usd::ZERO, |cost, class| {
            let usage = usage_at_provider(&class.usage, &current.provider, &self.target.provider);
            let (count, longest) = (class.spend.calls, class.prompt_tokens_max);
            cost.plus(self.quote.cost_of_all(count, longest, &usage))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chat_models_are_recognized_by_whole_name_segments() {
        for name in [
            "gpt-4o",
            "gpt-4.1-nano",
            "meta-llama/llama-3.3-70b-instruct",
            "deepseek/deepseek-chat",
            "gpt-oss-120b",
            "claude-haiku-4-5-20251001",
            "vanguard-7b",
        ] {
            assert!(answers_with_text(name), "{name}");
        }
        for name in [
            "gpt-4o:extended",
            "openai/gpt-5.4:batch",
            "qwen/qwen3-8b:free",
            "meta-llama/llama-guard-4-12b",
            "openai/gpt-oss-safeguard-20b",
            "~deepseek/deepseek-latest",
            "gpt-4o-mini-tts",
            "gpt-4o-transcribe",
            "gpt-5-codex",
            "gpt-5-search-api",
            "text-embedding-3-small",
            "omni-moderation-latest",
            "whisper-1",
            "gpt-3.5-turbo-instruct-0914",
            "GPT-Image-1",
        ] {
            assert!(!answers_with_text(name), "{name}");
        }
    }

    #[test]
    fn reasoning_models_are_recognized_by_name() {
        for name in ["o3", "openai/o4-mini", "gpt-5-mini", "gemini-2.5-flash", "deepseek-reasoner"]
        {
            assert!(is_reasoning_model(name), "{name}");
        }
        for name in
            ["gpt-4o", "gpt-5-chat-latest", "gpt-4.1-mini", "claude-opus-4-5", "deepseek-chat"]
        {
            assert!(!is_reasoning_model(name), "{name}");
        }
    }

    #[test]
    fn only_the_newest_models_of_a_long_list_are_considered() {
        let listed = [Some(1), None, Some(3), Some(2)].map(|ms| Listed {
            name: format!("{ms:?}"),
            display_name: None,
            created_at: ms.map(Timestamp),
            context_tokens: None,
        });
        let names: Vec<&str> = (newest(&listed, 2).iter()).map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["Some(3)", "Some(2)"]);
    }

    #[test]
    fn the_prices_of_noon_apply_to_the_whole_day() {
        let noon = Timestamp(20_000 * MS_PER_DAY + MS_PER_DAY / 2);
        for ms in [0, 1, MS_PER_DAY - 1] {
            assert_eq!(priced_at(Timestamp(20_000 * MS_PER_DAY + ms)), noon);
        }
    }
}
