use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::generators::{any_json, request, settings, with};
use super::{read, target, written};
use crate::translation::responses::{check_for_other, read_request, write_request};
use crate::translation::{Api, Conversation, Media, Part, PartKind, Role, Source, Turn};

/// Applies the changes of spelling that the module's documentation allows.
fn normal(body: &Value) -> Value {
    let mut body = body.as_object().cloned().unwrap_or_default();
    if let Some(text) = body.get("input").and_then(Value::as_str) {
        body["input"] = json!([{"role": "user", "content": text}]);
    }
    if let Some(items) = body.get_mut("input").and_then(Value::as_array_mut) {
        // Reasoning of another API's model is left out.
        let is_foreign = |item: &Value| {
            let value = item["encrypted_content"].as_str().unwrap_or_default();
            item["type"] == "reasoning" && value.starts_with("flowledger:gemini:")
        };
        items.retain(|item| !is_foreign(item));
        items.iter_mut().for_each(normalize_item);
    }
    if let Some(tools) = body.get_mut("tools").and_then(Value::as_array_mut) {
        *tools = join_namespaces(std::mem::take(tools));
    }
    if let Some(text) = body.get_mut("text").and_then(Value::as_object_mut)
        && text.get("format") == Some(&json!({"type": "text"}))
    {
        text.remove("format");
    }
    for key in ["temperature", "top_p"] {
        if let Some(number) = body.get(key).and_then(Value::as_f64) {
            body[key] = json!(number);
        }
    }
    let is_default = |key: &str, value: &Value| match key {
        "stream" => *value == json!(false),
        "text" | "reasoning" => *value == json!({}),
        "input" | "tools" => *value == json!([]),
        _ => false,
    };
    Value::Object(body.into_iter().filter(|(key, value)| !is_default(key, value)).collect())
}

fn join_namespaces(tools: Vec<Value>) -> Vec<Value> {
    let mut joined: Vec<Value> = Vec::new();
    for mut tool in tools {
        let members = tool["tools"].as_array().cloned().unwrap_or_default();
        let without =
            |tool: &Value| with(tool.clone(), Map::from_iter([("tools".into(), json!([]))]));
        let last = joined.last_mut().filter(|last| {
            let is_full = !members.is_empty() && last["tools"] != json!([]);
            is_full && tool["type"] == "namespace" && without(last) == without(&tool)
        });
        match last {
            Some(last) => last["tools"].as_array_mut().unwrap().extend(members),
            None => joined.push(tool.take()),
        }
    }
    joined
}

fn normalize_item(item: &mut Value) {
    let fields = item.as_object_mut().unwrap();
    let role = fields.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    let has_role = ["user", "system", "developer", "assistant"].contains(&&*role);
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if has_role && (kind.is_empty() || kind == "message") {
        fields.insert("type".into(), json!("message"));
        normalize_text(
            fields,
            "content",
            if role == "assistant" { "output_text" } else { "input_text" },
        );
    }
    if kind.ends_with("tool_call_output") || kind == "function_call_output" {
        normalize_text(fields, "output", "input_text");
    }
    if kind == "reasoning" && !fields.contains_key("summary") {
        fields.insert("summary".into(), json!([]));
    }
}

fn normalize_text(fields: &mut Map<String, Value>, key: &str, kind: &str) {
    if let Some(text) = fields[key].as_str() {
        fields[key] = json!([{"type": kind, "text": text}]);
    }
}

proptest! {
    #[test]
    fn a_request_of_this_api_is_unchanged(body in request()) {
        let conversation = read(&body);
        let again = written(&conversation);
        prop_assert_eq!(normal(&again.body), normal(&body));
        prop_assert_eq!(again.dropped, Vec::<String>::new());
    }

    #[test]
    fn no_request_panics(body in any_json(), settings in settings(), input in any_json()) {
        let _ = read_request(&body);
        let body = with(settings, json!({"input": input, "tools": body}).as_object().unwrap().clone());
        if let Ok(mut conversation) = read_request(&body) {
            let _ = check_for_other(&conversation);
            let _ = write_request(&conversation, &target());
            conversation.api = Api::Messages;
            let _ = write_request(&conversation, &target());
        }
    }

    #[test]
    fn a_conversation_of_another_api_arrives(turns in foreign_turns()) {
        let mut conversation = Conversation::new(Api::Messages);
        conversation.turns = turns;
        let request = written(&conversation);
        let again = read(&request.body);
        prop_assert_eq!(parts_of(&again), parts_of(&conversation));
    }
}

fn foreign_turns() -> impl Strategy<Value = Vec<Turn>> {
    let part = (0..6_u8, "[a-z]{0,3}").prop_map(|(kind, text)| {
        let id = format!("toolu_{text}");
        let url = format!("https://x/{text}");
        let media = Media { source: Source::of_url(&url), name: None };
        match kind {
            0 => PartKind::Text(text),
            1 => PartKind::Image(media),
            2 => PartKind::Document(media),
            3 => PartKind::ToolResult { id, content: vec![Part::text(text)], is_error: false },
            4 => PartKind::ToolCall { id, name: "f".into(), arguments: text, is_custom: false },
            _ => PartKind::Thinking(text),
        }
    });
    let is_of = |role: Role, kind: &PartKind| match kind {
        PartKind::Text(_) => true,
        PartKind::ToolCall { .. } | PartKind::Thinking(_) => role == Role::Assistant,
        _ => role == Role::User,
    };
    let turn = (any::<bool>(), proptest::collection::vec(part, 0..5));
    let turn = turn.prop_map(move |(is_user, kinds)| {
        let role = if is_user { Role::User } else { Role::Assistant };
        let kinds = kinds.into_iter().filter(|kind| is_of(role, kind));
        Turn::new(role, kinds.map(Part::new).collect())
    });
    proptest::collection::vec(turn, 0..5)
}

/// Returns the parts that every API has, with their roles.
fn parts_of(conversation: &Conversation) -> Vec<(Role, PartKind)> {
    let parts = conversation
        .turns
        .iter()
        .flat_map(|turn| turn.parts.iter().map(|part| (turn.role, part.kind.clone())));
    let parts = parts.filter(|(_, kind)| match kind {
        PartKind::Text(text) => !text.is_empty(),
        kind => !matches!(kind, PartKind::Thinking(_)),
    });
    let parts = parts.map(|(role, mut kind)| {
        if let PartKind::ToolCall { arguments, .. } = &mut kind
            && arguments.is_empty()
        {
            *arguments = "{}".into();
        }
        (role, kind)
    });
    parts.collect()
}
