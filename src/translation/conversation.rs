//! The internal form of requests and answers.

use serde_json::{Map, Value};

use super::Api;
use super::signature::Signature;

/// The fields of a JSON object that the internal form does not name, as they are. Only the writer of
/// the same API writes them; others report them as dropped.
pub type Extra = Map<String, Value>;

/// A request for an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The API of the client, to which all `extra` and `Other` belong.
    pub api: Api,
    /// Empty if the API has the model in its path.
    pub model: String,
    pub is_streamed: bool,
    /// The system text of the request; further ones may be turns of [`Role::System`].
    pub system: Vec<Part>,
    pub turns: Vec<Turn>,
    pub tools: Vec<Tool>,
    pub tool_choice: Option<ToolChoice>,
    /// False if the model must not call several tools at once.
    pub parallel_tools: Option<bool>,
    pub format: OutputFormat,
    pub reasoning: Reasoning,
    /// Limits the answer of each choice, in tokens.
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u64>,
    pub stop: Vec<String>,
    pub seed: Option<i64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub extra: Extra,
    /// Fields as the client wrote them, for the writer of the same API. Others ignore them, because
    /// the typed fields and `extra` have the same content.
    pub own: Extra,
}

impl Conversation {
    pub fn new(api: Api) -> Self {
        Self {
            api,
            model: String::new(),
            is_streamed: false,
            system: Vec::new(),
            turns: Vec::new(),
            tools: Vec::new(),
            tool_choice: None,
            parallel_tools: None,
            format: OutputFormat::Text,
            reasoning: Reasoning::default(),
            max_tokens: None,
            temperature: None,
            top_p: None,
            top_k: None,
            stop: Vec::new(),
            seed: None,
            frequency_penalty: None,
            presence_penalty: None,
            extra: Extra::new(),
            own: Extra::new(),
        }
    }

    /// Returns all system texts of the request, and its other turns.
    pub fn split_system(&self) -> (Vec<&Part>, Vec<&Turn>) {
        let is_system = |turn: &&Turn| matches!(turn.role, Role::System | Role::Developer);
        let (system, others): (Vec<&Turn>, Vec<&Turn>) = self.turns.iter().partition(is_system);
        let parts = self.system.iter().chain(system.into_iter().flat_map(|turn| &turn.parts));
        (parts.collect(), others)
    }

    /// Returns the name of the tool whose call has this id.
    pub fn tool_name_of(&self, call_id: &str) -> Option<&str> {
        let parts = self.turns.iter().flat_map(|turn| &turn.parts);
        parts.rev().find_map(|part| match &part.kind {
            PartKind::ToolCall { id, name, .. } if id == call_id => Some(name.as_str()),
            _ => None,
        })
    }
}

/// Returns the turns with their parts, joined if the same side has several turns in a row.
pub fn joined<'a>(turns: &[&'a Turn]) -> Vec<(Role, Vec<&'a Part>)> {
    let mut joined: Vec<(Role, Vec<&Part>)> = Vec::new();
    for turn in turns {
        match joined.last_mut() {
            Some((role, parts)) if *role == turn.role => parts.extend(&turn.parts),
            _ => joined.push((turn.role, turn.parts.iter().collect())),
        }
    }
    joined
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    /// OpenAI's name of the system role for newer models.
    Developer,
    /// The user, or the results of tools.
    User,
    Assistant,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub role: Role,
    pub parts: Vec<Part>,
    pub extra: Extra,
}

impl Turn {
    pub fn new(role: Role, parts: Vec<Part>) -> Self {
        Self { role, parts, extra: Extra::new() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub kind: PartKind,
    /// Proves that the model wrote the part: of thinking, and of Gemini's tool calls and texts.
    pub signature: Option<Signature>,
    pub extra: Extra,
}

impl Part {
    pub fn new(kind: PartKind) -> Self {
        Self { kind, signature: None, extra: Extra::new() }
    }

    pub fn text(text: impl Into<String>) -> Self {
        Self::new(PartKind::Text(text.into()))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum PartKind {
    Text(String),
    Image(Media),
    /// A PDF or another file.
    Document(Media),
    Audio(Media),
    ToolCall {
        id: String,
        name: String,
        /// JSON, as the model wrote it; any text if `is_custom`.
        arguments: String,
        /// True for OpenAI's tools whose input is a text.
        is_custom: bool,
    },
    ToolResult {
        id: String,
        content: Vec<Part>,
        is_error: bool,
    },
    /// The model's thoughts or their summary; empty if only the signature is known.
    Thinking(String),
    /// The model's explanation why it does not answer.
    Refusal(String),
    /// A part that only its own API knows.
    Other(Value),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Media {
    pub source: Source,
    /// The file's name, or the title of a document.
    pub name: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Base64 and its media type, such as `image/png`.
    Data { media_type: String, base64: String },
    /// Any URL except `data:`; the media type if the API states it.
    Url { url: String, media_type: Option<String> },
    /// A file that the provider stores.
    File(String),
}

impl Source {
    /// Returns the source of a URL, which may contain the data.
    pub fn of_url(url: &str) -> Self {
        let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
        match data {
            Some((media_type, base64)) => {
                Self::Data { media_type: media_type.to_owned(), base64: base64.to_owned() }
            }
            None => Self::Url { url: url.to_owned(), media_type: None },
        }
    }

    /// Returns a URL, which may contain the data; none for a stored file.
    pub fn to_url(&self) -> Option<String> {
        match self {
            Self::Data { media_type, base64 } => Some(format!("data:{media_type};base64,{base64}")),
            Self::Url { url, .. } => Some(url.clone()),
            Self::File(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub kind: ToolKind,
    pub extra: Extra,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ToolKind {
    Function {
        name: String,
        description: Option<String>,
        /// A JSON schema.
        parameters: Option<Value>,
        strict: Option<bool>,
    },
    /// OpenAI's tool whose input is a text, with the grammar of the text, if any.
    Custom { name: String, description: Option<String>, format: Option<Value> },
    /// A tool that the provider runs, which only its own API knows.
    Other(Value),
}

#[derive(Clone, Debug, PartialEq)]
pub enum ToolChoice {
    Auto,
    None,
    /// Any tool.
    Required,
    Named(String),
    Other(Value),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum OutputFormat {
    #[default]
    Text,
    /// Any JSON object.
    Json,
    Schema {
        name: Option<String>,
        description: Option<String>,
        schema: Value,
        strict: Option<bool>,
    },
}

/// The requested thinking.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reasoning {
    pub mode: Option<ThinkingMode>,
    /// `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`, or a later one.
    pub effort: Option<String>,
    pub budget_tokens: Option<u64>,
    /// True if the client wants to see thoughts or their summary; none for the API's default.
    pub is_shown: Option<bool>,
    pub extra: Extra,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThinkingMode {
    Disabled,
    Enabled,
    /// The model decides.
    Adaptive,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Empty if the provider states none.
    pub id: String,
    /// Empty if the provider states none.
    pub model: String,
    pub parts: Vec<Part>,
    pub stop: Option<Stop>,
    pub extra: Extra,
}

/// The reason for the end of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    End,
    MaxTokens,
    /// The model waits for the results of its tool calls.
    ToolCalls,
    /// A stop sequence, if the API names it.
    Sequence(Option<String>),
    /// The model or a filter refused.
    Refused,
    /// The provider paused a long turn; the client may send it back to continue.
    Paused,
    Other(String),
}
