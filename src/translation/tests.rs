//! Conversations in the words of each maker, from their documentation: `tests/fixtures/translation`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

const APIS: [Api; 4] = [Api::Chat, Api::Responses, Api::Messages, Api::Gemini];

fn conversations() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/translation");
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let conversations: Vec<_> = files
        .map(|path| {
            let conversation = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_string_lossy().into_owned(), conversation)
        })
        .collect();
    assert!(conversations.len() >= 8);
    conversations
}

/// Removes the values at a path such as `tools[*].function.strict`.
fn remove(value: &mut Value, path: &str) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(it, rest)| (it, Some(rest)));
    let name = first.trim_end_matches("[*]");
    let Some(fields) = value.as_object_mut() else {
        return;
    };
    let Some(rest) = rest else {
        fields.remove(name);
        return;
    };
    match fields.get_mut(name) {
        Some(Value::Array(items)) => items.iter_mut().for_each(|item| remove(item, rest)),
        Some(field) => remove(field, rest),
        None => {}
    }
}

/// Returns a value in one of its spellings of the same meaning: a list of one text is the text,
/// arguments are JSON, and null stands for a missing field.
fn normal(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            if let [part] = items.as_slice()
                && let (Some(text), 2) =
                    (part["text"].as_str(), part.as_object().map_or(0, |it| it.len()))
                && part["type"].as_str().is_some_and(|kind| kind.ends_with("text"))
            {
                return text.into();
            }
            items.iter().map(normal).collect()
        }
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            let normal = |(name, value): (&String, &Value)| {
                let parsed = value.as_str().filter(|_| name == "arguments");
                let parsed = parsed.and_then(|text| serde_json::from_str(text).ok());
                (name.clone(), parsed.unwrap_or_else(|| normal(value)))
            };
            Value::Object(fields.map(normal).collect())
        }
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        other => other.clone(),
    }
}

fn context() -> Context {
    Context {
        id: "0".into(),
        created: 1,
        model: "m".into(),
        wants_usage: true,
        is_array: false,
        request: json!({}),
    }
}

/// Returns what an answer says: the kinds and texts of its parts, and why it ended.
fn said(reply: &Reply) -> (Vec<String>, Option<Stop>) {
    let say = |part: &Part| match &part.kind {
        PartKind::ToolCall { name, arguments, .. } => {
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            format!("{name} {arguments}")
        }
        other => format!("{other:?}"),
    };
    (reply.parts.iter().map(say).collect(), reply.stop.clone())
}

#[test]
fn each_request_is_translated_as_its_makers_document() {
    let target =
        Target { chat_limit: "max_tokens", takes_stream_options: true, output_tokens_assumed: 1 };
    let mut faults = Vec::new();
    for (name, conversation) in conversations() {
        for (from, to) in pairs() {
            let mut read = read_for_other(from, &conversation[from.name()]["request"]).unwrap();
            read.model = conversation["models"][to.name()].as_str().unwrap().to_owned();
            let mut written = write_request(to, &read, &target).unwrap().body;
            let mut expected = conversation[to.name()]["request"].clone();
            for path in conversation["may_differ"][to.name()].as_array().unwrap() {
                remove(&mut written, path.as_str().unwrap());
                remove(&mut expected, path.as_str().unwrap());
            }
            let (written, expected) = (normal(&written), normal(&expected));
            if written != expected {
                faults.push(format!("{name}, {from:?} to {to:?}:\n  {written}\n  {expected}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_answer_says_the_same_in_every_api() {
    for (name, conversation) in conversations() {
        for (from, to) in pairs() {
            let original = read_reply_for_other(from, &conversation[from.name()]["reply"]);
            let written = write_reply(to, &original, &Usage::default(), &context());
            let (seen, expected) = (said(&read_reply(to, &written)), said(&original));
            assert_eq!(seen, expected, "{name}, {from:?} to {to:?}: {written}");
        }
    }
}

#[test]
fn each_stream_says_the_same_as_its_answer() {
    for (name, conversation) in conversations() {
        for api in APIS {
            let mut reader = stream_reader(api);
            let mut pieces = Vec::new();
            for event in conversation[api.name()]["stream"].as_array().unwrap() {
                let kind = event["type"].as_str().unwrap_or_default();
                reader.event(kind, event, &mut pieces);
            }
            reader.end(&mut pieces);
            let streamed = said(&reply_of(pieces));
            let whole = said(&read_reply(api, &conversation[api.name()]["reply"]));
            assert_eq!(streamed, whole, "{name}, {api:?}");
        }
    }
}

/// Returns all pairs of different APIs.
fn pairs() -> impl Iterator<Item = (Api, Api)> {
    let all = APIS.into_iter().flat_map(|from| APIS.map(|to| (from, to)));
    all.filter(|(from, to)| from != to)
}

#[test]
fn a_conversation_returns_to_its_own_provider_without_foreign_parts() {
    let target =
        Target { chat_limit: "max_tokens", takes_stream_options: true, output_tokens_assumed: 1 };
    let changed = |api, body: &Value| {
        let changed = without_foreign(api, body.to_string().as_bytes(), &target);
        changed.map(|body| serde_json::from_slice::<Value>(&body).unwrap())
    };
    let call = |id: &str| {
        json!({"model": "m", "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": id, "content": "r"},
        ]})
    };
    assert_eq!(changed(Api::Chat, &call("call_1")), None);
    let signed = Signature::new(Api::Gemini, "U0lH").attach_to("call_1");
    let clean = changed(Api::Chat, &call(&signed)).unwrap();
    assert_eq!(clean["messages"][1]["tool_calls"][0]["id"], "call_1");
    assert_eq!(clean["messages"][2]["tool_call_id"], "call_1");
    // As Python writes it, with spaces.
    let unsigned = r#"{"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""},
            {"type": "text", "text": "a"}]}, {"role": "user", "content": "b"}]}"#;
    let clean = without_foreign(Api::Messages, unsigned.as_bytes(), &target).unwrap();
    let clean: Value = serde_json::from_slice(&clean).unwrap();
    assert!(!clean.to_string().contains("thinking"), "{clean}");
    assert_eq!(clean["max_tokens"], Value::Null);
    let mark = "Zmxvd2xlZGdlcjptZXNzYWdlczo6U0lHTT09";
    let thought = json!({"contents": [
        {"role": "user", "parts": [{"text": "Hi"}]},
        {"role": "model", "parts": [
            {"text": "t", "thought": true, "thoughtSignature": mark}, {"text": "a"},
        ]},
    ]});
    let clean = changed(Api::Gemini, &thought).unwrap();
    assert!(!clean.to_string().contains(mark), "{clean}");
    assert_eq!(clean["contents"][1]["parts"][0]["text"], "a");
}
