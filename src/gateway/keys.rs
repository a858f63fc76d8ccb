//! Virtual keys: each is valid only for the gateway. The key itself is shown once, at its creation;
//! only its SHA-256 is stored, and lookups use it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde_json::Value;

use super::key_rate::KeyLimiter;
use crate::budget::{self, Budget};
use crate::error::{Error, Fault, Result};
use crate::ids::FlowId;
use crate::journal::Journal;
use crate::providers::{REQUESTS_PER_MINUTE_MAX, Rate};
use crate::secret::Secret;
use crate::store::{
    Change, FORMER_KEYS_MAX, KeyEdit, KeyLimits, KeyRecord, NewKey, Receipt, Store,
};
use crate::time::Timestamp;

pub const PREFIX: &str = "fl-";
/// The hexadecimal digits of a key after its prefix.
pub(super) const KEY_DIGITS: usize = 64;
const KEYS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 100;
/// More than any provider serves to one account.
const TOKENS_PER_MINUTE_MAX: u64 = 1_000_000_000_000;
/// The resolution of `last_used_at`.
const TOUCH_INTERVAL_MS: i64 = 60_000;

/// All keys, shared by all threads.
pub struct Keys {
    journal: Journal,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    /// Keyed by hash, so that the time of a lookup reveals nothing about a key.
    by_hash: HashMap<String, HashEntry>,
    by_id: HashMap<i64, KeyEntry>,
}

struct HashEntry {
    id: i64,
    /// The end of the validity of a former hash; none for the current one.
    valid_until: Option<Timestamp>,
}

struct KeyEntry {
    name: Arc<str>,
    hash: String,
    revision: i64,
    expires_at: Option<Timestamp>,
    flows: Arc<[FlowId]>,
    models: Option<Arc<[String]>>,
    limiter: Arc<KeyLimiter>,
    touched_ms: AtomicI64,
}

impl KeyEntry {
    fn new(record: KeyRecord) -> Self {
        let mut entry = Self {
            name: record.name.as_str().into(),
            hash: String::new(),
            revision: 0,
            expires_at: None,
            flows: Arc::default(),
            models: None,
            limiter: Arc::default(),
            touched_ms: AtomicI64::new(record.last_used_at.map_or(0, |at| at.0)),
        };
        entry.set(record);
        entry
    }

    /// Sets the editable values.
    fn set(&mut self, record: KeyRecord) {
        let KeyLimits { flows, models, requests_per_minute, tokens_per_minute } = record.limits;
        self.hash = record.hash;
        self.revision = record.revision;
        self.expires_at = record.expires_at;
        self.flows = flows.into();
        self.models = models.map(Into::into);
        self.limiter.set_rate(Rate { requests_per_minute, tokens_per_minute, ..Rate::default() });
    }

    /// Notes a use. Returns its time if that should be stored.
    fn touch(&self) -> Option<Timestamp> {
        let at = Timestamp::now();
        let before = self.touched_ms.load(Ordering::Relaxed);
        let is_due = at.0.abs_diff(before) >= TOUCH_INTERVAL_MS.unsigned_abs();
        let exchanged = is_due.then(|| {
            self.touched_ms.compare_exchange(before, at.0, Ordering::Relaxed, Ordering::Relaxed)
        });
        // Of two concurrent uses, only one stores the time.
        exchanged?.ok().map(|_| at)
    }
}

impl Entries {
    fn insert(&mut self, record: KeyRecord) {
        let (id, hash) = (record.id, record.hash.clone());
        self.by_hash.insert(hash, HashEntry { id, valid_until: None });
        self.by_id.insert(id, KeyEntry::new(record));
    }

    /// Applies an edit. Commits may be applied in another order, so older ones are ignored, and so
    /// are those of deleted keys.
    fn update(&mut self, record: KeyRecord) {
        let id = record.id;
        if let Some(entry) = self.by_id.get_mut(&id)
            && entry.revision < record.revision
        {
            entry.set(record);
            // A rotation replaces the hash and inserts the former one before.
            let hash = HashEntry { id, valid_until: None };
            self.by_hash.insert(entry.hash.clone(), hash);
        }
    }

    fn insert_former(&mut self, hash: String, id: i64, valid_until: Timestamp) {
        if !self.by_id.contains_key(&id) {
            return;
        }
        self.by_hash.insert(hash, HashEntry { id, valid_until: Some(valid_until) });
        let former = self.by_hash.iter().filter(|(_, it)| it.id == id);
        let mut former: Vec<(Timestamp, String)> =
            former.filter_map(|(hash, it)| Some((it.valid_until?, hash.clone()))).collect();
        former.sort_by(|one, other| other.cmp(one));
        for (_, oldest) in former.into_iter().skip(FORMER_KEYS_MAX) {
            self.by_hash.remove(&oldest);
        }
    }
}

#[derive(Clone, Debug)]
pub enum KeyLookup {
    Valid(ValidKey),
    Expired,
    /// Replaced by another key, and no longer valid.
    Rotated,
    /// Not a virtual key of this server.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct ValidKey {
    pub id: i64,
    pub name: Arc<str>,
    /// The flows that its calls may name.
    pub flows: Arc<[FlowId]>,
    /// Patterns of the models that it may use; none for all.
    pub models: Option<Arc<[String]>>,
    pub limiter: Arc<KeyLimiter>,
}

impl Keys {
    pub fn load(store: &Store, journal: Journal) -> Result<Self> {
        let mut entries = Entries::default();
        for record in store.keys()? {
            entries.insert(record);
        }
        for former in store.former_keys()? {
            entries.insert_former(former.hash, former.key_id, former.valid_until);
        }
        Ok(Self { journal, entries: RwLock::new(entries) })
    }

    /// Creates a key and its budget, both or neither. The budget has the name of the key unless it
    /// has its own. Returns the key, which is not stored, and its record.
    pub fn create(
        &self,
        name: &str,
        expires_at: Option<Timestamp>,
        limits: KeyLimits,
        budget: Option<Value>,
    ) -> Result<(KeyRecord, Secret)> {
        let at = Timestamp::now();
        let mut faults = Vec::new();
        if !is_name(name) {
            let fault = format!(
                "must be a string of 1 to {NAME_BYTES_MAX} bytes, without control characters or \
                 surrounding spaces"
            );
            faults.push(Fault::new("name", fault));
        }
        check_expiry(expires_at, at, &mut faults);
        check_rates(limits.requests_per_minute, limits.tokens_per_minute, &mut faults);
        let budget = budget.and_then(|document| own_budget(document, name, &mut faults));
        refuse("cannot create the key", faults)?;
        if self.entries().by_id.len() >= KEYS_MAX {
            return Err(Error::Busy(format!("too many keys; the limit is {KEYS_MAX}")));
        }
        let key = new_key()?;
        let (name, hash) = (name.to_owned(), key.hash());
        let new = NewKey {
            name: name.clone(),
            hash: hash.clone(),
            expires_at,
            limits: limits.clone(),
            at,
        };
        let mut changes = vec![Change::CreateKey(new)];
        changes.extend(budget.map(Change::AddBudget));
        let receipts = self.journal.commit(changes)?;
        let Some(&Receipt::Key(id)) = receipts.first() else {
            return Err(Error::internal("the journal returned no id for the key"));
        };
        let record = KeyRecord {
            id,
            name,
            hash,
            created_at: at,
            last_used_at: None,
            expires_at,
            revision: 0,
            limits,
        };
        self.entries_mut().insert(record.clone());
        Ok((record, key))
    }

    /// Changes a key, which has its new limits once this returns.
    pub fn edit(&self, id: i64, edit: KeyEdit) -> Result<KeyRecord> {
        let mut faults = Vec::new();
        check_expiry(edit.expires_at.flatten(), Timestamp::now(), &mut faults);
        let (requests, tokens) = (edit.requests_per_minute, edit.tokens_per_minute);
        check_rates(requests.flatten(), tokens.flatten(), &mut faults);
        refuse("cannot edit the key", faults)?;
        let (record, _) = self.commit_edit(Change::EditKey { id, edit })?;
        self.entries_mut().update(record.clone());
        Ok(record)
    }

    /// Replaces a key by a new one, which is not stored. The current one stays valid for `grace`.
    pub fn rotate(&self, id: i64, grace: Duration) -> Result<(KeyRecord, Secret)> {
        let (key, at) = (new_key()?, Timestamp::now());
        let grace_ms = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
        let valid_until = Timestamp(at.0.saturating_add(grace_ms));
        let change = Change::RotateKey { id, hash: key.hash(), valid_until, at };
        let (record, former) = self.commit_edit(change)?;
        let mut entries = self.entries_mut();
        entries.insert_former(former, id, valid_until);
        entries.update(record.clone());
        Ok((record, key))
    }

    fn commit_edit(&self, change: Change) -> Result<(KeyRecord, String)> {
        match self.journal.commit_one(change)? {
            Receipt::EditedKey(record, hash_before) => Ok((*record, hash_before)),
            _ => Err(Error::internal("the journal returned no key")),
        }
    }

    /// Deletes a key, which is invalid once this returns.
    pub fn delete(&self, id: i64, with_budgets: bool) -> Result<()> {
        self.journal.commit_one(Change::DeleteKey { id, with_budgets })?;
        let mut entries = self.entries_mut();
        entries.by_hash.retain(|_, entry| entry.id != id);
        entries.by_id.remove(&id);
        Ok(())
    }

    pub fn find(&self, presented: &Secret) -> KeyLookup {
        let entries = self.entries();
        // Most servers have no keys, so skip the hash.
        if entries.by_hash.is_empty() {
            return KeyLookup::Unknown;
        }
        let now = Timestamp::now();
        let is_over = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
        let found = entries.by_hash.get(&presented.hash());
        let found = found.and_then(|found| Some((found, entries.by_id.get(&found.id)?)));
        match found {
            None => KeyLookup::Unknown,
            Some((_, key)) if is_over(key.expires_at) => KeyLookup::Expired,
            Some((found, _)) if is_over(found.valid_until) => KeyLookup::Rotated,
            Some((found, key)) => {
                let id = found.id;
                let valid = ValidKey {
                    id,
                    name: Arc::clone(&key.name),
                    flows: Arc::clone(&key.flows),
                    models: key.models.clone(),
                    limiter: Arc::clone(&key.limiter),
                };
                let touched = key.touch();
                // Release the lock, because the journal may block.
                drop(entries);
                if let Some(at) = touched {
                    self.write_touch(id, at);
                }
                KeyLookup::Valid(valid)
            }
        }
    }

    fn write_touch(&self, id: i64, at: Timestamp) {
        let done = Box::new(|result: Result<_>| {
            if let Err(error) = result {
                log::warn!("cannot save the last use of a key: {error}");
            }
        });
        // If the server is ending, the time of use may be lost.
        let change = Change::TouchKey { id, at };
        let _ = self.journal.submit(vec![change], done);
    }

    fn entries(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries_mut(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_key() -> Result<Secret> {
    Ok(Secret::new(format!("{PREFIX}{}", Secret::random()?.expose())))
}

fn check_expiry(expires_at: Option<Timestamp>, now: Timestamp, faults: &mut Vec<Fault>) {
    if expires_at.is_some_and(|end| end <= now) {
        faults.push(Fault::new("expiresAt", "must be in the future"));
    }
}

fn check_rates(requests: Option<u32>, tokens: Option<u64>, faults: &mut Vec<Fault>) {
    if requests.is_some_and(|count| !(1..=REQUESTS_PER_MINUTE_MAX).contains(&count)) {
        let fault = format!("must be a whole number from 1 to {REQUESTS_PER_MINUTE_MAX}, or null");
        faults.push(Fault::new("requestsPerMinute", fault));
    }
    if tokens.is_some_and(|count| !(1..=TOKENS_PER_MINUTE_MAX).contains(&count)) {
        let fault = format!("must be a whole number from 1 to {TOKENS_PER_MINUTE_MAX}, or null");
        faults.push(Fault::new("tokensPerMinute", fault));
    }
}

fn refuse(message: &str, faults: Vec<Fault>) -> Result<()> {
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Error::Invalid { message: message.to_owned(), faults }),
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.trim() == text
        && !text.chars().any(char::is_control)
}

/// Parses the budget of a new key.
fn own_budget(mut document: Value, key: &str, faults: &mut Vec<Fault>) -> Option<Budget> {
    let mut has_name = true;
    if let Some(document) = document.as_object_mut() {
        has_name = document.contains_key("name");
        document.entry("name").or_insert_with(|| key.into());
        document.entry("key").or_insert_with(|| key.into());
    }
    let mut found = Vec::new();
    let budget = budget::parse(&document, "budget", &mut found);
    // The budget inherited its name from the key, so the fault is reported there.
    found.retain(|fault| has_name || fault.field != "budget.name");
    faults.extend(found);
    if budget.as_ref()?.key.as_deref() != Some(key) {
        let fault = "must be the name of the new key; leave it out";
        faults.push(Fault::new("budget.key", fault));
    }
    budget
}
