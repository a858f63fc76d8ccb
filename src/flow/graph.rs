//! The graph of a flow, read from what editors built on React Flow write, with every fault found.

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde::Deserialize;
use serde_json::Value;

use super::template;
use crate::error::Fault;

/// How many nodes a flow may have.
pub const NODES_MAX: usize = 1_000;
/// How many edges a flow may have.
const EDGES_MAX: usize = 10_000;
/// How long an id, a label or a name may be, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// A node: one LLM call.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its id, unique in the flow; templates call it `nodes.ID`.
    pub id: String,
    /// What people call it; its id where nobody said.
    pub label: String,
    /// What the ledger groups it under.
    pub role: Option<String>,
    /// The provider's name in the configuration.
    pub provider: String,
    /// The model's name, as the provider knows it.
    pub model: String,
    /// The template of the prompt.
    pub prompt: String,
    /// The template of the system prompt.
    pub system: Option<String>,
    /// The largest answer, in tokens; the provider's default where nobody said.
    pub max_tokens: Option<u32>,
    /// The sampling temperature; the provider's default where nobody said.
    pub temperature: Option<f64>,
    /// Whether the answer is streamed; true unless the node says otherwise.
    pub stream: bool,
}

/// A graph that can run: no cycles, every template refers to nodes that come before.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    /// For each node, those that need it, by index.
    successors: Vec<Vec<usize>>,
    /// For each node, how many it needs.
    needs: Vec<usize>,
    /// Names of inputs that templates use.
    inputs: BTreeSet<String>,
}

/// The keys that are read; all others (`position`, `style`, …) are the editor's.
#[derive(Deserialize)]
struct RawNode {
    #[serde(default)]
    id: Value,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawData {
    label: Option<String>,
    role: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    prompt: Option<String>,
    system: Option<String>,
    #[serde(alias = "max_tokens")]
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    stream: Option<bool>,
}

#[derive(Deserialize)]
struct RawEdge {
    #[serde(default)]
    source: Value,
    #[serde(default)]
    target: Value,
}

impl Graph {
    /// Reads `{"nodes": […], "edges": […]}`. `provider_is_known` says which providers there are.
    /// On failure lists every fault, each with the path of its field.
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
            // Without nodes every edge would be at fault, too.
            return Err(faults);
        }
        let nodes: Vec<(usize, Node)> = raw_nodes
            .into_iter()
            .filter_map(|(at, raw)| Some((at, node(at, raw, provider_is_known, &mut faults)?)))
            .collect();
        let index = index_by_id(&nodes, &mut faults);
        let edges = edges(&raw_edges, &index, &mut faults);
        let places: Vec<usize> = nodes.iter().map(|(at, _)| *at).collect();
        let mut graph = Self::connect(nodes.into_iter().map(|(_, node)| node).collect(), &edges);
        if let Some(cycle) = graph.cycle() {
            faults.push(Fault::new(
                "data.edges",
                format!("the nodes {cycle} wait for each other (a cycle)"),
            ));
        }
        graph.check_templates(&places, &mut faults);
        if faults.is_empty() {
            Ok(graph)
        } else {
            Err(faults)
        }
    }

    fn connect(nodes: Vec<Node>, edges: &BTreeSet<(usize, usize)>) -> Self {
        let mut successors = vec![Vec::new(); nodes.len()];
        let mut needs = vec![0; nodes.len()];
        for &(source, target) in edges {
            successors[source].push(target);
            needs[target] += 1;
        }
        Self {
            nodes,
            successors,
            needs,
            inputs: BTreeSet::new(),
        }
    }

    /// All nodes; elsewhere a node is named by its index here.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes that need `node`.
    pub fn successors(&self, node: usize) -> &[usize] {
        &self.successors[node]
    }

    /// For each node, how many nodes it needs.
    pub fn needs(&self) -> &[usize] {
        &self.needs
    }

    /// Names of the inputs that templates use (`input.NAME`), in alphabetical order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(String::as_str)
    }

    /// Nodes in an order in which each comes after all that it needs; those on or behind a cycle
    /// are left out.
    fn order(&self) -> Vec<usize> {
        let mut needs = self.needs.clone();
        let mut ready: VecDeque<usize> = (0..needs.len()).filter(|&n| needs[n] == 0).collect();
        let mut order = Vec::with_capacity(needs.len());
        while let Some(node) = ready.pop_front() {
            order.push(node);
            for &next in &self.successors[node] {
                needs[next] -= 1;
                if needs[next] == 0 {
                    ready.push_back(next);
                }
            }
        }
        order
    }

    /// The ids of the nodes on cycles (or between two), if any.
    fn cycle(&self) -> Option<String> {
        let mut stuck: BTreeSet<usize> = (0..self.nodes.len()).collect();
        for node in self.order() {
            stuck.remove(&node);
        }
        // What only hangs behind a cycle is not at fault: drop nodes that lead to no stuck node.
        while let Some(&leaf) = stuck
            .iter()
            .find(|&&n| !self.successors[n].iter().any(|next| stuck.contains(next)))
        {
            stuck.remove(&leaf);
        }
        let ids: Vec<&str> = stuck.iter().map(|&n| self.nodes[n].id.as_str()).collect();
        (!ids.is_empty()).then(|| ids.join(", "))
    }

    fn check_templates(&mut self, places: &[usize], faults: &mut Vec<Fault>) {
        let before = self.ancestors();
        for (index, node) in self.nodes.iter().enumerate() {
            let templates = [
                ("prompt", Some(&node.prompt)),
                ("system", node.system.as_ref()),
            ];
            for (key, source) in templates.into_iter().filter_map(|(k, s)| Some((k, s?))) {
                let field = format!("data.nodes[{}].data.{key}", places[index]);
                let names = match template::names(source) {
                    Ok(names) => names,
                    Err(why) => {
                        faults.push(Fault::new(field, why));
                        continue;
                    }
                };
                for id in &names.nodes {
                    match self.nodes.iter().position(|other| other.id == *id) {
                        Some(other) if before[index][other] => {}
                        Some(_) => faults.push(Fault::new(
                            &field,
                            format!(
                                "node `{id}` does not come before node `{}`; add an edge",
                                node.id
                            ),
                        )),
                        None => faults.push(Fault::new(&field, format!("there is no node `{id}`"))),
                    }
                }
                for name in &names.unknown {
                    faults.push(Fault::new(
                        &field,
                        format!("unknown name `{name}`; there are `input.…` and `nodes.ID.output`"),
                    ));
                }
                self.inputs.extend(names.inputs);
            }
        }
    }

    /// For each node, all that come before it; a node on a cycle comes before itself.
    fn ancestors(&self) -> Vec<Vec<bool>> {
        let mut before = vec![vec![false; self.nodes.len()]; self.nodes.len()];
        for (node, successors) in self.successors.iter().enumerate() {
            let mut reached = successors.clone();
            while let Some(next) = reached.pop() {
                if !std::mem::replace(&mut before[next][node], true) {
                    reached.extend(&self.successors[next]);
                }
            }
        }
        before
    }
}

/// The items of `data.KEY` that have the right form, each with its place in the list.
fn list<T: serde::de::DeserializeOwned>(
    data: &Value,
    key: &str,
    max: usize,
    faults: &mut Vec<Fault>,
) -> Vec<(usize, T)> {
    let field = format!("data.{key}");
    let items = match data.get(key) {
        Some(Value::Array(items)) => items,
        // A flow of one node has no edges, and some editors then leave the list out.
        None if key == "edges" => return Vec::new(),
        Some(_) => {
            faults.push(Fault::new(field, "must be a list"));
            return Vec::new();
        }
        None => {
            faults.push(Fault::new(field, "is missing"));
            return Vec::new();
        }
    };
    if items.len() > max {
        faults.push(Fault::new(
            field,
            format!("has {} items; the limit is {max}", items.len()),
        ));
        return Vec::new();
    }
    let mut read = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let item = object::<T>(item, &format!("{field}[{at}]"), faults);
        read.extend(item.map(|item| (at, item)));
    }
    read
}

/// Reads an object; a fault names the field within it.
fn object<T: serde::de::DeserializeOwned>(
    value: &Value,
    path: &str,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    // serde takes a list for an object whose keys were left out.
    if !value.is_object() {
        faults.push(Fault::new(path, "must be an object"));
        return None;
    }
    match serde_path_to_error::deserialize(value) {
        Ok(read) => Some(read),
        Err(error) => {
            let field = format!("{path}.{}", error.path());
            faults.push(Fault::new(field, error.inner().to_string()));
            None
        }
    }
}

fn node(
    at: usize,
    raw: RawNode,
    provider_is_known: &dyn Fn(&str) -> bool,
    faults: &mut Vec<Fault>,
) -> Option<Node> {
    let before = faults.len();
    let path = format!("data.nodes[{at}]");
    let data = match &raw.data {
        Value::Null => RawData::default(),
        data => object(data, &format!("{path}.data"), faults)?,
    };
    let mut fault =
        |key: &str, message: String| faults.push(Fault::new(format!("{path}{key}"), message));
    let id = name_of(&raw.id).unwrap_or_default();
    if id.is_empty() || id.len() > NAME_BYTES_MAX {
        fault(
            ".id",
            format!("must be a text of 1 to {NAME_BYTES_MAX} bytes"),
        );
    }
    // React Flow leaves the type out of nodes of its default type.
    if let Some(kind) = raw.kind.filter(|kind| kind != "agent") {
        fault(
            ".type",
            format!("unknown node type `{kind}`; there is `agent`"),
        );
    }
    let mut required = |key: &str, value: Option<String>| match value {
        Some(text) if !text.trim().is_empty() => text,
        Some(_) => {
            fault(&format!(".data.{key}"), "must not be empty".into());
            String::new()
        }
        None => {
            fault(&format!(".data.{key}"), "is missing".into());
            String::new()
        }
    };
    let provider = required("provider", data.provider);
    let model = required("model", data.model);
    let prompt = required("prompt", data.prompt);
    if !provider.is_empty() && !provider_is_known(&provider) {
        fault(".data.provider", format!("unknown provider `{provider}`"));
    }
    for (key, value) in [
        ("label", &data.label),
        ("role", &data.role),
        ("model", &Some(model.clone())),
    ] {
        if value
            .as_ref()
            .is_some_and(|text| text.len() > NAME_BYTES_MAX)
        {
            fault(
                &format!(".data.{key}"),
                format!("is longer than {NAME_BYTES_MAX} bytes"),
            );
        }
    }
    if data.max_tokens == Some(0) {
        fault(".data.maxTokens", "must be at least 1".into());
    }
    if data.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
        fault(".data.temperature", "must be between 0 and 2".into());
    }
    // A node that is only half right still takes part in the checks of edges and templates, so
    // that one save shows all there is to mend; one without an id cannot.
    (faults.len() == before || !id.is_empty()).then(|| Node {
        label: data
            .label
            .filter(|label| !label.is_empty())
            .unwrap_or_else(|| id.clone()),
        id,
        role: data.role,
        provider,
        model,
        prompt,
        system: data.system.filter(|text| !text.is_empty()),
        max_tokens: data.max_tokens,
        temperature: data.temperature,
        stream: data.stream.unwrap_or(true),
    })
}

/// Ids are texts; some editors write numbers.
fn name_of(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn index_by_id(nodes: &[(usize, Node)], faults: &mut Vec<Fault>) -> HashMap<String, usize> {
    let mut index = HashMap::new();
    for (position, (at, node)) in nodes.iter().enumerate() {
        if index.insert(node.id.clone(), position).is_some() {
            faults.push(Fault::new(
                format!("data.nodes[{at}].id"),
                format!("two nodes have the id `{}`", node.id),
            ));
        }
    }
    index
}

fn edges(
    raw: &[(usize, RawEdge)],
    index: &HashMap<String, usize>,
    faults: &mut Vec<Fault>,
) -> BTreeSet<(usize, usize)> {
    let mut edges = BTreeSet::new();
    for (at, edge) in raw {
        let mut end = |key: &str, id: &Value| {
            let id = name_of(id).unwrap_or_else(|| id.to_string());
            let found = index.get(&id).copied();
            if found.is_none() {
                faults.push(Fault::new(
                    format!("data.edges[{at}].{key}"),
                    format!("there is no node `{id}`"),
                ));
            }
            found
        };
        // Both ends are looked at before either is given up, so that both faults are listed.
        if let (Some(source), Some(target)) =
            (end("source", &edge.source), end("target", &edge.target))
        {
            edges.insert((source, target));
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn agent(id: &str, prompt: &str) -> Value {
        json!({"id": id, "type": "agent", "position": {"x": 1}, "data": {"provider": "echo", "model": "echo-1", "prompt": prompt}})
    }

    fn parse(data: Value) -> Result<Graph, Vec<Fault>> {
        Graph::parse(&data, &|provider| provider == "echo")
    }

    fn fields(data: Value) -> Vec<String> {
        parse(data)
            .unwrap_err()
            .into_iter()
            .map(|fault| fault.field)
            .collect()
    }

    #[test]
    fn a_graph_of_react_flow_is_read_as_it_is() {
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
    fn every_fault_is_listed_with_its_field() {
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
        for expected in [
            "data.nodes[0].data.prompt",
            "data.nodes[1].data.prompt",
            "data.nodes[2].id",
            "data.nodes[3].type",
            "data.nodes[3].data.provider",
            "data.nodes[3].data.temperature",
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
    fn a_cycle_names_its_nodes_and_not_those_behind_it() {
        let faults = parse(json!({
            "nodes": [agent("a", "x"), agent("b", "x"), agent("c", "x"), agent("d", "x")],
            "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}, {"source": "c", "target": "b"}, {"source": "c", "target": "d"}]
        }))
        .unwrap_err();
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].message.contains("the nodes b, c wait"),
            "{faults:?}"
        );
    }

    #[test]
    fn an_empty_flow_and_one_of_the_wrong_type_are_refused() {
        assert_eq!(fields(json!({"nodes": []})), ["data.nodes"]);
        assert_eq!(
            fields(json!({"nodes": 1, "edges": {}})),
            ["data.nodes", "data.edges"]
        );
        assert_eq!(fields(json!(3)), ["data.nodes"]);
    }
}
