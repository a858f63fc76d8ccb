//! The graph of a flow, parsed from the JSON of React Flow editors, with all of its faults.

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde::Deserialize;
use serde_json::Value;

use super::compile::names;
use super::json;
use super::node::{InputField, Node, NodeKind};
use super::read::{RawNode, list, name_of, node};
use super::template::ITEM_NAMES;
use crate::error::Fault;

pub const NODES_MAX: usize = 1_000;
pub const EDGES_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub target: usize,
    /// For an edge from a condition: the outcome that selects it.
    pub branch: Option<bool>,
}

/// A graph that can run: it has no cycles, and its templates refer only to earlier nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    edges: Vec<Vec<Edge>>,
    /// Number of incoming edges of each node.
    needs: Vec<usize>,
    inputs: BTreeSet<String>,
}

#[derive(Deserialize)]
struct RawEdge {
    #[serde(default)]
    source: Value,
    #[serde(default)]
    target: Value,
    #[serde(default, rename = "sourceHandle")]
    handle: Value,
}

impl Graph {
    /// Parses `{"nodes": […], "edges": […]}`.
    ///
    /// # Errors
    /// Returns all faults, each with the path of its field.
    pub fn parse(
        data: &Value,
        provider_is_known: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let raw_nodes = list::<RawNode>(data, "nodes", NODES_MAX, &mut faults);
        let raw_edges = list::<RawEdge>(data, "edges", EDGES_MAX, &mut faults);
        if raw_nodes.is_empty() {
            if faults.is_empty() {
                faults.push(Fault::new("data.nodes", "a flow needs at least one node"));
            }
            // Without nodes, every edge would be reported as a fault.
            return Err(faults);
        }
        let nodes: Vec<(usize, Node)> = raw_nodes
            .into_iter()
            .filter_map(|(at, raw)| Some((at, node(at, raw, provider_is_known, &mut faults)?)))
            .collect();
        let index = index_by_id(&nodes, &mut faults);
        let edges = edges(&raw_edges, &nodes, &index, &mut faults);
        let places: Vec<usize> = nodes.iter().map(|(at, _)| *at).collect();
        let mut graph = Self::connect(nodes.into_iter().map(|(_, node)| node).collect(), &edges);
        if let Some(cycle) = graph.cycle() {
            faults.push(Fault::new("data.edges", format!("the nodes {cycle} form a cycle")));
        }
        graph.check_templates(&places, &mut faults);
        if faults.is_empty() { Ok(graph) } else { Err(faults) }
    }

    fn connect(nodes: Vec<Node>, all: &BTreeSet<(usize, Edge)>) -> Self {
        let mut edges = vec![Vec::new(); nodes.len()];
        let mut needs = vec![0; nodes.len()];
        for &(source, edge) in all {
            edges[source].push(edge);
            needs[edge.target] += 1;
        }
        let inputs = declared_inputs(&nodes).map(|field| field.name.clone());
        Self { inputs: inputs.collect(), nodes, edges, needs }
    }

    /// Returns all nodes; other methods identify a node by its index here.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn edges_from(&self, node: usize) -> impl Iterator<Item = &Edge> {
        self.edges[node].iter()
    }

    /// Returns the number of incoming edges of each node.
    pub fn needs(&self) -> &[usize] {
        &self.needs
    }

    /// Returns the names of inputs that templates use or nodes declare, in alphabetical order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(String::as_str)
    }

    /// Parses the texts of a command line that belong to inputs of other types. A text that does not
    /// fit stays as it is, and [`Graph::complete_input`] refuses it.
    pub fn read_texts(&self, input: &mut serde_json::Map<String, Value>) {
        for field in declared_inputs(&self.nodes) {
            let Some(value) = input.get_mut(&field.name) else { continue };
            let parsed = value.as_str().and_then(|text| json::parse(text.trim()).ok());
            if let Some(parsed) = parsed.filter(|parsed| field.kind.reads_text(parsed)) {
                *value = parsed;
            }
        }
    }

    /// Adds the declared defaults to a run's input.
    ///
    /// # Errors
    /// Returns all declared inputs that are missing or have another type.
    pub fn complete_input(
        &self,
        mut input: serde_json::Map<String, Value>,
    ) -> Result<serde_json::Map<String, Value>, Vec<Fault>> {
        let mut faults = Vec::new();
        for field in declared_inputs(&self.nodes) {
            match (input.get(&field.name), &field.default) {
                (Some(value), _) if field.kind.fits(value) => {}
                (Some(_), _) => faults.push(Fault::new(
                    format!("input.{}", field.name),
                    format!("must be {}", field.kind.article()),
                )),
                (None, Some(default)) => {
                    input.insert(field.name.clone(), default.clone());
                }
                (None, None) if field.required => {
                    faults.push(Fault::new(format!("input.{}", field.name), "is missing"));
                }
                (None, None) => {}
            }
        }
        if faults.is_empty() { Ok(input) } else { Err(faults) }
    }

    /// Returns the nodes in topological order, without those on or behind a cycle.
    pub fn order(&self) -> Vec<usize> {
        let mut needs = self.needs.clone();
        let mut ready: VecDeque<usize> = (0..needs.len()).filter(|&n| needs[n] == 0).collect();
        let mut order = Vec::with_capacity(needs.len());
        while let Some(node) = ready.pop_front() {
            order.push(node);
            for edge in &self.edges[node] {
                needs[edge.target] -= 1;
                if needs[edge.target] == 0 {
                    ready.push_back(edge.target);
                }
            }
        }
        order
    }

    /// Returns the ids of the nodes on cycles or between two.
    fn cycle(&self) -> Option<String> {
        let mut stuck: BTreeSet<usize> = (0..self.nodes.len()).collect();
        for node in self.order() {
            stuck.remove(&node);
        }
        // Nodes behind a cycle are not at fault: remove those that lead to no stuck node.
        while let Some(&leaf) =
            stuck.iter().find(|&&n| !self.edges[n].iter().any(|edge| stuck.contains(&edge.target)))
        {
            stuck.remove(&leaf);
        }
        let ids: Vec<&str> = stuck.iter().map(|&n| self.nodes[n].id.as_str()).collect();
        (!ids.is_empty()).then(|| ids.join(", "))
    }

    fn check_templates(&mut self, places: &[usize], faults: &mut Vec<Fault>) {
        let before = self.ancestors();
        for (index, node) in self.nodes.iter().enumerate() {
            for (key, source) in node.templates() {
                let field = format!("data.nodes[{}].data.{key}", places[index]);
                let names = match names(source) {
                    Ok(names) => names,
                    Err(why) => {
                        faults.push(Fault::new(field, why));
                        continue;
                    }
                };
                faults.extend(names.faults.iter().map(|why| Fault::new(&field, why)));
                for id in &names.nodes {
                    let fault = self.reference_fault(id, index, &before[index]);
                    faults.extend(fault.map(|why| Fault::new(&field, why)));
                }
                let is_item = matches!(node.kind, NodeKind::Map(_)) && key != "items";
                let unknown = names.unknown.iter().filter_map(|name| unknown_fault(name, is_item));
                faults.extend(unknown.map(|why| Fault::new(&field, why)));
                self.inputs.extend(names.inputs);
            }
        }
    }

    /// Returns why the node at `index` cannot use the output of node `id`, if it cannot. `before` marks
    /// the nodes that come before it.
    fn reference_fault(&self, id: &str, index: usize, before: &[bool]) -> Option<String> {
        match self.nodes.iter().position(|other| other.id == *id) {
            Some(other) if before[other] => None,
            Some(_) => Some(format!(
                "node `{id}` does not run before node `{}`; add an edge",
                self.nodes[index].id
            )),
            None => Some(format!("node `{id}` not found")),
        }
    }

    /// Returns the nodes whose outputs form the run's result: `output` nodes, else the last nodes.
    pub fn results(&self) -> Vec<usize> {
        let is_output = |&node: &usize| matches!(self.nodes[node].kind, NodeKind::Output(_));
        let outputs: Vec<usize> = (0..self.nodes.len()).filter(is_output).collect();
        if !outputs.is_empty() {
            return outputs;
        }
        let is_last = |&node: &usize| self.edges[node].is_empty();
        (0..self.nodes.len()).filter(is_last).collect()
    }

    /// Returns the ancestors of each node; a node on a cycle is its own ancestor.
    pub fn ancestors(&self) -> Vec<Vec<bool>> {
        let mut before = vec![vec![false; self.nodes.len()]; self.nodes.len()];
        for (node, edges) in self.edges.iter().enumerate() {
            let mut reached: Vec<usize> = edges.iter().map(|edge| edge.target).collect();
            while let Some(next) = reached.pop() {
                if !std::mem::replace(&mut before[next][node], true) {
                    reached.extend(self.edges[next].iter().map(|edge| edge.target));
                }
            }
        }
        before
    }
}

fn declared_inputs(nodes: &[Node]) -> impl Iterator<Item = &InputField> {
    let fields = nodes.iter().filter_map(|node| match &node.kind {
        NodeKind::Input(fields) => Some(fields),
        _ => None,
    });
    fields.flatten()
}

fn index_by_id(nodes: &[(usize, Node)], faults: &mut Vec<Fault>) -> HashMap<String, usize> {
    let mut index = HashMap::new();
    for (position, (at, node)) in nodes.iter().enumerate() {
        if index.insert(node.id.clone(), position).is_some() {
            faults.push(Fault::new(
                format!("data.nodes[{at}].id"),
                format!("duplicate node id `{}`", node.id),
            ));
        }
    }
    index
}

fn edges(
    raw: &[(usize, RawEdge)],
    nodes: &[(usize, Node)],
    index: &HashMap<String, usize>,
    faults: &mut Vec<Fault>,
) -> BTreeSet<(usize, Edge)> {
    let mut edges = BTreeSet::new();
    for (at, edge) in raw {
        let mut end = |key: &str, id: &Value| {
            let id = name_of(id).unwrap_or_else(|| id.to_string());
            let node = index.get(&id).copied();
            if node.is_none() {
                faults.push(Fault::new(
                    format!("data.edges[{at}].{key}"),
                    format!("node `{id}` not found"),
                ));
            }
            node
        };
        // Check both ends, so that both faults are reported.
        let ends = (end("source", &edge.source), end("target", &edge.target));
        let (Some(source), Some(target)) = ends else {
            continue;
        };
        let of_condition = matches!(nodes[source].1.kind, NodeKind::Condition(_));
        let branch = match (of_condition, edge.handle.as_str()) {
            (false, _) => None,
            (true, Some("true")) => Some(true),
            (true, Some("false")) => Some(false),
            (true, _) => {
                let message = "must be `true` or `false`, because the edge starts at a condition";
                faults.push(Fault::new(format!("data.edges[{at}].sourceHandle"), message));
                continue;
            }
        };
        edges.insert((source, Edge { target, branch }));
    }
    edges
}

/// Returns why a template cannot use a name that its node does not know, if it cannot.
fn unknown_fault(name: &str, is_item: bool) -> Option<String> {
    let (more, known) = if is_item {
        (ITEM_NAMES, "`item`, `index`, `input.…`, `nodes.ID.output`")
    } else {
        (&[][..], "`input.…`, `nodes.ID.output`")
    };
    (!more.contains(&name)).then(|| format!("unknown name `{name}`; expected one of {known}"))
}

#[cfg(test)]
mod tests {
    use super::super::node::OnError;
    use super::*;
    use serde_json::json;

    fn agent(id: &str, prompt: &str) -> Value {
        json!({"id": id, "type": "agent", "position": {"x": 1}, "data": {"provider": "echo", "model": "echo-1", "prompt": prompt}})
    }

    fn parse(data: Value) -> Result<Graph, Vec<Fault>> {
        Graph::parse(&data, &|provider| provider == "echo")
    }

    fn fields(data: Value) -> Vec<String> {
        parse(data).unwrap_err().into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn a_react_flow_graph_parses() {
        let graph = parse(json!({
            "nodes": [agent("plan", "{{ input.topic }}"), agent("draft", "{{ nodes.plan.output }}")],
            "edges": [{"id": "e1", "source": "plan", "target": "draft", "animated": true}],
            "viewport": {"zoom": 1}
        }))
        .unwrap();
        assert_eq!(graph.needs(), [0, 1]);
        assert_eq!(graph.inputs().collect::<Vec<_>>(), ["topic"]);
    }

    #[test]
    fn all_errors_are_listed_with_their_fields() {
        let faulty = json!({
            "nodes": [
                agent("a", "{{ nodes.b.output }}"),
                agent("b", "{{ nodes.ghost.output }} {{ stranger }}"),
                agent("b", "twice"),
                {"id": "c", "type": "sorcery", "data": {"provider": "nobody", "model": "m", "prompt": "p", "temperature": 9}},
                {"id": "d", "data": {"provider": "echo", "prompt": "{{ oops"}},
                {"type": "agent"},
                7
            ],
            "edges": [{"source": "a", "target": "nowhere"}, {"source": "a"}]
        });
        let fields = fields(faulty);
        assert_eq!(fields[0], "data.nodes[3].type", "{fields:#?}");
        assert!(!fields.iter().any(|field| field.starts_with("data.nodes[3].data")), "{fields:#?}");
        for expected in [
            "data.nodes[0].data.prompt",
            "data.nodes[1].data.prompt",
            "data.nodes[2].id",
            "data.nodes[3].type",
            "data.nodes[4].data.model",
            "data.nodes[4].data.prompt",
            "data.nodes[5].id",
            "data.nodes[6]",
            "data.edges[0].target",
            "data.edges[1].target",
        ] {
            assert!(
                fields.iter().any(|field| field == expected),
                "{expected} is not in {fields:#?}"
            );
        }
    }

    #[test]
    fn keys_that_a_type_does_not_read_are_ignored() {
        let flow = |kind: &str, data: Value| {
            let node = json!({
                "id": "a", "type": kind, "data": data, "position": {"x": 0.5, "y": -3},
                "measured": {"width": 150, "height": 40}, "selected": false, "dragging": true,
                "style": {"color": "red"}, "parentId": 7, "width": "wide", "extent": [[0, 0]]
            });
            parse(json!({"nodes": [node], "viewport": {"x": 0, "y": 0, "zoom": 1.5}}))
        };
        let foreign = json!({
            "template": "x", "inputs": "none", "headers": ["a"], "timeouts": 5, "retry": "no",
            "maxTokens": "many", "cache": {"size": 1}, "items": [1], "method": {}, "prompt": 7
        });
        for kind in ["output", "template"] {
            assert!(flow(kind, foreign.clone()).is_ok(), "{kind}");
        }
        let foreign = json!({"inputs": [{"name": "a"}], "prompt": 7, "template": 3});
        assert!(flow("input", foreign).is_ok());
        let foreign =
            json!({"provider": "echo", "model": "m", "prompt": "p", "items": 7, "url": {}});
        assert!(flow("agent", foreign).is_ok());
        // Keys that the type reads are still checked.
        let faults = flow("output", json!({"template": 3})).unwrap_err();
        assert_eq!(faults[0].field, "data.nodes[0].data.template");
    }

    #[test]
    fn an_unreadable_node_hides_no_fault_and_adds_none() {
        let faults = parse(json!({
            "nodes": [
                agent("a", "{{ nodes.b.output }} {{ input.x | uper }}"),
                {"id": "b", "type": "sorcery", "data": {"provider": 3}},
                {"id": "c", "type": "output", "data": {"template": 3}},
                agent("d", "{{ nodes.c.output }}{{ nodes.b.output }}"),
            ],
            "edges": [
                {"source": "b", "target": "a", "sourceHandle": "out"}, {"source": "b", "target": "d"},
                {"source": "c", "target": "d"}
            ]
        }));
        let faults = faults.unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        let expected =
            ["data.nodes[1].type", "data.nodes[2].data.template", "data.nodes[0].data.prompt"];
        assert_eq!(fields, expected, "{faults:#?}");
        assert!(faults[0].message.contains("`sorcery`"), "{faults:#?}");
    }

    #[test]
    fn a_cycle_error_names_only_the_nodes_of_the_cycle() {
        let faults = parse(json!({
            "nodes": [agent("a", "x"), agent("b", "x"), agent("c", "x"), agent("d", "x")],
            "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}, {"source": "c", "target": "b"}, {"source": "c", "target": "d"}]
        }))
        .unwrap_err();
        assert_eq!(faults.len(), 1);
        assert!(faults[0].message.contains("the nodes b, c form"), "{faults:?}");
    }

    #[test]
    fn failure_rules_of_a_node_are_validated() {
        let with = |key: &str, value: Value| {
            let mut node = agent("a", "x");
            node["data"][key] = value;
            parse(json!({"nodes": [node]}))
        };
        let fault = |key: &str, value: Value| with(key, value).unwrap_err()[0].field.clone();
        let retry =
            json!({"attempts": 3, "backoffMs": 100, "backoffMaxMs": 300, "afterRestart": false});
        let graph = with("retry", retry).unwrap();
        let NodeKind::Agent(agent) = &graph.nodes()[0].kind else {
            panic!("{graph:?}");
        };
        let pauses = [1, 2, 3, 99].map(|attempts| agent.retry.pause_max(attempts).as_millis());
        assert_eq!(pauses, [100, 200, 300, 300]);
        assert_eq!((agent.retry.attempts, agent.retry.after_restart), (3, false));
        assert_eq!(fault("retry", json!({"attempts": 0})), "data.nodes[0].data.retry.attempts");
        assert_eq!(fault("retry", json!({"backoffMs": 0})), "data.nodes[0].data.retry.backoffMs");
        assert_eq!(
            fault("timeouts", json!({"totalMs": 1e12})),
            "data.nodes[0].data.timeouts.totalMs"
        );
        assert_eq!(
            fault("fallback", json!([{"provider": "nobody", "model": "m"}])),
            "data.nodes[0].data.fallback[0].provider"
        );
        assert_eq!(fault("onError", json!("explode")), "data.nodes[0].data.onError");
        let on_error = |value| with("onError", value).unwrap().nodes()[0].on_error.clone();
        assert_eq!(on_error(json!("continue")), OnError::Continue(String::new()));
        assert_eq!(on_error(json!({"output": "none"})), OnError::Continue("none".into()));
    }

    #[test]
    fn the_prompt_cache_option_accepts_only_booleans() {
        let with = |value: Value| {
            let mut node = agent("a", "x");
            node["data"]["promptCache"] = value;
            parse(json!({"nodes": [node]}))
        };
        for (value, expected) in [(json!(true), true), (json!(false), false), (json!(null), false)]
        {
            let graph = with(value).unwrap();
            let NodeKind::Agent(agent) = &graph.nodes()[0].kind else {
                panic!("{graph:?}");
            };
            assert_eq!(agent.prompt_cache, expected);
        }
        let faults = with(json!("yes")).unwrap_err();
        assert_eq!(faults[0].field, "data.nodes[0].data.promptCache");
        assert!(faults[0].message.contains("expected a boolean"), "{faults:?}");
    }

    #[test]
    fn an_edge_of_a_condition_must_name_its_branch() {
        let flow = |handle: Value| {
            parse(json!({
                "nodes": [
                    {"id": "c", "type": "condition", "data": {"expression": "input.x > 1"}},
                    {"id": "t", "type": "template", "data": {"template": "{{ nodes.c.output }}"}},
                ],
                "edges": [{"source": "c", "target": "t", "sourceHandle": handle}]
            }))
        };
        let graph = flow(json!("false")).unwrap();
        let edges: Vec<&Edge> = graph.edges_from(0).collect();
        assert_eq!(edges, [&Edge { target: 1, branch: Some(false) }]);
        assert_eq!(graph.inputs().collect::<Vec<_>>(), ["x"]);
        let faults = flow(json!(null)).unwrap_err();
        assert_eq!(faults[0].field, "data.edges[0].sourceHandle");
    }

    #[test]
    fn inputs_are_validated_and_completed_by_declaration() {
        let flow = |inputs: Value| {
            parse(json!({"nodes": [{"id": "in", "type": "input", "data": {"inputs": inputs}}]}))
        };
        let graph = flow(json!([
            {"name": "topic"},
            {"name": "words", "type": "number", "default": 100},
            {"name": "tone", "required": false}
        ]))
        .unwrap();
        let complete = |input: Value| graph.complete_input(input.as_object().unwrap().clone());
        let done = complete(json!({"topic": "ants", "more": 1})).unwrap();
        assert_eq!(Value::Object(done), json!({"topic": "ants", "more": 1, "words": 100}));
        let faults = complete(json!({"words": "many"})).unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["input.topic", "input.words"]);
        let twice = flow(json!([{"name": "a", "type": "list", "default": 1}, {"name": "a"}]));
        let fields: Vec<String> = twice.unwrap_err().into_iter().map(|fault| fault.field).collect();
        assert_eq!(
            fields,
            ["data.nodes[0].data.inputs[0].default", "data.nodes[0].data.inputs[1].name"]
        );
    }

    #[test]
    fn empty_and_wrongly_typed_flows_are_refused() {
        assert_eq!(fields(json!({"nodes": []})), ["data.nodes"]);
        assert_eq!(fields(json!({"nodes": 1, "edges": {}})), ["data.nodes", "data.edges"]);
        assert_eq!(fields(json!(3)), ["data.nodes"]);
    }
}
