//! Reading the event log.

use rusqlite::params;

use super::Store;
use crate::error::Result;
use crate::event::{FlowId, Seq};

/// An event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedEvent {
    /// Its place.
    pub seq: Seq,
    /// Its flow, where it has one.
    pub flow_id: Option<FlowId>,
    /// Its type.
    pub type_name: String,
    /// The message without its `seq`.
    pub body: String,
}

impl Store {
    /// Up to `limit` events of (`after`, `upto`], in order.
    pub fn events(&self, after: Seq, upto: Seq, limit: usize) -> Result<Vec<LoggedEvent>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT seq, flow_id, type, body FROM events
                 WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3",
            )?;
            let rows = statement.query_map(params![after, upto, limit], |row| {
                Ok(LoggedEvent {
                    seq: row.get(0)?,
                    flow_id: row.get(1)?,
                    type_name: row.get(2)?,
                    body: row.get(3)?,
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The newest event's place in the log; 0 where there never was one.
    pub fn newest_seq(&self) -> Result<Seq> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached(
                    "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'",
                )?
                .query_row([], |row| row.get(0))?)
        })
    }
}
