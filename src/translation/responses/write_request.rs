//! Writes a request for a provider.

use super::super::dropped::Dropped;
use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::item::{
    IS_ITEM, call_names, is_unsigned, kind_of_tool, object, result_type, split_name, text_type,
    write_content, write_model_item, write_tool,
};
use super::models::Model;
use super::read_request::plain_text;
use super::settings;
use crate::translation::{
    Api, Conversation, Media, Part, PartKind, Refusal, Role, Source, Target, Tool, ToolChoice,
    ToolKind, ToolNames, Turn, Written,
};

/// OpenAI rejects longer ids of calls: <https://github.com/decolua/9router/issues/393>.
const CALL_ID_CHARS_MAX: usize = 64;

/// Writes a request for a provider. Other fields of a client of this API are kept.
///
/// # Errors
/// The API cannot express a field that changes the meaning of the answer.
pub fn write_request(conversation: &Conversation, _: &Target) -> Result<Written, Refusal> {
    let mut writer = RequestWriter::new(conversation);
    let mut body = Map::new();
    if !conversation.model.is_empty() {
        body.insert("model".to_owned(), json!(conversation.model));
    }
    writer.write_instructions(&mut body);
    let input = writer.input()?;
    if !writer.is_own || !input.is_empty() {
        body.insert("input".to_owned(), Value::Array(input));
    }
    writer.write_tools(&mut body)?;
    if conversation.is_streamed {
        body.insert("stream".to_owned(), Value::Bool(true));
    }
    if writer.is_own {
        settings::write_own(conversation, &mut body);
    } else {
        settings::write_foreign(conversation, &mut body, &mut writer.dropped)?;
    }
    Ok(Written { body: Value::Object(body), dropped: writer.dropped.0, names: writer.names })
}

struct RequestWriter<'a> {
    conversation: &'a Conversation,
    /// True if the client uses this API.
    is_own: bool,
    /// Models without reasoning also reject earlier one:
    /// <https://github.com/openai/openai-agents-python/issues/569>.
    can_reason: bool,
    names: ToolNames,
    /// The ids of earlier calls of custom tools.
    custom_calls: HashSet<&'a str>,
    dropped: Dropped,
}

/// The place of a part in `input`.
enum Placed {
    Item(Map<String, Value>),
    Content(Map<String, Value>),
    Nowhere,
}

impl<'a> RequestWriter<'a> {
    fn new(conversation: &'a Conversation) -> Self {
        Self {
            conversation,
            is_own: conversation.api == Api::Responses,
            can_reason: Model::read(&conversation.model).is_none_or(Model::can_reason),
            names: ToolNames::new(conversation, true),
            custom_calls: HashSet::new(),
            dropped: Dropped::default(),
        }
    }

    fn write_instructions(&mut self, body: &mut Map<String, Value>) {
        let mut texts = Vec::new();
        for part in &self.conversation.system {
            if let PartKind::Text(text) = &part.kind
                && (self.is_own || !text.is_empty())
            {
                texts.push(text.as_str());
            }
            if !self.is_own {
                self.dropped.add_all("system[*]", &part.extra);
            }
        }
        if !texts.is_empty() {
            body.insert("instructions".to_owned(), json!(texts.join("\n\n")));
        }
    }

    fn input(&mut self) -> Result<Vec<Value>, Refusal> {
        let mut items = Vec::new();
        for (index, turn) in self.conversation.turns.iter().enumerate() {
            self.write_turn(index, turn, &mut items)?;
        }
        if !self.is_own {
            remove_loose_reasoning(&mut items);
        }
        Ok(items)
    }

    fn write_turn(
        &mut self,
        index: usize,
        turn: &'a Turn,
        items: &mut Vec<Value>,
    ) -> Result<(), Refusal> {
        let mut content = Vec::new();
        // An empty message of this API is kept, but a message is not made of items.
        let mut has_item = false;
        for (position, part) in turn.parts.iter().enumerate() {
            match self.place(part, turn.role, &path(self.conversation.api, index, position))? {
                Placed::Content(part) => content.push(Value::Object(part)),
                Placed::Nowhere => has_item = true,
                Placed::Item(item) => {
                    if !content.is_empty() {
                        items.push(self.message(turn, std::mem::take(&mut content)));
                    }
                    has_item = true;
                    items.push(Value::Object(item));
                }
            }
        }
        if !content.is_empty() || self.is_own && !has_item {
            items.push(self.message(turn, content));
        }
        if !self.is_own {
            self.dropped.add_all(list_name(self.conversation.api), &turn.extra);
        }
        Ok(())
    }

    fn message(&self, turn: &Turn, content: Vec<Value>) -> Value {
        let role = match turn.role {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let mut message = object([
            ("type", Some("message".into())),
            ("role", Some(role.into())),
            ("content", Some(Value::Array(content))),
        ]);
        if self.is_own {
            message.extend(turn.extra.clone());
        }
        Value::Object(message)
    }

    fn place(&mut self, part: &'a Part, role: Role, path: &str) -> Result<Placed, Refusal> {
        let placed = match &part.kind {
            PartKind::ToolCall { .. } | PartKind::Thinking(_) => match self.model_item(part) {
                Some(item) => Placed::Item(item),
                None => return Ok(Placed::Nowhere),
            },
            PartKind::ToolResult { id, content, is_error } => {
                if *is_error {
                    self.dropped.add(format!("{}.is_error", list_name(self.conversation.api)));
                }
                let output = self.output(content, path)?;
                Placed::Item(object([
                    ("type", Some(result_type(self.custom_calls.contains(id.as_str())).into())),
                    ("call_id", Some(json!(self.call_id(id)))),
                    ("output", Some(output)),
                ]))
            }
            PartKind::Other(value) if self.is_own => {
                let fields = value.as_object().cloned().unwrap_or_default();
                let is_item = part.extra.contains_key(IS_ITEM);
                return Ok(if is_item { Placed::Item(fields) } else { Placed::Content(fields) });
            }
            PartKind::Text(text) if text.is_empty() && !self.is_own => Placed::Nowhere,
            _ => Placed::Content(self.content(part, role, path)?),
        };
        if !self.is_own {
            self.drop_part_extra(part);
            return Ok(placed);
        }
        // The content of a message has its fields already.
        Ok(match placed {
            Placed::Item(mut item) => {
                item.extend(part.extra.clone());
                Placed::Item(item)
            }
            other => other,
        })
    }

    /// Writes a call or reasoning; none for thoughts of another API's model.
    fn model_item(&mut self, part: &'a Part) -> Option<Map<String, Value>> {
        let PartKind::ToolCall { id, name, arguments, is_custom } = &part.kind else {
            let is_own = match &part.signature {
                Some(signature) => signature.api == Api::Responses,
                None => self.is_own && !has_foreign_text(part),
            };
            let is_kept = is_own && (self.is_own || self.can_reason);
            return is_kept.then(|| write_model_item(part)).flatten();
        };
        if *is_custom {
            self.custom_calls.insert(id);
        }
        if self.is_own {
            return write_model_item(part);
        }
        let (kind, field) = call_names(*is_custom);
        let is_empty = arguments.is_empty() && !*is_custom;
        Some(object([
            ("type", Some(kind.into())),
            ("call_id", Some(json!(self.call_id(id)))),
            ("name", Some(json!(self.names.at_provider(name)))),
            (field, Some(if is_empty { "{}".into() } else { json!(arguments) })),
        ]))
    }

    fn call_id(&self, id: &str) -> String {
        let is_accepted = self.is_own || id.chars().count() <= CALL_ID_CHARS_MAX;
        if is_accepted { id.to_owned() } else { self.names.at_provider(id) }
    }

    fn output(&mut self, content: &'a [Part], path: &str) -> Result<Value, Refusal> {
        // Compatible servers may only know the text form.
        if let [part] = content
            && let Some(text) = plain_text(part)
        {
            return Ok(json!(text));
        }
        let mut parts = Vec::new();
        for part in content {
            let is_empty = matches!(&part.kind, PartKind::Text(text) if text.is_empty());
            if !is_empty || self.is_own {
                parts.push(Value::Object(self.content(part, Role::User, path)?));
            }
            if !self.is_own {
                self.drop_part_extra(part);
            }
        }
        let is_empty = parts.is_empty() && !self.is_own;
        Ok(if is_empty { "".into() } else { Value::Array(parts) })
    }

    fn content(
        &mut self,
        part: &Part,
        role: Role,
        path: &str,
    ) -> Result<Map<String, Value>, Refusal> {
        if self.is_own {
            if let PartKind::Other(Value::Object(fields)) = &part.kind {
                return Ok(fields.clone());
            }
            let mut content = write_content(&part.kind, role).unwrap_or_default();
            content.extend(part.extra.clone());
            return Ok(content);
        }
        let refused = || Refusal::not_expressible(path, Api::Responses);
        match &part.kind {
            PartKind::Text(_) => {}
            PartKind::Refusal(_) if role == Role::Assistant => {}
            PartKind::Refusal(text) => {
                return Ok(object([
                    ("type", Some(text_type(role).into())),
                    ("text", Some(json!(text))),
                ]));
            }
            // The model's own messages have only texts.
            PartKind::Image(media) | PartKind::Document(media)
                if role != Role::Assistant && self.has_source(media) => {}
            _ => return Err(refused()),
        }
        let mut content = write_content(&part.kind, role).ok_or_else(refused)?;
        match &part.kind {
            PartKind::Image(_) => {
                content.insert("detail".to_owned(), image_detail(part));
            }
            // Required beside `file_data`: <https://github.com/laravel/ai/pull/324>.
            PartKind::Document(Media { source: Source::Data { media_type, .. }, name: None }) => {
                let name = if media_type.starts_with("text/") { "file.txt" } else { "file.pdf" };
                content.insert("filename".to_owned(), name.into());
            }
            _ => {}
        }
        Ok(content)
    }

    /// Files of chat completions are also OpenAI's.
    fn has_source(&self, media: &Media) -> bool {
        !matches!(media.source, Source::File(_)) || self.conversation.api == Api::Chat
    }

    fn drop_part_extra(&mut self, part: &Part) {
        let mut extra = part.extra.clone();
        if matches!(part.kind, PartKind::Image(_)) {
            extra.retain(|key, _| !["detail", "image_url"].contains(&key.as_str()));
        }
        self.dropped.add_all(list_name(self.conversation.api), &extra);
    }

    fn write_tools(&mut self, body: &mut Map<String, Value>) -> Result<(), Refusal> {
        let mut tools = Vec::new();
        for (index, tool) in self.conversation.tools.iter().enumerate() {
            match &tool.kind {
                ToolKind::Other(value) if self.is_own => tools.push(value.clone()),
                ToolKind::Other(value) => {
                    self.dropped.add(format!("tools[{index}] ({})", hosted_name(value)));
                }
                _ if self.is_own => push_own_tool(tool, &mut tools),
                _ => {
                    tools.push(self.foreign_tool(tool));
                    self.dropped.add_all("tools[*]", &tool.extra);
                }
            }
        }
        let has_tools = !tools.is_empty();
        if let Some(choice) = &self.conversation.tool_choice
            && let Some(choice) = self.tool_choice(choice, has_tools)?
        {
            body.insert("tool_choice".to_owned(), choice);
        }
        if has_tools {
            body.insert("tools".to_owned(), Value::Array(tools));
        }
        if let Some(parallel) = self.conversation.parallel_tools
            && (has_tools || self.is_own)
        {
            body.insert("parallel_tool_calls".to_owned(), Value::Bool(parallel));
        }
        Ok(())
    }

    fn foreign_tool(&self, tool: &Tool) -> Value {
        let mut written = write_tool(&tool.kind).unwrap_or_default();
        match &tool.kind {
            ToolKind::Function { name, parameters, strict, .. } => {
                written.insert("name".to_owned(), json!(self.names.at_provider(name)));
                written.insert("parameters".to_owned(), object_schema(parameters.as_ref()));
                // Strict if absent, other than in chat completions:
                // <https://developers.openai.com/api/docs/guides/function-calling#strict-mode>.
                written.insert("strict".to_owned(), Value::Bool(*strict == Some(true)));
            }
            ToolKind::Custom { name, .. } => {
                written.insert("name".to_owned(), json!(self.names.at_provider(name)));
            }
            ToolKind::Other(_) => {}
        }
        Value::Object(written)
    }

    fn tool_choice(&self, choice: &ToolChoice, has_tools: bool) -> Result<Option<Value>, Refusal> {
        let refused = || Refusal::not_expressible("tool_choice", Api::Responses);
        Ok(Some(match choice {
            ToolChoice::Other(value) if self.is_own => value.clone(),
            ToolChoice::Other(_) => return Err(refused()),
            ToolChoice::Auto | ToolChoice::None if !has_tools && !self.is_own => return Ok(None),
            ToolChoice::Auto => "auto".into(),
            ToolChoice::None => "none".into(),
            ToolChoice::Required if !has_tools && !self.is_own => return Err(refused()),
            ToolChoice::Required => "required".into(),
            ToolChoice::Named(name) => {
                let kind = kind_of_tool(&self.conversation.tools, name)
                    .or(self.is_own.then_some("function"));
                let kind = kind.ok_or_else(refused)?;
                let at_provider = self.names.at_provider(name);
                json!({"type": kind, "name": if self.is_own { name } else { &at_provider }})
            }
        }))
    }
}

/// Adds a tool of this API, to the namespace before it if it has the same one.
fn push_own_tool(tool: &Tool, tools: &mut Vec<Value>) {
    let mut written = write_tool(&tool.kind).unwrap_or_default();
    written.extend(tool.extra.clone());
    let name = match &tool.kind {
        ToolKind::Function { name, .. } | ToolKind::Custom { name, .. } => name,
        ToolKind::Other(_) => return,
    };
    let (Some(_), Some(Value::Object(mut group))) =
        (split_name(name).0, written.remove("namespace"))
    else {
        written.extend(tool.extra.clone());
        tools.push(Value::Object(written));
        return;
    };
    let last = tools.last_mut().and_then(Value::as_object_mut);
    let same = last.filter(|last| {
        last.len() == group.len() + 1
            && group.iter().all(|(key, value)| last.get(key) == Some(value))
    });
    match same.and_then(|last| last.get_mut("tools")).and_then(Value::as_array_mut) {
        Some(members) => members.push(Value::Object(written)),
        None => {
            group.insert("tools".to_owned(), Value::Array(vec![Value::Object(written)]));
            tools.push(Value::Object(group));
        }
    }
}

/// Returns the name of a tool that the provider runs: its type, or Gemini's key.
fn hosted_name(tool: &Value) -> String {
    let key = || tool.as_object().and_then(|fields| fields.keys().next().cloned());
    tool["type"].as_str().map(str::to_owned).or_else(key).unwrap_or_default()
}

/// OpenAI requires an object with `properties`, if only an empty one:
/// <https://github.com/spring-projects/spring-ai/issues/4776>.
fn object_schema(parameters: Option<&Value>) -> Value {
    let mut schema = parameters.and_then(Value::as_object).cloned().unwrap_or_default();
    schema.entry("type").or_insert_with(|| "object".into());
    if schema["type"] == "object" {
        schema.entry("properties").or_insert_with(|| json!({}));
    }
    Value::Object(schema)
}

/// Chat completions have the detail beside the URL.
fn image_detail(part: &Part) -> Value {
    let of_chat = part.extra.get("image_url").map(|image| &image["detail"]);
    let detail = part.extra.get("detail").or(of_chat).filter(|detail| detail.is_string());
    detail.cloned().unwrap_or_else(|| "auto".into())
}

/// OpenAI rejects reasoning without an item of the model after it:
/// <https://github.com/continuedev/continue/issues/8933>.
fn remove_loose_reasoning(items: &mut Vec<Value>) {
    let mut has_output = false;
    let mut kept: Vec<Value> = Vec::with_capacity(items.len());
    for item in items.drain(..).rev() {
        let kind = item["type"].as_str().unwrap_or_default();
        if kind == "reasoning" {
            if !has_output {
                continue;
            }
        } else {
            has_output = item["role"] == "assistant" || kind.ends_with("_call");
        }
        kept.push(item);
    }
    items.extend(kept.into_iter().rev());
}

/// Returns whether another API's model wrote unsigned thoughts.
fn has_foreign_text(part: &Part) -> bool {
    let content = part.extra.get("encrypted_content").and_then(Value::as_str);
    content.is_some_and(is_unsigned)
}

fn path(api: Api, turn: usize, part: usize) -> String {
    match api {
        Api::Chat | Api::Messages => format!("messages[{turn}].content[{part}]"),
        Api::Gemini => format!("contents[{turn}].parts[{part}]"),
        Api::Responses => format!("input[{turn}].content[{part}]"),
    }
}

/// Returns the path of the lists of messages, whose unknown fields are dropped.
fn list_name(api: Api) -> &'static str {
    match api {
        Api::Chat | Api::Messages => "messages[*]",
        Api::Gemini => "contents[*]",
        Api::Responses => "input[*]",
    }
}
