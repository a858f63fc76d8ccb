//! SQLite: one file, one writer (the journal's thread), readers for everybody else.
//!
//! The only module that knows SQL. A [`Writer`] applies [`Change`]s inside a transaction; a
//! [`Store`] answers questions over read-only connections that it keeps in a small pool.

mod audit;
mod block_index;
mod budgets;
mod call_changes;
mod call_stats;
mod change;
mod checkpoint;
mod daily_rollup;
mod days;
mod events;
mod flows;
mod inputs;
mod keys;
mod ledger;
mod ledger_filter;
mod node_changes;
mod prices;
mod response_cache;
mod run_changes;
mod runs;
mod schema;
mod sql;
mod suggestions;
#[cfg(test)]
pub mod testing;
mod triggers;
mod writer;

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

pub use audit::{
    Audit, AuditCall, AuditDay, AuditEvent, AuditNames, AuditNode, AuditRun, AuditSums, Extent,
    StoredRun, add_to_day,
};
pub use budgets::BudgetState;
pub use call_stats::CallRow;
pub use change::{
    Applied, Bought, Change, Delivery, FailedNode, FinishedNode, NewCall, NewFlow, NewHook, NewKey,
    NewRun, NewSchedule, NodeRef, Prompt, Receipt, RunEnd, RunStart, Settlement,
};
pub use checkpoint::Checkpointer;
pub use events::LoggedEvent;
pub use flows::FlowRecord;
pub use inputs::StoredInput;
pub use keys::KeyRecord;
pub use ledger::{GROUPS, Summary, Sums};
pub use ledger_filter::LedgerFilter;
pub use response_cache::ANSWER_BYTES_MAX;
pub use runs::{ItemRecord, LeftOver, NodeRecord, NodeStatus, OpenRun, Run, RunFilter};
pub use suggestions::{AppliedEdit, MEASURED_MS, NodeChange, document_hash};
pub use triggers::{HOOK_KEY_AGE_MAX_MS, HookRecord, ScheduleRecord};
pub use writer::{Batch, Writer};

use crate::error::{Error, Result};

/// The database's file name in the data directory.
const DATABASE: &str = "flowledger.db";
/// Held locked by the one process that writes the database.
const LOCK: &str = "flowledger.lock";
/// How many read connections there are at a time; further readers wait in a queue. Each takes two
/// descriptors (see `listener::connections`) and up to [`CACHE_KIB`].
const READERS_MAX: usize = 16;
/// How many idle read connections are kept.
const IDLE_READERS_MAX: usize = 4;
/// How long a reader waits for a connection. Reads that may take seconds have a queue of their own
/// (`http::heavy_reads`), so only a machine in distress comes to this.
const READER_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a reader waits for a lock; in WAL mode readers wait for nobody but a checkpoint's end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many prepared statements a connection keeps: all there are.
const STATEMENTS_MAX: usize = 128;
/// Page cache per connection, KiB: enough for the hot pages of the indexes, small when idle.
const CACHE_KIB: i64 = 2_048;

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => Self::Disk(error.to_string()),
            _ => Self::Store(error.to_string()),
        }
    }
}

/// The read connections.
#[derive(Default)]
struct Readers {
    idle: Vec<Connection>,
    in_use: usize,
}

/// A read connection in use, given back on drop.
struct Reader<'a> {
    store: &'a Store,
    /// None while it is being opened, and when that fails.
    connection: Option<Connection>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut readers = self.store.readers();
        readers.in_use -= 1;
        // After a panic, a statement may be left half read.
        if readers.idle.len() < IDLE_READERS_MAX && !std::thread::panicking() {
            readers.idle.extend(self.connection.take());
        }
        drop(readers);
        self.store.reader_freed.notify_one();
    }
}

/// The database, for reading. Shared by all threads.
pub struct Store {
    path: PathBuf,
    readers: Mutex<Readers>,
    reader_freed: Condvar,
    /// Unlocked when dropped; none where it is only read.
    _lock: Option<File>,
}

impl Store {
    /// Opens (or makes) the database in `dir` and brings its schema up to date. [`Writer::checkpointer`]
    /// is for a thread of its own.
    ///
    /// # Errors
    /// When another process has it open, when the directory cannot be used, and when the database
    /// was written by a newer version.
    pub fn open(dir: &Path) -> Result<(Self, Writer)> {
        make_private_dir(dir)?;
        let lock = lock(dir)?;
        let path = dir.join(DATABASE);
        make_private_file(&path)?;
        let mut connection = Connection::open(&path)?;
        configure(&connection)?;
        // WAL lets readers go on while the journal commits; FULL makes a commit survive a power
        // cut, which is what "never loses a row" means.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
        let old = schema::migrate(&mut connection)?;
        if old == 0 {
            log::info!("new database at {}", path.display());
        }
        let writer = Writer::new(path.clone(), connection)?;
        Ok((
            Self {
                path,
                readers: Mutex::default(),
                reader_freed: Condvar::new(),
                _lock: Some(lock),
            },
            writer,
        ))
    }

    /// Opens the database in `dir` to read it, which a server may have open as well.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not there, is none, or is of another version.
    pub fn open_to_read(dir: &Path) -> Result<Self> {
        // Says what is wrong with it, where it is.
        Audit::open(dir)?;
        Ok(Self {
            path: dir.join(DATABASE),
            readers: Mutex::default(),
            reader_freed: Condvar::new(),
            _lock: None,
        })
    }

    /// Runs `question` on a read connection, and waits for one while all are in use. A question
    /// must not ask another one.
    ///
    /// # Errors
    /// [`Error::Busy`] when none becomes free in time.
    fn read<T>(&self, question: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let all_in_use = |readers: &mut Readers| readers.in_use >= READERS_MAX;
        let (mut readers, _) = self
            .reader_freed
            .wait_timeout_while(self.readers(), READER_WAIT_MAX, all_in_use)
            .unwrap_or_else(PoisonError::into_inner);
        if all_in_use(&mut readers) {
            let why = "the database has too many readers; try again later";
            return Err(Error::Busy(why.into()));
        }
        readers.in_use += 1;
        let pooled = readers.idle.pop();
        drop(readers);
        let mut reader = Reader {
            store: self,
            connection: pooled,
        };
        if reader.connection.is_none() {
            reader.connection = Some(self.connect()?);
        }
        match &reader.connection {
            Some(connection) => question(connection),
            None => Err(Error::internal("no read connection")),
        }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        configure(&connection)?;
        Ok(connection)
    }
}

/// Changes the database in `dir` behind the back of the server that has it: for tests of what it does
/// about a disk that refuses.
#[cfg(test)]
pub(crate) fn alter(dir: &Path, sql: &str) {
    let connection = Connection::open(dir.join(DATABASE)).unwrap();
    connection.execute_batch(sql).unwrap();
}

fn configure(connection: &Connection) -> Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // A statement is planned once, not again whenever a parameter has another value, which costs
    // more than most of them do. What a plan is to depend on stands in the statement's text.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "foreign_keys", false)?;
    Ok(())
}

/// Outputs of flows are nobody else's business: the directory is made for its owner alone.
fn make_private_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(Error::io(format!(
            "cannot make the data directory {}",
            dir.display()
        )))
}

/// SQLite gives its other files the mode of the first.
fn make_private_file(path: &Path) -> Result<()> {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(Error::io(format!(
            "cannot open the database {}",
            path.display()
        )))
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let file = File::create(&path).map_err(Error::io(format!(
        "cannot write to the data directory {}",
        dir.display()
    )))?;
    // Not fatal where a file system has no modes.
    let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Config(format!(
            "{} is in use by another flowledger; stop that one, or give this one its own --data",
            dir.display()
        ))),
        Err(fs::TryLockError::Error(source)) => Err(Error::Io {
            context: format!("cannot lock {}", path.display()),
            source,
        }),
    }
}
