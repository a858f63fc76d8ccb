use proptest::prelude::*;
use serde_json::{Value, json};

use super::fields::object;
use super::*;
use crate::event::Usage;
use crate::translation::{
    Api, Context, Conversation, Extra, Media, Opened, OutputFormat, Part, PartKind, Piece, Reply,
    Role, Signature, Source, Stop, StreamReader, StreamWriter, Target, ThinkingMode, Tool,
    ToolChoice, ToolKind, Turn, Written, pieces_of,
};

mod from_others;
mod replies;
mod requests;
mod round_trips;
mod streams;

fn target() -> Target {
    Target {
        chat_limit: "max_completion_tokens",
        takes_stream_options: true,
        output_tokens_assumed: 1000,
    }
}

fn context() -> Context {
    Context {
        id: "1".to_owned(),
        created: 1_700_000_000,
        model: "requested".to_owned(),
        wants_usage: true,
        is_array: false,
        request: Value::Null,
    }
}

const NAMES: &str = "messages role content type text image_url url file file_data input_audio data
    format tool_calls function name arguments custom id index choices delta message finish_reason
    reasoning_content reasoning_details signature tools tool_choice response_format json_schema schema
    grammar stop thinking reasoning extra_content google refusal thought_signature tool_call_id model x";
const TEXTS: &str = "text image_url file input_audio function custom assistant tool user thinking
    reasoning.text reasoning.encrypted reasoning.summary stop tool_calls json_schema grammar
    flowledger:gemini::x {} {\"type\":1}";

/// Any JSON, also with the names of fields that the readers know.
fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(NAMES.split_whitespace().collect::<Vec<_>>());
    let texts = prop::sample::select(TEXTS.split_whitespace().chain([""]).collect::<Vec<_>>());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..3).prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..5).prop_map(|fields| {
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }),
        ]
    })
}
