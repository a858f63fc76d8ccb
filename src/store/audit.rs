//! Reading all of the database in its order, for `flowledger verify`: row by row, whatever it holds.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::block_index;
use super::budgets;
use super::connection::{DATABASE, LOCK, configure};
use super::days::{self, Day};
use super::ledger::{ENTRY_COLUMNS, entry};
use super::schema;
use super::sql::{all, one};
use crate::error::{Error, Result};
use crate::event::{LedgerEntry, RunId, Seq, Timestamp};

/// Page cache, KiB: rows of runs are not quite in the order of the ledger.
const CACHE_KIB: i64 = 16_384;
/// How many faults SQLite's own check tells of at most.
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

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditNames {
    /// The day (UTC) on which a call began, by its number since 1970.
    pub day: i64,
    pub flow_id: Option<i64>,
    pub provider: String,
    pub model: String,
    pub role: Option<String>,
    pub status: String,
}

/// A ledger row, with numbers and texts as they are stored.
#[derive(Clone, Debug)]
pub struct AuditCall {
    pub id: i64,
    pub names: AuditNames,
    /// Input, read from cache, written to it, those for an hour, output, reasoning.
    pub tokens: [i64; 6],
    pub usage_source: String,
    pub cost: Option<i64>,
    pub price_id: Option<i64>,
    pub refused: Option<String>,
    pub cached: bool,
    pub saved: Option<i64>,
    /// Whether it does not say what was reserved for it: it came from the cache, or was written before
    /// rows kept their prices.
    pub is_without_reserve: bool,
}

/// What a day's rows of the same names count together: calls, those whose cost is not known, those whose tokens were
/// estimated; tokens: input, read from cache, written to it, output, reasoning; nano-dollars, calls
/// from the cache, nano-dollars that they saved.
pub type AuditDay = [i64; 11];

impl AuditCall {
    pub fn counts(&self) -> AuditDay {
        let [input, read, write, _, output, reasoning] = self.tokens;
        [
            1,
            i64::from(self.cost.is_none() && self.names.status != "PENDING"),
            i64::from(self.usage_source == "estimated"),
            input,
            read,
            write,
            output,
            reasoning,
            self.cost.unwrap_or(0),
            i64::from(self.cached),
            self.saved.unwrap_or(0),
        ]
    }
}

pub fn add_to_day(days: &mut HashMap<AuditNames, AuditDay>, names: &AuditNames, counts: &AuditDay) {
    let Some(sums) = days.get_mut(names) else {
        days.insert(names.clone(), *counts);
        return;
    };
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum = sum.saturating_add(*count);
    }
}

/// Sums over ledger rows, and of what they are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditSums {
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// Nano-dollars; none where a cost is not known.
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
    /// The run; none where it was deleted and only rows of it are left.
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
    /// How many nodes its graph has; none where there is no graph.
    pub graph_nodes: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub seq: Seq,
    /// Of an update of the ledger: the message. Others' are not read.
    pub update: Option<String>,
}

fn sums(row: &Row<'_>, at: usize) -> rusqlite::Result<AuditSums> {
    Ok(AuditSums {
        input_tokens: row.get(at)?,
        output_tokens: row.get(at + 1)?,
        cost: row.get(at + 2)?,
    })
}

fn is_locked(lock: &Path) -> bool {
    // Held for no longer than it takes to let go of it.
    let lock = File::open(lock).map(|file| file.try_lock_shared());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
}

impl Audit {
    /// Opens the database in `dir`, which a server may have open as well.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not there, is none, or is of another version.
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
        // What is read from now on is of this one moment: the transaction is never ended.
        configure(&connection)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        Ok(Self {
            connection,
            lock,
            was_in_use,
        })
    }

    /// Whether another flowledger has the database open, or had when it was opened here.
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

    /// What SQLite says of the file; nothing where it is sound.
    pub fn quick_check(&self) -> Result<Vec<String>> {
        let sql = format!("PRAGMA quick_check({QUICK_CHECK_FAULTS_MAX})");
        let mut statement = self.connection.prepare(&sql)?;
        let lines = statement.query_map([], |row| row.get(0))?;
        let lines: Vec<String> = lines.collect::<rusqlite::Result<_>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// The highest number that was ever given in a table; 0 where none was.
    pub fn last_number(&self, table: &str) -> Result<i64> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
        let last = self.connection.query_row(sql, [table], |row| row.get(0));
        Ok(last.optional()?.unwrap_or(0))
    }

    pub fn calls(&self, mut each: impl FnMut(AuditCall)) -> Result<()> {
        let mut statement = self.connection.prepare(
            "SELECT id, status, input_tokens, cached_input_tokens, cache_write_tokens,
                cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source, cost_nanousd,
                price_id, cached, saved_nanousd, reserved_tokens IS NULL, timestamp_ms,
                refused, flow_id, provider, model_used, agent_role
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
                names: AuditNames {
                    day: days::day_of(Timestamp(row.get(14)?)),
                    flow_id: row.get(16)?,
                    provider: row.get(17)?,
                    model: row.get(18)?,
                    role: row.get(19)?,
                    status: row.get(1)?,
                },
                tokens,
                usage_source: row.get(8)?,
                cost: row.get(9)?,
                price_id: row.get(10)?,
                cached: row.get(11)?,
                saved: row.get(12)?,
                is_without_reserve: row.get(13)?,
                refused: row.get(15)?,
            });
        }
        Ok(())
    }

    /// What is summed up of days, and which is the first day that is not.
    pub fn days(&self) -> Result<(HashMap<AuditNames, AuditDay>, Day)> {
        let mut statement = self.connection.prepare(
            "SELECT day, flow_id, provider, model_used, agent_role, status, calls, unpriced,
                estimated, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
                reasoning_tokens, cost, cached, saved
             FROM ledger_days",
        )?;
        let mut rows = statement.query([])?;
        let mut days = HashMap::new();
        while let Some(row) = rows.next()? {
            let names = AuditNames {
                day: row.get(0)?,
                flow_id: row.get(1)?,
                provider: row.get(2)?,
                model: row.get(3)?,
                role: row.get(4)?,
                status: row.get(5)?,
            };
            let mut counts = AuditDay::default();
            for (at, count) in counts.iter_mut().enumerate() {
                *count = row.get(at + 6)?;
            }
            add_to_day(&mut days, &names, &counts);
        }
        Ok((days, days::summed_until(&self.connection)?))
    }

    /// Days that are summed up for budgets, and whether the sums of each are what its rows come to.
    pub fn budget_days(&self, each: impl FnMut(i64, bool)) -> Result<()> {
        let until = days::summed_until(&self.connection)?;
        budgets::check(&self.connection, until, each)
    }

    /// Blocks of ledger rows of which it is noted what they hold: the first and the last number of
    /// each, and whether that is what its rows say.
    pub fn blocks(&self, each: impl FnMut(i64, i64, bool)) -> Result<()> {
        block_index::check(&self.connection, each)
    }

    pub fn price(&self, id: i64) -> Result<Option<String>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT price FROM prices WHERE id = ?1")?;
        Ok(statement.query_row([id], |row| row.get(0)).optional()?)
    }

    /// All runs in order, also those of which only ledger rows, nodes or items are left.
    pub fn runs(&self, mut each: impl FnMut(AuditRun)) -> Result<()> {
        let mut statement = self.connection.prepare(
            "SELECT id FROM runs UNION SELECT run_id FROM run_nodes
             UNION SELECT run_id FROM run_items
             UNION SELECT run_id FROM ledger WHERE run_id IS NOT NULL ORDER BY 1",
        )?;
        let mut ids = statement.query([])?;
        let mut graphs = HashMap::new();
        while let Some(row) = ids.next()? {
            each(self.run(row.get(0)?, &mut graphs)?);
        }
        Ok(())
    }

    fn run(&self, id: RunId, graphs: &mut HashMap<String, Option<usize>>) -> Result<AuditRun> {
        let sql = "SELECT status, finished_ms IS NOT NULL, graph_hash, input_tokens, output_tokens,
                cost_nanousd
             FROM runs WHERE id = ?1";
        let stored = one(&self.connection, sql, [&id], |row| {
            let graph: String = row.get(2)?;
            Ok((row.get(0)?, row.get(1)?, graph, sums(row, 3)?))
        })?;
        let stored = match stored {
            Some((status, is_finished, graph, sums)) => Some(StoredRun {
                status,
                sums,
                is_finished,
                graph_nodes: self.graph_nodes(graphs, graph)?,
            }),
            None => None,
        };
        let sql = "SELECT node_id, status, input_tokens, output_tokens, cost_nanousd
             FROM run_nodes WHERE run_id = ?1 ORDER BY node_id";
        let nodes = all(&self.connection, sql, [&id], |row| {
            Ok(AuditNode {
                id: row.get(0)?,
                status: row.get(1)?,
                sums: sums(row, 2)?,
            })
        })?;
        let sql = "SELECT count(*), count(*) FILTER (WHERE status = 'RUNNING')
             FROM run_items WHERE run_id = ?1";
        let items = one(&self.connection, sql, [&id], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        let (items, running_items) = items.unwrap_or_default();
        let mut run = AuditRun {
            stored,
            nodes,
            running_items,
            items,
            calls: 0,
            sums: AuditSums::NOTHING,
            node_sums: HashMap::new(),
            id,
        };
        let mut statement = self.connection.prepare_cached(
            "SELECT node_id, input_tokens, output_tokens, cost_nanousd FROM ledger
             WHERE run_id = ?1",
        )?;
        let mut calls = statement.query([&run.id])?;
        while let Some(row) = calls.next()? {
            let (node, sums): (Option<String>, _) = (row.get(0)?, sums(row, 1)?);
            run.calls += 1;
            run.sums.add(sums);
            let of_node = run.node_sums.entry(node.unwrap_or_default());
            of_node.or_insert(AuditSums::NOTHING).add(sums);
        }
        Ok(run)
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

    /// A ledger row as the API gives it.
    ///
    /// # Errors
    /// Also where it holds what no such row does.
    pub fn entry(&self, id: i64) -> Result<Option<LedgerEntry>> {
        let sql = format!("SELECT {ENTRY_COLUMNS} FROM ledger WHERE id = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        Ok(statement.query_row([id], entry).optional()?)
    }
}
