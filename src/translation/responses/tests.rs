use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::translation::{Api, Conversation, Target, Written};

fn target() -> Target {
    Target { chat_limit: "max_tokens", takes_stream_options: true, output_tokens_assumed: 4096 }
}

fn read(body: &Value) -> Conversation {
    read_request(body).unwrap()
}

fn written(conversation: &Conversation) -> Written {
    write_request(conversation, &target()).unwrap()
}

// Generators.

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
fn key() -> impl Strategy<Value = String> {
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
    prop_oneof![proptest::sample::select(known).prop_map(str::to_owned), "[a-z]{1,4}"]
}

fn text() -> impl Strategy<Value = String> {
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
    prop_oneof![proptest::sample::select(known).prop_map(str::to_owned), "[ -~äß€😀]{0,8}"]
}

fn word() -> impl Strategy<Value = String> {
    "[a-z]{1,6}"
}

/// Fields that no API has.
fn unknown() -> impl Strategy<Value = Map<String, Value>> {
    vec(("x_[a-z]{1,3}", any_json()), 0..2).prop_map(|fields| fields.into_iter().collect())
}

fn with(value: Value, extra: Map<String, Value>) -> Value {
    let mut fields = value.as_object().cloned().unwrap_or_default();
    fields.extend(extra);
    Value::Object(fields)
}

/// Leaves fields out at random.
fn some_of(value: Value) -> impl Strategy<Value = Value> {
    let fields = value.as_object().cloned().unwrap_or_default();
    vec(any::<bool>(), fields.len()).prop_map(move |kept| {
        let kept = fields.clone().into_iter().zip(kept).filter(|(_, kept)| *kept);
        Value::Object(kept.map(|(field, _)| field).collect())
    })
}

fn input_part() -> impl Strategy<Value = Value> {
    let plain = (text(), word()).prop_flat_map(|(text, word)| {
        proptest::sample::select(vec![
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

fn content() -> impl Strategy<Value = Value> {
    prop_oneof![text().prop_map(Value::from), vec(input_part(), 0..4).prop_map(Value::from)]
}

fn item() -> impl Strategy<Value = Value> {
    let roles = vec!["user", "system", "developer", "assistant", "critic"];
    let message = (proptest::sample::select(roles), content(), any::<bool>()).prop_map(
        |(role, content, is_easy)| match is_easy {
            true => json!({"role": role, "content": content}),
            false => json!({"type": "message", "id": "msg_1", "role": role, "content": content, "status": "completed"}),
        },
    );
    let others = (word(), text(), content()).prop_flat_map(|(word, text, content)| {
        proptest::sample::select(vec![
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

fn tool() -> impl Strategy<Value = Value> {
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
    (proptest::sample::select(tools), unknown()).prop_map(|(tool, extra)| with(tool, extra))
}

fn settings() -> impl Strategy<Value = Value> {
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
    let select = proptest::sample::select::<Value>;
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

fn request() -> impl Strategy<Value = Value> {
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
    #![proptest_config(ProptestConfig::with_cases(512))]

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
}
