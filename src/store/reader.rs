//! A pool of read connections for all threads.

use std::ffi::c_int;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags};

use super::connection::{configure, named};
use super::files::DatabaseFiles;
use crate::error::{Error, Result};

/// Limits the read connections in use; further readers wait. Each takes two descriptors (see
/// `listener::connections`) and up to [`CACHE_KIB`].
const READERS_MAX: usize = 16;
/// Limits how many idle read connections are kept.
const IDLE_READERS_MAX: usize = 4;
/// Limits how long a reader waits for a connection. Reads that may take seconds have a queue of
/// their own (`http::heavy_reads`), so only an overloaded machine reaches this limit.
const READER_WAIT_MAX: Duration = Duration::from_secs(30);
/// SQLite's instructions between two checks for an interruption: about 50 ms.
const CHECK_INSTRUCTIONS: c_int = 500_000;
/// Limits how long [`Store::close`] waits for running reads, and for its checkpoint.
const CLOSE_WAIT_MAX: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Readers {
    idle: Vec<Connection>,
    in_use: usize,
}

struct Pool {
    path: PathBuf,
    readers: Mutex<Readers>,
    reader_freed: Condvar,
    is_closed: Arc<AtomicBool>,
    /// None if the database is open for reading only, or closed.
    owner: Mutex<Option<Owner>>,
}

/// Held by the process that writes the database.
pub(super) struct Owner {
    pub files: Arc<DatabaseFiles>,
    /// Unlocks the data directory when it is dropped.
    pub _lock: File,
}

/// Returns true once the result of a read is no longer wanted.
pub type Interrupt = Arc<dyn Fn() -> bool + Send + Sync>;

/// A read connection in use; returned to the pool on drop.
struct Reader<'a> {
    pool: &'a Pool,
    /// None while the connection is being opened, or if that failed.
    connection: Option<Connection>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut readers = self.pool.readers();
        readers.in_use -= 1;
        let is_closed = self.pool.is_closed.load(Ordering::SeqCst);
        // A panic may leave a statement half read, so the connection is not reused.
        if readers.idle.len() < IDLE_READERS_MAX && !is_closed && !std::thread::panicking() {
            readers.idle.extend(self.connection.take());
        }
        // Close it before `close` sees the new count, because `close` needs exclusive access.
        drop(self.connection.take());
        drop(readers);
        self.pool.reader_freed.notify_all();
    }
}

/// Read access to the database, shared by all threads.
pub struct Store {
    pool: Arc<Pool>,
    interrupt: Option<Interrupt>,
}

impl Store {
    pub(super) fn new(path: PathBuf, owner: Option<Owner>) -> Self {
        let pool = Pool {
            path,
            readers: Mutex::default(),
            reader_freed: Condvar::new(),
            is_closed: Arc::default(),
            owner: Mutex::new(owner),
        };
        Self { pool: Arc::new(pool), interrupt: None }
    }

    /// Returns access through the same pool whose reads end with an error once `interrupt` returns
    /// true.
    pub fn interrupted_by(&self, interrupt: Interrupt) -> Self {
        Self { pool: Arc::clone(&self.pool), interrupt: Some(interrupt) }
    }

    /// Runs `query` on a read connection; waits if all are in use. It must not call `read`
    /// itself, or it could wait for its own connection.
    ///
    /// # Errors
    /// [`Error::Busy`] when none becomes free in time, [`Error::Stopping`] after the store is closed.
    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut reader = self.pool.reader()?;
        let connection = match reader.connection.take() {
            Some(connection) => connection,
            None => self.pool.connect()?,
        };
        let connection = reader.connection.insert(connection);
        if let Some(interrupt) = &self.interrupt {
            let (interrupt, is_closed) = (Arc::clone(interrupt), Arc::clone(&self.pool.is_closed));
            let is_over = move || is_closed.load(Ordering::SeqCst) || interrupt();
            connection.progress_handler(CHECK_INSTRUCTIONS, Some(is_over))?;
        }
        let result = query(connection);
        if self.interrupt.is_some() {
            self.pool.watch(connection)?;
        }
        if self.pool.is_closed.load(Ordering::SeqCst) && result.is_err() {
            return Err(Error::Stopping);
        }
        result.map_err(|error| named(error, &self.pool.path))
    }

    /// Returns the size of the database and its log, in bytes.
    pub fn bytes_on_disk(&self) -> u64 {
        let mut log = self.pool.path.as_os_str().to_owned();
        log.push("-wal");
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        bytes(&self.pool.path) + bytes(Path::new(&log))
    }

    /// Closes the database after the writer has ended: interrupts running reads, refuses new ones,
    /// copies all commits into the one database file, and unlocks the data directory.
    pub fn close(&self) {
        let pool = &self.pool;
        pool.is_closed.store(true, Ordering::SeqCst);
        let in_use = |readers: &mut Readers| readers.in_use > 0;
        let (mut readers, _) = pool
            .reader_freed
            .wait_timeout_while(pool.readers(), CLOSE_WAIT_MAX, in_use)
            .unwrap_or_else(PoisonError::into_inner);
        readers.idle.clear();
        drop(readers);
        let mut owner = pool.owner.lock().unwrap_or_else(PoisonError::into_inner);
        match owner.take() {
            None => {}
            Some(Owner { files, .. }) if files.lost().is_some() => match files.set_log_aside() {
                Ok(None) => {}
                Ok(Some(path)) => log::error!(
                    "the write-ahead log of the lost database is now {}; it belongs only to that \
                     database",
                    path.display()
                ),
                Err(error) => log::error!("cannot rename the write-ahead log: {error}"),
            },
            Some(_owner) => {
                if let Err(error) = pool.checkpoint() {
                    log::warn!(
                        "cannot copy the write-ahead log into {}, which needs its -wal file: {error}",
                        pool.path.display()
                    );
                }
            }
        }
    }
}

impl Pool {
    fn reader(&self) -> Result<Reader<'_>> {
        let all_in_use = |readers: &mut Readers| readers.in_use >= READERS_MAX;
        let (mut readers, _) = self
            .reader_freed
            .wait_timeout_while(self.readers(), READER_WAIT_MAX, all_in_use)
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(Error::Stopping);
        }
        if all_in_use(&mut readers) {
            return Err(Error::Busy("all database readers are busy; try again later".into()));
        }
        readers.in_use += 1;
        Ok(Reader { pool: self, connection: readers.idle.pop() })
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        configure(&connection)?;
        self.watch(&mut connection)?;
        Ok(connection)
    }

    /// Lets reads of `connection` end once the store is closed.
    fn watch(&self, connection: &mut Connection) -> Result<()> {
        let is_closed = Arc::clone(&self.is_closed);
        let is_over = move || is_closed.load(Ordering::SeqCst);
        Ok(connection.progress_handler(CHECK_INSTRUCTIONS, Some(is_over))?)
    }

    fn checkpoint(&self) -> Result<()> {
        // Without the flag that creates a file.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(CLOSE_WAIT_MAX)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::TRUNCATE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_unlocks_the_directory_for_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(dir.path()).unwrap();
        let other = store.interrupted_by(Arc::new(|| false));
        other.read(|_| Ok(())).unwrap();
        assert!(Store::open(dir.path()).is_err());
        drop(writer);
        store.close();
        assert!(matches!(other.read(|_| Ok(())), Err(Error::Stopping)));
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn close_interrupts_a_running_read() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(dir.path()).unwrap();
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
            SELECT sum(i % 2) FROM n";
        let (begun, has_begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let read = scope.spawn(|| {
                store.read(|connection| {
                    begun.send(()).unwrap();
                    Ok(connection.query_row(endless, [], |row| row.get::<_, i64>(0))?)
                })
            });
            has_begun.recv().unwrap();
            store.close();
            assert!(matches!(read.join().unwrap(), Err(Error::Stopping)));
        });
    }
}
