//! Requests of clients of this API.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::super::super::conversation::{
    Conversation, Media, Part, PartKind, Role, Source, ThinkingMode, ToolChoice, ToolKind, Turn,
};
use super::super::super::{Api, Signature};
use super::super::{check_for_other, read_request};
use super::{any_json, written};

/// Returns the equivalent forms that `read_request` lists as one form.
fn normal(mut body: Value) -> Value {
    let Value::Object(fields) = &mut body else {
        return body;
    };
    fields.retain(|key, value| !value.is_null() && (key == "messages" || *value != json!([])));
    if fields.get("stream") == Some(&json!(false)) {
        fields.remove("stream");
    }
    if let Some(format) = fields.remove("output_format") {
        fields.entry("output_config").or_insert(json!({}))["format"] = format;
    }
    if let Some(system) = fields.get_mut("system") {
        listed(system);
    }
    for message in fields.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
        listed(&mut message["content"]);
        for block in message["content"].as_array_mut().into_iter().flatten() {
            normal_block(block);
        }
    }
    for tool in fields.get_mut("tools").and_then(Value::as_array_mut).into_iter().flatten() {
        if tool["type"] == "custom" {
            tool.as_object_mut().unwrap().remove("type");
        }
    }
    if let Some(Value::Object(choice)) = fields.get_mut("tool_choice") {
        choice.retain(|_, value| *value != json!(false));
    }
    body
}

fn listed(content: &mut Value) {
    if content.is_string() {
        *content = json!([{"type": "text", "text": content}]);
    }
}

fn normal_block(block: &mut Value) {
    if block["type"] == "thinking" && block.get("signature").is_none() {
        block["signature"] = "".into();
    }
    if block["type"] == "tool_result" {
        if block.get("content").is_some() {
            listed(&mut block["content"]);
        }
        let fields = block.as_object_mut().unwrap();
        fields.retain(|_, value| *value != json!(false) && *value != json!([]));
    }
}

/// Adds optional fields to an object.
fn with(
    base: impl Strategy<Value = Value>,
    fields: &'static [(&'static str, &'static str)],
) -> impl Strategy<Value = Value> {
    let chosen = vec(any::<bool>(), fields.len());
    (base, chosen).prop_map(move |(mut object, chosen)| {
        for ((key, value), _) in fields.iter().zip(chosen).filter(|(_, is_chosen)| *is_chosen) {
            object[key] = serde_json::from_str(value).unwrap();
        }
        object
    })
}

const MARKS: &[(&str, &str)] = &[
    ("cache_control", "{\"type\":\"ephemeral\",\"ttl\":\"1h\"}"),
    ("citations", "null"),
    ("x_unknown", "[1]"),
];

fn text_block() -> impl Strategy<Value = Value> {
    with("[a-z ]{0,8}".prop_map(|text| json!({"type": "text", "text": text})), MARKS)
}

fn media_block() -> impl Strategy<Value = Value> {
    let base = select(vec![
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aQ=="}}),
        json!({"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}),
        json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}}),
        json!({"type": "image", "source": {"type": "url", "url": "https://a", "x": 1}}),
        json!({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aQ=="}}),
        json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ä\n"}}),
        json!({"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}),
        json!({"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
        json!({"type": "document", "source": {"type": "content", "content": "text"}}),
        json!({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "t"}]}}),
    ]);
    with(
        base,
        &[
            ("title", "\"A title\""),
            ("context", "\"c\""),
            ("citations", "{\"enabled\":true}"),
            ("cache_control", "{\"type\":\"ephemeral\"}"),
        ],
    )
}

fn tool_block() -> impl Strategy<Value = Value> {
    let inputs = select(vec![json!({}), json!({"a": [1.5, null]}), json!("no object")]);
    let call = inputs.prop_map(
        |input| json!({"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": input}),
    );
    let content = prop_oneof![
        Just(Value::Null),
        "[a-z]{0,5}".prop_map(Value::from),
        vec(prop_oneof![text_block(), media_block()], 0..3).prop_map(Value::from),
        Just(json!([{"type": "tool_reference", "tool_name": "Bash"}])),
    ];
    let result = (content, option::of(any::<bool>())).prop_map(|(content, is_error)| {
        let mut block = json!({"type": "tool_result", "tool_use_id": "toolu_1"});
        if !content.is_null() {
            block["content"] = content;
        }
        if let Some(is_error) = is_error {
            block["is_error"] = is_error.into();
        }
        block
    });
    prop_oneof![with(call, MARKS), with(result, &MARKS[..1])]
}

fn block() -> impl Strategy<Value = Value> {
    let others = select(vec![
        json!({"type": "thinking", "thinking": "t", "signature": "EqQ="}),
        json!({"type": "thinking", "thinking": "", "signature": "EqQ="}),
        json!({"type": "thinking", "thinking": "t"}),
        json!({"type": "thinking", "thinking": "t", "signature": ""}),
        json!({"type": "redacted_thinking", "data": "ZGF0YQ=="}),
        json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
        json!({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}),
        json!({"type": "search_result", "source": "s", "title": "t", "content": []}),
        json!({"type": "container_upload", "file_id": "file_1"}),
        json!({"type": "text", "text": 7}),
        json!({"type": "later"}),
        json!({"text": "x", "a": 1}),
        json!("no object"),
    ]);
    prop_oneof![text_block(), media_block(), tool_block(), others]
}

fn message() -> impl Strategy<Value = Value> {
    let content =
        prop_oneof!["[a-z]{0,8}".prop_map(Value::from), vec(block(), 0..4).prop_map(Value::from),];
    let role = select(vec!["user", "assistant", "system", "critic"]);
    let base =
        (role, content).prop_map(|(role, content)| json!({"role": role, "content": content}));
    with(base, &[("x_unknown", "true")])
}

fn tool() -> impl Strategy<Value = Value> {
    let base = select(vec![
        json!({"name": "Bash", "input_schema": {"type": "object", "properties": {}}}),
        json!({"type": "custom", "name": "Edit", "input_schema": {"type": "object"}}),
    ]);
    let function = with(
        base,
        &[
            ("description", "\"d\""),
            ("strict", "true"),
            ("defer_loading", "true"),
            ("cache_control", "{\"type\":\"ephemeral\"}"),
        ],
    );
    let others = select(vec![
        json!({"type": "web_search_20250305", "name": "web_search", "max_uses": 5}),
        json!({"type": "bash_20250124", "name": "bash"}),
        json!({"name": 1}),
    ]);
    prop_oneof![function, others]
}

fn request() -> impl Strategy<Value = Value> {
    let choice = select(vec![
        json!({"type": "auto"}),
        json!({"type": "any", "disable_parallel_tool_use": true}),
        json!({"type": "tool", "name": "Bash", "disable_parallel_tool_use": false}),
        json!({"type": "none"}),
        json!({"type": "later", "x": 1}),
    ]);
    let thinking = select(vec![
        json!({"type": "enabled", "budget_tokens": 31999, "display": "omitted"}),
        json!({"type": "adaptive", "display": "summarized", "x": 1}),
        json!({"type": "disabled"}),
        json!({"type": "between_tools"}),
        json!({"type": "later", "y": {}}),
    ]);
    let config = select(vec![
        json!({"output_config": {"effort": "high"}}),
        json!({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}),
        json!({"output_config": {"effort": "max", "task_budget": {}, "format": {"type": "later"}}}),
        json!({"output_format": {"type": "json_schema", "schema": {}}}),
        json!({}),
    ]);
    let system = prop_oneof![
        "[a-z]{0,8}".prop_map(Value::from),
        vec(text_block(), 0..3).prop_map(Value::from),
    ];
    let rest: &[(&str, &str)] = &[
        ("metadata", "{\"user_id\":\"u\"}"),
        ("service_tier", "\"auto\""),
        ("context_management", "{\"edits\":[]}"),
        ("mcp_servers", "[{\"type\":\"url\"}]"),
        ("container", "\"c\""),
        ("stream", "true"),
        ("temperature", "0.7"),
        ("top_p", "1"),
        ("top_k", "40"),
        ("stop_sequences", "[\"a\",\" \"]"),
        ("x_unknown", "{\"a\":null}"),
    ];
    let base = (
        vec(message(), 0..5),
        option::of(system),
        vec(tool(), 0..3),
        option::of(choice),
        option::of(thinking),
        config,
    );
    let base = base.prop_map(|(messages, system, tools, choice, thinking, config)| {
        let mut body = json!({"model": "m", "max_tokens": 100, "messages": messages});
        body["system"] = system.into();
        body["tools"] = tools.into();
        body["tool_choice"] = choice.into();
        body["thinking"] = thinking.into();
        body.as_object_mut().unwrap().extend(config.as_object().cloned().unwrap());
        body
    });
    with(base, rest)
}

proptest! {
    #[test]
    fn requests_survive_a_round_trip(body in request()) {
        let conversation = read_request(&body).unwrap();
        let again = written(&conversation);
        prop_assert_eq!(normal(again.body), normal(body));
        prop_assert!(again.dropped.is_empty());
    }

    #[test]
    fn no_json_panics(body in any_json()) {
        if let Ok(conversation) = read_request(&body) {
            let _ = check_for_other(&conversation);
            let _ = super::super::write_request(&conversation, &super::target());
            for api in [Api::Chat, Api::Responses, Api::Gemini] {
                let conversation = Conversation { api, ..conversation.clone() };
                let _ = super::super::write_request(&conversation, &super::target());
            }
        }
    }
}

#[test]
fn a_request_of_claude_code_is_read() {
    let conversation = read_request(&json!({
        "model": "claude-haiku-4-5",
        "max_tokens": 32000,
        "stream": true,
        "system": [{"type": "text", "text": "You.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Run it"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "so", "signature": "flowledger:gemini::abc"},
                {"type": "thinking", "thinking": "so", "signature": ""},
                {"type": "tool_use", "id": "toolu_2.flowledger:gemini:CpcB/+=", "name": "Bash", "input": {"command": "ls"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_2.flowledger:gemini:CpcB/+=", "content": "x", "is_error": false},
            ]},
            {"role": "system", "content": "Later."},
        ],
        "tools": [
            {"name": "Bash", "description": "d", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "thinking": {"type": "enabled", "budget_tokens": 31999, "display": "omitted"},
        "metadata": {"user_id": "u"},
    }))
    .unwrap();
    assert_eq!(conversation.model, "claude-haiku-4-5");
    assert!(conversation.is_streamed);
    assert_eq!(conversation.system[0].kind, PartKind::Text("You.".into()));
    assert_eq!(conversation.tool_choice, Some(ToolChoice::Required));
    assert_eq!(conversation.parallel_tools, Some(false));
    assert_eq!(conversation.reasoning.mode, Some(ThinkingMode::Enabled));
    assert_eq!(conversation.reasoning.is_shown, Some(false));
    assert!(matches!(conversation.tools[1].kind, ToolKind::Other(_)));
    let [thought, _, call] = &conversation.turns[1].parts[..] else { panic!() };
    assert_eq!(thought.signature, Some(Signature::new(Api::Gemini, "abc")));
    assert_eq!(call.signature, Some(Signature::new(Api::Gemini, "CpcB/+=")));
    assert_eq!(conversation.tool_name_of("toolu_2"), Some("Bash"));
    assert!(
        matches!(&conversation.turns[2].parts[0].kind, PartKind::ToolResult { id, .. } if id == "toolu_2")
    );
    assert_eq!(conversation.turns[3].role, Role::System);
    assert!(check_for_other(&conversation).is_ok());
    // Sent to Claude after all, the request has neither the thought nor the signature.
    let body = written(&conversation).body;
    assert_eq!(body["messages"][1]["content"].as_array().unwrap().len(), 1);
    assert_eq!(body["messages"][1]["content"][0]["id"], "toolu_2");
    assert_eq!(body["messages"][2]["content"][0]["tool_use_id"], "toolu_2");
}

#[test]
fn invalid_fields_are_refused_by_name() {
    for (body, field) in [
        (json!([]), "body"),
        (json!({}), "messages"),
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": [1]}), "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [], "max_tokens": "5"}), "max_tokens"),
        (json!({"messages": [], "thinking": true}), "thinking"),
    ] {
        assert_eq!(read_request(&body).unwrap_err().field, field);
    }
}

#[test]
fn fields_without_an_equivalent_are_refused_for_another_api() {
    for (field, value) in [
        ("container", json!("c")),
        ("mcp_servers", json!([{"type": "url"}])),
        ("max_tokens", json!(0)),
    ] {
        let mut body = json!({"messages": []});
        body[field] = value;
        let conversation = read_request(&body).unwrap();
        assert_eq!(check_for_other(&conversation).unwrap_err().field, field);
    }
    let body = json!({"messages": [], "mcp_servers": [], "context_management": {}});
    assert!(check_for_other(&read_request(&body).unwrap()).is_ok());
}

#[test]
fn a_prefix_is_marked_for_the_cache() {
    let mut part = Part::text("A long text");
    part.extra = Map::from_iter([("cache_control".to_owned(), json!({"type": "ephemeral"}))]);
    let mut conversation = Conversation::new(Api::Messages);
    conversation.turns.push(Turn::new(Role::User, vec![part, Part::text("end")]));
    let body = written(&conversation).body;
    assert_eq!(body["messages"][0]["content"][0]["cache_control"]["type"], "ephemeral");
    assert_eq!(body["max_tokens"], 4_096);
}

#[test]
fn a_text_document_keeps_its_text() {
    let body = json!({"messages": [{"role": "user", "content": [{
        "type": "document", "title": "t",
        "source": {"type": "text", "media_type": "text/plain", "data": "ä"},
    }]}]});
    let conversation = read_request(&body).unwrap();
    let source = Source::Data { media_type: "text/plain".into(), base64: "w6Q=".into() };
    let media = Media { source, name: Some("t".into()) };
    assert_eq!(conversation.turns[0].parts[0].kind, PartKind::Document(media));
}
