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
    /// Up to `limit` events of (`after`, `upto`], in order: as many as fit into `bytes_max` by
    /// their bodies, but at least one where there is any.
    pub fn events(
        &self,
        after: Seq,
        upto: Seq,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<LoggedEvent>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT seq, flow_id, type, body FROM events
                 WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3",
            )?;
            let mut rows = statement.query(params![after, upto, limit])?;
            let mut events = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let event = LoggedEvent {
                    seq: row.get(0)?,
                    flow_id: row.get(1)?,
                    type_name: row.get(2)?,
                    body: row.get(3)?,
                };
                bytes += event.body.len();
                if bytes > bytes_max && !events.is_empty() {
                    break;
                }
                events.push(event);
            }
            Ok(events)
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
