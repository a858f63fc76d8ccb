use super::*;

fn written(body: &Value) -> Value {
    let conversation = read_request(body).unwrap();
    write_request(&conversation, &target()).unwrap().body
}

fn from_other(conversation: &Conversation) -> Written {
    write_request(conversation, &target()).unwrap()
}

fn messages_of(turns: Vec<Turn>) -> Value {
    let conversation = Conversation { turns, ..Conversation::new(Api::Messages) };
    from_other(&conversation).body["messages"].clone()
}

fn tool_call(id: &str, name: &str, arguments: &str) -> Part {
    let (id, name, arguments) = (id.to_owned(), name.to_owned(), arguments.to_owned());
    Part::new(PartKind::ToolCall { id, name, arguments, is_custom: false })
}

fn tool_result(id: &str, content: Vec<Part>) -> Part {
    Part::new(PartKind::ToolResult { id: id.to_owned(), content, is_error: false })
}

fn function(name: &str) -> Tool {
    let kind = ToolKind::Function {
        name: name.to_owned(),
        description: None,
        parameters: None,
        strict: None,
    };
    Tool { kind, extra: Extra::new() }
}

#[test]
fn a_request_in_the_same_api_is_unchanged() {
    let body = json!({
        "model": "gpt-5.2",
        "messages": [
            {"role": "developer", "content": "Be brief.", "name": "app"},
            {"role": "user", "content": [
                {"type": "text", "text": "See", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
                {"type": "file", "file": {"file_id": "file-1"}},
                {"type": "file", "file": {"file_data": "AA=="}},
                {"type": "video_url", "video_url": {"url": "https://x"}}]},
            {"role": "assistant", "content": null, "reasoning_content": "Hm", "tool_calls": [
                {"id": "call_1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"},
                 "extra_content": {"google": {"thought_signature": "CpcB"}}},
                {"id": "call_2", "type": "custom", "custom": {"name": "c", "input": "x"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": ""},
            {"role": "tool", "tool_call_id": "call_2", "content": [
                {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}], "refusal": null},
            {"role": "assistant", "refusal": "No", "audio": {"id": "audio_1"}},
            {"role": "assistant", "content": "a", "reasoning_details": [
                {"type": "reasoning.summary", "summary": "S", "format": "openai-responses-v1", "index": 0},
                {"type": "reasoning.encrypted", "data": "gAAA", "id": "rs_1", "index": 1},
                {"type": "reasoning.text", "text": "T", "signature": "EqQB", "index": 2},
                {"type": "reasoning.text", "text": null, "signature": null, "index": 7}]},
            {"role": "function", "name": "f", "content": "1"}],
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true, "x": 1}},
            {"type": "custom", "custom": {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "s: /a/"}}}},
            {"type": "web_search"}],
        "tool_choice": {"type": "custom", "custom": {"name": "c"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": null}},
        "max_completion_tokens": 10, "max_tokens": 9, "temperature": 0.5, "stop": ["a"], "seed": -1,
        "stream": true, "stream_options": {"include_usage": true}, "n": 2, "logprobs": null,
        "reasoning_effort": "low", "reasoning": {"effort": "high"}, "top_k": -1,
    });
    assert_eq!(written(&body), body);
}

#[test]
fn equal_forms_are_written_alike() {
    let one = json!({"model": "m", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "reasoning": "Hm", "reasoning_details": [{"type": "reasoning.text", "text": "Hm", "index": 0}], "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}],
        "stop": "a", "stream": false, "response_format": {"type": "text"}, "max_tokens": 3});
    let other = json!({"model": "m", "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning_details": [{"type": "reasoning.text", "text": "Hm", "index": 0}], "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}],
        "stop": ["a"], "max_completion_tokens": 3});
    assert_eq!(written(&one), other);
}

#[test]
fn a_field_of_a_wrong_type_is_refused() {
    for (body, field) in [
        (json!([]), "body"),
        (json!({}), "messages"),
        (json!({"messages": [1]}), "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 1}]}), "messages[0].content"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
        (json!({"messages": [], "temperature": "hot"}), "temperature"),
        (json!({"messages": [], "stop": [1]}), "stop"),
    ] {
        assert_eq!(read_request(&body).unwrap_err().field, field);
    }
}

#[test]
fn fields_of_chat_alone_are_refused_for_other_apis() {
    let with = |name: &str, value: Value| {
        let mut body = object(json!({"messages": [{"role": "user", "content": "Hi"}]}));
        body.insert(name.to_owned(), value);
        check_for_other(&read_request(&body.into()).unwrap()).map_err(|refusal| refusal.field)
    };
    for (name, value) in [
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("modalities", json!(["text", "audio"])),
        ("web_search_options", json!({})),
        ("functions", json!([{"name": "f"}])),
        ("response_format", json!({"type": "grammar", "value": "x"})),
        ("logit_bias", json!({"1": -100})),
    ] {
        assert_eq!(with(name, value), Err(name.to_owned()));
    }
    for (name, value) in [
        ("n", json!(1)),
        ("logprobs", json!(false)),
        ("modalities", json!(["text"])),
        ("function_call", json!(null)),
        ("logit_bias", json!({})),
    ] {
        assert_eq!(with(name, value), Ok(()));
    }
    for (message, field) in [
        (json!({"role": "function", "name": "f", "content": ""}), "messages[0].role"),
        (json!({"role": "assistant", "audio": {"id": "a"}}), "messages[0].audio"),
        (json!({"role": "assistant", "tool_calls": [{"type": "x"}]}), "messages[0].tool_calls"),
    ] {
        let conversation = read_request(&json!({"messages": [message]})).unwrap();
        assert_eq!(check_for_other(&conversation).unwrap_err().field, field);
    }
}

#[test]
fn fields_without_effect_are_not_listed_as_dropped() {
    let body = json!({"messages": [], "n": 1, "logprobs": false, "modalities": ["text"], "user": "u",
        "stream_options": {"include_usage": true}});
    let conversation = crate::translation::read_for_other(Api::Chat, &body).unwrap();
    assert_eq!(conversation.extra, object(json!({"user": "u"})));
}

#[test]
fn ids_and_details_return_the_signatures_of_other_apis() {
    let gemini = Signature::new(Api::Gemini, "Cp/+=");
    let anthropic = Signature::new(Api::Messages, "EqQB");
    let id = gemini.attach_to("call_1");
    let body = json!({"messages": [
        {"role": "assistant", "reasoning_content": "Hm", "reasoning_details": [
            {"type": "reasoning.text", "text": "Hm", "signature": anthropic.text_for(Api::Chat), "index": 0}],
         "tool_calls": [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": id, "content": "1"}]});
    let conversation = read_request(&body).unwrap();
    let [thought, call] = &*conversation.turns[0].parts else { panic!("two parts") };
    assert_eq!(thought.signature, Some(anthropic));
    assert_eq!(call.signature, Some(gemini));
    assert!(conversation.turns[0].extra.is_empty() && thought.extra.is_empty());
    let result = &conversation.turns[1].parts[0].kind;
    assert!(matches!(result, PartKind::ToolResult { id, .. } if id == "call_1"));
}

#[test]
fn results_follow_their_calls_and_images_follow_the_results() {
    let image = Part::new(PartKind::Image(Media {
        source: Source::of_url("data:image/png;base64,AA=="),
        name: None,
    }));
    let messages = messages_of(vec![
        Turn::new(Role::User, vec![Part::text("a"), Part::text(""), Part::text("b")]),
        Turn::new(
            Role::Assistant,
            vec![Part::text("Look"), tool_call("1", "shot", ""), tool_call("2", "f", "{}")],
        ),
        Turn::new(
            Role::User,
            vec![
                Part::text("Now"),
                tool_result("1", vec![Part::text("ok"), image]),
                tool_result("2", vec![]),
            ],
        ),
    ]);
    assert_eq!(
        messages,
        json!([
            {"role": "user", "content": "a\n\nb"},
            {"role": "assistant", "content": "Look", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "shot", "arguments": "{}"}},
                {"id": "2", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1",
             "content": "ok\n\nThe output follows in the next message of the user."},
            {"role": "tool", "tool_call_id": "2", "content": ""},
            {"role": "user", "content": [
                {"type": "text", "text": "Output of the call 1 of the tool shot:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "text", "text": "Now"}]}])
    );
}

#[test]
fn system_texts_become_one_first_message() {
    let mut conversation = Conversation::new(Api::Responses);
    conversation.system = vec![Part::text("a")];
    conversation.turns = vec![
        Turn::new(Role::Developer, vec![Part::text("b")]),
        Turn::new(Role::Assistant, vec![tool_call("1", "f", "{}")]),
        Turn::new(Role::Assistant, vec![tool_call("2", "f", "{}")]),
        Turn::new(Role::System, vec![Part::text("c")]),
        Turn::new(Role::User, vec![tool_result("1", vec![])]),
        Turn::new(Role::User, vec![tool_result("2", vec![])]),
    ];
    let body = from_other(&conversation).body;
    let roles: Vec<&Value> =
        body["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["system", "assistant", "tool", "tool"]);
    assert_eq!(body["messages"][0]["content"], "a\n\nb\n\nc");
}

#[test]
fn only_thoughts_of_this_api_are_sent_back() {
    let thought = |signature: Option<Signature>| Part {
        signature,
        ..Part::new(PartKind::Thinking("Hm".to_owned()))
    };
    let answer = |value: Option<Signature>, has_call: bool| {
        let call = has_call.then(|| tool_call("1", "f", "{}"));
        let parts = [thought(value), Part::text("a")].into_iter().chain(call).collect();
        messages_of(vec![Turn::new(Role::Assistant, parts)])[0].clone()
    };
    let own = |value: &str| Some(Signature::new(Api::Chat, value));
    assert_eq!(answer(own("reasoning_content"), true)["reasoning_content"], "Hm");
    let detail = r#"{"type":"reasoning.text","signature":"EqQB","format":"anthropic-claude-v1"}"#;
    assert_eq!(
        answer(own(detail), false)["reasoning_details"],
        json!([{"type": "reasoning.text", "signature": "EqQB", "format": "anthropic-claude-v1", "text": "Hm"}])
    );
    assert_eq!(
        answer(own("thinking"), false)["content"],
        json!([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
               {"type": "text", "text": "a"}])
    );
    for (signature, has_call) in [
        (own("reasoning_content"), false),
        (own("reasoning"), true),
        (Some(Signature::new(Api::Messages, "EqQB")), true),
        (None, true),
    ] {
        let message = answer(signature, has_call);
        assert!(!message.to_string().contains("Hm"), "{message}");
    }
    let alone = messages_of(vec![Turn::new(Role::Assistant, vec![thought(None)])]);
    assert_eq!(alone, json!([]));
}

#[test]
fn tools_are_functions_with_accepted_names() {
    let mut conversation = Conversation::new(Api::Responses);
    let custom = ToolKind::Custom {
        name: "apply_patch".to_owned(),
        description: None,
        format: Some(json!({"type": "grammar", "syntax": "lark", "definition": "s"})),
    };
    let search = ToolKind::Other(json!({"type": "web_search"}));
    conversation.tools = vec![
        function("a.b"),
        Tool { kind: custom, extra: Extra::new() },
        Tool { kind: search, extra: Extra::new() },
    ];
    conversation.tool_choice = Some(ToolChoice::Named("apply_patch".to_owned()));
    conversation.parallel_tools = Some(false);
    let written = from_other(&conversation);
    let name = written.names.at_provider("a.b");
    let body = written.body;
    assert_eq!(
        body["tools"][0],
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}})
    );
    assert_eq!(body["tools"][1]["function"]["parameters"]["required"], json!(["input"]));
    assert_eq!(
        body["tool_choice"],
        json!({"type": "function", "function": {"name": "apply_patch"}})
    );
    assert_eq!(body["parallel_tool_calls"], false);
    assert_eq!(written.dropped, ["tools[2] (web_search)"]);

    conversation.tools.drain(..2);
    for choice in [ToolChoice::Named("web_search".to_owned()), ToolChoice::Required] {
        conversation.tool_choice = Some(choice);
        let refusal = write_request(&conversation, &target()).unwrap_err();
        assert_eq!(refusal.field, "tool_choice");
    }
    conversation.tool_choice = Some(ToolChoice::Auto);
    let body = from_other(&conversation).body;
    assert!(
        ["tools", "tool_choice", "parallel_tool_calls"].iter().all(|it| body.get(*it).is_none())
    );
}

#[test]
fn a_budget_becomes_the_nearest_effort() {
    let effort = |model: &str, budget: Option<u64>, mode: Option<ThinkingMode>| {
        let mut conversation = Conversation::new(Api::Messages);
        conversation.model = model.to_owned();
        conversation.reasoning.budget_tokens = budget;
        conversation.reasoning.mode = mode;
        let written = from_other(&conversation);
        (written.body["reasoning_effort"].as_str().map(str::to_owned), written.dropped.len())
    };
    let on = Some(ThinkingMode::Enabled);
    assert_eq!(effort("gpt-5", Some(1024), on), (Some("low".to_owned()), 0));
    assert_eq!(effort("gpt-5", Some(10_000), on), (Some("medium".to_owned()), 0));
    assert_eq!(effort("gpt-5", Some(31_999), on), (Some("high".to_owned()), 0));
    assert_eq!(effort("openai/gpt-4o", Some(1024), on), (None, 1));
    assert_eq!(effort("gpt-5", None, Some(ThinkingMode::Disabled)), (None, 1));
    assert_eq!(effort("gpt-5", None, None), (None, 0));
    assert_eq!(effort("mistral-small-latest", Some(8_192), on), (Some("high".to_owned()), 1));
}

#[test]
fn fields_that_chat_lacks_are_refused_or_listed() {
    let mut conversation = Conversation::new(Api::Messages);
    conversation.top_k = Some(5);
    conversation.is_streamed = true;
    conversation.max_tokens = Some(7);
    conversation.extra = object(json!({"metadata": {"user_id": "x"}, "container": null}));
    let mut text = Part::text("Hi");
    text.extra = object(json!({"cache_control": {"type": "ephemeral"}}));
    conversation.turns = vec![Turn::new(Role::User, vec![text.clone(), text])];
    let written = from_other(&conversation);
    assert_eq!(written.dropped, ["top_k", "messages[*].cache_control", "metadata"]);
    assert_eq!(written.body["stream_options"], json!({"include_usage": true}));
    assert_eq!(written.body["max_completion_tokens"], 7);

    let file = Media { source: Source::File("file_1".to_owned()), name: None };
    conversation.turns[0].parts.push(Part::new(PartKind::Image(file)));
    let refusal = write_request(&conversation, &target()).unwrap_err();
    assert_eq!(refusal.field, "messages[0].content[2]");
    conversation.turns.clear();
    conversation.stop = vec![String::from("a"); 5];
    assert_eq!(write_request(&conversation, &target()).unwrap_err().field, "stop_sequences");
}

#[test]
fn new_models_of_openai_get_tools_without_reasoning() {
    let effort = |model: &str, tools: Vec<Tool>| {
        let mut conversation = Conversation::new(Api::Messages);
        conversation.model = model.to_owned();
        conversation.tools = tools;
        conversation.reasoning.effort = Some("high".to_owned());
        let written = from_other(&conversation);
        (written.body["reasoning_effort"].as_str().map(str::to_owned), written.dropped.len())
    };
    assert_eq!(effort("gpt-5.6-terra", vec![function("f")]), (Some("none".to_owned()), 1));
    for model in ["gpt-5.2", "gpt-5", "openai/gpt-5.6"] {
        assert_eq!(effort(model, vec![function("f")]), (Some("high".to_owned()), 0));
    }
    assert_eq!(effort("gpt-5.6", vec![]), (Some("high".to_owned()), 0));
}

#[test]
fn mistral_gets_its_order_of_roles_and_its_ids() {
    let mut conversation = Conversation::new(Api::Messages);
    conversation.model = "Devstral-Small-2".to_owned();
    conversation.turns = vec![
        Turn::new(
            Role::Assistant,
            vec![tool_call("toolu_1", "f", "{}"), tool_call("abcDEF123", "f", "{}")],
        ),
        Turn::new(
            Role::User,
            vec![
                tool_result("toolu_1", vec![]),
                tool_result("abcDEF123", vec![]),
                Part::text("Go"),
            ],
        ),
    ];
    let body = from_other(&conversation).body;
    let messages = body["messages"].as_array().unwrap();
    let roles: Vec<&Value> = messages.iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["assistant", "tool", "tool", "assistant", "user"]);
    let id = messages[0]["tool_calls"][0]["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
    assert_eq!(messages[1]["tool_call_id"], id);
    assert_eq!(messages[2]["tool_call_id"], "abcDEF123");
}

#[test]
fn long_ids_are_shortened_alike_in_call_and_result() {
    let id = format!("fc_{}", "ä".repeat(60));
    let messages = messages_of(vec![
        Turn::new(Role::Assistant, vec![tool_call(&id, "f", "{}")]),
        Turn::new(Role::User, vec![tool_result(&id, vec![])]),
    ]);
    let short = messages[0]["tool_calls"][0]["id"].as_str().unwrap();
    assert!(short.chars().count() <= 40);
    assert_eq!(messages[1]["tool_call_id"], short);
}

pub(super) fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,4}", Just("data:;base64,".to_owned()), Just("{\"a\":1}".to_owned())]
}

/// Adds unknown fields to an object, or an object of that name.
pub(super) fn with_extra(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    (inner, prop::option::of(prop_oneof![Just(json!(null)), Just(json!({"a": [1]}))])).prop_map(
        |(mut value, extra)| {
            if let (Some(fields), Some(extra)) = (value.as_object_mut(), extra) {
                fields.insert("x_unknown".to_owned(), extra);
            }
            value
        },
    )
}

fn content_part() -> impl Strategy<Value = Value> {
    let image = with_extra(text().prop_map(|url| json!({"url": url})));
    let file = prop_oneof![
        text().prop_map(|data| json!({"file_data": data})),
        (text(), text()).prop_map(|(data, name)| json!({"file_data": data, "filename": name})),
        text().prop_map(|id| json!({"file_id": id, "filename": null})),
        Just(json!({})),
    ];
    let audio = prop::sample::select(vec!["wav", "mp3", "mpeg", "x-wav", "flac", ""]);
    with_extra(prop_oneof![
        text().prop_map(|text| json!({"type": "text", "text": text})),
        image.prop_map(|image| json!({"type": "image_url", "image_url": image})),
        text().prop_map(|url| json!({"type": "image_url", "image_url": url})),
        with_extra(file).prop_map(|file| json!({"type": "file", "file": file})),
        (text(), audio).prop_map(|(data, format)| {
            json!({"type": "input_audio", "input_audio": {"data": data, "format": format}})
        }),
        text().prop_map(|text| json!({"type": "refusal", "refusal": text})),
        text().prop_map(
            |text| json!({"type": "thinking", "thinking": [{"type": "text", "text": text}]})
        ),
        text().prop_map(|text| json!({"type": "thinking", "thinking": text, "closed": true})),
        text().prop_map(|text| json!({"type": "x_unknown", "text": text})),
        Just(json!({"type": "text"})),
    ])
}

pub(super) fn content() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(Value::from),
        prop::collection::vec(content_part(), 0..4).prop_map(Value::from),
        Just(Value::Null),
    ]
}

pub(super) fn call_value() -> impl Strategy<Value = Value> {
    let function = || {
        let it = (text(), text()).prop_map(|(name, it)| json!({"name": name, "arguments": it}));
        with_extra(it)
    };
    let custom =
        with_extra((text(), text()).prop_map(|(name, it)| json!({"name": name, "input": it})));
    with_extra(prop_oneof![
        function().prop_map(|it| json!({"id": "1", "type": "function", "function": it})),
        function().prop_map(|it| json!({"id": "1", "type": "function", "function": it, "index": 0,
            "extra_content": {"google": {"thought_signature": "Cp"}}})),
        custom.prop_map(|it| json!({"id": "1", "type": "custom", "custom": it})),
        Just(json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": ""},
            "extra_content": {"google": {"thought_signature": "Cp", "x": 1}}})),
    ])
}

pub(super) fn thoughts() -> impl Strategy<Value = Value> {
    let detail = with_extra(prop_oneof![
        text().prop_map(
            |it| json!({"type": "reasoning.text", "text": it, "signature": "s", "index": 0})
        ),
        text().prop_map(|it| json!({"type": "reasoning.text", "text": it, "index": 1})),
        text().prop_map(|it| json!({"type": "reasoning.text", "text": it, "format": "unknown"})),
        text().prop_map(|it| json!({"type": "reasoning.summary", "summary": it, "id": "rs"})),
        text().prop_map(|it| json!({"type": "reasoning.encrypted", "data": it, "index": 0})),
        text().prop_map(|it| json!({"type": "reasoning.text", "text": it, "index": 0,
            "signature": format!("flowledger:gemini::{it}")})),
        Just(json!({"type": "reasoning.encrypted", "data": "flowledger:messages!::x", "index": 0})),
        Just(json!({"text": null})),
    ]);
    prop_oneof![
        Just(json!({})),
        text().prop_map(|it| json!({"reasoning_content": it})),
        text().prop_map(|it| json!({"reasoning": it})),
        text().prop_map(|it| json!({"reasoning": it, "reasoning_content": it})),
        prop::collection::vec(detail, 0..4).prop_map(|it| json!({"reasoning_details": it})),
        Just(json!({"reasoning": null, "reasoning_details": null})),
    ]
}

fn message() -> impl Strategy<Value = Value> {
    let role = prop::sample::select(vec!["system", "developer", "user", "function", "x_unknown"]);
    let plain =
        (role, content()).prop_map(|(role, content)| json!({"role": role, "content": content}));
    let result =
        content().prop_map(|it| json!({"role": "tool", "tool_call_id": "1", "content": it}));
    let calls = prop::collection::vec(call_value(), 0..3);
    let answer = (prop::option::of(content()), thoughts(), prop::option::of(calls), any::<bool>());
    let answer = answer.prop_map(|(content, thoughts, calls, is_refused)| {
        let mut message = object(json!({"role": "assistant"}));
        fields::merge(&mut message, &object(thoughts));
        message.extend(content.map(|content| ("content".to_owned(), content)));
        message.extend(calls.map(|calls| ("tool_calls".to_owned(), Value::from(calls))));
        message.extend(is_refused.then(|| ("refusal".to_owned(), json!("No"))));
        Value::Object(message)
    });
    with_extra(prop_oneof![plain, result, answer])
}

fn tool() -> impl Strategy<Value = Value> {
    let function = prop_oneof![
        Just(json!({"name": "f"})),
        Just(json!({"name": "f", "description": null, "parameters": null, "strict": null})),
        Just(
            json!({"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": false})
        ),
    ];
    let format = prop_oneof![
        Just(json!({"type": "text"})),
        Just(json!({"type": "text", "x": 1})),
        Just(json!({"type": "grammar", "grammar": {"syntax": "lark", "definition": "s"}})),
        Just(json!({"type": "grammar", "grammar": {"type": "lark"}})),
        Just(json!({"type": "grammar", "grammar": {}})),
        Just(json!({"grammar": {"a": 1}})),
        Just(json!(null)),
    ];
    let custom = format.prop_map(|format| json!({"name": "c", "format": format}));
    with_extra(prop_oneof![
        with_extra(function).prop_map(|it| json!({"type": "function", "function": it})),
        with_extra(custom).prop_map(|it| json!({"type": "custom", "custom": it})),
        Just(json!({"type": "web_search"})),
        Just(json!({"type": "function"})),
    ])
}

fn setting() -> impl Strategy<Value = (&'static str, Value)> {
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": true}});
    prop::sample::select(vec![
        ("temperature", json!(0.5)),
        ("temperature", json!(null)),
        ("top_p", json!(0.25)),
        ("top_k", json!(3)),
        ("seed", json!(-4)),
        ("stop", json!(["a", "b"])),
        ("stop", json!(null)),
        ("max_completion_tokens", json!(5)),
        ("max_tokens", json!(null)),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(-0.5)),
        ("parallel_tool_calls", json!(false)),
        ("tool_choice", json!("auto")),
        ("tool_choice", json!("required")),
        ("tool_choice", json!(null)),
        ("tool_choice", json!({"type": "function", "function": {"name": "c"}})),
        ("tool_choice", json!({"type": "custom", "custom": {"name": "c"}})),
        (
            "tool_choice",
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
        ),
        ("response_format", schema.clone()),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!({"type": "json_object", "schema": {}})),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"schema": {}, "x": null}}),
        ),
        ("response_format", json!(null)),
        ("reasoning_effort", json!("xhigh")),
        ("reasoning_effort", json!(null)),
        ("reasoning", json!({"max_tokens": 2000, "exclude": true})),
        ("reasoning", json!({"enabled": true})),
        ("thinking", json!({"type": "disabled"})),
        ("stream", json!(true)),
        ("stream_options", json!({"include_usage": true})),
        ("functions", json!([])),
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("x_unknown", json!({"a": [1, null]})),
    ])
}

fn request() -> impl Strategy<Value = Value> {
    let messages = prop::collection::vec(message(), 0..5);
    let tools = prop::collection::vec(tool(), 1..3);
    let settings = prop::collection::vec(setting(), 0..8);
    (messages, prop::option::of(tools), settings).prop_map(|(messages, tools, settings)| {
        let mut body = object(json!({"model": "m", "messages": messages}));
        body.extend(tools.map(|tools| ("tools".to_owned(), Value::from(tools))));
        body.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(body)
    })
}

/// Replaces forms of the same meaning: a list of one plain text by the text.
pub(super) fn normal(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| match value {
                Value::Array(parts) if name == "content" => match &*parts {
                    [part]
                        if part.as_object().is_some_and(|it| it.len() == 2)
                            && part["text"].is_string()
                            && part["type"] == "text" =>
                    {
                        (name, part["text"].clone())
                    }
                    _ => (name, normal(parts.into())),
                },
                value => (name, normal(value)),
            });
            fields.collect()
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_request_in_the_same_api_is_unchanged(body in request()) {
        prop_assert_eq!(normal(written(&body)), normal(body));
    }

    #[test]
    fn no_request_makes_the_reader_panic(body in any_json(), messages in any_json()) {
        let _ = read_request(&body);
        let _ = read_request(&json!({"messages": messages}));
        if let Ok(mut conversation) = read_request(&json!({"messages": [messages], "tools": [body]})) {
            let _ = check_for_other(&conversation);
            let _ = write_request(&conversation, &target());
            conversation.api = Api::Messages;
            let _ = write_request(&conversation, &target());
        }
    }
}
