//! Reads the whole database in order, for `flowledger verify`.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::block_index;
use super::budgets;
use super::connection::{DATABASE, LOCK, configure};
use super::daily_rollup::{self, DaySums};
use super::days;
use super::ledger::ENTRY_COLUMNS;
use super::schema;
use super::sql::{FromRow, all, one, single};
use crate::error::{Error, Result};
use crate::event::LedgerEntry;
use crate::ids::{RunId, Seq};

/// Page cache in KiB. Larger than elsewhere, because rows of runs are not quite in ledger order.
const CACHE_KIB: i64 = 16_384;
const QUICK_CHECK_FAULTS_MAX: u32 = 20;
const GRAPHS_MAX: usize = 10_000;

/// A read-only connection with a single snapshot of the database.
pub struct Audit {
    db: Connection,
    lock: PathBuf,
    was_in_use: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    pub calls: u64,
    pub runs: u64,
    pub events: u64,
}

/// A ledger row as stored.
#[derive(Clone, Debug)]
pub struct AuditCall {
    pub id: i64,
    pub status: String,
    pub provider: String,
    /// Input, cache reads, cache writes, one-hour cache writes, output, reasoning.
    pub tokens: [i64; 6],
    pub usage_source: String,
    /// Nano-dollars.
    pub cost: Option<i64>,
    /// None in rows of earlier versions.
    pub cost_source: Option<String>,
    /// Nano-dollars, by our own price.
    pub price_cost: Option<i64>,
    /// Nano-dollars, as the response stated it.
    pub provider_cost: Option<i64>,
    pub price_id: Option<i64>,
    pub refused: Option<String>,
    pub cached: bool,
    /// Nano-dollars.
    pub saved: Option<i64>,
    /// True if the row has no reserve: the response cache answered it, or it is older than
    /// stored prices.
    pub is_without_reserve: bool,
}

from_row!(
    AuditCall; id, status, tokens, usage_source, cost, cost_source, price_cost, provider_cost, price_id, cached, saved, is_without_reserve,
    refused, provider
);
from_row!(AuditSums; input_tokens, output_tokens, cost);

/// Sums over ledger rows, computed or stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditSums {
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// Nano-dollars; none if a cost is unknown.
    pub cost: Option<i64>,
}

impl Default for AuditSums {
    fn default() -> Self {
        Self { input_tokens: 0, output_tokens: 0, cost: Some(0) }
    }
}

impl AuditSums {
    fn add(&mut self, row: Self) {
        self.input_tokens = self.input_tokens.saturating_add(row.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(row.output_tokens);
        self.cost = self.cost.zip(row.cost).map(|(sum, cost)| sum.saturating_add(cost));
    }
}

#[derive(Clone, Debug)]
pub struct AuditNode {
    pub id: String,
    pub status: String,
    pub sums: AuditSums,
}

#[derive(Clone, Debug, Default)]
pub struct AuditRun {
    pub id: RunId,
    /// None if the run was deleted.
    pub stored: Option<StoredRun>,
    pub nodes: Vec<AuditNode>,
    pub running_items: u64,
    pub items: u64,
    pub calls: u64,
    pub sums: AuditSums,
    pub node_sums: HashMap<String, AuditSums>,
}

#[derive(Clone, Debug)]
pub struct StoredRun {
    pub status: String,
    pub sums: AuditSums,
    pub is_finished: bool,
    /// None if the graph is missing.
    pub graph_nodes: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub seq: Seq,
    /// The message, if it is a ledger update; other messages are not read.
    pub update: Option<String>,
}

from_row!(AuditEvent; seq, update);

fn is_locked(lock: &Path) -> bool {
    // The lock is released at once.
    let lock = File::open(lock).map(|file| file.try_lock_shared());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
}

impl Audit {
    /// Opens the database in `dir`, even while a server has it open.
    ///
    /// # Errors
    /// [`Error::Config`] for a missing or unreadable database, or another version.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(DATABASE);
        let lock = dir.join(LOCK);
        let was_in_use = is_locked(&lock);
        let failed = |cause: String| {
            Error::Config(format!("cannot open the database {}: {cause}", path.display()))
        };
        if !path.is_file() {
            return Err(failed("file not found".to_owned()));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&path, flags).and_then(|db| {
            db.execute_batch("BEGIN")?;
            let version = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            let is_ours = schema::is_ours(&db)?;
            Ok((db, version, is_ours))
        });
        let (db, version, is_ours): (Connection, usize, bool) =
            opened.map_err(|error| failed(error.to_string()))?;
        if !is_ours {
            return Err(failed("it is a database of another program".to_owned()));
        }
        let supported = schema::version();
        if version != supported {
            let remedy = match version > supported {
                true => "use a newer flowledger",
                false => "run `flowledger serve` once to upgrade it",
            };
            return Err(failed(format!(
                "it has schema version {version}, and this flowledger supports {supported}; {remedy}"
            )));
        }
        // The transaction never ends, so that all reads see the same snapshot.
        configure(&db)?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        Ok(Self { db, lock, was_in_use })
    }

    /// Returns whether another flowledger has the database open, or had it open when this one
    /// was opened.
    pub fn is_in_use(&self) -> bool {
        self.was_in_use || is_locked(&self.lock)
    }

    pub fn extent(&self) -> Result<Extent> {
        let count = |table: &str| -> Result<u64> {
            single(&self.db, &format!("SELECT count(*) FROM {table}"), [])
        };
        Ok(Extent { calls: count("ledger")?, runs: count("runs")?, events: count("events")? })
    }

    /// Returns the faults that SQLite finds in the file.
    pub fn quick_check(&self) -> Result<Vec<String>> {
        let sql = format!("PRAGMA quick_check({QUICK_CHECK_FAULTS_MAX})");
        let mut lines: Vec<String> = all(&self.db, &sql, [])?;
        lines.retain(|line| line != "ok");
        Ok(lines)
    }

    /// Returns the highest id that a table ever assigned, or 0.
    pub fn last_number(&self, table: &str) -> Result<i64> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
        let last = one(&self.db, sql, [table])?;
        Ok(last.unwrap_or(0))
    }

    /// Returns the number of pending rows whose calls continue at the provider.
    pub fn open_calls(&self) -> Result<u64> {
        let sql = "SELECT count(*) FROM stored_objects JOIN ledger ON ledger.id = ledger_id
             WHERE is_open AND status = 'PENDING'";
        Ok(one(&self.db, sql, [])?.unwrap_or(0))
    }

    pub fn calls(&self, each: impl FnMut(AuditCall)) -> Result<()> {
        self.each(
            "SELECT id, status, input_tokens, cached_input_tokens, cache_write_tokens,
                cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source, cost_nanousd,
                cost_source, price_cost_nanousd, provider_cost_nanousd, price_id, cached, saved_nanousd, reserved_tokens IS NULL, refused, provider
             FROM ledger ORDER BY id",
            each,
        )
    }

    pub(super) fn each<T: FromRow>(&self, sql: &str, mut each: impl FnMut(T)) -> Result<()> {
        let mut statement = self.db.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(T::read(row, &mut 0)?);
        }
        Ok(())
    }

    pub fn days(&self, each: impl FnMut(DaySums)) -> Result<()> {
        daily_rollup::check(&self.db, each)
    }

    /// Passes each day that is summed up for budgets, with true if its sums match its rows.
    pub fn budget_days(&self, each: impl FnMut(i64, bool)) -> Result<()> {
        let until = days::rolled_up_until(&self.db)?;
        budgets::check(&self.db, until, each)
    }

    /// Passes the first and last id of each indexed block of ledger rows, with true if its index
    /// is right.
    pub fn blocks(&self, each: impl FnMut(i64, i64, bool)) -> Result<()> {
        block_index::check(&self.db, each)
    }

    pub fn price(&self, id: i64) -> Result<Option<String>> {
        let sql = "SELECT price FROM prices WHERE id = ?1";
        one(&self.db, sql, [id])
    }

    /// Passes all runs in order, including deleted ones with remaining ledger rows, nodes or items.
    pub fn runs(&self, mut each: impl FnMut(AuditRun)) -> Result<()> {
        // SQLite merges the parts by their indexes, so that nothing is sorted.
        let mut statement = self.db.prepare(
            "SELECT id AS run_id, 0, NULL, status, input_tokens, output_tokens, cost_nanousd,
                finished_ms IS NOT NULL, graph_hash
             FROM runs
             UNION ALL
             SELECT run_id, 1, node_id, status, input_tokens, output_tokens, cost_nanousd, NULL, NULL
             FROM run_nodes
             UNION ALL
             SELECT run_id, 2, NULL, status, 0, 0, 0, NULL, NULL FROM run_items
             UNION ALL
             SELECT run_id, 3, coalesce(node_id, ''), status, input_tokens, output_tokens,
                cost_nanousd, NULL, NULL
             FROM ledger WHERE run_id IS NOT NULL
             ORDER BY run_id",
        )?;
        let mut graphs: HashMap<String, Option<usize>> = HashMap::new();
        let mut current: Option<AuditRun> = None;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id: RunId = row.get(0)?;
            if current.as_ref().is_some_and(|run| run.id != id) {
                current.take().into_iter().for_each(&mut each);
            }
            let run = current.get_or_insert_with(|| AuditRun { id, ..AuditRun::default() });
            let status: String = row.get(3)?;
            let sums = AuditSums::read(row, &mut 4)?;
            match row.get::<_, u8>(1)? {
                0 => {
                    run.stored = Some(StoredRun {
                        status,
                        sums,
                        is_finished: row.get(7)?,
                        graph_nodes: self.graph_nodes(&mut graphs, row.get(8)?)?,
                    });
                }
                1 => run.nodes.push(AuditNode { id: row.get(2)?, status, sums }),
                2 => {
                    run.items += 1;
                    run.running_items += u64::from(status == "RUNNING");
                }
                _ => {
                    run.calls += 1;
                    run.sums.add(sums);
                    run.node_sums.entry(row.get(2)?).or_default().add(sums);
                }
            }
        }
        current.into_iter().for_each(each);
        Ok(())
    }

    fn graph_nodes(
        &self,
        known: &mut HashMap<String, Option<usize>>,
        hash: String,
    ) -> Result<Option<usize>> {
        if let Some(count) = known.get(&hash) {
            return Ok(*count);
        }
        let sql = "SELECT json_array_length(data, '$.nodes') FROM graphs WHERE hash = ?1";
        let count = one(&self.db, sql, [&hash])?;
        if known.len() < GRAPHS_MAX {
            known.insert(hash, count.flatten());
        }
        Ok(count.flatten())
    }

    /// Passes all events, the newest first.
    pub fn events_backwards(&self, mut each: impl FnMut(AuditEvent) -> Result<()>) -> Result<()> {
        let mut statement = self.db.prepare(
            "SELECT seq, CASE WHEN type = 'LEDGER_UPDATE' THEN body END
             FROM events ORDER BY seq DESC",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(AuditEvent::read(row, &mut 0)?)?;
        }
        Ok(())
    }

    /// Returns a row as it was when its call was settled, without a correction.
    ///
    /// # Errors
    /// Read errors of the database, and invalid values in the row.
    pub fn entry(&self, id: i64) -> Result<Option<LedgerEntry>> {
        let sql = format!("SELECT {ENTRY_COLUMNS} FROM ledger WHERE id = ?1");
        let mut entry: Option<LedgerEntry> = one(&self.db, &sql, [id])?;
        if let Some(entry) = &mut entry {
            entry.more.corrected_cost_usd = None;
        }
        Ok(entry)
    }
}
