//! Virtual keys: each opens the gateway and nothing else. The key itself is shown once, when it is
//! made; kept is its SHA-256, by which it is found again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use crate::budget::{self, Budget};
use crate::error::{Error, Fault, Result};
use crate::journal::Journal;
use crate::secret::Secret;
use crate::store::{Change, KeyRecord, NewKey, Receipt, Store};
use crate::time::Timestamp;

pub const PREFIX: &str = "fl-";
const KEYS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 100;
/// The resolution of `last_used_at`.
const TOUCH_INTERVAL_MS: i64 = 60_000;

/// All keys. Shared by all threads.
pub struct Keys {
    journal: Journal,
    /// By hash, so that the time of a lookup reveals nothing about a key.
    known: RwLock<HashMap<String, Known>>,
}

struct Known {
    id: i64,
    name: Arc<str>,
    expires_at: Option<Timestamp>,
    touched_ms: AtomicI64,
}

impl Known {
    fn new(record: &KeyRecord) -> Self {
        Self {
            id: record.id,
            name: record.name.as_str().into(),
            expires_at: record.expires_at,
            touched_ms: AtomicI64::new(record.last_used_at.map_or(0, |at| at.0)),
        }
    }

    /// Notes a use. Returns its time if that is to be stored.
    fn touch(&self) -> Option<Timestamp> {
        let at = Timestamp::now();
        let before = self.touched_ms.load(Ordering::Relaxed);
        let is_due = at.0.abs_diff(before) >= TOUCH_INTERVAL_MS.unsigned_abs();
        let exchanged = is_due.then(|| {
            self.touched_ms.compare_exchange(before, at.0, Ordering::Relaxed, Ordering::Relaxed)
        });
        // Of two at a time, one writes it.
        exchanged?.ok().map(|_| at)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyLookup {
    Valid {
        id: i64,
        name: Arc<str>,
    },
    Expired,
    /// None of ours.
    Unknown,
}

impl Keys {
    pub fn load(store: &Store, journal: Journal) -> Result<Self> {
        let keys = store.keys()?;
        let known = keys.iter().map(|record| (record.hash.clone(), Known::new(record)));
        Ok(Self { journal, known: RwLock::new(known.collect()) })
    }

    /// Creates a key and its budget, both or neither. The budget has the name of the key unless it has its
    /// own. Returns the key, which is not stored, beside its record.
    pub fn create(
        &self,
        name: &str,
        expires_at: Option<Timestamp>,
        budget: Option<Value>,
    ) -> Result<(KeyRecord, Secret)> {
        let at = Timestamp::now();
        let mut faults = Vec::new();
        if !is_name(name) {
            let fault = format!(
                "must have 1 to {NAME_BYTES_MAX} bytes, without control characters and without \
                 spaces around it"
            );
            faults.push(Fault::new("name", fault));
        }
        if expires_at.is_some_and(|end| end <= at) {
            faults.push(Fault::new("expiresAt", "must be in the future"));
        }
        let budget = budget.and_then(|document| own_budget(document, name, &mut faults));
        if !faults.is_empty() {
            let message = "the key cannot be made".to_owned();
            return Err(Error::Invalid { message, faults });
        }
        if self.known().len() >= KEYS_MAX {
            return Err(Error::Busy(format!("there may be {KEYS_MAX} keys")));
        }
        let key = Secret::new(format!("{PREFIX}{}", Secret::random()?.expose()));
        let (name, hash) = (name.to_owned(), key.hash());
        let new = NewKey { name: name.clone(), hash: hash.clone(), expires_at, at };
        let mut changes = vec![Change::CreateKey(new)];
        changes.extend(budget.map(Change::AddBudget));
        let receipts = self.journal.commit(changes)?;
        let Some(&Receipt::Key(id)) = receipts.first() else {
            return Err(Error::internal("a key got no number"));
        };
        let record = KeyRecord { id, name, hash, created_at: at, last_used_at: None, expires_at };
        self.known_to_change().insert(record.hash.clone(), Known::new(&record));
        Ok((record, key))
    }

    /// Removes a key, which opens nothing once this returns.
    pub fn delete(&self, id: i64, with_budgets: bool) -> Result<()> {
        self.journal.commit_one(Change::DeleteKey { id, with_budgets })?;
        self.known_to_change().retain(|_, known| known.id != id);
        Ok(())
    }

    pub fn find(&self, offered: &Secret) -> KeyLookup {
        let known = self.known();
        // Most servers have none, and then nothing is computed.
        if known.is_empty() {
            return KeyLookup::Unknown;
        }
        match known.get(&offered.hash()) {
            None => KeyLookup::Unknown,
            Some(key) if key.expires_at.is_some_and(|end| end <= Timestamp::now()) => {
                KeyLookup::Expired
            }
            Some(key) => {
                let (id, name) = (key.id, Arc::clone(&key.name));
                let touched = key.touch();
                // The journal may have to be waited for.
                drop(known);
                if let Some(at) = touched {
                    self.write_touch(id, at);
                }
                KeyLookup::Valid { id, name }
            }
        }
    }

    fn write_touch(&self, id: i64, at: Timestamp) {
        let done = Box::new(|result: Result<_>| {
            if let Err(error) = result {
                log::warn!("when a key was used cannot be written: {error}");
            }
        });
        // At the end of the server nobody needs to know.
        let change = Change::TouchKey { id, at };
        let _ = self.journal.submit(vec![change], done);
    }

    fn known(&self) -> RwLockReadGuard<'_, HashMap<String, Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_to_change(&self) -> RwLockWriteGuard<'_, HashMap<String, Known>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.trim() == text
        && !text.chars().any(char::is_control)
}

/// Reads the budget of a new key.
fn own_budget(mut document: Value, key: &str, faults: &mut Vec<Fault>) -> Option<Budget> {
    let mut has_name = true;
    if let Some(document) = document.as_object_mut() {
        has_name = document.contains_key("name");
        document.entry("name").or_insert_with(|| key.into());
        document.entry("key").or_insert_with(|| key.into());
    }
    let mut found = Vec::new();
    let budget = budget::parse(&document, "budget", &mut found);
    // The name that it has from the key is at fault there.
    found.retain(|fault| has_name || fault.field != "budget.name");
    faults.extend(found);
    if budget.as_ref()?.key.as_deref() != Some(key) {
        let fault = "is the name of the new key; leave it out";
        faults.push(Fault::new("budget.key", fault));
    }
    budget
}
