//! What a graph alone tells: calls that nobody needs, and calls that wait for no reason. Pure.
//!
//! What is told here can be done by [`Edit::RemoveNode`](super::edit::Edit::RemoveNode) and
//! [`Edit::RunBeside`](super::edit::Edit::RunBeside) to the very graph that was looked at, and changes
//! neither what the run gives nor which of the other nodes run, as long as no node fails.

use std::collections::BTreeSet;

use crate::flow::{EDGES_MAX, Graph, Node, NodeKind};

/// An end of an edge: the node there, and of a condition's edge the outcome.
type End = (usize, Option<bool>);

/// The edges of a graph, which nodes can be taken out of.
struct Links {
    /// For each node, where its edges lead.
    to: Vec<BTreeSet<End>>,
    /// For each node, where the edges that lead to it come from.
    from: Vec<BTreeSet<End>>,
    /// For each node, whether it may be skipped: there is a condition before it.
    may_be_skipped: Vec<bool>,
}

impl Links {
    fn of(graph: &Graph, before: &[Vec<bool>]) -> Self {
        let nodes = graph.nodes();
        let is_condition = |at: usize| matches!(nodes[at].kind, NodeKind::Condition(_));
        let mut links = Self {
            to: vec![BTreeSet::new(); nodes.len()],
            from: vec![BTreeSet::new(); nodes.len()],
            may_be_skipped: before
                .iter()
                .map(|before| (0..nodes.len()).any(|at| before[at] && is_condition(at)))
                .collect(),
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

    /// Whether `node` would run or be skipped as before if it no longer came after `other`, but after
    /// all that `other` comes after. Where that is nothing, the edge from `other` may have been the
    /// only one that is live in every run.
    fn can_do_without(&self, node: usize, other: usize) -> bool {
        let mut others = self.from[node].iter().filter(|(from, _)| *from != other);
        !self.from[other].is_empty()
            || self.from[node].len() == 1
            || others.any(|&(from, branch)| branch.is_none() && !self.may_be_skipped[from])
    }

    /// Takes a node out; what came before it comes before what came after it.
    fn take_out(&mut self, node: usize) {
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

/// Ids of the agents and maps whose output nobody uses, in an order in which they can be removed one
/// after the other: one that only another unused node names comes after that one.
///
/// A node is used if it gives the run's result ([`Graph::results`]) or if a template of a node that
/// stays names it, or may name any. Templates and conditions that nobody uses stay, since they are
/// free, and so do `http` nodes, for what their requests do. A node is not told of if those after it
/// would run in other cases without it.
///
/// Removing a node also removes its failure: where its `onError` is `fail`, that would have ended the
/// run before anything after it was bought. Whoever suggests it should say so.
pub fn unused(graph: &Graph) -> Vec<String> {
    let nodes = graph.nodes();
    let mut links = Links::of(graph, &graph.ancestors());
    let results = graph.results();
    let mut unused = Vec::new();
    // Ids that nodes name which were looked at and stay. Whoever names a node comes after it.
    let mut named = BTreeSet::new();
    for at in graph.order().into_iter().rev() {
        let node = &nodes[at];
        let edges = links.from[at].len() * links.to[at].len();
        let is_unused = is_bought(node)
            && !results.contains(&at)
            && !named.contains(node.id.as_str())
            && links.to[at]
                .iter()
                .all(|&(next, _)| links.can_do_without(next, at))
            && links.count() + edges <= EDGES_MAX;
        if is_unused {
            links.take_out(at);
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

/// Pairs of agents or maps of which the second waits for the first, and for nothing but it, though it
/// does not use its output: they may run side by side. What comes after the second comes after both
/// then, so that nothing else changes but that a failure of the first, where it ends the run, comes
/// while the second is being bought.
///
/// Each pair is told for the graph as it is; when one was made use of, the others are to be looked for
/// again.
pub fn independent(graph: &Graph) -> Vec<(String, String)> {
    let nodes = graph.nodes();
    let before = graph.ancestors();
    let links = Links::of(graph, &before);
    let results = graph.results();
    let is_output = |&at: &usize| matches!(nodes[at].kind, NodeKind::Output(_));
    let mut pairs = Vec::new();
    for first in (0..nodes.len()).filter(|&at| is_bought(&nodes[at])) {
        for &(second, _) in &links.to[first] {
            let waits_anyway = links.to[first]
                .iter()
                .any(|&(next, _)| before[second][next]);
            let uses_it = || {
                nodes[second]
                    .reads()
                    .is_none_or(|ids| ids.contains(&nodes[first].id))
            };
            // Else it would come to stand at the end, as what the run gives.
            let stays_no_result = results.iter().all(is_output)
                || links.to[first].len() > 1
                || !links.to[second].is_empty();
            let edges = links.from[first].len() + links.to[second].len();
            if is_bought(&nodes[second])
                && !waits_anyway
                && stays_no_result
                && links.can_do_without(second, first)
                && links.count() + edges <= EDGES_MAX
                && !uses_it()
            {
                pairs.push((nodes[first].id.clone(), nodes[second].id.clone()));
            }
        }
    }
    pairs
}

/// Whether a node makes LLM calls.
fn is_bought(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Agent(_) | NodeKind::Map(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn agent(id: &str, prompt: &str) -> Value {
        json!({"id": id, "data": {"provider": "echo", "model": "m", "prompt": prompt}})
    }

    fn text(kind: &str, id: &str, template: &str) -> Value {
        json!({"id": id, "type": kind, "data": {"template": template}})
    }

    fn condition(id: &str) -> Value {
        json!({"id": id, "type": "condition", "data": {"expression": "input.x"}})
    }

    /// Edges as `a b`, or `c b true` of a condition.
    fn graph(nodes: &[Value], edges: &[&str]) -> Graph {
        let edges: Vec<Value> = edges
            .iter()
            .map(|edge| {
                let parts: Vec<&str> = edge.split(' ').collect();
                json!({"source": parts[0], "target": parts[1], "sourceHandle": parts.get(2)})
            })
            .collect();
        Graph::parse(&json!({"nodes": nodes, "edges": edges}), &|_| true).unwrap()
    }

    fn pairs(graph: &Graph) -> Vec<String> {
        let pairs = independent(graph).into_iter();
        pairs.map(|(a, b)| format!("{a} {b}")).collect()
    }

    #[test]
    fn a_node_that_no_template_names_is_unused_and_what_it_alone_names_as_well() {
        let nodes = [
            agent("plan", "x"),
            agent("check", "{{ nodes.plan.output }}"),
            agent("draft", "y"),
        ];
        let graph = graph(&nodes, &["plan check", "check draft"]);
        assert_eq!(unused(&graph), ["check", "plan"]);
    }

    #[test]
    fn a_node_at_the_end_is_used_unless_output_nodes_say_what_the_run_gives() {
        let nodes = [agent("a", "x"), agent("b", "{{ nodes.a.output }}")];
        assert!(unused(&graph(&nodes, &["a b"])).is_empty());
        let [a, b] = nodes;
        let nodes = [a, b, text("output", "out", "{{ nodes.a.output }}")];
        assert_eq!(unused(&graph(&nodes, &["a b", "a out"])), ["b"]);
    }

    #[test]
    fn a_node_is_used_by_a_free_one_and_by_one_that_may_name_any() {
        let by = |template: &str| {
            let nodes = [
                agent("a", "x"),
                agent("b", "y"),
                text("template", "t", template),
            ];
            unused(&graph(&nodes, &["a b", "b t"]))
        };
        assert_eq!(by("{{ nodes.b.output }}"), ["a"]);
        assert!(by("{{ nodes.b.output }} {{ nodes['a'].output }}").is_empty());
        assert!(by("{{ nodes[input.which].output }}").is_empty());
    }

    #[test]
    fn a_node_stays_that_alone_makes_the_next_one_run() {
        let nodes = [
            condition("c"),
            agent("a", "x"),
            agent("b", "y"),
            agent("end", "z"),
        ];
        let edges = ["c b true", "a b", "b end"];
        assert_eq!(unused(&graph(&nodes, &edges)), ["b"]);
        // Without `a` before it, the end would be skipped where the condition says no.
        assert!(!unused(&graph(&nodes, &edges)).contains(&"a".to_owned()));
    }

    #[test]
    fn two_agents_in_a_row_are_independent_if_the_second_names_nothing_of_the_first() {
        let nodes = |prompt| [agent("a", "x"), agent("b", prompt), agent("end", "z")];
        let edges = ["a b", "b end"];
        // `end` would no longer be what the run gives alone, if `b` did not wait for it.
        assert_eq!(pairs(&graph(&nodes("y"), &edges)), ["a b"]);
        for prompt in ["{{ nodes.a.output }}", "{{ nodes[input.x].output }}"] {
            assert!(pairs(&graph(&nodes(prompt), &edges)).is_empty(), "{prompt}");
        }
    }

    #[test]
    fn nodes_that_wait_for_each_other_by_another_way_or_for_a_branch_are_not_independent() {
        let nodes = [
            agent("a", "x"),
            text("template", "t", "{{ nodes.a.output }}"),
            agent("b", "y"),
            agent("end", "z {{ nodes.b.output }}"),
        ];
        assert!(pairs(&graph(&nodes, &["a t", "t b", "a b", "b end"])).is_empty());
        let nodes = [
            condition("c"),
            agent("a", "x"),
            agent("b", "y"),
            agent("end", "{{ nodes.b.output }}"),
        ];
        assert!(pairs(&graph(&nodes, &["c b true", "b end"])).is_empty());
        // Without `a`, `b` would be skipped where the condition says no.
        assert!(pairs(&graph(&nodes, &["c b true", "a b", "b end"])).is_empty());
        assert_eq!(
            pairs(&graph(&nodes, &["c a true", "a b", "b end"])),
            ["a b"]
        );
    }
}
