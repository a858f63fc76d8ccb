use super::*;

fn read(chunks: &[Value]) -> Vec<Piece> {
    let mut reader = ChunkReader::default();
    let mut pieces = Vec::new();
    chunks.iter().for_each(|chunk| reader.event("", chunk, &mut pieces));
    reader.end(&mut pieces);
    joined(pieces)
}

/// Joins adjacent deltas.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Delta(text)), Piece::Delta(more)) => text.push_str(&more),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}

fn delta(delta: Value) -> Value {
    json!({"id": "chatcmpl-x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn finish(reason: &str) -> Value {
    json!({"id": "chatcmpl-x", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn calls(calls: Value) -> Value {
    delta(json!({"tool_calls": calls}))
}

fn begin() -> Piece {
    Piece::Begin { id: "chatcmpl-x".to_owned(), model: "m".to_owned() }
}

fn part(opened: Opened, text: &str, signature: Option<Signature>) -> Vec<Piece> {
    let text = (!text.is_empty()).then(|| Piece::Delta(text.to_owned()));
    let signature = signature.map(Piece::Signature);
    let mut inner = [text, signature];
    if matches!(opened, Opened::ToolCall { .. }) {
        inner.reverse();
    }
    let inner = inner.into_iter().flatten();
    [Piece::Open(opened)].into_iter().chain(inner).chain([Piece::Close]).collect()
}

fn call(id: &str, name: &str, arguments: &str) -> Vec<Piece> {
    let opened = Opened::ToolCall { id: id.to_owned(), name: name.to_owned(), is_custom: false };
    part(opened, arguments, None)
}

fn stream(parts: Vec<Vec<Piece>>, stop: Stop) -> Vec<Piece> {
    let parts = parts.into_iter().flatten();
    [begin()].into_iter().chain(parts).chain([Piece::Stop(stop)]).collect()
}

#[test]
fn parts_follow_in_order() {
    let pieces = read(&[
        json!({"choices": [], "prompt_filter_results": []}),
        delta(json!({"role": "assistant", "content": "", "refusal": null})),
        delta(json!({"content": null, "reasoning_content": "H"})),
        delta(json!({"reasoning_content": "m"})),
        delta(json!({"content": "a"})),
        delta(Value::Null),
        delta(json!({"content": "b", "reasoning_content": null})),
        delta(json!({"refusal": "No"})),
        finish("stop"),
        json!({"choices": [], "usage": {"prompt_tokens": 1}}),
    ]);
    let own = Some(Signature::new(Api::Chat, "reasoning_content"));
    assert_eq!(
        pieces,
        stream(
            vec![
                part(Opened::Thinking, "Hm", own),
                part(Opened::Text, "ab", None),
                part(Opened::Refusal, "No", None)
            ],
            Stop::End
        )
    );
}

#[test]
fn alternating_calls_are_separated() {
    let pieces = read(&[
        delta(json!({"content": "a"})),
        calls(
            json!([{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        ),
        calls(
            json!([{"index": 1, "id": "2", "type": "function", "function": {"name": "g", "arguments": ""}}]),
        ),
        calls(
            json!([{"index": 1, "function": {"arguments": "{\"b\""}}, {"index": 0, "function": {"arguments": "{\"a\""}}]),
        ),
        delta(json!({"content": "late"})),
        calls(
            json!([{"index": 0, "function": {"arguments": ":1}"}}, {"index": 1, "function": {"arguments": ":2}"}}]),
        ),
        finish("tool_calls"),
    ]);
    assert_eq!(
        pieces,
        stream(
            vec![
                part(Opened::Text, "a", None),
                call("1", "f", "{\"a\":1}"),
                call("2", "g", "{\"b\":2}"),
                part(Opened::Text, "late", None)
            ],
            Stop::ToolCalls
        )
    );
}

#[test]
fn calls_of_odd_servers_are_told_apart() {
    let whole = |index: Value, id: &str, name: &str, arguments: &str| json!({"index": index, "id": id, "function": {"name": name, "arguments": arguments}});
    let two = |a: (&str, &str, &str), b: (&str, &str, &str)| {
        stream(vec![call(a.0, a.1, a.2), call(b.0, b.1, b.2)], Stop::ToolCalls)
    };
    // Gemini: https://github.com/QuantumNous/new-api/pull/2701
    let same_index =
        [calls(json!([whole(json!(0), "1", "f", "{}"), whole(json!(0), "2", "f", "{}")]))];
    assert_eq!(read(&same_index), two(("1", "f", "{}"), ("2", "f", "{}")));
    let no_ids =
        [calls(json!([whole(Value::Null, "", "f", "{}"), whole(Value::Null, "", "f", "{}")]))];
    assert_eq!(read(&no_ids), two(("call_x_0", "f", "{}"), ("call_x_1", "f", "{}")));
    let no_index = [
        calls(json!([{"id": "1", "function": {"name": "f", "arguments": "{"}}])),
        calls(json!([{"function": {"arguments": "}"}}])),
        calls(json!([{"id": "2", "function": {"name": "g", "arguments": {"a": 1}}}])),
        finish("stop"),
    ];
    assert_eq!(read(&no_index), two(("1", "f", "{}"), ("2", "g", "{\"a\":1}")));
    let repeated = [
        calls(json!([whole(json!(0), "1", "f", "{")])),
        calls(json!([whole(json!(0), "1", "f", "}")])),
        calls(json!([whole(json!(1), "2", "f", "{")])),
        calls(json!([whole(json!(1), "", "f", "}")])),
    ];
    assert_eq!(read(&repeated), two(("1", "f", "{}"), ("2", "f", "{}")));
    let late_name = [
        calls(json!([{"index": 0, "id": "1", "function": {"arguments": "{"}}])),
        calls(json!([{"index": 0, "function": {"name": "f", "arguments": "}"}}])),
        calls(json!([whole(json!(1), "2", "g", "")])),
    ];
    assert_eq!(read(&late_name), two(("1", "f", "{}"), ("2", "g", "")));
}

#[test]
fn signatures_of_thoughts_and_calls_are_read() {
    let detail = |rest: Value| {
        let mut detail =
            object(json!({"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}));
        fields::merge(&mut detail, &object(rest));
        delta(json!({"reasoning": "shown twice", "reasoning_details": [detail]}))
    };
    let pieces = read(&[
        detail(json!({"text": "H", "signature": null})),
        detail(json!({"text": "m"})),
        detail(json!({"signature": "Eq"})),
        calls(json!([{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"},
            "extra_content": {"google": {"thought_signature": "Cp"}}}])),
        finish("stop"),
    ]);
    let value =
        r#"{"format":"anthropic-claude-v1","index":0,"signature":"Eq","type":"reasoning.text"}"#;
    let opened = Opened::ToolCall { id: "1".into(), name: "f".into(), is_custom: false };
    assert_eq!(
        pieces,
        stream(
            vec![
                part(Opened::Thinking, "Hm", Some(Signature::new(Api::Chat, value))),
                part(opened, "{}", Some(Signature::new(Api::Chat, "Cp")))
            ],
            Stop::ToolCalls
        )
    );
}

#[test]
fn empty_thoughts_are_kept_only_before_calls() {
    let empty = delta(json!({"role": "assistant", "content": null, "reasoning_content": ""}));
    let text = [empty.clone(), delta(json!({"content": "a"})), finish("stop")];
    assert_eq!(read(&text), stream(vec![part(Opened::Text, "a", None)], Stop::End));
    let with_call = [
        empty,
        calls(json!([{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}])),
    ];
    let own = Some(Signature::new(Api::Chat, "reasoning_content"));
    assert_eq!(
        read(&with_call),
        stream(vec![part(Opened::Thinking, "", own), call("1", "f", "{}")], Stop::ToolCalls)
    );
}

#[test]
fn an_empty_stream_has_a_begin_and_a_stop() {
    let pieces = read(&[json!({"error": {"message": "x"}}), json!([]), json!({"choices": null})]);
    let begin = Piece::Begin { id: String::new(), model: String::new() };
    assert_eq!(pieces, [begin, Piece::Stop(Stop::End)]);
}

/// Returns the data of a written stream; checks the frame.
fn written(pieces: &[Piece], usage: &Usage, context: Context) -> Vec<Value> {
    let mut writer = ChunkWriter::new(context);
    let mut bytes = Vec::new();
    pieces.iter().for_each(|piece| writer.piece(piece, &Usage::default(), &mut bytes));
    writer.end(usage, &mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let text = text.strip_suffix("data: [DONE]\n\n").unwrap();
    let events = text.split_terminator("\n\n");
    events
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

#[test]
fn a_stream_has_the_chunks_that_clients_expect() {
    let signature = Signature::new(Api::Gemini, "Cp");
    let opened = Opened::ToolCall { id: "1".into(), name: "f".into(), is_custom: false };
    let mut pieces = stream(
        vec![
            part(Opened::Thinking, "Hm", Some(Signature::new(Api::Messages, "Eq"))),
            part(Opened::Text, "a", None),
            part(opened, "{}", Some(signature.clone())),
            call("2", "g", "{"),
        ],
        Stop::ToolCalls,
    );
    pieces.insert(pieces.len() - 2, Piece::Delta("}".to_owned()));
    let usage = Usage { input_tokens: 3, output_tokens: 2, ..Usage::default() };
    let chunks = written(&pieces, &usage, context());
    let deltas: Vec<Value> =
        chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    let detail = json!({"type": "reasoning.text", "text": "Hm", "index": 0});
    let proof =
        json!({"type": "reasoning.text", "index": 0, "signature": "flowledger:messages::Eq"});
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "content": ""}),
            json!({"reasoning_content": "Hm", "reasoning_details": [detail]}),
            json!({"reasoning_details": [proof]}),
            json!({"content": "a"}),
            json!({"tool_calls": [{"index": 0, "id": signature.attach_to("1"), "type": "function", "function": {"name": "f", "arguments": ""}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
            json!({"tool_calls": [{"index": 1, "id": "2", "type": "function", "function": {"name": "g", "arguments": ""}}]}),
            json!({"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]}),
            json!({"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]}),
            json!({}),
            Value::Null,
        ]
    );
    let [.., last, usage] = &*chunks else { panic!("two chunks") };
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], 5);
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!((&chunk["id"], &chunk["model"]), (&json!("chatcmpl-x"), &json!("m")));
    }
    let without = written(&pieces, &Usage::default(), Context { wants_usage: false, ..context() });
    assert_eq!(without.len(), chunks.len() - 1);
}

#[test]
fn a_call_without_arguments_has_an_empty_object() {
    let chunks =
        written(&stream(vec![call("1", "f", "")], Stop::ToolCalls), &Usage::default(), context());
    let function = &chunks[1]["choices"][0]["delta"]["tool_calls"][0]["function"];
    assert_eq!(function["arguments"], "{}");
    let kind = PartKind::ToolCall {
        id: "1".into(),
        name: "f".into(),
        arguments: String::new(),
        is_custom: false,
    };
    let reply = Reply {
        id: String::new(),
        model: String::new(),
        parts: vec![Part::new(kind)],
        stop: None,
        extra: Extra::new(),
    };
    let body = write_reply(&reply, &Usage::default(), &context());
    let call = &body["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"], "{}");
}

fn text() -> impl Strategy<Value = String> {
    "[a-zä{}\"\\n]{1,12}"
}

fn stop() -> impl Strategy<Value = Stop> {
    prop::sample::select(vec![Stop::End, Stop::MaxTokens, Stop::Refused])
}

/// The parts of an answer; no two of one kind in a row, except thoughts and calls.
fn parts() -> impl Strategy<Value = Vec<Part>> {
    let signature = || {
        prop::sample::select(vec![
            None,
            Some(Signature::new(Api::Messages, "EqQB/+=")),
            Some(Signature { id: Some("rs_1".into()), ..Signature::new(Api::Responses, "gAAA") }),
            Some(Signature::new(Api::Gemini, "Cp")),
        ])
    };
    let redacted = Signature { is_redacted: true, ..Signature::new(Api::Messages, "Em") };
    let redacted =
        Part { signature: Some(redacted), ..Part::new(PartKind::Thinking(String::new())) };
    let gemini = prop::option::of(Just(Signature::new(Api::Gemini, "Cp:/+=")));
    let part = prop_oneof![
        text().prop_map(Part::text),
        text().prop_map(|text| Part::new(PartKind::Refusal(text))),
        (text(), signature()).prop_map(|(text, signature)| Part {
            signature,
            ..Part::new(PartKind::Thinking(text))
        }),
        Just(redacted),
        ("[a-z]{1,3}", text(), any::<bool>(), gemini).prop_map(
            |(name, arguments, is_custom, signature)| {
                let kind = PartKind::ToolCall { id: String::new(), name, arguments, is_custom };
                Part { signature, ..Part::new(kind) }
            }
        ),
    ];
    prop::collection::vec(part, 0..6).prop_map(|mut parts| {
        parts.dedup_by(|a, b| {
            let is_plain = matches!(a.kind, PartKind::Text(_) | PartKind::Refusal(_));
            is_plain && std::mem::discriminant(&a.kind) == std::mem::discriminant(&b.kind)
        });
        for (at, part) in parts.iter_mut().enumerate() {
            if let PartKind::ToolCall { id, .. } = &mut part.kind {
                *id = format!("call_{at}");
            }
        }
        parts
    })
}

fn has_call(parts: &[Part]) -> bool {
    parts.iter().any(|part| matches!(part.kind, PartKind::ToolCall { .. }))
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    (parts(), stop()).prop_map(|(parts, stop)| {
        let stop = if has_call(&parts) && stop == Stop::End { Stop::ToolCalls } else { stop };
        pieces_of(&Reply {
            id: "chatcmpl-x".to_owned(),
            model: "m".to_owned(),
            parts,
            stop: Some(stop),
            extra: Extra::new(),
        })
    })
}

/// Splits each string of a message into deltas of one character, one call after the other or
/// alternating.
fn chunks_of(message: &Value, alternates: bool) -> Vec<Value> {
    let mut chunks = vec![delta(json!({"role": "assistant", "content": null}))];
    for (at, detail) in message["reasoning_details"].as_array().into_iter().flatten().enumerate() {
        let text = detail["text"].as_str().unwrap_or_default();
        for c in text.chars() {
            let detail = json!({"type": detail["type"], "text": c, "index": at});
            chunks.push(delta(json!({"reasoning_content": c, "reasoning_details": [detail]})));
        }
        let mut rest = object(detail.clone());
        rest.shift_remove("text");
        chunks.push(delta(json!({"reasoning_details": [rest]})));
    }
    for name in ["reasoning_content", "content", "refusal"] {
        let has_details = name == "reasoning_content" && message["reasoning_details"].is_array();
        let text = message[name].as_str().filter(|_| !has_details).unwrap_or_default();
        chunks.extend(text.chars().map(|c| delta(json!({name: c}))));
    }
    let empty = Vec::new();
    let all = message["tool_calls"].as_array().unwrap_or(&empty);
    let inputs = |call: &Value| {
        if call["type"] == "custom" { ("custom", "input") } else { ("function", "arguments") }
    };
    let mut fragments: Vec<(usize, usize, Value)> = Vec::new();
    for (at, call) in all.iter().enumerate() {
        let (kind, input) = inputs(call);
        let mut first = call.clone();
        first["index"] = at.into();
        first[kind][input] = "".into();
        fragments.push((0, at, first));
        let text = call[kind][input].as_str().unwrap_or_default();
        for (n, c) in text.chars().enumerate() {
            fragments.push((n + 1, at, json!({"index": at, kind: {input: c}})));
        }
    }
    if alternates {
        fragments.sort_by_key(|(n, at, _)| (*n, *at));
    }
    chunks.extend(fragments.into_iter().map(|(_, _, call)| calls(json!([call]))));
    chunks
}

/// Checks that exactly one part is open at a time.
fn check(pieces: &[Piece]) {
    let mut is_open = false;
    assert!(matches!(pieces.first(), Some(Piece::Begin { .. })));
    assert!(matches!(pieces.last(), Some(Piece::Stop(_))));
    for piece in &pieces[1..pieces.len() - 1] {
        match piece {
            Piece::Open(_) => assert!(!std::mem::replace(&mut is_open, true)),
            Piece::Delta(_) | Piece::Signature(_) => assert!(is_open),
            Piece::Close => assert!(std::mem::replace(&mut is_open, false)),
            Piece::Begin { .. } | Piece::Stop(_) => panic!("{piece:?}"),
        }
    }
    assert!(!is_open);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_written_stream_is_read_as_it_was(pieces in pieces()) {
        let chunks = written(&pieces, &Usage::default(), context());
        prop_assert_eq!(read(&chunks), pieces);
    }

    #[test]
    fn an_answer_and_its_stream_are_read_alike(parts in parts(), stop in stop(), alternates: bool) {
        let stop = if has_call(&parts) { Stop::ToolCalls } else { stop };
        let reply = Reply {
            id: "chatcmpl-x".to_owned(),
            model: "m".to_owned(),
            parts,
            stop: Some(stop),
            extra: Extra::new(),
        };
        let body = write_reply(&reply, &Usage::default(), &context());
        let choice = &body["choices"][0];
        let mut chunks = chunks_of(&choice["message"], alternates);
        chunks.push(finish(choice["finish_reason"].as_str().unwrap()));
        let whole = pieces_of(&read_reply(&body));
        let streamed = read(&chunks);
        check(&streamed);
        prop_assert_eq!(streamed, whole);
    }

    #[test]
    fn no_stream_makes_the_reader_panic(chunks in prop::collection::vec(any_json(), 0..6)) {
        let mut wrapped: Vec<Value> = Vec::new();
        for chunk in &chunks {
            wrapped.extend([chunk.clone(), json!({"choices": chunk}), delta(chunk.clone()),
                calls(chunk.clone()), calls(json!([{"function": chunk}]))]);
        }
        let pieces = read(&wrapped);
        check(&pieces);
        written(&pieces, &Usage::default(), context());
    }
}
