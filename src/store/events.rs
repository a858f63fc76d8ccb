//! Reads the event log.

use rusqlite::params;

use super::reader::Store;
use super::sql::{FromRow, single};
use crate::error::Result;
use crate::ids::{FlowId, Seq};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedEvent {
    pub seq: Seq,
    pub flow_id: Option<FlowId>,
    pub type_name: String,
    /// The message without its `seq`.
    pub body: String,
}

from_row!(LoggedEvent; seq, flow_id, type_name, body);

impl Store {
    /// Returns up to `limit` events of (`after`, `upto`], in order: as many as fit into `bytes_max`
    /// by their bodies, but at least one if there is any.
    pub fn events(
        &self,
        after: Seq,
        upto: Seq,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<LoggedEvent>> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT seq, flow_id, type, body FROM events
                 WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3",
            )?;
            let mut rows = statement.query(params![after, upto, limit])?;
            let mut events = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let event = LoggedEvent::read(row, &mut 0)?;
                bytes += event.body.len();
                if bytes > bytes_max && !events.is_empty() {
                    break;
                }
                events.push(event);
            }
            Ok(events)
        })
    }

    /// Returns the newest event's `seq`, or 0 if there never was one.
    pub fn newest_seq(&self) -> Result<Seq> {
        let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'";
        self.read(|db| single(db, sql, []))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn old_events_are_removed_only_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        // Times as they occur with parallel workers and a clock that was set back.
        let times = [1, 2, 9, 3, 4, 9];
        writer
            .transaction(|batch| {
                times.iter().try_for_each(|at| {
                    batch.append_event(Timestamp(*at), None, "T", "{}").map(drop)
                })
            })
            .unwrap();
        let left = || -> Vec<Seq> {
            let events = store.events(0, 100, 100, 100).unwrap();
            events.iter().map(|event| event.seq).collect()
        };
        let mut prune =
            |keep, before, step| writer.prune_events(keep, Timestamp(before), step).unwrap();
        assert_eq!((prune(100, 5, 1), left()), (1, vec![2, 3, 4, 5, 6]));
        assert_eq!((prune(100, 5, 100), left()), (1, vec![3, 4, 5, 6]));
        assert_eq!((prune(100, 5, 100), left()), (0, vec![3, 4, 5, 6]));
        // Events beyond the newest two are removed, independent of their times.
        assert_eq!((prune(2, 5, 100), left()), (3, vec![6]));
        assert_eq!((prune(100, 10, 100), left()), (1, vec![]));
        assert_eq!(prune(100, 10, 100), 0);
    }
}
