//! Reads runs.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::reader::Store;
use super::sql::{all, one, single};
use crate::error::{Error, Result};
use crate::event::{RunStatus, text_form};
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct Run {
    pub id: RunId,
    /// The id of its flow, which may be removed.
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
    /// Tokens of all prompts; set when the run is over.
    pub input_tokens: u64,
    /// Tokens of all answers; set when the run is over.
    pub output_tokens: u64,
    /// The cost; none if the price of a call is unknown.
    pub cost: Option<Usd>,
    /// True if a cancel was requested, even if the run is not over yet.
    pub is_cancelled: bool,
    /// The graph at the start, as JSON; empty in lists.
    pub graph: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum NodeStatus {
    /// Not started, or waiting for its next attempt.
    Waiting,
    Running,
    Completed,
    Failed,
    Cancelled,
    /// Not on a selected branch.
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
    /// The prompt as sent; none if the node makes no call.
    pub prompt: Option<String>,
    pub system: Option<String>,
    pub output: Option<String>,
    pub error: Option<String>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cost: Option<Usd>,
    pub latency_ms: Option<u64>,
    /// The started items of a map, in the order of the list.
    pub items: Vec<ItemRecord>,
}

impl NodeRecord {
    /// Returns the error of the first failed item of this map, with the item's name.
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
    /// The prompt as sent.
    pub prompt: Option<String>,
    pub system: Option<String>,
    pub output: Option<String>,
    pub error: Option<String>,
    pub latency_ms: Option<u64>,
}

impl ItemRecord {
    /// Returns the output if the item is completed.
    pub fn finished_output(&self) -> Option<&str> {
        let is_completed = self.status == NodeStatus::Completed;
        self.output.as_deref().filter(|_| is_completed)
    }
}

#[derive(Clone, Debug)]
pub struct OpenRun {
    pub flow_id: FlowId,
    pub run_id: RunId,
    pub has_begun: bool,
    /// The restarts since a node of the run was completed, in restarts during a call. One without
    /// a call in flight counts [`RESTART_WITHOUT_CALL`](super::RESTART_WITHOUT_CALL).
    pub restarts: u32,
}

pub(super) const COLUMNS: &str = "id, flow_id, flow_name, trigger, input, status, created_ms, started_ms,
     finished_ms, error, error_node, input_tokens, output_tokens, cost_nanousd, cancel_ms IS NOT NULL";
/// The last column of a run. Lists leave it out, since a thousand graphs may take gigabytes.
const GRAPH: &str = "coalesce((SELECT data FROM graphs WHERE hash = graph_hash), '')";

from_row!(
    Run; id, flow_id, flow_name, trigger, input, status, created_at, started_at, finished_at, error,
    error_node, input_tokens, output_tokens, cost, is_cancelled, graph
);
from_row!(
    NodeRecord; node_id, status, attempt, started_at, finished_at, output, error, input_tokens,
    output_tokens, cost, latency_ms, prompt, system; items
);
from_row!(
    ItemRecord; item, status, attempt, started_at, finished_at, prompt, system, output, error,
    latency_ms
);
from_row!(OpenRun; flow_id, run_id, has_begun, restarts);

/// Returns the started nodes of a run, or one of them.
fn nodes(db: &Connection, run_id: &str, node_id: Option<&str>) -> Result<Vec<NodeRecord>> {
    // Two statements, so that each uses the primary key.
    let of_node = if node_id.is_some() { "node_id = ?2" } else { "?2 IS NULL" };
    let sql = format!(
        "SELECT node_id, status, attempt, started_ms, finished_ms, output, error, input_tokens,
            output_tokens, cost_nanousd, latency_ms, prompt, system
         FROM run_nodes WHERE run_id = ?1 AND {of_node}"
    );
    let mut nodes: Vec<NodeRecord> = all(db, &sql, params![run_id, node_id])?;
    let sql = format!(
        "SELECT node_id, item, status, attempt, started_ms, finished_ms, prompt, system, output,
            error, latency_ms
         FROM run_items WHERE run_id = ?1 AND {of_node} ORDER BY node_id, item"
    );
    for (node_id, item) in all::<(String, ItemRecord), Vec<_>>(db, &sql, params![run_id, node_id])?
    {
        if let Some(node) = nodes.iter_mut().find(|node| node.node_id == node_id) {
            node.items.push(item);
        }
    }
    Ok(nodes)
}

impl Store {
    /// Returns a run and its started nodes, in one read transaction.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown run.
    pub fn run(&self, id: &str) -> Result<(Run, Vec<NodeRecord>)> {
        self.read(|db| {
            let snapshot = db.unchecked_transaction()?;
            let sql = format!("SELECT {COLUMNS}, {GRAPH} FROM runs WHERE id = ?1");
            let run =
                one(&snapshot, &sql, [id])?.ok_or_else(|| Error::NotFound(format!("run {id}")))?;
            let nodes = nodes(&snapshot, id, None)?;
            Ok((run, nodes))
        })
    }

    /// Returns a run without its nodes.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown run.
    pub fn run_alone(&self, id: &str) -> Result<Run> {
        let sql = format!("SELECT {COLUMNS}, {GRAPH} FROM runs WHERE id = ?1");
        self.one(&sql, [id])?.ok_or_else(|| Error::NotFound(format!("run {id}")))
    }

    /// Returns a node of a run, if it has started.
    pub fn run_node(&self, run_id: &str, node_id: &str) -> Result<Option<NodeRecord>> {
        Ok(self.read(|db| nodes(db, run_id, Some(node_id)))?.pop())
    }

    /// Returns the bytes of all prompts and outputs of a run.
    pub fn run_bytes(&self, id: &str) -> Result<usize> {
        let length = "coalesce(sum(coalesce(octet_length(output), 0)
            + coalesce(octet_length(prompt), 0) + coalesce(octet_length(system), 0)), 0)";
        let sql = format!(
            "SELECT (SELECT {length} FROM run_nodes WHERE run_id = ?1)
                + (SELECT {length} FROM run_items WHERE run_id = ?1)"
        );
        self.read(|db| single(db, &sql, [id]))
    }

    /// Returns the completed runs of a flow, from the run `first` on.
    pub fn completed_runs(&self, flow_id: FlowId, first: &str) -> Result<HashSet<RunId>> {
        let sql = "SELECT id FROM runs WHERE flow_id = ?1 AND id >= ?2 AND status = 'COMPLETED'";
        self.all(sql, params![flow_id, first])
    }

    pub fn newest_run(&self, flow_id: FlowId) -> Result<Option<RunId>> {
        let newest = self.one("SELECT max(id) FROM runs WHERE flow_id = ?1", [flow_id])?;
        Ok(newest.flatten())
    }

    /// Returns all open runs: started ones first, then waiting ones, each oldest first.
    pub fn open_runs(&self) -> Result<Vec<OpenRun>> {
        let sql = "SELECT flow_id, id, status = 'RUNNING',
                     coalesce((SELECT restarts FROM run_restarts WHERE run_id = id), 0) FROM runs
                 WHERE status IN ('QUEUED', 'RUNNING') ORDER BY status = 'QUEUED', id";
        self.all(sql, [])
    }
}
