//! Virtual keys: each is valid only for the gateway. The key itself is shown once, at its creation;
//! only its SHA-256 is stored, and lookups use it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use crate::budget::{self, Budget};
use crate::error::{Error, Fault, Result};
use crate::ids::FlowId;
use crate::journal::Journal;
use crate::secret::Secret;
use crate::store::{Change, KeyFlows, KeyRecord, NewKey, Receipt, Store};
use crate::time::Timestamp;

pub const PREFIX: &str = "fl-";
const KEYS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 100;
/// The resolution of `last_used_at`.
const TOUCH_INTERVAL_MS: i64 = 60_000;

/// All keys, shared by all threads.
pub struct Keys {
    journal: Journal,
    /// Keyed by hash, so that the time of a lookup reveals nothing about a key.
    entries: RwLock<HashMap<String, KeyEntry>>,
}

struct KeyEntry {
    id: i64,
    name: Arc<str>,
    expires_at: Option<Timestamp>,
    flows: Arc<[FlowId]>,
    touched_ms: AtomicI64,
}

impl KeyEntry {
    fn new(record: &KeyRecord) -> Self {
        Self {
            id: record.id,
            name: record.name.as_str().into(),
            expires_at: record.expires_at,
            flows: record.flows.0.as_slice().into(),
            touched_ms: AtomicI64::new(record.last_used_at.map_or(0, |at| at.0)),
        }
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyLookup {
    Valid {
        id: i64,
        name: Arc<str>,
        /// The flows that its calls may name.
        flows: Arc<[FlowId]>,
    },
    Expired,
    /// Not a virtual key of this server.
    Unknown,
}

impl Keys {
    pub fn load(store: &Store, journal: Journal) -> Result<Self> {
        let keys = store.keys()?;
        let entries = keys.iter().map(|record| (record.hash.clone(), KeyEntry::new(record)));
        Ok(Self { journal, entries: RwLock::new(entries.collect()) })
    }

    /// Creates a key and its budget, both or neither. The budget has the name of the key unless it
    /// has its own. Returns the key, which is not stored, and its record.
    pub fn create(
        &self,
        name: &str,
        expires_at: Option<Timestamp>,
        flows: Vec<FlowId>,
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
        if expires_at.is_some_and(|end| end <= at) {
            faults.push(Fault::new("expiresAt", "must be in the future"));
        }
        let budget = budget.and_then(|document| own_budget(document, name, &mut faults));
        if !faults.is_empty() {
            let message = "cannot create the key".to_owned();
            return Err(Error::Invalid { message, faults });
        }
        if self.entries().len() >= KEYS_MAX {
            return Err(Error::Busy(format!("too many keys; the limit is {KEYS_MAX}")));
        }
        let key = Secret::new(format!("{PREFIX}{}", Secret::random()?.expose()));
        let (name, hash) = (name.to_owned(), key.hash());
        let new =
            NewKey { name: name.clone(), hash: hash.clone(), expires_at, flows: flows.clone(), at };
        let mut changes = vec![Change::CreateKey(new)];
        changes.extend(budget.map(Change::AddBudget));
        let receipts = self.journal.commit(changes)?;
        let Some(&Receipt::Key(id)) = receipts.first() else {
            return Err(Error::internal("the journal returned no id for the key"));
        };
        let flows = KeyFlows(flows);
        let record =
            KeyRecord { id, name, hash, created_at: at, last_used_at: None, expires_at, flows };
        self.entries_mut().insert(record.hash.clone(), KeyEntry::new(&record));
        Ok((record, key))
    }

    /// Deletes a key, which is invalid once this returns.
    pub fn delete(&self, id: i64, with_budgets: bool) -> Result<()> {
        self.journal.commit_one(Change::DeleteKey { id, with_budgets })?;
        self.entries_mut().retain(|_, entry| entry.id != id);
        Ok(())
    }

    pub fn find(&self, presented: &Secret) -> KeyLookup {
        let entries = self.entries();
        // Most servers have no keys, so skip the hash.
        if entries.is_empty() {
            return KeyLookup::Unknown;
        }
        match entries.get(&presented.hash()) {
            None => KeyLookup::Unknown,
            Some(key) if key.expires_at.is_some_and(|end| end <= Timestamp::now()) => {
                KeyLookup::Expired
            }
            Some(key) => {
                let (id, name, flows) = (key.id, Arc::clone(&key.name), Arc::clone(&key.flows));
                let touched = key.touch();
                // Release the lock, because the journal may block.
                drop(entries);
                if let Some(at) = touched {
                    self.write_touch(id, at);
                }
                KeyLookup::Valid { id, name, flows }
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

    fn entries(&self) -> RwLockReadGuard<'_, HashMap<String, KeyEntry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries_mut(&self) -> RwLockWriteGuard<'_, HashMap<String, KeyEntry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
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
