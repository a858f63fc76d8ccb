//! Events for clients, and streams of compatible servers.

use serde_json::{Value, json};

use super::{context, read_stream, stream_of, usage};
use crate::translation::responses::write_reply;
use crate::translation::{
    Api, Extra, Opened, Part, PartKind, Piece, Reply, Signature, Stop, pieces_of,
};

fn reply(parts: Vec<Part>, stop: Stop) -> Reply {
    let (id, model) = (String::new(), "claude".to_owned());
    Reply { id, model, parts, stop: Some(stop), extra: Extra::new() }
}

fn call(name: &str, is_custom: bool) -> Part {
    let (id, name, arguments) = ("call_1".into(), name.into(), "{}".into());
    Part::new(PartKind::ToolCall { id, name, arguments, is_custom })
}

fn opened_call() -> Opened {
    Opened::ToolCall { id: "call_1".into(), name: "f".into(), is_custom: false }
}

fn events(events: &[Value]) -> Vec<(String, Value)> {
    let name = |data: &Value| data["type"].as_str().unwrap_or_default().to_owned();
    events.iter().map(|data| (name(data), data.clone())).collect()
}

fn begin() -> Piece {
    Piece::Begin { id: String::new(), model: String::new() }
}

#[test]
fn a_stream_has_all_events() {
    let mut thinking = Part::new(PartKind::Thinking("I think.".into()));
    thinking.signature = Some(Signature::new(Api::Messages, "EqQB"));
    let parts = vec![thinking, Part::text("Hello"), call("f", false), call("patch", true)];
    let events = stream_of(&pieces_of(&reply(parts, Stop::ToolCalls)));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, expected);
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
    }
    assert_eq!(events[7].1["item"]["encrypted_content"], "flowledger:messages::EqQB");
    assert_eq!(events[13].1["output_index"], 1);
}

#[test]
fn thoughts_without_a_signature_are_marked() {
    let thought = || vec![Part::new(PartKind::Thinking("I think.".into()))];
    let answer = write_reply(&reply(thought(), Stop::End), &usage(), &context());
    let events = stream_of(&pieces_of(&reply(thought(), Stop::End)));
    let item = &events[events.len() - 2].1["item"];
    for item in [&answer["output"][0], item] {
        assert_eq!(item["encrypted_content"], "flowledger:gemini::");
    }
}

#[test]
fn an_answer_repeats_the_request_and_has_the_usage() {
    let answer = write_reply(&reply(vec![Part::text("Hi")], Stop::End), &usage(), &context());
    assert_eq!(answer["id"], "resp_abc");
    assert_eq!(answer["model"], "claude");
    assert_eq!(answer["instructions"], "Be brief.");
    assert_eq!(answer["tools"][0]["name"], "f");
    assert_eq!((&answer["temperature"], &answer["top_p"]), (&json!(0.5), &json!(1.0)));
    assert_eq!(answer["store"], false);
    let expected = json!({
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 29,
    });
    assert_eq!(answer["usage"], expected);
}

#[test]
fn an_answer_tells_why_it_ended() {
    for (stop, status, reason) in [
        (Stop::End, "completed", Value::Null),
        (Stop::Sequence(None), "completed", Value::Null),
        (Stop::Paused, "completed", Value::Null),
        (Stop::MaxTokens, "incomplete", json!("max_output_tokens")),
        (Stop::Refused, "incomplete", json!("content_filter")),
    ] {
        let reply = reply(vec![Part::text("Hi")], stop);
        let answer = write_reply(&reply, &usage(), &context());
        assert_eq!(
            (&answer["status"], &answer["incomplete_details"]["reason"]),
            (&json!(status), &reason)
        );
        let last = stream_of(&pieces_of(&reply)).pop().unwrap();
        assert_eq!(last.0, format!("response.{status}"));
        assert_eq!(last.1["response"], answer);
    }
    let refusal = reply(vec![Part::new(PartKind::Refusal("No.".into()))], Stop::Refused);
    assert_eq!(write_reply(&refusal, &usage(), &context())["status"], "completed");
}

#[test]
fn a_call_carries_the_signature_of_another_api() {
    let mut call = call("ns\u{1f}f", false);
    call.signature = Some(Signature::new(Api::Gemini, "CpcB"));
    let events = stream_of(&pieces_of(&reply(vec![call], Stop::ToolCalls)));
    for (name, data) in events.iter().filter(|(name, _)| name.contains("output_item")) {
        assert_eq!(data["item"]["call_id"], "call_1.flowledger:gemini:CpcB", "{name}");
        assert_eq!(data["item"]["namespace"], "ns");
        assert_eq!(data["item"]["name"], "f");
    }
}

#[test]
fn items_that_interleave_follow_in_order() {
    let added = |index: u8, call_id: &str| {
        let item =
            json!({"type": "function_call", "call_id": call_id, "name": "f", "arguments": ""});
        json!({"type": "response.output_item.added", "output_index": index, "item": item})
    };
    let delta = |index: u8, text: &str| {
        let kind = "response.function_call_arguments.delta";
        json!({"type": kind, "output_index": index, "delta": text})
    };
    let done = |index: u8, call_id: &str, text: &str| {
        let item =
            json!({"type": "function_call", "call_id": call_id, "name": "f", "arguments": text});
        json!({"type": "response.output_item.done", "output_index": index, "item": item})
    };
    let pieces = read_stream(&events(&[
        added(0, "call_1"),
        added(1, "call_2"),
        delta(1, "[2"),
        delta(0, "[1"),
        delta(1, "]"),
        done(1, "call_2", "[2]"),
        delta(0, "]"),
        done(0, "call_1", "[1]"),
        json!({"type": "response.completed", "response": {"status": "completed"}}),
    ]));
    let second = Opened::ToolCall { id: "call_2".into(), name: "f".into(), is_custom: false };
    let expected = [
        begin(),
        Piece::Open(opened_call()),
        Piece::Delta("[1]".into()),
        Piece::Close,
        Piece::Open(second),
        Piece::Delta("[2]".into()),
        Piece::Close,
        Piece::Stop(Stop::ToolCalls),
    ];
    assert_eq!(pieces, expected);
}

/// <https://github.com/ggml-org/llama.cpp/issues/20607>
#[test]
fn events_without_an_index_are_read() {
    let item = json!({
        "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "",
        "status": "in_progress",
    });
    let mut done = item.clone();
    done["arguments"] = "{}".into();
    let delta = json!({"item_id": "fc_1", "delta": "{}"});
    let named = |kind: &str, mut data: Value| {
        data["type"] = kind.into();
        data
    };
    let pieces = read_stream(&events(&[
        named("response.reasoning_text.delta", json!({"item_id": "rs_1", "delta": "Well."})),
        named("response.output_text.delta", json!({"item_id": "msg_1", "delta": "Hi"})),
        named("response.output_item.added", json!({"item": item})),
        named("response.function_call_arguments.delta", delta),
        named("response.output_item.done", json!({"item": done})),
        named(
            "response.completed",
            json!({"response": {"id": "resp_1", "output": [
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
                    {"type": "reasoning_text", "text": "Well."}]},
                {"type": "message", "id": "msg_1", "role": "assistant", "content": [
                    {"type": "output_text", "text": "Hi"}]},
                done,
            ]}}),
        ),
    ]));
    let expected = [
        begin(),
        Piece::Open(Opened::Thinking),
        Piece::Delta("Well.".into()),
        Piece::Close,
        Piece::Open(Opened::Text),
        Piece::Delta("Hi".into()),
        Piece::Close,
        Piece::Open(opened_call()),
        Piece::Delta("{}".into()),
        Piece::Close,
        Piece::Stop(Stop::ToolCalls),
    ];
    assert_eq!(pieces, expected);
}

#[test]
fn a_stream_that_breaks_off_closes_its_part() {
    let delta = json!({"type": "response.output_text.delta", "output_index": 0, "delta": "H"});
    let pieces = read_stream(&events(&[delta]));
    let expected = [
        begin(),
        Piece::Open(Opened::Text),
        Piece::Delta("H".into()),
        Piece::Close,
        Piece::Stop(Stop::End),
    ];
    assert_eq!(pieces, expected);
    assert_eq!(read_stream(&[]), [begin(), Piece::Stop(Stop::End)]);
}
