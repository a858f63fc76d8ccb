use serde_json::{Value, json};

use super::*;
use crate::event::{Usage, UsageSource};
use crate::translation::{
    Api, Conversation, Media, OutputFormat, Part, PartKind, Refusal, Role, Signature, Source,
    Target, ThinkingMode, Tool, ToolChoice, ToolKind, Turn, Written,
};
use crate::translation::{
    Context, Opened, Piece, Reply, Stop, StreamReader, StreamWriter, pieces_of,
};

mod properties;

fn target() -> Target {
    Target { chat_limit: "max_tokens", takes_stream_options: true, output_tokens_assumed: 4_096 }
}

fn own(body: &Value) -> Value {
    write_request(&read_request(body).unwrap(), &target()).unwrap().body
}

fn written(conversation: &Conversation) -> Written {
    write_request(conversation, &target()).unwrap()
}

fn refused(conversation: &Conversation) -> Refusal {
    write_request(conversation, &target()).unwrap_err()
}

fn call(id: &str, name: &str, arguments: &str) -> Part {
    Part::new(PartKind::ToolCall {
        id: id.into(),
        name: name.into(),
        arguments: arguments.into(),
        is_custom: false,
    })
}

fn result(id: &str, text: &str) -> Part {
    let content = vec![Part::text(text)];
    Part::new(PartKind::ToolResult { id: id.into(), content, is_error: false })
}

fn function(name: &str) -> Tool {
    let parameters = Some(json!({"type": "object", "properties": {"a": {"type": "string"}}}));
    let kind = ToolKind::Function {
        name: name.into(),
        description: Some("Does it.".into()),
        parameters,
        strict: None,
    };
    Tool { kind, extra: Default::default() }
}

fn chat(turns: Vec<Turn>) -> Conversation {
    Conversation { model: "gemini-3-flash-preview".into(), turns, ..Conversation::new(Api::Chat) }
}

/// The second request of Gemini CLI 0.61, shortened.
fn cli_request() -> Value {
    json!({
        "contents": [
            {"parts": [{"text": "<session_context>"}, {"text": "What is it?"}], "role": "user"},
            {"parts": [
                {"functionCall": {"id": "run_1_0", "args": {"command": "echo x"}, "name": "run"},
                 "thoughtSignature": "skip_thought_signature_validator"},
                {"functionCall": {"id": "run_1_1", "args": {}, "name": "run"}},
            ], "role": "model"},
            {"parts": [
                {"functionResponse": {"name": "run", "response": {"output": "x"}, "id": "run_1_0"}},
                {"functionResponse": {"name": "run", "response": {"error": "no"}, "id": "run_1_1"}},
            ], "role": "user"},
        ],
        "systemInstruction": {"parts": [{"text": "You are an agent."}], "role": "user"},
        "tools": [{"functionDeclarations": [
            {"name": "run", "description": "Runs.", "parametersJsonSchema": {"type": "object"}},
            {"name": "list", "parameters": {"type": "OBJECT", "properties": {}}},
        ]}, {"googleSearch": {}}],
        "generationConfig": {"temperature": 1, "topP": 0.95, "topK": 64,
                             "thinkingConfig": {"includeThoughts": true, "thinkingBudget": 8192}},
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    })
}

#[test]
fn a_request_of_gemini_cli_is_read() {
    let it = read_request(&cli_request()).unwrap();
    assert_eq!(it.system, [Part::text("You are an agent.")]);
    let roles: Vec<Role> = it.turns.iter().map(|turn| turn.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::User]);
    let signature = Signature::new(Api::Gemini, "skip_thought_signature_validator");
    let first =
        Part { signature: Some(signature), ..call("run_1_0", "run", r#"{"command":"echo x"}"#) };
    assert_eq!(it.turns[1].parts, [first, call("run_1_1", "run", "{}")]);
    let failed = PartKind::ToolResult {
        id: "run_1_1".into(),
        content: vec![Part::text("no")],
        is_error: true,
    };
    assert_eq!(it.turns[2].parts, [result("run_1_0", "x"), Part::new(failed)]);
    assert!(matches!(&it.tools[1].kind, ToolKind::Function { parameters: Some(schema), .. }
        if *schema == json!({"type": "object", "properties": {}})));
    assert_eq!(it.tools[2].kind, ToolKind::Other(json!({"googleSearch": {}})));
    assert_eq!((it.temperature, it.top_k), (Some(1.0), Some(64)));
    assert_eq!(it.reasoning.budget_tokens, Some(8_192));
    assert_eq!(it.extra.keys().collect::<Vec<_>>(), ["safetySettings"]);
    assert_eq!(own(&cli_request()), cli_request());
}

#[test]
fn both_spellings_are_read() {
    let body = json!({
        "system_instruction": {"parts": {"text": "S"}},
        "contents": {"parts": [{"inline_data": {"mime_type": "image/png", "data": "aaaa"}}]},
        "tools": [{"function_declarations": [{"name": "f", "parameters_json_schema": {}}]}],
        "tool_config": {"function_calling_config": {"mode": "ANY", "allowed_function_names": ["f"]}},
        "generation_config": {"max_output_tokens": 9, "top_k": 40.0, "stop_sequences": ["a"],
                              "response_mime_type": "application/json",
                              "response_schema": {"type": "STRING"}},
    });
    let it = read_request(&body).unwrap();
    assert_eq!(it.system, [Part::text("S")]);
    assert!(matches!(it.turns[0].parts[0].kind, PartKind::Image(_)));
    assert!(matches!(&it.tools[0].kind, ToolKind::Function { name, .. } if name == "f"));
    assert_eq!(it.tool_choice, Some(ToolChoice::Named("f".into())));
    assert_eq!((it.max_tokens, it.top_k, it.stop.len()), (Some(9), Some(40), 1));
    assert!(matches!(&it.format, OutputFormat::Schema { schema, .. }
        if *schema == json!({"type": "string"})));
    assert!(it.extra.is_empty(), "{:?}", it.extra);
    let again = own(&body);
    assert_eq!(again["generationConfig"], body["generation_config"]);
    let data = json!({"mimeType": "image/png", "data": "aaaa"});
    assert_eq!(again["contents"], json!([{"role": "user", "parts": [{"inlineData": data}]}]));
}

#[test]
fn a_changed_field_is_written_anew() {
    let mut it = read_request(&cli_request()).unwrap();
    it.max_tokens = Some(5);
    let config = &written(&it).body["generationConfig"];
    assert_eq!(config["maxOutputTokens"], 5);
    assert_eq!(config["thinkingConfig"]["thinkingBudget"], 8_192);
}

#[test]
fn calls_without_ids_are_matched_by_name_and_order() {
    let body = json!({"contents": [
        {"role": "model", "parts": [{"functionCall": {"name": "a"}}, {"functionCall": {"name": "b"}},
                                    {"functionCall": {"name": "a"}}]},
        {"role": "user", "parts": [
            {"functionResponse": {"name": "a", "response": {"output": "1"}}},
            {"functionResponse": {"name": "a", "response": {"n": 2}}},
            {"functionResponse": {"name": "b", "response": {}}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "a"}}]},
    ]});
    let it = read_request(&body).unwrap();
    let ids = |turn: usize| -> Vec<&str> {
        let parts = it.turns[turn].parts.iter();
        parts
            .filter_map(|part| match &part.kind {
                PartKind::ToolCall { id, .. } | PartKind::ToolResult { id, .. } => Some(&**id),
                _ => None,
            })
            .collect()
    };
    assert_eq!(ids(0), ["call_gemini_0", "call_gemini_1", "call_gemini_2"]);
    assert_eq!(ids(1), ["call_gemini_0", "call_gemini_2", "call_gemini_1"]);
    assert_eq!(ids(2), ["call_gemini_3"]);
    let again = own(&body);
    assert_eq!(again["contents"][1], body["contents"][1]);
    assert_eq!(
        again["contents"][2]["parts"][0],
        json!({"functionCall": {"name": "a", "args": {}}})
    );
}

#[test]
fn turns_of_another_api_are_joined() {
    let thinking = Part {
        signature: Some(Signature::new(Api::Messages, "x")),
        ..Part::new(PartKind::Thinking("hidden".into()))
    };
    let image = Part::new(PartKind::Image(Media {
        source: Source::Data { media_type: "image/png".into(), base64: "aaaa".into() },
        name: Some("a.png".into()),
    }));
    let seen = PartKind::ToolResult {
        id: "c1".into(),
        content: vec![Part::text("{\"a\":1}"), image],
        is_error: false,
    };
    let signed =
        Part { signature: Some(Signature::new(Api::Gemini, "S1")), ..call("c3", "f.1", "") };
    let mut it = chat(vec![
        Turn::new(Role::System, vec![Part::text("one")]),
        Turn::new(Role::User, vec![Part::text("hi"), Part::text("")]),
        Turn::new(Role::Assistant, vec![thinking, Part::text("I call")]),
        Turn::new(Role::Assistant, vec![call("c1", "f.1", "{\"a\":\"x\"}"), call("c2", "g", "?")]),
        Turn::new(Role::User, vec![result("c2", "two")]),
        Turn::new(Role::User, vec![Part::new(seen), Part::text("go on")]),
        Turn::new(Role::Developer, vec![Part::text("two")]),
        Turn::new(Role::Assistant, vec![signed]),
        Turn::new(Role::User, vec![result("c3", "")]),
    ]);
    it.tools = vec![function("f.1"), function("g")];
    let f = crate::translation::ToolNames::new(&it, false).at_provider("f.1");
    let body = written(&it).body;
    assert_eq!(body["systemInstruction"], json!({"parts": [{"text": "one"}, {"text": "two"}]}));
    let expected = json!([
        {"role": "user", "parts": [{"text": "hi"}]},
        {"role": "model", "parts": [
            {"text": "I call"},
            {"functionCall": {"name": f, "args": {"a": "x"}},
             "thoughtSignature": "skip_thought_signature_validator"},
            {"functionCall": {"name": "g", "args": {"input": "?"}}},
        ]},
        {"role": "user", "parts": [
            {"functionResponse": {"name": f, "response": {"a": 1}}},
            {"functionResponse": {"name": "g", "response": {"output": "two"}}},
            {"inlineData": {"mimeType": "image/png", "data": "aaaa"}},
            {"text": "go on"},
        ]},
        {"role": "model", "parts": [
            {"functionCall": {"name": f, "args": {}}, "thoughtSignature": "S1"}]},
        {"role": "user", "parts": [
            {"functionResponse": {"name": f, "response": {"output": ""}}}]},
    ]);
    assert_eq!(body["contents"], expected);
}

#[test]
fn settings_of_another_api_are_written() {
    let mut it = chat(vec![Turn::new(Role::User, vec![Part::text("hi")])]);
    it.api = Api::Messages;
    it.tools = vec![
        function("f"),
        Tool { kind: ToolKind::Other(json!({"type": "web_search"})), extra: Default::default() },
        Tool {
            kind: ToolKind::Custom { name: "patch".into(), description: None, format: None },
            extra: json!({"cache_control": {}}).as_object().unwrap().clone(),
        },
    ];
    it.tool_choice = Some(ToolChoice::Named("f".into()));
    it.parallel_tools = Some(false);
    it.temperature = Some(2.5);
    it.seed = Some(1 << 40);
    it.stop = vec!["a".into()];
    it.max_tokens = Some(10);
    it.top_p = Some(0.5);
    it.format = OutputFormat::Schema {
        name: Some("n".into()),
        description: None,
        schema: json!({"type": "object"}),
        strict: Some(true),
    };
    it.extra.insert("metadata".into(), json!({}));
    let Written { body, dropped, names } = written(&it);
    assert!(names.is_wrapped("patch"));
    let functions = body["tools"][0]["functionDeclarations"].as_array().unwrap();
    assert_eq!(functions[0]["parametersJsonSchema"]["type"], "object");
    assert_eq!(functions[1]["parametersJsonSchema"]["required"], json!(["input"]));
    let calling = json!({"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}});
    assert_eq!(body["toolConfig"], calling);
    let config = json!({
        "maxOutputTokens": 10, "temperature": 2, "topP": 0.5, "stopSequences": ["a"],
        "responseMimeType": "application/json", "responseJsonSchema": {"type": "object"},
    });
    assert_eq!(body["generationConfig"], config);
    let all = [
        "tools[1] (web_search)",
        "temperature",
        "seed",
        "tool_choice.disable_parallel_tool_use",
        "metadata",
        "tools[*].cache_control",
    ];
    assert_eq!(dropped, all);
}

#[test]
fn inexpressible_fields_are_refused() {
    let user = |part: Part| chat(vec![Turn::new(Role::User, vec![part])]);
    let image = |source| Part::new(PartKind::Image(Media { source, name: None }));
    let url = |url: &str| image(Source::of_url(url));
    let file = written(&user(url("https://example.org/a.png?x=1"))).body;
    let data = json!({"fileUri": "https://example.org/a.png?x=1", "mimeType": "image/png"});
    assert_eq!(file["contents"][0]["parts"][0]["fileData"], data);
    for part in [
        url("http://example.org/a.png"),
        image(Source::File("file-1".into())),
        Part::new(PartKind::Other(json!({"type": "x"}))),
        result("unknown", ""),
    ] {
        assert_eq!(refused(&user(part)).field, "messages[*].content");
    }
    let mut it = user(Part::text("hi"));
    it.stop = vec!["a".into(); 6];
    assert_eq!(refused(&it).field, "stop");
    it.stop.clear();
    it.tool_choice = Some(ToolChoice::Required);
    assert_eq!(refused(&it).field, "tool_choice");
}

#[test]
fn fields_without_an_equivalent_are_found() {
    let refused = [
        json!({"cachedContent": "cachedContents/1"}),
        json!({"cached_content": "cachedContents/1"}),
        json!({"generationConfig": {"candidateCount": 2}}),
        json!({"generation_config": {"response_modalities": ["TEXT", "IMAGE"]}}),
        json!({"generationConfig": {"responseLogprobs": true}}),
        json!({"generationConfig": {"responseMimeType": "text/x.enum"}}),
    ];
    for body in refused {
        check_for_other(&read_request(&body).unwrap()).unwrap_err();
    }
    let accepted = [
        cli_request(),
        json!({"generationConfig": {"candidateCount": 1, "responseModalities": ["TEXT"],
                                    "responseLogprobs": false, "mediaResolution": "X"}}),
        json!({"generationConfig": {"responseMimeType": "text/plain"}}),
    ];
    for body in accepted {
        check_for_other(&read_request(&body).unwrap()).unwrap();
    }
}

#[test]
fn thinking_is_written_in_the_terms_of_the_model() {
    let written = |model: &str, effort: Option<&str>, budget, mode| {
        let reasoning = crate::translation::Reasoning {
            effort: effort.map(str::to_owned),
            budget_tokens: budget,
            mode,
            ..Default::default()
        };
        thinking::write_thinking(&reasoning, model, None)
    };
    let level = |level: &str| Some(json!({"thinkingLevel": level}));
    let budget = |budget: i64| Some(json!({"thinkingBudget": budget}));
    for (model, effort, expected) in [
        ("gemini-3-flash-preview", "none", level("MINIMAL")),
        ("gemini-3.1-pro-preview", "minimal", level("LOW")),
        ("models/gemini-4-flash", "xhigh", level("HIGH")),
        ("gemini-2.5-flash", "none", budget(0)),
        ("gemini-2.5-pro", "none", budget(128)),
        ("gemini-2.5-pro", "medium", budget(8_192)),
        ("gemini-2.5-flash", "max", budget(24_576)),
    ] {
        assert_eq!(written(model, Some(effort), None, None), expected, "{model} {effort}");
    }
    let enabled = Some(ThinkingMode::Enabled);
    let shown = |name: &str, value: Value| Some(json!({"includeThoughts": true, name: value}));
    let medium = written("gemini-3-pro", None, Some(9_000), enabled);
    assert_eq!(medium, shown("thinkingLevel", json!("MEDIUM")));
    let most = written("gemini-2.5-flash", None, Some(31_999), enabled);
    assert_eq!(most, shown("thinkingBudget", json!(24_576)));
    let adaptive = written("gemini-2.5-flash", None, None, Some(ThinkingMode::Adaptive));
    assert_eq!(adaptive, shown("thinkingBudget", json!(-1)));
    assert_eq!(written("gemini-3-pro", None, None, None), None);
}

fn context(is_array: bool) -> Context {
    Context {
        id: "fl-1".into(),
        created: 0,
        model: "m".into(),
        wants_usage: false,
        is_array,
        request: Value::Null,
    }
}

fn usage() -> Usage {
    Usage {
        input_tokens: 100,
        cached_input_tokens: 40,
        output_tokens: 30,
        reasoning_tokens: 10,
        source: UsageSource::Provider,
        ..Usage::default()
    }
}

fn signed(part: Part, api: Api, value: &str) -> Part {
    Part { signature: Some(Signature::new(api, value)), ..part }
}

fn thinking(text: &str) -> Part {
    Part::new(PartKind::Thinking(text.into()))
}

fn reply(parts: Vec<Part>, stop: Stop) -> Reply {
    let extra = Default::default();
    Reply { id: "r1".into(), model: "m1".into(), parts, stop: Some(stop), extra }
}

/// Reads a stream whose chunks are these documents.
fn stream(chunks: &[Value]) -> Vec<Piece> {
    let (mut reader, mut pieces) = (ChunkReader::default(), Vec::new());
    chunks.iter().for_each(|chunk| reader.event("", chunk, &mut pieces));
    reader.end(&mut pieces);
    pieces
}

fn stream_bytes(pieces: &[Piece], is_array: bool) -> String {
    let (mut writer, mut bytes) = (ChunkWriter::new(context(is_array)), Vec::new());
    pieces.iter().for_each(|piece| writer.piece(piece, &Usage::default(), &mut bytes));
    writer.end(&usage(), &mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// Returns the documents of a stream.
fn chunks(text: &str, is_array: bool) -> Vec<Value> {
    if is_array {
        return serde_json::from_str(text).unwrap();
    }
    let events = text.split_terminator("\r\n\r\n").map(|it| it.strip_prefix("data: ").unwrap());
    events.map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// Joins adjacent deltas.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Delta(last)), Piece::Delta(next)) => last.push_str(&next),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}

#[test]
fn an_answer_is_read() {
    let body = json!({
        "candidates": [{
            "content": {"role": "model", "parts": [
                {"text": "Hmm", "thought": true},
                {"text": "Sure."},
                {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "Q0=="},
                {"functionCall": {"name": "f", "args": {"a": 1}, "id": "x"}},
            ]},
            "finishReason": "STOP", "index": 0,
        }],
        "usageMetadata": {"promptTokenCount": 1},
        "modelVersion": "gemini-3-flash", "responseId": "abc",
    });
    let read = read_reply(&body);
    let PartKind::ToolCall { id, .. } = &read.parts[2].kind else { panic!("a call") };
    assert!(id.starts_with("call_gemini_") && id.len() <= 40, "{id}");
    let first = signed(call(id, "f", r#"{"a":1}"#), Api::Gemini, "Q0==");
    let parts = [thinking("Hmm"), Part::text("Sure."), first, call("x", "f", r#"{"a":1}"#)];
    assert_eq!(read.parts, parts);
    assert_eq!((&*read.id, &*read.model), ("abc", "gemini-3-flash"));
    assert_eq!(read.stop, Some(Stop::ToolCalls));
    for (reason, stop) in [
        ("STOP", Stop::End),
        ("MAX_TOKENS", Stop::MaxTokens),
        ("PROHIBITED_CONTENT", Stop::Refused),
        ("RECITATION", Stop::Refused),
        ("MALFORMED_FUNCTION_CALL", Stop::Other("MALFORMED_FUNCTION_CALL".into())),
    ] {
        let body = json!({"candidates": [{"finishReason": reason}]});
        assert_eq!(read_reply(&body).stop, Some(stop.clone()));
        assert_eq!(stream(&[body]).last(), Some(&Piece::Stop(stop)));
    }
    let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}});
    assert_eq!(read_reply(&blocked).stop, Some(Stop::Refused));
    assert_eq!(stream(std::slice::from_ref(&blocked)).last(), Some(&Piece::Stop(Stop::Refused)));
}

#[test]
fn an_answer_of_another_api_is_written() {
    let parts = vec![
        signed(thinking("Hmm"), Api::Messages, "EqQB"),
        Part::text("Sure."),
        Part::text(""),
        call("toolu_1", "f", r#"{"a":1}"#),
    ];
    let mut foreign = reply(parts, Stop::ToolCalls);
    foreign.extra.insert("stop_details".into(), json!({}));
    foreign.id = String::new();
    let body = write_reply(&foreign, &usage(), &context(false));
    let signature =
        |part: usize| body["candidates"][0]["content"]["parts"][part]["thoughtSignature"].clone();
    let expected = json!({
        "candidates": [{"content": {"role": "model", "parts": [
            {"text": "Hmm", "thought": true, "thoughtSignature": signature(0)},
            {"text": "Sure."},
            {"functionCall": {"name": "f", "args": {"a": 1}, "id": "toolu_1"},
             "thoughtSignature": signature(2)},
        ]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 100, "cachedContentTokenCount": 40,
            "candidatesTokenCount": 20, "thoughtsTokenCount": 10, "totalTokenCount": 130},
        "modelVersion": "m1", "responseId": "fl-1",
    });
    assert_eq!(body, expected);
    let empty = write_reply(&reply(vec![], Stop::Refused), &Usage::default(), &context(false));
    assert_eq!(empty["candidates"][0]["content"]["parts"], json!([{"text": ""}]));
    assert_eq!(empty["candidates"][0]["finishReason"], "SAFETY");
    assert!(empty.get("usageMetadata").is_none());
}

#[test]
fn a_stream_is_read_piece_by_piece() {
    let chunk = |parts: Value| {
        json!({"candidates": [{"content": {"role": "model", "parts": parts}}],
               "modelVersion": "m1", "responseId": "r1"})
    };
    let mut last = chunk(json!([{"text": "", "thoughtSignature": "S"}]));
    last["candidates"][0]["finishReason"] = "STOP".into();
    let pieces = stream(&[
        chunk(json!([{"text": "Hm", "thought": true}])),
        chunk(json!([{"text": "m", "thought": true}, {"text": "He"}])),
        chunk(json!([{"text": "y"}])),
        last,
    ]);
    let expected = [
        Piece::Begin { id: "r1".into(), model: "m1".into() },
        Piece::Open(Opened::Thinking),
        Piece::Delta("Hm".into()),
        Piece::Delta("m".into()),
        Piece::Close,
        Piece::Open(Opened::Text),
        Piece::Delta("He".into()),
        Piece::Delta("y".into()),
        Piece::Signature(Signature::new(Api::Gemini, "S")),
        Piece::Close,
        Piece::Stop(Stop::End),
    ];
    assert_eq!(pieces, expected);
    let none = [Piece::Begin { id: String::new(), model: String::new() }, Piece::Stop(Stop::End)];
    assert_eq!(stream(&[]), none);
}

#[test]
fn a_stream_is_written_as_events_or_as_an_array() {
    let parts = vec![Part::text("Hi"), call("c1", "f", r#"{"a":1}"#)];
    let pieces = pieces_of(&reply(parts, Stop::ToolCalls));
    let events = stream_bytes(&pieces, false);
    assert!(events.starts_with("data: {\"candidates\":") && events.ends_with("}\r\n\r\n"));
    let array = stream_bytes(&pieces, true);
    assert!(array.starts_with("[{") && array.ends_with("}]"));
    let documents = chunks(&events, false);
    assert_eq!(documents, chunks(&array, true));
    let parts = |at: usize| documents[at]["candidates"][0]["content"]["parts"].clone();
    assert_eq!(parts(0), json!([{"text": "Hi"}]));
    assert_eq!(parts(1), json!([{"functionCall": {"id": "c1", "name": "f", "args": {"a": 1}}}]));
    assert_eq!(documents[2]["candidates"][0]["finishReason"], "STOP");
    assert_eq!(documents[2]["usageMetadata"]["candidatesTokenCount"], 20);
    assert_eq!(documents.len(), 3);
}

#[test]
fn thoughts_of_another_api_come_back() {
    let hidden = Signature { is_redacted: true, ..Signature::new(Api::Messages, "c2VjcmV0") };
    let parts = vec![
        signed(thinking("Hmm, é"), Api::Messages, "EqQB"),
        Part { signature: Some(hidden), ..thinking("") },
        Part::text("Sure."),
        call("toolu_1", "f", r#"{"a":1}"#),
        call("toolu_2", "f", "{}"),
    ];
    let foreign = reply(parts, Stop::ToolCalls);
    let document = write_reply(&foreign, &usage(), &context(false));
    let streamed = chunks(&stream_bytes(&pieces_of(&foreign), false), false);
    let of = |document: &Value| {
        let parts = document["candidates"][0]["content"]["parts"].clone();
        parts.as_array().cloned().unwrap_or_default()
    };
    let streamed: Vec<Value> = streamed.iter().flat_map(&of).collect();
    for returned in [of(&document), streamed] {
        let read = |parts: Vec<&Value>| {
            let content = json!({"role": "model", "parts": parts});
            let mut turn = read_request(&json!({"contents": [content]})).unwrap().turns.remove(0);
            turn.parts.retain(|part| part.kind != PartKind::Text(String::new()));
            turn.parts
        };
        let without_thoughts = returned.iter().filter(|part| part["thought"] != true).collect();
        assert_eq!(read(without_thoughts), foreign.parts);
    }
    let all = json!({"contents": [document["candidates"][0]["content"]]});
    assert_eq!(read_request(&all).unwrap().turns[0].parts, foreign.parts);
    // Python's client returns each chunk of a stream as a content.
    let mut pieces = pieces_of(&foreign);
    pieces.insert(2, Piece::Delta("Well. ".into()));
    let streamed = chunks(&stream_bytes(&pieces, false), false);
    let contents = streamed.iter().map(|chunk| chunk["candidates"][0]["content"].clone());
    let read = read_request(&json!({"contents": contents.collect::<Vec<_>>()})).unwrap();
    let mut parts = read.turns[0].parts.clone();
    assert_eq!(parts.remove(0).kind, PartKind::Thinking("Well. Hmm, é".into()));
    assert_eq!(parts[..4], foreign.parts[1..]);
    assert_eq!((parts.len(), read.turns.len()), (5, 1));
}
