mod adapt;
mod own;
mod replies;
mod streams;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use super::super::conversation::Conversation;
use super::super::{Context, Target, Written};
use super::write_request;

fn target() -> Target {
    Target { chat_limit: "max_tokens", takes_stream_options: true, output_tokens_assumed: 4_096 }
}

fn context() -> Context {
    Context {
        id: "1".into(),
        created: 0,
        model: "requested".into(),
        wants_usage: true,
        is_array: false,
        request: Value::Null,
    }
}

fn written(conversation: &Conversation) -> Written {
    write_request(conversation, &target()).unwrap()
}

/// Returns any JSON, often with the names of this API.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(vec![
            "text",
            "tool_use",
            "tool_result",
            "tool_reference",
            "image",
            "document",
            "base64",
            "url",
            "file",
            "thinking",
            "redacted_thinking",
            "text/plain",
            "user",
            "assistant",
            "system",
            "text_delta",
            "input_json_delta",
            "json_schema",
            "enabled",
            "",
            "x",
        ])
        .prop_map(Value::from),
    ];
    let keys = select(vec![
        "type",
        "text",
        "content",
        "messages",
        "role",
        "system",
        "tools",
        "id",
        "name",
        "input",
        "source",
        "signature",
        "thinking",
        "tool_use_id",
        "index",
        "delta",
        "content_block",
        "message",
        "stop_reason",
        "output_config",
        "format",
        "tool_choice",
        "x",
    ]);
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((keys.clone(), inner), 0..6).prop_map(|fields| {
                fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            }),
        ]
    })
}
