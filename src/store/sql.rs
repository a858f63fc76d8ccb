//! Conversions between rows, values and parameters.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Params, Row};

use super::reader::Store;
use crate::error::{Error, Result};
use crate::event::suggestion::{Proposal, Realised, Status, Trial};
use crate::event::{Billing, CallStatus, CostSource, RefusedBy, RunStatus, UsageSource};
use crate::flow::Concern;
use crate::money::Usd;
use crate::schedule::Missed;
use crate::store::{NodeStatus, ObjectKind};
use crate::time::Timestamp;

/// A value that is read from one or more columns of a row.
pub(super) trait FromRow: Sized {
    /// Reads from column `at` on, and moves `at` past the last column read.
    fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self>;
}

/// Implements [`FromRow`] for a struct, with columns in the order of this list. Fields after the
/// `;` have no column.
macro_rules! from_row {
    ($type:ty; $($field:ident),+ $(; $($empty:ident),+)?) => {
        impl $crate::store::sql::FromRow for $type {
            fn read(row: &rusqlite::Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
                Ok(Self {
                    $($field: $crate::store::sql::FromRow::read(row, at)?,)+
                    $($($empty: Default::default(),)+)?
                })
            }
        }
    };
}

macro_rules! impl_from_column {
    ($($type:ty),+) => { $(impl FromRow for $type {
        fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
            *at += 1;
            row.get(*at - 1)
        }
    })+ };
}
impl_from_column!(bool, f64, i64, u8, u32, u64, usize, String, Vec<u8>, Timestamp, Usd);
impl_from_column!(
    CallStatus,
    Concern,
    Missed,
    NodeStatus,
    RunStatus,
    Status,
    UsageSource,
    Proposal
);

impl<T: FromSql> FromRow for Option<T> {
    fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        *at += 1;
        row.get(*at - 1)
    }
}

macro_rules! impl_from_columns {
    ($($type:ident),+) => { impl<$($type: FromRow),+> FromRow for ($($type,)+) {
        fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
            Ok(($($type::read(row, at)?,)+))
        }
    } };
}
impl_from_columns!(A, B);
impl_from_columns!(A, B, C);
impl_from_columns!(A, B, C, D);

impl<T: FromRow + Copy + Default, const N: usize> FromRow for [T; N] {
    fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        let mut all = [T::default(); N];
        for one in &mut all {
            *one = T::read(row, at)?;
        }
        Ok(all)
    }
}

macro_rules! stored_as_number {
    ($($type:ty, $read:expr, $field:tt;)+) => { $(
        impl FromSql for $type {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                value.as_i64().map($read)
            }
        }
        impl ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.$field.into())
            }
        }
    )+ };
}
stored_as_number!(Timestamp, Timestamp, 0; Usd, Usd::from_nanousd, nanousd;);

macro_rules! stored_as_text {
    ($($type:ty),+) => { $(
        impl FromSql for $type {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                value.as_str()?.parse().map_err(|why: String| FromSqlError::Other(why.into()))
            }
        }
        impl ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.as_str().into())
            }
        }
    )+ };
}
stored_as_text!(
    Billing,
    CallStatus,
    Concern,
    CostSource,
    Missed,
    NodeStatus,
    ObjectKind,
    RefusedBy,
    RunStatus,
    Status,
    UsageSource
);

macro_rules! stored_as_json {
    ($($type:ty),+) => { $(impl FromSql for $type {
        fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
            serde_json::from_str(value.as_str()?).map_err(|error| FromSqlError::Other(error.into()))
        }
    })+ };
}
stored_as_json!(Proposal, Realised, Trial);

impl Store {
    pub(super) fn one<T: FromRow>(&self, sql: &str, params: impl Params) -> Result<Option<T>> {
        self.read(|db| one(db, sql, params))
    }

    pub(super) fn all<T: FromRow, C: FromIterator<T>>(
        &self,
        sql: &str,
        params: impl Params,
    ) -> Result<C> {
        self.read(|db| all(db, sql, params))
    }
}

/// Returns the first row, if any.
pub(super) fn one<T: FromRow>(
    db: &Connection,
    sql: &str,
    params: impl Params,
) -> Result<Option<T>> {
    let mut statement = db.prepare_cached(sql)?;
    Ok(statement.query_row(params, |row| T::read(row, &mut 0)).optional()?)
}

/// Returns the first row of a query that always has one, such as an aggregate.
pub(super) fn single<T: FromRow>(db: &Connection, sql: &str, params: impl Params) -> Result<T> {
    Ok(db.prepare_cached(sql)?.query_row(params, |row| T::read(row, &mut 0))?)
}

pub(super) fn all<T: FromRow, C: FromIterator<T>>(
    db: &Connection,
    sql: &str,
    params: impl Params,
) -> Result<C> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(params, |row| T::read(row, &mut 0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Returns the number of changed rows.
pub(super) fn execute(db: &Connection, sql: &str, params: &[&dyn ToSql]) -> Result<usize> {
    Ok(db.prepare_cached(sql)?.execute(params)?)
}

/// # Errors
/// [`Error::NotFound`] when no row was changed.
pub(super) fn require_row(changed: usize, resource: impl FnOnce() -> String) -> Result<()> {
    if changed == 0 { Err(Error::NotFound(resource())) } else { Ok(()) }
}

/// # Errors
/// [`Error::Conflict`] when no row was changed.
pub(super) fn no_conflict(changed: usize, message: impl FnOnce() -> String) -> Result<()> {
    if changed == 0 { Err(Error::Conflict(message())) } else { Ok(()) }
}
