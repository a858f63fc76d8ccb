//! Streamed answers.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::super::super::conversation::Stop;
use super::super::super::piece::{Opened, Piece, StreamReader, StreamWriter, pieces_of};
use super::super::super::{Api, Signature};
use super::super::{EventReader, EventWriter, read_reply};
use super::replies::reply;
use super::{any_json, context};
use crate::event::Usage;

/// Reads events; an event without a name has it in its data.
fn read(events: &[Value]) -> Vec<Piece> {
    let (mut reader, mut pieces) = (EventReader::default(), Vec::new());
    for event in events {
        reader.event("", event, &mut pieces);
    }
    reader.end(&mut pieces);
    pieces
}

/// Joins adjacent deltas.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), piece) {
            (Some(Piece::Delta(text)), Piece::Delta(more)) => text.push_str(&more),
            (_, piece) => all.push(piece),
        }
    }
    all
}

/// Returns the events of a stream, whose names must be their types.
fn events(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    let events = text.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
        data
    });
    events.collect()
}

fn write(pieces: &[Piece], usage: &Usage) -> Vec<Value> {
    let (mut writer, mut bytes) = (EventWriter::new(context()), Vec::new());
    for piece in pieces {
        writer.piece(piece, usage, &mut bytes);
    }
    writer.end(usage, &mut bytes);
    events(&bytes)
}

fn begin() -> Piece {
    Piece::Begin { id: "msg_1".into(), model: "m".into() }
}

fn text(text: &str) -> Piece {
    Piece::Delta(text.into())
}

fn call(id: &str) -> Piece {
    Piece::Open(Opened::ToolCall { id: id.into(), name: "f".into(), is_custom: false })
}

fn start(index: u64, block: Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn delta(index: u64, delta: Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn stop(index: u64) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

/// Returns the stream that the maker writes for an answer, with texts in pieces of `size` characters.
fn stream_of(reply: &Value, size: usize) -> Vec<Value> {
    let mut message = reply.clone();
    message["content"] = json!([]);
    message["stop_reason"] = Value::Null;
    let mut events = vec![json!({"type": "message_start", "message": message})];
    for (index, block) in reply["content"].as_array().unwrap().iter().enumerate() {
        let index = index as u64;
        let mut empty = block.clone();
        let (kind, field, content) = match block["type"].as_str().unwrap() {
            "text" => ("text_delta", "text", block["text"].as_str().unwrap().to_owned()),
            "thinking" => {
                empty["signature"] = "".into();
                ("thinking_delta", "thinking", block["thinking"].as_str().unwrap().to_owned())
            }
            "tool_use" | "server_tool_use" => {
                empty["input"] = json!({});
                ("input_json_delta", "partial_json", block["input"].to_string())
            }
            _ => ("", "", String::new()),
        };
        if block.get(field).is_some() {
            empty[field] = "".into();
        }
        events.push(start(index, empty));
        // An empty input has one empty piece.
        let content = if content == "{}" { String::new() } else { content };
        let letters: Vec<char> = content.chars().collect();
        for piece in letters.chunks(size) {
            let piece: String = piece.iter().collect();
            events.push(delta(index, json!({"type": kind, field: piece})));
        }
        if block["type"] == "thinking" {
            let signature = &block["signature"];
            events.push(delta(index, json!({"type": "signature_delta", "signature": signature})));
        }
        events.push(stop(index));
    }
    let (reason, sequence) = (&reply["stop_reason"], &reply["stop_sequence"]);
    let end = json!({"stop_reason": reason, "stop_sequence": sequence});
    events.push(json!({"type": "message_delta", "delta": end, "usage": {"output_tokens": 1}}));
    events.push(json!({"type": "message_stop"}));
    events
}

/// Panics unless exactly one part is open at a time.
fn check_order(pieces: &[Piece]) {
    let mut is_open = false;
    for (place, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Begin { .. } => assert_eq!(place, 0),
            Piece::Open(_) => assert!(!std::mem::replace(&mut is_open, true)),
            Piece::Delta(_) | Piece::Signature(_) => assert!(is_open),
            Piece::Close => assert!(std::mem::replace(&mut is_open, false)),
            Piece::Stop(_) => assert_eq!(place, pieces.len() - 1),
        }
    }
    assert!(!is_open && matches!(pieces.last(), Some(Piece::Stop(_))));
}

fn signature() -> impl Strategy<Value = Signature> {
    let own = Signature::new(Api::Messages, "EqQ=");
    let with_id = Signature { id: Some("rs_1".into()), ..Signature::new(Api::Responses, "g:A") };
    select(vec![own, with_id, Signature::new(Api::Gemini, "Cp/=")])
}

/// Returns the pieces of one part that a stream of this API can have.
fn part() -> impl Strategy<Value = Vec<Piece>> {
    let deltas = || {
        vec("[a-zä\n\"]{1,5}", 1..4)
            .prop_map(|all| all.into_iter().map(Piece::Delta).collect::<Vec<Piece>>())
    };
    let whole = |opened: Opened, mut inner: Vec<Piece>| {
        inner.insert(0, Piece::Open(opened));
        inner.push(Piece::Close);
        inner
    };
    let texts = deltas().prop_map(move |inner| whole(Opened::Text, inner));
    let thoughts = (deltas(), option::of(signature())).prop_map(move |(mut inner, signature)| {
        inner.extend(signature.map(Piece::Signature));
        whole(Opened::Thinking, inner)
    });
    let hidden = signature()
        .prop_map(move |signature| whole(Opened::Thinking, vec![Piece::Signature(signature)]));
    let redacted = Signature { is_redacted: true, ..Signature::new(Api::Messages, "ZGF0") };
    let redacted = Just(whole(Opened::Thinking, vec![Piece::Signature(redacted)]));
    let calls = deltas().prop_map(move |inner| {
        let opened = Opened::ToolCall { id: "call_1".into(), name: "f".into(), is_custom: false };
        whole(opened, inner)
    });
    prop_oneof![texts, thoughts, hidden, redacted, calls]
}

proptest! {
    #[test]
    fn streams_survive_a_round_trip(parts in vec(part(), 0..5)) {
        let mut pieces = vec![begin()];
        pieces.extend(parts.into_iter().flatten());
        pieces.push(Piece::Stop(Stop::MaxTokens));
        let again = read(&write(&pieces, &Usage::default()));
        check_order(&again);
        prop_assert_eq!(joined(again), joined(pieces));
    }

    #[test]
    fn a_stream_equals_the_reply_in_one_piece(reply in reply(), size in 1..4usize) {
        let pieces = read(&stream_of(&reply, size));
        check_order(&pieces);
        prop_assert_eq!(joined(pieces), pieces_of(&read_reply(&reply)));
    }

    #[test]
    fn no_event_panics(
        all in vec((select(vec![
            "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
            "message_start", "message_stop", "message", "",
        ]), any_json()), 0..12)
    ) {
        let (mut reader, mut pieces) = (EventReader::default(), Vec::new());
        for (name, mut data) in all {
            if let Value::Object(fields) = &mut data {
                fields.remove("type");
            }
            reader.event(name, &data, &mut pieces);
        }
        reader.end(&mut pieces);
        check_order(&pieces);
    }

    #[test]
    fn any_order_of_blocks_is_sorted(
        all in vec((0..3u64, select(vec!["start", "text", "json", "think", "stop"])), 0..20)
    ) {
        let mut sent = String::new();
        let events: Vec<Value> = all.into_iter().enumerate().map(|(at, (index, kind))| {
            let content = format!("{at},");
            match kind {
                "start" => start(index, json!({"type": "text", "text": ""})),
                "stop" => stop(index),
                _ => {
                    sent.push_str(&content);
                    delta(index, match kind {
                        "text" => json!({"type": "text_delta", "text": content}),
                        "json" => json!({"type": "input_json_delta", "partial_json": content}),
                        _ => json!({"type": "thinking_delta", "thinking": content}),
                    })
                }
            }
        }).collect();
        let pieces = read(&events);
        check_order(&pieces);
        let seen = pieces.iter().filter_map(|piece| match piece {
            Piece::Delta(text) => Some(text.replace("{}", "")),
            _ => None,
        });
        let seen: String = seen.collect();
        let mut seen: Vec<&str> = seen.split(',').collect();
        seen.sort_by_key(|at| at.parse().unwrap_or(u64::MAX));
        prop_assert_eq!(seen.join(","), sent);
    }
}

#[test]
fn interleaved_blocks_follow_in_order() {
    let tool = |id: &str| json!({"type": "tool_use", "id": id, "name": "f", "input": {}});
    let json_delta = |text: &str| json!({"type": "input_json_delta", "partial_json": text});
    let pieces = read(&[
        json!({"type": "message_start", "message": {"id": "msg_1", "model": "m"}}),
        start(0, tool("a")),
        start(1, tool("b")),
        delta(1, json_delta("{\"b\"")),
        delta(0, json_delta("{\"a\":1}")),
        delta(1, json_delta(":2}")),
        stop(1),
        stop(0),
        json!({"type": "message_stop"}),
    ]);
    let expected = [
        begin(),
        call("a"),
        text("{\"a\":1}"),
        Piece::Close,
        call("b"),
        text("{\"b\":2}"),
        Piece::Close,
        Piece::Stop(Stop::ToolCalls),
    ];
    assert_eq!(joined(pieces), expected);
}

#[test]
fn streams_of_compatible_servers_are_read() {
    let none = Piece::Begin { id: String::new(), model: String::new() };
    // No message_start, no indexes, no stops, and contents in the starts.
    let pieces = read(&[
        json!({"type": "content_block_start", "content_block": {"type": "text", "text": "Hi"}}),
        json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "!"}}),
        json!({"type": "content_block_start", "content_block":
            {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}),
    ]);
    let expected = [
        none.clone(),
        Piece::Open(Opened::Text),
        text("Hi!"),
        Piece::Close,
        call("a"),
        text("{\"x\":1}"),
        Piece::Close,
        Piece::Stop(Stop::ToolCalls),
    ];
    assert_eq!(joined(pieces), expected);
    // Only deltas, of two kinds.
    let pieces = read(&[
        delta(0, json!({"type": "thinking_delta", "thinking": "so"})),
        delta(0, json!({"type": "text_delta", "text": "Hi"})),
    ]);
    let expected = [
        none,
        Piece::Open(Opened::Thinking),
        text("so"),
        Piece::Close,
        Piece::Open(Opened::Text),
        text("Hi"),
        Piece::Close,
        Piece::Stop(Stop::End),
    ];
    assert_eq!(pieces, expected);
    let whole = json!({"type": "message", "id": "msg_1", "model": "m", "content": "x",
        "stop_reason": "end_turn"});
    assert_eq!(read(&[whole]), [begin(), Piece::Stop(Stop::End)]);
    assert!(matches!(&read(&[])[..], [Piece::Begin { .. }, Piece::Stop(Stop::End)]));
}

#[test]
fn a_stream_is_written_as_the_maker_does() {
    let usage = Usage { input_tokens: 9, output_tokens: 4, ..Usage::default() };
    let signature = Signature::new(Api::Gemini, "Cp/=");
    let events = write(
        &[
            Piece::Begin { id: String::new(), model: String::new() },
            Piece::Open(Opened::Text),
            Piece::Close,
            Piece::Open(Opened::Thinking),
            text("so"),
            Piece::Close,
            call("call_1"),
            text("{\"a\":1}"),
            Piece::Signature(signature.clone()),
            Piece::Close,
            call("call_2"),
            Piece::Close,
            Piece::Stop(Stop::End),
        ],
        &usage,
    );
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let expected = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names, expected);
    assert_eq!(events[0]["message"]["id"], "msg_1");
    assert_eq!(events[0]["message"]["model"], "requested");
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 9);
    assert_eq!(events[4]["index"], 1);
    assert_eq!(events[4]["content_block"]["id"], signature.attach_to("call_1"));
    assert_eq!(events[7]["content_block"]["id"], "call_2");
    assert_eq!(events[9]["delta"]["stop_reason"], "tool_use");
    assert_eq!(events[9]["usage"]["output_tokens"], 4);
}
