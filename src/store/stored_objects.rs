//! Objects that providers store for the gateway's clients: responses, conversations, files and
//! batches. All clients share the provider's account, so an object belongs to the key that created
//! it, and no other key finds it.
//!
//! An object is open while its call or batch continues at the provider after the client's request
//! has ended. Its ledger row, if it has one, then stays pending. Closing an object succeeds once, so
//! that its cost is booked once.

use rusqlite::{Connection, params};

use super::change::{Applied, ObjectKind, ObjectName, Receipt, StoredObject, done};
use super::reader::Store;
use super::sql::{all, execute, no_conflict, single};
use crate::error::Result;
use crate::event::LedgerEntry;
use crate::time::Timestamp;

/// Limits the age of an object, in milliseconds: OpenAI keeps responses for 30 days
/// (<https://platform.openai.com/docs/guides/your-data>).
pub const OBJECT_AGE_MAX_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Limits the age of a file or a batch, in milliseconds. OpenAI keeps files until they are deleted
/// (<https://platform.openai.com/docs/api-reference/files/create>).
pub const FILE_AGE_MAX_MS: i64 = 400 * 24 * 60 * 60 * 1000;
/// Limits how long an object stays open, in milliseconds. OpenAI's batches end within 24 hours.
pub const OPEN_AGE_MAX_MS: i64 = 25 * 60 * 60 * 1000;
/// Limits the objects that one query returns.
const OBJECTS_MAX: usize = 1_000;

impl ObjectName {
    /// Returns the number in the column `owner`; keys are numbered from 1.
    fn owner(&self) -> i64 {
        owner(self.key_id)
    }
}

fn owner(key_id: Option<i64>) -> i64 {
    key_id.unwrap_or(0)
}

/// The columns of [`StoredObject`].
const COLUMNS: &str =
    "kind, id, owner, provider, model, created_ms, ledger_id, is_open, details FROM stored_objects";

impl super::sql::FromRow for StoredObject {
    fn read(row: &rusqlite::Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        fn next<T: rusqlite::types::FromSql>(
            row: &rusqlite::Row<'_>,
            at: &mut usize,
        ) -> rusqlite::Result<T> {
            *at += 1;
            row.get(*at - 1)
        }
        Ok(Self {
            name: ObjectName {
                kind: next(row, at)?,
                id: next(row, at)?,
                key_id: Some(next::<i64>(row, at)?).filter(|owner| *owner > 0),
            },
            provider: next(row, at)?,
            model: next(row, at)?,
            created_at: next(row, at)?,
            ledger_id: next(row, at)?,
            is_open: next(row, at)?,
            details: next(row, at)?,
        })
    }
}

/// Writes an object, in place of an older one of the same name.
///
/// # Errors
/// [`Error::Conflict`](crate::error::Error::Conflict) if that is still open.
pub(super) fn remember(db: &Connection, object: &StoredObject) -> Result<Applied> {
    let sql = "INSERT INTO stored_objects (kind, id, owner, provider, model, created_ms, ledger_id,
                is_open, details)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET provider = ?4, model = ?5, created_ms = ?6, ledger_id = ?7,
                is_open = ?8, details = ?9 WHERE NOT is_open";
    let changed = execute(
        db,
        sql,
        params![
            object.name.kind,
            object.name.id,
            object.name.owner(),
            object.provider,
            object.model,
            object.created_at,
            object.ledger_id,
            object.is_open,
            object.details
        ],
    )?;
    no_conflict(changed, || format!("{} {} is open", object.name.kind.as_str(), object.name.id))?;
    Ok(Receipt::Done.into())
}

/// Closes an object.
///
/// # Errors
/// [`Error::Conflict`](crate::error::Error::Conflict) if it is not open; then the other changes of
/// the transaction are not written either.
pub(super) fn close(db: &Connection, name: &ObjectName) -> Result<Applied> {
    let sql = "UPDATE stored_objects SET is_open = 0
             WHERE kind = ?1 AND id = ?2 AND owner = ?3 AND is_open";
    let changed = execute(db, sql, params![name.kind, name.id, name.owner()])?;
    no_conflict(changed, || format!("{} {} is not open", name.kind.as_str(), name.id))?;
    Ok(Receipt::Done.into())
}

pub(super) fn forget(db: &Connection, name: &ObjectName) -> Result<Applied> {
    let sql = "DELETE FROM stored_objects
             WHERE kind = ?1 AND id = ?2 AND owner = ?3 AND NOT is_open";
    execute(db, sql, params![name.kind, name.id, name.owner()]).map(done)
}

/// Removes up to `step` objects that are older than [`OBJECT_AGE_MAX_MS`] and not open; files and
/// batches, which providers keep longer, after [`FILE_AGE_MAX_MS`]. Returns their number.
pub(super) fn prune(db: &Connection, now: Timestamp, step: usize) -> Result<usize> {
    let sql = "DELETE FROM stored_objects WHERE (kind, id, owner) IN (
            SELECT kind, id, owner FROM stored_objects
            WHERE created_ms < CASE WHEN kind IN (?3, ?4) THEN ?5 ELSE ?1 END AND NOT is_open
            ORDER BY created_ms LIMIT ?2)";
    let before = |age_max_ms| now.0.saturating_sub(age_max_ms);
    let (files, batches) = (ObjectKind::File, ObjectKind::Batch);
    let (of_files, of_others) = (before(FILE_AGE_MAX_MS), before(OBJECT_AGE_MAX_MS));
    execute(db, sql, params![of_others, step, files, batches, of_files])
}

impl Store {
    /// Returns an object of this key.
    pub fn object(&self, name: &ObjectName) -> Result<Option<StoredObject>> {
        let sql = format!("SELECT {COLUMNS} WHERE kind = ?1 AND id = ?2 AND owner = ?3");
        self.one(&sql, params![name.kind, name.id, name.owner()])
    }

    /// Returns whether any key has an object of this id.
    pub fn is_known_object(&self, kind: ObjectKind, id: &str) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM stored_objects WHERE kind = ?1 AND id = ?2)";
        self.read(|db| single(db, sql, params![kind, id]))
    }

    /// Returns the newest objects of this key, newest first.
    pub fn objects(&self, kind: ObjectKind, key_id: Option<i64>) -> Result<Vec<StoredObject>> {
        let sql = format!(
            "SELECT {COLUMNS} WHERE kind = ?1 AND owner = ?2 ORDER BY created_ms DESC, id LIMIT ?3"
        );
        self.all(&sql, params![kind, owner(key_id), OBJECTS_MAX])
    }

    /// Returns open objects that were created before a time, oldest first.
    pub fn open_objects(&self, before: Timestamp) -> Result<Vec<StoredObject>> {
        let sql = format!(
            "SELECT {COLUMNS} WHERE is_open AND created_ms < ?1 ORDER BY created_ms LIMIT ?2"
        );
        self.all(&sql, params![before, OBJECTS_MAX])
    }

    /// Returns pending rows whose calls ended with their process, oldest first: the calls of open
    /// objects continue at the provider.
    pub fn lost_calls(&self) -> Result<Vec<LedgerEntry>> {
        let sql = "SELECT ledger_id FROM stored_objects WHERE is_open AND ledger_id IS NOT NULL";
        let open: Vec<i64> = self.read(|db| all(db, sql, []))?;
        let mut rows = self.pending_calls()?;
        rows.retain(|row| !open.contains(&row.id));
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{apply, new_call, row, settlement};
    use super::super::{Change, Store, Writer};
    use super::*;
    use crate::budget::Reserve;
    use crate::error::Error;
    use crate::event::CallStatus;
    use crate::money::Usd;

    fn open_store() -> (tempfile::TempDir, Store, Writer) {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(dir.path()).unwrap();
        (dir, store, writer)
    }

    fn name(id: &str, key_id: Option<i64>) -> ObjectName {
        ObjectName { kind: ObjectKind::Response, id: id.into(), key_id }
    }

    fn object(id: &str, key_id: Option<i64>) -> StoredObject {
        StoredObject {
            name: name(id, key_id),
            provider: "openai".into(),
            model: Some("gpt-5".into()),
            created_at: Timestamp(1_000),
            ledger_id: None,
            is_open: false,
            details: None,
        }
    }

    #[test]
    fn objects_belong_to_the_key_that_created_them() {
        let (_dir, store, mut writer) = open_store();
        for it in [object("a", Some(1)), object("b", None), object("c", Some(1))] {
            apply(&mut writer, Change::Remember(it)).unwrap();
        }
        assert_eq!(store.object(&name("a", Some(1))).unwrap(), Some(object("a", Some(1))));
        assert_eq!(store.object(&name("b", None)).unwrap(), Some(object("b", None)));
        for other in [name("a", Some(2)), name("a", None), name("b", Some(1))] {
            assert_eq!(store.object(&other).unwrap(), None, "{other:?}");
        }
        let ids = |key_id| {
            let all = store.objects(ObjectKind::Response, key_id).unwrap();
            all.into_iter().map(|it| it.name.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(Some(1)), ["a", "c"]);
        assert_eq!(ids(None), ["b"]);
        assert!(store.objects(ObjectKind::File, Some(1)).unwrap().is_empty());
        assert!(store.is_known_object(ObjectKind::Response, "a").unwrap());
        assert!(!store.is_known_object(ObjectKind::Batch, "a").unwrap());
        apply(&mut writer, Change::ForgetObject(name("a", Some(2)))).unwrap();
        apply(&mut writer, Change::ForgetObject(name("c", Some(1)))).unwrap();
        assert_eq!(ids(Some(1)), ["a"]);
    }

    #[test]
    fn an_object_is_closed_once() {
        let (_dir, _, mut writer) = open_store();
        let open = StoredObject { is_open: true, ..object("a", None) };
        apply(&mut writer, Change::Remember(open)).unwrap();
        // A repeated id does not close it.
        let repeated = apply(&mut writer, Change::Remember(object("a", None)));
        assert!(matches!(repeated, Err(Error::Conflict(_))), "{repeated:?}");
        apply(&mut writer, Change::CloseObject(name("a", None))).unwrap();
        let again = apply(&mut writer, Change::CloseObject(name("a", None)));
        assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
    }

    #[test]
    fn old_objects_are_removed_unless_they_are_open() {
        let (_dir, store, mut writer) = open_store();
        for (id, is_open) in [("a", false), ("b", true)] {
            apply(&mut writer, Change::Remember(StoredObject { is_open, ..object(id, None) }))
                .unwrap();
        }
        assert_eq!(writer.prune_objects(Timestamp(1_000 + OBJECT_AGE_MAX_MS), 10).unwrap(), 0);
        assert_eq!(writer.prune_objects(Timestamp(1_001 + OBJECT_AGE_MAX_MS), 10).unwrap(), 1);
        let left = store.objects(ObjectKind::Response, None).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(store.open_objects(Timestamp(1_001)).unwrap(), left);
        assert!(store.open_objects(Timestamp(1_000)).unwrap().is_empty());
        let name = ObjectName { kind: ObjectKind::File, ..name("c", None) };
        let file = StoredObject { name, ..object("c", None) };
        apply(&mut writer, Change::Remember(file)).unwrap();
        assert_eq!(writer.prune_objects(Timestamp(1_001 + OBJECT_AGE_MAX_MS), 10).unwrap(), 0);
        assert_eq!(writer.prune_objects(Timestamp(1_001 + FILE_AGE_MAX_MS), 10).unwrap(), 1);
    }

    #[test]
    fn an_expired_object_frees_its_reservation() {
        let (_dir, store, mut writer) = open_store();
        let budgets = serde_json::json!({"budgets": [
            {"name": "b", "per": "day", "limitUsd": "1"},
            {"name": "t", "per": "month", "limitTokens": 100},
        ]});
        let all = crate::budget::parse_all(budgets).unwrap();
        apply(&mut writer, Change::SetBudgets { all, version: None }).unwrap();
        let reserve = Reserve { cost: Some(Usd::from_nanousd(900_000_000)), tokens: 90 };
        let call = || crate::store::NewCall { reserve, ..new_call(2_000) };
        let id = row(apply(&mut writer, Change::OpenCall(call())).unwrap()).id;
        let open = StoredObject { is_open: true, ledger_id: Some(id), ..object("a", Some(3)) };
        apply(&mut writer, Change::Remember(open)).unwrap();
        assert!(store.lost_calls().unwrap().is_empty());
        assert_eq!(store.pending_calls().unwrap().len(), 1);
        assert!(matches!(apply(&mut writer, Change::OpenCall(call())), Err(Error::Budget(_))));

        let lost =
            crate::store::Settlement { status: CallStatus::Unknown, ..settlement(id, 3_000) };
        let expire = Change::ExpireObject(name("a", Some(3)), Some(lost));
        apply(&mut writer, expire.clone()).unwrap();
        assert!(store.pending_calls().unwrap().is_empty());
        let used = |store: &Store| -> Vec<Option<i64>> {
            store
                .budgets(Timestamp(3_000))
                .unwrap()
                .iter()
                .map(|it| it.amounts.map(|it| it.used()))
                .collect()
        };
        assert_eq!(used(&store), [Some(0), Some(0)]);
        apply(&mut writer, Change::OpenCall(call())).unwrap();
        assert!(apply(&mut writer, expire).is_err(), "it is closed");
        assert_eq!(used(&store), [Some(900_000_000), Some(90)]);
    }
}
