//! A run that is under way: what is known of it, and what follows when something happens to it.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde_json::Value;

use super::queue::Waiting;
use super::work::{Job, NodeOutput, Outcome, Remedy};
use crate::event::{FlowId, RunId, RunStatus, Timestamp};
use crate::flow::{Graph, Node, OnError, Progress, Verdict};
use crate::gateway::Cancel;
use crate::store::{Change, NewRun, NodeRef, NodeStatus, OpenRun};

/// How many nodes of one run are at work at a time.
const NODES_AT_ONCE_MAX: usize = 16;
/// A provider that wants one to wait for longer is not asked again, the next one is.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10 * 60);
/// Why a node is not tried again after a restart.
const NOT_ASKED_AGAIN: &str = "the server ended during the call, which may have been billed, and the node says not to make it again (retry.afterRestart)";

/// What follows from an output for those behind it.
fn verdict(output: &NodeOutput) -> Verdict {
    match output {
        NodeOutput::Flag(flag) => Verdict::Branch(*flag),
        _ => Verdict::Done,
    }
}

/// Whether a call that a restart interrupted may be made again.
fn may_be_asked_again(node: &Node) -> bool {
    node.kind.retry().is_none_or(|retry| retry.after_restart)
}

/// How a run ends badly.
#[derive(Clone, Debug)]
pub enum End {
    /// A node failed.
    Failed { node_id: String, error: String },
    /// Somebody stopped it.
    Cancelled,
}

/// Where a node is in what it may try. After a restart it begins again.
#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    /// Which of its targets is asked.
    target: usize,
    /// How often that one was asked.
    attempts: u32,
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
    /// Outputs of nodes that are over, by index.
    outputs: Vec<Option<NodeOutput>>,
    /// How often each node was started, by index.
    attempts: Vec<u32>,
    /// Where each node is in what it may try, by index.
    tries: Vec<Tries>,
    /// Nodes that pause before their next attempt.
    pausing: Vec<usize>,
    /// Nodes whose pause is over.
    again: Vec<usize>,
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
            tries: vec![Tries::default(); count],
            pausing: Vec::new(),
            again: Vec::new(),
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
        let mut given_up = Vec::new();
        for record in open.nodes {
            let Some(at) = graph
                .nodes()
                .iter()
                .position(|node| node.id == record.node_id)
            else {
                continue;
            };
            let node = &graph.nodes()[at];
            attempts[at] = record.attempt;
            if record.status == NodeStatus::Completed {
                let text: Arc<str> = record.output.unwrap_or_default().into();
                let output = NodeOutput::of(node, &text);
                done.push((at, verdict(&output)));
                outputs[at] = Some(output);
            } else if record.status == NodeStatus::Running && !may_be_asked_again(node) {
                given_up.push(at);
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
        let mut run = Self {
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
            tries: vec![Tries::default(); count],
            pausing: Vec::new(),
            again: Vec::new(),
            cancel: Cancel::new(),
            end,
            has_begun: open.run.status == RunStatus::Running,
            is_finishing: false,
            waiter: None,
        };
        run.skip();
        for node in given_up {
            run.progress.take_this(node);
            run.give_up(node, NOT_ASKED_AGAIN.to_owned(), false);
        }
        run
    }

    /// The run's flow.
    pub fn flow_id(&self) -> FlowId {
        self.flow_id
    }

    /// The run as one that waits; all else of it is in the database.
    pub fn into_waiting(self) -> Waiting {
        Waiting {
            run_id: self.id,
            waiter: self.waiter,
        }
    }

    /// Tells this one when the run is over.
    pub fn with_waiter(mut self, waiter: Option<Sender<()>>) -> Self {
        self.waiter = waiter;
        self
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

    /// A node that may be started now.
    pub fn take_node(&mut self) -> Option<usize> {
        if let Some(node) = self.again.pop() {
            return Some(node);
        }
        if self.under_way() >= NODES_AT_ONCE_MAX {
            return None;
        }
        self.progress.take()
    }

    /// Whether [`ActiveRun::take_node`] has something to give.
    pub fn has_node(&self) -> bool {
        let has_room = self.under_way() < NODES_AT_ONCE_MAX;
        !self.again.is_empty() || has_room && self.progress.has_ready()
    }

    /// How many nodes are at work.
    fn under_way(&self) -> usize {
        self.progress.running() - self.pausing.len() - self.again.len()
    }

    /// The pause of a node is over. Gives whether there was one.
    pub fn pause_over(&mut self, node: usize) -> bool {
        let Some(at) = self.pausing.iter().position(|&other| other == node) else {
            return false;
        };
        self.again.push(self.pausing.swap_remove(at));
        true
    }

    /// The work of a node that [`ActiveRun::take_node`] gave; takes what is pending along.
    pub fn job(&mut self, node: usize) -> Job {
        self.attempts[node] += 1;
        self.tries[node].attempts += 1;
        let outputs = self
            .graph
            .nodes()
            .iter()
            .zip(&self.outputs)
            .filter_map(|(node, output)| Some((node.id.clone(), output.clone()?)))
            .collect();
        Job {
            node,
            target: self.tries[node].target,
            at: self.node_ref(node),
            graph: Arc::clone(&self.graph),
            input: Arc::clone(&self.input),
            outputs,
            cancel: self.cancel.clone(),
            carried: std::mem::take(&mut self.pending),
        }
    }

    /// A worker is done with a node. Gives the pause after which it is to be tried again, if it is.
    pub fn node_ended(&mut self, node: usize, outcome: Outcome) -> Option<Duration> {
        match outcome {
            Outcome::Finished {
                output,
                settlement,
                latency_ms,
                unwritten,
            } => {
                self.pending.extend(unwritten);
                let at = settlement.as_ref().map(|settlement| settlement.at);
                self.pending.extend(settlement.map(Change::SettleCall));
                let at = at.unwrap_or_else(Timestamp::now);
                self.complete(node, &output, latency_ms, None, at);
                None
            }
            Outcome::Failed {
                error,
                settlement,
                cancelled,
                unwritten,
                remedy,
            } => {
                self.pending.extend(unwritten);
                self.pending.extend(settlement.map(Change::SettleCall));
                let pause = self.pause(node, remedy).filter(|_| self.end.is_none());
                match pause {
                    Some(_) => {
                        self.pending.push(Change::RetryNode {
                            node: self.node_ref(node),
                            error,
                            at: Timestamp::now(),
                        });
                        self.pausing.push(node);
                    }
                    None => self.give_up(node, error, cancelled),
                }
                pause
            }
        }
    }

    /// How long to wait before the next attempt, at the same target or the next; none where there
    /// is none.
    fn pause(&mut self, node: usize, remedy: Remedy) -> Option<Duration> {
        let kind = &self.graph.nodes()[node].kind;
        let retry = kind.retry()?;
        let tries = &mut self.tries[node];
        if let Remedy::Again { retry_after } = remedy
            && tries.attempts < retry.attempts
            && retry_after.is_none_or(|wait| wait <= RETRY_AFTER_MAX)
        {
            // Full jitter: those that failed together do not come back together.
            let most_ns = retry.pause_max(tries.attempts).as_nanos();
            let pause_ns = fastrand::u64(..=u64::try_from(most_ns).unwrap_or(u64::MAX));
            let pause = Duration::from_nanos(pause_ns);
            return Some(pause.max(retry_after.unwrap_or_default()));
        }
        if remedy == Remedy::None || tries.target + 1 >= kind.target_count() {
            return None;
        }
        *tries = Tries {
            target: tries.target + 1,
            attempts: 0,
        };
        Some(Duration::ZERO)
    }

    /// A node is over and has given `output`; `error` is why it had failed, where the run goes on
    /// all the same.
    fn complete(
        &mut self,
        node: usize,
        output: &Arc<str>,
        latency_ms: u64,
        error: Option<String>,
        at: Timestamp,
    ) {
        self.pending.push(Change::FinishNode {
            node: self.node_ref(node),
            output: output.to_string(),
            latency_ms,
            error,
            at,
        });
        let output = NodeOutput::of(&self.graph.nodes()[node], output);
        self.progress.complete(&self.graph, node, verdict(&output));
        self.outputs[node] = Some(output);
        self.skip();
    }

    /// Notes the nodes that are on no branch any more.
    fn skip(&mut self) {
        for node in self.progress.take_skipped() {
            self.outputs[node] = Some(NodeOutput::Text(Arc::default()));
            self.pending.push(Change::SkipNode {
                node: self.node_ref(node),
                at: Timestamp::now(),
            });
        }
    }

    /// A node has failed for good.
    fn give_up(&mut self, node: usize, error: String, cancelled: bool) {
        let at = Timestamp::now();
        let place = self.node_ref(node);
        let node_id = place.node_id.clone();
        self.pending.push(Change::FailNode {
            node: place,
            error: error.clone(),
            cancelled,
            at,
        });
        if let OnError::Continue(output) = &self.graph.nodes()[node].on_error
            && !cancelled
        {
            let output: Arc<str> = output.as_str().into();
            return self.complete(node, &output, 0, Some(error), at);
        }
        // The first failure is the cause; a node stopped by a cancel is none.
        if self.end.is_none() {
            self.end = Some(End::Failed { node_id, error });
        }
        self.progress.fail(node);
        self.stop_pausing();
    }

    /// Nodes that pause are not tried again: the run ends.
    fn stop_pausing(&mut self) {
        let pausing = std::mem::take(&mut self.pausing);
        let again = std::mem::take(&mut self.again);
        for node in pausing.into_iter().chain(again) {
            self.pending.push(Change::FailNode {
                node: self.node_ref(node),
                error: "not tried again, because the run ends".into(),
                cancelled: true,
                at: Timestamp::now(),
            });
            self.progress.fail(node);
        }
    }

    /// Somebody stops the run.
    pub fn cancel(&mut self) {
        if self.end.is_none() {
            self.end = Some(End::Cancelled);
        }
        self.progress.stop();
        self.stop_pausing();
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
