//! Parses nodes from the JSON of editors, and collects their faults.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::node::{
    Agent, Http, InputField, InputKind, Map, Node, NodeKind, OnError, Retry, Target,
};
use super::template;
use crate::error::Fault;

const NAME_BYTES_MAX: usize = 200;
const ATTEMPTS_MAX: u32 = 10;
const FALLBACKS_MAX: usize = 10;
/// Limits the parallel items of a map, to the same number as the parallel nodes of a run.
const AT_ONCE_MAX: usize = 16;
/// The default maximum age of a cached answer.
const CACHE_AGE: Duration = Duration::from_secs(24 * 60 * 60);
pub const CACHE_AGE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE"];
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum pause and timeout of a node.
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The known keys; all others (`position`, `style`, …) belong to the editor.
#[derive(Deserialize)]
pub struct RawNode {
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
    cache: Option<RawCache>,
    prompt_cache: Option<bool>,
    fallback: Option<Vec<RawTarget>>,
    on_error: Option<RawOnError>,
    inputs: Option<Vec<RawInput>>,
    method: Option<String>,
    url: Option<String>,
    headers: Option<std::collections::BTreeMap<String, String>>,
    body: Option<String>,
    expression: Option<String>,
    items: Option<String>,
    #[serde(alias = "at_once")]
    at_once: Option<usize>,
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

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawTimeouts {
    first_token_ms: Option<u64>,
    total_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawCache {
    Flag(bool),
    #[serde(rename_all = "camelCase")]
    For {
        max_age_s: u64,
    },
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

/// Parses the well-formed items of `data.KEY`, each with its index.
pub fn list<T: serde::de::DeserializeOwned>(
    data: &Value,
    key: &str,
    max: usize,
    faults: &mut Vec<Fault>,
) -> Vec<(usize, T)> {
    let field = format!("data.{key}");
    let items = match data.get(key) {
        Some(Value::Array(items)) => items,
        // A flow with one node has no edges, and some editors then omit the list.
        None if key == "edges" => return Vec::new(),
        Some(_) => {
            faults.push(Fault::new(field, "must be an array"));
            return Vec::new();
        }
        None => {
            faults.push(Fault::new(field, "is missing"));
            return Vec::new();
        }
    };
    if items.len() > max {
        faults.push(Fault::new(field, format!("has {} items; the limit is {max}", items.len())));
        return Vec::new();
    }
    let mut read = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let item = object::<T>(item, &format!("{field}[{at}]"), faults);
        read.extend(item.map(|item| (at, item)));
    }
    read
}

/// Parses an object; a fault names the field within it.
fn object<T: serde::de::DeserializeOwned>(
    value: &Value,
    path: &str,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    // serde accepts a list in place of an object, as its values without keys.
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
pub fn node(
    at: usize,
    raw: RawNode,
    provider_is_known: &dyn Fn(&str) -> bool,
    faults: &mut Vec<Fault>,
) -> Option<Node> {
    let before = faults.len();
    let path = format!("data.nodes[{at}]");
    let id = name_of(&raw.id).unwrap_or_default();
    // React Flow omits the type of nodes of its default type.
    let kind = raw.kind.as_deref().unwrap_or("agent");
    let Some(keys) = keys_of(kind) else {
        // Named first, because it may be the reason of others.
        let first =
            faults.iter().take_while(|fault| fault.message.starts_with(UNKNOWN_KIND)).count();
        faults.insert(first, unknown_kind(&path, kind));
        return placeholder(id);
    };
    let data = match &raw.data {
        Value::Null => Some(RawData::default()),
        Value::Object(data) => {
            // Keys that this type does not read belong to the editor.
            let is_read = |key: &str| {
                let is_of_call = kind == "map" && CALL_KEYS.contains(&key);
                is_of_call || COMMON_KEYS.contains(&key) || keys.contains(&key)
            };
            let read = data.iter().filter(|(key, _)| is_read(key));
            let read = read.map(|(key, value)| (key.clone(), value.clone())).collect();
            object(&Value::Object(read), &format!("{path}.data"), faults)
        }
        data => object(data, &format!("{path}.data"), faults),
    };
    let Some(mut data) = data else {
        return placeholder(id);
    };
    let mut reader = Reader { path, faults };
    if id.is_empty() || id.len() > NAME_BYTES_MAX {
        reader.fault(".id", format!("must be a string of 1 to {NAME_BYTES_MAX} bytes"));
    }
    reader.short("label", data.label.as_deref());
    let on_error = reader.on_error(data.on_error.take());
    let label = data.label.take().filter(|label| !label.is_empty());
    let kind = match kind {
        "agent" => NodeKind::Agent(Box::new(reader.agent(data, provider_is_known))),
        "map" => NodeKind::Map(Box::new(reader.map(data, provider_is_known))),
        "http" => NodeKind::Http(Box::new(reader.http(data))),
        "input" => NodeKind::Input(reader.inputs(data.inputs.unwrap_or_default())),
        "condition" => {
            let expression = reader.required("expression", data.expression);
            NodeKind::Condition(template::of_condition(&expression))
        }
        "template" => NodeKind::Template(reader.required("template", data.template)),
        _ => NodeKind::Output(reader.required("template", data.template)),
    };
    // A faulty node takes part in the checks of edges and templates, so that one save shows all
    // faults. A node without an id cannot.
    (faults.len() == before || !id.is_empty()).then(|| Node {
        label: label.unwrap_or_else(|| id.clone()),
        id,
        kind,
        on_error,
    })
}

/// Keys of `data` that every type of node reads.
const COMMON_KEYS: &[&str] = &["label", "onError"];
const CALL_KEYS: &[&str] = &[
    "role",
    "provider",
    "model",
    "prompt",
    "system",
    "maxTokens",
    "max_tokens",
    "temperature",
    "stream",
    "retry",
    "timeouts",
    "cache",
    "promptCache",
    "fallback",
];
/// Further keys of a map.
const MAP_KEYS: &[&str] = &["items", "atOnce", "at_once"];
const UNKNOWN_KIND: &str = "unknown node type";
const KINDS: &[(&str, &[&str])] = &[
    ("agent", CALL_KEYS),
    ("map", MAP_KEYS),
    ("http", &["url", "method", "headers", "body", "timeouts", "retry"]),
    ("input", &["inputs"]),
    ("condition", &["expression"]),
    ("template", &["template"]),
    ("output", &["template"]),
];

/// Returns the keys of `data` that a type of node reads; none for an unknown type.
fn keys_of(kind: &str) -> Option<&'static [&'static str]> {
    KINDS.iter().find(|(name, _)| *name == kind).map(|(_, keys)| *keys)
}

/// Returns a node for one that cannot be read, so that checks of other nodes find it.
fn placeholder(id: String) -> Option<Node> {
    let kind = NodeKind::Template(String::new());
    let node = Node { label: id.clone(), id, kind, on_error: OnError::Fail };
    (!node.id.is_empty()).then_some(node)
}

fn unknown_kind(path: &str, kind: &str) -> Fault {
    let known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    let known = known.join("`, `");
    let message = format!("{UNKNOWN_KIND} `{kind}`; expected one of `{known}`");
    Fault::new(format!("{path}.type"), message)
}

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
        let bytes = value.map_or(0, str::len);
        if bytes > NAME_BYTES_MAX {
            let message = format!("has {bytes} bytes; the limit is {NAME_BYTES_MAX}");
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
            self.fault(".data.temperature", "must be a number from 0 to 2");
        }
        let others = data.fallback.unwrap_or_default();
        if others.len() > FALLBACKS_MAX {
            let message = format!("has {} items; the limit is {FALLBACKS_MAX}", others.len());
            self.fault(".data.fallback", message);
        }
        let mut targets = vec![first];
        targets.extend(
            others.into_iter().map(|raw| Target { provider: raw.provider, model: raw.model }),
        );
        for (at, target) in targets.iter().enumerate() {
            let key = |name: &str| match at.checked_sub(1) {
                None => format!(".data.{name}"),
                Some(at) => format!(".data.fallback[{at}].{name}"),
            };
            // An empty provider of the first target was reported above.
            if !target.provider.is_empty() && !provider_is_known(&target.provider) {
                self.fault(&key("provider"), format!("unknown provider `{}`", target.provider));
            }
            if at > 0 && target.model.trim().is_empty() {
                self.fault(&key("model"), "must not be empty");
            }
            let bytes = target.model.len();
            if bytes > NAME_BYTES_MAX {
                let message = format!("has {bytes} bytes; the limit is {NAME_BYTES_MAX}");
                self.fault(&key("model"), message);
            }
        }
        let timeouts = data.timeouts.unwrap_or_default();
        Agent {
            role: data.role,
            targets,
            prompt,
            system: data.system.filter(|text| !text.is_empty()),
            max_tokens: data.max_tokens,
            temperature: data.temperature,
            stream: data.stream.unwrap_or(true),
            retry: self.retry(data.retry),
            cache_age: self.cache(data.cache),
            prompt_cache: data.prompt_cache.unwrap_or(false),
            first_token_timeout: self.wait("timeouts.firstTokenMs", timeouts.first_token_ms),
            total_timeout: self.wait("timeouts.totalMs", timeouts.total_ms),
        }
    }

    fn map(&mut self, mut data: RawData, provider_is_known: &dyn Fn(&str) -> bool) -> Map {
        let items = self.required("items", data.items.take());
        let at_once = data.at_once.unwrap_or(1);
        if !(1..=AT_ONCE_MAX).contains(&at_once) {
            self.fault(".data.atOnce", format!("must be a whole number from 1 to {AT_ONCE_MAX}"));
        }
        Map {
            items: template::of_items(&items),
            agent: self.agent(data, provider_is_known),
            at_once,
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
                self.fault(".data.headers", format!("`{name}` is not a valid header name"));
            }
        }
        let timeouts = data.timeouts.unwrap_or_default();
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
        let attempts = raw.attempts.unwrap_or(default.attempts);
        if !(1..=ATTEMPTS_MAX).contains(&attempts) {
            let message = format!("must be a whole number from 1 to {ATTEMPTS_MAX}");
            self.fault(".data.retry.attempts", message);
        }
        let backoff = self.wait("retry.backoffMs", raw.backoff_ms);
        let backoff_max = self.wait("retry.backoffMaxMs", raw.backoff_max_ms);
        Retry {
            attempts,
            backoff: backoff.unwrap_or(default.backoff),
            backoff_max: backoff_max.unwrap_or(default.backoff_max),
            after_restart: raw.after_restart.unwrap_or(default.after_restart),
        }
    }

    fn wait(&mut self, key: &str, ms: Option<u64>) -> Option<Duration> {
        let wait = Duration::from_millis(ms?);
        if wait.is_zero() || wait > WAIT_MAX {
            let message = format!(
                "must be a whole number of milliseconds from 1 to {}",
                WAIT_MAX.as_millis()
            );
            self.fault(&format!(".data.{key}"), message);
        }
        Some(wait)
    }

    fn cache(&mut self, raw: Option<RawCache>) -> Option<Duration> {
        let age = match raw? {
            RawCache::Flag(false) => return None,
            RawCache::Flag(true) => CACHE_AGE,
            RawCache::For { max_age_s } => Duration::from_secs(max_age_s),
        };
        if age.is_zero() || age > CACHE_AGE_MAX {
            let message =
                format!("must be a whole number of seconds from 1 to {}", CACHE_AGE_MAX.as_secs());
            self.fault(".data.cache.maxAgeS", message);
        }
        Some(age)
    }

    fn on_error(&mut self, raw: Option<RawOnError>) -> OnError {
        match raw {
            None => OnError::Fail,
            Some(RawOnError::Output { output }) => OnError::Continue(output),
            Some(RawOnError::Word(word)) => match word.as_str() {
                "fail" => OnError::Fail,
                "continue" => OnError::Continue(String::new()),
                _ => {
                    self.fault(".data.onError", "must be `fail`, `continue` or {\"output\": TEXT}");
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
                let message = format!("must be a string of 1 to {NAME_BYTES_MAX} bytes");
                self.fault(&key("name"), message);
            }
            if !names.insert(raw.name.clone()) {
                let message = format!("duplicate input `{}`", raw.name);
                self.fault(&key("name"), message);
            }
            let default = raw.default.filter(|value| !value.is_null());
            if default.as_ref().is_some_and(|value| !raw.kind.fits(value)) {
                self.fault(&key("default"), format!("must be {}", raw.kind.article()));
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

/// Returns an id as text; some editors write numbers.
pub fn name_of(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
