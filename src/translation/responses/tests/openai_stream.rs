//! The events that OpenAI sends.

use serde_json::{Map, Value, json};

use super::generators::with;

/// Returns the events that OpenAI sends for an answer, in small deltas.
pub(super) fn openai_stream(answer: &Value) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    let started = with_fields(answer, json!({"output": [], "status": "in_progress"}));
    push(&mut events, "response.created", json!({"response": started}));
    push(&mut events, "response.in_progress", json!({"response": started}));
    for (index, item) in answer["output"].as_array().unwrap().iter().enumerate() {
        push_item(&mut events, index, item);
    }
    let is_incomplete = answer["status"] == "incomplete";
    let last = if is_incomplete { "response.incomplete" } else { "response.completed" };
    push(&mut events, last, json!({"response": answer}));
    events
}

pub(super) fn push(events: &mut Vec<(String, Value)>, name: &str, data: Value) {
    events.push((name.to_owned(), with_fields(&data, json!({"type": name}))));
}

pub(super) fn with_fields(value: &Value, fields: Value) -> Value {
    with(value.clone(), fields.as_object().unwrap().clone())
}

pub(super) fn push_item(events: &mut Vec<(String, Value)>, index: usize, item: &Value) {
    let bare = json!({
        "content": [], "arguments": "", "input": "", "summary": [], "encrypted_content": null,
    });
    let bare = bare.as_object().unwrap().clone().into_iter();
    let bare: Map<String, Value> = bare.filter(|(key, _)| item.get(key).is_some()).collect();
    let added = json!({"output_index": index, "item": with(item.clone(), bare)});
    push(events, "response.output_item.added", added);
    let place = json!({"item_id": item["id"], "output_index": index});
    let list =
        |key: &str| item[key].as_array().cloned().unwrap_or_default().into_iter().enumerate();
    for (position, part) in list("content") {
        let place = with_fields(&place, json!({"content_index": position}));
        let kind = part["type"].as_str().unwrap();
        let field = if kind == "refusal" { "refusal" } else { "text" };
        let empty = json!({"part": {"type": kind, field: ""}});
        push(events, "response.content_part.added", with_fields(&place, empty));
        push_text(events, &format!("response.{kind}"), field, &part[field], &place);
        let whole = with_fields(&place, json!({"part": part}));
        push(events, "response.content_part.done", whole);
    }
    for (position, part) in list("summary") {
        let place = with_fields(&place, json!({"summary_index": position}));
        let name = "response.reasoning_summary_part";
        let empty = json!({"part": {"type": "summary_text", "text": ""}});
        push(events, &format!("{name}.added"), with_fields(&place, empty));
        push_text(events, "response.reasoning_summary_text", "text", &part["text"], &place);
        push(events, &format!("{name}.done"), with_fields(&place, json!({"part": part})));
    }
    let calls = [
        ("arguments", "response.function_call_arguments"),
        ("input", "response.custom_tool_call_input"),
    ];
    for (field, name) in calls.into_iter().filter(|(field, _)| item[*field].is_string()) {
        push_text(events, name, field, &item[field], &place);
    }
    push(events, "response.output_item.done", json!({"output_index": index, "item": item}));
}

pub(super) fn push_text(
    events: &mut Vec<(String, Value)>,
    name: &str,
    field: &str,
    text: &Value,
    place: &Value,
) {
    for delta in text.as_str().unwrap().chars() {
        let delta = json!({"delta": delta.to_string()});
        push(events, &format!("{name}.delta"), with_fields(place, delta));
    }
    push(events, &format!("{name}.done"), with_fields(place, json!({field: text})));
}
