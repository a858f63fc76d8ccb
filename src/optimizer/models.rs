//! The models that calls could be made at: those of the user's own providers whose prices are known.

use std::collections::BTreeMap;

use crate::event::{Timestamp, Usage, Usd};
use crate::gateway::{Gateway, Kind, Quote};

use super::facts::{Calls, Target};

/// Parts of names of models that do not answer a chat with text, as OpenAI and others name them.
const OTHER_MODELS: &[&str] = &[
    "audio",
    "codex",
    "computer-use",
    "dall-e",
    "embed",
    "image",
    "instruct",
    "live",
    "moderation",
    "realtime",
    "rerank",
    "robotics",
    "search",
    "transcribe",
    "tts",
    "veo",
    "whisper",
];

/// A model that could be asked.
pub struct Candidate {
    /// The provider's name and the model's.
    pub target: Target,
    /// What it costs now.
    pub quote: Quote,
    /// How many calls of flows it has answered lately.
    pub answered: u64,
}

/// All that could be asked.
pub struct Models {
    candidates: Vec<Candidate>,
}

impl Models {
    /// Those with a price at that moment, at providers that can be used; `answered` is what flows have
    /// used lately.
    pub fn new(gateway: &Gateway, answered: &BTreeMap<Target, u64>, at: Timestamp) -> Self {
        let usable = gateway
            .providers()
            .filter(|(name, provider)| provider.kind != Kind::Echo && gateway.check(name).is_ok());
        let mut candidates = Vec::new();
        for (provider, _) in usable {
            let mut names: Vec<&str> = gateway.priced_models(provider);
            names.retain(|name| !OTHER_MODELS.iter().any(|part| name.contains(part)));
            let used = answered.keys().filter(|(of, _)| of == provider);
            names.extend(used.map(|(_, model)| model.as_str()));
            names.sort_unstable();
            names.dedup();
            for name in names {
                let Some(quote) = gateway.quote(provider, &[name], at) else {
                    continue;
                };
                // What bills no answers gives none.
                if quote.rates(0).output == 0 {
                    continue;
                }
                let target = (provider.to_owned(), name.to_owned());
                let answered = answered.get(&target).copied().unwrap_or(0);
                candidates.push(Candidate {
                    target,
                    quote,
                    answered,
                });
            }
        }
        Self { candidates }
    }

    /// All of them.
    pub fn all(&self) -> &[Candidate] {
        &self.candidates
    }
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
    /// What these calls would cost there, of which `present` is the target they were made at.
    pub fn cost(&self, calls: &Calls, present: &Target) -> Usd {
        let classes = calls.answered.values();
        classes.fold(Usd::ZERO, |sum, class| {
            let usage = at_another(&class.usage, &present.0, &self.target.0);
            let count = class.amount.calls;
            sum.plus(
                self.quote
                    .cost_of_all(count, class.prompt_tokens_max, &usage),
            )
        })
    }
}
