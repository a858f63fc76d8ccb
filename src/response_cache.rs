//! Answers that were bought before, for nodes and clients that want none bought twice.
//!
//! They are in the database; here is what is not there yet: the calls under way whose answers others
//! may wait for, and the newest answers, whose rows may still be on their way to the database.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::event::{Timestamp, hex};
use crate::providers::{Call, Kind};
use crate::store::{Bought, Store};

/// How many of the newest answers are kept here: as many calls as there may be, twice over.
const NEWEST_MAX: usize = 200;
/// How many bytes of text they may have together: the largest answers are of 4 MiB each.
const NEWEST_BYTES_MAX: usize = 64 << 20;

/// An answer from later than now, by so many milliseconds at most, may still be taken: clocks are
/// corrected. One from later still is of a clock that was ahead, and nobody knows how old it is.
const AHEAD_MAX_MS: i64 = 60 * 1000;

/// How long to wait before looking again whether the same call, made by another, is over.
pub const SAME_CALL_POLL: Duration = Duration::from_millis(50);

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct ResponseCache {
    store: Arc<Store>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    in_flight: HashSet<String>,
    newest: VecDeque<Arc<Bought>>,
    /// Of their texts together.
    newest_bytes: usize,
}

/// What there is.
pub enum CacheLookup {
    /// The answer.
    Answer(Arc<Bought>),
    /// Somebody is buying it.
    InFlight,
    /// Nothing: it is to be bought, and others wait for it while this is held.
    Nothing(FillGuard),
}

/// Held while an answer is bought.
pub struct FillGuard {
    answers: ResponseCache,
    key: String,
}

impl ResponseCache {
    /// None yet, but for those in the database.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            state: Arc::default(),
        }
    }

    /// Looks for the answer of that key that is no older than `age_max`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn look(&self, key: String, age_max: Duration, now: Timestamp) -> Result<CacheLookup> {
        let age_max_ms = i64::try_from(age_max.as_millis()).unwrap_or(i64::MAX);
        let since = Timestamp(now.0.saturating_sub(age_max_ms));
        let until = Timestamp(now.0.saturating_add(AHEAD_MAX_MS));
        let mut state = self.state();
        let is_it =
            |bought: &&Arc<Bought>| bought.key == key && (since..=until).contains(&bought.at);
        if let Some(bought) = state.newest.iter().rev().find(is_it) {
            return Ok(CacheLookup::Answer(Arc::clone(bought)));
        }
        if state.in_flight.contains(&key) {
            return Ok(CacheLookup::InFlight);
        }
        // Under the lock, so that of two who ask at once one buys.
        if let Some(bought) = self.store.answer(&key, since, until)? {
            return Ok(CacheLookup::Answer(Arc::new(bought)));
        }
        state.in_flight.insert(key.clone());
        let answers = self.clone();
        Ok(CacheLookup::Nothing(FillGuard { answers, key }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FillGuard {
    /// What the answer is found under.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// It was bought: others find it from now on. Gives it, to be stored.
    pub fn done(self, bought: Bought) -> Arc<Bought> {
        let bought = Arc::new(bought);
        let mut state = self.answers.state();
        state.newest_bytes += bought.output.len();
        state.newest.push_back(Arc::clone(&bought));
        while (state.newest.len() > NEWEST_MAX || state.newest_bytes > NEWEST_BYTES_MAX)
            && let Some(oldest) = state.newest.pop_front()
        {
            state.newest_bytes -= oldest.output.len();
        }
        drop(state);
        bought
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.answers.state().in_flight.remove(&self.key);
    }
}

/// What the answer to a node's call is found under: SHA-256 of all that it depends on, in hexadecimal.
/// `server` is who answers under the provider's name. What is marked for the provider's cache is not
/// among it: it changes what a call costs, not what is asked.
pub fn key_of(call: &Call, server: Option<(Kind, &str)>) -> String {
    let all = serde_json::json!([
        call.provider,
        server,
        call.model,
        call.system,
        call.prompt,
        call.max_tokens,
        call.temperature,
    ]);
    hex(&Sha256::digest(all.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::CacheMarks;

    fn call(prompt: String) -> Call {
        Call {
            provider: "p".into(),
            model: "m".into(),
            system: None,
            prompt,
            max_tokens: None,
            temperature: None,
            stream: false,
            first_byte_timeout: None,
            total_timeout: None,
            cache_marks: CacheMarks::default(),
        }
    }

    #[test]
    fn the_newest_answers_take_no_more_memory_than_they_may_and_the_last_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(dir.path()).unwrap();
        let answers = ResponseCache::new(Arc::new(store));
        let age_max = Duration::from_secs(60);
        let look = |call: &Call| {
            answers
                .look(key_of(call, None), age_max, Timestamp(0))
                .unwrap()
        };
        for at in 0..40 {
            let call = call(at.to_string());
            let CacheLookup::Nothing(fill) = look(&call) else {
                panic!("bought before");
            };
            let bought = Bought {
                key: fill.key().to_owned(),
                at: Timestamp(0),
                model: "m".into(),
                output: "x".repeat(4 << 20),
                content_type: None,
                cost: None,
            };
            fill.done(bought);
            assert!(matches!(look(&call), CacheLookup::Answer(_)));
            let state = answers.state();
            let bytes: usize = state.newest.iter().map(|bought| bought.output.len()).sum();
            assert!(bytes <= NEWEST_BYTES_MAX, "{bytes}");
        }
    }
}
