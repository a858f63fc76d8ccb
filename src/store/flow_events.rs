//! Creates the events of changed flows.

use rusqlite::Connection;

use super::change::Applied;
use super::sql::single;
use crate::error::Result;
use crate::event::{Event, EventContext, FlowChange};
use crate::ids::FlowId;
use crate::time::Timestamp;

pub(super) fn changed(flow_id: FlowId, name: &str, change: FlowChange, at: Timestamp) -> Event {
    let context =
        EventContext { flow_id: Some(flow_id), run_id: None, node_id: None, timestamp: at };
    Event::FlowChanged { context, name: name.to_owned(), change }
}

/// Adds the event of a flow that exists.
pub(super) fn with_change(
    db: &Connection,
    mut applied: Applied,
    flow_id: FlowId,
    change: FlowChange,
    at: Timestamp,
) -> Result<Applied> {
    let name: String = single(db, "SELECT name FROM flows WHERE id = ?1", [flow_id])?;
    applied.events.push(changed(flow_id, &name, change, at));
    Ok(applied)
}
