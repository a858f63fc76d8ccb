mod answers;
mod foreign_requests;
mod generators;
mod openai_stream;
mod requests;
mod streams;

use serde_json::{Value, json};

use super::{EventReader, EventWriter, read_request, write_request};
use crate::event::Usage;
use crate::translation::{
    Context, Conversation, Piece, StreamReader, StreamWriter, Target, Written,
};

fn target() -> Target {
    Target { chat_limit: "max_tokens", takes_stream_options: true, output_tokens_assumed: 4096 }
}

fn read(body: &Value) -> Conversation {
    read_request(body).unwrap()
}

fn written(conversation: &Conversation) -> Written {
    write_request(conversation, &target()).unwrap()
}

fn context() -> Context {
    Context {
        id: "abc".into(),
        created: 1_764_000_000,
        model: "gpt-5".into(),
        wants_usage: false,
        is_array: false,
        request: json!({
            "model": "gpt-5", "input": "Hi", "temperature": 0.5, "instructions": "Be brief.",
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": false}],
            "tool_choice": "auto", "reasoning": {"effort": "low"}, "store": true,
        }),
    }
}

fn usage() -> Usage {
    Usage {
        input_tokens: 20,
        cached_input_tokens: 5,
        cache_write_tokens: 3,
        output_tokens: 9,
        reasoning_tokens: 4,
        ..Usage::default()
    }
}

/// Returns the name and the data of each event of a stream.
fn events_of(bytes: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(bytes).unwrap();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty());
    let read = |block: &str| {
        let (name, data) = block.split_once("\ndata: ").unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap())
    };
    blocks.map(read).collect()
}

fn stream_of(pieces: &[Piece]) -> Vec<(String, Value)> {
    let mut writer = EventWriter::new(context());
    let mut bytes = Vec::new();
    pieces.iter().for_each(|piece| writer.piece(piece, &usage(), &mut bytes));
    writer.end(&usage(), &mut bytes);
    events_of(&bytes)
}

fn read_stream<'a>(events: impl IntoIterator<Item = &'a (String, Value)>) -> Vec<Piece> {
    let mut reader = EventReader::default();
    let mut pieces = Vec::new();
    events.into_iter().for_each(|(name, data)| reader.event(name, data, &mut pieces));
    reader.end(&mut pieces);
    joined_deltas(pieces)
}

fn joined_deltas(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (_, Piece::Delta(text)) if text.is_empty() => {}
            (Some(Piece::Delta(text)), Piece::Delta(more)) => text.push_str(&more),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}
