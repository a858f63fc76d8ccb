//! What blocks of ledger rows hold, so that a page of rare rows need not look at all others.
//!
//! An index for each filter would cost every call twice, when it is opened and when it is settled.
//! Instead each [`ROWS`] numbers in a row are a block. Behind the calls it is noted once for each
//! block, when all its rows are settled, which names stand in it (flow, provider, model and status
//! together) and between which moments; settled rows never change. A page reads the rows of those
//! blocks alone that may hold some of its own. Moments are those of the rows, so a clock that jumps
//! only makes a block's span of time wider.
//!
//! A block that is not noted, or was when some of its calls were under way, is read.

use rusqlite::{Connection, params, params_from_iter};

use super::ledger_filter::LedgerFilter;
use super::sql::{FromRow, all, execute, one, single};
use crate::error::Result;

/// How many numbers a block has. A page of N rare rows reads N blocks at most.
const ROWS: i64 = 128;
/// So many rows are looked through at a time where block after block may hold some of the page.
const SPAN_ROWS_MAX: i64 = 64 * ROWS;
/// How many bytes the number of a combination of names takes in a block.
const NAME_BYTES: usize = size_of::<i64>();

/// Notes what blocks hold: of up to `step` of those that are not noted, where all is settled. Gives
/// of how many it was looked at.
pub(super) fn note(db: &Connection, step: usize) -> Result<usize> {
    let mut written = 0;
    for block in open(db, step)? {
        if !is_pending(db, block)? {
            note_one(db, block)?;
            written += 1;
        }
    }
    let (mut next, end) = ends(db)?;
    while next < end && written < step {
        if is_pending(db, next)? {
            execute(db, "INSERT INTO ledger_blocks (block) VALUES (?1)", params![next])?;
        } else {
            note_one(db, next)?;
        }
        next += 1;
        written += 1;
    }
    Ok(written)
}

/// Whether [`note`] has something to do.
pub(super) fn is_behind(db: &Connection, step: usize) -> Result<bool> {
    let (next, end) = ends(db)?;
    if next < end {
        return Ok(true);
    }
    for block in open(db, step)? {
        if !is_pending(db, block)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first block that was never looked at, and the first that is not full.
fn ends(db: &Connection) -> Result<(i64, i64)> {
    let next = single(db, "SELECT coalesce(max(block) + 1, 0) FROM ledger_blocks", [])?;
    let rows: i64 = single(db, "SELECT coalesce(max(id) + 1, 0) FROM ledger", [])?;
    Ok((next, rows / ROWS))
}

/// Blocks that had calls under way when they were looked at.
fn open(db: &Connection, step: usize) -> Result<Vec<i64>> {
    let sql = "SELECT block FROM ledger_blocks WHERE names IS NULL LIMIT ?1";
    all(db, sql, [step])
}

fn is_pending(db: &Connection, block: i64) -> Result<bool> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM ledger WHERE status = 'PENDING' AND id >= ?1 AND id < ?2)";
    single(db, sql, [block * ROWS, (block + 1) * ROWS])
}

/// Notes what a block holds, whose rows are settled.
fn note_one(db: &Connection, block: i64) -> Result<()> {
    let held = Held::of_rows(db, block, number)?;
    let sql = "INSERT OR REPLACE INTO ledger_blocks (block, first_ms, last_ms, names)
             VALUES (?1, ?2, ?3, ?4)";
    execute(db, sql, params![block, held.first_ms, held.last_ms, held.names]).map(drop)
}

/// Calls `each` with the first and the last number of each block that is noted, and whether what is
/// noted is what its rows say.
pub(super) fn check(db: &Connection, mut each: impl FnMut(i64, i64, bool)) -> Result<()> {
    let mut statement = db.prepare(
        "SELECT block, first_ms, last_ms, names FROM ledger_blocks WHERE names IS NOT NULL
         ORDER BY block",
    )?;
    let mut blocks = statement.query([])?;
    while let Some(row) = blocks.next()? {
        let block: i64 = row.get(0)?;
        let noted = Held::read(row, &mut 1)?;
        let start = block.saturating_mul(ROWS);
        let is_right = noted == Held::of_rows(db, block, known_number)?;
        each(start, start.saturating_add(ROWS - 1), is_right);
    }
    Ok(())
}

/// What is noted of a block.
#[derive(PartialEq)]
struct Held {
    first_ms: Option<i64>,
    last_ms: Option<i64>,
    /// The numbers of its combinations of names, in order.
    names: Vec<u8>,
}

/// Names that stand in a row together.
struct Names {
    flow_id: Option<i64>,
    provider: String,
    model: String,
    status: String,
}

from_row!(Held; first_ms, last_ms, names);
from_row!(Names; flow_id, provider, model, status);

impl Held {
    /// Reads it from the block's rows; `number` tells the number of a combination of names.
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
        let found: Vec<Names> = all(db, sql, rows)?;
        let numbers = found.iter().map(|names| number(db, names));
        let mut numbers = numbers.collect::<Result<Vec<i64>>>()?;
        numbers.sort_unstable();
        Ok(Self {
            first_ms,
            last_ms,
            names: numbers.into_iter().flat_map(i64::to_le_bytes).collect(),
        })
    }
}

/// The number of a combination of names; 0 where it has none.
fn known_number(db: &Connection, names: &Names) -> Result<i64> {
    let sql = "SELECT id FROM ledger_names
         WHERE model_used = ?1 AND provider = ?2 AND status = ?3 AND flow_id IS ?4";
    let known = one(db, sql, params![names.model, names.provider, names.status, names.flow_id])?;
    Ok(known.unwrap_or(0))
}

/// The number of a combination of names, which gets one where it has none.
fn number(db: &Connection, names: &Names) -> Result<i64> {
    let known = known_number(db, names)?;
    if known > 0 {
        return Ok(known);
    }
    let sql = "INSERT INTO ledger_names (model_used, provider, status, flow_id)
             VALUES (?1, ?2, ?3, ?4)";
    execute(db, sql, params![names.model, names.provider, names.status, names.flow_id])?;
    Ok(db.last_insert_rowid())
}

/// Which blocks may hold rows of a filter.
struct Wanted {
    /// By the numbers of combinations of names; none where every name will do.
    names: Option<Vec<bool>>,
    from: i64,
    to: i64,
}

impl Wanted {
    fn new(db: &Connection, filter: &LedgerFilter) -> Result<Self> {
        let (condition, values) = filter.of_names().sql();
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

    /// Whether a block may hold such a row: what is not noted of it may be anything.
    fn may_be_in(&self, noted: &rusqlite::Row<'_>) -> rusqlite::Result<bool> {
        let Some(names) = noted.get_ref(3)?.as_blob_or_null()? else {
            return Ok(true);
        };
        let (first, last): (Option<i64>, Option<i64>) = (noted.get(1)?, noted.get(2)?);
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(false);
        };
        if last < self.from || first >= self.to {
            return Ok(false);
        }
        let Some(wanted) = &self.names else {
            return Ok(true);
        };
        let is_wanted = |name: &[u8]| {
            let id = name.try_into().map_or(0, i64::from_le_bytes);
            usize::try_from(id).is_ok_and(|id| wanted.get(id) == Some(&true))
        };
        Ok(names.chunks_exact(NAME_BYTES).any(is_wanted))
    }
}

/// Calls `read` with spans of numbers (the first, and the first beyond), newest first and all below
/// `before`, in which together all rows of the filter are, until it says that it has enough.
pub(super) fn spans(
    db: &Connection,
    filter: &LedgerFilter,
    before: i64,
    mut read: impl FnMut(i64, i64) -> Result<bool>,
) -> Result<()> {
    let wanted = Wanted::new(db, filter)?;
    let mut statement = db.prepare_cached(
        "SELECT block, first_ms, last_ms, names FROM ledger_blocks WHERE block <= ?1
         ORDER BY block DESC",
    )?;
    let mut blocks = statement.query([before.div_euclid(ROWS)])?;
    // What is to be read next, and everything below it was not looked at.
    let (mut from, mut end) = (before, before);
    while let Some(row) = blocks.next()? {
        let block: i64 = row.get(0)?;
        let start = block * ROWS;
        let may_be = wanted.may_be_in(row)?;
        // Between this block and the one before are rows that are not noted.
        from = if may_be { start.min(from) } else { (start + ROWS).min(from) };
        if from < end && (!may_be || end - from >= SPAN_ROWS_MAX) {
            if read(from, end)? {
                return Ok(());
            }
            end = from;
        }
        if !may_be {
            (from, end) = (start.min(from), start.min(end));
        }
    }
    if end > 0 {
        read(0, end)?;
    }
    Ok(())
}
