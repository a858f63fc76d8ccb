//! Small things that all tables share.

use rusqlite::{Connection, Row, ToSql};

use crate::error::{Error, Result};

pub(super) fn execute(connection: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<usize> {
    Ok(connection.prepare_cached(sql)?.execute(params)?)
}

/// # Errors
/// [`Error::NotFound`] if nothing was changed.
pub(super) fn found(changed: usize, what: impl FnOnce() -> String) -> Result<()> {
    if changed == 0 {
        Err(Error::NotFound(what()))
    } else {
        Ok(())
    }
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
