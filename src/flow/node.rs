//! What a node of a flow is, and what it says about retries, failures and inputs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::template;

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
    /// An LLM call for each item of a list.
    Map(Box<Map>),
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
            Self::Map(map) => Some(&map.agent.retry),
            Self::Http(http) => Some(&http.retry),
            _ => None,
        }
    }

    /// How many there are to be asked in turn.
    pub fn target_count(&self) -> usize {
        match self {
            Self::Agent(agent) => agent.targets.len(),
            Self::Map(map) => map.agent.targets.len(),
            _ => 1,
        }
    }

    /// As in the flow's document.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Map(_) => "map",
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
    /// How old an answer to the same call may be that is taken in place of a new one; none: each is
    /// bought.
    pub cache_age: Option<Duration>,
    /// Whether the constant beginnings of system and prompt are marked for the provider's cache.
    pub prompt_cache: bool,
    /// How long a call may take in all; the configuration's where nobody said.
    pub total_timeout: Option<Duration>,
}

/// An LLM call for each item of a list. Its output is the list of the answers, in the order of the
/// items.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// The template that gives the list, as JSON.
    pub items: String,
    /// What is asked about each; its templates know `item` and `index`. What the node says about
    /// retries, timeouts and failures is about each item, too.
    pub agent: Agent,
    /// How many items are at work at a time; 1, which is in order, unless the node says otherwise.
    pub at_once: usize,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Whether a value is of this kind.
    pub fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
            Self::Any => true,
        }
    }

    /// As a fault says what is expected.
    pub fn article(self) -> &'static str {
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

impl Agent {
    fn templates(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let system = self.system.as_deref().map(|system| ("system", system));
        [("prompt", self.prompt.as_str())].into_iter().chain(system)
    }
}

impl Node {
    /// Its templates, each with the key that it stands under.
    pub fn templates(&self) -> Vec<(&'static str, &str)> {
        match &self.kind {
            NodeKind::Agent(agent) => agent.templates().collect(),
            NodeKind::Map(map) => [("items", map.items.as_str())]
                .into_iter()
                .chain(map.agent.templates())
                .collect(),
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

    /// Ids of the nodes whose output its templates use; none where that cannot be told, as of
    /// `nodes[input.which]`.
    pub fn reads(&self) -> Option<BTreeSet<String>> {
        let mut read = BTreeSet::new();
        for (_, source) in self.templates() {
            let names = template::names(source)
                .ok()
                .filter(|names| !names.any_node)?;
            read.extend(names.nodes);
        }
        Some(read)
    }
}
