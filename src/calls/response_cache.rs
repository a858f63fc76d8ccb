//! Stored responses, for nodes and clients that allow reuse.
//!
//! The database stores them. This module adds the responses that are not there yet: calls in
//! flight, which identical calls wait for, and the newest responses, which may not be committed
//! yet.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::ids::hex;
use crate::providers::{Call, Kind};
use crate::store::{Bought, Store};
use crate::time::Timestamp;

/// Limits the newest responses in memory. Fewer than this can wait for their commit.
const NEWEST_MAX: usize = 400;
/// Limits the total size of their texts, in bytes; a single text has up to 4 MiB.
const NEWEST_BYTES_MAX: usize = 64 << 20;

/// Accepts responses from the near future, because clocks get corrected. A timestamp further ahead
/// came from a wrong clock, so the age of the response is unknown.
const AHEAD_MAX_MS: i64 = 60 * 1000;

/// Interval at which a caller checks that an identical call has ended.
pub const SAME_CALL_POLL: Duration = Duration::from_millis(50);

/// Clones share all state.
#[derive(Clone)]
pub struct ResponseCache {
    store: Arc<Store>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    in_flight: HashSet<String>,
    newest: VecDeque<Arc<Bought>>,
    newest_bytes: usize,
}

pub enum CacheLookup {
    Answer(Arc<Bought>),
    /// An identical call is in flight.
    InFlight,
    /// The caller makes the call; identical calls wait while it holds the guard.
    Nothing(FillGuard),
}

/// The exclusive right to make a call whose response is to be cached.
pub struct FillGuard {
    cache: ResponseCache,
    key: String,
}

impl ResponseCache {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, state: Arc::default() }
    }

    /// Looks for a response no older than `age_max`.
    ///
    /// # Errors
    /// Read errors of the database.
    pub fn lookup(&self, key: &str, age_max: Duration, now: Timestamp) -> Result<CacheLookup> {
        let age_max_ms = i64::try_from(age_max.as_millis()).unwrap_or(i64::MAX);
        let since = Timestamp(now.0.saturating_sub(age_max_ms));
        let until = Timestamp(now.0.saturating_add(AHEAD_MAX_MS));
        let mut state = self.state();
        let is_match =
            |response: &&Arc<Bought>| response.key == key && (since..=until).contains(&response.at);
        if let Some(response) = state.newest.iter().rev().find(is_match) {
            return Ok(CacheLookup::Answer(Arc::clone(response)));
        }
        if state.in_flight.contains(key) {
            return Ok(CacheLookup::InFlight);
        }
        // Under the lock, so that only one of two concurrent callers makes the call.
        if let Some(response) = self.store.answer(key, since, until)? {
            return Ok(CacheLookup::Answer(Arc::new(response)));
        }
        state.in_flight.insert(key.to_owned());
        Ok(CacheLookup::Nothing(FillGuard { cache: self.clone(), key: key.to_owned() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FillGuard {
    /// Makes the response from `with_key` available to other callers, and returns it for storage.
    pub fn done(self, with_key: impl FnOnce(String) -> Bought) -> Arc<Bought> {
        let response = Arc::new(with_key(self.key.clone()));
        let mut state = self.cache.state();
        state.newest_bytes += response.output.len();
        state.newest.push_back(Arc::clone(&response));
        while (state.newest.len() > NEWEST_MAX || state.newest_bytes > NEWEST_BYTES_MAX)
            && let Some(oldest) = state.newest.pop_front()
        {
            state.newest_bytes -= oldest.output.len();
        }
        drop(state);
        response
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.cache.state().in_flight.remove(&self.key);
    }
}

/// Returns the cache key of a node's call: the SHA-256, in hexadecimal, of all data that affects
/// the response. `server` is the kind and address of the provider. Marks for the provider's prompt
/// cache are left out, because they change only the cost.
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
            key: None,
        }
    }

    #[test]
    fn cached_responses_stay_within_the_memory_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(dir.path()).unwrap();
        let answers = ResponseCache::new(Arc::new(store));
        let age_max = Duration::from_secs(60);
        let lookup =
            |call: &Call| answers.lookup(&key_of(call, None), age_max, Timestamp(0)).unwrap();
        for at in 0..40 {
            let call = call(at.to_string());
            let CacheLookup::Nothing(fill) = lookup(&call) else {
                panic!("bought before");
            };
            let response = |key| Bought {
                key,
                at: Timestamp(0),
                model: "m".into(),
                output: "x".repeat(4 << 20),
                content_type: None,
                cost: None,
            };
            fill.done(response);
            assert!(matches!(lookup(&call), CacheLookup::Answer(_)));
            let state = answers.state();
            let bytes: usize = state.newest.iter().map(|response| response.output.len()).sum();
            assert!(bytes <= NEWEST_BYTES_MAX, "{bytes}");
        }
    }
}
