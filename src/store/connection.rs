//! Settings of connections and the files of the data directory.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use crate::error::{Error, Result};

/// The database's file name in the data directory.
pub(super) const DATABASE: &str = "flowledger.db";
/// Locked by the one process that writes the database.
pub(super) const LOCK: &str = "flowledger.lock";
/// Limits how long a reader waits for a lock; in WAL mode only the end of a checkpoint
/// blocks readers.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Limits the cache of prepared statements per connection; all statements fit.
const STATEMENTS_MAX: usize = 128;
/// Page cache per connection in KiB: enough for the hot pages of the indexes, small when idle.
const CACHE_KIB: i64 = 2_048;

/// The end of the message of an error that a damaged database causes.
const DAMAGED: &str = ": the database is damaged";

/// Adds the path of a damaged database to its error, and the remedy.
pub(super) fn named(error: Error, path: &Path) -> Error {
    match error {
        Error::Store(why) if why.ends_with(DAMAGED) => Error::Store(format!(
            "{}: {why}; restore a copy of the file, or move it away to start with an empty \
             database. `flowledger verify` lists the faults",
            path.display()
        )),
        other => other,
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => Self::Disk(error.to_string()),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Store(format!("{error}{DAMAGED}"))
            }
            _ => Self::Store(error.to_string()),
        }
    }
}

/// Changes the database in `dir` while a server has it open, so that tests can simulate disk
/// errors.
#[cfg(test)]
pub(crate) fn alter(dir: &Path, sql: &str) {
    let connection = Connection::open(dir.join(DATABASE)).unwrap();
    connection.execute_batch(sql).unwrap();
}

pub(super) fn configure(connection: &Connection) -> Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Statements are planned once. By default SQLite plans again when certain parameters change,
    // which costs more than most statements. Values that the plan depends on are part of the
    // statement's text.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "foreign_keys", false)?;
    Ok(())
}

/// Creates the directory for its owner only, because outputs of flows are private.
pub(super) fn make_private_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io(format!(
        "cannot create the data directory {} (--data sets another one)",
        dir.display()
    )))
}

/// Creates the database file for its owner only. SQLite creates its other files with the same mode.
pub(super) fn make_private_file(path: &Path) -> Result<()> {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(Error::io(format!("cannot open the database {}", path.display())))
}

pub(super) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let file = File::create(&path).map_err(Error::io(format!(
        "cannot write to the data directory {} (--data sets another one)",
        dir.display()
    )))?;
    // Some file systems have no modes, which is not fatal.
    let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Config(format!(
            "{} is in use by another flowledger; stop it, or use another directory (--data)",
            dir.display()
        ))),
        Err(fs::TryLockError::Error(source)) => {
            Err(Error::Io { context: format!("cannot lock {}", path.display()), source })
        }
    }
}
