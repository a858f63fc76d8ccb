//! Requests and answers that have all that the module knows, and unknown fields.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use crate::translation::{Api, Part, PartKind, Signature};

/// Any JSON value.
pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e6..1e6).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key(), inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Keys and types that the module knows, and others.
pub(super) fn key() -> impl Strategy<Value = String> {
    let known = vec![
        "type",
        "id",
        "role",
        "content",
        "text",
        "input",
        "output",
        "call_id",
        "name",
        "arguments",
        "summary",
        "encrypted_content",
        "tools",
        "format",
        "schema",
        "effort",
        "reasoning",
        "item",
        "response",
        "delta",
        "part",
        "output_index",
        "content_index",
        "item_id",
        "image_url",
        "file_data",
        "input_audio",
        "status",
        "model",
        "instructions",
        "incomplete_details",
        "reason",
    ];
    prop_oneof![select(known).prop_map(str::to_owned), "[a-z]{1,4}"]
}

pub(super) fn text() -> impl Strategy<Value = String> {
    let known = vec![
        "",
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "input_text",
        "output_text",
        "refusal",
        "input_image",
        "input_file",
        "input_audio",
        "user",
        "assistant",
        "function",
        "namespace",
        "json_schema",
        "auto",
        "data:image/png;base64,AA==",
        "response.completed",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_summary_text.delta",
        "incomplete",
        "flowledger:gemini::x",
    ];
    prop_oneof![select(known).prop_map(str::to_owned), "[ -~äß€😀]{0,8}"]
}

pub(super) fn word() -> impl Strategy<Value = String> {
    "[a-z]{1,6}"
}

/// Fields that no API has.
pub(super) fn unknown() -> impl Strategy<Value = Map<String, Value>> {
    vec(("x_[a-z]{1,3}", any_json()), 0..2).prop_map(|fields| fields.into_iter().collect())
}

pub(super) fn with(value: Value, extra: Map<String, Value>) -> Value {
    let mut fields = value.as_object().cloned().unwrap_or_default();
    fields.extend(extra);
    Value::Object(fields)
}

/// Leaves fields out at random.
pub(super) fn some_of(value: Value) -> impl Strategy<Value = Value> {
    let fields = value.as_object().cloned().unwrap_or_default();
    vec(any::<bool>(), fields.len()).prop_map(move |kept| {
        let kept = fields.clone().into_iter().zip(kept).filter(|(_, kept)| *kept);
        Value::Object(kept.map(|(field, _)| field).collect())
    })
}

pub(super) fn input_part() -> impl Strategy<Value = Value> {
    let plain = (text(), word()).prop_flat_map(|(text, word)| {
        select(vec![
            json!({"type": "input_text", "text": text}),
            json!({"type": "output_text", "text": text, "annotations": [], "logprobs": null}),
            json!({"type": "refusal", "refusal": text}),
            json!({"type": "input_image", "image_url": format!("data:image/png;base64,{word}"), "detail": "low"}),
            json!({"type": "input_image", "image_url": format!("https://x/{word}")}),
            json!({"type": "input_image", "image_url": null, "file_id": word, "detail": "auto"}),
            json!({"type": "input_file", "file_data": format!("data:application/pdf;base64,{word}"), "filename": "a.pdf"}),
            json!({"type": "input_file", "file_data": word, "filename": "a.txt"}),
            json!({"type": "input_file", "file_url": "https://x/a.pdf", "filename": null}),
            json!({"type": "input_file", "file_id": word, "file_url": "https://x"}),
            json!({"type": "input_audio", "input_audio": {"data": word, "format": "mp3"}}),
            json!({"type": "input_audio", "input_audio": {"data": word, "format": "wav", "x": 1}}),
            json!({"type": "input_video", "video_url": word}),
            json!({"type": 5}),
            json!({}),
        ])
    });
    (plain, unknown()).prop_map(|(part, extra)| with(part, extra))
}

pub(super) fn content() -> impl Strategy<Value = Value> {
    prop_oneof![text().prop_map(Value::from), vec(input_part(), 0..4).prop_map(Value::from)]
}

pub(super) fn item() -> impl Strategy<Value = Value> {
    let roles = vec!["user", "system", "developer", "assistant", "critic"];
    let message = (select(roles), content(), any::<bool>()).prop_map(
        |(role, content, is_easy)| match is_easy {
            true => json!({"role": role, "content": content}),
            false => json!({"type": "message", "id": "msg_1", "role": role, "content": content, "status": "completed"}),
        },
    );
    let others = (word(), text(), content()).prop_flat_map(|(word, text, content)| {
        select(vec![
            json!({"type": "function_call", "call_id": word, "name": word, "arguments": text, "id": "fc_1", "status": null}),
            json!({"type": "function_call", "call_id": word, "name": word, "namespace": "ns", "arguments": "{}"}),
            json!({"type": "function_call", "call_id": null, "name": word, "arguments": "{}"}),
            json!({"type": "custom_tool_call", "call_id": word, "name": word, "input": text}),
            json!({"type": "function_call_output", "call_id": word, "output": content}),
            json!({"type": "custom_tool_call_output", "call_id": word, "output": content, "id": "o"}),
            json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": text, "content": null}),
            json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": text}, {"type": "summary_text", "text": "b"}]}),
            json!({"type": "reasoning", "id": "rs_2", "content": [{"type": "reasoning_text", "text": text}], "encrypted_content": null}),
            json!({"type": "item_reference", "id": word}),
            json!({"id": word}),
            json!({"type": "web_search_call", "id": word, "status": "completed"}),
            json!({"type": "local_shell_call", "call_id": word, "action": {"type": "exec"}}),
        ])
    });
    (prop_oneof![message, others], unknown()).prop_map(|(item, extra)| with(item, extra))
}

pub(super) fn tool() -> impl Strategy<Value = Value> {
    let function = json!({"type": "function", "name": "f", "description": "d", "strict": false, "parameters": {"type": "object"}});
    let nested = json!([function, {"type": "custom", "name": "c"}]);
    let tools = vec![
        function,
        json!({"type": "function", "name": "g", "parameters": null, "strict": null, "description": null, "defer_loading": true}),
        json!({"type": "custom", "name": "apply_patch", "description": "d", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}}),
        json!({"type": "custom", "name": "c", "format": null}),
        json!({"type": "web_search", "external_web_access": true}),
        json!({"type": "local_shell"}),
        json!({"type": "namespace", "name": "ns", "description": "d", "tools": nested}),
        json!({"type": "namespace", "name": "other", "description": "d", "tools": nested}),
        json!({"type": "namespace", "name": "empty", "description": "d", "tools": []}),
        json!({"type": "function"}),
    ];
    (select(tools), unknown()).prop_map(|(tool, extra)| with(tool, extra))
}

pub(super) fn settings() -> impl Strategy<Value = Value> {
    let choices = vec![
        json!("auto"),
        json!("none"),
        json!("required"),
        json!({"type": "function", "name": "f"}),
        json!({"type": "custom", "name": "apply_patch"}),
        json!({"type": "function", "name": "f", "x": 1}),
        json!({"type": "web_search"}),
        json!({"type": "allowed_tools", "mode": "auto", "tools": []}),
        Value::Null,
    ];
    let formats = vec![
        json!({}),
        json!({"verbosity": "low"}),
        json!({"format": {"type": "text"}}),
        json!({"format": {"type": "text", "x": 1}}),
        json!({"format": {"type": "json_object"}, "verbosity": null}),
        json!({"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true, "description": null, "x": 2}}),
        json!({"format": {"type": "json_schema", "name": "n"}}),
        json!({"format": {"type": "grammar", "definition": "x"}}),
        json!({"format": null}),
    ];
    let reasonings = vec![
        json!({}),
        json!({"effort": "high", "summary": "auto"}),
        json!({"effort": null, "summary": "detailed", "mode": "pro"}),
        json!({"effort": "minimal", "generate_summary": "concise"}),
        Value::Null,
    ];
    (select(choices), select(formats), select(reasonings), any::<bool>(), 0.0..2.0, 1..99_u64)
        .prop_flat_map(|(choice, text, reasoning, flag, number, limit)| {
            some_of(json!({
                "model": "gpt-5", "stream": flag, "instructions": "Be brief.", "tool_choice": choice,
                "parallel_tool_calls": flag, "text": text, "reasoning": reasoning,
                "max_output_tokens": limit, "temperature": number, "top_p": 1,
                "include": ["reasoning.encrypted_content"], "store": false, "metadata": {"a": "b"},
                "prompt_cache_key": "k", "truncation": null, "client_metadata": {"c": "d"},
                "previous_response_id": null, "service_tier": "auto",
            }))
        })
}

pub(super) fn request() -> impl Strategy<Value = Value> {
    let input = prop_oneof![
        text().prop_map(Value::from),
        vec(item(), 0..8).prop_map(Value::from),
        Just(Value::Null)
    ];
    (settings(), input, vec(tool(), 0..5), unknown()).prop_map(|(settings, input, tools, extra)| {
        with(
            with(settings, extra),
            json!({"input": input, "tools": tools}).as_object().unwrap().clone(),
        )
    })
}

pub(super) fn output_item() -> impl Strategy<Value = Value> {
    let items = (word(), text(), text()).prop_flat_map(|(word, text, other)| {
        select(vec![
            json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                {"type": "output_text", "text": text, "annotations": [{"type": "url_citation", "url": "u"}], "logprobs": []},
                {"type": "refusal", "refusal": other},
            ]}),
            json!({"type": "message", "id": "msg_2", "role": "assistant", "phase": "commentary", "content": [
                {"type": "output_text", "text": other, "annotations": []},
            ]}),
            json!({"type": "message", "id": "msg_3", "role": "assistant", "content": []}),
            json!({"type": "function_call", "id": "fc_1", "call_id": format!("call_{word}"), "name": word, "arguments": text, "status": "completed"}),
            json!({"type": "function_call", "id": "fc_2", "call_id": format!("call_{word}"), "name": word, "arguments": "{}", "namespace": "ns"}),
            json!({"type": "custom_tool_call", "id": "ctc_1", "call_id": format!("call_{word}"), "name": word, "input": other}),
            json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": word}),
            json!({"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": text}, {"type": "summary_text", "text": other}], "encrypted_content": null}),
            json!({"type": "reasoning", "id": "rs_3", "summary": [], "content": [{"type": "reasoning_text", "text": other}]}),
            json!({"type": "web_search_call", "id": "ws_1", "status": "completed"}),
        ])
    });
    (items, unknown()).prop_map(|(item, extra)| with(item, extra))
}

pub(super) fn answer() -> impl Strategy<Value = Value> {
    let endings = vec![
        json!({"status": "completed", "incomplete_details": null}),
        json!({"status": "completed"}),
        json!({}),
        json!({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
        json!({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}),
        json!({"status": "incomplete", "incomplete_details": {"reason": "steered"}}),
        json!({"status": "incomplete", "incomplete_details": null}),
        json!({"status": "failed", "error": {"code": "server_error"}}),
    ];
    let fields = json!({"id": "resp_1", "object": "response", "created_at": 5, "model": "gpt-5-mini", "error": null, "store": true, "tools": []});
    (vec(output_item(), 0..6), select(endings), unknown()).prop_map(
        move |(mut output, ending, extra)| {
            for (index, item) in output.iter_mut().enumerate() {
                item["id"] = json!(format!("{}_{index}", item["id"].as_str().unwrap()));
            }
            let ending = ending.as_object().unwrap().clone();
            let output = json!({"output": output}).as_object().unwrap().clone();
            with(with(with(fields.clone(), ending), output), extra)
        },
    )
}

/// The parts of other APIs' answers.
pub(super) fn piece_parts() -> impl Strategy<Value = Vec<Part>> {
    let signature =
        proptest::option::of((0..3_usize, "[A-Za-z0-9+/=]{1,8}").prop_map(|(api, value)| {
            Signature::new([Api::Messages, Api::Gemini, Api::Chat][api], value)
        }));
    let part = (0..5_u8, word(), "[a-z {}\"€]{1,12}", any::<bool>(), signature).prop_map(
        |(kind, word, text, flag, signature)| {
            let id = format!("call_{word}");
            let kind = match kind {
                0 => PartKind::Text(text),
                1 => PartKind::Refusal(text),
                2 => PartKind::Thinking(if flag { text } else { String::new() }),
                _ => PartKind::ToolCall { id, name: word, arguments: text, is_custom: flag },
            };
            let is_signed = matches!(kind, PartKind::Thinking(_) | PartKind::ToolCall { .. });
            Part { signature: signature.filter(|_| is_signed), ..Part::new(kind) }
        },
    );
    vec(part, 0..6)
}
