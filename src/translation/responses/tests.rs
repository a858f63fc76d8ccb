use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::event::Usage;
use crate::translation::{
    Api, Context, Conversation, Part, PartKind, Piece, Reply, Signature, Stop, StreamReader,
    StreamWriter, Target, Written, pieces_of,
};

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

// Answers.

fn context() -> Context {
    Context {
        id: "abc".into(),
        created: 1_764_000_000,
        model: "gpt-5".into(),
        wants_usage: false,
        is_array: false,
        request: json!({
            "model": "gpt-5", "input": "Hi", "temperature": 0.5, "instructions": "Be brief.",
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": false}],
            "tool_choice": "auto", "reasoning": {"effort": "low"}, "store": true,
        }),
    }
}

fn usage() -> Usage {
    Usage {
        input_tokens: 20,
        cached_input_tokens: 5,
        cache_write_tokens: 3,
        output_tokens: 9,
        reasoning_tokens: 4,
        ..Usage::default()
    }
}

/// Returns the name and the data of each event of a stream.
fn events_of(bytes: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(bytes).unwrap();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty());
    let read = |block: &str| {
        let (name, data) = block.split_once("\ndata: ").unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap())
    };
    blocks.map(read).collect()
}

fn stream_of(pieces: &[Piece]) -> Vec<(String, Value)> {
    let mut writer = EventWriter::new(context());
    let mut bytes = Vec::new();
    pieces.iter().for_each(|piece| writer.piece(piece, &usage(), &mut bytes));
    writer.end(&usage(), &mut bytes);
    events_of(&bytes)
}

fn read_stream<'a>(events: impl IntoIterator<Item = &'a (String, Value)>) -> Vec<Piece> {
    let mut reader = EventReader::default();
    let mut pieces = Vec::new();
    events.into_iter().for_each(|(name, data)| reader.event(name, data, &mut pieces));
    reader.end(&mut pieces);
    joined_deltas(pieces)
}

fn joined_deltas(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (_, Piece::Delta(text)) if text.is_empty() => {}
            (Some(Piece::Delta(text)), Piece::Delta(more)) => text.push_str(&more),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}

fn output_item() -> impl Strategy<Value = Value> {
    let items = (word(), text(), text()).prop_flat_map(|(word, text, other)| {
        proptest::sample::select(vec![
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

fn answer() -> impl Strategy<Value = Value> {
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
    (vec(output_item(), 0..6), proptest::sample::select(endings), unknown()).prop_map(
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

/// Returns the events that OpenAI sends for an answer, in small deltas.
fn openai_stream(answer: &Value) -> Vec<(String, Value)> {
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

fn push(events: &mut Vec<(String, Value)>, name: &str, data: Value) {
    events.push((name.to_owned(), with_fields(&data, json!({"type": name}))));
}

fn with_fields(value: &Value, fields: Value) -> Value {
    with(value.clone(), fields.as_object().unwrap().clone())
}

fn push_item(events: &mut Vec<(String, Value)>, index: usize, item: &Value) {
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

fn push_text(
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

/// The parts of other APIs' answers.
fn piece_parts() -> impl Strategy<Value = Vec<Part>> {
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

fn reply(parts: Vec<Part>, stop: Stop) -> Reply {
    let (id, model) = ("resp_7".to_owned(), "claude".to_owned());
    Reply { id, model, parts, stop: Some(stop), extra: Map::new() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_answer_of_this_api_is_unchanged(body in answer()) {
        let again = write_reply(&read_reply(&body), &usage(), &context());
        for (key, value) in body.as_object().unwrap() {
            prop_assert_eq!(&again[key], value, "{}", key);
        }
    }

    #[test]
    fn a_stream_says_the_same_as_the_answer(body in answer(), variant in 0..6) {
        let expected = joined_deltas(pieces_of(&read_reply(&body)));
        let mut events = openai_stream(&body);
        // Without other events, the place of a part without deltas is unknown.
        let no_delta = |pair: &[Piece]| matches!(pair, [Piece::Open(_), Piece::Close | Piece::Signature(_)]);
        prop_assume!(variant != 1 || !expected.windows(2).any(no_delta));
        match variant {
            // Only deltas and the last event.
            1 => events.retain(|(name, _)| name.ends_with(".delta") || name.ends_with("ed") && !name.ends_with(".added") || name.ends_with("incomplete")),
            // Only complete items.
            2 => events.retain(|(name, _)| name.starts_with("response.output_item.") || name.matches('.').count() == 1),
            // No `done` apart from that of items.
            3 => events.retain(|(name, _)| !name.ends_with(".done") || name == "response.output_item.done"),
            4 => events.iter_mut().for_each(|(_, data)| { data.as_object_mut().unwrap().remove("output_index"); }),
            5 => events.iter_mut().for_each(|(_, data)| { data.as_object_mut().unwrap().remove("item_id"); }),
            _ => {}
        }
        let expects_stop = events.pop().unwrap();
        let mut reader = EventReader::default();
        let mut pieces = Vec::new();
        for (name, data) in events.iter().chain([&expects_stop]) {
            reader.event(name, data, &mut pieces);
        }
        reader.end(&mut pieces);
        prop_assert_eq!(joined_deltas(pieces), expected, "variant {}", variant);
    }

    #[test]
    fn a_written_stream_is_read_back(parts in piece_parts(), limited in any::<bool>()) {
        let has_calls = parts.iter().any(|part| matches!(part.kind, PartKind::ToolCall { .. }));
        let has_refusal = parts.iter().any(|part| matches!(part.kind, PartKind::Refusal(_)));
        let stop = match (limited, has_calls, has_refusal) {
            (true, ..) => Stop::MaxTokens,
            (_, true, _) => Stop::ToolCalls,
            (_, _, true) => Stop::Refused,
            _ => Stop::End,
        };
        let reply = reply(parts, stop);
        let pieces = pieces_of(&reply);
        let events = stream_of(&pieces);
        prop_assert_eq!(read_stream(&events), joined_deltas(pieces));
        // The last event has the answer in one piece.
        let whole = write_reply(&reply, &usage(), &context());
        let mut last = events.last().unwrap().1["response"].clone();
        if limited {
            // The items of a stream are complete before the limit is known.
            last["output"] = whole["output"].clone();
        }
        prop_assert_eq!(last, whole);
    }

    #[test]
    fn no_answer_panics(body in any_json(), events in vec((text(), any_json()), 0..20)) {
        let reply = read_reply(&body);
        write_reply(&reply, &usage(), &context());
        let pieces = read_stream(&events);
        let mut is_open = false;
        for piece in pieces {
            match piece {
                Piece::Open(_) => prop_assert!(!std::mem::replace(&mut is_open, true)),
                Piece::Close => prop_assert!(std::mem::replace(&mut is_open, false)),
                Piece::Delta(_) | Piece::Signature(_) => prop_assert!(is_open),
                Piece::Begin { .. } | Piece::Stop(_) => prop_assert!(!is_open),
            }
        }
    }
}
