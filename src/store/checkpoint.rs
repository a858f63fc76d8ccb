//! Copies commits from SQLite's write-ahead log into the database in a separate thread, because a
//! checkpoint takes milliseconds and would delay every call in the writer's thread.
//!
//! SQLite restarts the log when a commit finds it completely copied. This never happens while
//! commits arrive faster than the thread copies them. Therefore, the writer copies the remainder
//! itself if the log has grown long.

use std::ffi::c_int;
use std::path::Path;

use crossbeam_channel::{Receiver, TrySendError, bounded};
use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode};

use crate::error::Result;

/// Pages between two checkpoints; the same as SQLite's default.
const PAGES: c_int = 1_000;
/// The length of the log, in pages, at which the writer copies the rest (16 MiB).
const RESTART_PAGES: c_int = 4_000;
/// Pages between two attempts of the writer, if a reader keeps the log from restarting.
const RESTART_STEP_PAGES: c_int = 500;

/// Runs checkpoints in a separate thread.
pub struct Checkpointer {
    connection: Connection,
    due: Receiver<()>,
}

impl Checkpointer {
    /// Watches the commits of `writer`, and opens another connection to its database at `path`.
    pub(super) fn new(writer: &mut Connection, path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // One pending signal is enough, however often a checkpoint is due.
        let (request, due) = bounded(1);
        let (mut copied, mut restarted) = (0, 0);
        // Replaces SQLite's automatic checkpoint, which runs in the writer's thread.
        writer.wal_hook(Some(move |wal: &mut Wal, pages| {
            if pages < copied {
                (copied, restarted) = (0, 0);
            }
            if pages - copied >= PAGES {
                copied = pages;
                if let Err(TrySendError::Disconnected(())) = request.try_send(()) {
                    log::warn!("the thread for WAL checkpoints has stopped");
                }
            }
            if pages >= RESTART_PAGES && pages - restarted >= RESTART_STEP_PAGES {
                restarted = pages;
                // The commit is complete, and a later one tries this again.
                let _ = wal.checkpoint();
            }
            Ok(())
        }))?;
        Ok(Self { connection, due })
    }

    /// Copies whenever a checkpoint is due, until the writer is dropped.
    pub fn run(&self) {
        while self.due.recv().is_ok() {
            let copied = self.connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE);
            match copied {
                Ok(_) => {}
                // The writer is copying.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
                Err(error) => log::warn!("WAL checkpoint failed: {error}"),
            }
        }
    }
}
