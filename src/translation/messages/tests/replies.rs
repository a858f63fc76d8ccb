//! Answers in one piece.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::super::super::conversation::{Part, PartKind, Reply, Stop};
use super::super::super::piece::pieces_of;
use super::super::super::{Api, Signature};
use super::super::{read_reply, write_reply};
use super::{any_json, context};
use crate::event::Usage;

fn foreign(parts: Vec<Part>, stop: Option<Stop>) -> Reply {
    let (id, model) = ("chatcmpl-1".into(), String::new());
    let extra = json!({"object": "chat.completion"}).as_object().cloned().unwrap();
    Reply { id, model, parts, stop, extra }
}

/// Returns an answer as the maker writes it.
pub(super) fn reply() -> impl Strategy<Value = Value> {
    let block = prop_oneof![
        "[a-z]{1,8}".prop_map(|text| json!({"type": "text", "text": text, "citations": null})),
        "[a-z]{1,8}".prop_map(|text| json!({"type": "text", "text": text})),
        select(vec![
            json!({"type": "thinking", "thinking": "so", "signature": "EqQ="}),
            json!({"type": "thinking", "thinking": "", "signature": "EqQ="}),
            json!({"type": "redacted_thinking", "data": "ZGF0YQ=="}),
            json!({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}),
            json!({"type": "tool_use", "id": "toolu_2", "name": "g", "input": {"a": [1, "ä"]},
                "caller": {"type": "direct"}}),
            json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "s", "input": {"q": 1}}),
            json!({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}),
        ]),
    ];
    let stop = select(vec![
        ("end_turn", None),
        ("max_tokens", None),
        ("stop_sequence", Some("END")),
        ("tool_use", None),
        ("refusal", None),
        ("pause_turn", None),
        ("model_context_window_exceeded", None),
    ]);
    (vec(block, 0..5), stop, any::<bool>()).prop_map(|(content, (reason, sequence), has_more)| {
        let mut reply = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5",
            "content": content, "stop_reason": reason, "stop_sequence": sequence,
        });
        if has_more {
            reply["container"] = json!({"id": "c"});
            reply["x_unknown"] = Value::Null;
        }
        reply
    })
}

proptest! {
    #[test]
    fn replies_survive_a_round_trip(body in reply()) {
        let mut again = write_reply(&read_reply(&body), &Usage::default(), &context());
        again.as_object_mut().unwrap().remove("usage");
        prop_assert_eq!(again, body);
    }

    #[test]
    fn no_reply_panics(body in any_json()) {
        let reply = read_reply(&body);
        let _ = pieces_of(&reply);
        let _ = write_reply(&reply, &Usage::default(), &context());
    }
}

#[test]
fn a_foreign_reply_is_shown_in_anthropics_terms() {
    let signed = |kind, signature| Part { signature: Some(signature), ..Part::new(kind) };
    let call = PartKind::ToolCall {
        id: "call_1".into(),
        name: "f".into(),
        arguments: "{\"a\":1}".into(),
        is_custom: false,
    };
    let gemini = Signature::new(Api::Gemini, "Cp/+=");
    let mut text = signed(PartKind::Text("Hi".into()), gemini.clone());
    text.extra = Map::from_iter([("annotations".to_owned(), json!([]))]);
    let hidden = Signature { id: Some("rs_1".into()), ..Signature::new(Api::Responses, "gAAA") };
    let redacted = Signature { is_redacted: true, ..Signature::new(Api::Messages, "ZGF0") };
    let parts = vec![
        Part::new(PartKind::Thinking("loud".into())),
        signed(PartKind::Thinking(String::new()), hidden.clone()),
        signed(PartKind::Thinking(String::new()), redacted),
        Part::text(""),
        text,
        signed(call, gemini.clone()),
        Part::new(PartKind::Other(json!({"type": "web_search_call"}))),
    ];
    let usage = Usage {
        input_tokens: 100,
        cached_input_tokens: 60,
        cache_write_tokens: 30,
        cache_write_1h_tokens: 10,
        output_tokens: 20,
        reasoning_tokens: 5,
        ..Usage::default()
    };
    let body = write_reply(&foreign(parts, Some(Stop::End)), &usage, &context());
    let expected = json!({
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "requested",
        "content": [
            {"type": "thinking", "thinking": "loud", "signature": ""},
            {"type": "thinking", "thinking": "", "signature": hidden.text_for(Api::Messages)},
            {"type": "redacted_thinking", "data": "ZGF0"},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": gemini.attach_to("call_1"), "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": null,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 30,
            "cache_read_input_tokens": 60,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 20,
                "ephemeral_1h_input_tokens": 10,
            },
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 5},
        },
    });
    assert_eq!(body, expected);
    // The client sends the thoughts back.
    let read = read_reply(&body);
    assert_eq!(read.parts[0].signature, None);
    assert_eq!(read.parts[1].signature, Some(hidden));
    assert_eq!(read.parts[4].signature, Some(gemini));
}

#[test]
fn stop_reasons_of_other_apis_are_shown() {
    let text = || vec![Part::text("x")];
    let refusal = || vec![Part::new(PartKind::Refusal("No.".into()))];
    for (parts, stop, expected) in [
        (text(), None, "end_turn"),
        (text(), Some(Stop::Other("recitation".into())), "end_turn"),
        (text(), Some(Stop::MaxTokens), "max_tokens"),
        (text(), Some(Stop::Sequence(None)), "stop_sequence"),
        (text(), Some(Stop::Refused), "refusal"),
        (refusal(), Some(Stop::End), "refusal"),
        (text(), Some(Stop::Paused), "pause_turn"),
    ] {
        let body = write_reply(&foreign(parts, stop), &Usage::default(), &context());
        assert_eq!(body["stop_reason"], expected);
        assert_eq!(body["content"].as_array().unwrap().len(), 1);
    }
}
