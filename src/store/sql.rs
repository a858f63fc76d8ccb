//! Small things that all tables share.

use rusqlite::{Connection, OptionalExtension, Params, Row, ToSql};

use super::reader::Store;
use crate::error::{Error, Result};

impl Store {
    /// The first row, if there is one.
    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.read(|db| one(db, sql, params, read))
    }

    pub(super) fn all<T, C: FromIterator<T>>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<C> {
        self.read(|db| all(db, sql, params, read))
    }
}

/// The first row, if there is one.
pub(super) fn one<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    let mut statement = db.prepare_cached(sql)?;
    Ok(statement.query_row(params, read).optional()?)
}

pub(super) fn all<T, C: FromIterator<T>>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<C> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(params, read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Returns how many rows were changed.
pub(super) fn execute(db: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<usize> {
    Ok(db.prepare_cached(sql)?.execute(params)?)
}

/// # Errors
/// [`Error::NotFound`] if nothing was changed.
pub(super) fn found(changed: usize, what: impl FnOnce() -> String) -> Result<()> {
    if changed == 0 { Err(Error::NotFound(what())) } else { Ok(()) }
}

/// A column that holds the text form of an enum.
pub(super) fn parsed<T: std::str::FromStr<Err = String>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|why: String| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, why.into())
    })
}
