//! An index of the names and times in blocks of ledger rows, so that a page of rare rows need not
//! read all others.
//!
//! An index for each filter would cost every call twice: when it is opened and when it is settled.
//! Instead, each [`ROWS`] consecutive ids form a block. Once all rows of a block are settled,
//! housekeeping stores its combinations of names (flow, provider, model and status together) and
//! its range of times. Settled rows never change, so this is done once. A page reads only the
//! blocks that may contain matching rows. Times are those of the rows, so a clock that jumps only
//! widens a block's range.
//!
//! Pages read every block that is not indexed yet, for example because it has calls in flight.

use rusqlite::{Connection, params, params_from_iter};

use super::ledger_filter::LedgerFilter;
use super::ledger_page::Order;
use super::sql::{FromRow, all, execute, one, single};
use crate::error::Result;

/// Ids in a block. A page of N rare rows reads at most N blocks.
const ROWS: i64 = 128;
/// Limits how many rows of adjacent matching blocks are read at a time.
const SPAN_ROWS_MAX: i64 = 64 * ROWS;
/// Bytes for the id of a combination of names in a block.
const NAME_BYTES: usize = size_of::<i64>();

/// Examines up to `step` blocks that are not indexed, and indexes those with all rows settled.
/// Returns how many entries were written.
pub(super) fn index(db: &Connection, step: usize) -> Result<usize> {
    let mut written = 0;
    for block in unfinished_blocks(db, step)? {
        if !is_pending(db, block)? {
            index_block(db, block)?;
            written += 1;
        }
    }
    let (mut next, end) = ends(db)?;
    while next < end && written < step {
        if is_pending(db, next)? {
            execute(db, "INSERT INTO ledger_blocks (block) VALUES (?1)", params![next])?;
        } else {
            index_block(db, next)?;
        }
        next += 1;
        written += 1;
    }
    Ok(written)
}

/// Returns whether [`index`] has work to do.
pub(super) fn is_behind(db: &Connection, step: usize) -> Result<bool> {
    let (next, end) = ends(db)?;
    if next < end {
        return Ok(true);
    }
    for block in unfinished_blocks(db, step)? {
        if !is_pending(db, block)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the first block that was never examined, and the first that is not full.
fn ends(db: &Connection) -> Result<(i64, i64)> {
    let next = single(db, "SELECT coalesce(max(block) + 1, 0) FROM ledger_blocks", [])?;
    let rows: i64 = single(db, "SELECT coalesce(max(id) + 1, 0) FROM ledger", [])?;
    Ok((next, rows / ROWS))
}

/// Returns blocks that had calls in flight when they were examined.
fn unfinished_blocks(db: &Connection, step: usize) -> Result<Vec<i64>> {
    let sql = "SELECT block FROM ledger_blocks WHERE names IS NULL LIMIT ?1";
    all(db, sql, [step])
}

fn is_pending(db: &Connection, block: i64) -> Result<bool> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM ledger WHERE status = 'PENDING' AND id >= ?1 AND id < ?2)";
    single(db, sql, [block * ROWS, (block + 1) * ROWS])
}

/// Indexes a block with all rows settled.
fn index_block(db: &Connection, block: i64) -> Result<()> {
    let entry = IndexEntry::of_rows(db, block, number)?;
    let sql = "INSERT OR REPLACE INTO ledger_blocks (block, first_ms, last_ms, names)
             VALUES (?1, ?2, ?3, ?4)";
    execute(db, sql, params![block, entry.first_ms, entry.last_ms, entry.names]).map(drop)
}

/// Passes the first and last id of each indexed block to `each`, with true if the index matches
/// the rows.
pub(super) fn check(db: &Connection, mut each: impl FnMut(i64, i64, bool)) -> Result<()> {
    let mut statement = db.prepare(
        "SELECT block, first_ms, last_ms, names FROM ledger_blocks WHERE names IS NOT NULL
         ORDER BY block",
    )?;
    let mut blocks = statement.query([])?;
    while let Some(row) = blocks.next()? {
        let block: i64 = row.get(0)?;
        let indexed = IndexEntry::read(row, &mut 1)?;
        let start = block.saturating_mul(ROWS);
        let is_correct = indexed == IndexEntry::of_rows(db, block, find_number)?;
        each(start, start.saturating_add(ROWS - 1), is_correct);
    }
    Ok(())
}

/// The index entry of a block.
#[derive(PartialEq)]
struct IndexEntry {
    first_ms: Option<i64>,
    last_ms: Option<i64>,
    /// The ids of its combinations of names, sorted.
    names: Vec<u8>,
}

/// Names that occur together in a row.
struct Names {
    flow_id: Option<i64>,
    provider: String,
    model: String,
    status: String,
}

from_row!(IndexEntry; first_ms, last_ms, names);
from_row!(Names; flow_id, provider, model, status);

impl IndexEntry {
    /// Computes the entry from the block's rows; `number` returns the id of a combination of names.
    fn of_rows(
        db: &Connection,
        block: i64,
        number: fn(&Connection, &Names) -> Result<i64>,
    ) -> Result<Self> {
        let start = block.saturating_mul(ROWS);
        let rows = [start, start.saturating_add(ROWS)];
        let sql = "SELECT min(+timestamp_ms), max(+timestamp_ms) FROM ledger
            WHERE id >= ?1 AND id < ?2";
        let (first_ms, last_ms) = single(db, sql, rows)?;
        let sql = "SELECT DISTINCT flow_id, provider, model_used, status FROM ledger
            WHERE id >= ?1 AND id < ?2";
        let combinations: Vec<Names> = all(db, sql, rows)?;
        let numbers = combinations.iter().map(|names| number(db, names));
        let mut numbers = numbers.collect::<Result<Vec<i64>>>()?;
        numbers.sort_unstable();
        Ok(Self {
            first_ms,
            last_ms,
            names: numbers.into_iter().flat_map(i64::to_le_bytes).collect(),
        })
    }
}

/// Returns the id of a combination of names, or 0 if it has none.
fn find_number(db: &Connection, names: &Names) -> Result<i64> {
    let sql = "SELECT id FROM ledger_names
         WHERE model_used = ?1 AND provider = ?2 AND status = ?3 AND flow_id IS ?4";
    let known = one(db, sql, params![names.model, names.provider, names.status, names.flow_id])?;
    Ok(known.unwrap_or(0))
}

/// Returns the id of a combination of names, and assigns one if it has none.
fn number(db: &Connection, names: &Names) -> Result<i64> {
    let known = find_number(db, names)?;
    if known > 0 {
        return Ok(known);
    }
    let sql = "INSERT INTO ledger_names (model_used, provider, status, flow_id)
             VALUES (?1, ?2, ?3, ?4)";
    execute(db, sql, params![names.model, names.provider, names.status, names.flow_id])?;
    Ok(db.last_insert_rowid())
}

/// Selects the blocks that may contain rows of a filter.
struct BlockFilter {
    /// Indexed by the ids of combinations of names; none if all names match.
    names: Option<Vec<bool>>,
    from: i64,
    to: i64,
}

impl BlockFilter {
    fn new(db: &Connection, filter: &LedgerFilter) -> Result<Self> {
        let (condition, values) = filter.names_only().sql();
        let names = if condition == "1" {
            None
        } else {
            let sql = format!("SELECT id FROM ledger_names WHERE {condition}");
            let mut names = Vec::new();
            for id in all::<usize, Vec<_>>(db, &sql, params_from_iter(values))? {
                if names.len() <= id {
                    names.resize(id + 1, false);
                }
                names[id] = true;
            }
            Some(names)
        };
        Ok(Self {
            names,
            from: filter.from.map_or(i64::MIN, |from| from.0),
            to: filter.to.map_or(i64::MAX, |to| to.0),
        })
    }

    /// Returns whether a block may contain such a row. Blocks without an entry always may.
    fn may_match(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<bool> {
        let Some(names) = row.get_ref(3)?.as_blob_or_null()? else {
            return Ok(true);
        };
        let (first, last): (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(false);
        };
        if last < self.from || first >= self.to {
            return Ok(false);
        }
        let Some(matching) = &self.names else {
            return Ok(true);
        };
        let is_matching = |name: &[u8]| {
            let id = name.try_into().map_or(0, i64::from_le_bytes);
            usize::try_from(id).is_ok_and(|id| matching.get(id) == Some(&true))
        };
        Ok(names.chunks_exact(NAME_BYTES).any(is_matching))
    }
}

/// Passes spans of ids (the first, and the first beyond) to `read`, until `read` returns that it has
/// enough: in the order of descending ids, all below `start`, or of ascending ids, all above it.
/// Together the spans contain all rows of the filter.
pub(super) fn spans(
    db: &Connection,
    filter: &LedgerFilter,
    order: Order,
    start: i64,
    mut read: impl FnMut(i64, i64) -> Result<bool>,
) -> Result<()> {
    let block_filter = BlockFilter::new(db, filter)?;
    let (comparison, direction) = match order {
        Order::Desc => ("<=", "DESC"),
        Order::Asc => (">=", "ASC"),
    };
    let sql = format!(
        "SELECT block, first_ms, last_ms, names FROM ledger_blocks WHERE block {comparison} ?1
         ORDER BY block {direction}"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let mut blocks = statement.query([start.div_euclid(ROWS)])?;
    // The span to read next. Ids beyond it, in this order, are still to be examined.
    let begin = if order == Order::Desc { start } else { start.saturating_add(1) };
    let (mut from, mut end) = (begin, begin);
    while let Some(row) = blocks.next()? {
        let first = row.get::<_, i64>(0)? * ROWS;
        let beyond = first + ROWS;
        let is_candidate = block_filter.may_match(row)?;
        // Rows between this block and the previous one are not indexed.
        match (order, is_candidate) {
            (Order::Desc, true) => from = from.min(first),
            (Order::Desc, false) => from = from.min(beyond),
            (Order::Asc, true) => end = end.max(beyond),
            (Order::Asc, false) => end = end.max(first),
        }
        if from < end && (!is_candidate || end - from >= SPAN_ROWS_MAX) {
            if read(from, end)? {
                return Ok(());
            }
            match order {
                Order::Desc => end = from,
                Order::Asc => from = end,
            }
        }
        if !is_candidate {
            (from, end) = match order {
                Order::Desc => (from.min(first), end.min(first)),
                Order::Asc => (from.max(beyond), end.max(beyond)),
            };
        }
    }
    match order {
        Order::Desc if end > 0 => read(0, end).map(drop),
        Order::Asc if from < i64::MAX => read(from, i64::MAX).map(drop),
        _ => Ok(()),
    }
}
