//! Parses the parts of a client's request body that flowledger needs, and builds the forwarded
//! body: byte for byte the client's, except for the model and, if usage would be unknown otherwise,
//! one option. Pure.

mod fields;
mod shape;
mod texts;

use std::ops::Range;

use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use self::fields::{Fields, invalid_json, range_of, saturating};
use self::shape::{Content, Shape};
use self::texts::{
    collect_item, collect_parts, collect_texts, plain_texts, read, text_of, text_or_json,
};
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
        self.text_size_in(self.format, prompt, has_tools)
    }

    /// Returns the size at a provider that gets the request in `format`.
    pub(super) fn text_size_in(
        &self,
        format: ApiFormat,
        prompt: &Prompt,
        has_tools: bool,
    ) -> TextSize {
        let tool_tokens = match format {
            ApiFormat::Messages if self.tools.is_some() => {
                self.tool_tokens.max(TOOL_PROMPT_TOKENS_MAX)
            }
            _ => self.tool_tokens,
        };
        TextSize {
            bytes: prompt.text_bytes(),
            media_tokens: prompt.media_tokens(format),
            tool_tokens: if has_tools { tool_tokens } else { 0 },
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
        let model = checked_name(Some(model))?;
        Ok(Self {
            model_at: place,
            is_streamed,
            max_tokens: Some(ANSWER_TOKENS_ASSUMED.saturating_mul(choices.max(1))),
            cache_writes: CacheWrites::None,
            ..Self::of_batch(format, body, &model, true)
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
mod tests;
