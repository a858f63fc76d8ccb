use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    chunks, context, joined, own, read_reply, read_request, reply, stream, stream_bytes,
    write_reply,
};
use crate::event::Usage;
use crate::translation::{Api, Part, PartKind, Signature, Stop, pieces_of};

/// Any JSON, with the names of fields that the readers know.
pub fn any_json() -> impl Strategy<Value = Value> {
    let names = prop_oneof![
        Just("contents"),
        Just("parts"),
        Just("role"),
        Just("text"),
        Just("thought"),
        Just("thoughtSignature"),
        Just("inlineData"),
        Just("mimeType"),
        Just("data"),
        Just("fileData"),
        Just("fileUri"),
        Just("functionCall"),
        Just("functionResponse"),
        Just("name"),
        Just("args"),
        Just("response"),
        Just("id"),
        Just("tools"),
        Just("functionDeclarations"),
        Just("parameters"),
        Just("generationConfig"),
        Just("thinkingConfig"),
        Just("thinkingBudget"),
        Just("toolConfig"),
        Just("functionCallingConfig"),
        Just("mode"),
        Just("systemInstruction"),
        Just("candidates"),
        Just("content"),
        Just("finishReason"),
        Just("promptFeedback"),
        Just("responseSchema"),
        Just("responseMimeType"),
        Just("topK"),
        Just("x"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just("model"), Just("STOP"), Just("application/json"), Just("é")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 60, 5, move |inner| {
        let field = (names.clone(), inner.clone()).prop_map(|(name, it)| (name.to_owned(), it));
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            prop::collection::vec(field, 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn word() -> impl Strategy<Value = String> {
    "[a-z]{1,5}"
}

fn args() -> impl Strategy<Value = Value> {
    (word(), any::<i32>()).prop_map(|(name, value)| json!({name: value, "b": [null, "x"]}))
}

/// An object with the optional unknown field that any part may have.
fn with_unknown(part: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    (part, prop::option::of(word())).prop_map(|(mut part, unknown)| {
        if let Some(unknown) = unknown {
            part["videoMetadata"] = json!({"note": unknown});
        }
        part
    })
}

pub fn text_part() -> impl Strategy<Value = Value> {
    (".{0,6}", any::<bool>(), prop::option::of(word())).prop_map(|(text, thought, signature)| {
        let mut part = json!({"text": text});
        if thought {
            part["thought"] = true.into();
        }
        if let Some(signature) = signature {
            part["thoughtSignature"] = signature.into();
        }
        part
    })
}

pub fn call_part() -> impl Strategy<Value = Value> {
    (word(), args(), prop::option::of(word()), prop::option::of(word())).prop_map(
        |(name, args, id, signature)| {
            let mut part = json!({"functionCall": {"name": name, "args": args}});
            if let Some(id) = id {
                part["functionCall"]["id"] = id.into();
            }
            if let Some(signature) = signature {
                part["thoughtSignature"] = signature.into();
            }
            part
        },
    )
}

fn result_part() -> impl Strategy<Value = Value> {
    let response = prop_oneof![
        args(),
        ".{0,6}".prop_map(|text| json!({"output": text})),
        ".{0,6}".prop_map(|text| json!({"error": text})),
        Just(json!({"output": "{\"a\":1}"})),
        Just(json!({"output": {"a": 1}, "x": 2})),
        Just(json!({})),
    ];
    let image = json!({"inlineData": {"mimeType": "image/png", "data": "aaaa"}});
    let parts = prop_oneof![Just(image), Just(json!({"odd": 1}))];
    let parts = prop::option::of(prop::collection::vec(parts, 1..3));
    (word(), prop::option::of(word()), response, parts, any::<bool>()).prop_map(
        |(name, id, response, parts, continues)| {
            let mut it = json!({"name": name, "response": response});
            if let Some(id) = id {
                it["id"] = id.into();
            }
            if let Some(parts) = parts {
                it["parts"] = parts.into();
            }
            if continues {
                it["willContinue"] = true.into();
            }
            json!({"functionResponse": it})
        },
    )
}

fn media_part() -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        Just("image/png"),
        Just("application/pdf"),
        Just("audio/wav"),
        Just("video/mp4")
    ];
    let urls = prop_oneof![
        Just("https://generativelanguage.googleapis.com/v1beta/files/a"),
        Just("gs://a/b"),
        Just("https://example.org/a.png"),
        Just("https://youtu.be/x"),
    ];
    (types, urls, any::<bool>(), any::<bool>()).prop_map(|(kind, url, is_inline, has_more)| match (
        is_inline, has_more,
    ) {
        (true, false) => json!({"inlineData": {"mimeType": kind, "data": "aaaa"}}),
        (true, true) => json!({"inlineData": {"mimeType": kind, "data": "aaaa", "y": 1,
                                                  "displayName": "n"}}),
        (false, false) => json!({"fileData": {"mimeType": kind, "fileUri": url}}),
        (false, true) => json!({"fileData": {"fileUri": url}}),
    })
}

fn part() -> impl Strategy<Value = Value> {
    let other = prop_oneof![
        Just(json!({"executableCode": {"language": "PYTHON", "code": "1"}})),
        Just(json!({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}})),
        Just(json!({"newKind": [1]})),
        Just(json!({"text": 1})),
        Just(json!({"text": "a", "functionCall": {"name": "b"}})),
        Just(json!("odd")),
    ];
    prop_oneof![
        3 => with_unknown(text_part()),
        2 => with_unknown(call_part()),
        2 => with_unknown(result_part()),
        2 => with_unknown(media_part()),
        1 => other,
    ]
}

fn content() -> impl Strategy<Value = Value> {
    let roles = prop_oneof![Just("user"), Just("model"), Just("function"), Just("new")];
    (roles, prop::collection::vec(part(), 0..5), prop::option::of(word())).prop_map(
        |(role, parts, unknown)| {
            let mut content = json!({"role": role, "parts": parts});
            if let Some(unknown) = unknown {
                content["unknown"] = unknown.into();
            }
            content
        },
    )
}

/// The fields beside `contents`, in either spelling.
fn settings() -> impl Strategy<Value = Value> {
    let fields = prop_oneof![
        Just(json!({"systemInstruction": {"role": "user", "parts": [{"text": "s", "y": 1}]}})),
        Just(json!({"system_instruction": {"parts": {"text": "s"}}})),
        Just(json!({"tools": [{"googleSearch": {}, "function_declarations": [{"name": "f",
            "parameters": {"type": "OBJECT", "properties": {}}, "behavior": "BLOCKING"}]},
            {"functionDeclarations": [{"name": "g", "parametersJsonSchema": {"type": "object"}},
                                      {"odd": 1}]}, {}]})),
        Just(json!({"toolConfig": {"functionCallingConfig": {"mode": "VALIDATED"}, "x": 1}})),
        Just(json!({"tool_config": {"function_calling_config": {"mode": "ANY",
            "allowed_function_names": ["f", "g"]}}})),
        Just(json!({"generationConfig": {"temperature": 0.5, "topK": 40.0, "candidateCount": 2,
            "responseMimeType": "application/json", "responseSchema": {"type": "STRING"},
            "thinkingConfig": {"thinkingLevel": "low", "x": 1}, "stopSequences": ["a"]}})),
        Just(json!({"generation_config": {"max_output_tokens": "9", "seed": 1,
            "thinking_config": {"thinking_budget": -1}, "response_modalities": ["TEXT"]}})),
        Just(json!({"safetySettings": [], "cachedContent": "c", "labels": {"a": "b"}})),
    ];
    prop::collection::vec(fields, 0..4).prop_map(|all| {
        let fields = all.into_iter().filter_map(|it| it.as_object().cloned()).flatten();
        let mut seen: Vec<String> = Vec::new();
        let once = fields.filter(|(name, _)| {
            let plain = name.replace('_', "").to_lowercase();
            let is_new = !seen.contains(&plain);
            seen.push(plain);
            is_new
        });
        Value::Object(once.collect())
    })
}

/// The normal form of a request: the names of the four fields that are repeated are in camel case.
fn normal(body: &Value) -> Value {
    let mut body = body.as_object().unwrap().clone();
    for (snake, camel) in [
        ("system_instruction", "systemInstruction"),
        ("tool_config", "toolConfig"),
        ("generation_config", "generationConfig"),
    ] {
        if let Some(value) = body.remove(snake) {
            body.insert(camel.to_owned(), value);
        }
    }
    Value::Object(body)
}

proptest! {
    #[test]
    fn a_request_survives(contents in prop::collection::vec(content(), 0..5), rest in settings()) {
        let mut body = rest;
        body["contents"] = contents.into();
        prop_assert_eq!(own(&body), normal(&body));
    }

    #[test]
    fn any_request_is_read_or_refused(body in any_json()) {
        if let Ok(conversation) = read_request(&body) {
            let _ = super::written(&conversation);
            let _ = super::check_for_other(&conversation);
        }
    }

    #[test]
    fn an_answer_survives(parts in prop::collection::vec(part(), 0..5), rest in answer()) {
        let mut body = rest;
        if let Some(candidate) = body.get_mut("candidates").and_then(|all| all.get_mut(0)) {
            candidate["content"] = json!({"role": "model", "parts": parts});
        }
        let written = write_reply(&read_reply(&body), &Usage::default(), &context(false));
        prop_assert_eq!(written, body);
    }

    #[test]
    fn a_written_stream_is_read_as_the_same_pieces(
        parts in prop::collection::vec(internal_part(), 0..6),
        stop in stop(),
        is_array in any::<bool>(),
    ) {
        let mut parts = without_joined(parts);
        // A call carries the signature of another API's thought.
        for part in parts.iter_mut().filter(|part| matches!(part.kind, PartKind::Thinking(_))) {
            part.signature = part.signature.take().map(|it| Signature::new(Api::Gemini, it.value));
        }
        let stop = match stop {
            Stop::End if parts.iter().any(is_call) => Stop::ToolCalls,
            stop => stop,
        };
        let pieces = pieces_of(&reply(parts, stop));
        let text = stream_bytes(&pieces, is_array);
        prop_assert_eq!(joined(stream(&chunks(&text, is_array))), pieces);
    }

    #[test]
    fn a_stream_says_the_same_as_its_answer(
        parts in prop::collection::vec(prop_oneof![text_part(), call_part()], 0..6),
        cuts in prop::collection::vec(any::<bool>(), 0..6),
    ) {
        let mut whole = json!({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}],
                               "responseId": "r"});
        let read = read_reply(&whole);
        let parts: Vec<Value> = match without_joined(read.parts.clone()).len() {
            count if count == read.parts.len() => parts,
            _ => Vec::new(),
        };
        whole["candidates"][0]["content"]["parts"] = parts.clone().into();
        let mut chunks: Vec<Vec<Value>> = vec![vec![]];
        for (index, part) in parts.into_iter().enumerate() {
            if cuts.get(index) == Some(&true) {
                chunks.push(vec![]);
            }
            let text = part["text"].as_str().unwrap_or_default().to_owned();
            let (first, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
            if !rest.is_empty() {
                let mut begin = json!({"text": first});
                begin["thought"] = (part["thought"] == true).into();
                chunks.last_mut().unwrap().push(begin);
                chunks.push(vec![]);
            }
            let mut end = part.clone();
            if !rest.is_empty() {
                end["text"] = rest.into();
            }
            chunks.last_mut().unwrap().push(end);
        }
        let chunks: Vec<Value> = chunks
            .into_iter()
            .map(|parts| json!({"candidates": [{"content": {"parts": parts}}], "responseId": "r"}))
            .chain([json!({"candidates": [{"finishReason": "STOP"}]})])
            .collect();
        prop_assert_eq!(joined(stream(&chunks)), pieces_of(&read_reply(&whole)));
    }

    #[test]
    fn any_answer_is_read(body in any_json(), chunks in prop::collection::vec(any_json(), 0..4)) {
        let wrapped = json!({"candidates": [{"content": {"parts": [body]}}]});
        for body in [&body, &wrapped] {
            write_reply(&read_reply(body), &Usage::default(), &context(false));
        }
        let pieces = stream(&[&[wrapped], &chunks[..]].concat());
        stream_bytes(&pieces, true);
        let mut is_open = false;
        for piece in &pieces {
            match piece {
                crate::translation::Piece::Open(_) => {
                    prop_assert!(!is_open);
                    is_open = true;
                }
                crate::translation::Piece::Close => {
                    prop_assert!(is_open);
                    is_open = false;
                }
                _ => {}
            }
        }
        prop_assert!(!is_open);
    }
}

fn is_call(part: &Part) -> bool {
    matches!(part.kind, PartKind::ToolCall { .. })
}

/// Leaves out the parts that a stream does not keep apart: empty ones, and a text after a text of
/// the same kind that no signature ended.
fn without_joined(parts: Vec<Part>) -> Vec<Part> {
    let mut kept: Vec<Part> = Vec::new();
    for part in parts {
        let same = kept.last().is_some_and(|last| {
            last.signature.is_none()
                && !is_call(&part)
                && std::mem::discriminant(&last.kind) == std::mem::discriminant(&part.kind)
        });
        let is_empty = match &part.kind {
            PartKind::Text(text) | PartKind::Thinking(text) => {
                text.is_empty() && part.signature.is_none()
            }
            _ => false,
        };
        if !same && !is_empty {
            kept.push(part);
        }
    }
    kept
}

fn internal_part() -> impl Strategy<Value = Part> {
    let kinds = prop_oneof![
        ".{0,6}".prop_map(PartKind::Text),
        ".{0,6}".prop_map(PartKind::Thinking),
        (word(), word(), args()).prop_map(|(id, name, args)| PartKind::ToolCall {
            id,
            name,
            arguments: args.to_string(),
            is_custom: false,
        }),
    ];
    let apis = prop_oneof![Just(Api::Gemini), Just(Api::Messages), Just(Api::Responses)];
    let signature = (apis, word()).prop_map(|(api, value)| Signature::new(api, value));
    (kinds, prop::option::of(signature))
        .prop_map(|(kind, signature)| Part { signature, ..Part::new(kind) })
}

fn stop() -> impl Strategy<Value = Stop> {
    prop_oneof![
        Just(Stop::End),
        Just(Stop::MaxTokens),
        Just(Stop::Refused),
        Just(Stop::Other("MALFORMED_FUNCTION_CALL".into())),
    ]
}

/// The fields of an answer beside the content.
fn answer() -> impl Strategy<Value = Value> {
    let reason = prop_oneof![
        Just(json!("STOP")),
        Just(json!("MAX_TOKENS")),
        Just(json!("BLOCKLIST")),
        Just(json!("NEW_REASON")),
        Just(json!("FINISH_REASON_UNSPECIFIED")),
        Just(Value::Null),
    ];
    (reason, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(reason, has_more, is_blocked, is_new)| {
            let mut body = json!({"modelVersion": "m", "responseId": "r"});
            if is_new {
                body["newField"] = json!({"a": 1});
            }
            if is_blocked {
                body["promptFeedback"] = json!({"blockReason": "OTHER"});
                return body;
            }
            let mut first = json!({"index": 0, "safetyRatings": []});
            if !reason.is_null() {
                first["finishReason"] = reason;
            }
            body["candidates"] = json!([first]);
            if has_more {
                body["candidates"] = json!([first, {"index": 1, "content": {}}]);
            }
            body
        },
    )
}
