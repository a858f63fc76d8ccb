//! What providers say they serve, asked seldom and kept in memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::Timestamp;
use crate::providers::Listed;

/// How long a list holds, in milliseconds: models come and go by the week.
const LIST_AGE_MS: i64 = 24 * 60 * 60 * 1000;
/// After how long a provider is asked again that gave none, in milliseconds.
const PAUSE_MS: i64 = 60 * 60 * 1000;

/// The newest list of each provider.
#[derive(Default)]
pub struct ModelCatalog {
    all: BTreeMap<String, ProviderModels>,
}

struct ProviderModels {
    asked_at: Timestamp,
    has_answered: bool,
    /// Also where the newest attempt failed: those of before, if there were any.
    models: Vec<Listed>,
}

impl ModelCatalog {
    /// Asks those of these providers whose list is too old. Where one gives none, what it gave before
    /// holds, and nobody is troubled: less is proposed then.
    pub fn refresh(
        &mut self,
        providers: &BTreeSet<String>,
        now: Timestamp,
        mut ask: impl FnMut(&str) -> Result<Vec<Listed>, String>,
    ) {
        for provider in providers {
            let known = self.all.get(provider);
            if known.is_some_and(|known| !known.is_due(now)) {
                continue;
            }
            let (models, has_answered) = match ask(provider) {
                Ok(models) => (models, true),
                Err(error) => {
                    log::debug!("it is not known which models there are: {error}");
                    (self.of(provider).to_vec(), false)
                }
            };
            let listing = ProviderModels {
                asked_at: now,
                has_answered,
                models,
            };
            self.all.insert(provider.clone(), listing);
        }
    }

    /// What a provider says it serves; nothing where that is not known.
    pub fn of(&self, provider: &str) -> &[Listed] {
        let listing = self.all.get(provider);
        listing.map_or(&[], |listing| &listing.models)
    }
}

impl ProviderModels {
    fn is_due(&self, now: Timestamp) -> bool {
        let age_max_ms = if self.has_answered {
            LIST_AGE_MS
        } else {
            PAUSE_MS
        };
        // A clock that was put back does not make it hold for longer.
        let age_ms = now.0.saturating_sub(self.asked_at.0);
        !(0..age_max_ms).contains(&age_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_asked_once_a_day_and_an_hour_after_it_gave_no_list() {
        let providers = BTreeSet::from(["p".to_owned()]);
        let mut listings = ModelCatalog::default();
        let mut count = 0;
        let mut asked_at = |ms: i64, answer: Option<&str>| {
            let before = count;
            listings.refresh(&providers, Timestamp(ms), |_| {
                count += 1;
                let model = |name: &str| Listed {
                    name: name.to_owned(),
                    created_at: None,
                    context_tokens: None,
                };
                let answer = answer.ok_or("p: no list")?;
                Ok(vec![model(answer)])
            });
            let name = listings.of("p").first().map(|model| model.name.clone());
            (count - before, name.unwrap_or_default())
        };
        let hour = 60 * 60 * 1000;
        assert_eq!(asked_at(0, None), (1, String::new()));
        assert_eq!(asked_at(hour - 1, Some("a")), (0, String::new()));
        assert_eq!(asked_at(hour, Some("a")), (1, "a".into()));
        assert_eq!(asked_at(25 * hour - 1, Some("b")), (0, "a".into()));
        assert_eq!(asked_at(25 * hour, None), (1, "a".into()));
        assert_eq!(asked_at(26 * hour, Some("b")), (1, "b".into()));
        assert_eq!(asked_at(0, Some("c")), (1, "c".into()));
    }
}
