//! Copying what was committed from SQLite's write-ahead log into the database, beside the thread that
//! writes: a checkpoint takes milliseconds, for which every call would wait that comes meanwhile.
//!
//! SQLite begins the log anew once all of it is copied and the next commit finds it so, which never
//! happens while commits come faster than copies. So the writer copies what little is left itself
//! where the log has grown long.

use std::ffi::c_int;
use std::path::Path;

use crossbeam_channel::{Receiver, TrySendError, bounded};
use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode};

use crate::error::Result;

/// After so many pages it is time to copy, as SQLite does by itself.
const PAGES: c_int = 1_000;
/// The writer copies the rest where the log is so long (16 MiB) …
const RESTART_PAGES: c_int = 4_000;
/// … and, where somebody who reads keeps it from beginning anew, again after so many.
const RESTART_STEP_PAGES: c_int = 500;

/// Copies, in a thread of its own.
pub struct Checkpointer {
    connection: Connection,
    due: Receiver<()>,
}

impl Checkpointer {
    /// Copies what `writer` commits, over another connection to its database at `path`.
    pub(super) fn new(writer: &mut Connection, path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // One word is enough, however often it is time.
        let (tell, due) = bounded(1);
        let (mut copied, mut restarted) = (0, 0);
        // In place of SQLite's own, which copies in the writer's thread.
        writer.wal_hook(Some(move |wal: &mut Wal, pages| {
            if pages < copied {
                (copied, restarted) = (0, 0);
            }
            if pages - copied >= PAGES {
                copied = pages;
                if let Err(TrySendError::Disconnected(())) = tell.try_send(()) {
                    log::warn!("the thread that copies the log of writes is gone");
                }
            }
            if pages >= RESTART_PAGES && pages - restarted >= RESTART_STEP_PAGES {
                restarted = pages;
                // The commit is made, and this is tried again.
                let _ = wal.checkpoint();
            }
            Ok(())
        }))?;
        Ok(Self { connection, due })
    }

    /// Copies whenever it is time, until the writer is dropped.
    pub fn run(&self) {
        while self.due.recv().is_ok() {
            let copied = self.connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE);
            match copied {
                Ok(_) => {}
                // The writer does so itself just now.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
                Err(error) => log::warn!("the log of writes cannot be copied: {error}"),
            }
        }
    }
}
