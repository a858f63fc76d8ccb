//! The names of end users: their keyed hashes, and their removal.

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use super::change::{Applied, Receipt};
use super::reader::Store;
use super::sql::{execute, one};
use crate::error::{Error, Result};
use crate::ids::hex;
use crate::secret::Secret;

/// Begins a hash in place of a name.
const PREFIX: &str = "sha256:";
/// Length of a hash.
const HASH_BYTES: usize = 16;

/// Translates the names of end users into the form of ledger rows.
#[derive(Clone, Debug)]
pub struct EndUsers {
    /// The key of the hashes; none if the disk was full when the database was created.
    key: Option<Secret>,
    is_hashed: bool,
}

impl EndUsers {
    /// Loads the key of this database. `is_hashed` is true if rows get hashes in place of names.
    ///
    /// # Errors
    /// [`Error::Config`] if hashes have no key yet.
    pub fn load(store: &Store, is_hashed: bool) -> Result<Self> {
        let sql = "SELECT value FROM secrets WHERE name = 'end_users'";
        let key = store.one::<String>(sql, [])?.map(Secret::new);
        if is_hashed && key.is_none() {
            let message = "the database has no key for hashes of end users; free some space on the \
                           disk and start flowledger again";
            return Err(Error::Config(message.to_owned()));
        }
        Ok(Self { key, is_hashed })
    }

    /// Returns the name of a client's end user as rows store it.
    pub fn of_client(&self, name: String) -> String {
        self.hash(&name).filter(|_| self.is_hashed).unwrap_or(name)
    }

    /// Returns a name or a hash, as a user of the API writes it, as rows store it.
    pub fn stored(&self, name: String) -> String {
        if is_hash(&name) { name } else { self.of_client(name) }
    }

    /// Returns both forms of a name, because rows may be older than the setting.
    pub fn forms(&self, name: &str) -> Vec<String> {
        let hash = self.hash(name).filter(|_| !is_hash(name));
        std::iter::once(name.to_owned()).chain(hash).collect()
    }

    /// The key has a fixed length and the hash is cut, so that no longer name continues it.
    fn hash(&self, name: &str) -> Option<String> {
        let key = self.key.as_ref()?;
        let hash = Sha256::new().chain_update(key.expose()).chain_update(name).finalize();
        Some(format!("{PREFIX}{}", hex(&hash[..HASH_BYTES])))
    }
}

fn is_hash(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|hash| {
        hash.len() == 2 * HASH_BYTES && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Stores a random key, unless the database has one.
pub(super) fn create_key(db: &Connection) -> Result<()> {
    let sql = "SELECT 1 FROM secrets WHERE name = 'end_users'";
    if one::<i64>(db, sql, [])?.is_some() {
        return Ok(());
    }
    let sql = "INSERT INTO secrets (name, value) VALUES ('end_users', ?1)";
    match execute(db, sql, params![Secret::random()?.expose()]) {
        Err(Error::Disk(error)) => log::warn!("cannot store the key of end users: {error}"),
        other => drop(other?),
    }
    Ok(())
}

/// Removes the names from all rows, their daily sums and the event log, and the bodies of the rows.
pub(super) fn erase(db: &Connection, names: &[String]) -> Result<Applied> {
    // The old text is overwritten in the file as well.
    db.pragma_update(None, "secure_delete", true)?;
    let mut rows = 0;
    for name in names {
        let sql = "UPDATE ledger SET end_user = NULL WHERE end_user = ?1";
        rows += execute(db, sql, params![name])?;
        let sql = "UPDATE budget_days SET end_user = NULL WHERE end_user = ?1";
        execute(db, sql, params![name])?;
        execute(db, "DELETE FROM bodies WHERE end_user = ?1", params![name])?;
        // A part of the text that serde_json wrote, so that the rest keeps its bytes. Quotes within
        // a value are escaped.
        let field = format!(",\"end_user\":{}", serde_json::Value::from(name.as_str()));
        let sql = "UPDATE events SET body = replace(body, ?1, '')
             WHERE type = 'LEDGER_UPDATE' AND instr(body, ?1) > 0";
        execute(db, sql, params![field])?;
    }
    db.pragma_update(None, "secure_delete", false)?;
    Ok(Receipt::Erased(rows).into())
}
