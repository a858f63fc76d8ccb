//! The names of flows and the labels of their nodes, for ledger rows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::event::LedgerEntry;
use crate::ids::FlowId;
use crate::store::Store;

/// Keeps the names that were read, so that each flow is read once for a list.
#[derive(Default)]
pub struct FlowNames(HashMap<FlowId, Names>);

#[derive(Default)]
struct Names {
    /// None if neither the flow nor a run of it is left.
    flow: Option<String>,
    /// By node id; only of nodes with a label.
    labels: HashMap<String, String>,
}

#[derive(Serialize)]
pub struct NamedRow<'a> {
    #[serde(flatten)]
    pub row: &'a LedgerEntry,
    pub flow_name: Option<&'a str>,
    /// The label in the flow's present document, or else the node's id.
    pub node_label: Option<&'a str>,
}

impl FlowNames {
    /// Reads the names that these rows need.
    pub fn read(&mut self, store: &Store, rows: &[LedgerEntry]) -> Result<()> {
        for id in rows.iter().filter_map(|row| row.flow_id) {
            if let Entry::Vacant(entry) = self.0.entry(id) {
                entry.insert(names(store, id)?);
            }
        }
        Ok(())
    }

    pub fn row<'a>(&'a self, row: &'a LedgerEntry) -> NamedRow<'a> {
        let names = row.flow_id.and_then(|id| self.0.get(&id));
        let node_label = row.node_id.as_ref().map(|id| {
            let label = names.and_then(|names| names.labels.get(id));
            label.unwrap_or(id).as_str()
        });
        NamedRow { row, flow_name: names.and_then(|names| names.flow.as_deref()), node_label }
    }
}

fn names(store: &Store, id: FlowId) -> Result<Names> {
    let Some((name, document)) = store.flow_name(id)? else {
        return Ok(Names::default());
    };
    let labels = document.map(|document| labels(&document)).unwrap_or_default();
    Ok(Names { flow: Some(name), labels })
}

/// The parts of a document that have labels; others are skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    data: Graph,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Graph {
    nodes: Vec<Node>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    id: Value,
    data: NodeData,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeData {
    label: Option<String>,
}

fn labels(document: &str) -> HashMap<String, String> {
    let document: Document = serde_json::from_str(document).unwrap_or_default();
    let labels = document.data.nodes.into_iter().filter_map(|node| {
        let id = match node.id {
            Value::String(id) => id,
            id => id.to_string(),
        };
        Some((id, node.data.label.filter(|label| !label.is_empty())?))
    });
    labels.collect()
}
