//! The models that calls could be made at: those that the user's flows use, and those that their
//! providers say they serve. What has a price is not therefore served: prices outlive their models.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::event::{Timestamp, Usage, Usd};
use crate::providers::{Kind, Listed, Providers, Quote};

use super::call_stats::{Calls, MS_PER_DAY, Target};
use super::model_catalog::ModelCatalog;

/// Parts of the names of models that are for something else than to answer a question with text, or under
/// other terms, as OpenAI, OpenRouter and others name them.
const OTHER_MODELS: &[&str] = &[
    "audio",
    "babbage",
    "batch",
    // For programs that write code, and served in another protocol.
    "codex",
    "computer",
    "dall",
    "davinci",
    "embed",
    "embedding",
    "embeddings",
    "extended",
    // Limited to so few calls that no flow could rest on it.
    "free",
    "guard",
    "image",
    "imagen",
    "live",
    "moderation",
    "ocr",
    "realtime",
    "rerank",
    "reranker",
    "research",
    "robotics",
    "safeguard",
    "search",
    "sora",
    "transcribe",
    "tts",
    "veo",
    "whisper",
];
/// Names of such models that no part tells, from their beginning.
const OTHER_BEGINNINGS: &[&str] = &["~", "chatgpt-", "gpt-3.5-turbo-instruct"];
/// Parts of the names of models that think before they answer, unasked.
const THINKING_PARTS: &[&str] = &[
    "magistral",
    "o1",
    "o3",
    "o4",
    "qwq",
    "r1",
    "reasoner",
    "reasoning",
    "thinking",
];
/// And beginnings, behind that of who makes them.
const THINKING_BEGINNINGS: &[&str] = &["gpt-5", "gpt-6", "gpt-oss", "gemini-2.5", "gemini-3"];
/// How many of the newest models that a provider lists are looked at; the largest routers list some
/// hundreds.
const LISTED_MAX: usize = 1_000;
/// A number in a name that has so many digits at least is a date, or a part of one.
const DATE_DIGITS_MIN: usize = 4;

/// A model that could be asked.
pub struct Candidate {
    /// The provider's name and the model's.
    pub target: Target,
    /// What it costs.
    pub quote: Quote,
    /// How many calls of flows it has answered lately.
    pub answered: u64,
    /// When it was made, as its provider says.
    pub created_at: Option<Timestamp>,
    /// How many tokens a prompt and its answer may have, as its provider says.
    context_tokens: Option<u64>,
    /// Whether its provider says that it serves it.
    is_listed: bool,
}

/// All that could be asked.
pub struct Models {
    /// Each model once, by one of its names.
    candidates: Vec<Candidate>,
    /// When the listed ones were made, with what they cost.
    dates: BTreeMap<Target, (Timestamp, Quote)>,
}

/// The moment whose prices count at another: the noon of its day in UTC, so that what is proposed does
/// not come and go with prices that depend on the time of day.
pub fn priced_at(now: Timestamp) -> Timestamp {
    Timestamp((now.0.div_euclid(MS_PER_DAY) * MS_PER_DAY).saturating_add(MS_PER_DAY / 2))
}

impl Models {
    /// Those with a price, at providers that can be used; `answered` is what flows have used lately.
    pub fn new(
        providers: &Providers,
        answered: &BTreeMap<Target, u64>,
        listings: &ModelCatalog,
        now: Timestamp,
    ) -> Self {
        let usable = providers.providers().filter(|(name, provider)| {
            provider.kind != Kind::Echo && providers.check(name).is_ok()
        });
        let mut models = Self {
            candidates: Vec::new(),
            dates: BTreeMap::new(),
        };
        for (provider, _) in usable {
            let listed = newest(listings.of(provider), LISTED_MAX);
            let listed = listed.into_iter().map(|it| (it.name.as_str(), Some(it)));
            let used = answered.keys().filter(|(of, _)| of == provider);
            let mut names: BTreeMap<&str, Option<&Listed>> =
                used.map(|(_, model)| (model.as_str(), None)).collect();
            names.extend(listed);
            let mut found: Vec<Candidate> = Vec::new();
            for (name, listed) in names {
                let Some(quote) = providers.quote(provider, &[name], priced_at(now)) else {
                    continue;
                };
                let target = (provider.to_owned(), name.to_owned());
                let created_at = listed.and_then(|listed| listed.created_at);
                if let Some(at) = created_at {
                    models.dates.insert(target.clone(), (at, quote.clone()));
                }
                // What bills no answers gives none.
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
                let same = found
                    .iter_mut()
                    .find(|it| it.quote.is_same_as(&candidate.quote));
                match same {
                    Some(other) if candidate.rank() > other.rank() => *other = candidate,
                    Some(_) => {}
                    None => found.push(candidate),
                }
            }
            models.candidates.append(&mut found);
        }
        models
    }

    /// All of them, each by the name that flows use most, else by the shortest one without a date.
    pub fn all(&self) -> &[Candidate] {
        &self.candidates
    }

    /// When a model was made, as its provider says of it or, where it is asked by a name that is not
    /// listed, of the newest that it may mean; none where that is not known.
    fn created_at(
        &self,
        providers: &Providers,
        target: &Target,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if let Some((at, _)) = self.dates.get(target) {
            return Some(*at);
        }
        let quote = providers.quote(&target.0, &[&target.1], priced_at(now))?;
        let listed = self.dates.iter().filter(|(other, _)| other.0 == target.0);
        let same = listed.filter(|(_, (_, other))| other.is_same_as(&quote));
        same.map(|(_, (at, _))| *at).max()
    }

    /// Those that could be asked instead of `present`, whose calls had up to so many tokens with their
    /// answers, and thought or not: those that flows use for `used_min` calls at least, and those at the
    /// same provider and of the same maker that are listed and not older.
    pub fn instead_of(
        &self,
        providers: &Providers,
        present: &Target,
        used_min: u64,
        tokens_max: u64,
        has_thought: bool,
        now: Timestamp,
    ) -> impl Iterator<Item = &Candidate> {
        let has_thought = has_thought || thinks(&present.1);
        let made_at = self.created_at(providers, present, now);
        self.candidates.iter().filter(move |it| {
            let is_not_older = it
                .created_at
                .zip(made_at)
                .is_some_and(|(its, present)| its >= present);
            let is_next = it.is_listed
                && it.target.0 == present.0
                && maker(&it.target.1) == maker(&present.1)
                && is_not_older;
            it.target != *present
                && (it.answered >= used_min || is_next)
                && it.context_tokens.is_none_or(|most| most >= tokens_max)
                // Its answers would have more tokens than these had.
                && (has_thought || !thinks(&it.target.1))
        })
    }
}

/// The newest of those that a provider lists, up to so many.
fn newest(listed: &[Listed], most: usize) -> Vec<&Listed> {
    let mut listed: Vec<&Listed> = listed.iter().collect();
    listed.sort_by_key(|it| Reverse(it.created_at));
    listed.truncate(most);
    listed
}

/// Who makes a model, where a router writes that before its name.
fn maker(name: &str) -> Option<&str> {
    name.split_once('/').map(|(maker, _)| maker)
}

fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_ascii_alphanumeric())
}

/// Whether a name tells nothing else.
fn answers_with_text(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_other = parts(&name).any(|part| OTHER_MODELS.contains(&part))
        || OTHER_BEGINNINGS.iter().any(|start| name.starts_with(start));
    !is_other
}

fn thinks(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let own = name.rsplit('/').next().unwrap_or(&name);
    // OpenAI's `-chat` are those that do not.
    let is_chat = parts(own).any(|part| part == "chat");
    parts(own).any(|part| THINKING_PARTS.contains(&part))
        || (!is_chat
            && THINKING_BEGINNINGS
                .iter()
                .any(|start| own.starts_with(start)))
}

fn is_dated(name: &str) -> bool {
    parts(name)
        .any(|part| part.len() >= DATE_DIGITS_MIN && part.bytes().all(|b| b.is_ascii_digit()))
}

/// What a call to one provider would have used at another. What one has kept of a prompt another has
/// not: there it counts as an ordinary prompt.
pub fn at_another(usage: &Usage, from: &str, to: &str) -> Usage {
    if from == to {
        return *usage;
    }
    Usage {
        cached_input_tokens: 0,
        cache_write_tokens: 0,
        cache_write_1h_tokens: 0,
        ..*usage
    }
}

impl Candidate {
    /// Of several names of one model the one with the highest is taken.
    fn rank(&self) -> impl Ord + use<> {
        let name = &self.target.1;
        let length = Reverse(name.len());
        (self.answered, !is_dated(name), self.is_listed, length)
    }

    /// What these calls would cost there, of which `present` is the target they were made at.
    pub fn cost(&self, calls: &Calls, present: &Target) -> Usd {
        calls.classes().fold(Usd::ZERO, |sum, class| {
            let usage = at_another(&class.usage, &present.0, &self.target.0);
            let count = class.amount.calls;
            sum.plus(
                self.quote
                    .cost_of_all(count, class.prompt_tokens_max, &usage),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_for_something_else_are_told_by_whole_parts() {
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
    fn models_that_think_are_told_from_those_that_answer_at_once() {
        for name in [
            "o3",
            "openai/o4-mini",
            "gpt-5-mini",
            "gemini-2.5-flash",
            "deepseek-reasoner",
        ] {
            assert!(thinks(name), "{name}");
        }
        for name in [
            "gpt-4o",
            "gpt-5-chat-latest",
            "gpt-4.1-mini",
            "claude-opus-4-5",
            "deepseek-chat",
        ] {
            assert!(!thinks(name), "{name}");
        }
    }

    #[test]
    fn of_a_list_that_is_too_long_the_newest_are_looked_at() {
        let listed = [Some(1), None, Some(3), Some(2)].map(|ms| Listed {
            name: format!("{ms:?}"),
            created_at: ms.map(Timestamp),
            context_tokens: None,
        });
        let names: Vec<&str> = (newest(&listed, 2).iter())
            .map(|it| it.name.as_str())
            .collect();
        assert_eq!(names, ["Some(3)", "Some(2)"]);
    }

    #[test]
    fn prices_of_a_day_are_those_of_its_noon() {
        let noon = Timestamp(20_000 * MS_PER_DAY + MS_PER_DAY / 2);
        for ms in [0, 1, MS_PER_DAY - 1] {
            assert_eq!(priced_at(Timestamp(20_000 * MS_PER_DAY + ms)), noon);
        }
    }
}
