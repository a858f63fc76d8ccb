//! Parses the parts of a client's request body that flowledger needs, and builds the forwarded
//! body: byte for byte the client's, except for the model and, if usage would be unknown otherwise,
//! one option. Pure.

mod shape;

use std::fmt;
use std::ops::Range;

use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use self::shape::{Content, Shape};
use super::form::{self, Form};
use super::json::{each_element, each_field};
use super::output_limit::RequestLimit;
use super::prompt::Prompt;
use crate::calls::TextSize;
use crate::ids::hex;
use crate::listener::ApiError;
use crate::providers::{ANSWER_TOKENS_ASSUMED, ApiFormat, CacheWrites, PricedOptions};

/// Limits the name of a model, in bytes.
const MODEL_BYTES_MAX: usize = 256;
/// The assumed limit of web searches of a request that sets none (`max_uses`).
const SEARCHES_ASSUMED: u64 = 10;
/// More than the system prompt that Anthropic adds to a request with tools, of up to 530 tokens
/// (<https://docs.anthropic.com/en/docs/tool-use-pricing-and-tokens>). Tools of its own have built-in
/// descriptions of unpublished length; as much is assumed for each.
const TOOL_PROMPT_TOKENS_MAX: u64 = 1_000;

/// The place of the model in a body.
#[derive(Clone, Debug)]
enum ModelPlace {
    Value(Range<usize>),
    /// The value of a form's field.
    FormValue(Range<usize>),
    /// The form has no model: the text before its first field.
    MissingInForm(String),
    /// The body has no model: the place for one, and whether another field follows.
    Missing(usize, bool),
    /// The path names the model; the body may repeat it.
    Path(Vec<Range<usize>>),
}

/// The known field of `stream_options`.
const INCLUDE_USAGE: &str = "include_usage";

#[derive(Debug)]
pub struct ChatRequest<'a> {
    format: ApiFormat,
    body: &'a [u8],
    /// The body as text; empty if it is a form or a batch.
    text: &'a str,
    pub model: String,
    model_at: ModelPlace,
    pub is_streamed: bool,
    /// True if the client requests the usage of a streamed chat completion.
    pub wants_usage: bool,
    /// The edit that requests the usage: the range to replace, and the new text.
    usage_edit: (Range<usize>, &'static str),
    /// The limit of all choices of the answer together, in tokens.
    pub max_tokens: Option<u32>,
    pub limit: RequestLimit,
    pub prompt: Prompt,
    /// The part that may be written to the provider's cache.
    pub cache_writes: CacheWrites,
    /// The options that may add to the price of a call.
    pub priced_options: PricedOptions,
    /// True if the provider answers at once and continues in the background.
    pub is_background: bool,
    /// True if the provider stores the response.
    pub is_stored: bool,
    /// The stored response that this request continues.
    pub previous_response: Option<String>,
    /// The stored conversation that this request continues.
    pub conversation: Option<String>,
    /// The maximum tokens that the provider adds for tools.
    tool_tokens: u64,
    system: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
    tools: Option<&'a RawValue>,
    models: Option<&'a RawValue>,
}

/// The known fields of an object, with their original text.
struct Fields<'a> {
    found: Vec<(&'static str, &'a RawValue)>,
    /// The end of the last field in the body.
    end: usize,
}

impl<'a> Fields<'a> {
    /// Parses the object `text`, a part of `body`. Duplicate fields are ambiguous, so they are an
    /// error; so are names in another case, which some servers accept.
    fn read(
        body: &str,
        text: &'a str,
        known_fields: &'static [&'static str],
    ) -> Result<Self, ApiError> {
        let mut fields = Self { found: Vec::new(), end: 0 };
        let mut ambiguous = None;
        each_field(text, |name, value| {
            fields.end = range_of(body, value).end;
            let mut known = known_fields.iter().copied();
            let Some(known) = known.find(|known| known.eq_ignore_ascii_case(name)) else {
                return;
            };
            if name != known {
                ambiguous.get_or_insert(format!("unknown field `{name}`; use `{known}`"));
            } else if fields.get(known).is_some() {
                ambiguous.get_or_insert(format!("duplicate field `{known}`"));
            } else {
                fields.found.push((known, value));
            }
        })
        .map_err(invalid_json)?;
        match ambiguous {
            Some(message) => Err(ApiError::bad_request("ambiguous", message)),
            None => Ok(fields),
        }
    }

    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let mut found = self.found.iter();
        found.find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Returns the field with one of these names, which servers treat as the same.
    fn one_of(&self, names: &[&str]) -> Result<Option<&'a RawValue>, ApiError> {
        let mut found = names.iter().filter_map(|name| self.get(name));
        match (found.next(), found.next()) {
            (_, Some(_)) => {
                let message = format!("ambiguous fields; use one of `{}`", names.join("`, `"));
                Err(ApiError::bad_request("ambiguous", message))
            }
            (value, None) => Ok(value),
        }
    }

    /// Returns a whole number; none if it is missing or null. Other values are an error, because
    /// providers interpret them differently.
    fn whole(&self, name: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        serde_json::from_str::<Option<f64>>(value.get())
            .ok()
            .filter(|number| number.is_none_or(|number| number.fract() == 0.0))
            .ok_or_else(|| {
                let message = format!("`{name}` must be a whole number or null");
                ApiError::bad_request("bad_limit", message)
            })
    }

    /// Returns a value that is true or false; none if it is missing or null.
    fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name).map(RawValue::get) {
            None | Some("null") => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => {
                let message = format!("`{name}` must be true or false");
                let code = if name == "stream" { "bad_stream" } else { "bad_value" };
                Err(ApiError::bad_request(code, message))
            }
        }
    }

    /// Returns the id of a stored object: a text, or an object with an `id`.
    fn id(&self, body: &str, name: &str) -> Result<Option<String>, ApiError> {
        let Some(mut value) = self.get(name).filter(|value| value.get() != "null") else {
            return Ok(None);
        };
        if value.get().starts_with('{') {
            let object = Fields::read(body, value.get(), &["id"])?;
            value = object.get("id").unwrap_or(value);
        }
        serde_json::from_str(value.get()).map(Some).map_err(|_| {
            let message = format!("`{name}` must be an id or null");
            ApiError::bad_request("bad_id", message)
        })
    }

    /// Returns a limit in tokens. Some servers treat a negative limit as none.
    fn limit(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let limit = self.whole(name)?;
        Ok(limit.map(|limit| match limit {
            ..0.0 => ANSWER_TOKENS_ASSUMED,
            _ => saturating(limit),
        }))
    }
}

fn saturating(number: f64) -> u32 {
    number as u32
}

fn invalid_json(error: impl fmt::Display) -> ApiError {
    ApiError::bad_request("invalid_json", format!("cannot read the request body: {error}"))
}

impl<'a> ChatRequest<'a> {
    /// Parses a body. `deployment` is the model if the path names one.
    pub fn read(
        format: ApiFormat,
        body: &'a [u8],
        deployment: Option<&str>,
    ) -> Result<Self, ApiError> {
        let body = std::str::from_utf8(body).map_err(invalid_json)?;
        // Some editors begin a file with a byte order mark; providers reject it.
        let body = body.strip_prefix('\u{feff}').unwrap_or(body);
        let shape = Shape::of(format);
        let fields = Fields::read(body, body, shape.known_fields)?;
        let (model, model_at) = model(body, &fields, shape, deployment)?;
        let is_streamed = shape.streaming.read(&fields)?;
        let (wants_usage, usage_edit) = usage_option(body, &fields)?;
        let (system, messages) = (fields.one_of(shape.system)?, fields.one_of(shape.messages)?);
        let prompts = match shape.content {
            Content::Prompts => number_of_prompts(messages),
            _ => 1,
        };
        let (limit, choices) = output_limit(body, &fields, shape, format, prompts)?;
        let limit_per_choice = limit.highest();
        let max_tokens = match choices {
            _ if format.is_embedding() || shape.content.has_no_answer() => Some(0),
            1 => limit_per_choice,
            _ => Some(limit_per_choice.unwrap_or(ANSWER_TOKENS_ASSUMED).saturating_mul(choices)),
        };
        let mut prompt = Prompt::read(body, system.into_iter().chain(messages));
        let is_set = |reference: &&RawValue| reference.get() != "null";
        if fields.one_of(shape.reference)?.filter(is_set).is_some() {
            // A template may have a newer version.
            prompt.add_reference(shape.is_responses);
        }
        let options = priced_options(body, fields.get("tools"));
        Ok(Self {
            format,
            body: body.as_bytes(),
            text: body,
            model,
            model_at,
            is_streamed,
            wants_usage,
            usage_edit,
            max_tokens,
            limit,
            prompt,
            cache_writes: cache_writes(body),
            priced_options: PricedOptions {
                is_unbounded: is_unbounded(shape, messages),
                ..options
            },
            is_background: fields.flag("background")?.unwrap_or(false),
            is_stored: format == ApiFormat::Responses && fields.flag("store")?.unwrap_or(true),
            previous_response: fields.id(body, "previous_response_id")?,
            conversation: fields.id(body, "conversation")?,
            tool_tokens: tool_tokens(format, fields.get("tools")),
            system,
            messages,
            tools: fields.get("tools"),
            models: fields.get("models"),
        })
    }

    pub(super) fn format(&self) -> ApiFormat {
        self.format
    }

    pub(super) fn messages(&self) -> Option<&'a RawValue> {
        self.messages
    }

    /// Returns the size of the prompt or of a part of it.
    pub(super) fn text_size(&self, prompt: &Prompt, has_tools: bool) -> TextSize {
        TextSize {
            bytes: prompt.text_bytes(),
            media_tokens: prompt.media_tokens(self.format),
            tool_tokens: if has_tools { self.tool_tokens } else { 0 },
        }
    }

    /// Returns the models that a router may use in place of `model`, as OpenRouter does
    /// (<https://openrouter.ai/docs/guides/routing/model-fallbacks>).
    pub fn fallback_models(&self) -> Vec<String> {
        let models = read(self.models);
        let models = models.as_array().map_or(&[][..], Vec::as_slice);
        models.iter().map(text_or_json).collect()
    }

    /// Returns the body; empty if it is a form or a batch.
    pub fn body(&self) -> &'a str {
        self.text
    }

    fn is_form(&self) -> bool {
        matches!(self.model_at, ModelPlace::FormValue(_) | ModelPlace::MissingInForm(_))
    }

    /// Parses the fields of a form, which has files. `deployment` is the model if the path names
    /// one.
    pub fn read_form(
        format: ApiFormat,
        body: &'a [u8],
        form: &Form<'_>,
        deployment: Option<&str>,
    ) -> Result<Self, ApiError> {
        let place = match form.value("model")? {
            Some((range, _)) => ModelPlace::FormValue(range),
            None => ModelPlace::MissingInForm(form.boundary.to_owned()),
        };
        let model = match (deployment, form.value("model")?) {
            (Some(model), _) => model.to_owned(),
            (None, Some((_, value))) => value.to_owned(),
            // OpenAI's default.
            (None, None) if format == ApiFormat::ImageVariations => "dall-e-2".to_owned(),
            (None, None) => {
                return Err(ApiError::bad_request("missing_model", "`model` is missing"));
            }
        };
        let choices = match form.value("n")? {
            None => 1,
            Some((_, number)) => number
                .trim()
                .parse::<u32>()
                .map_err(|_| ApiError::bad_request("bad_limit", "`n` must be a whole number"))?,
        };
        let is_streamed = match form.value("stream")?.map(|(_, value)| value.trim()) {
            None | Some("" | "false" | "False" | "0") => false,
            Some(_) => true,
        };
        Ok(Self {
            format,
            body,
            text: "",
            model: checked_name(Some(model))?,
            model_at: place,
            is_streamed,
            wants_usage: false,
            usage_edit: (0..0, ""),
            max_tokens: Some(ANSWER_TOKENS_ASSUMED.saturating_mul(choices.max(1))),
            limit: RequestLimit::default(),
            tool_tokens: 0,
            prompt: Prompt::of_bytes(body.len()),
            cache_writes: CacheWrites::None,
            priced_options: PricedOptions { is_unbounded: true, ..PricedOptions::default() },
            is_background: false,
            is_stored: false,
            previous_response: None,
            conversation: None,
            system: None,
            messages: None,
            tools: None,
            models: None,
        })
    }

    /// Adds the tokens of another request of a batch, except those of its text.
    pub fn add(&mut self, other: &ChatRequest<'_>) {
        let media = other.text_size(&other.prompt, true);
        self.prompt.add_tokens(media.media_tokens.saturating_add(media.tool_tokens));
        let limit = other.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED);
        self.max_tokens = Some(self.max_tokens.unwrap_or(0).saturating_add(limit));
        self.priced_options.has_region |= other.priced_options.has_region;
        let searches = &mut self.priced_options.searches;
        *searches = searches.saturating_add(other.priced_options.searches);
    }

    /// Describes a batch as one call without requests.
    pub fn of_batch(format: ApiFormat, body: &'a [u8], model: &str, is_unbounded: bool) -> Self {
        Self {
            format,
            body,
            text: "",
            model: model.to_owned(),
            // The batch is sent as it is; its hash is that of the body, like a form's.
            model_at: ModelPlace::FormValue(0..0),
            is_streamed: false,
            wants_usage: false,
            usage_edit: (0..0, ""),
            max_tokens: Some(0),
            limit: RequestLimit::default(),
            tool_tokens: 0,
            prompt: Prompt::of_bytes(body.len()),
            cache_writes: CacheWrites::Long,
            priced_options: PricedOptions { is_unbounded, ..PricedOptions::default() },
            is_background: false,
            is_stored: false,
            previous_response: None,
            conversation: None,
            system: None,
            messages: None,
            tools: None,
            models: None,
        }
    }

    /// Returns the body with another model and, if `asks_usage` is set, with `include_usage`.
    pub fn for_model(&self, model: &str, asks_usage: bool) -> Vec<u8> {
        self.edited(model, asks_usage, &[])
    }

    /// Like `for_model`, with further edits: ranges of the body and their new texts.
    pub fn edited(
        &self,
        model: &str,
        asks_usage: bool,
        others: &[(Range<usize>, String)],
    ) -> Vec<u8> {
        let quoted = Value::from(model).to_string();
        let (ranges, model) = match self.model_at.clone() {
            ModelPlace::Value(range) => (vec![range], quoted),
            ModelPlace::Missing(start, is_followed) => {
                let (place, end) = (start..start, if is_followed { "," } else { "" });
                (vec![place], format!(r#""model":{quoted}{end}"#))
            }
            ModelPlace::Path(ranges) if model.contains('/') => (ranges, quoted),
            ModelPlace::Path(ranges) => {
                (ranges, Value::from(format!("models/{model}")).to_string())
            }
            ModelPlace::FormValue(range) => (vec![range], model.to_owned()),
            ModelPlace::MissingInForm(boundary) => {
                let start = Range { start: 0, end: 0 };
                (vec![start], form::field(&boundary, "model", model))
            }
        };
        let mut edits: Vec<_> = ranges.into_iter().map(|range| (range, model.as_str())).collect();
        if asks_usage {
            edits.push(self.usage_edit.clone());
        }
        edits.extend(others.iter().map(|(range, text)| (range.clone(), text.as_str())));
        edits.sort_by_key(|(range, _)| range.start);
        let mut body = Vec::with_capacity(self.body.len() + 256);
        let mut done = 0;
        for (range, text) in edits {
            body.extend_from_slice(&self.body[done..range.start]);
            body.extend_from_slice(text.as_bytes());
            done = range.end;
        }
        body.extend_from_slice(&self.body[done..]);
        body
    }

    /// Returns the SHA-256 of the system text, a zero byte and the messages in their original text.
    pub fn prompt_hash(&self) -> String {
        let mut hash = Sha256::new();
        if self.is_form() {
            hash.update(self.body);
        }
        if let Some(system) = self.system.filter(|_| self.format != ApiFormat::ChatCompletions) {
            hash.update(system.get());
            hash.update([0]);
        }
        hash.update(self.messages.map_or("", RawValue::get));
        hex(&hash.finalize())
    }

    /// Returns the parsed body; null if it is a form, or nested too deep.
    pub fn document(&self) -> Value {
        serde_json::from_slice(self.body).unwrap_or_default()
    }

    /// Returns the ids of the provider's files that the request refers to.
    ///
    /// # Errors
    /// 400 if the request is nested too deep to find them.
    pub fn file_ids(&self) -> Result<Vec<String>, ApiError> {
        let mut ids = Vec::new();
        if may_contain(self.text, "file_id") {
            let document = serde_json::from_str(self.text).map_err(invalid_json)?;
            collect_file_ids(&document, &mut ids);
        }
        Ok(ids)
    }

    /// Returns all texts of the request, including tools, tool calls and tool results.
    pub fn all_texts(&self) -> String {
        let mut texts = vec![];
        if Shape::of(self.format).content != Content::Messages {
            plain_texts(&read(self.system), &mut texts);
            plain_texts(&read(self.messages), &mut texts);
            return texts.join("\n");
        }
        collect_texts(&read(self.system), &mut texts);
        let messages = read(self.messages);
        collect_parts(&read(self.system), &mut texts);
        collect_parts(&messages, &mut texts);
        texts.extend(messages.as_str().map(str::to_owned));
        for message in messages.as_array().into_iter().flatten() {
            texts.extend(message.as_str().map(str::to_owned));
            collect_texts(&message["content"], &mut texts);
            if self.shape().is_responses {
                collect_item(message, &mut texts);
            }
            let calls = message["tool_calls"].as_array().into_iter().flatten();
            for call in calls.map(|call| &call["function"]) {
                texts.extend([&call["name"], &call["arguments"]].map(text_or_json));
            }
        }
        texts.extend(self.tools.map(|tools| tools.get().to_owned()));
        texts.retain(|text| !text.is_empty());
        texts.join("\n")
    }

    /// Returns the system text and the last user message, for `echo`.
    pub fn texts(&self) -> (Option<String>, String) {
        if Shape::of(self.format).content != Content::Messages {
            return (None, self.all_texts());
        }
        let messages = read(self.messages);
        if self.shape().is_prompt {
            let system = text_of(&read(self.system));
            return (Some(system).filter(|it| !it.is_empty()), text_of(&messages));
        }
        let only = messages.as_str();
        let messages = messages.as_array().map_or(&[][..], Vec::as_slice);
        let of_role = |role: &'static str| {
            // Gemini's only content needs no role.
            let default = if self.shape().has_model_in_path { "user" } else { "" };
            let of_role =
                move |message: &&Value| message["role"].as_str().unwrap_or(default) == role;
            messages.iter().filter(of_role)
        };
        let mut system: Vec<String> =
            of_role("system").map(|message| text_of(&message["content"])).collect();
        if self.system.is_some() {
            system.push(text_of(&read(self.system)));
        }
        let system = Some(system.join("\n")).filter(|text| !text.is_empty());
        let last = of_role("user").next_back();
        let text = |message: &Value| match &message["content"] {
            Value::Null => text_of(message),
            content => text_of(content),
        };
        (system, last.map(text).or(only.map(str::to_owned)).unwrap_or_default())
    }

    /// Returns the texts to embed.
    pub fn inputs(&self) -> Vec<String> {
        match read(self.messages) {
            Value::Array(inputs) => {
                inputs.iter().map(|it| text_of(it.get("content").unwrap_or(it))).collect()
            }
            input => vec![text_of(&input)],
        }
    }

    fn shape(&self) -> &'static Shape {
        Shape::of(self.format)
    }
}

/// Returns the model, and its place in the body.
fn model(
    body: &str,
    fields: &Fields<'_>,
    shape: &Shape,
    deployment: Option<&str>,
) -> Result<(String, ModelPlace), ApiError> {
    let value = shape.model.iter().find_map(|name| fields.get(name));
    let place = match value {
        _ if shape.has_model_in_path => ModelPlace::Path(repeated_models(body, fields)),
        Some(value) => ModelPlace::Value(range_of(body, value)),
        None => ModelPlace::Missing(body.find('{').map_or(0, |at| at + 1), fields.end > 0),
    };
    let model = match (deployment, value) {
        (Some(model), _) => Some(model.to_owned()),
        (None, Some(value)) => serde_json::from_str(value.get()).ok(),
        (None, None) if shape.default_model.is_some() => shape.default_model.map(str::to_owned),
        (None, None) => {
            return Err(ApiError::bad_request("missing_model", "`model` is missing"));
        }
    };
    Ok((checked_name(model)?, place))
}

fn checked_name(model: Option<String>) -> Result<String, ApiError> {
    let is_name = |model: &String| (1..=MODEL_BYTES_MAX).contains(&model.len());
    model.filter(is_name).ok_or_else(|| {
        let message = format!("`model` must be a string of 1 to {MODEL_BYTES_MAX} bytes");
        ApiError::bad_request("bad_model", message)
    })
}

/// Returns the number of prompts of a completion: texts, or lists of tokens.
fn number_of_prompts(prompt: Option<&RawValue>) -> u32 {
    let (mut texts, mut tokens) = (0_u32, 0_u32);
    let Some(prompt) = prompt else {
        return 1;
    };
    // Fails for a text, which is one prompt.
    let _ = each_element(prompt.get(), |element| match element.get().starts_with(['"', '[']) {
        true => texts = texts.saturating_add(1),
        false => tokens = 1,
    });
    texts.saturating_add(tokens).max(1)
}

/// Adds the values of `file_id` and the lists `file_ids`.
fn collect_file_ids(value: &Value, ids: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_file_ids(item, ids)),
        Value::Object(fields) => {
            for (name, field) in fields {
                let listed = field.as_array().into_iter().flatten();
                match name.as_str() {
                    "file_id" => ids.extend(field.as_str().map(str::to_owned)),
                    "file_ids" => {
                        ids.extend(listed.filter_map(Value::as_str).map(str::to_owned));
                    }
                    _ => collect_file_ids(field, ids),
                }
            }
        }
        _ => {}
    }
}

/// Returns whether the tokens of a request have no known bound: images and sound, which may also be
/// parts of an input (<https://docs.voyageai.com/reference/multimodal-embeddings-api>).
fn is_unbounded(shape: &Shape, messages: Option<&RawValue>) -> bool {
    match shape.content {
        Content::Media => true,
        Content::Inputs => messages.is_some_and(|it| it.get().contains('{')),
        Content::Messages | Content::Prompts | Content::Texts => false,
    }
}

/// Adds all strings of a value.
fn plain_texts(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| plain_texts(item, texts)),
        Value::Object(fields) => fields.values().for_each(|field| plain_texts(field, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Returns the places where a body of Gemini's API repeats the model of the path.
fn repeated_models(body: &str, fields: &Fields<'_>) -> Vec<Range<usize>> {
    let mut places: Vec<_> = fields.get("model").map(|it| range_of(body, it)).into_iter().collect();
    let mut read = |object: &RawValue| {
        // Fails if it is not an object, which the provider refuses.
        let _ = each_field(object.get(), |name, value| {
            if name == "model" {
                places.push(range_of(body, value));
            }
        });
    };
    ["generateContentRequest", "generate_content_request"]
        .iter()
        .filter_map(|name| fields.get(name))
        .for_each(&mut read);
    if let Some(requests) = fields.get("requests") {
        let _ = each_element(requests.get(), read);
    }
    places
}

/// Parses a value of the request; null if it is missing or nested too deep.
fn read(raw: Option<&RawValue>) -> Value {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or(Value::Null)
}

/// Returns a text as it is, other values as JSON, and an empty text for null.
fn text_or_json(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Adds the texts of an item of the Responses API, besides its content: a tool call, its result, or
/// reasoning.
fn collect_item(item: &Value, texts: &mut Vec<String>) {
    texts.extend(["name", "arguments", "input"].map(|name| text_or_json(&item[name])));
    for name in ["output", "summary"] {
        collect_texts(&item[name], texts);
    }
}

/// Adds the texts of a content and its nested parts, without the data of images, sounds and files.
fn collect_texts(content: &Value, texts: &mut Vec<String>) {
    let Value::Array(parts) = content else {
        texts.extend(content.as_str().map(str::to_owned));
        return;
    };
    for part in parts {
        // Text, thinking, or a tool call.
        texts.extend(["text", "thinking", "name", "input"].map(|name| text_or_json(&part[name])));
        let source = &part["source"];
        if source["type"] == "text" {
            texts.push(text_or_json(&source["data"]));
        }
        // A tool result, or a document with parts.
        collect_texts(&part["content"], texts);
        collect_texts(&source["content"], texts);
    }
}

/// Adds the texts of Gemini's contents: of one, of a list, or of the contents within requests.
fn collect_parts(content: &Value, texts: &mut Vec<String>) {
    if content.is_null() {
        return;
    }
    for content in content.as_array().into_iter().flatten() {
        collect_parts(content, texts);
        collect_parts(&content["content"], texts);
    }
    collect_parts(&content["contents"], texts);
    for part in content["parts"].as_array().into_iter().flatten() {
        texts.push(text_or_json(&part["text"]));
        for name in ["functionCall", "functionResponse"] {
            texts
                .extend(["name", "args", "response"].map(|field| text_or_json(&part[name][field])));
        }
    }
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Object(_) => {
            let mut texts = vec![];
            collect_parts(content, &mut texts);
            texts.retain(|text| !text.is_empty());
            texts.join("\n")
        }
        Value::Array(parts) => {
            let mut of_contents = vec![];
            collect_parts(content, &mut of_contents);
            let texts = parts.iter().filter_map(|part| part["text"].as_str().or(part.as_str()));
            let texts = texts.chain(of_contents.iter().map(String::as_str));
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// Returns whether a stream should end with its usage, and the edit that requests it.
fn usage_option(
    body: &str,
    fields: &Fields<'_>,
) -> Result<(bool, (Range<usize>, &'static str)), ApiError> {
    let Some(options) = fields.get("stream_options") else {
        let option = r#","stream_options":{"include_usage":true}"#;
        return Ok((false, (fields.end..fields.end, option)));
    };
    if !options.get().starts_with('{') {
        return Ok((false, (range_of(body, options), r#"{"include_usage":true}"#)));
    }
    let inner = Fields::read(body, options.get(), &[INCLUDE_USAGE])?;
    let edit = match inner.get(INCLUDE_USAGE) {
        Some(value) => return Ok((value.get() == "true", (range_of(body, value), "true"))),
        None if inner.end == 0 => r#""include_usage":true"#,
        None => r#""include_usage":true,"#,
    };
    let start = range_of(body, options).start + 1;
    Ok((false, (start..start, edit)))
}

/// Returns the range in `body` of a value that was parsed from it.
fn range_of(body: &str, value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - body.as_ptr().addr();
    start..start + value.get().len()
}

/// Returns the output limit of each choice, and its places. If an OpenAI request has none, a limit
/// can be added.
fn output_limit(
    body: &str,
    fields: &Fields<'_>,
    shape: &Shape,
    format: ApiFormat,
    prompts: u32,
) -> Result<(RequestLimit, u32), ApiError> {
    let may_add = matches!(format, ApiFormat::ChatCompletions | ApiFormat::Responses);
    let added_at = Some(fields.end).filter(|_| may_add);
    let config = fields.one_of(shape.config)?.filter(|config| config.get() != "null");
    let inner = config.map(|it| Fields::read(body, it.get(), shape.config_fields)).transpose()?;
    let fields = inner.as_ref().unwrap_or(fields);
    let mut choices = 1;
    for name in shape.choices {
        choices = choices.max(fields.whole(name)?.map_or(1, saturating));
    }
    choices = choices.saturating_mul(prompts);
    let mut limit = RequestLimit::new(choices, added_at);
    for name in shape.limits {
        if let (Some(value), Some(tokens)) = (fields.get(name), fields.limit(name)?) {
            limit.add(range_of(body, value), tokens);
        }
    }
    for thinking in shape.thinking.iter().filter_map(|name| fields.get(name)) {
        limit.reserve_thinking(thinking);
    }
    Ok((limit, choices))
}

/// Returns the maximum tokens that the provider adds to a prompt with tools: Anthropic a system
/// prompt, and the descriptions of its own tools.
fn tool_tokens(format: ApiFormat, tools: Option<&RawValue>) -> u64 {
    let tools = read(tools);
    let Some(tools) = tools.as_array().filter(|tools| !tools.is_empty()) else {
        return 0;
    };
    match format {
        ApiFormat::Messages => {
            let is_own = |tool: &&Value| tool["type"].as_str().is_some_and(|it| it != "custom");
            TOOL_PROMPT_TOKENS_MAX * (1 + tools.iter().filter(is_own).count() as u64)
        }
        _ => 0,
    }
}

/// Returns the part that the request may ask the provider to cache: any part if the body may
/// contain the name `cache_control`, also for an hour if it may contain `ttl`, because the default is
/// five minutes (<https://platform.claude.com/docs/en/build-with-claude/prompt-caching>). JSON can
/// also write its letters as `\u0063`, which is not usual, so any such escape counts.
fn cache_writes(text: &str) -> CacheWrites {
    match (may_contain(text, "cache_control"), may_contain(text, "ttl")) {
        (true, true) => CacheWrites::Long,
        (true, false) => CacheWrites::Short,
        (false, _) => CacheWrites::None,
    }
}

fn may_contain(text: &str, name: &str) -> bool {
    let is_letter = |(at, escape): (usize, &str)| {
        matches!(text.as_bytes().get(at + escape.len()), Some(b'5'..=b'7'))
    };
    text.contains(name) || text.match_indices("\\u00").any(is_letter)
}

fn priced_options(text: &str, tools: Option<&RawValue>) -> PricedOptions {
    let tools = read(tools);
    let tools = tools.as_array().into_iter().flatten();
    let searches = tools
        .filter(|tool| tool["type"].as_str().is_some_and(|it| it.starts_with("web_search")))
        .map(|tool| tool["max_uses"].as_u64().unwrap_or(SEARCHES_ASSUMED));
    PricedOptions {
        is_unbounded: false,
        has_region: may_contain(text, "inference_geo"),
        searches: searches.fold(0, u64::saturating_add),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<ChatRequest<'_>, ApiError> {
        ChatRequest::read(ApiFormat::ChatCompletions, body.as_bytes(), None)
    }

    #[test]
    fn all_texts_include_tools_tool_calls_and_results() {
        let texts = |body: &str| read(body).unwrap().all_texts();
        let body = r#"{"model":"m","tools":[{"function":{"name":"look"}}],"messages":[
            {"role":"user","content":"a"},
            {"role":"assistant","content":null,"tool_calls":[{"id":"x","function":{"name":"f","arguments":"{\"b\":1}"}}]},
            {"role":"tool","tool_call_id":"x","content":[{"type":"text","text":"c"}]}]}"#;
        assert_eq!(texts(body), "a\nf\n{\"b\":1}\nc\n[{\"function\":{\"name\":\"look\"}}]");
        let body = r#"{"model":"m","system":[{"type":"text","text":"s"}],"messages":[
            {"role":"assistant","content":[{"type":"tool_use","id":"x","name":"f","input":{"b":1}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":[
                {"type":"text","text":"c"},{"type":"image","source":{"type":"base64","data":"AAAA"}}]}]},
            {"role":"user","content":[
                {"type":"tool_result","content":"d"},
                {"type":"document","source":{"type":"text","data":"e"}},
                {"type":"document","source":{"type":"content","content":[{"type":"text","text":"g"}]}}]}]}"#;
        assert_eq!(texts(body), "s\nf\n{\"b\":1}\nc\nd\ne\ng");
    }

    #[test]
    fn a_byte_order_mark_is_not_forwarded() {
        let body = r#"{"model":"a","stream":true,"messages":[]}"#;
        let marked = format!("\u{feff}{body}");
        let request = read(&marked).unwrap();
        for asks_usage in [false, true] {
            let expected = read(body).unwrap().for_model("b", asks_usage);
            assert_eq!(request.for_model("b", asks_usage), expected);
        }
        assert!(read(&format!("\u{feff}{marked}")).is_err());
    }

    #[test]
    fn possible_cache_markers_are_detected() {
        for (content, expected) in [
            (r#""Hi""#, CacheWrites::None),
            (r#""\u00e9 \u001b""#, CacheWrites::None),
            (
                r#"[{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]"#,
                CacheWrites::Short,
            ),
            (
                r#"[{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]"#,
                CacheWrites::Long,
            ),
            (
                r#"[{"type": "text", "text": "Hi", "cache\u005fcontrol": {"type": "ephemeral"}}]"#,
                CacheWrites::Long,
            ),
            (
                r#"[{"type": "text", "text": "Hi", "\u0063ache_control": {"type": "ephemeral"}}]"#,
                CacheWrites::Long,
            ),
        ] {
            let body = format!(
                r#"{{"model": "m", "messages": [{{"role": "user", "content": {content}}}]}}"#
            );
            assert_eq!(read(&body).unwrap().cache_writes, expected, "{body}");
        }
    }

    fn read_response(body: &str) -> Result<ChatRequest<'_>, ApiError> {
        ChatRequest::read(ApiFormat::Responses, body.as_bytes(), None)
    }

    #[test]
    fn a_response_request_has_its_own_fields() {
        let body = r#"{"model":"m","stream":true,"instructions":"s","max_output_tokens":7,
            "max_tokens":9,"n":3,"input":[{"role":"developer","content":"d"},
            {"role":"user","content":[{"type":"input_text","text":"a"}]},
            {"type":"function_call","name":"f","arguments":"{\"b\":1}"},
            {"type":"function_call_output","output":"c"},
            {"type":"function_call_output","output":[{"type":"input_text","text":"e"}]},
            {"type":"reasoning","summary":[{"type":"summary_text","text":"g"}],"encrypted_content":"h"}]}"#;
        let request = read_response(body).unwrap();
        assert!(request.is_streamed && request.is_stored && !request.is_background);
        assert_eq!(request.max_tokens, Some(7));
        assert_eq!(request.texts(), (Some("s".into()), "a".into()));
        assert_eq!(request.all_texts(), "s\nd\na\nf\n{\"b\":1}\nc\ne\ng");
        let request = read_response(r#"{"model":"m","input":"Hi","store":false}"#).unwrap();
        assert_eq!(request.texts(), (None, "Hi".into()));
        assert_eq!(request.all_texts(), "Hi");
        assert!(!request.is_stored);
        assert_ne!(request.prompt_hash(), read_response(body).unwrap().prompt_hash());
    }

    #[test]
    fn a_response_request_names_what_it_continues() {
        let body = r#"{"model":"m","previous_response_id":"resp_1","background":true}"#;
        let request = read_response(body).unwrap();
        assert!(request.is_background);
        assert_eq!(request.previous_response.as_deref(), Some("resp_1"));
        for conversation in [r#""conv_1""#, r#"{"id":"conv_1"}"#] {
            let body = format!(r#"{{"model":"m","conversation":{conversation}}}"#);
            let request = read_response(&body).unwrap();
            assert_eq!(request.conversation.as_deref(), Some("conv_1"));
        }
        for (fields, code) in [
            (r#""conversation":{"id":"a","id":"b"}"#, "ambiguous"),
            (r#""conversation":{}"#, "bad_id"),
            (r#""previous_response_id":7"#, "bad_id"),
            (r#""previous_response_id":"a","previous_response_id":"b""#, "ambiguous"),
            (r#""background":1"#, "bad_value"),
            (r#""store":"no""#, "bad_value"),
        ] {
            let body = format!(r#"{{"model":"m",{fields}}}"#);
            assert_eq!(read_response(&body).unwrap_err().code, code, "{body}");
        }
        let plain = read_response(r#"{"model":"m","prompt":null}"#).unwrap().prompt;
        let body = r#"{"model":"m","prompt":{"id":"pmpt_1"}}"#;
        let template = read_response(body).unwrap().prompt;
        let tokens = |prompt: Prompt| prompt.media_tokens(ApiFormat::Responses);
        assert!(tokens(template) >= tokens(plain) + 1_000_000);
    }

    fn rewritten(body: &str, asks_usage: bool) -> String {
        let asked = read(body).unwrap();
        String::from_utf8(asked.for_model("new", asks_usage)).unwrap()
    }

    #[test]
    fn only_the_model_is_replaced() {
        let body = "{ \"a\" : 1.0e+2,\"model\":\t\"p\\/old\" , \"n\":123456789012345678901234567890.10,\n \"x\": {\"model\":\"p/old\"}, \"a\":2}";
        assert_eq!(rewritten(body, false), body.replacen("\"p\\/old\"", "\"new\"", 1));
        assert_eq!(read(body).unwrap().model, "p/old");
    }

    #[test]
    fn a_deployment_replaces_the_model_of_the_body() {
        for (body, expected) in [
            (r#"{"messages":[]}"#, r#"{"model":"new","messages":[]}"#),
            (r#" { } "#, r#" {"model":"new" } "#),
            (r#"{"model":"x","n":1}"#, r#"{"model":"new","n":1}"#),
        ] {
            let format = ApiFormat::ChatCompletions;
            let request = ChatRequest::read(format, body.as_bytes(), Some("named")).unwrap();
            assert_eq!(request.model, "named");
            assert_eq!(String::from_utf8(request.for_model("new", false)).unwrap(), expected);
        }
    }

    #[test]
    fn usage_is_requested_beside_the_client_options() {
        assert_eq!(
            rewritten(r#"{"model":"m","stream":true }"#, true),
            r#"{"model":"new","stream":true,"stream_options":{"include_usage":true} }"#
        );
        assert_eq!(
            rewritten(
                r#"{"stream_options":{"include_obfuscation":false,"include_usage":false},"model":"m"}"#,
                true
            ),
            r#"{"stream_options":{"include_obfuscation":false,"include_usage":true},"model":"new"}"#
        );
        assert_eq!(
            rewritten(r#"{"model":"m","stream_options":null}"#, true),
            r#"{"model":"new","stream_options":{"include_usage":true}}"#
        );
        assert_eq!(
            rewritten(r#"{"model":"m","stream_options":{ }}"#, true),
            r#"{"model":"new","stream_options":{"include_usage":true }}"#
        );
        assert_eq!(
            rewritten(
                r#"{"model":"m","stream_options":{ "x": 1.10,"big":123456789012345678901234567890, "a" :[] }}"#,
                true
            ),
            r#"{"model":"new","stream_options":{"include_usage":true, "x": 1.10,"big":123456789012345678901234567890, "a" :[] }}"#
        );
        for (options, expected) in [
            (r#"{"include_usage":true}"#, true),
            (r#"{"include_usage": false, "x":true}"#, false),
            ("{}", false),
            ("null", false),
        ] {
            let body = format!(r#"{{"model":"m","stream_options":{options}}}"#);
            assert_eq!(read(&body).unwrap().wants_usage, expected, "{body}");
        }
    }

    #[test]
    fn invalid_and_ambiguous_requests_are_refused() {
        for (body, code) in [
            ("", "invalid_json"),
            ("[]", "invalid_json"),
            ("{\"model\":\"m\"} x", "invalid_json"),
            ("{}", "missing_model"),
            (r#"{"model":7}"#, "bad_model"),
            (r#"{"model":""}"#, "bad_model"),
            (r#"{"model":"a","model":"b"}"#, "ambiguous"),
            (r#"{"model":"a","stream":true,"stream":false}"#, "ambiguous"),
            (r#"{"model":"a","mode\u006c":"b"}"#, "ambiguous"),
            (r#"{"model":"a","stream":"yes"}"#, "bad_stream"),
            (r#"{"model":"a","Model":"b"}"#, "ambiguous"),
            (r#"{"model":"a","MAX_TOKENS":1}"#, "ambiguous"),
            (r#"{"model":"a","max_tokens":1,"max_tokens":90000000}"#, "ambiguous"),
            (r#"{"model":"a","n":1,"n":1}"#, "ambiguous"),
            (r#"{"model":"a","messages":[],"messages":[]}"#, "ambiguous"),
            (
                r#"{"model":"a","stream_options":{"include_usage":true,"include_usage":false}}"#,
                "ambiguous",
            ),
        ] {
            assert_eq!(read(body).unwrap_err().code, code, "{body}");
        }
    }

    #[test]
    fn the_token_limit_covers_all_choices() {
        for (fields, expected) in [
            ("", None),
            (r#","max_tokens":null,"n":null"#, None),
            (r#","max_tokens":10"#, Some(10)),
            (r#","max_tokens":0"#, Some(0)),
            (r#","max_tokens":10,"max_completion_tokens":20"#, Some(20)),
            (r#","max_tokens":20,"max_completion_tokens":10"#, Some(20)),
            (r#","max_tokens":10,"max_completion_tokens":null"#, Some(10)),
            (r#","max_tokens":10,"n":3"#, Some(30)),
            (r#","max_tokens":10,"n":3.0"#, Some(30)),
            (r#","n":2"#, Some(2 * ANSWER_TOKENS_ASSUMED)),
            (r#","max_tokens":9e7"#, Some(90_000_000)),
            (r#","max_tokens":90000000.0"#, Some(90_000_000)),
            (r#","max_tokens":4294967295,"n":3"#, Some(u32::MAX)),
            (r#","max_tokens":99999999999999999999"#, Some(u32::MAX)),
            (r#","max_tokens":-1"#, Some(ANSWER_TOKENS_ASSUMED)),
        ] {
            let body = format!(r#"{{"model":"m"{fields}}}"#);
            assert_eq!(read(&body).unwrap().max_tokens, expected, "{body}");
        }
        for value in ["1.5", "1e400", "\"10\"", "true", "[]", "{}"] {
            for name in ["max_tokens", "max_completion_tokens", "n"] {
                let body = format!(r#"{{"model":"m","{name}":{value}}}"#);
                assert_eq!(read(&body).unwrap_err().code, "bad_limit", "{body}");
            }
        }
    }

    #[test]
    fn a_limit_beyond_the_reservation_is_not_lowered() {
        for (prompt, is_lowered) in [(r#""a""#, true), (r#"["a","b"]"#, false)] {
            let body = format!(r#"{{"model":"m","prompt":{prompt},"max_tokens":3000000000}}"#);
            let request = ChatRequest::read(ApiFormat::Completions, body.as_bytes(), None).unwrap();
            assert_eq!(request.limit.output().is_some(), is_lowered, "{body}");
        }
    }

    #[test]
    fn limits_of_other_formats_cover_all_answers() {
        for (format, body, expected, is_unbounded) in [
            (ApiFormat::Completions, r#"{"model":"m","prompt":"a"}"#, None, false),
            (
                ApiFormat::Completions,
                r#"{"model":"m","prompt":["a","b"],"max_tokens":7,"n":2,"best_of":3}"#,
                Some(42),
                false,
            ),
            (
                ApiFormat::Completions,
                r#"{"model":"m","prompt":[1,2,3],"max_tokens":7}"#,
                Some(7),
                false,
            ),
            (
                ApiFormat::Completions,
                r#"{"model":"m","prompt":[[1,2],[3]],"max_tokens":7}"#,
                Some(14),
                false,
            ),
            (ApiFormat::Embeddings, r#"{"model":"m","input":["a","b"]}"#, Some(0), false),
            (
                ApiFormat::Embeddings,
                r#"{"model":"m","input":[{"image":"https://a/b"}]}"#,
                Some(0),
                true,
            ),
            (ApiFormat::Moderations, r#"{"model":"m","input":"a"}"#, Some(0), false),
            (
                ApiFormat::Rerank,
                r#"{"model":"m","query":"a","documents":[{"text":"b"}]}"#,
                Some(0),
                false,
            ),
            (ApiFormat::Images, r#"{"model":"m","prompt":"a"}"#, None, true),
        ] {
            let request = ChatRequest::read(format, body.as_bytes(), None).unwrap();
            assert_eq!(request.max_tokens, expected, "{body}");
            assert_eq!(request.priced_options.is_unbounded, is_unbounded, "{body}");
        }
        let body = r#"{"model":"m","query":"q","documents":["a",{"text":"b"}]}"#;
        let request = ChatRequest::read(ApiFormat::Rerank, body.as_bytes(), None).unwrap();
        assert_eq!(request.all_texts(), "q\na\nb");
    }

    #[test]
    fn moderations_have_a_default_model() {
        let body = br#"{"input": "a"}"#;
        let request = ChatRequest::read(ApiFormat::Moderations, body, None).unwrap();
        assert_eq!(request.model, "omni-moderation-latest");
        let sent: Value =
            serde_json::from_slice(&request.for_model(&request.model, false)).unwrap();
        assert_eq!(sent, serde_json::json!({"model": "omni-moderation-latest", "input": "a"}));
        let named = ChatRequest::read(ApiFormat::Moderations, b"{}", Some("m")).unwrap();
        assert_eq!(named.model, "m");
        let missing = ChatRequest::read(ApiFormat::Embeddings, body, None);
        assert_eq!(missing.err().map(|error| error.code), Some("missing_model"));
    }

    #[test]
    fn only_the_model_of_a_form_is_replaced() {
        let body = b"--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nopenai/whisper-1\r\n--b\r\n\
            content-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\xff\r\n\x00\r\n--b--\r\n";
        let form = Form::read(body, "b").unwrap();
        let request = ChatRequest::read_form(ApiFormat::Transcriptions, body, &form, None).unwrap();
        assert_eq!((&*request.model, request.is_streamed), ("openai/whisper-1", false));
        let sent = request.for_model("whisper-1", false);
        assert_eq!(sent.len(), body.len() - "openai/".len());
        let again = Form::read(&sent, "b").unwrap();
        assert_eq!(again.value("model").unwrap().unwrap().1, "whisper-1");
        let body = b"--b\r\ncontent-disposition: form-data; name=\"n\"\r\n\r\n2\r\n--b--\r\n";
        let form = Form::read(body, "b").unwrap();
        let read =
            |deployment| ChatRequest::read_form(ApiFormat::ImageEdits, body, &form, deployment);
        assert_eq!(read(None).unwrap_err().code, "missing_model");
        let sent = read(Some("x")).unwrap().for_model("x", false);
        let again = Form::read(&sent, "b").unwrap();
        assert_eq!(again.value("model").unwrap().unwrap().1, "x");
        assert_eq!(again.value("n").unwrap().unwrap().1, "2");
    }

    #[test]
    fn echo_receives_the_last_user_text() {
        let body = r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},
            {"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url"},{"type":"text","text":"c"}]}]}"#;
        assert_eq!(read(body).unwrap().texts(), (Some("s".into()), "b\nc".into()));
    }

    fn gemini(format: ApiFormat, body: &str) -> ChatRequest<'_> {
        ChatRequest::read(format, body.as_bytes(), Some("p/m")).unwrap()
    }

    #[test]
    fn the_model_of_a_path_is_replaced_wherever_the_body_repeats_it() {
        for (format, body, expected) in [
            (ApiFormat::GenerateContent, r#"{"contents":[]}"#, r#"{"contents":[]}"#),
            (
                ApiFormat::ContentTokenCount,
                r#"{"generateContentRequest":{"model":"models/p/m","contents":[]}}"#,
                r#"{"generateContentRequest":{"model":"models/new","contents":[]}}"#,
            ),
            (
                ApiFormat::BatchEmbedContents,
                r#"{"requests":[{"model": "models/p/m","content":{"model":1}},{"x":1,"model":"models\/p\/m"}]}"#,
                r#"{"requests":[{"model": "models/new","content":{"model":1}},{"x":1,"model":"models/new"}]}"#,
            ),
            (
                ApiFormat::EmbedContent,
                r#"{"model":"models/p/m","content":{}}"#,
                r#"{"model":"models/new","content":{}}"#,
            ),
        ] {
            let request = gemini(format, body);
            assert_eq!(request.model, "p/m");
            assert_eq!(String::from_utf8(request.for_model("new", false)).unwrap(), expected);
        }
    }

    #[test]
    fn the_limit_of_gemini_covers_all_candidates() {
        for (config, expected) in [
            ("{}", None),
            ("null", None),
            (r#"{"maxOutputTokens":10}"#, Some(10)),
            (r#"{"max_output_tokens":10,"candidate_count":3}"#, Some(30)),
            (r#"{"candidateCount":2}"#, Some(2 * ANSWER_TOKENS_ASSUMED)),
        ] {
            for name in ["generationConfig", "generation_config"] {
                let body = format!(r#"{{"contents":[],"{name}":{config}}}"#);
                let request = gemini(ApiFormat::ContentStream, &body);
                assert_eq!(request.max_tokens, expected, "{body}");
                assert!(request.is_streamed);
            }
        }
        let read = |body: &str| {
            let request = ChatRequest::read(ApiFormat::ContentArray, body.as_bytes(), Some("m"));
            request.map(|request| request.max_tokens).map_err(|refusal| refusal.code)
        };
        for (format, body, thinking_tokens, expected) in [
            (
                ApiFormat::GenerateContent,
                r#"{"generationConfig":{"maxOutputTokens": 900,"thinkingConfig":{"thinkingBudget":50}}}"#,
                50,
                r#"{"generationConfig":{"maxOutputTokens": 100,"thinkingConfig":{"thinkingBudget":50}}}"#,
            ),
            (
                ApiFormat::OllamaChat,
                r#"{"model":"m","options":{"num_predict":-1}}"#,
                0,
                r#"{"model":"m","options":{"num_predict":100}}"#,
            ),
        ] {
            let request = ChatRequest::read(format, body.as_bytes(), Some("m")).unwrap();
            assert_eq!(request.limit.output().unwrap().thinking_tokens, thinking_tokens);
            let edits = request.limit.edits(100, "max_tokens");
            let lowered = request.edited("m", false, &edits);
            assert_eq!(String::from_utf8(lowered).unwrap(), expected);
        }
        let both = r#"{"generationConfig":{},"generation_config":{"maxOutputTokens":9}}"#;
        assert_eq!(read(both), Err("ambiguous"));
        assert_eq!(read(r#"{"generationConfig":[]}"#), Err("invalid_json"));
        let embedding = gemini(ApiFormat::EmbedContent, r#"{"content":{"parts":[]}}"#);
        assert_eq!(embedding.max_tokens, Some(0));
    }

    #[test]
    fn texts_of_gemini_are_those_of_its_parts() {
        let body = r#"{"systemInstruction":{"parts":[{"text":"s"}]},"tools":[{"x":1}],"contents":[
            {"role":"user","parts":[{"text":"a"}]},
            {"role":"model","parts":[{"functionCall":{"name":"f","args":{"b":1}}}]},
            {"role":"user","parts":[{"functionResponse":{"name":"f","response":{"c":2}}},{"text":"d"}]}]}"#;
        let request = gemini(ApiFormat::GenerateContent, body);
        assert_eq!(request.all_texts(), "s\na\nf\n{\"b\":1}\nf\n{\"c\":2}\nd\n[{\"x\":1}]");
        let (system, prompt) = request.texts();
        assert_eq!((system.as_deref(), &*prompt), (Some("s"), "f\n{\"c\":2}\nd"));
        let body = r#"{"contents":[{"parts":[{"text":"Hi"}]}]}"#;
        assert_eq!(gemini(ApiFormat::GenerateContent, body).texts(), (None, "Hi".into()));
        for (format, body) in [
            (ApiFormat::EmbedContent, r#"{"content":{"parts":[{"text":"a"},{"text":"b"}]}}"#),
            (
                ApiFormat::BatchEmbedContents,
                r#"{"requests":[{"content":{"parts":[{"text":"a"}]}},{"content":{"parts":[{"text":"b"}]}}]}"#,
            ),
            (
                ApiFormat::ContentTokenCount,
                r#"{"generateContentRequest":{"contents":[{"parts":[{"text":"a"},{"text":"b"}]}]}}"#,
            ),
        ] {
            assert_eq!(gemini(format, body).all_texts(), "a\nb", "{body}");
        }
        let cached = gemini(ApiFormat::GenerateContent, r#"{"cachedContent":"cachedContents/x"}"#);
        let plain = gemini(ApiFormat::GenerateContent, r#"{"otherContent_":"cachedContents/x"}"#);
        let tokens =
            |request: &ChatRequest<'_>| request.prompt.media_tokens(ApiFormat::GenerateContent);
        assert_eq!((tokens(&cached), tokens(&plain)), (1_000_000, 0));
    }

    #[test]
    fn ollama_streams_unless_the_request_says_no() {
        let read = |format, body: &str| {
            let request = ChatRequest::read(format, body.as_bytes(), None).unwrap();
            (request.is_streamed, request.max_tokens, request.all_texts(), request.texts().1)
        };
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"a"}]"#;
        let texts = || ("a".to_owned(), "a".to_owned());
        for (format, fields, expected) in [
            (ApiFormat::OllamaChat, format!("{chat}}}"), (true, None)),
            (ApiFormat::OllamaChat, format!(r#"{chat},"stream":false}}"#), (false, None)),
            (
                ApiFormat::OllamaChat,
                format!(r#"{chat},"stream":null,"options":{{"num_predict":7}}}}"#),
                (true, Some(7)),
            ),
            (
                ApiFormat::OllamaGenerate,
                r#"{"model":"m","prompt":"a","options":{"num_predict":-1}}"#.into(),
                (true, Some(ANSWER_TOKENS_ASSUMED)),
            ),
            (ApiFormat::OllamaEmbed, r#"{"model":"m","input":["a"]}"#.into(), (false, Some(0))),
            (ApiFormat::OllamaEmbeddings, r#"{"model":"m","prompt":"a"}"#.into(), (false, Some(0))),
        ] {
            let (is_streamed, max_tokens, all, last) = read(format, &fields);
            assert_eq!((is_streamed, max_tokens), expected, "{fields}");
            assert_eq!((all, last), texts(), "{fields}");
        }
        let body = r#"{"name":"p/m","verbose":true}"#;
        let show = ChatRequest::read(ApiFormat::OllamaShow, body.as_bytes(), None).unwrap();
        assert_eq!(show.for_model("m", false), br#"{"name":"m","verbose":true}"#);
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(
            body in prop::collection::vec(any::<u8>(), 0..200),
            value in "[\\[\\]{}\",:a0]{0,20}",
            format in prop::sample::select(&[
                ApiFormat::ChatCompletions, ApiFormat::Messages, ApiFormat::Responses,
                ApiFormat::ContentStream, ApiFormat::ContentTokenCount, ApiFormat::EmbedContent,
                ApiFormat::BatchEmbedContents, ApiFormat::OllamaChat, ApiFormat::OllamaGenerate,
                ApiFormat::OllamaEmbed, ApiFormat::OllamaShow,
            ][..]),
        ) {
            let _ = ChatRequest::read(format, &body, Some("m"));
            for name in Shape::of(format).known_fields {
                let body = format!(r#"{{"model":"m","{name}":{value}}}"#);
                if let Ok(request) = ChatRequest::read(format, body.as_bytes(), Some("m")) {
                    let _ = (request.all_texts(), request.texts(), request.for_model("n", true));
                }
            }
        }

        #[test]
        fn other_fields_keep_their_bytes(before in "[ \\n]{0,3}", value in "-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?", after in "[ \\t]{0,3}") {
            let body = format!("{before}{{\"x\":{value}{after},\"model\":\"m\"}}");
            let expected = format!("{before}{{\"x\":{value}{after},\"model\":\"new\"}}");
            prop_assert_eq!(rewritten(&body, false), expected);
        }
    }
}
