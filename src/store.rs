//! SQLite storage: one file, one writer (the journal's thread), any number of readers.
//!
//! Only this module contains SQL. A [`Writer`] applies [`Change`]s inside a transaction; a
//! [`Store`] runs queries over a small pool of read-only connections.

#[macro_use]
mod sql;

mod audit;
mod block_index;
mod bodies;
mod body;
mod budgets;
mod call_changes;
mod call_stats;
mod change;
mod checkpoint;
mod connection;
mod corrections;
mod daily_rollup;
mod days;
mod end_users;
mod epochs;
mod events;
mod files;
mod flow_events;
mod flow_list;
mod flows;
mod inputs;
mod key_record;
mod keys;
mod ledger;
mod ledger_filter;
mod ledger_page;
mod node_changes;
mod overview;
mod prices;
mod prompt_densities;
mod reader;
mod response_cache;
mod run_changes;
mod run_list;
mod runs;
mod schema;
mod stored_objects;
mod suggestions;
#[cfg(test)]
pub mod testing;
mod triggers;
mod used_models;
mod writer;

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

pub use audit::{Audit, AuditCall, AuditEvent, AuditNode, AuditRun, AuditSums, Extent};
pub use bodies::StoredBody;
pub use body::{BODY_BYTES_MAX, Bodies, BodyPart, NewBody};
pub use budgets::BudgetState;
pub use call_stats::CallRow;
pub use change::{
    Applied, Bought, Change, Correction, Delivery, FailedNode, FinishedNode, KeyEdit, NewCall,
    NewFlow, NewHook, NewKey, NewRun, NewSchedule, NodeRef, ObjectKind, ObjectName, Prompt,
    Receipt, RunEnd, RunStart, Settlement, StoredObject,
};
pub use checkpoint::Checkpointer;
#[cfg(test)]
pub(crate) use connection::alter;
pub use corrections::{AuditCorrection, ModelNames, UnpricedModel, UnpricedRow};
pub use end_users::EndUsers;
pub use epochs::Epochs;
pub use events::LoggedEvent;
pub use flow_list::{FlowEntry, FlowSchedule, RecentRun};
pub use flows::FlowRecord;
pub use inputs::StoredInput;
pub use key_record::{KeyLimits, KeyRecord};
pub use keys::{FORMER_KEYS_MAX, FormerKey};
pub use ledger::{GROUPS, Summary, Sums};
pub use ledger_filter::{LedgerFilter, Order};
pub use ledger_page::{LedgerCursor, LedgerPage, LedgerQuery, LedgerSort};
pub use overview::QuarterSums;
pub use reader::{Interrupt, Store};
pub use response_cache::{ANSWER_BYTES_MAX, ANSWERS_AGE_MAX_MS, ANSWERS_BYTES_MAX};
pub use run_changes::RESTART_WITHOUT_CALL;
pub use run_list::{RunCursor, RunFilter, RunSort};
pub use runs::{ItemRecord, NodeRecord, NodeStatus, OpenRun, Run};
pub use stored_objects::{OBJECT_AGE_MAX_MS, OPEN_AGE_MAX_MS};
pub use suggestions::{AppliedEdit, MEASURED_MS, NodeChange, document_hash};
pub use triggers::{HOOK_KEY_AGE_MAX_MS, HookRecord, ScheduleRecord};
pub use used_models::UsedModel;
pub use writer::{Batch, Writer};

use connection::{DATABASE, configure, lock, make_private_dir, make_private_file, named};

use crate::error::{Error, Result};
use files::DatabaseFiles;
use reader::Owner;

impl Store {
    /// Opens (or creates) the database in `dir` and migrates its schema.
    ///
    /// # Errors
    /// Fails for an unusable directory, and for a database that another process has open or that a
    /// newer version wrote.
    pub fn open(dir: &Path) -> Result<(Self, Writer)> {
        make_private_dir(dir)?;
        let lock = lock(dir)?;
        let path = dir.join(DATABASE);
        make_private_file(&path)?;
        let (connection, old) = connect(&path).map_err(|error| named(error, &path))?;
        if old == 0 {
            log::info!("new database at {}", path.display());
        }
        let files = Arc::new(DatabaseFiles::of(&path));
        let writer = Writer::new(path.clone(), connection, Arc::clone(&files))
            .map_err(|error| named(error, &path))?;
        // Also notes the write-ahead log, which the writer has created.
        if files.lost().is_some() {
            return Err(Error::Config(format!("{} was deleted or replaced", path.display())));
        }
        Ok((Self::new(path, Some(Owner { files, _lock: lock })), writer))
    }

    /// Opens the database in `dir` for reading only, even while a server has it open.
    ///
    /// # Errors
    /// [`Error::Config`] for a missing file, another format or another version.
    pub fn open_to_read(dir: &Path) -> Result<Self> {
        // Checks the file, and returns a clear error if it is unusable.
        Audit::open(dir)?;
        Ok(Self::new(dir.join(DATABASE), None))
    }
}

/// Opens and migrates the database. Returns its former version as well. A file of another program
/// is refused before anything is written to it.
fn connect(path: &Path) -> Result<(Connection, usize)> {
    // A writable connection would copy a pending log of the other program when it is closed.
    let reader = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    configure(&reader)?;
    if !schema::is_ours(&reader)? {
        return Err(Error::Config(format!(
            "{} is a database of another program; use another data directory (--data)",
            path.display()
        )));
    }
    drop(reader);
    let mut connection = Connection::open(path)?;
    configure(&connection)?;
    // WAL lets readers continue while the journal commits; FULL makes a commit survive a power
    // cut, so that no committed row is lost.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    let old = schema::migrate(&mut connection)?;
    Ok((connection, old))
}
