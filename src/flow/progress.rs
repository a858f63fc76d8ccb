//! A pure state machine that decides which nodes of a run may start.
//!
//! An edge is open until its source has ended. Then it is live or dead; it is dead behind a skipped
//! node, or on a branch that a condition did not select. A node is ready if none of its edges is
//! open and one is live; it is skipped if all are dead. So a join waits for all open edges.

use super::graph::Graph;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Waiting,
    Ready,
    /// Returned by [`Progress::take`].
    Running,
    Done,
    /// Not on a selected branch.
    Skipped,
    Failed,
}

/// The outcome of a node for its successors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// For a condition: the edges of this outcome are live.
    Branch(bool),
}

/// Identifies nodes by their index in the graph.
#[derive(Clone, Debug)]
pub struct Progress {
    states: Vec<NodeState>,
    /// Number of open edges to each node.
    open: Vec<usize>,
    /// True for each node with a live edge.
    live: Vec<bool>,
    running: usize,
    /// Nodes skipped since the last [`Progress::take_skipped`], in order.
    skipped: Vec<usize>,
    stopped: bool,
}

impl Progress {
    /// Starts a run, or resumes one after the nodes in `done`.
    pub fn new(graph: &Graph, done: impl IntoIterator<Item = (usize, Verdict)>) -> Self {
        let open: Vec<usize> = graph.needs().to_vec();
        let state = |count: &usize| match count {
            0 => NodeState::Ready,
            _ => NodeState::Waiting,
        };
        let mut progress = Self {
            states: open.iter().map(state).collect(),
            live: vec![false; open.len()],
            open,
            running: 0,
            skipped: Vec::new(),
            stopped: false,
        };
        for (node, verdict) in done {
            progress.mark_done(graph, node, verdict);
        }
        progress
    }

    /// Returns the first ready node in flow order that may start, and marks it as running.
    pub fn take(&mut self, may_start: impl Fn(usize) -> bool) -> Option<usize> {
        if self.stopped {
            return None;
        }
        let mut states = self.states.iter().enumerate();
        let (node, _) =
            states.find(|&(node, &state)| state == NodeState::Ready && may_start(node))?;
        self.states[node] = NodeState::Running;
        self.running += 1;
        Some(node)
    }

    /// Takes this node if it is ready. Used for nodes that a restart interrupted.
    pub fn take_this(&mut self, node: usize) {
        if self.states[node] == NodeState::Ready {
            self.states[node] = NodeState::Running;
            self.running += 1;
        }
    }

    pub fn has_ready(&self) -> bool {
        !self.stopped && self.states.contains(&NodeState::Ready)
    }

    pub fn complete(&mut self, graph: &Graph, node: usize, verdict: Verdict) {
        if self.states[node] == NodeState::Running {
            self.running -= 1;
            self.mark_done(graph, node, verdict);
        }
    }

    /// Lets no other node start; running nodes may end.
    pub fn fail(&mut self, node: usize) {
        if self.states[node] == NodeState::Running {
            self.running -= 1;
            self.states[node] = NodeState::Failed;
        }
        self.stopped = true;
    }

    pub fn stop(&mut self) {
        self.stopped = true;
    }

    pub fn is_over(&self) -> bool {
        self.running == 0 && !self.has_ready()
    }

    #[cfg(test)]
    pub fn is_skipped(&self, node: usize) -> bool {
        self.states[node] == NodeState::Skipped
    }

    /// Returns the nodes that were skipped since the last call.
    pub fn take_skipped(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.skipped)
    }

    fn mark_done(&mut self, graph: &Graph, node: usize, verdict: Verdict) {
        if self.states[node] == NodeState::Done {
            return;
        }
        self.states[node] = NodeState::Done;
        // Ended nodes whose edges still count as open.
        let mut over = vec![(node, Some(verdict))];
        while let Some((node, verdict)) = over.pop() {
            for edge in graph.edges_from(node) {
                let is_live = match (verdict, edge.branch) {
                    (None, _) => false,
                    (Some(Verdict::Branch(outcome)), Some(branch)) => outcome == branch,
                    (Some(_), _) => true,
                };
                self.open[edge.target] -= 1;
                self.live[edge.target] |= is_live;
                if self.open[edge.target] > 0 || self.states[edge.target] != NodeState::Waiting {
                    continue;
                }
                if self.live[edge.target] {
                    self.states[edge.target] = NodeState::Ready;
                } else {
                    self.states[edge.target] = NodeState::Skipped;
                    self.skipped.push(edge.target);
                    over.push((edge.target, None));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Builds a graph. Edges only go from a lower to a higher index, so any list of pairs is valid.
    /// Every third node is a condition, and its edges belong to one branch or the other.
    fn graph(count: usize, edges: &[(usize, usize, bool)]) -> Graph {
        let nodes: Vec<Value> = (0..count)
            .map(|n| {
                if is_condition(n) {
                    json!({"id": n.to_string(), "type": "condition", "data": {"expression": "true"}})
                } else {
                    json!({"id": n.to_string(), "data": {"provider": "echo", "model": "m", "prompt": "p"}})
                }
            })
            .collect();
        let edges: Vec<Value> = edges
            .iter()
            .map(|&(a, b, branch)| ((a % count).min(b % count), (a % count).max(b % count), branch))
            .filter(|(a, b, _)| a != b)
            .map(|(a, b, branch)| {
                let mut edge = json!({"source": a.to_string(), "target": b.to_string()});
                if is_condition(a) {
                    edge["sourceHandle"] = json!(branch.to_string());
                }
                edge
            })
            .collect();
        Graph::parse(&json!({"nodes": nodes, "edges": edges}), &|_| true).unwrap()
    }

    fn is_condition(node: usize) -> bool {
        node.is_multiple_of(3)
    }

    fn verdict(node: usize, outcome: bool) -> Verdict {
        if is_condition(node) { Verdict::Branch(outcome) } else { Verdict::Done }
    }

    /// Returns the state of an edge by the rules, derived from its ends alone.
    fn is_live(source: NodeState, outcome: bool, edge: &super::super::graph::Edge) -> bool {
        source == NodeState::Done && edge.branch.is_none_or(|branch| branch == outcome)
    }

    fn is_complete(progress: &Progress) -> bool {
        let is_over = |state: &NodeState| matches!(state, NodeState::Done | NodeState::Skipped);
        progress.states.iter().all(is_over)
    }

    proptest! {
        #[test]
        fn each_node_runs_once_in_order_or_is_skipped(
            count in 1usize..20,
            edges in proptest::collection::vec((0usize..20, 0usize..20, any::<bool>()), 0..40),
            outcomes in proptest::collection::vec(any::<bool>(), 20),
            choices in proptest::collection::vec(any::<usize>(), 200),
        ) {
            let graph = graph(count, &edges);
            let mut progress = Progress::new(&graph, []);
            let (mut running, mut done) = (Vec::new(), Vec::new());
            let mut choices = choices.into_iter();
            while !progress.is_over() {
                while let Some(node) = progress.take(|_| true) {
                    for needed in 0..count {
                        if graph.edges_from(needed).any(|edge| edge.target == node) {
                            let state = progress.states[needed];
                            prop_assert!(matches!(state, NodeState::Done | NodeState::Skipped));
                        }
                    }
                    prop_assert!(!done.contains(&node) && !running.contains(&node));
                    running.push(node);
                }
                let node = running.swap_remove(choices.next().unwrap_or(0) % running.len());
                progress.complete(&graph, node, verdict(node, outcomes[node]));
                done.push(node);
            }
            prop_assert!(is_complete(&progress));
            let skipped = progress.take_skipped();
            prop_assert_eq!(done.len() + skipped.len(), count);
            for node in 0..count {
                let needs = graph.needs()[node];
                let live = (0..count)
                    .flat_map(|source| graph.edges_from(source).map(move |edge| (source, edge)))
                    .filter(|(_, edge)| edge.target == node)
                    .any(|(source, edge)| is_live(progress.states[source], outcomes[source], edge));
                prop_assert_eq!(progress.states[node] == NodeState::Done, needs == 0 || live);
                prop_assert_eq!(skipped.contains(&node), needs > 0 && !live);
            }
        }

        #[test]
        fn a_failed_node_ends_the_run_without_repeats(
            count in 1usize..20,
            edges in proptest::collection::vec((0usize..20, 0usize..20, any::<bool>()), 0..40),
            outcomes in proptest::collection::vec(any::<bool>(), 20),
            fails_after in 0usize..20,
        ) {
            let graph = graph(count, &edges);
            let mut progress = Progress::new(&graph, []);
            let mut done = Vec::new();
            while let Some(node) = progress.take(|_| true) {
                if done.len() == fails_after {
                    progress.fail(node);
                } else {
                    progress.complete(&graph, node, verdict(node, outcomes[node]));
                    done.push(node);
                }
            }
            prop_assert!(progress.is_over());
            let before = done.iter().map(|&node| (node, verdict(node, outcomes[node])));
            let mut resumed = Progress::new(&graph, before);
            while let Some(node) = resumed.take(|_| true) {
                prop_assert!(!done.contains(&node));
                resumed.complete(&graph, node, verdict(node, outcomes[node]));
            }
            prop_assert!(is_complete(&resumed));
        }
    }

    #[test]
    fn a_join_waits_only_for_the_selected_branch() {
        // 0 is a condition; 1 is on its true branch, 2 on its false one, 4 joins them.
        let graph = graph(5, &[(0, 1, true), (0, 2, false), (1, 4, true), (2, 4, true)]);
        let mut progress = Progress::new(&graph, []);
        assert_eq!(progress.take(|_| true), Some(0));
        assert_eq!(progress.take(|_| true), Some(3));
        progress.complete(&graph, 0, Verdict::Branch(false));
        assert_eq!(progress.take_skipped(), [1]);
        assert_eq!(progress.take(|_| true), Some(2));
        assert_eq!(progress.take(|_| true), None);
        progress.complete(&graph, 2, Verdict::Done);
        assert_eq!(progress.take(|_| true), Some(4));
    }
}
