//! What may run next: one pure state machine for a run of a graph.

use super::graph::Graph;

/// What a node is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Waits for others.
    Waiting,
    /// All that it needs is done.
    Ready,
    /// Was handed out by [`Progress::take`].
    Running,
    /// Finished well.
    Done,
    /// Failed; the run ends.
    Failed,
}

/// How far a run is. Nodes are named by their index in the graph.
#[derive(Clone, Debug)]
pub struct Progress {
    states: Vec<NodeState>,
    needs: Vec<usize>,
    running: usize,
    /// Set by a failed node or by [`Progress::stop`]: nothing new starts.
    stopped: bool,
}

impl Progress {
    /// A run of which nothing has happened, or, with `done`, one that goes on after those nodes.
    pub fn new(graph: &Graph, done: impl IntoIterator<Item = usize>) -> Self {
        let needs = graph.needs().to_vec();
        let states = needs
            .iter()
            .map(|&count| {
                if count == 0 {
                    NodeState::Ready
                } else {
                    NodeState::Waiting
                }
            })
            .collect();
        let mut progress = Self {
            states,
            needs,
            running: 0,
            stopped: false,
        };
        for node in done {
            progress.mark_done(graph, node);
        }
        progress
    }

    /// Hands out a node that may run, the first in the order of the flow.
    pub fn take(&mut self) -> Option<usize> {
        if self.stopped {
            return None;
        }
        let node = self
            .states
            .iter()
            .position(|&state| state == NodeState::Ready)?;
        self.states[node] = NodeState::Running;
        self.running += 1;
        Some(node)
    }

    /// Whether [`Progress::take`] has something to give.
    pub fn has_ready(&self) -> bool {
        !self.stopped && self.states.contains(&NodeState::Ready)
    }

    /// A node that was handed out finished well.
    pub fn complete(&mut self, graph: &Graph, node: usize) {
        if self.states[node] == NodeState::Running {
            self.running -= 1;
            self.mark_done(graph, node);
        }
    }

    /// A node that was handed out failed: no other node starts, those that run may end.
    pub fn fail(&mut self, node: usize) {
        if self.states[node] == NodeState::Running {
            self.running -= 1;
            self.states[node] = NodeState::Failed;
        }
        self.stopped = true;
    }

    /// No other node starts.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// How many nodes are handed out.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Whether nothing will happen any more: nothing runs, and nothing may start.
    pub fn is_over(&self) -> bool {
        self.running == 0 && !self.has_ready()
    }

    /// Whether every node finished well.
    pub fn is_complete(&self) -> bool {
        self.states.iter().all(|&state| state == NodeState::Done)
    }

    /// The state of a node.
    pub fn state(&self, node: usize) -> NodeState {
        self.states[node]
    }

    fn mark_done(&mut self, graph: &Graph, node: usize) {
        if self.states[node] == NodeState::Done {
            return;
        }
        self.states[node] = NodeState::Done;
        for &next in graph.successors(node) {
            self.needs[next] -= 1;
            if self.needs[next] == 0 && self.states[next] == NodeState::Waiting {
                self.states[next] = NodeState::Ready;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Edges only go from a lower to a higher index, so any list of pairs is a graph.
    fn graph(count: usize, edges: &[(usize, usize)]) -> Graph {
        let nodes: Vec<_> = (0..count)
            .map(|n| json!({"id": n.to_string(), "data": {"provider": "echo", "model": "m", "prompt": "p"}}))
            .collect();
        let edges: Vec<_> = edges
            .iter()
            .map(|&(a, b)| (a % count, b % count))
            .filter(|(a, b)| a != b)
            .map(|(a, b)| json!({"source": a.min(b).to_string(), "target": a.max(b).to_string()}))
            .collect();
        Graph::parse(&json!({"nodes": nodes, "edges": edges}), &|_| true).unwrap()
    }

    proptest! {
        #[test]
        fn every_node_runs_once_and_never_before_those_it_needs(
            count in 1usize..20,
            edges in proptest::collection::vec((0usize..20, 0usize..20), 0..40),
            choices in proptest::collection::vec(any::<usize>(), 200),
        ) {
            let graph = graph(count, &edges);
            let mut progress = Progress::new(&graph, []);
            let (mut running, mut done) = (Vec::new(), Vec::new());
            let mut choices = choices.into_iter();
            while !progress.is_over() {
                while let Some(node) = progress.take() {
                    for needed in 0..count {
                        if graph.successors(needed).contains(&node) {
                            prop_assert!(done.contains(&needed));
                        }
                    }
                    prop_assert!(!done.contains(&node) && !running.contains(&node));
                    running.push(node);
                }
                let node = running.swap_remove(choices.next().unwrap_or(0) % running.len());
                progress.complete(&graph, node);
                done.push(node);
            }
            prop_assert!(progress.is_complete());
            prop_assert_eq!(done.len(), count);
        }

        #[test]
        fn a_failed_node_ends_the_run_and_what_was_done_is_not_done_again(
            count in 1usize..20,
            edges in proptest::collection::vec((0usize..20, 0usize..20), 0..40),
            fails_after in 0usize..20,
        ) {
            let graph = graph(count, &edges);
            let mut progress = Progress::new(&graph, []);
            let mut done = Vec::new();
            while let Some(node) = progress.take() {
                if done.len() == fails_after {
                    progress.fail(node);
                } else {
                    progress.complete(&graph, node);
                    done.push(node);
                }
            }
            prop_assert!(progress.is_over());
            prop_assert_eq!(progress.is_complete(), done.len() == count);
            let mut resumed = Progress::new(&graph, done.iter().copied());
            while let Some(node) = resumed.take() {
                prop_assert!(!done.contains(&node));
                resumed.complete(&graph, node);
            }
            prop_assert!(resumed.is_complete());
        }
    }
}
