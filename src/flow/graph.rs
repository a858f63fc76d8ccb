//! The graph of a flow, read from what editors built on React Flow write, with every fault found.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

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

/// How often a node may be tried at most, over all attempts at one provider.
const ATTEMPTS_MAX: u32 = 10;
/// How many providers and models may be tried in turn.
const FALLBACKS_MAX: usize = 10;
/// What an `http` node may use.
const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE"];
/// How long an `http` node waits unless it says otherwise.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest pause and the longest timeout that a node may ask for: a day.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its id, unique in the flow; templates call it `nodes.ID`.
    pub id: String,
    /// What people call it; its id where nobody said.
    pub label: String,
    /// What it does.
    pub kind: NodeKind,
    /// What happens when it fails.
    pub on_error: OnError,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// An LLM call.
    Agent(Box<Agent>),
    /// Says which inputs the flow takes. Its output is the run's input, as JSON.
    Input(Vec<InputField>),
    /// A request over HTTP, whose answer is its output.
    Http(Box<Http>),
    /// Decides which branch is taken; the template gives `true` or `false`.
    Condition(String),
    /// Text made from a template, free.
    Template(String),
    /// What the run returns, made from a template, free.
    Output(String),
}

impl NodeKind {
    /// How often it is tried, where it asks somebody.
    pub fn retry(&self) -> Option<&Retry> {
        match self {
            Self::Agent(agent) => Some(&agent.retry),
            Self::Http(http) => Some(&http.retry),
            _ => None,
        }
    }

    /// How many there are to be asked in turn.
    pub fn target_count(&self) -> usize {
        match self {
            Self::Agent(agent) => agent.targets.len(),
            _ => 1,
        }
    }

    /// As in the flow's document.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Http(_) => "http",
            Self::Input(_) => "input",
            Self::Condition(_) => "condition",
            Self::Template(_) => "template",
            Self::Output(_) => "output",
        }
    }
}

/// One LLM call.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// What the ledger groups it under.
    pub role: Option<String>,
    /// Whom to ask: the first, and where that fails, the others in turn. At least one.
    pub targets: Vec<Target>,
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
    /// How often each target is tried.
    pub retry: Retry,
    /// How long the first piece of a streamed answer may take; the configuration's where nobody said.
    pub first_token_timeout: Option<Duration>,
    /// How long a call may take in all; the configuration's where nobody said.
    pub total_timeout: Option<Duration>,
}

/// A request over HTTP. URL, values of fields and body are templates.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// `GET` unless the node says otherwise.
    pub method: String,
    /// The template of the URL.
    pub url: String,
    /// Fields of the request.
    pub headers: Vec<(String, String)>,
    /// The template of what is sent.
    pub body: Option<String>,
    /// For all of it; 30 s unless the node says otherwise.
    pub timeout: Duration,
    /// How often it is tried.
    pub retry: Retry,
}

/// A provider and one of its models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The provider's name in the configuration.
    pub provider: String,
    /// The model's name, as the provider knows it.
    pub model: String,
}

/// How often a call is tried, and how long the pauses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often, with the first time; 1 unless the node says otherwise: a call that failed may have
    /// been billed, and nothing is bought twice that nobody asked for.
    pub attempts: u32,
    /// The longest pause after the first attempt; it doubles with each.
    pub backoff: Duration,
    /// The longest pause there is.
    pub backoff_max: Duration,
    /// Whether a call that a restart interrupted, and that may have been billed, is made again.
    pub after_restart: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            after_restart: true,
        }
    }
}

impl Retry {
    /// The longest pause after so many attempts: doubled with each, up to the most.
    pub fn pause_max(&self, attempts: u32) -> Duration {
        let factor = 1_u32
            .checked_shl(attempts.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.backoff.saturating_mul(factor).min(self.backoff_max)
    }
}

/// What happens when a node fails, once it is not tried any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The run fails.
    #[default]
    Fail,
    /// The run goes on as if the node had given this.
    Continue(String),
}

/// An input that a flow declares.
#[derive(Clone, Debug, PartialEq)]
pub struct InputField {
    /// Its name; templates call it `input.NAME`.
    pub name: String,
    /// What it may be.
    pub kind: InputKind,
    /// What it is where the run does not say.
    pub default: Option<Value>,
    /// Whether a run must say it.
    pub required: bool,
}

/// What an input may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// A text.
    #[default]
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A list.
    List,
    /// An object.
    Object,
    /// Whatever JSON holds.
    Any,
}

impl InputKind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
            Self::Any => true,
        }
    }

    fn article(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::List => "a list",
            Self::Object => "an object",
            Self::Any => "JSON",
        }
    }
}

/// Where an edge leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// The node at its end, by index.
    pub target: usize,
    /// Of a condition: the outcome with which it is followed.
    pub branch: Option<bool>,
}

/// A graph that can run: no cycles, every template refers to nodes that come before.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    /// For each node, where its edges lead.
    edges: Vec<Vec<Edge>>,
    /// For each node, how many edges lead to it.
    needs: Vec<usize>,
    /// Names of inputs that templates use or nodes declare.
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
    retry: Option<RawRetry>,
    timeouts: Option<RawTimeouts>,
    fallback: Option<Vec<RawTarget>>,
    on_error: Option<RawOnError>,
    inputs: Option<Vec<RawInput>>,
    method: Option<String>,
    url: Option<String>,
    headers: Option<std::collections::BTreeMap<String, String>>,
    body: Option<String>,
    expression: Option<String>,
    template: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRetry {
    attempts: Option<u32>,
    backoff_ms: Option<u64>,
    backoff_max_ms: Option<u64>,
    after_restart: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawTimeouts {
    first_token_ms: Option<u64>,
    total_ms: Option<u64>,
}

#[derive(Deserialize)]
struct RawTarget {
    provider: String,
    model: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawOnError {
    Word(String),
    Output { output: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInput {
    name: String,
    #[serde(default, rename = "type")]
    kind: InputKind,
    default: Option<Value>,
    required: Option<bool>,
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
        let edges = edges(&raw_edges, &nodes, &index, &mut faults);
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

    fn connect(nodes: Vec<Node>, all: &BTreeSet<(usize, Edge)>) -> Self {
        let mut edges = vec![Vec::new(); nodes.len()];
        let mut needs = vec![0; nodes.len()];
        for &(source, edge) in all {
            edges[source].push(edge);
            needs[edge.target] += 1;
        }
        let fields = nodes.iter().filter_map(|node| match &node.kind {
            NodeKind::Input(fields) => Some(fields),
            _ => None,
        });
        Self {
            inputs: fields.flatten().map(|field| field.name.clone()).collect(),
            nodes,
            edges,
            needs,
        }
    }

    /// All nodes; elsewhere a node is named by its index here.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where the edges of `node` lead.
    pub fn edges_from(&self, node: usize) -> impl Iterator<Item = &Edge> {
        self.edges[node].iter()
    }

    /// For each node, how many edges lead to it.
    pub fn needs(&self) -> &[usize] {
        &self.needs
    }

    /// Names of the inputs that templates use (`input.NAME`) or nodes declare, in alphabetical
    /// order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(String::as_str)
    }

    /// A run's input with the defaults that the flow declares.
    ///
    /// # Errors
    /// Every declared input that is missing or of another type.
    pub fn complete_input(
        &self,
        mut input: serde_json::Map<String, Value>,
    ) -> Result<serde_json::Map<String, Value>, Vec<Fault>> {
        let mut faults = Vec::new();
        let fields = self.nodes.iter().filter_map(|node| match &node.kind {
            NodeKind::Input(fields) => Some(fields),
            _ => None,
        });
        for field in fields.flatten() {
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
        if faults.is_empty() {
            Ok(input)
        } else {
            Err(faults)
        }
    }

    /// Nodes in an order in which each comes after all that it needs; those on or behind a cycle
    /// are left out.
    fn order(&self) -> Vec<usize> {
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

    /// The ids of the nodes on cycles (or between two), if any.
    fn cycle(&self) -> Option<String> {
        let mut stuck: BTreeSet<usize> = (0..self.nodes.len()).collect();
        for node in self.order() {
            stuck.remove(&node);
        }
        // What only hangs behind a cycle is not at fault: drop nodes that lead to no stuck node.
        while let Some(&leaf) = stuck.iter().find(|&&n| {
            !self.edges[n]
                .iter()
                .any(|edge| stuck.contains(&edge.target))
        }) {
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

impl Node {
    /// Its templates, each with the key that it stands under.
    fn templates(&self) -> Vec<(&'static str, &str)> {
        match &self.kind {
            NodeKind::Agent(agent) => {
                let system = agent.system.as_deref().map(|system| ("system", system));
                [("prompt", agent.prompt.as_str())]
                    .into_iter()
                    .chain(system)
                    .collect()
            }
            NodeKind::Http(http) => {
                let body = http.body.as_deref().map(|body| ("body", body));
                let values = http.headers.iter().map(|(_, value)| value.as_str());
                [("url", http.url.as_str())]
                    .into_iter()
                    .chain(body)
                    .chain(values.map(|value| ("headers", value)))
                    .collect()
            }
            NodeKind::Condition(template) => vec![("expression", template)],
            NodeKind::Template(template) | NodeKind::Output(template) => {
                vec![("template", template)]
            }
            NodeKind::Input(_) => Vec::new(),
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
    let mut data = match &raw.data {
        Value::Null => RawData::default(),
        data => object(data, &format!("{path}.data"), faults)?,
    };
    let id = name_of(&raw.id).unwrap_or_default();
    let mut reader = Reader { path, faults };
    if id.is_empty() || id.len() > NAME_BYTES_MAX {
        let message = format!("must be a text of 1 to {NAME_BYTES_MAX} bytes");
        reader.fault(".id", message);
    }
    reader.short("label", data.label.as_deref());
    let on_error = reader.on_error(data.on_error.take());
    let label = data.label.take().filter(|label| !label.is_empty());
    // React Flow leaves the type out of nodes of its default type.
    let kind = match raw.kind.as_deref().unwrap_or("agent") {
        "agent" => NodeKind::Agent(Box::new(reader.agent(data, provider_is_known))),
        "http" => NodeKind::Http(Box::new(reader.http(data))),
        "input" => NodeKind::Input(reader.inputs(data.inputs.unwrap_or_default())),
        "condition" => {
            let expression = reader.required("expression", data.expression);
            NodeKind::Condition(template::of_condition(&expression))
        }
        "template" => NodeKind::Template(reader.required("template", data.template)),
        "output" => NodeKind::Output(reader.required("template", data.template)),
        other => {
            let message = format!(
                "unknown node type `{other}`; there are `agent`, `http`, `input`, `condition`, `template` and `output`"
            );
            reader.fault(".type", message);
            // Its templates cannot be known, but what is wrong with a usual one is told all the same.
            NodeKind::Agent(Box::new(reader.agent(data, provider_is_known)))
        }
    };
    // A node that is only half right still takes part in the checks of edges and templates, so
    // that one save shows all there is to mend; one without an id cannot.
    (faults.len() == before || !id.is_empty()).then(|| Node {
        label: label.unwrap_or_else(|| id.clone()),
        id,
        kind,
        on_error,
    })
}

/// Reads the data of one node, and notes what is wrong with it.
struct Reader<'a> {
    path: String,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, key: &str, message: impl Into<String>) {
        let field = format!("{}{key}", self.path);
        self.faults.push(Fault::new(field, message));
    }

    fn required(&mut self, key: &str, value: Option<String>) -> String {
        match value {
            Some(text) if !text.trim().is_empty() => return text,
            Some(_) => self.fault(&format!(".data.{key}"), "must not be empty"),
            None => self.fault(&format!(".data.{key}"), "is missing"),
        }
        String::new()
    }

    fn short(&mut self, key: &str, value: Option<&str>) {
        if value.is_some_and(|text| text.len() > NAME_BYTES_MAX) {
            let message = format!("is longer than {NAME_BYTES_MAX} bytes");
            self.fault(&format!(".data.{key}"), message);
        }
    }

    fn agent(&mut self, data: RawData, provider_is_known: &dyn Fn(&str) -> bool) -> Agent {
        let first = Target {
            provider: self.required("provider", data.provider),
            model: self.required("model", data.model),
        };
        let prompt = self.required("prompt", data.prompt);
        self.short("role", data.role.as_deref());
        if data.max_tokens == Some(0) {
            self.fault(".data.maxTokens", "must be at least 1");
        }
        if data.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
            self.fault(".data.temperature", "must be between 0 and 2");
        }
        let others = data.fallback.unwrap_or_default();
        if others.len() > FALLBACKS_MAX {
            let message = format!("has {} items; the limit is {FALLBACKS_MAX}", others.len());
            self.fault(".data.fallback", message);
        }
        let mut targets = vec![first];
        targets.extend(others.into_iter().map(|raw| Target {
            provider: raw.provider,
            model: raw.model,
        }));
        for (at, target) in targets.iter().enumerate() {
            let key = |name: &str| match at.checked_sub(1) {
                None => format!(".data.{name}"),
                Some(at) => format!(".data.fallback[{at}].{name}"),
            };
            // An empty one of the first target was told of above.
            if !target.provider.is_empty() && !provider_is_known(&target.provider) {
                let message = format!("unknown provider `{}`", target.provider);
                self.fault(&key("provider"), message);
            }
            if at > 0 && target.model.trim().is_empty() {
                self.fault(&key("model"), "must not be empty");
            }
            if target.model.len() > NAME_BYTES_MAX {
                let message = format!("is longer than {NAME_BYTES_MAX} bytes");
                self.fault(&key("model"), message);
            }
        }
        let timeouts = data.timeouts.unwrap_or(RawTimeouts {
            first_token_ms: None,
            total_ms: None,
        });
        Agent {
            role: data.role,
            targets,
            prompt,
            system: data.system.filter(|text| !text.is_empty()),
            max_tokens: data.max_tokens,
            temperature: data.temperature,
            stream: data.stream.unwrap_or(true),
            retry: self.retry(data.retry),
            first_token_timeout: self.wait("timeouts.firstTokenMs", timeouts.first_token_ms),
            total_timeout: self.wait("timeouts.totalMs", timeouts.total_ms),
        }
    }

    fn http(&mut self, data: RawData) -> Http {
        let url = self.required("url", data.url);
        let method = data.method.unwrap_or_else(|| "GET".to_owned());
        if !METHODS.contains(&method.as_str()) {
            let message = format!("must be one of {}", METHODS.join(", "));
            self.fault(".data.method", message);
        }
        let headers = data.headers.unwrap_or_default();
        for name in headers.keys() {
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token) {
                let message = format!("`{name}` is not the name of a field");
                self.fault(".data.headers", message);
            }
        }
        let timeouts = data.timeouts.unwrap_or(RawTimeouts {
            first_token_ms: None,
            total_ms: None,
        });
        let timeout = self.wait("timeouts.totalMs", timeouts.total_ms);
        Http {
            method,
            url,
            headers: headers.into_iter().collect(),
            body: data.body.filter(|body| !body.is_empty()),
            timeout: timeout.unwrap_or(HTTP_TIMEOUT),
            retry: self.retry(data.retry),
        }
    }

    fn retry(&mut self, raw: Option<RawRetry>) -> Retry {
        let default = Retry::default();
        let Some(raw) = raw else { return default };
        if raw
            .attempts
            .is_some_and(|n| !(1..=ATTEMPTS_MAX).contains(&n))
        {
            let message = format!("must be a number from 1 to {ATTEMPTS_MAX}");
            self.fault(".data.retry.attempts", message);
        }
        let backoff = self.wait("retry.backoffMs", raw.backoff_ms);
        let backoff_max = self.wait("retry.backoffMaxMs", raw.backoff_max_ms);
        Retry {
            attempts: raw.attempts.unwrap_or(default.attempts),
            backoff: backoff.unwrap_or(default.backoff),
            backoff_max: backoff_max.unwrap_or(default.backoff_max),
            after_restart: raw.after_restart.unwrap_or(default.after_restart),
        }
    }

    fn wait(&mut self, key: &str, ms: Option<u64>) -> Option<Duration> {
        let wait = Duration::from_millis(ms?);
        if wait.is_zero() || wait > WAIT_MAX {
            let message = format!(
                "must be a number of milliseconds from 1 to {}",
                WAIT_MAX.as_millis()
            );
            self.fault(&format!(".data.{key}"), message);
        }
        Some(wait)
    }

    fn on_error(&mut self, raw: Option<RawOnError>) -> OnError {
        match raw {
            None => OnError::Fail,
            Some(RawOnError::Output { output }) => OnError::Continue(output),
            Some(RawOnError::Word(word)) => match word.as_str() {
                "fail" => OnError::Fail,
                "continue" => OnError::Continue(String::new()),
                _ => {
                    let message = "must be `fail`, `continue` or {\"output\": TEXT}";
                    self.fault(".data.onError", message);
                    OnError::Fail
                }
            },
        }
    }

    fn inputs(&mut self, raw: Vec<RawInput>) -> Vec<InputField> {
        let mut names = BTreeSet::new();
        let mut fields = Vec::with_capacity(raw.len());
        for (at, raw) in raw.into_iter().enumerate() {
            let key = |name: &str| format!(".data.inputs[{at}].{name}");
            if raw.name.is_empty() || raw.name.len() > NAME_BYTES_MAX {
                let message = format!("must be a text of 1 to {NAME_BYTES_MAX} bytes");
                self.fault(&key("name"), message);
            }
            if !names.insert(raw.name.clone()) {
                let message = format!("two inputs have the name `{}`", raw.name);
                self.fault(&key("name"), message);
            }
            let default = raw.default.filter(|value| !value.is_null());
            if default.as_ref().is_some_and(|value| !raw.kind.fits(value)) {
                let message = format!("must be {}", raw.kind.article());
                self.fault(&key("default"), message);
            }
            fields.push(InputField {
                name: raw.name,
                kind: raw.kind,
                required: raw.required.unwrap_or(default.is_none()),
                default,
            });
        }
        fields
    }
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
    nodes: &[(usize, Node)],
    index: &HashMap<String, usize>,
    faults: &mut Vec<Fault>,
) -> BTreeSet<(usize, Edge)> {
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
                let message = "must be `true` or `false`: the edge leaves a condition";
                faults.push(Fault::new(
                    format!("data.edges[{at}].sourceHandle"),
                    message,
                ));
                continue;
            }
        };
        edges.insert((source, Edge { target, branch }));
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
    fn what_a_node_says_about_its_failure_is_read_or_refused() {
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
        assert_eq!(
            (agent.retry.attempts, agent.retry.after_restart),
            (3, false)
        );
        assert_eq!(
            fault("retry", json!({"attempts": 0})),
            "data.nodes[0].data.retry.attempts"
        );
        assert_eq!(
            fault("retry", json!({"backoffMs": 0})),
            "data.nodes[0].data.retry.backoffMs"
        );
        assert_eq!(
            fault("timeouts", json!({"totalMs": 1e12})),
            "data.nodes[0].data.timeouts.totalMs"
        );
        assert_eq!(
            fault("fallback", json!([{"provider": "nobody", "model": "m"}])),
            "data.nodes[0].data.fallback[0].provider"
        );
        assert_eq!(
            fault("onError", json!("explode")),
            "data.nodes[0].data.onError"
        );
        let on_error = |value| with("onError", value).unwrap().nodes()[0].on_error.clone();
        assert_eq!(
            on_error(json!("continue")),
            OnError::Continue(String::new())
        );
        assert_eq!(
            on_error(json!({"output": "none"})),
            OnError::Continue("none".into())
        );
    }

    #[test]
    fn a_condition_has_branches_and_an_edge_of_its_says_which() {
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
        assert_eq!(
            edges,
            [&Edge {
                target: 1,
                branch: Some(false)
            }]
        );
        assert_eq!(graph.inputs().collect::<Vec<_>>(), ["x"]);
        let faults = flow(json!(null)).unwrap_err();
        assert_eq!(faults[0].field, "data.edges[0].sourceHandle");
    }

    #[test]
    fn an_input_is_checked_and_completed_as_the_flow_declares_it() {
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
        assert_eq!(
            Value::Object(done),
            json!({"topic": "ants", "more": 1, "words": 100})
        );
        let faults = complete(json!({"words": "many"})).unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["input.topic", "input.words"]);
        let twice = flow(json!([{"name": "a", "type": "list", "default": 1}, {"name": "a"}]));
        let fields: Vec<String> = twice
            .unwrap_err()
            .into_iter()
            .map(|fault| fault.field)
            .collect();
        assert_eq!(
            fields,
            [
                "data.nodes[0].data.inputs[0].default",
                "data.nodes[0].data.inputs[1].name"
            ]
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
