//! The keys of each provider, and the choice of one for a call. A call that was chosen holds an
//! [`KeyLease`], which reports its result to the states of the provider and of the key.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Providers;
use super::call::Answer;
use super::config::{Kind, ProviderConfig, host};
use super::failure::{Failure, FailureKind, Fault};
use super::health::{Admission, Admitted, Health, HealthEvent, HealthRules, HealthState};
use crate::event::UsageSource;
use crate::secret::Secret;
use crate::time::Timestamp;

/// Limits the keys of one provider.
pub const POOL_KEYS_MAX: usize = 16;

/// Its status 403 means that the input was flagged:
/// <https://openrouter.ai/docs/api/reference/errors-and-debugging>.
const OPENROUTER: &str = "openrouter.ai";

/// A key of a provider.
#[derive(Clone, Debug)]
pub struct PoolKey {
    /// The name of its variable or file, or its place, such as `#2`.
    pub name: String,
    /// None if its variable is not set.
    pub key: Option<Secret>,
    /// Its share of the calls; no calls with 0.
    pub weight: u32,
}

impl PoolKey {
    pub fn is_usable(&self) -> bool {
        self.weight > 0 && self.key.as_ref().is_some_and(|key| !key.expose().is_empty())
    }
}

/// The states of a provider and its keys, for people.
#[derive(Clone, Debug)]
pub struct ProviderHealth {
    pub health: HealthView,
    pub keys: Vec<KeyHealth>,
}

#[derive(Clone, Debug)]
pub struct KeyHealth {
    pub name: String,
    pub weight: u32,
    pub health: HealthView,
}

#[derive(Clone, Debug)]
pub struct HealthView {
    /// One of [`STATES`].
    pub state: &'static str,
    /// The end of a pause.
    pub until: Option<Timestamp>,
    /// Failures since the last success.
    pub failures: u32,
    pub last_error: Option<(String, Timestamp)>,
    pub last_success: Option<Timestamp>,
}

/// The names of states. A key is missing if its variable is not set.
pub const STATES: [&str; 6] = ["ok", "cooling", "benched", "open", "half_open", "missing"];

/// The keys of all providers and their states.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pools: BTreeMap<String, Pool>,
    rules: HealthRules,
}

#[derive(Debug)]
struct Pool {
    name: String,
    /// The provider with each key, in the order of the pool; none for a key without a value.
    members: Vec<Option<ProviderConfig>>,
    keys: Vec<PoolKey>,
    /// True if the status 403 reports that the input was flagged.
    refuses_inputs: bool,
    states: Mutex<States>,
}

#[derive(Debug, Default)]
struct States {
    provider: Record,
    keys: Vec<Record>,
}

#[derive(Clone, Debug, Default)]
struct Record {
    health: Health,
    last_error: Option<(String, Timestamp)>,
    last_success: Option<Timestamp>,
}

/// The keys that a call may use.
#[derive(Clone, Copy, Debug)]
pub enum KeyChoice<'a> {
    /// One of the pool, except those at these places.
    Pool(&'a [usize]),
    /// The client's own key, whose failures say nothing about the pool.
    Own,
}

/// A call at a provider with a chosen key. Dropping it without a result changes no state.
#[must_use]
pub struct KeyLease<'a> {
    pool: Option<&'a Pool>,
    rules: &'a HealthRules,
    provider: Cell<Option<Admitted>>,
    key: Cell<Option<(usize, Admitted)>>,
}

impl Providers {
    /// Returns the keys of all providers.
    pub fn keys(&self) -> impl Iterator<Item = &Secret> {
        let keys = self.pools.pools.values().flat_map(|pool| &pool.keys);
        let pooled = keys.filter_map(|key| key.key.as_ref());
        pooled.chain(self.providers().filter_map(|(_, config)| config.key()))
    }
}

impl Pools {
    pub(super) fn new(
        providers: &BTreeMap<String, ProviderConfig>,
        mut keys: BTreeMap<String, Vec<PoolKey>>,
        names: &BTreeMap<String, String>,
        rules: HealthRules,
    ) -> Self {
        let pool = |(name, config): (&String, &ProviderConfig)| {
            let keys = keys.remove(name).unwrap_or_else(|| only_key(config, names.get(name)));
            (name.clone(), Pool::new(name, config, keys))
        };
        Self { pools: providers.iter().map(pool).collect(), rules }
    }

    /// Returns the provider with one of its keys: `key`, or the first one that works.
    pub(super) fn member(&self, provider: &str, key: Option<usize>) -> Option<&ProviderConfig> {
        let pool = self.pools.get(provider)?;
        if let Some(key) = key {
            return pool.members.get(key)?.as_ref();
        }
        let now = Instant::now();
        let states = pool.states();
        let works = |at: &usize| {
            pool.keys[*at].is_usable() && states.keys[*at].health.admission(now) == Admission::Free
        };
        let at = (0..pool.keys.len()).find(works);
        let first = || (0..pool.keys.len()).find(|at| pool.keys[*at].is_usable());
        pool.members.get(at.or_else(first)?)?.as_ref()
    }

    fn choose(
        &self,
        provider: &str,
        choice: KeyChoice<'_>,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Result<KeyLease<'_>, Option<Instant>> {
        let Some(pool) = self.pools.get(provider) else {
            return Ok(self.lease(None, None, None));
        };
        let now = Instant::now();
        let mut states = pool.states();
        let admission = states.provider.health.admission(now);
        let tried = match choice {
            KeyChoice::Pool(tried) if pool.has_keys() => tried,
            // Only the provider has a state.
            _ => {
                if let Admission::Pause(until) = admission {
                    return Err(Some(until));
                }
                let provider = Some(states.provider.health.begin(now));
                return Ok(self.lease(Some(pool), provider, None));
            }
        };
        let untried =
            (0..pool.keys.len()).filter(|at| pool.keys[*at].is_usable() && !tried.contains(at));
        let untried: Vec<usize> = untried.collect();
        let pause_of = |at: usize| match states.keys[at].health.admission(now) {
            Admission::Pause(until) => Some(until),
            _ => None,
        };
        let free: Vec<usize> =
            untried.iter().copied().filter(|at| pause_of(*at).is_none()).collect();
        if let Admission::Pause(until) = admission {
            return Err((!untried.is_empty()).then_some(until));
        }
        let weights: Vec<u32> = free.iter().map(|at| pool.keys[*at].weight).collect();
        let Some(place) = weighted(&weights, random) else {
            return Err(untried.iter().filter_map(|at| pause_of(*at)).min());
        };
        let at = free[place];
        let provider = Some(states.provider.health.begin(now));
        let key = Some((at, states.keys[at].health.begin(now)));
        Ok(self.lease(Some(pool), provider, key))
    }

    fn lease<'a>(
        &'a self,
        pool: Option<&'a Pool>,
        provider: Option<Admitted>,
        key: Option<(usize, Admitted)>,
    ) -> KeyLease<'a> {
        KeyLease { pool, rules: &self.rules, provider: Cell::new(provider), key: Cell::new(key) }
    }

    /// Chooses a key that does not pause, by weight, or else the one whose pause ends first.
    fn force(
        &self,
        provider: &str,
        choice: KeyChoice<'_>,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> KeyLease<'_> {
        let Some(pool) = self.pools.get(provider) else {
            return self.lease(None, None, None);
        };
        let now = Instant::now();
        let mut states = pool.states();
        let end = |at: &usize| match states.keys[*at].health.admission(now) {
            Admission::Pause(until) => until,
            _ => now,
        };
        let untried: Vec<usize> = match choice {
            KeyChoice::Own => Vec::new(),
            KeyChoice::Pool(tried) => (0..pool.keys.len())
                .filter(|at| pool.keys[*at].is_usable() && !tried.contains(at))
                .collect(),
        };
        let free: Vec<usize> = untried.iter().copied().filter(|at| end(at) <= now).collect();
        let weights: Vec<u32> = free.iter().map(|at| pool.keys[*at].weight).collect();
        let chosen = weighted(&weights, random).map(|place| free[place]);
        let key = chosen.or_else(|| untried.into_iter().min_by_key(end));
        let provider = Some(states.provider.health.begin(now));
        let key = key.map(|at| (at, states.keys[at].health.begin(now)));
        self.lease(Some(pool), provider, key)
    }
}

impl Pool {
    fn new(name: &str, config: &ProviderConfig, keys: Vec<PoolKey>) -> Self {
        let secrets: Vec<Secret> = keys.iter().filter_map(|key| key.key.clone()).collect();
        let mut secrets = Secret::pooled(&secrets).into_iter();
        let keys = keys.into_iter().map(|key| {
            let secret = key.key.is_some().then(|| secrets.next()).flatten();
            PoolKey { key: secret, ..key }
        });
        let keys: Vec<PoolKey> = keys.collect();
        let member = |key: &PoolKey| {
            let api_key = key.key.clone()?;
            Some(ProviderConfig { api_key: Some(api_key), ..config.clone() })
        };
        Self {
            name: name.to_owned(),
            refuses_inputs: host(config.base_url()) == OPENROUTER,
            members: keys.iter().map(member).collect(),
            states: Mutex::new(States {
                provider: Record::default(),
                keys: vec![Record::default(); keys.len()],
            }),
            keys,
        }
    }

    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_keys(&self) -> bool {
        self.keys.iter().any(PoolKey::is_usable)
    }
}

/// Returns the key of a provider without a pool; none if it needs no key.
fn only_key(config: &ProviderConfig, name: Option<&String>) -> Vec<PoolKey> {
    let key = config.key().cloned();
    if key.is_none() && (config.missing_key_hint.is_none() || config.kind == Kind::Echo) {
        return Vec::new();
    }
    let name = name.cloned().unwrap_or_else(|| "#1".to_owned());
    vec![PoolKey { name, key, weight: 1 }]
}

/// Chooses a place at random by weight; none if no place has a weight. `random` returns a number
/// below its argument.
pub fn weighted(weights: &[u32], random: &mut dyn FnMut(u32) -> u32) -> Option<usize> {
    let sum = weights.iter().fold(0, |sum: u32, weight| sum.saturating_add(*weight));
    if sum == 0 {
        return None;
    }
    let mut left = random(sum);
    weights.iter().position(|weight| {
        let is_chosen = left < *weight;
        left = left.saturating_sub(*weight);
        is_chosen
    })
}

impl KeyLease<'_> {
    /// Returns the place of the key in its pool; none if it has no keys, or for the client's own.
    pub fn key(&self) -> Option<usize> {
        self.key.get().map(|(at, _)| at)
    }

    /// Notes that a response has begun, so that other calls need not wait for the end of a probe.
    pub fn begun(&self) {
        let (provider, key) = (self.provider.get(), self.key.get());
        let is_probe = provider.is_some_and(|call| call.is_probe)
            || key.is_some_and(|(_, call)| call.is_probe);
        let Some(pool) = self.pool.filter(|_| is_probe) else {
            return;
        };
        let mut states = pool.states();
        let success = Some(HealthEvent::Success);
        self.note(pool, &mut states, (success, success), None);
        let now = Instant::now();
        self.provider.set(provider.map(|_| states.provider.health.begin(now)));
        self.key.set(key.map(|(at, _)| (at, states.keys[at].health.begin(now))));
    }

    /// Notes the result of the call.
    pub fn record(self, result: Result<&Answer, &Failure>) {
        let Some(pool) = self.pool else {
            return;
        };
        let events = match result {
            Ok(_) => (Some(HealthEvent::Success), Some(HealthEvent::Success)),
            Err(failure) => {
                let is_of_input = pool.refuses_inputs && failure.status == Some(403);
                (provider_event(failure), key_event(failure).filter(|_| !is_of_input))
            }
        };
        let message = result.err().map(|failure| failure.message.as_str());
        self.note(pool, &mut pool.states(), events, message);
    }

    /// Records the events of the provider and of the key. The drop releases calls without one.
    fn note(
        &self,
        pool: &Pool,
        states: &mut States,
        (of_provider, of_key): (Option<HealthEvent>, Option<HealthEvent>),
        message: Option<&str>,
    ) {
        let now = Instant::now();
        if let Some(event) = of_provider
            && let Some(call) = self.provider.take()
        {
            let name = format!("provider {}", pool.name);
            states.provider.record(&name, call, event, self.rules, now, message);
        }
        if let Some(event) = of_key
            && let Some((at, call)) = self.key.take()
        {
            let name = format!("key {} of provider {}", pool.keys[at].name, pool.name);
            states.keys[at].record(&name, call, event, self.rules, now, message);
        }
    }
}

/// Lets the next call be a probe, if this one was and has no result.
impl Drop for KeyLease<'_> {
    fn drop(&mut self) {
        let Some(pool) = self.pool else {
            return;
        };
        let mut states = pool.states();
        if let Some(call) = self.provider.get() {
            states.provider.health.release(call);
        }
        if let Some((at, call)) = self.key.get() {
            states.keys[at].health.release(call);
        }
    }
}

impl Record {
    fn record(
        &mut self,
        name: &str,
        call: Admitted,
        event: HealthEvent,
        rules: &HealthRules,
        now: Instant,
        message: Option<&str>,
    ) {
        let before = self.health.state();
        self.health.record(call, event, rules, now);
        match self.health.state() {
            after if after == before => {}
            HealthState::Ok => log::info!("{name} works again"),
            HealthState::Cooling(until)
            | HealthState::Benched(until)
            | HealthState::Open(until) => {
                let pause = until.saturating_duration_since(now);
                log::warn!("{name} pauses for {pause:?}: {}", message.unwrap_or_default());
            }
        }
        let at = Timestamp::now();
        match (event, message) {
            (HealthEvent::Success, _) => self.last_success = Some(at),
            (HealthEvent::Reached, _) => {}
            (_, message) => self.last_error = message.map(|message| (message.to_owned(), at)),
        }
    }

    fn view(&self, now: Instant) -> HealthView {
        let (state, until) = match self.health.state() {
            HealthState::Ok => ("ok", None),
            HealthState::Cooling(until) if until <= now => ("ok", None),
            HealthState::Cooling(until) => ("cooling", Some(until)),
            HealthState::Benched(until) | HealthState::Open(until) if until <= now => {
                ("half_open", None)
            }
            HealthState::Benched(until) => ("benched", Some(until)),
            HealthState::Open(until) => ("open", Some(until)),
        };
        let at = |until: Instant| {
            let left = until.saturating_duration_since(now);
            let left_ms = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
            Timestamp(Timestamp::now().0.saturating_add(left_ms))
        };
        HealthView {
            state,
            until: until.map(at),
            failures: self.health.failures(),
            last_error: self.last_error.clone(),
            last_success: self.last_success,
        }
    }
}

/// Returns what a failure says about the provider, if anything.
fn provider_event(failure: &Failure) -> Option<HealthEvent> {
    match (failure.kind, failure.status) {
        (FailureKind::Connect | FailureKind::Timeout, _) => Some(HealthEvent::Failure),
        (FailureKind::Status, Some(500..)) => Some(HealthEvent::Failure),
        (FailureKind::Status, Some(_)) => Some(HealthEvent::Reached),
        // For example a connection that is lost before the response.
        (FailureKind::BadAnswer, _) if failure.usage.source == UsageSource::None => {
            Some(HealthEvent::Failure)
        }
        _ => None,
    }
}

/// Returns what a failure says about the key, if anything. 402 reports an account without credit:
/// <https://api-docs.deepseek.com/quick_start/error_codes>,
/// <https://openrouter.ai/docs/api/reference/errors-and-debugging>.
fn key_event(failure: &Failure) -> Option<HealthEvent> {
    match failure.status {
        Some(401..=403) => Some(HealthEvent::Rejected),
        Some(429) => Some(HealthEvent::RateLimited(failure.retry_after)),
        _ => None,
    }
}

impl Failure {
    /// Returns whether another key of the provider may succeed.
    pub fn concerns_key(&self) -> bool {
        key_event(self).is_some()
    }
}

impl Providers {
    /// Sets the keys of providers that have a pool, the names of the keys of others, and when calls
    /// pause.
    pub fn with_pools(
        self,
        keys: BTreeMap<String, Vec<PoolKey>>,
        names: &BTreeMap<String, String>,
        rules: HealthRules,
    ) -> Self {
        Self { pools: Pools::new(&self.providers, keys, names, rules), ..self }
    }

    /// Chooses a key of a provider by weight, among those that work.
    ///
    /// # Errors
    /// Returns the end of the shortest pause if the provider or all its keys pause, and none if no
    /// key is left.
    pub fn choose(
        &self,
        provider: &str,
        choice: KeyChoice<'_>,
    ) -> Result<KeyLease<'_>, Option<Instant>> {
        self.pools.choose(provider, choice, &mut |below| fastrand::u32(..below))
    }

    /// Chooses a key of a provider that pauses, and begins a call in spite of it: it may still
    /// succeed, and no other would.
    pub fn choose_paused(&self, provider: &str, choice: KeyChoice<'_>) -> KeyLease<'_> {
        self.pools.force(provider, choice, &mut |below| fastrand::u32(..below))
    }

    /// Returns the state of a provider and its keys.
    pub fn health(&self, provider: &str) -> Option<ProviderHealth> {
        let pool = self.pools.pools.get(provider)?;
        let (now, states) = (Instant::now(), pool.states());
        let keys = pool.keys.iter().zip(&states.keys).map(|(key, record)| {
            let mut health = record.view(now);
            if key.key.is_none() {
                health.state = "missing";
            }
            KeyHealth { name: key.name.clone(), weight: key.weight, health }
        });
        Some(ProviderHealth { health: states.provider.view(now), keys: keys.collect() })
    }

    /// Returns the provider with one of its keys, if it can be called.
    pub(super) fn member(&self, name: &str, key: Option<usize>) -> Result<&ProviderConfig, Fault> {
        let provider = self.usable_provider(name)?;
        Ok(self.pools.member(name, key).unwrap_or(provider))
    }
}

#[cfg(test)]
mod tests;
