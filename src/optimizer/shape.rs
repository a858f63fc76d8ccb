//! Savings that a graph alone shows: calls whose output is never used, and calls that wait for no
//! reason. Pure.
//!
//! [`Edit::RemoveNode`](super::edit::Edit::RemoveNode) and
//! [`Edit::RunBeside`](super::edit::Edit::RunBeside) implement them in the same graph. They change
//! neither the run's result nor the set of other nodes that run, as long as no node fails.

use std::collections::BTreeSet;

use crate::flow::{EDGES_MAX, Graph, Node, NodeKind};

/// An end of an edge: the node there, and the outcome if the edge leaves a condition.
type End = (usize, Option<bool>);

/// The edges of a graph, with support for removing nodes.
struct Links {
    to: Vec<BTreeSet<End>>,
    from: Vec<BTreeSet<End>>,
    /// Nodes after a condition.
    may_be_skipped: Vec<bool>,
}

impl Links {
    fn of(graph: &Graph, before: &[Vec<bool>]) -> Self {
        let nodes = graph.nodes();
        let is_condition = |at: usize| matches!(nodes[at].kind, NodeKind::Condition(_));
        let follows_condition =
            |before: &Vec<bool>| (0..nodes.len()).any(|at| before[at] && is_condition(at));
        let mut links = Self {
            to: vec![BTreeSet::new(); nodes.len()],
            from: vec![BTreeSet::new(); nodes.len()],
            may_be_skipped: before.iter().map(follows_condition).collect(),
        };
        for source in 0..nodes.len() {
            for edge in graph.edges_from(source) {
                links.to[source].insert((edge.target, edge.branch));
                links.from[edge.target].insert((source, edge.branch));
            }
        }
        links
    }

    fn count(&self) -> usize {
        self.to.iter().map(BTreeSet::len).sum()
    }

    /// Returns whether `node` would run or be skipped as before if it followed the predecessors of
    /// `other` instead of `other`. Without predecessors, the edge from `other` may have been the
    /// only one that is live in every run.
    fn can_bypass(&self, node: usize, other: usize) -> bool {
        let mut others = self.from[node].iter().filter(|(from, _)| *from != other);
        !self.from[other].is_empty()
            || self.from[node].len() == 1
            || others.any(|&(from, branch)| branch.is_none() && !self.may_be_skipped[from])
    }

    /// Removes a node and connects its predecessors with its successors.
    fn remove(&mut self, node: usize) {
        let from = std::mem::take(&mut self.from[node]);
        let to = std::mem::take(&mut self.to[node]);
        for &(source, branch) in &from {
            self.to[source].remove(&(node, branch));
            self.to[source].extend(to.iter().map(|&(target, _)| (target, branch)));
        }
        for &(target, branch) in &to {
            self.from[target].remove(&(node, branch));
            self.from[target].extend(&from);
        }
    }
}

/// Returns the ids of agents and maps with unused output, in a valid order of removal: a node comes
/// after the unused nodes that refer to it.
///
/// A node is used if it is part of the run's result ([`Graph::results`]), or if a template of a
/// remaining node names it or may name any node. Unused templates and conditions stay, because they
/// are free, and so do `http` nodes, because their requests have effects. A node also stays if its
/// removal would change when its successors run.
///
/// Removing a node also removes its failure: with `onError: fail` it would have ended the run
/// before any later call. A suggestion should mention this.
pub fn unused(graph: &Graph) -> Vec<String> {
    let nodes = graph.nodes();
    let mut links = Links::of(graph, &graph.ancestors());
    let results = graph.results();
    let mut unused = Vec::new();
    // The ids that remaining nodes name; only later nodes can name an earlier one.
    let mut named = BTreeSet::new();
    for at in graph.order().into_iter().rev() {
        let node = &nodes[at];
        let mut next = links.to[at].iter();
        let edges = links.from[at].len() * links.to[at].len();
        let is_unused = makes_calls(node)
            && !results.contains(&at)
            && !named.contains(node.id.as_str())
            && next.all(|&(next, _)| links.can_bypass(next, at))
            && links.count() + edges <= EDGES_MAX;
        if is_unused {
            links.remove(at);
            unused.push(node.id.clone());
            continue;
        }
        match node.reads() {
            Some(ids) => named.extend(ids),
            None => return Vec::new(),
        }
    }
    unused
}

/// Returns pairs of agents or maps that may run in parallel: the second waits only for the first,
/// without using its output. The successors of the second then follow both, so the only difference
/// is that a fatal failure of the first may come while the second is in flight.
///
/// Each pair is valid for the graph as it is; after one edit, the caller must compute the others
/// again.
pub fn independent(graph: &Graph) -> Vec<(String, String)> {
    let nodes = graph.nodes();
    let before = graph.ancestors();
    let links = Links::of(graph, &before);
    let results = graph.results();
    let is_output = |&at: &usize| matches!(nodes[at].kind, NodeKind::Output(_));
    let can_run_beside = |first: usize, second: usize| {
        let mut others = links.to[first].iter();
        let waits_anyway = others.any(|&(next, _)| before[second][next]);
        let uses_output = || {
            let reads = nodes[second].reads();
            reads.is_none_or(|ids| ids.contains(&nodes[first].id))
        };
        // Otherwise the first node would become a last node, whose output is part of the result.
        let keeps_results = results.iter().all(is_output)
            || links.to[first].len() > 1
            || !links.to[second].is_empty();
        let edges = links.from[first].len() + links.to[second].len();
        makes_calls(&nodes[second])
            && !waits_anyway
            && keeps_results
            && links.can_bypass(second, first)
            && links.count() + edges <= EDGES_MAX
            && !uses_output()
    };
    let mut pairs = Vec::new();
    for first in (0..nodes.len()).filter(|&at| makes_calls(&nodes[at])) {
        let next = links.to[first].iter().map(|(next, _)| *next);
        let beside = next.filter(|&second| can_run_beside(first, second));
        pairs.extend(beside.map(|second| (nodes[first].id.clone(), nodes[second].id.clone())));
    }
    pairs
}

/// Returns whether a node makes LLM calls.
fn makes_calls(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Agent(_) | NodeKind::Map(_))
}

#[cfg(test)]
mod tests;
