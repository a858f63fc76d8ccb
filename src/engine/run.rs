//! The state of an active run and its reactions to events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::items::Items;
use super::queue::Waiting;
use super::unit::{Tries, Unit};
use super::work::{Job, JobItem, NodeOutput, Outcome, Remedy};
use crate::calls::CallResources;
use crate::event::RunStatus;
use crate::flow::{Graph, Node, NodeKind, OnError, Progress, Verdict};
use crate::ids::{FlowId, RunId};
use crate::providers::Cancel;
use crate::store::{
    Change, FailedNode, FinishedNode, ItemRecord, NewRun, NodeRecord, NodeRef, NodeStatus, Run,
    RunEnd, RunStart,
};
use crate::time::Timestamp;

/// Limits how many nodes and map items of one run are in progress at a time.
const UNITS_AT_ONCE_MAX: usize = 16;
/// Limits the outputs of one run, because they stay in memory until it ends.
const OUTPUTS_BYTES_MAX: usize = 64 << 20;
/// If a provider asks for a longer wait, the next target is called instead.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10 * 60);
const NOT_RETRIED: &str = "the server stopped during the call; the provider may have billed it. Not retried, because `retry.afterRestart` is false";

/// The error of a paused node, or of a map between two items, if its run ends.
const RUN_ENDS: &str = "not retried, because the run is ending";

fn verdict(output: &NodeOutput) -> Verdict {
    match output {
        NodeOutput::Flag(flag) => Verdict::Branch(*flag),
        _ => Verdict::Done,
    }
}

/// Returns whether the work of a node is a call or a request. A map only lists its items.
fn makes_calls(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Agent(_) | NodeKind::Http(_))
}

fn may_repeat_call(node: &Node) -> bool {
    node.kind.retry().is_none_or(|retry| retry.after_restart)
}

#[derive(Clone, Debug)]
pub enum End {
    Failed { node_id: String, error: String },
    Cancelled,
}

/// The kinds of units that may start now.
#[derive(Clone, Copy, Debug)]
pub struct Free {
    /// Units that make calls or requests.
    pub calls: bool,
    /// All others.
    pub local: bool,
}

struct NodeEnd {
    /// Milliseconds.
    latency_ms: u64,
    cached: bool,
    /// The error, if the run continues in spite of it.
    error: Option<String>,
    at: Timestamp,
}

impl NodeEnd {
    fn at(at: Timestamp) -> Self {
        Self { latency_ms: 0, cached: false, error: None, at }
    }
}

pub struct ActiveRun {
    pub id: RunId,
    pub progress: Progress,
    /// Changes that are not handed to the journal yet; the next intent takes them along.
    pub pending: Vec<Change>,
    /// True while the engine lists the run among those with nodes that may start.
    pub is_listed: bool,
    flow_id: FlowId,
    name: String,
    trigger: String,
    graph: Arc<Graph>,
    input: Arc<Value>,
    /// Outputs of finished nodes, by index.
    outputs: Vec<Option<NodeOutput>>,
    /// The bytes of these outputs, and of the finished items of maps.
    output_bytes: usize,
    /// Attempts at each node, by index.
    tries: Vec<Tries>,
    /// Maps in progress whose items are known, by the node's index.
    maps: BTreeMap<usize, Items>,
    /// Items of maps that started before a restart, until the map continues.
    items_before: BTreeMap<usize, Vec<ItemRecord>>,
    at_work: usize,
    /// Units that pause before their next attempt, each with the end of its pause.
    pausing: Vec<(Unit, Instant)>,
    /// Permits of units that wait for their calls.
    resources: BTreeMap<Unit, CallResources>,
    again: Vec<Unit>,
    cancel: Cancel,
    end: Option<End>,
    /// True if it started in an earlier process.
    has_begun: bool,
    is_finishing: bool,
    waiter: Option<oneshot::Sender<()>>,
}

impl ActiveRun {
    pub fn new(new: &NewRun, graph: Arc<Graph>, input: Value, waiter: oneshot::Sender<()>) -> Self {
        let count = graph.nodes().len();
        Self {
            id: new.id.clone(),
            progress: Progress::new(&graph, []),
            pending: Vec::new(),
            is_listed: false,
            flow_id: new.flow_id,
            name: new.flow_name.clone(),
            trigger: new.trigger.clone(),
            graph,
            input: Arc::new(input),
            outputs: vec![None; count],
            output_bytes: 0,
            tries: vec![Tries::default(); count],
            maps: BTreeMap::new(),
            items_before: BTreeMap::new(),
            at_work: 0,
            pausing: Vec::new(),
            resources: BTreeMap::new(),
            again: Vec::new(),
            cancel: Cancel::new(),
            end: None,
            has_begun: false,
            is_finishing: false,
            waiter: Some(waiter),
        }
    }

    /// Restores a run of an earlier process; finished nodes are not run again.
    pub fn restored((run, nodes): (Run, Vec<NodeRecord>), graph: Graph) -> Self {
        let input = serde_json::from_str(&run.input).unwrap_or_default();
        let new = NewRun {
            id: run.id,
            flow_id: run.flow_id,
            flow_name: run.flow_name,
            trigger: run.trigger,
            input: run.input,
            graph: Arc::default(),
            at: run.created_at,
        };
        let mut restored = Self {
            has_begun: run.status == RunStatus::Running,
            waiter: None,
            ..Self::new(&new, Arc::new(graph), input, oneshot::channel().0)
        };
        restored.restore_nodes(nodes, run.is_cancelled);
        restored
    }

    fn restore_nodes(&mut self, records: Vec<NodeRecord>, is_cancelled: bool) {
        let graph = Arc::clone(&self.graph);
        let (mut done, mut interrupted, mut failed_maps) = (Vec::new(), Vec::new(), Vec::new());
        for mut record in records {
            let mut nodes = graph.nodes().iter();
            let Some(at) = nodes.position(|node| node.id == record.node_id) else {
                continue;
            };
            let node = &graph.nodes()[at];
            let is_map = matches!(node.kind, NodeKind::Map(_));
            self.tries[at].started = record.attempt;
            match record.status {
                NodeStatus::Running => {
                    failed_maps.extend(record.failed_item().map(|error| (at, error)));
                    if !is_map && !may_repeat_call(node) {
                        interrupted.push(at);
                    }
                }
                NodeStatus::Completed => {
                    let text: Arc<str> = record.output.take().unwrap_or_default().into();
                    self.output_bytes += text.len();
                    let output = NodeOutput::of(node, &text);
                    done.push((at, verdict(&output)));
                    self.outputs[at] = Some(output);
                }
                NodeStatus::Failed => {
                    self.end = Some(End::Failed {
                        node_id: record.node_id,
                        error: record.error.take().unwrap_or_default(),
                    });
                }
                _ => {}
            }
            if !record.items.is_empty() {
                self.items_before.insert(at, record.items);
            }
        }
        if is_cancelled && self.end.is_none() {
            self.end = Some(End::Cancelled);
        }
        self.progress = Progress::new(&graph, done);
        if self.end.is_some() {
            // The run only waits for its calls in flight to end.
            self.progress.stop();
        }
        self.skip();
        for node in interrupted {
            self.progress.take_this(node);
            self.give_up(Unit::node(node), NOT_RETRIED.to_owned(), false);
        }
        for (node, error) in failed_maps {
            self.progress.take_this(node);
            self.fail(Unit::node(node), error, false);
        }
    }

    pub fn flow_id(&self) -> FlowId {
        self.flow_id
    }

    /// Returns the run as a queue entry; the rest is in the database.
    pub fn into_waiting(self) -> Waiting {
        Waiting { run_id: self.id, waiter: self.waiter }
    }

    pub fn with_waiter(mut self, waiter: Option<oneshot::Sender<()>>) -> Self {
        self.waiter = waiter;
        self
    }

    pub fn begin(&mut self) {
        if self.has_begun {
            return;
        }
        self.has_begun = true;
        self.pending.push(Change::StartRun(RunStart {
            flow_id: self.flow_id,
            run_id: self.id.clone(),
            flow_name: self.name.clone(),
            node_count: self.graph.nodes().len(),
            trigger: self.trigger.clone(),
            at: Timestamp::now(),
        }));
    }

    /// Returns whether a unit makes calls or requests. A map does so for its items only.
    pub fn makes_calls(&self, unit: Unit) -> bool {
        makes_calls(&self.graph.nodes()[unit.node]) || unit.item.is_some()
    }

    /// Returns a unit to start, of the kinds that are free.
    pub fn take(&mut self, free: Free) -> Option<Unit> {
        if self.at_work >= UNITS_AT_ONCE_MAX {
            return None;
        }
        let may_start = |unit: &Unit| if self.makes_calls(*unit) { free.calls } else { free.local };
        let again = self.again.iter().rposition(may_start);
        let unit = match again {
            Some(at) => self.again.swap_remove(at),
            None => self.take_new(free)?,
        };
        self.at_work += 1;
        Some(unit)
    }

    /// Returns a unit to start for the first time. Started nodes and maps come before new ones.
    fn take_new(&mut self, free: Free) -> Option<Unit> {
        if self.is_decided() {
            return None;
        }
        for (&node, items) in self.maps.iter_mut().filter(|_| free.calls) {
            if let Some(item) = items.take() {
                let item = Some(item);
                return Some(Unit { node, item });
            }
        }
        let nodes = self.graph.nodes();
        let may_start = |node| if makes_calls(&nodes[node]) { free.calls } else { free.local };
        self.progress.take(may_start).map(Unit::node)
    }

    /// Returns whether [`ActiveRun::take`] would return a unit, if all kinds are free.
    pub fn has_more(&self) -> bool {
        let has_new = || self.progress.has_ready() || self.maps.values().any(Items::has_next);
        self.at_work < UNITS_AT_ONCE_MAX
            && (!self.again.is_empty() || !self.is_decided() && has_new())
    }

    /// Returns whether a single worker has all of the run's work in progress.
    pub fn has_one_worker(&self) -> bool {
        self.at_work == 1 && self.pausing.is_empty() && self.again.is_empty()
    }

    /// Ends a pause that lasts until `due`, and returns whether there was one. If the run was
    /// cancelled and resumed meanwhile, the unit may pause until another time.
    pub fn pause_over(&mut self, unit: Unit, due: Instant) -> bool {
        let Some(at) = self.pausing.iter().position(|&other| other == (unit, due)) else {
            return false;
        };
        self.pausing.swap_remove(at);
        self.again.push(unit);
        true
    }

    fn tries(&mut self, unit: Unit) -> &mut Tries {
        match (unit.item, self.maps.get_mut(&unit.node)) {
            (Some(item), Some(items)) => &mut items.tries[item],
            _ => &mut self.tries[unit.node],
        }
    }

    /// Creates the job of a unit that [`ActiveRun::take`] returned, and moves pending changes
    /// into it.
    pub fn job(&mut self, unit: Unit) -> Job {
        let tries = self.tries(unit);
        tries.started += 1;
        tries.attempts += 1;
        let target = tries.target;
        let outputs = self
            .graph
            .nodes()
            .iter()
            .zip(&self.outputs)
            .filter_map(|(node, output)| Some((node.id.clone(), output.clone()?)))
            .collect();
        let items = self.maps.get(&unit.node);
        Job {
            unit,
            item: items
                .zip(unit.item)
                .map(|(items, index)| JobItem { values: Arc::clone(&items.values), index }),
            target,
            resources: self.resources.remove(&unit),
            at: self.node_ref(unit),
            graph: Arc::clone(&self.graph),
            input: Arc::clone(&self.input),
            outputs,
            cancel: self.cancel.clone(),
            carried: std::mem::take(&mut self.pending),
        }
    }

    /// Handles a worker's result. Returns the time of the unit's next attempt, if any.
    pub fn ended(&mut self, unit: Unit, outcome: Outcome) -> Option<Instant> {
        self.at_work -= 1;
        let due = match outcome {
            Outcome::Finished { output, latency_ms, at, cached, unwritten } => {
                self.pending.extend(unwritten);
                let bytes = self.output_bytes + output.len();
                if bytes > OUTPUTS_BYTES_MAX {
                    let error = format!(
                        "the outputs of the run have {bytes} bytes; the limit is {OUTPUTS_BYTES_MAX}"
                    );
                    self.give_up(unit, error, false);
                } else {
                    let end = NodeEnd { latency_ms, cached, error: None, at };
                    self.complete(unit, &output, end);
                }
                None
            }
            Outcome::Listed { items, unwritten } => {
                self.pending.extend(unwritten);
                self.begin_map(unit.node, items);
                None
            }
            Outcome::Deferred { wait, resources, unwritten } => {
                self.pending.extend(unwritten);
                self.resources.extend(resources.map(|resources| (unit, resources)));
                self.defer(unit, wait)
            }
            Outcome::Failed { error, cancelled, unwritten, remedy } => {
                self.pending.extend(unwritten);
                self.retry_or_give_up(unit, error, cancelled, remedy)
            }
        };
        self.close_maps();
        due
    }

    /// Defers a unit. Its call was not made, so this does not count as an attempt.
    fn defer(&mut self, unit: Unit, wait: Duration) -> Option<Instant> {
        let tries = self.tries(unit);
        tries.started -= 1;
        tries.attempts -= 1;
        let due = Instant::now() + wait;
        self.pausing.push((unit, due));
        if self.is_decided() {
            self.end_pauses();
            return None;
        }
        Some(due)
    }

    fn retry_or_give_up(
        &mut self,
        unit: Unit,
        error: String,
        cancelled: bool,
        remedy: Remedy,
    ) -> Option<Instant> {
        let pause = self.pause(unit, remedy).filter(|_| self.end.is_none());
        let Some(pause) = pause else {
            self.give_up(unit, error, cancelled);
            return None;
        };
        let due = Instant::now() + pause;
        self.pending.push(Change::RetryNode {
            node: self.node_ref(unit),
            error,
            at: Timestamp::now(),
        });
        self.pausing.push((unit, due));
        Some(due)
    }

    fn begin_map(&mut self, node: usize, values: Vec<Value>) {
        let graph = Arc::clone(&self.graph);
        let NodeKind::Map(map) = &graph.nodes()[node].kind else {
            return;
        };
        let before = self.items_before.remove(&node).unwrap_or_default();
        let mut items = Items::new(values, map.at_once, &before);
        let interrupted = before
            .iter()
            .filter(|record| record.status == NodeStatus::Running && !map.agent.retry.after_restart)
            .map(|record| record.item);
        let interrupted: Vec<usize> = interrupted.filter(|&item| items.take_this(item)).collect();
        self.maps.insert(node, items);
        for item in interrupted {
            let item = Some(item);
            self.give_up(Unit { node, item }, NOT_RETRIED.to_owned(), false);
        }
    }

    /// Ends idle maps if all their items are over or their run ends.
    fn close_maps(&mut self) {
        // A map that fails ends the run, and so also ends maps that were examined before it.
        let mut open = usize::MAX;
        while self.maps.len() < open {
            open = self.maps.len();
            self.close_idle_maps();
        }
    }

    fn close_idle_maps(&mut self) {
        let idle = self.maps.iter().filter(|(_, items)| items.is_idle());
        let idle: Vec<usize> = idle.map(|(&node, _)| node).collect();
        for node in idle {
            let Some(items) = self.maps.get_mut(&node) else {
                continue;
            };
            let unit = Unit::node(node);
            if let Some(error) = items.failed.take() {
                self.maps.remove(&node);
                self.fail(unit, error, false);
            } else if let Some((output, took_ms)) = items.output() {
                self.maps.remove(&node);
                let end = NodeEnd::at(Timestamp::now());
                let end = NodeEnd { latency_ms: took_ms, ..end };
                self.complete(unit, &output.into(), end);
            } else if self.is_decided() {
                self.maps.remove(&node);
                self.fail(unit, RUN_ENDS.to_owned(), true);
            }
        }
    }

    /// Returns the pause before the next attempt at this target or the next one, if any attempt
    /// is left.
    fn pause(&mut self, unit: Unit, remedy: Remedy) -> Option<Duration> {
        let graph = Arc::clone(&self.graph);
        let kind = &graph.nodes()[unit.node].kind;
        let retry = kind.retry()?;
        let tries = self.tries(unit);
        if let Remedy::Again { retry_after } = remedy
            && tries.attempts < retry.attempts
            && retry_after.is_none_or(|wait| wait <= RETRY_AFTER_MAX)
        {
            // Full jitter: units that failed together are not retried together.
            let most_ns = retry.pause_max(tries.attempts).as_nanos();
            let pause_ns = fastrand::u64(..=u64::try_from(most_ns).unwrap_or(u64::MAX));
            let pause = Duration::from_nanos(pause_ns);
            return Some(pause.max(retry_after.unwrap_or_default()));
        }
        if remedy == Remedy::None || tries.target + 1 >= kind.target_count() {
            return None;
        }
        tries.target += 1;
        tries.attempts = 0;
        Some(Duration::ZERO)
    }

    fn complete(&mut self, unit: Unit, output: &Arc<str>, end: NodeEnd) {
        self.pending.push(Change::FinishNode(FinishedNode {
            node: self.node_ref(unit),
            output: output.to_string(),
            latency_ms: end.latency_ms,
            error: end.error,
            cached: end.cached,
            at: end.at,
        }));
        self.output_bytes += output.len();
        if let (Some(item), Some(items)) = (unit.item, self.maps.get_mut(&unit.node)) {
            items.complete(item, Arc::clone(output));
            return;
        }
        let output = NodeOutput::of(&self.graph.nodes()[unit.node], output);
        let verdict = verdict(&output);
        self.progress.complete(&self.graph, unit.node, verdict);
        self.outputs[unit.node] = Some(output);
        self.skip();
    }

    fn skip(&mut self) {
        for node in self.progress.take_skipped() {
            self.outputs[node] = Some(NodeOutput::skipped(&self.graph.nodes()[node]));
            self.pending.push(Change::SkipNode {
                node: self.node_ref(Unit::node(node)),
                at: Timestamp::now(),
            });
        }
    }

    /// Ends a node or an item that failed for good. This ends the run, unless the node declares an
    /// output for that case. (For a map, that output replaces the output of each failed item.)
    fn give_up(&mut self, unit: Unit, error: String, cancelled: bool) {
        let node = &self.graph.nodes()[unit.node];
        let is_item = unit.item.is_some();
        if let OnError::Continue(output) = &node.on_error
            && !cancelled
            && is_item == matches!(node.kind, NodeKind::Map(_))
        {
            let output: Arc<str> = output.as_str().into();
            let at = Timestamp::now();
            self.write_failure(unit, error.clone(), false, at);
            let error = Some(error);
            let end = NodeEnd { error, ..NodeEnd::at(at) };
            return self.complete(unit, &output, end);
        }
        self.fail(unit, error, cancelled);
    }

    fn fail(&mut self, unit: Unit, error: String, cancelled: bool) {
        self.write_failure(unit, error.clone(), cancelled, Timestamp::now());
        let mut cause = error;
        match (unit.item, self.maps.get_mut(&unit.node)) {
            // The map fails once its other items are over, so that their costs are part of
            // its sums.
            (Some(item), Some(items)) => cause = items.give_up(item, &cause, cancelled),
            _ => self.progress.fail(unit.node),
        }
        // The first failure is the cause; nodes that a cancel stops fail after it.
        if self.end.is_none() {
            let node_id = self.graph.nodes()[unit.node].id.clone();
            let error = cause;
            self.end = Some(End::Failed { node_id, error });
        }
        self.progress.stop();
        self.end_pauses();
    }

    fn write_failure(&mut self, unit: Unit, error: String, cancelled: bool, at: Timestamp) {
        if self.tries(unit).started == 0 {
            // It was still waiting to start, so no row of it exists.
            return;
        }
        self.pending.push(Change::FailNode(FailedNode {
            node: self.node_ref(unit),
            error,
            cancelled,
            at,
        }));
    }

    fn end_pauses(&mut self) {
        let pausing = std::mem::take(&mut self.pausing);
        let pausing = pausing.into_iter().map(|(unit, _)| unit);
        let again = std::mem::take(&mut self.again);
        self.resources.clear();
        for unit in pausing.chain(again) {
            self.fail(unit, RUN_ENDS.to_owned(), true);
        }
    }

    pub fn cancel(&mut self) {
        if self.end.is_none() {
            self.end = Some(End::Cancelled);
        }
        self.progress.stop();
        self.end_pauses();
        self.close_maps();
        self.cancel_calls();
    }

    pub fn cancel_calls(&self) {
        self.cancel.cancel();
    }

    /// Returns whether the end of the run is decided, even if calls are still in flight.
    pub fn is_decided(&self) -> bool {
        self.end.is_some()
    }

    pub fn is_finishing(&self) -> bool {
        self.is_finishing
    }

    /// Returns the changes that end the run; none if they were returned before.
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
        changes.push(Change::FinishRun(RunEnd {
            flow_id: self.flow_id,
            run_id: self.id.clone(),
            status,
            error,
            error_node,
            at: Timestamp::now(),
        }));
        Some(changes)
    }

    /// Notifies the waiters that the end of the run is committed.
    pub fn notify_waiters(self) {
        if let Some(waiter) = self.waiter {
            // A waiter that has left needs no answer.
            let _ = waiter.send(());
        }
    }

    fn node_ref(&self, unit: Unit) -> NodeRef {
        let of_graph = &self.graph.nodes()[unit.node];
        let items = self.maps.get(&unit.node);
        let tries = match unit.item.zip(items) {
            Some((item, items)) => &items.tries[item],
            None => &self.tries[unit.node],
        };
        NodeRef {
            flow_id: self.flow_id,
            run_id: self.id.clone(),
            node_id: of_graph.id.clone(),
            label: of_graph.label.clone(),
            item: unit.item,
            attempt: tries.started,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Returns a run of two maps of two items each, with the first items in progress.
    fn two_maps() -> ActiveRun {
        let map = |id: &str| {
            json!({"id": id, "type": "map", "data": {
                "provider": "p", "model": "m", "items": "{{ input.list }}", "prompt": "{{ item }}"
            }})
        };
        let data = json!({"nodes": [map("a"), map("b")]});
        let graph = Arc::new(Graph::parse(&data, &|_| true).unwrap());
        let new = NewRun {
            id: "r".into(),
            flow_id: 1,
            flow_name: "f".into(),
            trigger: "api".into(),
            input: "{}".into(),
            graph: data.to_string().into(),
            at: Timestamp(0),
        };
        let mut run = ActiveRun::new(&new, graph, json!({}), oneshot::channel().0);
        let all = Free { calls: true, local: true };
        let nodes: Vec<Unit> = std::iter::from_fn(|| run.take(all)).collect();
        for unit in nodes {
            run.job(unit);
            let outcome =
                Outcome::Listed { items: vec![json!(1), json!(2)], unwritten: Vec::new() };
            assert!(run.ended(unit, outcome).is_none());
        }
        let items: Vec<Unit> = std::iter::from_fn(|| run.take(all)).collect();
        assert_eq!(items, [0, 1].map(first));
        items.into_iter().for_each(|unit| drop(run.job(unit)));
        run
    }

    #[test]
    fn the_outputs_of_a_run_have_a_total_limit() {
        let mut run = two_maps();
        run.output_bytes = OUTPUTS_BYTES_MAX - 1;
        run.ended(first(0), finished(1));
        assert!(!run.is_decided());
        run.ended(first(1), finished(1));
        assert!(run.is_decided() && run.progress.is_over());
        let error = run.pending.iter().find_map(|change| match change {
            Change::FailNode(failed) => Some(failed.error.clone()),
            _ => None,
        });
        let limit = "the outputs of the run have 67108865 bytes; the limit is 67108864";
        assert!(error.as_ref().is_some_and(|error| error.contains(limit)), "{error:?}");
    }

    fn first(node: usize) -> Unit {
        let item = Some(0);
        Unit { node, item }
    }

    fn finished(bytes: usize) -> Outcome {
        Outcome::Finished {
            output: "x".repeat(bytes).into(),
            latency_ms: 0,
            cached: false,
            at: Timestamp::now(),
            unwritten: Vec::new(),
        }
    }

    /// One byte more than the outputs of a map may have together.
    const TOO_MANY_BYTES: usize = (16 << 20) + 1;

    #[test]
    fn a_map_with_oversized_outputs_ends_the_other_maps() {
        // The map that is examined first is idle; an item of the other one pauses.
        let mut run = two_maps();
        run.ended(first(0), finished(1));
        run.ended(first(1), finished(TOO_MANY_BYTES));
        assert!(run.is_decided() && run.progress.is_over());

        let mut run = two_maps();
        let later = Outcome::Deferred {
            wait: Duration::from_secs(60),
            resources: None,
            unwritten: Vec::new(),
        };
        assert!(run.ended(first(1), later).is_some());
        run.ended(first(0), finished(TOO_MANY_BYTES));
        assert!(run.is_decided() && run.progress.is_over());
    }
}
