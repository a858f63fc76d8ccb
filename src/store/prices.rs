//! Prices of ledger rows; equal ones are stored once.

use rusqlite::{Connection, params};

use super::reader::Store;
use super::sql::{execute, one};
use crate::error::{Error, Result};

/// Returns the id of a price, and stores the price if it is new.
pub(super) fn id_of(db: &Connection, price: &str) -> Result<i64> {
    let sql = "SELECT id FROM prices WHERE price = ?1";
    if let Some(id) = one(db, sql, [price])? {
        return Ok(id);
    }
    execute(db, "INSERT INTO prices (price) VALUES (?1)", params![price])?;
    Ok(db.last_insert_rowid())
}

impl Store {
    /// Returns a price of ledger rows, as JSON.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown price.
    pub fn price(&self, id: i64) -> Result<String> {
        self.one("SELECT price FROM prices WHERE id = ?1", [id])?
            .ok_or_else(|| Error::NotFound(format!("price {id}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prices_are_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(dir.path()).unwrap();
        let db = Connection::open(dir.path().join("flowledger.db")).unwrap();
        let ids = ["one", "two", "one"].map(|price| id_of(&db, price).unwrap());
        assert_eq!(ids, [ids[0], ids[1], ids[0]]);
        assert_ne!(ids[0], ids[1]);
        assert_eq!(store.price(ids[1]).unwrap(), "two");
    }
}
