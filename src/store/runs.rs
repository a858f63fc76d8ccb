//! Reading runs.

use std::collections::HashSet;

use rusqlite::{Connection, Row, params};

use super::reader::Store;
use super::sql::{all, one, parsed};
use crate::error::{Error, Result};
use crate::event::{RunStatus, text_form};
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct Run {
    pub id: RunId,
    /// Its flow; that flow may be gone.
    pub flow_id: FlowId,
    pub flow_name: String,
    pub trigger: String,
    pub input: String,
    pub status: RunStatus,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub error: Option<String>,
    pub error_node: Option<String>,
    /// Tokens of all prompts; known when the run is over.
    pub input_tokens: u64,
    /// Tokens of all answers; known when the run is over.
    pub output_tokens: u64,
    /// Its cost; none where the price of a call is not known.
    pub cost: Option<Usd>,
    /// Whether somebody wanted it stopped, which it may not be yet.
    pub is_cancelled: bool,
    /// The graph at the start, JSON; empty in lists.
    pub graph: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum NodeStatus {
    /// Has not begun, or waits for its next attempt.
    Waiting,
    Running,
    Completed,
    Failed,
    Cancelled,
    /// On no branch that was taken.
    Skipped,
}

text_form!(NodeStatus {
    Waiting = "WAITING",
    Running = "RUNNING",
    Completed = "COMPLETED",
    Failed = "FAILED",
    Cancelled = "CANCELLED",
    Skipped = "SKIPPED",
});

#[derive(Clone, Debug)]
pub struct NodeRecord {
    pub node_id: String,
    pub status: NodeStatus,
    pub attempt: u32,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// What was asked, as it was sent; none of a node that asks nobody.
    pub prompt: Option<String>,
    pub system: Option<String>,
    pub output: Option<String>,
    pub error: Option<String>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cost: Option<Usd>,
    pub latency_ms: Option<u64>,
    /// Of a map: its items that have begun, in the order of the list.
    pub items: Vec<ItemRecord>,
}

impl NodeRecord {
    /// Why an item of this map has failed, with the item's name, where one has.
    pub fn failed_item(&self) -> Option<String> {
        let failed = |item: &&ItemRecord| item.status == NodeStatus::Failed;
        let record = self.items.iter().find(failed)?;
        let why = record.error.as_deref().unwrap_or_default();
        Some(format!("items[{}]: {why}", record.item))
    }
}

#[derive(Clone, Debug)]
pub struct ItemRecord {
    pub item: usize,
    pub status: NodeStatus,
    pub attempt: u32,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// What was asked, as it was sent.
    pub prompt: Option<String>,
    pub system: Option<String>,
    pub output: Option<String>,
    pub error: Option<String>,
    pub latency_ms: Option<u64>,
}

impl ItemRecord {
    /// What it gave, where it is over and has given something.
    pub fn finished_output(&self) -> Option<&str> {
        let is_completed = self.status == NodeStatus::Completed;
        self.output.as_deref().filter(|_| is_completed)
    }
}

/// A run that is not over, with what is known of its nodes: enough to go on with it.
#[derive(Clone, Debug)]
pub struct OpenRun {
    pub run: Run,
    pub nodes: Vec<NodeRecord>,
}

#[derive(Clone, Debug)]
pub struct LeftOver {
    pub flow_id: FlowId,
    pub run_id: RunId,
    pub has_begun: bool,
}

#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    pub flow_id: Option<FlowId>,
    pub before: Option<RunId>,
}

const COLUMNS: &str = "id, flow_id, flow_name, trigger, input, status, created_ms, started_ms,
     finished_ms, error, error_node, input_tokens, output_tokens, cost_nanousd, cancel_ms IS NOT NULL";
/// The column behind those; lists leave it out, since a thousand graphs may be gigabytes.
const GRAPH: &str = "(SELECT data FROM graphs WHERE hash = graph_hash)";

fn run(row: &Row<'_>) -> rusqlite::Result<Run> {
    Ok(Run {
        id: row.get(0)?,
        flow_id: row.get(1)?,
        flow_name: row.get(2)?,
        trigger: row.get(3)?,
        input: row.get(4)?,
        status: parsed(row, 5)?,
        created_at: Timestamp(row.get(6)?),
        started_at: row.get::<_, Option<i64>>(7)?.map(Timestamp),
        finished_at: row.get::<_, Option<i64>>(8)?.map(Timestamp),
        error: row.get(9)?,
        error_node: row.get(10)?,
        input_tokens: row.get(11)?,
        output_tokens: row.get(12)?,
        cost: row.get::<_, Option<i64>>(13)?.map(Usd::from_nanousd),
        is_cancelled: row.get(14)?,
        graph: row.get::<_, Option<String>>(15)?.unwrap_or_default(),
    })
}

fn nodes(db: &Connection, run_id: &str) -> Result<Vec<NodeRecord>> {
    let sql =
        "SELECT node_id, status, attempt, started_ms, finished_ms, output, error, input_tokens,
            output_tokens, cost_nanousd, latency_ms, prompt, system
         FROM run_nodes WHERE run_id = ?1";
    let mut nodes: Vec<NodeRecord> = all(db, sql, [run_id], |row| {
        Ok(NodeRecord {
            node_id: row.get(0)?,
            status: parsed(row, 1)?,
            attempt: row.get(2)?,
            started_at: Timestamp(row.get(3)?),
            finished_at: row.get::<_, Option<i64>>(4)?.map(Timestamp),
            output: row.get(5)?,
            error: row.get(6)?,
            input_tokens: row.get(7)?,
            output_tokens: row.get(8)?,
            cost: row.get::<_, Option<i64>>(9)?.map(Usd::from_nanousd),
            latency_ms: row.get(10)?,
            prompt: row.get(11)?,
            system: row.get(12)?,
            items: Vec::new(),
        })
    })?;
    let mut statement = db.prepare_cached(
        "SELECT node_id, item, status, attempt, started_ms, finished_ms, prompt, system, output,
            error, latency_ms
         FROM run_items WHERE run_id = ?1 ORDER BY node_id, item",
    )?;
    let mut rows = statement.query([run_id])?;
    while let Some(row) = rows.next()? {
        let node_id: String = row.get(0)?;
        let item = ItemRecord {
            item: row.get(1)?,
            status: parsed(row, 2)?,
            attempt: row.get(3)?,
            started_at: Timestamp(row.get(4)?),
            finished_at: row.get::<_, Option<i64>>(5)?.map(Timestamp),
            prompt: row.get(6)?,
            system: row.get(7)?,
            output: row.get(8)?,
            error: row.get(9)?,
            latency_ms: row.get(10)?,
        };
        if let Some(node) = nodes.iter_mut().find(|node| node.node_id == node_id) {
            node.items.push(item);
        }
    }
    Ok(nodes)
}

impl Store {
    /// The run of that id and its nodes that have begun, as of one moment.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn run(&self, id: &str) -> Result<(Run, Vec<NodeRecord>)> {
        self.read(|db| {
            let snapshot = db.unchecked_transaction()?;
            let sql = format!("SELECT {COLUMNS}, {GRAPH} FROM runs WHERE id = ?1");
            let found = one(&snapshot, &sql, [id], run)?
                .ok_or_else(|| Error::NotFound(format!("run {id}")))?;
            let nodes = nodes(&snapshot, id)?;
            Ok((found, nodes))
        })
    }

    /// The runs of a flow, from `first` on, that ended well.
    pub fn completed_runs(&self, flow_id: FlowId, first: &str) -> Result<HashSet<RunId>> {
        let sql = "SELECT id FROM runs WHERE flow_id = ?1 AND id >= ?2 AND status = 'COMPLETED'";
        self.all(sql, params![flow_id, first], |row| row.get(0))
    }

    pub fn newest_run(&self, flow_id: FlowId) -> Result<Option<RunId>> {
        let newest =
            self.one("SELECT max(id) FROM runs WHERE flow_id = ?1", [flow_id], |row| row.get(0))?;
        Ok(newest.flatten())
    }

    pub fn runs(&self, filter: &RunFilter, limit: usize) -> Result<Vec<Run>> {
        // Two texts, so that each uses its own index.
        let by_flow = match filter.flow_id {
            Some(_) => "flow_id = ?1",
            None => "?1 IS NULL",
        };
        let sql = format!(
            "SELECT {COLUMNS}, NULL FROM runs WHERE {by_flow} AND id < ?2 ORDER BY id DESC LIMIT ?3"
        );
        // `~` sorts behind every character of a UUID.
        let before = filter.before.as_deref().unwrap_or("~");
        self.all(&sql, params![filter.flow_id, before, limit], run)
    }

    /// A run as it is needed to go on with it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn open_run(&self, id: &str) -> Result<OpenRun> {
        let (run, nodes) = self.run(id)?;
        Ok(OpenRun { run, nodes })
    }

    /// All runs that are not over: first those that have begun, then the oldest.
    pub fn open_runs(&self) -> Result<Vec<LeftOver>> {
        let sql = "SELECT flow_id, id, status = 'RUNNING' FROM runs
                 WHERE status IN ('QUEUED', 'RUNNING') ORDER BY status = 'QUEUED', id";
        self.all(sql, [], |row| {
            Ok(LeftOver { flow_id: row.get(0)?, run_id: row.get(1)?, has_begun: row.get(2)? })
        })
    }
}
