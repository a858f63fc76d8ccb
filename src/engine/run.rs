//! A run that is under way: what is known of it, and what follows when something happens to it.

use std::sync::Arc;

use crossbeam_channel::Sender;
use serde_json::Value;

use super::work::{Job, Outcome};
use crate::event::{FlowId, RunId, RunStatus, Timestamp};
use crate::flow::{Graph, Progress};
use crate::gateway::Cancel;
use crate::store::{Change, NewRun, NodeRef, NodeStatus, OpenRun};

/// How a run ends badly.
#[derive(Clone, Debug)]
pub enum End {
    /// A node failed.
    Failed { node_id: String, error: String },
    /// Somebody stopped it.
    Cancelled,
}

/// See the module.
pub struct ActiveRun {
    /// The run.
    pub id: RunId,
    /// What may run next.
    pub progress: Progress,
    /// Changes that happened and are not handed to the journal yet: they go with the next intent.
    pub pending: Vec<Change>,
    flow_id: FlowId,
    name: String,
    trigger: String,
    graph: Arc<Graph>,
    input: Arc<Value>,
    /// Outputs of finished nodes, by index.
    outputs: Vec<Option<Arc<str>>>,
    /// How often each node was started, by index.
    attempts: Vec<u32>,
    cancel: Cancel,
    end: Option<End>,
    /// Whether it began in an earlier process.
    has_begun: bool,
    is_finishing: bool,
    /// Told when the run is over.
    waiter: Option<Sender<()>>,
}

impl ActiveRun {
    /// A run that was just accepted.
    pub fn new(new: &NewRun, graph: Graph, input: Value, waiter: Sender<()>) -> Self {
        let count = graph.nodes().len();
        Self {
            id: new.id.clone(),
            progress: Progress::new(&graph, []),
            pending: Vec::new(),
            flow_id: new.flow_id,
            name: new.flow_name.clone(),
            trigger: new.trigger.clone(),
            graph: Arc::new(graph),
            input: Arc::new(input),
            outputs: vec![None; count],
            attempts: vec![0; count],
            cancel: Cancel::new(),
            end: None,
            has_begun: false,
            is_finishing: false,
            waiter: Some(waiter),
        }
    }

    /// A run of an earlier process: finished nodes are not run again.
    pub fn restored(open: OpenRun, graph: Graph) -> Self {
        let count = graph.nodes().len();
        let mut outputs = vec![None; count];
        let mut attempts = vec![0; count];
        let mut done = Vec::new();
        let mut end = None;
        for record in open.nodes {
            let Some(at) = graph
                .nodes()
                .iter()
                .position(|node| node.id == record.node_id)
            else {
                continue;
            };
            attempts[at] = record.attempt;
            if record.status == NodeStatus::Completed {
                outputs[at] = Some(record.output.unwrap_or_default().into());
                done.push(at);
            } else if record.status == NodeStatus::Failed {
                end = Some(End::Failed {
                    node_id: record.node_id,
                    error: record.error.unwrap_or_default(),
                });
            }
        }
        let mut progress = Progress::new(&graph, done);
        if end.is_some() {
            // It only had to wait for other calls to end.
            progress.stop();
        }
        Self {
            id: open.run.id,
            progress,
            pending: Vec::new(),
            flow_id: open.run.flow_id,
            name: open.run.flow_name,
            trigger: open.run.trigger,
            graph: Arc::new(graph),
            input: Arc::new(serde_json::from_str(&open.run.input).unwrap_or_default()),
            outputs,
            attempts,
            cancel: Cancel::new(),
            end,
            has_begun: open.run.status == RunStatus::Running,
            is_finishing: false,
            waiter: None,
        }
    }

    /// The run gets its place among the active ones.
    pub fn begin(&mut self) {
        if self.has_begun {
            return;
        }
        self.has_begun = true;
        self.pending.push(Change::StartRun {
            flow_id: self.flow_id,
            run_id: self.id.clone(),
            name: self.name.clone(),
            node_count: self.graph.nodes().len(),
            trigger: self.trigger.clone(),
            at: Timestamp::now(),
        });
    }

    /// The work of a node that [`Progress::take`] gave; takes what is pending along.
    pub fn job(&mut self, node: usize) -> Job {
        self.attempts[node] += 1;
        let outputs = self
            .graph
            .nodes()
            .iter()
            .zip(&self.outputs)
            .filter_map(|(node, output)| Some((node.id.clone(), Arc::clone(output.as_ref()?))))
            .collect();
        Job {
            node,
            at: self.node_ref(node),
            graph: Arc::clone(&self.graph),
            input: Arc::clone(&self.input),
            outputs,
            cancel: self.cancel.clone(),
            carried: std::mem::take(&mut self.pending),
        }
    }

    /// A worker is done with a node.
    pub fn node_ended(&mut self, node: usize, outcome: Outcome) {
        let place = self.node_ref(node);
        match outcome {
            Outcome::Finished {
                output,
                settlement,
                latency_ms,
            } => {
                let at = settlement.at;
                self.outputs[node] = Some(Arc::clone(&output));
                self.pending.push(Change::FinishNode {
                    node: place,
                    output: output.to_string(),
                    usage: settlement.usage,
                    cost: settlement.cost,
                    latency_ms,
                    at,
                });
                let settle = self.pending.len() - 1;
                self.pending.insert(settle, Change::SettleCall(settlement));
                self.progress.complete(&self.graph, node);
            }
            Outcome::Failed {
                error,
                settlement,
                cancelled,
                unwritten,
            } => {
                self.pending.extend(unwritten);
                self.pending.extend(settlement.map(Change::SettleCall));
                let at = Timestamp::now();
                let node_id = place.node_id.clone();
                self.pending.push(Change::FailNode {
                    node: place,
                    error: error.clone(),
                    cancelled,
                    at,
                });
                // The first failure is the cause; a node stopped by a cancel is none.
                if self.end.is_none() {
                    self.end = Some(End::Failed { node_id, error });
                }
                self.progress.fail(node);
            }
        }
    }

    /// Somebody stops the run.
    pub fn cancel(&mut self) {
        if self.end.is_none() {
            self.end = Some(End::Cancelled);
        }
        self.progress.stop();
        self.cancel_calls();
    }

    /// Ends the calls under way.
    pub fn cancel_calls(&self) {
        self.cancel.cancel();
    }

    /// Whether it is known how the run ends, whatever its calls under way still do.
    pub fn is_decided(&self) -> bool {
        self.end.is_some()
    }

    /// Whether the end is on its way to the database.
    pub fn is_finishing(&self) -> bool {
        self.is_finishing
    }

    /// What is to be written when the run is over; none when that was said before.
    pub fn finish(&mut self) -> Option<Vec<Change>> {
        if std::mem::replace(&mut self.is_finishing, true) {
            return None;
        }
        let (status, error, error_node) = match self.end.take() {
            None => (RunStatus::Completed, None, None),
            Some(End::Cancelled) => (RunStatus::Cancelled, None, None),
            Some(End::Failed { node_id, error }) => (RunStatus::Failed, Some(error), Some(node_id)),
        };
        let mut changes = std::mem::take(&mut self.pending);
        changes.push(Change::FinishRun {
            flow_id: self.flow_id,
            run_id: self.id.clone(),
            status,
            error,
            error_node,
            at: Timestamp::now(),
        });
        Some(changes)
    }

    /// The run is over, and that is committed.
    pub fn tell_waiters(self) {
        if let Some(waiter) = self.waiter {
            let _ = waiter.send(());
        }
    }

    fn node_ref(&self, node: usize) -> NodeRef {
        let of_graph = &self.graph.nodes()[node];
        NodeRef {
            flow_id: self.flow_id,
            run_id: self.id.clone(),
            node_id: of_graph.id.clone(),
            label: of_graph.label.clone(),
            attempt: self.attempts[node],
        }
    }
}
