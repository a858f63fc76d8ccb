//! The models that providers list, requested rarely and kept in memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::providers::Listed;
use crate::time::Timestamp;

/// Time for which a list is valid: models change weekly.
const LIST_AGE_MS: i64 = 24 * 60 * 60 * 1000;
/// Pause after a provider failed to list its models.
const PAUSE_MS: i64 = 60 * 60 * 1000;

/// The newest list of each provider.
#[derive(Default)]
pub struct ModelCatalog {
    lists: BTreeMap<String, ModelList>,
}

struct ModelList {
    requested_at: Timestamp,
    age_max_ms: i64,
    models: Vec<Listed>,
}

impl ModelCatalog {
    /// Requests the outdated lists of these providers. If a request fails, the previous list stays:
    /// then fewer models are proposed.
    pub fn refresh(
        &mut self,
        providers: &BTreeSet<&str>,
        now: Timestamp,
        mut request: impl FnMut(&str) -> Result<Vec<Listed>, String>,
    ) {
        for provider in providers {
            // A clock set back does not make a list valid for longer.
            let is_valid = self.lists.get(*provider).is_some_and(|list| {
                let age_ms = now.0.saturating_sub(list.requested_at.0);
                (0..list.age_max_ms).contains(&age_ms)
            });
            if is_valid {
                continue;
            }
            let (models, age_max_ms) = match request(provider) {
                Ok(models) => (models, LIST_AGE_MS),
                Err(error) => {
                    log::debug!("cannot list models: {error}");
                    (self.of(provider).to_vec(), PAUSE_MS)
                }
            };
            let list = ModelList { requested_at: now, age_max_ms, models };
            self.lists.insert((*provider).to_owned(), list);
        }
    }

    /// Returns the known models of a provider's list.
    pub fn of(&self, provider: &str) -> &[Listed] {
        let list = self.lists.get(provider);
        list.map_or(&[], |list| &list.models)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_list_is_fetched_daily_and_hourly_after_an_error() {
        let providers = BTreeSet::from(["p"]);
        let mut catalog = ModelCatalog::default();
        let mut count = 0;
        let mut requested_at = |ms: i64, answer: Option<&str>| {
            let before = count;
            catalog.refresh(&providers, Timestamp(ms), |_| {
                count += 1;
                let model = |name: &str| Listed {
                    name: name.to_owned(),
                    display_name: None,
                    created_at: None,
                    context_tokens: None,
                };
                let answer = answer.ok_or("p: no list")?;
                Ok(vec![model(answer)])
            });
            let name = catalog.of("p").first().map(|model| model.name.clone());
            (count - before, name.unwrap_or_default())
        };
        let hour = 60 * 60 * 1000;
        assert_eq!(requested_at(0, None), (1, String::new()));
        assert_eq!(requested_at(hour - 1, Some("a")), (0, String::new()));
        assert_eq!(requested_at(hour, Some("a")), (1, "a".into()));
        assert_eq!(requested_at(25 * hour - 1, Some("b")), (0, "a".into()));
        assert_eq!(requested_at(25 * hour, None), (1, "a".into()));
        assert_eq!(requested_at(26 * hour, Some("b")), (1, "b".into()));
        assert_eq!(requested_at(0, Some("c")), (1, "c".into()));
    }
}
