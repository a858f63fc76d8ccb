//! The nodes of a flow, with their rules for retries, failures and inputs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::compile::names;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique in the flow; templates use `nodes.ID`.
    pub id: String,
    pub label: String,
    pub kind: NodeKind,
    pub on_error: OnError,
}

#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    Agent(Box<Agent>),
    Map(Box<Map>),
    /// Declares the flow's inputs. Its output is the run's input, as JSON.
    Input(Vec<InputField>),
    Http(Box<Http>),
    /// A template that yields `true` or `false` and selects a branch.
    Condition(String),
    Template(String),
    /// The template of the run's result.
    Output(String),
}

impl NodeKind {
    /// None if the node makes no requests.
    pub fn retry(&self) -> Option<&Retry> {
        match self {
            Self::Agent(agent) => Some(&agent.retry),
            Self::Map(map) => Some(&map.agent.retry),
            Self::Http(http) => Some(&http.retry),
            _ => None,
        }
    }

    pub fn target_count(&self) -> usize {
        match self {
            Self::Agent(agent) => agent.targets.len(),
            Self::Map(map) => map.agent.targets.len(),
            _ => 1,
        }
    }

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

#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    pub role: Option<String>,
    /// The first, and its fallbacks in order. At least one.
    pub targets: Vec<Target>,
    pub prompt: String,
    pub system: Option<String>,
    /// None for the provider's default.
    pub max_tokens: Option<u32>,
    /// None for the provider's default.
    pub temperature: Option<f64>,
    pub stream: bool,
    pub retry: Retry,
    /// For streamed answers; none for the configured default.
    pub first_token_timeout: Option<Duration>,
    /// The maximum age of a cached answer; none disables the response cache.
    pub cache_age: Option<Duration>,
    /// Marks the constant prefixes of system text and prompt for the provider's cache.
    pub prompt_cache: bool,
    /// None for the configured default.
    pub total_timeout: Option<Duration>,
}

/// Makes a call for each item. The output is the list of answers, in the order of the items.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// The template of the list, in JSON.
    pub items: String,
    /// The call for each item; its templates can use `item` and `index`. Retries, timeouts and
    /// failures apply to each item.
    pub agent: Agent,
    /// Number of items in parallel. The default of 1 runs them in order.
    pub at_once: usize,
}

/// URL, header values and body are templates.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
    pub timeout: Duration,
    pub retry: Retry,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub provider: String,
    pub model: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Includes the first attempt. The default is 1, because a failed call may have been billed.
    pub attempts: u32,
    /// The maximum pause after the first attempt; it doubles with each further one.
    pub backoff: Duration,
    pub backoff_max: Duration,
    /// Repeats a call that a restart interrupted, although it may have been billed.
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
    pub fn pause_max(&self, attempts: u32) -> Duration {
        let factor = 2_u32.saturating_pow(attempts.saturating_sub(1));
        self.backoff.saturating_mul(factor).min(self.backoff_max)
    }
}

/// The effect of a node's failure, after its last attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    #[default]
    Fail,
    /// The run continues with this text as the node's output.
    Continue(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct InputField {
    pub name: String,
    pub kind: InputKind,
    pub default: Option<Value>,
    pub required: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    #[default]
    Text,
    Number,
    Boolean,
    List,
    Object,
    Any,
}

impl InputKind {
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

    /// Returns whether a text that contains this JSON value stands for that value.
    pub fn reads_text(self, value: &Value) -> bool {
        !matches!(self, Self::Text | Self::Any) && self.fits(value)
    }

    pub fn article(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::List => "an array",
            Self::Object => "an object",
            Self::Any => "any JSON value",
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
    /// Returns the node's templates with their keys.
    pub fn templates(&self) -> Vec<(&'static str, &str)> {
        match &self.kind {
            NodeKind::Agent(agent) => agent.templates().collect(),
            NodeKind::Map(map) => {
                [("items", map.items.as_str())].into_iter().chain(map.agent.templates()).collect()
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

    /// Returns the ids of the nodes whose outputs the templates use; none if they are dynamic, as
    /// in `nodes[input.which]`.
    pub fn reads(&self) -> Option<BTreeSet<String>> {
        let mut read = BTreeSet::new();
        for (_, source) in self.templates() {
            let names = names(source).ok().filter(|names| !names.any_node)?;
            read.extend(names.nodes);
        }
        Some(read)
    }
}
