//! Requests of other APIs.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::super::super::conversation::{
    Conversation, Media, OutputFormat, Part, PartKind, Role, Source, ThinkingMode, Tool,
    ToolChoice, ToolKind, Turn,
};
use super::super::super::{Api, Refusal, Signature, Written};
use super::super::write_request;
use super::{target, written};

fn chat(model: &str, turns: Vec<Turn>) -> Conversation {
    let mut conversation = Conversation::new(Api::Chat);
    conversation.model = model.into();
    conversation.turns = turns;
    conversation
}

fn hello(model: &str) -> Conversation {
    chat(model, vec![said(Role::User, "Hello")])
}

fn said(role: Role, text: &str) -> Turn {
    Turn::new(role, vec![Part::text(text)])
}

fn call(id: &str, name: &str, arguments: &str) -> Part {
    let (id, name, arguments) = (id.into(), name.into(), arguments.into());
    Part::new(PartKind::ToolCall { id, name, arguments, is_custom: false })
}

fn result(id: &str, text: &str) -> Part {
    let content = vec![Part::text(text)];
    Part::new(PartKind::ToolResult { id: id.into(), content, is_error: false })
}

fn function(name: &str) -> Tool {
    let kind = ToolKind::Function {
        name: name.into(),
        description: None,
        parameters: None,
        strict: Some(true),
    };
    Tool { kind, extra: Map::new() }
}

fn refused(conversation: &Conversation) -> Refusal {
    write_request(conversation, &target()).unwrap_err()
}

#[test]
fn system_texts_of_all_turns_are_joined() {
    let mut conversation = chat(
        "claude-sonnet-4-5",
        vec![
            said(Role::User, "a"),
            said(Role::Developer, "second"),
            said(Role::User, "b"),
            said(Role::Assistant, "  "),
            said(Role::User, "c"),
        ],
    );
    conversation.system.push(Part::text("first"));
    let body = written(&conversation).body;
    let text = |text| json!({"type": "text", "text": text});
    assert_eq!(body["system"], json!([text("first"), text("second")]));
    let content = json!([text("a"), text("b"), text("c")]);
    assert_eq!(body["messages"], json!([{"role": "user", "content": content}]));
    assert_eq!(body["max_tokens"], 4_096);
}

#[test]
fn results_follow_their_calls() {
    let conversation = chat(
        "claude-sonnet-4-5",
        vec![
            said(Role::User, "go"),
            Turn::new(Role::Assistant, vec![call("a", "f", "{}"), call("call|b", "f", "[1]")]),
            Turn::new(Role::User, vec![Part::text("hurry"), result("call|b", "2")]),
            said(Role::Assistant, "working"),
            Turn::new(Role::User, vec![result("a", "1"), Part::text("and?")]),
        ],
    );
    let body = written(&conversation).body;
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 5);
    let id = &messages[1]["content"][1]["id"];
    assert!(id.as_str().unwrap().starts_with("call_b_"), "{id}");
    assert_eq!(messages[1]["content"][1]["input"], json!({"input": [1]}));
    let content = &messages[2]["content"];
    assert_eq!(content[0], json!({"type": "tool_result", "tool_use_id": "a", "content": "1"}));
    assert_eq!(content[1]["tool_use_id"], *id);
    assert_eq!(content[2]["text"], "hurry");
    assert_eq!(messages[4]["content"], "and?");
}

#[test]
fn a_missing_result_is_an_error_and_a_lone_one_refused() {
    let turns =
        vec![said(Role::User, "go"), Turn::new(Role::Assistant, vec![call("a", "f", "no JSON")])];
    let body = written(&chat("claude-sonnet-4-5", turns.clone())).body;
    assert_eq!(body["messages"][1]["content"][0]["input"], json!({"input": "no JSON"}));
    assert_eq!(body["messages"][2]["content"][0]["is_error"], true);
    let lone = Turn::new(Role::User, vec![Part::text("x"), result("b", "1")]);
    let conversation = chat("claude-sonnet-4-5", [turns, vec![lone]].concat());
    assert_eq!(refused(&conversation).field, "messages[2].content[1]");
}

#[test]
fn a_conversation_begins_and_ends_with_the_user() {
    let body = written(&chat("m", vec![said(Role::Assistant, "Hi. ")])).body;
    let said = |role, text| json!({"role": role, "content": text});
    let expected = [said("user", "."), said("assistant", "Hi. "), said("user", "Continue.")];
    assert_eq!(body["messages"], json!(expected));
    let body = written(&chat("m", vec![self::said(Role::System, "Rules")])).body;
    assert_eq!(body["messages"], json!([said("user", ".")]));
    assert_eq!(body["system"], "Rules");
}

#[test]
fn media_are_checked() {
    let image = |source| Part::new(PartKind::Image(Media { source, name: None }));
    let document =
        |source| Part::new(PartKind::Document(Media { source, name: Some("notes.txt".into()) }));
    let data =
        |media_type: &str| Source::Data { media_type: media_type.into(), base64: "aGk=".into() };
    let url = |url: &str| Source::Url { url: url.into(), media_type: None };
    let sent = |part: Part| {
        let conversation = chat("m", vec![Turn::new(Role::User, vec![part])]);
        write_request(&conversation, &target())
            .map(|written| written.body["messages"][0]["content"][0].clone())
            .map_err(|refusal| refusal.field)
    };
    assert_eq!(sent(image(data("image/jpg"))).unwrap()["source"]["media_type"], "image/jpeg");
    assert_eq!(sent(image(url("https://a/b"))).unwrap()["source"]["type"], "url");
    let text = sent(document(data("text/csv"))).unwrap();
    let source = json!({"type": "text", "media_type": "text/plain", "data": "hi"});
    assert_eq!(text, json!({"type": "document", "source": source, "title": "notes.txt"}));
    assert_eq!(sent(document(data("application/pdf"))).unwrap()["source"]["type"], "base64");
    assert_eq!(sent(document(data("image/png"))).unwrap()["type"], "image");
    let audio = Part::new(PartKind::Audio(Media { source: data("audio/wav"), name: None }));
    let other = Part::new(PartKind::Other(json!({"type": "later"})));
    for part in [
        image(data("image/bmp")),
        image(url("http://a/b")),
        image(Source::File("file-1".into())),
        audio,
        other,
    ] {
        assert_eq!(sent(part).unwrap_err(), "messages[0].content[0]");
    }
}

#[test]
fn tools_are_converted() {
    let mut conversation = hello("claude-sonnet-4-5");
    let custom = ToolKind::Custom { name: "patch.x".into(), description: None, format: None };
    let hosted = ToolKind::Other(json!({"type": "web_search"}));
    conversation.tools = vec![
        function("f"),
        Tool { kind: custom, extra: Map::new() },
        Tool { kind: hosted, extra: Map::new() },
    ];
    conversation.parallel_tools = Some(false);
    conversation.tool_choice = Some(ToolChoice::Named("patch.x".into()));
    let Written { body, dropped, names } = written(&conversation);
    assert_eq!(body["tools"].as_array().unwrap().len(), 2);
    let schema = json!({"type": "object", "properties": {}});
    assert_eq!(body["tools"][0], json!({"name": "f", "input_schema": schema}));
    let name = &body["tools"][1]["name"];
    let choice = json!({"type": "tool", "name": name, "disable_parallel_tool_use": true});
    assert_eq!(body["tool_choice"], choice);
    assert!(names.is_wrapped("patch.x"));
    assert_eq!(dropped, ["tools[*].strict", "tools[2] (web_search)"]);
    for choice in [ToolChoice::Named("web_search".into()), ToolChoice::Other(json!({}))] {
        conversation.tool_choice = Some(choice);
        assert_eq!(refused(&conversation).field, "tool_choice");
    }
    conversation.tools.drain(..2);
    conversation.tool_choice = Some(ToolChoice::Required);
    assert_eq!(refused(&conversation).field, "tool_choice");
    conversation.tool_choice = Some(ToolChoice::Auto);
    assert_eq!(written(&conversation).body.get("tool_choice"), None);
}

#[test]
fn alternatives_at_the_top_of_a_schema_are_described() {
    let mut conversation = hello("m");
    let mut tool = function("f");
    let ToolKind::Function { parameters, description, strict, .. } = &mut tool.kind else {
        panic!()
    };
    *strict = None;
    *description = Some("Finds.".into());
    *parameters = Some(json!({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}));
    conversation.tools.push(tool);
    let tool = &written(&conversation).body["tools"][0];
    assert_eq!(tool["input_schema"], json!({"type": "object", "properties": {"a": {}}}));
    let expected = "Finds.\n\nThe input must match this JSON schema, too: \
        {\"anyOf\":[{\"required\":[\"a\"]}]}";
    assert_eq!(tool["description"], expected);
}

/// Returns the thinking, the effort, the limit and the dropped fields.
fn thinking(conversation: &Conversation) -> (Value, Value, Value, Vec<String>) {
    let Written { body, dropped, .. } = written(conversation);
    let effort = body["output_config"]["effort"].clone();
    (body["thinking"].clone(), effort, body["max_tokens"].clone(), dropped)
}

#[test]
fn efforts_become_thinking() {
    let with_effort = |model: &str, effort: &str| {
        let mut conversation = hello(model);
        conversation.reasoning.effort = Some(effort.into());
        conversation.max_tokens = Some(10_000);
        thinking(&conversation)
    };
    let adaptive = json!({"type": "adaptive"});
    let budget = |budget: u64| json!({"type": "enabled", "budget_tokens": budget});
    for (model, effort, expected, written, limit) in [
        ("claude-opus-4-6", "minimal", &adaptive, json!("low"), 10_000),
        ("claude-opus-4-6", "xhigh", &adaptive, json!("high"), 10_000),
        ("claude-opus-5-5", "xhigh", &adaptive, json!("xhigh"), 10_000),
        ("claude-haiku-4-5", "low", &budget(1_024), Value::Null, 10_000),
        ("claude-sonnet-4-5", "high", &budget(8_976), Value::Null, 10_000),
        ("kimi-k2", "medium", &budget(8_192), Value::Null, 10_000),
        ("claude-opus-4-5", "none", &Value::Null, Value::Null, 10_000),
        ("claude-opus-5", "none", &json!({"type": "disabled"}), Value::Null, 10_000),
        ("claude-sonnet-5-5", "none", &json!({"type": "between_tools"}), Value::Null, 10_000),
    ] {
        let expected = (expected.clone(), written, json!(limit), Vec::<String>::new());
        assert_eq!(with_effort(model, effort), expected, "{model} {effort}");
    }
    let (none, effort, _, dropped) = with_effort("claude-fable-5", "none");
    assert_eq!((none, effort), (Value::Null, json!("low")));
    assert_eq!(dropped, ["reasoning_effort"]);
    assert_eq!(with_effort("claude-3-5-haiku-latest", "low").3, ["reasoning_effort"]);
}

#[test]
fn budgets_become_efforts() {
    for (budget, effort) in [(512, "low"), (5_000, "medium"), (32_000, "high")] {
        let mut conversation = hello("claude-sonnet-4-6");
        conversation.reasoning.budget_tokens = Some(budget);
        conversation.reasoning.is_shown = Some(true);
        let (thinking, written, ..) = thinking(&conversation);
        assert_eq!(thinking, json!({"type": "adaptive", "display": "summarized"}));
        assert_eq!(written, effort);
    }
}

#[test]
fn a_budget_needs_signed_calls_and_no_forced_tool() {
    let thought = |api| Part {
        signature: Some(Signature::new(api, "s")),
        ..Part::new(PartKind::Thinking("so".into()))
    };
    let turns = |thought| {
        vec![
            said(Role::User, "go"),
            Turn::new(Role::Assistant, vec![thought, call("a", "f", "{}")]),
            Turn::new(Role::User, vec![result("a", "1")]),
        ]
    };
    let mut conversation = chat("claude-sonnet-4-5", turns(thought(Api::Messages)));
    conversation.tools = vec![function("f")];
    conversation.reasoning.mode = Some(ThinkingMode::Enabled);
    let (thinking_of_own, _, limit, _) = thinking(&conversation);
    assert_eq!(thinking_of_own["budget_tokens"], 3_072);
    assert_eq!(limit, 4_096);
    conversation.tool_choice = Some(ToolChoice::Required);
    assert!(thinking(&conversation).0.is_null());
    conversation.tool_choice = None;
    conversation.max_tokens = Some(2_047);
    assert!(thinking(&conversation).0.is_null());
    conversation.max_tokens = None;
    conversation.turns = turns(thought(Api::Gemini));
    let (thinking_of_foreign, _, _, dropped) = thinking(&conversation);
    assert!(thinking_of_foreign.is_null());
    assert_eq!(dropped, ["tools[*].strict", "reasoning_effort"]);
    assert_eq!(written(&conversation).body["messages"][1]["content"][0]["type"], "tool_use");
    conversation.model = "claude-opus-4-6".into();
    assert_eq!(thinking(&conversation).0["type"], "adaptive");
}

#[test]
fn sampling_fields_follow_the_model() {
    let sampled = |model: &str, effort: Option<&str>| {
        let mut conversation = hello(model);
        conversation.temperature = Some(1.5);
        conversation.top_p = Some(0.9);
        conversation.top_k = Some(40);
        conversation.stop = vec!["\n".into(), "END".into()];
        conversation.seed = Some(1);
        conversation.reasoning.effort = effort.map(str::to_owned);
        let Written { body, dropped, .. } = written(&conversation);
        assert_eq!(body["stop_sequences"], json!(["END"]));
        let sampling = ["temperature", "top_p", "top_k"].map(|key| body[key].clone());
        (Value::from(sampling.to_vec()), dropped)
    };
    let (sent, dropped) = sampled("claude-sonnet-4-0", None);
    assert_eq!(sent, json!([1, 0.9, 40]));
    assert_eq!(dropped, ["temperature", "stop", "seed"]);
    assert_eq!(sampled("claude-sonnet-4-5", None).0, json!([1, null, 40]));
    assert_eq!(sampled("claude-opus-4-6", None).0, json!([1, null, 40]));
    for (model, effort) in [("claude-opus-4-6", Some("low")), ("claude-sonnet-5", None)] {
        let (sent, dropped) = sampled(model, effort);
        assert_eq!(sent, json!([null, null, null]));
        assert_eq!(dropped, ["temperature", "top_p", "top_k", "stop", "seed"]);
    }
}

#[test]
fn formats_are_converted() {
    let mut conversation = hello("claude-sonnet-4-5");
    conversation.format = OutputFormat::Json;
    let body = written(&conversation).body;
    assert_eq!(body["system"], "Answer with one JSON object and nothing else.");
    let schema = json!({
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 0, "description": "Years"},
            "one": {"oneOf": [{"$ref": "#/$defs/a"}, {"type": ["string", "null"]}]},
        },
        "required": ["age"],
        "additionalProperties": {"type": "string"},
        "$defs": {"a": {"properties": {"x": {"type": "string", "format": "email"}}}},
    });
    let name = Some("person".into());
    let description = Some("A person".into());
    conversation.format = OutputFormat::Schema { name, description, schema, strict: Some(true) };
    let format = written(&conversation).body["output_config"]["format"].clone();
    let expected = json!({
        "type": "object",
        "description": "A person",
        "properties": {
            "age": {"type": "integer", "description": "Years\n\n{minimum: 0}"},
            "one": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": ["string", "null"]}]},
        },
        "required": ["age"],
        "additionalProperties": false,
        "$defs": {"a": {
            "properties": {"x": {"type": "string", "format": "email"}},
            "additionalProperties": false,
        }},
    });
    assert_eq!(format, json!({"type": "json_schema", "schema": expected}));
}

#[test]
fn unknown_fields_are_dropped_and_marks_of_the_cache_kept() {
    let mut conversation = hello("m");
    let extra = json!({"cache_control": {"type": "ephemeral"}, "detail": "low", "x": null});
    conversation.turns[0].parts[0].extra = extra.as_object().cloned().unwrap();
    conversation.turns[0].extra.insert("name".into(), "Ann".into());
    conversation.extra =
        json!({"user": "u", "stream_options": {}, "x": null}).as_object().cloned().unwrap();
    let Written { body, dropped, .. } = written(&conversation);
    assert_eq!(dropped, ["messages[*].name", "messages[*].detail", "user"]);
    assert_eq!(body["messages"][0]["content"][0]["cache_control"]["type"], "ephemeral");
    conversation.api = Api::Gemini;
    conversation.top_k = Some(3);
    conversation.model = "claude-opus-5".into();
    let expected = ["contents[*].name", "contents[*].detail", "generationConfig.topK", "user"];
    assert_eq!(written(&conversation).dropped, expected);
}

#[test]
fn a_custom_call_is_wrapped_and_a_refusal_is_a_text() {
    let (id, name, arguments) = ("a".into(), "patch".into(), "*** Begin".into());
    let custom = Part::new(PartKind::ToolCall { id, name, arguments, is_custom: true });
    let refusal = Part::new(PartKind::Refusal("No.".into()));
    let conversation = chat(
        "m",
        vec![
            said(Role::User, "go"),
            Turn::new(Role::Assistant, vec![refusal, custom]),
            Turn::new(Role::User, vec![result("a", "")]),
        ],
    );
    let body = written(&conversation).body;
    assert_eq!(body["messages"][1]["content"][0], json!({"type": "text", "text": "No."}));
    assert_eq!(body["messages"][1]["content"][1]["input"], json!({"input": "*** Begin"}));
    let expected = json!([{"type": "tool_result", "tool_use_id": "a"}]);
    assert_eq!(body["messages"][2]["content"], expected);
}

/// Returns turns with calls whose results come late, in any order, or not at all.
fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let step = (0..5u8, any::<usize>(), select(vec!["", " ", "x"]));
    vec(step, 0..14).prop_map(|steps| {
        let (mut turns, mut open) = (Vec::new(), Vec::new());
        for (at, (kind, choice, text)) in steps.into_iter().enumerate() {
            let (role, part) = match kind {
                0 => (Role::User, Part::text(text)),
                1 => (Role::Assistant, Part::text(text)),
                2 => (Role::System, Part::text(text)),
                3 => {
                    open.push(format!("call:{at}"));
                    (Role::Assistant, call(&format!("call:{at}"), "f.g", "[]"))
                }
                _ if open.is_empty() => continue,
                _ => {
                    let id = open.swap_remove(choice % open.len());
                    (Role::User, result(&id, text))
                }
            };
            turns.push(Turn::new(role, vec![part]));
        }
        turns
    })
}

/// Panics unless the maker accepts the messages.
fn check_messages(messages: &[Value]) {
    let mut awaited: Vec<Value> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let role = if at % 2 == 0 { "user" } else { "assistant" };
        assert_eq!(message["role"], role);
        let text = [json!({"type": "text", "text": message["content"]})];
        let blocks = message["content"].as_array().map_or(&text[..], Vec::as_slice);
        assert!(!blocks.is_empty());
        let results = blocks.iter().take_while(|block| block["type"] == "tool_result");
        let results: Vec<Value> = results.map(|block| block["tool_use_id"].clone()).collect();
        assert_eq!(results, awaited);
        let others = &blocks[results.len()..];
        assert!(others.iter().all(|block| block["type"] != "tool_result"));
        let mut texts = others.iter().filter_map(|block| block["text"].as_str());
        assert!(texts.all(|text| !text.trim().is_empty()));
        let calls = blocks.iter().filter(|block| block["type"] == "tool_use");
        awaited = calls.map(|block| block["id"].clone()).collect();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        assert!(awaited.iter().all(|id| id.as_str().unwrap().chars().all(is_plain)));
    }
    assert_eq!(messages.len() % 2, 1, "the last message is not the user's");
}

proptest! {
    #[test]
    fn the_maker_accepts_any_order_of_turns(turns in turns()) {
        let count = |turns: &[Turn], is: fn(&PartKind) -> bool| {
            turns.iter().flat_map(|turn| &turn.parts).filter(|part| is(&part.kind)).count()
        };
        let calls = count(&turns, |kind| matches!(kind, PartKind::ToolCall { .. }));
        let body = written(&chat("claude-sonnet-4-5", turns)).body;
        let messages = body["messages"].as_array().unwrap();
        check_messages(messages);
        let text = body["messages"].to_string();
        prop_assert_eq!(text.matches("\"tool_use\"").count(), calls);
        prop_assert_eq!(text.matches("\"tool_result\"").count(), calls);
    }
}
