//! SQLite: one file, one writer (the journal's thread), readers for everybody else.
//!
//! The only module that knows SQL. A [`Writer`] applies [`Change`]s inside a transaction; a
//! [`Store`] answers questions over read-only connections that it keeps in a small pool.

#[macro_use]
mod sql;

mod audit;
mod block_index;
mod budgets;
mod call_changes;
mod call_stats;
mod change;
mod checkpoint;
mod connection;
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
mod reader;
mod response_cache;
mod run_changes;
mod runs;
mod schema;
mod suggestions;
#[cfg(test)]
pub mod testing;
mod triggers;
mod writer;

use std::path::Path;

use rusqlite::Connection;

pub use audit::{Audit, AuditCall, AuditEvent, AuditNode, AuditRun, AuditSums, Extent};
pub use budgets::BudgetState;
pub use call_stats::CallRow;
pub use change::{
    Applied, Bought, Change, Delivery, FailedNode, FinishedNode, NewCall, NewFlow, NewHook, NewKey,
    NewRun, NewSchedule, NodeRef, Prompt, Receipt, RunEnd, RunStart, Settlement,
};
pub use checkpoint::Checkpointer;
#[cfg(test)]
pub(crate) use connection::alter;
pub use events::LoggedEvent;
pub use flows::FlowRecord;
pub use inputs::StoredInput;
pub use keys::KeyRecord;
pub use ledger::{GROUPS, Summary, Sums};
pub use ledger_filter::LedgerFilter;
pub use reader::Store;
pub use response_cache::ANSWER_BYTES_MAX;
pub use runs::{ItemRecord, LeftOver, NodeRecord, NodeStatus, Run, RunFilter};
pub use suggestions::{AppliedEdit, MEASURED_MS, NodeChange, document_hash};
pub use triggers::{HOOK_KEY_AGE_MAX_MS, HookRecord, ScheduleRecord};
pub use writer::{Batch, Writer};

use connection::{DATABASE, configure, lock, make_private_dir, make_private_file};

use crate::error::Result;

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
        Ok((Self::new(path, Some(lock)), writer))
    }

    /// Opens the database in `dir` to read it, which a server may have open as well.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not there, is none, or is of another version.
    pub fn open_to_read(dir: &Path) -> Result<Self> {
        // Says what is wrong with it, where it is.
        Audit::open(dir)?;
        Ok(Self::new(dir.join(DATABASE), None))
    }
}
