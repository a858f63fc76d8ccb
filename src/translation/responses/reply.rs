//! Answers in one piece, and their items for clients.

use serde_json::{Map, Value, json};

use super::item::{
    IS_ITEM, call_names, object, read_content, read_model_item, rest, split_name, unsigned,
    write_content, write_model_item,
};
use crate::event::Usage;
use crate::translation::{Api, Context, Part, PartKind, Reply, Role, Signature, Stop};

/// The `object` of an answer, by which the writer knows one of this API.
const RESPONSE: &str = "response";
/// The first part of a message has the other fields of the message here.
const MESSAGE: &str = "message";
/// Reasons for an incomplete answer that only this API has.
const OTHER_REASONS: [&str; 2] = ["max_messages", "steered"];

/// Reads an answer in one piece.
pub fn read_reply(body: &Value) -> Reply {
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let items = body["output"].as_array().map_or(&[][..], Vec::as_slice);
    let parts: Vec<Part> = items.iter().flat_map(read_item).collect();
    let stop = Some(read_stop(body, &parts));
    let (status, incomplete) = status_of(stop.as_ref(), has_refusal(&parts));
    let written = object([
        ("status", Some(status.into())),
        ("incomplete_details", Some(incomplete)),
        ("id", body.get("id").cloned()),
        ("model", body.get("model").cloned()),
        ("output", body.get("output").cloned()),
        ("usage", body.get("usage").cloned()),
    ]);
    let mut extra = body.as_object().map(|fields| rest(fields, &written)).unwrap_or_default();
    extra.insert("object".to_owned(), RESPONSE.into());
    Reply { id: text("id"), model: text("model"), parts, stop, extra }
}

/// Reads an item of the output.
pub(super) fn read_item(item: &Value) -> Vec<Part> {
    if let Some(part) = read_model_item(item) {
        return vec![part];
    }
    let contents = item["content"].as_array().filter(|contents| !contents.is_empty());
    if let (Some("message"), Some("assistant"), Some(contents), Some(fields)) =
        (item["type"].as_str(), item["role"].as_str(), contents, item.as_object())
        && contents.iter().all(Value::is_object)
    {
        let mut parts: Vec<Part> =
            contents.iter().map(|part| read_content(part, Role::Assistant)).collect();
        let written = message(Vec::new());
        let mut others = rest(fields, &written);
        others.remove("content");
        parts[0].extra.insert(MESSAGE.to_owned(), Value::Object(others));
        return parts;
    }
    let mut part = Part::new(PartKind::Other(item.clone()));
    part.extra.insert(IS_ITEM.to_owned(), Value::Bool(true));
    vec![part]
}

fn has_refusal(parts: &[Part]) -> bool {
    parts.iter().any(|part| matches!(part.kind, PartKind::Refusal(_)))
}

/// Returns why an answer ended.
pub(super) fn read_stop(body: &Value, parts: &[Part]) -> Stop {
    let has_calls = parts.iter().any(|part| matches!(part.kind, PartKind::ToolCall { .. }));
    stop_of(body, has_calls, has_refusal(parts))
}

/// Returns why an answer with these parts ended.
pub(super) fn stop_of(body: &Value, has_calls: bool, has_refusal: bool) -> Stop {
    match body["status"].as_str().unwrap_or("completed") {
        "incomplete" => match body["incomplete_details"]["reason"].as_str() {
            Some("max_output_tokens") => Stop::MaxTokens,
            Some("content_filter") => Stop::Refused,
            Some(reason) => Stop::Other(reason.to_owned()),
            None => Stop::Other("incomplete".to_owned()),
        },
        status @ ("failed" | "cancelled") => Stop::Other(status.to_owned()),
        _ if has_calls => Stop::ToolCalls,
        _ if has_refusal => Stop::Refused,
        _ => Stop::End,
    }
}

/// Returns the status of an answer, and `incomplete_details`.
fn status_of(stop: Option<&Stop>, has_refusal: bool) -> (&'static str, Value) {
    let reason = match stop {
        Some(Stop::MaxTokens) => "max_output_tokens",
        // A refusal in words is a complete answer.
        Some(Stop::Refused) if !has_refusal => "content_filter",
        Some(Stop::Other(reason)) if OTHER_REASONS.contains(&reason.as_str()) => reason,
        _ => return ("completed", Value::Null),
    };
    ("incomplete", json!({"reason": reason}))
}

/// Writes an answer in one piece for a client.
pub fn write_reply(reply: &Reply, usage: &Usage, context: &Context) -> Value {
    let is_own = reply.extra.get("object").is_some_and(|object| object == RESPONSE);
    let mut response = response(&reply.id, &reply.model, context);
    let mut items = Items::new(context);
    for part in &reply.parts {
        if is_own {
            items.push_own(part);
        } else {
            items.push(part);
        }
    }
    if is_own {
        response.insert("id".to_owned(), json!(reply.id));
        response.insert("model".to_owned(), json!(reply.model));
    }
    if !is_own {
        items.mark_incomplete(reply.stop.as_ref());
    }
    finish(&mut response, items.output, reply.stop.as_ref(), has_refusal(&reply.parts), usage);
    if is_own {
        response.extend(reply.extra.clone());
    }
    Value::Object(response)
}

/// Returns an answer without output, in progress, with the fields that the SDK requires:
/// <https://github.com/openai/openai-python/blob/main/src/openai/types/responses/response.py>.
pub(super) fn response(id: &str, model: &str, context: &Context) -> Map<String, Value> {
    let id = if id.starts_with("resp_") { id.to_owned() } else { format!("resp_{}", context.id) };
    let model = if model.is_empty() { &context.model } else { model };
    // Nothing is stored, so that the client cannot refer to the answer later.
    let defaults = json!({
        "id": id,
        "object": RESPONSE,
        "created_at": context.created,
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "max_output_tokens": null,
        "max_tool_calls": null,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "prompt_cache_key": null,
        "reasoning": {"effort": null, "summary": null},
        "safety_identifier": null,
        "service_tier": "default",
        "store": false,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": null,
        "user": null,
    });
    let Value::Object(mut fields) = defaults else {
        return Map::new();
    };
    for key in REPEATED {
        if let Some(value) = context.request.get(key).filter(|value| !value.is_null()) {
            fields.insert(key.to_owned(), value.clone());
        }
    }
    fields
}

/// The fields of a request that the answer repeats.
const REPEATED: [&str; 14] = [
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "user",
];

/// Completes an answer.
pub(super) fn finish(
    response: &mut Map<String, Value>,
    output: Vec<Value>,
    stop: Option<&Stop>,
    has_refusal: bool,
    usage: &Usage,
) {
    let (status, incomplete) = status_of(stop, has_refusal);
    response.insert("status".to_owned(), status.into());
    response.insert("incomplete_details".to_owned(), incomplete);
    response.insert("output".to_owned(), Value::Array(output));
    response.insert("usage".to_owned(), usage_json(usage));
}

/// Cache reads and writes are part of the input, reasoning is part of the output.
fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    })
}

fn message(content: Vec<Value>) -> Map<String, Value> {
    object([
        ("type", Some("message".into())),
        ("role", Some("assistant".into())),
        ("content", Some(Value::Array(content))),
    ])
}

/// Builds the output of an answer in one piece.
struct Items<'a> {
    context: &'a Context,
    output: Vec<Value>,
}

impl<'a> Items<'a> {
    fn new(context: &'a Context) -> Self {
        Self { context, output: Vec::new() }
    }

    /// Adds a part of an answer of this API.
    fn push_own(&mut self, part: &Part) {
        let mut extra = part.extra.clone();
        if let Some(mut item) = write_model_item(part) {
            item.extend(extra);
            self.output.push(Value::Object(item));
            return;
        }
        if let PartKind::Other(value) = &part.kind
            && extra.contains_key(IS_ITEM)
        {
            self.output.push(value.clone());
            return;
        }
        if let Some(Value::Object(others)) = extra.remove(MESSAGE) {
            let mut item = message(Vec::new());
            item.extend(others);
            self.output.push(Value::Object(item));
        }
        let content = match &part.kind {
            PartKind::Other(value) => value.clone(),
            kind => {
                let mut content = write_content(kind, Role::Assistant).unwrap_or_default();
                content.extend(extra);
                Value::Object(content)
            }
        };
        self.push_content(content);
    }

    /// Adds a part of another API's answer.
    fn push(&mut self, part: &Part) {
        let signature = part.signature.as_ref();
        let (base, index) = (&self.context.id, self.output.len());
        match &part.kind {
            PartKind::Text(text) => self.push_text(text_content(text)),
            PartKind::Refusal(text) => self.push_text(refusal_content(text)),
            PartKind::Thinking(text) => {
                self.output.push(reasoning_item(base, index, text, signature));
            }
            PartKind::ToolCall { id, name, arguments, is_custom } => {
                let call_id = call_id(base, index, id, signature);
                let call = Call { call_id: &call_id, name, is_custom: *is_custom };
                self.output.push(call.item(base, index, arguments, "completed"));
            }
            // The API has no answers with media.
            _ => {}
        }
    }

    /// Marks the last item if the answer is cut off.
    fn mark_incomplete(&mut self, stop: Option<&Stop>) {
        if stop == Some(&Stop::MaxTokens)
            && let Some(status) = self.output.last_mut().and_then(|item| item.get_mut("status"))
        {
            *status = "incomplete".into();
        }
    }

    fn push_text(&mut self, content: Value) {
        let is_message = self.output.last().is_some_and(|item| item["type"] == "message");
        if !is_message {
            let index = self.output.len();
            self.output.push(message_item(&self.context.id, index, Vec::new(), "completed"));
        }
        self.push_content(content);
    }

    fn push_content(&mut self, content: Value) {
        let last = self.output.last_mut().and_then(|item| item.get_mut("content"));
        if let Some(contents) = last.and_then(Value::as_array_mut) {
            contents.push(content);
        }
    }
}

pub(super) fn text_content(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

pub(super) fn refusal_content(text: &str) -> Value {
    json!({"type": "refusal", "refusal": text})
}

/// Ids of items are unique because the answer's is: `msg_BASE_INDEX`.
pub(super) fn item_id(prefix: &str, base: &str, index: usize) -> String {
    format!("{prefix}_{base}_{index}")
}

pub(super) fn message_item(base: &str, index: usize, content: Vec<Value>, status: &str) -> Value {
    let mut item = message(content);
    item.insert("id".to_owned(), json!(item_id("msg", base, index)));
    item.insert("status".to_owned(), status.into());
    Value::Object(item)
}

/// Returns the id of reasoning, which is the provider's if it is of this API.
pub(super) fn reasoning_id(base: &str, index: usize, signature: Option<&Signature>) -> String {
    let own = signature.filter(|it| it.api == Api::Responses).and_then(|it| it.id.clone());
    own.unwrap_or_else(|| item_id("rs", base, index))
}

pub(super) fn reasoning_item(
    base: &str,
    index: usize,
    text: &str,
    signature: Option<&Signature>,
) -> Value {
    let mut part = Part::new(PartKind::Thinking(text.to_owned()));
    part.signature = signature.cloned();
    let mut item = write_model_item(&part).unwrap_or_default();
    item.insert("id".to_owned(), json!(reasoning_id(base, index, signature)));
    item.entry("encrypted_content").or_insert_with(|| unsigned().into());
    Value::Object(item)
}

/// Returns the id of a call, with its signature, because the API has no other place for one.
pub(super) fn call_id(base: &str, index: usize, id: &str, signature: Option<&Signature>) -> String {
    let id = if id.is_empty() { item_id("call", base, index) } else { id.to_owned() };
    match signature {
        Some(signature) => signature.attach_to(&id),
        None => id,
    }
}

/// A call for a client.
pub(super) struct Call<'a> {
    pub(super) call_id: &'a str,
    pub(super) name: &'a str,
    pub(super) is_custom: bool,
}

impl Call<'_> {
    pub(super) fn item_id(&self, base: &str, index: usize) -> String {
        item_id(if self.is_custom { "ctc" } else { "fc" }, base, index)
    }

    pub(super) fn item(&self, base: &str, index: usize, arguments: &str, status: &str) -> Value {
        let (kind, field) = call_names(self.is_custom);
        let (namespace, name) = split_name(self.name);
        // Clients parse the arguments of a function as JSON, at the end.
        let is_missing = arguments.is_empty() && !self.is_custom && status == "completed";
        let arguments = if is_missing { "{}" } else { arguments };
        Value::Object(object([
            ("type", Some(kind.into())),
            ("id", Some(json!(self.item_id(base, index)))),
            ("call_id", Some(json!(self.call_id))),
            ("namespace", namespace.map(Value::from)),
            ("name", Some(json!(name))),
            (field, Some(json!(arguments))),
            ("status", Some(status.into())),
        ]))
    }
}
