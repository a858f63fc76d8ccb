//! A pool of read connections for all threads.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::connection::configure;
use crate::error::{Error, Result};

/// Limits the read connections in use; further readers wait. Each takes two descriptors (see
/// `listener::connections`) and up to [`CACHE_KIB`].
const READERS_MAX: usize = 16;
/// Limits how many idle read connections are kept.
const IDLE_READERS_MAX: usize = 4;
/// Limits how long a reader waits for a connection. Reads that may take seconds have a queue of
/// their own (`http::heavy_reads`), so only an overloaded machine reaches this limit.
const READER_WAIT_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Readers {
    idle: Vec<Connection>,
    in_use: usize,
}

/// A read connection in use; returned to the pool on drop.
struct Reader<'a> {
    store: &'a Store,
    /// None while the connection is being opened, or if that failed.
    connection: Option<Connection>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut readers = self.store.readers();
        readers.in_use -= 1;
        // A panic may leave a statement half read, so the connection is not reused.
        if readers.idle.len() < IDLE_READERS_MAX && !std::thread::panicking() {
            readers.idle.extend(self.connection.take());
        }
        drop(readers);
        self.store.reader_freed.notify_one();
    }
}

/// Read access to the database, shared by all threads.
pub struct Store {
    path: PathBuf,
    readers: Mutex<Readers>,
    reader_freed: Condvar,
    /// Unlocks on drop; none if the database is open for reading only.
    _lock: Option<File>,
}

impl Store {
    pub(super) fn new(path: PathBuf, lock: Option<File>) -> Self {
        Self { path, readers: Mutex::default(), reader_freed: Condvar::new(), _lock: lock }
    }

    /// Runs `question` on a read connection; waits if all are in use. It must not call `read`
    /// itself, or it could wait for its own connection.
    ///
    /// # Errors
    /// If none becomes free in time ([`Error::Busy`]).
    pub(super) fn read<T>(&self, question: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let all_in_use = |readers: &mut Readers| readers.in_use >= READERS_MAX;
        let (mut readers, _) = self
            .reader_freed
            .wait_timeout_while(self.readers(), READER_WAIT_MAX, all_in_use)
            .unwrap_or_else(PoisonError::into_inner);
        if all_in_use(&mut readers) {
            return Err(Error::Busy("the database has too many readers; try again later".into()));
        }
        readers.in_use += 1;
        let pooled = readers.idle.pop();
        drop(readers);
        let mut reader = Reader { store: self, connection: pooled };
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
