//! Requests of other APIs: the written request obeys OpenAI's rules.

use super::*;

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,5}", "[a-z.äß]{60,70}", Just(String::new())]
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,2}", "[a-zä_]{30,60}"]
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        9 => Just(Source::of_url("data:image/png;base64,AA==")),
        3 => Just(Source::of_url("https://x/y")),
        1 => Just(Source::File("file_1".to_owned())),
    ]
}

fn signature() -> impl Strategy<Value = Option<Signature>> {
    prop::sample::select(vec![
        None,
        Some(Signature::new(Api::Chat, "reasoning_content")),
        Some(Signature::new(Api::Chat, "reasoning")),
        Some(Signature::new(Api::Chat, "thinking")),
        Some(Signature::new(Api::Chat, "{\"type\":\"reasoning.summary\"}")),
        Some(Signature::new(Api::Messages, "EqQB")),
        Some(Signature::new(Api::Gemini, "Cp")),
    ])
}

fn content() -> impl Strategy<Value = Part> {
    let media = || (source(), prop::option::of(name()));
    prop_oneof![
        4 => "[a-z]{0,3}".prop_map(Part::text),
        2 => media().prop_map(|(source, name)| Part::new(PartKind::Image(Media { source, name }))),
        1 => media().prop_map(|(source, name)| Part::new(PartKind::Document(Media { source, name }))),
        1 => media().prop_map(|(source, name)| Part::new(PartKind::Audio(Media { source, name }))),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    let result = (id(), prop::collection::vec(content(), 0..3), any::<bool>()).prop_map(
        |(id, content, is_error)| Part::new(PartKind::ToolResult { id, content, is_error }),
    );
    let user = prop::collection::vec(prop_oneof![content(), result], 0..4)
        .prop_map(|parts| Turn::new(Role::User, parts));
    let system = "[a-z]{0,3}".prop_map(|text| Turn::new(Role::Developer, vec![Part::text(text)]));
    let said = prop_oneof![
        "[a-z]{0,3}".prop_map(Part::text),
        "[a-z]{0,3}".prop_map(|text| Part::new(PartKind::Refusal(text))),
        ("[a-z]{0,3}", signature()).prop_map(|(text, signature)| Part {
            signature,
            ..Part::new(PartKind::Thinking(text))
        }),
        (id(), name(), "[a-z{}]{0,3}", any::<bool>(), signature()).prop_map(
            |(id, name, arguments, is_custom, signature)| Part {
                signature,
                ..Part::new(PartKind::ToolCall { id, name, arguments, is_custom })
            }
        ),
    ];
    let assistant =
        prop::collection::vec(said, 0..4).prop_map(|parts| Turn::new(Role::Assistant, parts));
    prop_oneof![3 => user, 3 => assistant, 1 => system]
}

fn tool() -> impl Strategy<Value = Tool> {
    let kind = prop_oneof![
        (name(), prop::option::of(Just(json!({"type": "object"})))).prop_map(
            |(name, parameters)| ToolKind::Function {
                name,
                description: None,
                parameters,
                strict: None
            }
        ),
        name().prop_map(|name| ToolKind::Custom { name, description: None, format: None }),
        Just(ToolKind::Other(json!({"type": "web_search"}))),
    ];
    kind.prop_map(|kind| Tool { kind, extra: object(json!({"cache_control": {}})) })
}

fn conversation() -> impl Strategy<Value = Conversation> {
    let api = prop::sample::select(vec![Api::Messages, Api::Responses, Api::Gemini]);
    let choice = prop_oneof![
        Just(None),
        Just(Some(ToolChoice::Auto)),
        Just(Some(ToolChoice::Required)),
        name().prop_map(|name| Some(ToolChoice::Named(name))),
    ];
    let schema = OutputFormat::Schema {
        name: Some("a b".to_owned()),
        description: None,
        schema: json!({}),
        strict: None,
    };
    let format = prop::sample::select(vec![OutputFormat::Text, OutputFormat::Json, schema]);
    let model = prop::sample::select(vec!["m", "gpt-5.6", "gpt-4o", "mistral-small-latest"]);
    let turns = prop::collection::vec(turn(), 0..6);
    let tools = prop::collection::vec(tool(), 0..3);
    (api, turns, tools, choice, format, model).prop_map(
        |(api, turns, tools, tool_choice, format, model)| Conversation {
            model: model.to_owned(),
            system: vec![Part::text(""), Part::text("s")],
            parallel_tools: Some(true),
            turns,
            tools,
            tool_choice,
            format,
            ..Conversation::new(api)
        },
    )
}

/// Checks a request against <https://platform.openai.com/docs/api-reference/chat/create>.
fn check(body: &Value) {
    let messages = body["messages"].as_array().unwrap();
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap();
        assert_eq!(role == "system", at == 0, "one system message, the first");
        let content = &message["content"];
        let calls = message["tool_calls"].as_array();
        match role {
            "tool" => assert!(content.is_string() && is_id(&message["tool_call_id"])),
            "assistant" => {
                assert!(!content.is_null() || calls.is_some() || message["refusal"].is_string());
                assert!(calls.is_none_or(|calls| !calls.is_empty()));
                for call in calls.into_iter().flatten() {
                    assert!(is_id(&call["id"]) && call["type"] == "function", "{call}");
                    assert!(is_name(&call["function"]["name"]), "{call}");
                    assert_ne!(call["function"]["arguments"], "");
                }
            }
            _ => check_content(content),
        }
    }
    let tools = body["tools"].as_array();
    assert!(tools.is_some_and(|it| !it.is_empty()) || body.get("tool_choice").is_none());
    for tool in tools.into_iter().flatten() {
        assert!(is_name(&tool["function"]["name"]) && tool["function"]["parameters"].is_object());
    }
    if body["response_format"]["type"] == "json_schema" {
        assert!(is_name(&body["response_format"]["json_schema"]["name"]));
    }
}

fn check_content(content: &Value) {
    let Value::Array(parts) = content else {
        assert!(content.as_str().is_some_and(|text| !text.is_empty()), "{content}");
        return;
    };
    assert!(!parts.is_empty());
    for part in parts {
        match part["type"].as_str().unwrap() {
            "text" => assert_ne!(part["text"], ""),
            "image_url" => assert!(part["image_url"]["url"].is_string()),
            "file" => assert!(
                part["file"]["file_data"].is_string() && part["file"]["filename"].is_string()
            ),
            "input_audio" => assert!(part["input_audio"]["data"].is_string()),
            other => panic!("{other}"),
        }
    }
}

fn is_id(id: &Value) -> bool {
    id.as_str().is_some_and(|id| id.chars().count() <= 40)
}

fn is_name(name: &Value) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    name.as_str().is_some_and(|it| !it.is_empty() && it.len() <= 64 && it.chars().all(is_plain))
}

/// Returns the texts of a request, whoever said them.
fn texts(conversation: &Conversation) -> Vec<&str> {
    let parts = conversation.turns.iter().flat_map(|turn| &turn.parts);
    let inner = parts.flat_map(|part| match &part.kind {
        PartKind::ToolResult { content, .. } => content.iter().collect(),
        _ => vec![part],
    });
    let texts = inner.filter_map(|part| match &part.kind {
        PartKind::Text(text) | PartKind::Refusal(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn requests_of_other_apis_obey_the_rules(conversation in conversation()) {
        if let Ok(written) = write_request(&conversation, &target()) {
            check(&written.body);
            let body = written.body.to_string();
            for text in texts(&conversation) {
                prop_assert!(body.contains(text));
            }
            let mut once = written.dropped.clone();
            once.dedup();
            prop_assert_eq!(once, written.dropped);
        }
    }
}
