//! Prices that ledger rows were given; equal ones are stored once.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::Store;
use crate::error::{Error, Result};

/// How many prices the writer knows by heart: more than anybody uses at a time. With more, it
/// begins anew.
const KNOWN_MAX: usize = 1_000;

/// The numbers of stored prices. Only those are known for which a commit has gone well.
#[derive(Default)]
pub(super) struct Prices {
    known: HashMap<Arc<str>, i64>,
    /// Looked up or written in the present transaction.
    fresh: Vec<(Arc<str>, i64)>,
}

impl Prices {
    /// How much of the present transaction there is; to go back to.
    pub(super) fn before(&self) -> usize {
        self.fresh.len()
    }

    /// What came after is not stored after all.
    pub(super) fn go_back(&mut self, before: usize) {
        self.fresh.truncate(before);
    }

    /// All is stored.
    pub(super) fn committed(&mut self) {
        if self.known.len() + self.fresh.len() > KNOWN_MAX {
            self.known.clear();
        }
        self.known.extend(self.fresh.drain(..).take(KNOWN_MAX));
    }

    /// The number of a price, which is stored if it is not yet.
    pub(super) fn id(&mut self, connection: &Connection, price: &Arc<str>) -> Result<i64> {
        if let Some(id) = self.known.get(price) {
            return Ok(*id);
        }
        let stored = connection
            .prepare_cached("SELECT id FROM prices WHERE price = ?1")?
            .query_row([price], |row| row.get(0))
            .optional()?;
        let id = match stored {
            Some(id) => id,
            None => {
                connection
                    .prepare_cached("INSERT INTO prices (price) VALUES (?1)")?
                    .execute([price])?;
                connection.last_insert_rowid()
            }
        };
        self.fresh.push((Arc::clone(price), id));
        Ok(id)
    }
}

impl Store {
    /// A price that ledger rows were given, as JSON.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn price(&self, id: i64) -> Result<String> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT price FROM prices WHERE id = ?1")?
                .query_row([id], |row| row.get(0))
                .optional()?
                .ok_or_else(|| Error::NotFound(format!("price {id}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prices_are_stored_once_and_what_was_rolled_back_is_not_trusted() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE prices (id INTEGER PRIMARY KEY, price TEXT NOT NULL UNIQUE)",
            )
            .unwrap();
        let mut prices = Prices::default();
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        assert_eq!(prices.id(&connection, &one).unwrap(), 1);
        prices.committed();
        let before = prices.before();
        connection.execute_batch("BEGIN").unwrap();
        assert_eq!(prices.id(&connection, &two).unwrap(), 2);
        connection.execute_batch("ROLLBACK").unwrap();
        prices.go_back(before);
        prices.committed();
        let other: Arc<str> = "other".into();
        assert_eq!(prices.id(&connection, &other).unwrap(), 2);
        assert_eq!(prices.id(&connection, &two).unwrap(), 3);
        assert_eq!(prices.id(&connection, &one).unwrap(), 1);
        // Known by heart: it is not asked for.
        connection.execute_batch("DELETE FROM prices").unwrap();
        assert_eq!(prices.id(&connection, &one).unwrap(), 1);
    }
}
