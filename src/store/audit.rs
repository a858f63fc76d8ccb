//! Reads the whole database in its order, for `flowledger verify`.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Statement};

use super::block_index;
use super::budgets;
use super::daily_rollup::{self, DaySums};
use super::days;
use super::ledger::{ENTRY_COLUMNS, entry};
use super::{DATABASE, LOCK, configure, schema};
use crate::error::{Error, Result};
use crate::event::{LedgerEntry, RunId, Seq};

/// Page cache, KiB: rows of runs are not quite in the order of the ledger.
const CACHE_KIB: i64 = 16_384;
const QUICK_CHECK_FAULTS_MAX: u32 = 20;
const GRAPHS_MAX: usize = 10_000;

/// The database, opened for reading only, as of one moment.
pub struct Audit {
    connection: Connection,
    lock: PathBuf,
    was_in_use: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    pub calls: u64,
    pub runs: u64,
    pub events: u64,
}

/// A ledger row as it is stored.
#[derive(Clone, Debug)]
pub struct AuditCall {
    pub id: i64,
    pub status: String,
    pub provider: String,
    /// Input, cache reads, cache writes, those for an hour, output, reasoning.
    pub tokens: [i64; 6],
    pub usage_source: String,
    /// Nano-dollars.
    pub cost: Option<i64>,
    pub price_id: Option<i64>,
    pub refused: Option<String>,
    pub cached: bool,
    /// Nano-dollars.
    pub saved: Option<i64>,
    /// It has no reservation: it came from the cache, or was written before rows kept their prices.
    pub is_without_reserve: bool,
}

/// Sums over ledger rows, computed or stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditSums {
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// Nano-dollars; none if a cost is unknown.
    pub cost: Option<i64>,
}

impl AuditSums {
    const NOTHING: Self = Self {
        input_tokens: 0,
        output_tokens: 0,
        cost: Some(0),
    };

    fn add(&mut self, row: Self) {
        self.input_tokens = self.input_tokens.saturating_add(row.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(row.output_tokens);
        self.cost = self
            .cost
            .zip(row.cost)
            .map(|(sum, cost)| sum.saturating_add(cost));
    }
}

#[derive(Clone, Debug)]
pub struct AuditNode {
    pub id: String,
    pub status: String,
    pub sums: AuditSums,
}

#[derive(Clone, Debug)]
pub struct AuditRun {
    pub id: RunId,
    /// None if the run was deleted.
    pub stored: Option<StoredRun>,
    pub nodes: Vec<AuditNode>,
    /// Of maps.
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
    /// The message of a ledger update; others are not read.
    pub update: Option<String>,
}

/// The node of a ledger row, and the row's numbers.
type NodeCall = (Option<String>, AuditSums);

impl AuditRun {
    fn collect(
        &mut self,
        nodes: &mut Peeked<'_, AuditNode>,
        items: &mut Peeked<'_, bool>,
        calls: &mut Peeked<'_, NodeCall>,
    ) -> Result<()> {
        while let Some(node) = nodes.take(&self.id)? {
            self.nodes.push(node);
        }
        while let Some(is_running) = items.take(&self.id)? {
            self.items += 1;
            self.running_items += u64::from(is_running);
        }
        while let Some((node, sums)) = calls.take(&self.id)? {
            self.calls += 1;
            self.sums.add(sums);
            let of_node = self.node_sums.entry(node.unwrap_or_default());
            of_node.or_insert(AuditSums::NOTHING).add(sums);
        }
        Ok(())
    }
}

/// Rows in the order of runs, of which one is read ahead.
struct Peeked<'s, T> {
    rows: rusqlite::Rows<'s>,
    read: fn(&Row<'_>) -> rusqlite::Result<(RunId, T)>,
    next: Option<(RunId, T)>,
}

impl<'s, T> Peeked<'s, T> {
    fn new(
        statement: &'s mut Statement<'_>,
        read: fn(&Row<'_>) -> rusqlite::Result<(RunId, T)>,
    ) -> Result<Self> {
        let mut peeked = Self {
            rows: statement.query([])?,
            read,
            next: None,
        };
        peeked.advance()?;
        Ok(peeked)
    }

    fn advance(&mut self) -> Result<()> {
        self.next = self.rows.next()?.map(self.read).transpose()?;
        Ok(())
    }

    fn run_id(&self) -> Option<&RunId> {
        self.next.as_ref().map(|(run_id, _)| run_id)
    }

    fn take(&mut self, run_id: &str) -> Result<Option<T>> {
        if self.run_id().is_none_or(|next| next != run_id) {
            return Ok(None);
        }
        let taken = self.next.take();
        self.advance()?;
        Ok(taken.map(|(_, value)| value))
    }
}

fn sums(row: &Row<'_>, at: usize) -> rusqlite::Result<AuditSums> {
    Ok(AuditSums {
        input_tokens: row.get(at)?,
        output_tokens: row.get(at + 1)?,
        cost: row.get(at + 2)?,
    })
}

fn is_locked(lock: &Path) -> bool {
    // Released at once.
    let lock = File::open(lock).map(|file| file.try_lock_shared());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
}

impl Audit {
    /// Opens the database in `dir`, which a server may have open as well.
    ///
    /// # Errors
    /// [`Error::Config`] if it is missing, unreadable, or of another version.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(DATABASE);
        let lock = dir.join(LOCK);
        let was_in_use = is_locked(&lock);
        let refused = |why: String| Error::Config(format!("{}: {why}", path.display()));
        if !path.is_file() {
            return Err(refused("there is no database".to_owned()));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&path, flags).and_then(|connection| {
            connection.execute_batch("BEGIN")?;
            let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok((connection, version))
        });
        let (connection, version): (Connection, usize) =
            opened.map_err(|error| refused(format!("cannot be opened: {error}")))?;
        if version != schema::version() {
            return Err(refused(format!(
                "has schema version {version}, but this flowledger knows version {}; a newer one \
                 knows newer ones, and `flowledger serve` brings older ones up to date",
                schema::version()
            )));
        }
        // The transaction never ends, so that all reads see the same moment.
        configure(&connection)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        Ok(Self {
            connection,
            lock,
            was_in_use,
        })
    }

    /// Returns whether another flowledger has the database open, or had when it was opened here.
    pub fn is_in_use(&self) -> bool {
        self.was_in_use || is_locked(&self.lock)
    }

    pub fn extent(&self) -> Result<Extent> {
        let count = |table: &str| -> Result<u64> {
            let sql = format!("SELECT count(*) FROM {table}");
            Ok(self.connection.query_row(&sql, [], |row| row.get(0))?)
        };
        Ok(Extent {
            calls: count("ledger")?,
            runs: count("runs")?,
            events: count("events")?,
        })
    }

    /// Returns the faults that SQLite finds in the file.
    pub fn quick_check(&self) -> Result<Vec<String>> {
        let sql = format!("PRAGMA quick_check({QUICK_CHECK_FAULTS_MAX})");
        let mut statement = self.connection.prepare(&sql)?;
        let lines = statement.query_map([], |row| row.get(0))?;
        let lines: Vec<String> = lines.collect::<rusqlite::Result<_>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// Returns the highest number that was ever given in a table, else 0.
    pub fn last_number(&self, table: &str) -> Result<i64> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
        let last = self.connection.query_row(sql, [table], |row| row.get(0));
        Ok(last.optional()?.unwrap_or(0))
    }

    pub fn calls(&self, mut each: impl FnMut(AuditCall)) -> Result<()> {
        let mut statement = self.connection.prepare(
            "SELECT id, status, input_tokens, cached_input_tokens, cache_write_tokens,
                cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source, cost_nanousd,
                price_id, cached, saved_nanousd, reserved_tokens IS NULL, refused, provider
             FROM ledger ORDER BY id",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let mut tokens = [0; 6];
            for (at, tokens) in tokens.iter_mut().enumerate() {
                *tokens = row.get(at + 2)?;
            }
            each(AuditCall {
                id: row.get(0)?,
                status: row.get(1)?,
                tokens,
                usage_source: row.get(8)?,
                cost: row.get(9)?,
                price_id: row.get(10)?,
                cached: row.get(11)?,
                saved: row.get(12)?,
                is_without_reserve: row.get(13)?,
                refused: row.get(14)?,
                provider: row.get(15)?,
            });
        }
        Ok(())
    }

    pub fn days(&self, each: impl FnMut(DaySums)) -> Result<()> {
        daily_rollup::check(&self.connection, each)
    }

    /// Passes each day that is summed up for budgets, and whether its sums are those of its rows.
    pub fn budget_days(&self, each: impl FnMut(i64, bool)) -> Result<()> {
        let until = days::summed_until(&self.connection)?;
        budgets::check(&self.connection, until, each)
    }

    /// Passes the first and last number of each indexed block of ledger rows, and whether its index is
    /// right.
    pub fn blocks(&self, each: impl FnMut(i64, i64, bool)) -> Result<()> {
        block_index::check(&self.connection, each)
    }

    pub fn price(&self, id: i64) -> Result<Option<String>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT price FROM prices WHERE id = ?1")?;
        Ok(statement.query_row([id], |row| row.get(0)).optional()?)
    }

    /// Passes all runs in order, also deleted ones with ledger rows, nodes or items.
    pub fn runs(&self, mut each: impl FnMut(AuditRun)) -> Result<()> {
        type Head = (String, AuditSums, bool, String);
        let mut heads = self.connection.prepare(
            "SELECT id, status, input_tokens, output_tokens, cost_nanousd, finished_ms IS NOT NULL,
                graph_hash
             FROM runs ORDER BY id",
        )?;
        let mut heads: Peeked<'_, Head> = Peeked::new(&mut heads, |row| {
            let head = (row.get(1)?, sums(row, 2)?, row.get(5)?, row.get(6)?);
            Ok((row.get(0)?, head))
        })?;
        let mut nodes = self.connection.prepare(
            "SELECT run_id, node_id, status, input_tokens, output_tokens, cost_nanousd
             FROM run_nodes ORDER BY run_id, node_id",
        )?;
        let mut nodes = Peeked::new(&mut nodes, |row| {
            let node = AuditNode {
                id: row.get(1)?,
                status: row.get(2)?,
                sums: sums(row, 3)?,
            };
            Ok((row.get(0)?, node))
        })?;
        let mut items = self.connection.prepare(
            "SELECT run_id, status = 'RUNNING' FROM run_items ORDER BY run_id, node_id, item",
        )?;
        let mut items: Peeked<'_, bool> =
            Peeked::new(&mut items, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mut calls = self.connection.prepare(
            "SELECT run_id, node_id, input_tokens, output_tokens, cost_nanousd FROM ledger
             WHERE run_id IS NOT NULL ORDER BY run_id, id",
        )?;
        let mut calls: Peeked<'_, NodeCall> = Peeked::new(&mut calls, |row| {
            Ok((row.get(0)?, (row.get(1)?, sums(row, 2)?)))
        })?;
        let mut graphs: HashMap<String, Option<usize>> = HashMap::new();
        loop {
            let next = [
                heads.run_id(),
                nodes.run_id(),
                items.run_id(),
                calls.run_id(),
            ];
            let Some(id) = next.into_iter().flatten().min().cloned() else {
                return Ok(());
            };
            let stored = match heads.take(&id)? {
                Some((status, sums, is_finished, graph)) => Some(StoredRun {
                    status,
                    sums,
                    is_finished,
                    graph_nodes: self.graph_nodes(&mut graphs, graph)?,
                }),
                None => None,
            };
            let mut run = AuditRun {
                stored,
                nodes: Vec::new(),
                running_items: 0,
                items: 0,
                calls: 0,
                sums: AuditSums::NOTHING,
                node_sums: HashMap::new(),
                id,
            };
            run.collect(&mut nodes, &mut items, &mut calls)?;
            each(run);
        }
    }

    fn graph_nodes(
        &self,
        known: &mut HashMap<String, Option<usize>>,
        hash: String,
    ) -> Result<Option<usize>> {
        if let Some(count) = known.get(&hash) {
            return Ok(*count);
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT json_array_length(data, '$.nodes') FROM graphs WHERE hash = ?1",
        )?;
        let count = statement.query_row([&hash], |row| row.get(0)).optional()?;
        if known.len() < GRAPHS_MAX {
            known.insert(hash, count.flatten());
        }
        Ok(count.flatten())
    }

    /// Passes all events, the newest first.
    pub fn events_backwards(&self, mut each: impl FnMut(AuditEvent) -> Result<()>) -> Result<()> {
        let mut statement = self.connection.prepare(
            "SELECT seq, CASE WHEN type = 'LEDGER_UPDATE' THEN body END
             FROM events ORDER BY seq DESC",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(AuditEvent {
                seq: row.get(0)?,
                update: row.get(1)?,
            })?;
        }
        Ok(())
    }

    /// # Errors
    /// Also if the row holds invalid values.
    pub fn entry(&self, id: i64) -> Result<Option<LedgerEntry>> {
        let sql = format!("SELECT {ENTRY_COLUMNS} FROM ledger WHERE id = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        Ok(statement.query_row([id], entry).optional()?)
    }
}
