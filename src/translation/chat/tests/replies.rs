use super::requests::{call_value, content, normal, thoughts, with_extra};
use super::*;

fn same(body: &Value) -> Value {
    let mut written = object(write_reply(&read_reply(body), &Usage::default(), &context()));
    written.shift_remove("usage");
    Value::Object(written)
}

#[test]
fn an_answer_in_the_same_api_is_unchanged() {
    let body = json!({
        "id": "gen-1", "object": "chat.completion", "created": 1, "model": "m",
        "system_fingerprint": "fp", "choices": [
            {"index": 0, "logprobs": null, "finish_reason": "stop", "message": {
                "role": "assistant", "content": null, "refusal": null, "annotations": [],
                "reasoning": "Hm", "tool_calls": [
                    {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}]}},
            {"index": 1, "message": {"role": "assistant", "content": "b"}}]});
    assert_eq!(same(&body), body);
    let reply = read_reply(&body);
    assert_eq!(reply.stop, Some(Stop::ToolCalls));
}

#[test]
fn an_answer_of_another_api_has_all_required_fields() {
    let signature = Signature::new(Api::Gemini, "Cp/+=");
    let call = PartKind::ToolCall {
        id: "call_1".to_owned(),
        name: "f".to_owned(),
        arguments: "{}".to_owned(),
        is_custom: false,
    };
    let redacted = Signature { is_redacted: true, ..Signature::new(Api::Messages, "Em") };
    let reply = Reply {
        id: "msg_1".to_owned(),
        model: String::new(),
        parts: vec![
            Part {
                signature: Some(Signature::new(Api::Messages, "EqQB")),
                ..Part::new(PartKind::Thinking("Hm".to_owned()))
            },
            Part { signature: Some(redacted), ..Part::new(PartKind::Thinking(String::new())) },
            Part::text("a"),
            Part { signature: Some(signature.clone()), ..Part::new(call) },
            Part::text("b"),
        ],
        stop: None,
        extra: object(json!({"type": "message"})),
    };
    let usage = Usage {
        input_tokens: 100,
        cached_input_tokens: 60,
        cache_write_tokens: 30,
        output_tokens: 20,
        reasoning_tokens: 5,
        ..Usage::default()
    };
    let body = write_reply(&reply, &usage, &context());
    assert_eq!(
        body,
        json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000,
            "model": "requested", "choices": [{"index": 0, "logprobs": null,
                "finish_reason": "tool_calls", "message": {
                    "role": "assistant", "content": "ab", "refusal": null,
                    "reasoning_content": "Hm", "reasoning_details": [
                        {"type": "reasoning.text", "text": "Hm", "index": 0,
                         "signature": "flowledger:messages::EqQB"},
                        {"type": "reasoning.encrypted", "data": "flowledger:messages!::Em", "index": 1}],
                    "tool_calls": [{"id": signature.attach_to("call_1"), "type": "function",
                        "function": {"name": "f", "arguments": "{}"}}]}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
                "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
                "completion_tokens_details": {"reasoning_tokens": 5}}})
    );
    let mut message = body["choices"][0]["message"].clone();
    message["role"] = "assistant".into();
    let back = read_request(&json!({"messages": [message]})).unwrap();
    let signatures: Vec<Option<Signature>> =
        back.turns[0].parts.iter().map(|part| part.signature.clone()).collect();
    let sent: Vec<Option<Signature>> =
        [0, 1, 2, 3].into_iter().map(|at| reply.parts[at].signature.clone()).collect();
    assert_eq!(signatures, sent);
}

#[test]
fn an_answer_without_text_has_a_content() {
    let reply = |parts| Reply {
        id: String::new(),
        model: "m".to_owned(),
        parts,
        stop: Some(Stop::Sequence(None)),
        extra: Extra::new(),
    };
    let body = write_reply(&reply(Vec::new()), &Usage::default(), &context());
    assert_eq!(body["choices"][0]["message"]["content"], "");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let refusal = Part::new(PartKind::Refusal("No".to_owned()));
    let body = write_reply(&reply(vec![refusal]), &Usage::default(), &context());
    assert_eq!(body["choices"][0]["message"]["refusal"], "No");
    assert_eq!(body["choices"][0]["message"]["content"], Value::Null);
}

#[test]
fn thoughts_of_all_servers_are_read() {
    let parts = |message: Value| {
        let reply = read_reply(&json!({"choices": [{"message": message}]}));
        let parts = reply.parts.into_iter().map(|part| match part.kind {
            PartKind::Thinking(text) => (text, part.signature.map(|it| it.value)),
            other => panic!("{other:?}"),
        });
        parts.collect::<Vec<_>>()
    };
    let own = |text: &str, value: &str| vec![(text.to_owned(), Some(value.to_owned()))];
    assert_eq!(parts(json!({"reasoning_content": "Hm"})), own("Hm", "reasoning_content"));
    assert_eq!(parts(json!({"reasoning": "Hm"})), own("Hm", "reasoning"));
    let thinking =
        json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]});
    assert_eq!(parts(thinking), own("Hm", "thinking"));
    let details = json!({"reasoning": "Hm", "reasoning_details": [
        {"type": "reasoning.text", "text": "Hm", "signature": "Eq", "format": "anthropic-claude-v1", "index": 0}]});
    assert_eq!(
        parts(details),
        own(
            "Hm",
            r#"{"format":"anthropic-claude-v1","index":0,"signature":"Eq","type":"reasoning.text"}"#
        )
    );
    for empty in ["reasoning_content", "reasoning"] {
        assert_eq!(parts(json!({empty: "", "tool_calls": []})), []);
    }
}

#[test]
fn a_call_without_id_gets_one() {
    let call = json!({"id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let reply = read_reply(&json!({"id": "chatcmpl-x", "choices": [
        {"message": {"tool_calls": [call, call]}, "finish_reason": null}]}));
    let ids: Vec<&str> = reply
        .parts
        .iter()
        .filter_map(|part| match &part.kind {
            PartKind::ToolCall { id, .. } => Some(id.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(ids, ["call_x_0", "call_x_1"]);
    assert_eq!(reply.stop, Some(Stop::ToolCalls));
}

fn reply_value() -> impl Strategy<Value = Value> {
    let finish = prop::sample::select(vec![
        json!("stop"),
        json!("length"),
        json!("tool_calls"),
        json!("content_filter"),
        json!("function_call"),
        json!("eos"),
        json!("model_length"),
        Value::Null,
    ]);
    let calls = prop::collection::vec(call_value(), 0..3);
    let message = (content(), thoughts(), prop::option::of(calls), any::<bool>());
    let message = with_extra(message.prop_map(|(content, thoughts, calls, is_refused)| {
        let mut message = object(thoughts);
        message.extend([("role".to_owned(), json!("assistant")), ("content".to_owned(), content)]);
        message.extend(calls.map(|calls| ("tool_calls".to_owned(), Value::from(calls))));
        message.extend(is_refused.then(|| ("refusal".to_owned(), json!("No"))));
        Value::Object(message)
    }));
    let choice = with_extra((message, finish).prop_map(
        |(message, finish)| json!({"index": 0, "message": message, "finish_reason": finish}),
    ));
    with_extra(prop::collection::vec(choice, 1..3).prop_map(|choices| {
        json!({"id": "gen-1", "object": "chat.completion", "model": "m", "choices": choices})
    }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_answer_in_the_same_api_is_unchanged(body in reply_value()) {
        let first = |body: &Value| normal(body["choices"][0].clone());
        let written = same(&body);
        prop_assert_eq!(first(&written), first(&body));
        prop_assert_eq!(&written["choices"][1], &body["choices"][1]);
        prop_assert_eq!(&written["x_unknown"], &body["x_unknown"]);
    }

    #[test]
    fn no_answer_makes_the_reader_panic(body in any_json(), choices in any_json()) {
        for body in [body, json!({"choices": choices}), json!({"choices": [{"message": choices}]})] {
            let mut reply = read_reply(&body);
            let _ = write_reply(&reply, &Usage::default(), &context());
            reply.extra.clear();
            let _ = write_reply(&reply, &Usage::default(), &context());
        }
    }
}
