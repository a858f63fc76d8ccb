//! The epochs of the event log, which tell its history from that of another copy of the database.
//!
//! Each start adds an epoch with a random name. A copy that goes on adds other ones than the
//! original, so the name and a position identify the events up to there.

use rusqlite::{Connection, params};

use super::sql::{all, execute};
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::secret::random_hex;

/// Limits the stored epochs, and with them the restarts that a disconnected client may miss.
const EPOCHS_MAX: usize = 1_000;

/// The epochs of this history, oldest first, each with its first event.
#[derive(Clone, Debug)]
pub struct Epochs(Vec<(String, Seq)>);

impl Epochs {
    /// Returns the present epoch.
    pub fn current(&self) -> &str {
        self.0.last().map_or("", |(epoch, _)| epoch)
    }

    /// Returns true if a client that saw the events of `epoch` up to `seq` saw the events of this
    /// history. `newest` is the newest event.
    pub fn contain(&self, epoch: &str, seq: Seq, newest: Seq) -> bool {
        let at = self.0.iter().rposition(|(known, _)| known == epoch);
        let next = |at: usize| self.0.get(at + 1).map_or(newest + 1, |(_, first)| *first);
        at.is_some_and(|at| seq < next(at))
    }
}

/// Adds the epoch of this start to a database whose newest event is `newest`.
pub(super) fn begin(db: &Connection, newest: Seq) -> Result<Epochs> {
    let epoch = random_hex::<16>()?;
    let mut epochs: Vec<(String, Seq)> =
        all(db, "SELECT epoch, first_seq FROM epochs ORDER BY id", [])?;
    match store(db, &epoch, newest + 1) {
        Ok(()) => {}
        // Safe: after the next start this epoch is unknown, so its clients fetch everything again.
        Err(Error::Disk(error)) => log::warn!("cannot store the epoch of the event log: {error}"),
        Err(error) => return Err(error),
    }
    epochs.push((epoch, newest + 1));
    Ok(Epochs(epochs))
}

fn store(db: &Connection, epoch: &str, first: Seq) -> Result<()> {
    let sql = "INSERT INTO epochs (epoch, first_seq) VALUES (?1, ?2)";
    execute(db, sql, params![epoch, first])?;
    let sql = "DELETE FROM epochs WHERE id <= (SELECT max(id) FROM epochs) - ?1";
    execute(db, sql, params![EPOCHS_MAX]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn a_position_counts_only_in_its_own_history() {
        let mut db = Connection::open_in_memory().unwrap();
        schema::migrate(&mut db).unwrap();
        let first = begin(&db, 0).unwrap();
        let second = begin(&db, 70).unwrap();
        let (a, b) = (first.current(), second.current());
        assert_ne!(a, b);
        for (epoch, seq, is_known) in [
            (a, 0, true),
            (a, 70, true),
            // The first process never had this event, so another copy of the database had it.
            (a, 71, false),
            (b, 71, true),
            (b, 30, true),
            (b, 72, false),
            ("other", 1, false),
        ] {
            assert_eq!(second.contain(epoch, seq, 71), is_known, "{epoch} {seq}");
        }
    }

    #[test]
    fn old_epochs_are_removed() {
        let mut db = Connection::open_in_memory().unwrap();
        schema::migrate(&mut db).unwrap();
        for newest in 0..EPOCHS_MAX as Seq + 5 {
            store(&db, &newest.to_string(), newest).unwrap();
        }
        assert_eq!(begin(&db, 2_000).unwrap().0.len(), EPOCHS_MAX + 1);
    }
}
