//! Requests of clients of other APIs, and those of Codex for providers of other APIs.

use serde_json::{Value, json};

use super::{read, target, written};
use crate::translation::responses::{check_for_other, write_request};
use crate::translation::{
    Api, Conversation, Extra, Media, OutputFormat, Part, PartKind, Refusal, Role, Signature,
    Source, ThinkingMode, Tool, ToolChoice, ToolKind, Turn,
};

fn with_text(api: Api, text: &str) -> Conversation {
    let turns = vec![Turn::new(Role::User, vec![Part::text(text)])];
    Conversation { model: "gpt-5".into(), turns, ..Conversation::new(api) }
}

fn function(name: &str) -> Tool {
    let kind = ToolKind::Function {
        name: name.into(),
        description: Some("Runs a command.".into()),
        parameters: Some(json!({"type": "object"})),
        strict: None,
    };
    Tool { kind, extra: Extra::new() }
}

fn hosted(kind: &str) -> Tool {
    Tool { kind: ToolKind::Other(json!({"type": kind})), extra: Extra::new() }
}

fn tool_call(id: &str, name: &str, arguments: &str) -> Part {
    let (id, name, arguments) = (id.into(), name.into(), arguments.into());
    Part::new(PartKind::ToolCall { id, name, arguments, is_custom: false })
}

fn tool_result(id: &str, content: Vec<Part>) -> Part {
    Part::new(PartKind::ToolResult { id: id.into(), content, is_error: false })
}

fn image() -> Part {
    let source = Source::Data { media_type: "image/png".into(), base64: "AA==".into() };
    Part::new(PartKind::Image(Media { source, name: None }))
}

fn thinking(text: &str, signature: Signature) -> Part {
    Part { signature: Some(signature), ..Part::new(PartKind::Thinking(text.into())) }
}

fn own_signature() -> Signature {
    Signature { id: Some("rs_1".into()), ..Signature::new(Api::Responses, "gAAA") }
}

fn refused(conversation: &Conversation) -> Refusal {
    write_request(conversation, &target()).unwrap_err()
}

/// A conversation as Claude Code has it.
fn claude_code() -> Conversation {
    let mut it = with_text(Api::Messages, "List the files.");
    it.is_streamed = true;
    it.system = vec![Part::text("You are a coding agent."), Part::text("Be brief.")];
    it.system[1].extra.insert("cache_control".into(), json!({"type": "ephemeral"}));
    let foreign = Signature::new(Api::Messages, "EqQB");
    it.turns.push(Turn::new(
        Role::Assistant,
        vec![
            thinking("Not for OpenAI.", foreign),
            thinking("I will list them.", own_signature()),
            Part::text("I look."),
            tool_call("toolu_1", "Bash", "{\"command\":\"ls\"}"),
            tool_call("toolu_2", "Read", ""),
        ],
    ));
    it.turns.push(Turn::new(
        Role::User,
        vec![
            tool_result("toolu_1", vec![Part::text("a.png")]),
            tool_result("toolu_2", vec![Part::text("This is it:"), image()]),
            Part::text("And now?"),
            Part::text(""),
        ],
    ));
    it.tools = vec![function("Bash"), function("Read"), hosted("web_search_20250305")];
    it.tool_choice = Some(ToolChoice::Auto);
    it.parallel_tools = Some(true);
    it.reasoning.mode = Some(ThinkingMode::Enabled);
    it.reasoning.budget_tokens = Some(31_999);
    it.max_tokens = Some(32_000);
    it.temperature = Some(1.0);
    it.top_k = Some(5);
    it.extra.insert("metadata".into(), json!({"user_id": "u"}));
    it
}

#[test]
fn a_request_of_claude_code_is_translated() {
    let request = written(&claude_code());
    let parameters = json!({"type": "object", "properties": {}});
    let tool = |name: &str| {
        json!({
            "type": "function", "name": name, "description": "Runs a command.",
            "parameters": parameters, "strict": false,
        })
    };
    let expected = json!({
        "model": "gpt-5",
        "instructions": "You are a coding agent.\n\nBe brief.",
        "input": [
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "List the files."},
            ]},
            {"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA", "summary": [
                {"type": "summary_text", "text": "I will list them."},
            ]},
            {"type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": "I look."},
            ]},
            {"type": "function_call", "call_id": "toolu_1", "name": "Bash",
                "arguments": "{\"command\":\"ls\"}"},
            {"type": "function_call", "call_id": "toolu_2", "name": "Read", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "toolu_1", "output": "a.png"},
            {"type": "function_call_output", "call_id": "toolu_2", "output": [
                {"type": "input_text", "text": "This is it:"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA==",
                    "detail": "auto"},
            ]},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "And now?"},
            ]},
        ],
        "tools": [tool("Bash"), tool("Read")],
        "tool_choice": "auto",
        "parallel_tool_calls": true,
        "stream": true,
        "store": false,
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 32000,
    });
    assert_eq!(request.body, expected);
    let dropped =
        ["system[*].cache_control", "tools[2] (web_search_20250305)", "top_k", "metadata"];
    assert_eq!(request.dropped, dropped);
}

#[test]
fn fields_of_chat_completions_with_the_same_meaning_are_kept() {
    let mut it = with_text(Api::Chat, "Hi");
    it.reasoning.effort = Some("low".into());
    for (key, value) in [
        ("user", json!("u")),
        ("verbosity", json!("low")),
        ("stream_options", json!({"include_usage": true})),
        ("logit_bias", json!({"1": 2})),
        ("service_tier", Value::Null),
    ] {
        it.extra.insert(key.into(), value);
    }
    let request = written(&it);
    assert_eq!(request.body["user"], "u");
    assert_eq!(request.body["text"], json!({"verbosity": "low"}));
    assert_eq!(request.body["reasoning"], json!({"effort": "low"}));
    assert_eq!(request.dropped, ["logit_bias"]);
}

#[test]
fn limits_of_openai_are_met() {
    let mut it = with_text(Api::Gemini, "Hi");
    it.model = "gpt-5.2".into();
    it.max_tokens = Some(5);
    it.temperature = Some(0.3);
    it.seed = Some(1);
    it.presence_penalty = Some(0.0);
    let long = "x".repeat(80);
    it.turns.push(Turn::new(Role::Assistant, vec![tool_call(&long, "a.b", "{}")]));
    it.turns.push(Turn::new(Role::User, vec![tool_result(&long, Vec::new())]));
    it.tools = vec![function("a.b")];
    it.tool_choice = Some(ToolChoice::Named("a.b".into()));
    let request = written(&it);
    let (call, result) = (&request.body["input"][1], &request.body["input"][2]);
    assert_eq!(request.body["max_output_tokens"], 16);
    assert_eq!(request.body["temperature"], 0.3);
    assert!(call["call_id"].as_str().unwrap().len() <= 64);
    assert_eq!(call["call_id"], result["call_id"]);
    assert_eq!(result["output"], "");
    assert_eq!(call["name"], request.body["tools"][0]["name"]);
    assert_eq!(request.body["tool_choice"], json!({"type": "function", "name": call["name"]}));
    let dropped = ["generationConfig.maxOutputTokens (raised to 16)", "generationConfig.seed"];
    assert_eq!(request.dropped, dropped);
}

#[test]
fn a_model_that_reasons_gets_no_temperature() {
    let mut it = with_text(Api::Chat, "Hi");
    it.temperature = Some(0.3);
    it.top_p = Some(1.0);
    it.reasoning.effort = Some("medium".into());
    let request = written(&it);
    assert_eq!(
        (&request.body["temperature"], &request.body["top_p"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(request.dropped, ["temperature"]);
    it.model = "gpt-5.2".into();
    it.reasoning.effort = Some("none".into());
    let request = written(&it);
    assert_eq!(request.body["temperature"], 0.3);
    assert_eq!(request.body["include"], Value::Null);
}

#[test]
fn a_model_without_reasoning_gets_no_fields_for_it() {
    let mut it = claude_code();
    it.model = "gpt-4.1".into();
    it.temperature = Some(0.5);
    let request = written(&it);
    assert_ne!(request.body["input"][1]["type"], "reasoning");
    for field in ["reasoning", "include"] {
        assert_eq!(request.body[field], Value::Null);
    }
    assert_eq!(request.body["temperature"], 0.5);
    assert!(request.dropped.contains(&"thinking".to_owned()));
}

#[test]
fn thinking_switched_off_leaves_the_effort_to_the_model() {
    let mut it = with_text(Api::Messages, "Hi");
    it.reasoning.mode = Some(ThinkingMode::Disabled);
    let request = written(&it);
    assert_eq!(request.body["reasoning"], Value::Null);
    assert_eq!(request.dropped, ["thinking"]);
}

#[test]
fn the_nearest_effort_stands_for_a_budget() {
    let budgets = [(1, "low"), (4_000, "low"), (5_000, "medium"), (20_000, "high")];
    for (budget, effort) in budgets {
        let mut it = with_text(Api::Gemini, "Hi");
        it.reasoning.budget_tokens = Some(budget);
        assert_eq!(written(&it).body["reasoning"]["effort"], effort, "{budget}");
    }
}

#[test]
fn reasoning_without_an_item_after_it_is_left_out() {
    let mut it = with_text(Api::Messages, "Hi");
    let loose = vec![thinking("", own_signature())];
    it.turns.push(Turn::new(Role::Assistant, loose));
    it.turns.push(Turn::new(Role::User, vec![Part::text("Go on.")]));
    let input = written(&it).body["input"].clone();
    let roles: Vec<&Value> = input.as_array().unwrap().iter().map(|item| &item["role"]).collect();
    assert_eq!(roles, ["user", "user"]);
}

#[test]
fn a_format_gets_what_openai_requires() {
    let mut it = with_text(Api::Gemini, "List colors.");
    it.format = OutputFormat::Json;
    let request = written(&it);
    assert_eq!(request.body["text"]["format"], json!({"type": "json_object"}));
    assert_eq!(request.body["input"][1]["role"], "developer");
    it.turns[0].parts.push(Part::text("As JSON."));
    assert_eq!(written(&it).body["input"].as_array().unwrap().len(), 1);

    let schema = json!({"type": "object"});
    let (name, description) = (None, None);
    it.format = OutputFormat::Schema { name, description, schema: schema.clone(), strict: None };
    let format = json!({
        "type": "json_schema", "name": "answer", "schema": schema, "strict": false,
    });
    assert_eq!(written(&it).body["text"]["format"], format);
}

#[test]
fn fields_that_change_the_answer_are_refused() {
    let hi = |api| with_text(api, "Hi");
    let stop = Conversation { stop: vec!["x".into()], ..hi(Api::Messages) };
    assert_eq!(refused(&stop).field, "stop_sequences");
    let forced = Conversation {
        tools: vec![hosted("web_search")],
        tool_choice: Some(ToolChoice::Named("web_search".into())),
        ..hi(Api::Messages)
    };
    assert_eq!(refused(&forced).field, "tool_choice");
    let needed = Conversation { tool_choice: Some(ToolChoice::Required), ..forced };
    assert_eq!(refused(&needed).field, "tool_choice");

    let stored = Media { source: Source::File("file_1".into()), name: None };
    let audio = Source::Data { media_type: "audio/wav".into(), base64: "AA==".into() };
    let audio = Media { source: audio, name: None };
    for kind in [
        PartKind::Document(stored.clone()),
        PartKind::Audio(audio),
        PartKind::Other(json!({"type": "search_result"})),
    ] {
        let mut it = hi(Api::Messages);
        it.turns[0].parts.push(Part::new(kind));
        assert_eq!(refused(&it).field, "messages[0].content[1]");
    }
    // Files of chat completions are OpenAI's.
    let mut it = hi(Api::Chat);
    it.turns[0].parts.push(Part::new(PartKind::Document(stored)));
    assert_eq!(written(&it).body["input"][0]["content"][1]["file_id"], "file_1");
}

#[test]
fn fields_that_only_this_api_has_are_refused() {
    for (field, body) in [
        ("previous_response_id", json!({"previous_response_id": "resp_1"})),
        ("conversation", json!({"conversation": {"id": "conv_1"}})),
        ("prompt", json!({"prompt": {"id": "pmpt_1"}})),
        ("background", json!({"background": true})),
        ("top_logprobs", json!({"top_logprobs": 2})),
        ("include", json!({"include": ["message.output_text.logprobs"]})),
        ("text.format", json!({"text": {"format": {"type": "grammar"}}})),
    ] {
        assert_eq!(check_for_other(&read(&body)).unwrap_err().field, field);
    }
    let codex = json!({
        "previous_response_id": null, "background": false, "top_logprobs": 0, "store": false,
        "include": ["reasoning.encrypted_content"], "text": {"verbosity": "low"},
    });
    assert_eq!(check_for_other(&read(&codex)), Ok(()));
}

#[test]
fn a_request_of_codex_is_read() {
    let it = read(&json!({
        "model": "gpt-5", "stream": true, "store": false, "reasoning": {"summary": "auto"},
        "input": [
            {"type": "message", "id": "msg_1", "role": "developer", "content": [
                {"type": "input_text", "text": "You are a coding agent."},
            ]},
            {"type": "reasoning", "id": "rs_4", "summary": [], "content": null,
                "encrypted_content": "flowledger:messages::EqQB"},
            {"type": "function_call", "id": "fc_4", "name": "close_agent", "status": "completed",
                "namespace": "multi_agent_v1", "arguments": "{}",
                "call_id": "call_4.flowledger:gemini:CpcB"},
            {"type": "function_call_output", "call_id": "call_4.flowledger:gemini:CpcB",
                "output": "done"},
            {"type": "custom_tool_call", "call_id": "call_5", "name": "apply_patch", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "call_5", "output": "ok"},
        ],
        "tools": [
            {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [
                {"type": "function", "name": "close_agent", "strict": false, "parameters": {}},
            ]},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
            {"type": "web_search"},
        ],
    }));
    let parts: Vec<&Part> = it.turns.iter().flat_map(|turn| &turn.parts).collect();
    assert_eq!(it.turns[0].role, Role::Developer);
    assert_eq!(parts[1].signature, Some(Signature::new(Api::Messages, "EqQB")));
    assert_eq!(parts[2].signature, Some(Signature::new(Api::Gemini, "CpcB")));
    let ToolKind::Function { name, .. } = &it.tools[0].kind else { panic!("{:?}", it.tools[0]) };
    assert_eq!(it.tool_name_of("call_4"), Some(name.as_str()));
    assert!(matches!(&parts[3].kind, PartKind::ToolResult { id, .. } if id == "call_4"));
    assert!(matches!(&parts[4].kind, PartKind::ToolCall { is_custom: true, .. }));
    assert!(parts[5].extra.is_empty());
    assert!(matches!(it.tools[2].kind, ToolKind::Other(_)));
    assert_eq!(it.reasoning.is_shown, Some(true));
}

#[test]
fn parts_of_other_models_are_left_out_for_openai() {
    let call = json!({
        "type": "function_call", "id": "fc_1", "name": "f", "arguments": "{}",
        "call_id": "call_1.flowledger:gemini:CpcB",
    });
    let result = json!({
        "type": "function_call_output", "output": "done",
        "call_id": "call_1.flowledger:gemini:CpcB",
    });
    let reasoning = |content: &str| json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": content});
    let foreign = [reasoning("flowledger:messages::EqQB"), reasoning("flowledger:gemini::")];
    let input = [&foreign[..], &[reasoning("gAAA"), call.clone(), result.clone()]].concat();
    let mut expected = vec![reasoning("gAAA"), call, result];
    expected[1]["call_id"] = "call_1".into();
    expected[2]["call_id"] = "call_1".into();
    let again = written(&read(&json!({"input": input})));
    assert_eq!(again.body["input"], Value::from(expected));
}

#[test]
fn a_field_of_another_type_is_refused() {
    for (field, body) in [
        ("body", json!([])),
        ("model", json!({"model": 5})),
        ("input", json!({"input": 5})),
        ("input[1]", json!({"input": [{"role": "user", "content": "Hi"}, 5]})),
        ("input[0].content", json!({"input": [{"role": "user", "content": 5}]})),
        ("input[0].content[0]", json!({"input": [{"role": "user", "content": ["Hi"]}]})),
        ("input[0].output", json!({"input": [{"type": "function_call_output", "call_id": "c"}]})),
        ("tools", json!({"tools": {}})),
        ("max_output_tokens", json!({"max_output_tokens": "5"})),
    ] {
        assert_eq!(super::read_request(&body).unwrap_err().field, field);
    }
}
